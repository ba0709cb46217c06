"""One arm of the scoring benchmark: a load of random tokens, a way to score it, and its cost."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from agents.inference import evaluating
from agents.scoring.flops import RolloutShape
from agents.scoring.one_by_one import OneByOneScorer
from agents.scoring.trie_scorer import TrieScorer
from agents.tokenization import SegmentTokenizer
from igsearch_env.episode import Context, Segment

Method = Literal["padded", "padded_answer_logits", "one_by_one", "packed"]
Scores = list[NDArray[np.float64]]
VOCABULARY = 32_000
WORDS = 2  # ids below are special tokens


@dataclass(frozen=True)
class ScoringCase:
    """What is measured.

    Args:
        layers: Layers of the model.
        hidden: Its width, a multiple of 128. Heads have a size of 64, with two heads of keys and
            values; the feed-forward part is 5.375 times as wide, as in Qwen2.5-3B.
        method: How contexts are scored.
        rollout: Lengths of a rollout.
        rollouts: Number of rollouts that the figures are given for.
        run: Number of rollouts that are run; figures are scaled up if it is smaller.
        rows: Run only so many of a rollout's contexts, the last and longest ones. Padded contexts
            all cost the same.
        repeats: Largest number of measurements.
        seconds: No further measurement is begun after so many seconds.
        threads: Torch threads.
    """

    layers: int
    hidden: int
    method: Method
    rollout: RolloutShape
    rollouts: int = 10
    run: int = 10
    rows: int | None = None
    repeats: int = 3
    seconds: float = 60.0
    threads: int = 1

    @property
    def calls(self) -> list[range]:
        """Numbers of the contexts that are scored in each call."""
        size = self.rollout.contexts
        rows = size if self.rows is None else min(self.rows, size)
        if self.method in ("one_by_one", "packed"):
            return [range(self.run * size)]
        return [range((i + 1) * size - rows, (i + 1) * size) for i in range(self.run)]

    @property
    def scale(self) -> float:
        """Contexts that the figures are given for per context that is run."""
        return self.rollouts * self.rollout.contexts / sum(map(len, self.calls))


@dataclass(frozen=True)
class Measurement:
    """The cost of what was run, and the scores, by number of the context (a JSON key).

    Args:
        tokens: Tokens run through the layers.
        cpu_seconds: Median over the measurements.
        peak_mb: Peak resident memory of the process, weights and libraries included, MiB.
        scores: Log-probabilities of the answer's tokens in nats.
    """

    tokens: int
    cpu_seconds: float
    peak_mb: float
    scores: dict[str, list[float]]


class PaddedScorer:
    """Scores contexts left-padded together in one pass, as the paper's release does.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        full_logits: Compute the logits of every position, as the release does, or only those
            before an answer's tokens.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: SegmentTokenizer, *, full_logits: bool
    ) -> None:
        self.model, self.tokenizer, self.full_logits = model, tokenizer, full_logits
        self.tokens_processed = 0

    def log_probs(self, contexts: Sequence[Context], answers: Sequence[str]) -> Scores:
        """Score ``answers[i]`` as the continuation of ``contexts[i]``."""
        pairs = [
            self.tokenizer.encode_scored(context, answer)
            for context, answer in zip(contexts, answers, strict=True)
        ]
        width = max(len(ids) for ids, _ in pairs)
        ids = torch.tensor([[0] * (width - len(row)) + row for row, _ in pairs])  # (B, L)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row, _ in pairs])
        kept = max(count for _, count in pairs) + 1
        with evaluating(self.model):
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                use_cache=False,
                logits_to_keep=0 if self.full_logits else kept,
            ).logits
        log_probs = torch.log_softmax(logits[:, -kept:-1].float(), dim=-1)
        chosen = log_probs.gather(2, ids[:, 1 - kept :, None])[..., 0].double()
        self.tokens_processed = ids.numel()
        return [row[-count:].numpy() for row, (_, count) in zip(chosen, pairs, strict=True)]


