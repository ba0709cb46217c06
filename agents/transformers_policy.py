"""A policy that samples turns from a causal language model of transformers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from agents.chat import protocol_for
from agents.inference import check_cache, check_weights, eos_ids, evaluating, max_positions
from agents.lora import has_adapters, merged
from agents.sampling.prefix_memory import PrefixMemory
from agents.sampling.sampler import Sample, SampleRequest, sample
from agents.scoring.one_by_one import OneByOneScorer
from agents.scoring.trie_scorer import TrieScorer
from agents.tokenization import SegmentTokenizer, as_segment_tokenizer
from igsearch_env.checkpoint_settings import CheckpointSettings
from igsearch_env.completion import Completion, StopReason
from igsearch_env.episode import Context, Episode
from igsearch_env.protocol.tags import TagProtocol
from igsearch_env.settings import EnvironmentSettings

logger = logging.getLogger(__name__)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@cache
def _say_once(message: str) -> None:
    logger.warning(message)


class TransformersPolicy:
    """Samples the next turn of each episode.

    A turn ends with one of the protocol's stop strings, with an end-of-sequence token or what ends
    a turn in the chat template (which are kept), or after ``max_new_tokens``. Keys and values are
    kept for the next call, so that an episode which went on has only its new text to read.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        protocol: The grammar, or its name (:mod:`igsearch_env.protocol.names`).
        temperature: Divides the logits before sampling; above 0.
        greedy: Take the most likely token instead of sampling.
        max_new_tokens: Longest turn, in tokens; shorter where the model's positions run out.
        seed: Seeds this policy's own random generator.
        batch_size: Largest number of episodes that run together.
        trained_in: The rules of the environment that it was, or will be, trained in; saved with it.
        autocast: Type that matrices are multiplied in; None for that of the weights.

    Attributes:
        memory: The keys and values kept for the next call; ``memory.clear()`` frees them.
        overflows: Number of turns left empty because the transcript filled the model's positions.

    Raises:
        ValueError: If an argument is out of range, or the tokenizer is not a fast one or does not
            fit the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast | SegmentTokenizer,
        protocol: TagProtocol | str | None,
        *,
        temperature: float = 1.0,
        greedy: bool = False,
        max_new_tokens: int = 64,
        seed: int = 0,
        batch_size: int = 128,
        trained_in: EnvironmentSettings | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}; try greedy=True")
        if max_new_tokens < 1 or batch_size < 1:
            raise ValueError(
                "max_new_tokens and batch_size must be at least 1, "
                f"got {max_new_tokens} and {batch_size}"
            )
        self.model = model
        self.tokenizer = as_segment_tokenizer(tokenizer)
        self.tokenizer.check_fits(model)
        check_cache(model)
        self.protocol = protocol_for(protocol, self.tokenizer.tokenizer)
        self.temperature = temperature
        self.greedy = greedy
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.trained_in = trained_in or EnvironmentSettings().rules
        self.autocast = autocast
        self.overflows = 0
        self.memory = PrefixMemory(model)
        self._generator = torch.Generator(device=model.device).manual_seed(seed)
        self._known = self.tokenizer.known_ids
        control = self.tokenizer.tokenizer.get_added_vocab()
        ends = {control[end] for end in self.protocol.turn_ends if end in control}
        self._eos = eos_ids(model, self.tokenizer.tokenizer) | ends
        self._closing = self.tokenizer.tokens_with(stop[-1] for stop in self.protocol.stop)

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike[str],
        protocol: TagProtocol | str | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str = "auto",
        max_new_tokens: int | None = None,
        **options: Any,
    ) -> Self:
        """Load a checkpoint.

        Args:
            path: A directory, or the name of a model on the Hugging Face hub.
            protocol: The grammar, or its name (:mod:`igsearch_env.protocol.names`); None for what
                the directory says, or else ``"refine"``.
            device: Where the model is to live.
            dtype: Type of the weights; ``"auto"`` takes the checkpoint's.
            max_new_tokens: Longest turn, in tokens; None for what the directory says, or else 64.
            **options: Further arguments of the constructor.

        Raises:
            ValueError: If the directory holds no tokenizer, or its settings cannot be read.
        """
        folder = Path(path)
        if folder.is_dir() and not any((folder / name).exists() for name in _TOKENIZER_FILES):
            raise ValueError(
                f"{folder} holds no tokenizer (none of {', '.join(_TOKENIZER_FILES)}); "
                "save it beside the model with tokenizer.save_pretrained"
            )
        saved = CheckpointSettings.load(folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(path)  # checked by the constructor
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        return cls(
            model.to(device),
            tokenizer,
            saved.protocol if protocol is None else protocol,
            max_new_tokens=saved.max_new_tokens if max_new_tokens is None else max_new_tokens,
            **{"trained_in": saved.trained_in, **options},
        )

    def save_pretrained(self, path: str | PathLike[str], *, adapters_only: bool = False) -> None:
        """Write the model, the tokenizer, and :class:`CheckpointSettings` to a directory.

        Args:
            path: The directory.
            adapters_only: Of a model with adapters, write these alone, in peft's format; else they
                are merged into its weights, and the directory loads like any other.

        Raises:
            ValueError: If a weight is not a finite number; nothing is written then.
        """
        check_weights(self.model)
        merge = has_adapters(self.model) and not adapters_only
        (merged(self.model) if merge else self.model).save_pretrained(path)
        self.tokenizer.tokenizer.save_pretrained(path)
        settings = CheckpointSettings(self.protocol, self.max_new_tokens, self.trained_in)
        settings.save(Path(path))

    def scorer(self) -> TrieScorer | OneByOneScorer:
        """A scorer over the same weights, which sees every later change of them.

        It starts from the keys and values that :attr:`memory` holds. A model that does not let
        contexts share them (a hybrid, say) is scored one context at a time; the log says so once.
        """
        memory, autocast = self.memory, self.autocast
        try:
            return TrieScorer(self.model, self.tokenizer, memory=memory, autocast=autocast)
        except ValueError as error:
            _say_once(f"contexts are scored one by one, which takes longer: {error}")
            return OneByOneScorer(self.model, self.tokenizer, autocast=autocast)

    def fresh(self, seed: int, *, greedy: bool = False) -> TransformersPolicy:
        """A policy with the same weights and settings, and a generator and a memory of its own.

        Args:
            seed: Seeds its generator.
            greedy: Whether it takes the most likely tokens instead of sampling.
        """
        policy = TransformersPolicy(
            self.model,
            self.tokenizer,
            self.protocol,
            temperature=self.temperature,
            greedy=greedy,
            max_new_tokens=self.max_new_tokens,
            seed=seed,
            batch_size=self.batch_size,
            autocast=self.autocast,
        )
        policy.memory.max_tokens = self.memory.max_tokens
        return policy

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold besides the weights to go on sampling alike."""
        return {"generator": self._generator.get_state(), "overflows": self.overflows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that :meth:`state_dict` returned on the same kind of device."""
        self._generator.set_state(state["generator"].cpu())
        self.overflows = int(state["overflows"])
        self.memory.clear()

    def act(self, episodes: Sequence[Episode]) -> list[Completion]:
        """Sample the next turn of each episode.

        Returns:
            One completion per episode, with the sampled ids and their log-probabilities (nats)
            under the distribution they were drawn from: at ``temperature``, or at 1 if greedy, and
            why the turn ends. It has no tokens where the transcript leaves no room in the model's
            positions.

        Raises:
            ValueError: If a transcript has no tokens at all.
        """
        transcripts = [episode.context for episode in episodes]
        contexts = [self.tokenizer.encode_context(transcript) for transcript in transcripts]
        if not all(contexts):
            raise ValueError("expected transcripts of at least one token, got an empty prompt")
        known = self.memory.recall([self._sampled_part(transcript) for transcript in transcripts])
        limits = [self._limit(len(ids)) for ids in contexts]
        samples = [Sample() for _ in contexts]
        fitting = [row for row, limit in enumerate(limits) if limit > 0]
        self.overflows += len(contexts) - len(fitting)
        with evaluating(self.model, self.autocast):
            for first in range(0, len(fitting), self.batch_size):
                rows = fitting[first : first + self.batch_size]
                requests = [SampleRequest(contexts[row], known[row], limits[row]) for row in rows]
                drawn = sample(self.model, requests, self._choose, self._ended)
                self.memory.make_room(drawn)
                for row, one in zip(rows, drawn, strict=True):
                    samples[row] = one
        self.memory.replace(contexts, samples)
        return [self._completion(one) for one in samples]

    def _stop_reason(self, ids: list[int]) -> StopReason:
        if not ids:
            return "no_room"
        if ids[-1] in self._eos:
            return "end"
        return "stop" if self._ended(ids) else "length"

    def _sampled_part(self, transcript: Context) -> list[int]:
        """The transcript up to the end of its last turn: what an earlier call may have run."""
        turns = [i for i, segment in enumerate(transcript) if segment.source == "policy"]
        return self.tokenizer.encode_context(transcript[: turns[-1] + 1]) if turns else []

    def _limit(self, context: int) -> int:
        positions = max_positions(self.model)
        return min(self.max_new_tokens, (positions or context + self.max_new_tokens) - context)

    def _choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Draw from float32 logits (B, V): ids and log-probabilities, shape (B,) each."""
        logits = logits[:, : self._known]  # what a padded vocabulary adds has no text
        log_probs = torch.log_softmax(logits if self.greedy else logits / self.temperature, dim=-1)
        if log_probs[:, 0].isnan().any():  # one NaN or infinity makes a whole row NaN
            raise ValueError(
                "the policy computes logits that are not finite numbers: its weights are damaged "
                "or too large; begin with another checkpoint, or try precision float32"
            )
        if self.greedy:
            ids = log_probs.argmax(dim=-1, keepdim=True)
        else:
            ids = torch.multinomial(log_probs.exp(), 1, generator=self._generator)
        return ids[:, 0], log_probs.gather(1, ids)[:, 0]

    def _ended(self, ids: list[int]) -> bool:
        if ids[-1] in self._eos:
            return True
        if ids[-1] not in self._closing:
            return False
        return self.protocol.ended(self.tokenizer.decode(ids))

    def _completion(self, one: Sample) -> Completion:
        reason = self._stop_reason(one.ids)
        return Completion.from_tokens(one.ids, one.log_probs, self.tokenizer.decode, reason)
