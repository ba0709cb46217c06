"""Compare ways to score the contexts of information gain: time, memory, tokens, and equality.

python -m scripts.benchmarks.scoring --out runs/bench_scoring

Each case runs in a process of its own. ~: one rollout was run, and time and tokens are scaled up.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from igsearch_env.cli.program import parse_early, run
from scripts.benchmarks.kit import benchmark_parser, measure_apart, peak_bytes, print_rows


def _parser() -> argparse.ArgumentParser:
    return benchmark_parser(__doc__)


if __name__ == "__main__":
    parse_early(_parser)

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
from agents.scoring.one_by_one import OneByOneScorer
from agents.scoring.trie_scorer import TrieScorer
from agents.tokenization import SegmentTokenizer
from igsearch_env.cli.console import console
from igsearch_env.episode import Context, Segment
from igsearch_env.files import write_json

Method = Literal["padded", "padded_answer_logits", "one_by_one", "trie"]
METHODS: tuple[Method, ...] = ("trie", "one_by_one", "padded_answer_logits", "padded")
Scores = list[NDArray[np.float64]]
MODELS = ((4, 256), (8, 512))
ROLLOUTS = 10  # that the figures are given for
TOLERANCE = 1e-4  # nats
VOCABULARY = 32_000
WORDS = 2  # ids below are special tokens
COLUMNS = {
    "layers": ("layers", "d"),
    "hidden": ("d", "d"),
    "searches": ("T", "d"),
    "method": ("method", "s"),
    "about": ("", "s"),
    "tokens": ("tokens", ",d"),
    "cpu_seconds": ("CPU s", ".1f"),
    "peak_mib": ("peak MiB", ",d"),
    "times": ("times the trie's CPU s", ".2f"),
}


@dataclass(frozen=True)
class RolloutShape:
    """Lengths of a rollout with T searches, in tokens, and the number of counterfactuals.

    Args:
        searches: T. Each is scored in 1 + N contexts, which end with the refinement after it.
        counterfactuals: N.
        prompt: Tokens of the prompt.
        query: Tokens of a turn's thoughts and query.
        documents: Tokens of the documents that a search returns.
        refinement: Tokens of the refinement of them.
        opening: Tokens of the answer's opening tag.
        answer: Tokens of the gold answer.
    """

    searches: int
    counterfactuals: int = 3
    prompt: int = 200
    query: int = 60
    documents: int = 500
    refinement: int = 100
    opening: int = 3
    answer: int = 5

    @property
    def contexts(self) -> int:
        """Number of contexts that are scored: T (1 + N)."""
        return self.searches * (1 + self.counterfactuals)


@dataclass(frozen=True)
class ScoringCase:
    """What is measured.

    Args:
        layers: Layers of the model.
        hidden: Its width, a multiple of 128. Heads have a size of 64, with two heads of keys and
            values; the feed-forward part is 5.375 times as wide, as in Qwen2.5-3B.
        method: How contexts are scored.
        rollout: Lengths of a rollout.
        rollouts: Number of rollouts that are run.
        threads: Torch threads.
    """

    layers: int
    hidden: int
    method: Method
    rollout: RolloutShape
    rollouts: int
    threads: int = 1


@dataclass(frozen=True)
class Measurement:
    """The cost of what was run, and the scores.

    Args:
        tokens: Tokens run through the layers.
        cpu_seconds: How long it took.
        peak_mib: Peak resident memory of the process, weights and libraries included, MiB.
        scores: Log-probabilities of the answer's tokens in nats, for each context.
    """

    tokens: int
    cpu_seconds: float
    peak_mib: float
    scores: Scores


def main(argv: Sequence[str] | None = None) -> None:
    """Run every case, then print and save the table.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    cases = plan(arguments.threads)
    rows, worst = summarise(cases, [found for _, found in measure_apart(cases, measure)])
    write_json(arguments.out / "results.json", {"rows": rows, "largest_difference": worst})
    print_rows(f"scoring {ROLLOUTS} rollouts, N = 3", rows, COLUMNS)
    console.print(f"largest difference of scores: {worst:.1e} nats (allowed: {TOLERANCE:.0e})")
    if worst > TOLERANCE:
        raise ValueError(f"the methods differ by {worst:.1e} nats, more than {TOLERANCE:.0e}")


def plan(threads: int) -> dict[str, ScoringCase]:
    """The cases, the trie first of those that are compared."""
    return {
        f"{layers} layers, {searches} searches, {method}": ScoringCase(
            layers,
            hidden,
            method,
            RolloutShape(searches),
            1 if layers > 4 and method != "trie" else ROLLOUTS,
            threads,
        )
        for layers, hidden in MODELS
        for searches in (2, 4, 5)
        for method in METHODS
    }


def summarise(
    cases: Mapping[str, ScoringCase], results: Sequence[Measurement]
) -> tuple[list[dict[str, Any]], float]:
    """The rows of the table, and the largest difference of scores from those of the trie, nats."""
    rows: list[dict[str, Any]] = []
    worst, trie, trie_seconds = 0.0, results[0], 0.0
    for case, result in zip(cases.values(), results, strict=True):
        scale = ROLLOUTS / case.rollouts
        seconds = result.cpu_seconds * scale
        if case.method == "trie":
            trie, trie_seconds = result, seconds
        pairs = zip(result.scores, trie.scores, strict=False)  # fewer rollouts were run
        worst = max(worst, *(float(np.abs(one - other).max()) for one, other in pairs))
        rows.append(
            {
                "layers": case.layers,
                "hidden": case.hidden,
                "searches": case.rollout.searches,
                "method": case.method,
                "about": "~" if scale != 1 else "",
                "tokens": round(result.tokens * scale),
                "cpu_seconds": round(seconds, 3),
                "peak_mib": round(result.peak_mib),
                "times": round(seconds / trie_seconds, 2),
            }
        )
    return rows, worst


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


def measure(case: ScoringCase) -> Measurement:
    """Run a case; meant for a process of its own, because memory is that of the process."""
    torch.set_num_threads(case.threads)
    tokenizer = SegmentTokenizer(make_tokenizer())
    scorer = _make_scorer(case.method, make_model(case.layers, case.hidden), tokenizer)
    tiny = replace(case.rollout, searches=1, counterfactuals=0, prompt=8, documents=8)
    scorer.log_probs(*make_contexts(tiny, 1))  # warm-up
    contexts, answers = make_contexts(case.rollout, case.rollouts)
    # The release pads the contexts of one rollout; the others take all at once.
    padded = case.method.startswith("padded")
    size = case.rollout.contexts if padded else len(contexts)
    scores: Scores = []
    tokens = 0
    started = time.process_time()
    for start in range(0, len(contexts), size):
        part = slice(start, start + size)
        scores += scorer.log_probs(contexts[part], answers[part])
        tokens += getattr(scorer, "tokens_processed", 0)
    seconds = time.process_time() - started
    if case.method == "one_by_one":
        pairs = zip(contexts, answers, strict=True)
        tokens = sum(len(tokenizer.encode_scored(*pair)[0]) for pair in pairs)
    return Measurement(tokens, seconds, peak_bytes() / 2**20, scores)


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


def _make_scorer(method: Method, model: PreTrainedModel, tokenizer: SegmentTokenizer) -> Any:
    if method == "trie":
        return TrieScorer(model, tokenizer)
    if method == "one_by_one":
        return OneByOneScorer(model, tokenizer)
    return PaddedScorer(model, tokenizer, full_logits=method == "padded")


def _text(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


if __name__ == "__main__":
    run(main)