def measure(arm: ScoringCase) -> Measurement:
    """Run an arm; meant for a process of its own, because memory is that of the process."""
    torch.set_num_threads(arm.threads)
    tokenizer = SegmentTokenizer(make_tokenizer())
    scorer = _make_scorer(arm.method, make_model(arm.layers, arm.hidden), tokenizer)
    tiny = replace(arm.rollout, searches=1, counterfactuals=0, prompt=8, documents=8)
    scorer.log_probs(*make_contexts(tiny, 1))  # warm-up
    contexts, answers = make_contexts(arm.rollout, arm.run)
    seconds: list[float] = []
    started = time.process_time()
    while len(seconds) < arm.repeats and time.process_time() - started < arm.seconds:
        scores: dict[int, NDArray[np.float64]] = {}
        tokens = 0
        before = time.process_time()
        for call in arm.calls:
            part = slice(call.start, call.stop)
            found = scorer.log_probs(contexts[part], answers[part])
            scores.update(zip(call, found, strict=True))
            tokens += getattr(scorer, "tokens_processed", 0)
        seconds.append(time.process_time() - before)
    encoded = [tokenizer.encode_scored(*pair)[0] for pair in zip(contexts, answers, strict=True)]
    if arm.method == "one_by_one":
        tokens = sum(map(len, encoded))
    if arm.method == "packed" and tokens != (unique := count_unique(encoded)):
        raise AssertionError(f"{tokens} tokens were run, but {unique} are unique")
    listed = {str(number): values.tolist() for number, values in scores.items()}
    return Measurement(tokens, statistics.median(seconds), _peak_mb(), listed)


def make_contexts(rollout: RolloutShape, rollouts: int) -> tuple[list[Context], list[str]]:
    """Contexts of rollouts and their answers: random tokens, the same in every call."""
    rng = np.random.default_rng(0)

    def segment(tokens: int) -> Segment:
        ids = rng.integers(WORDS, VOCABULARY, tokens).tolist()
        return Segment("", "document", tuple(ids))

    opening = Segment(_text(range(WORDS, WORDS + rollout.opening)), "system")
    contexts: list[Context] = []
    answers: list[str] = []
    for _ in range(rollouts):
        answer = " " + _text(rng.integers(WORDS, VOCABULARY, rollout.answer).tolist())
        history: Context = (segment(rollout.prompt),)
        for _ in range(rollout.searches):
            history = (*history, segment(rollout.query))
            evidence = [
                (segment(rollout.documents), segment(rollout.refinement))
                for _ in range(1 + rollout.counterfactuals)
            ]
            contexts += [(*history, *pair, opening) for pair in evidence]
            answers += [answer] * len(evidence)
            history = (*history, *evidence[0])
    return contexts, answers


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word: ``w2``, ``w3``, ..."""
    words = ["[UNK]", "[EOS]", *(f"w{i}" for i in range(WORDS, VOCABULARY))]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    untyped: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerFast = untyped(
        tokenizer_object=backend, unk_token="[UNK]", eos_token="[EOS]"
    )
    return made


def make_model(layers: int, hidden: int) -> PreTrainedModel:
    """A Qwen2 model with random weights, in the proportions of Qwen2.5.

    They are large enough for attention to be sharp: a context read wrongly changes scores.
    """
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=43 * hidden // 8,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        initializer_range=1.6 / hidden**0.5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    model: PreTrainedModel = Qwen2ForCausalLM(config).eval()
    return model


def count_unique(sequences: Sequence[Sequence[int]]) -> int:
    """Number of unique prefixes that some token follows, counted with a dictionary."""
    numbers: dict[tuple[int, int], int] = {}
    for ids in sequences:
        place = 0
        for token in ids[:-1]:
            place = numbers.setdefault((place, token), len(numbers) + 1)
    return len(numbers)


def _make_scorer(method: Method, model: PreTrainedModel, tokenizer: SegmentTokenizer) -> Any:
    if method == "packed":
        return TrieScorer(model, tokenizer)
    if method == "one_by_one":
        return OneByOneScorer(model, tokenizer)
    return PaddedScorer(model, tokenizer, full_logits=method == "padded")


def _text(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes or KiB
