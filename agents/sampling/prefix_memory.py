"""Keys and values kept from one call of a policy to the next."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from agents.inference import attends_alone, sliding_window
from agents.sampling.sampler import Prefix, Sample


class PrefixMemory:
    """Remembers what the last call ran, by token ids.

    An episode that goes on then has only its new text to read. The memory empties itself when the
    weights have changed in place (an optimiser's step, a loaded state) or were replaced. Writing
    through ``parameter.data`` goes unnoticed: call :meth:`clear` then.

    Args:
        model: The model that the keys and values belong to. If it has a sliding window nothing is
            remembered, because the columns of a continued row have gaps, which would shift the
            window; nor if it remembers more than keys and values (a hybrid).

    Attributes:
        finished_tokens: At most so many tokens are kept of sequences that were not continued, the
            latest ones, for a scorer that starts from them. 0 keeps none.
        max_tokens: At most so many positions, padding included, are kept for the next call; what
            has no room is read again. None for no limit.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._enabled = attends_alone(model) and sliding_window(model) is None
        self.finished_tokens = 0
        self.max_tokens: int | None = None
        self._kept: dict[int, int] = {}  # positions of each buffer kept from the running call
        self._prefixes: dict[tuple[int, ...], Prefix] = {}
        self._continued: set[tuple[int, ...]] = set()
        self._finished: dict[tuple[int, ...], Prefix] = {}  # oldest first
        self._weights: tuple[tuple[int, int], ...] = ()

    @property
    def model(self) -> PreTrainedModel:
        """The model that the keys and values belong to."""
        return self._model

    def __len__(self) -> int:
        """Number of sequences remembered from the last call."""
        return len(self._prefixes)

    def recall(self, sequences: Sequence[Sequence[int]]) -> list[Prefix | None]:
        """For each sequence of ids, its keys and values (those of the last token missing)."""
        self._check_weights()
        self._continued = {tuple(ids) for ids in sequences}
        self._kept = {}
        return [self._prefixes.get(tuple(ids)) for ids in sequences]

    def held(self) -> list[tuple[tuple[int, ...], Prefix]]:
        """Every sequence of ids whose keys and values are held, and these; one per token of them.

        They are those of the last call, and the finished ones that were kept.
        """
        self._check_weights()
        # The key of a sequence has one token more than its prefix: the last one sampled was never
        # run, so a scorer must not take it for known.
        everything = {**self._finished, **self._prefixes}
        return [(ids[: len(prefix)], prefix) for ids, prefix in everything.items()]

    def make_room(self, samples: Sequence[Sample]) -> None:
        """Let go of keys and values that exceed ``max_tokens``, before a call's next batch runs.

        Args:
            samples: The samples of a batch; those without room lose their prefix.
        """
        if self.max_tokens is None:
            return
        for sample in samples:
            if sample.prefix is None:
                continue
            # Rows of a batch share their buffers: a first row pays for all of them.
            keys = sample.prefix.layers[0][0]
            cost = keys.shape[0] * keys.shape[2]
            if keys.data_ptr() in self._kept:
                continue
            if sum(self._kept.values()) + cost > self.max_tokens:
                sample.prefix = None
            else:
                self._kept[keys.data_ptr()] = cost

    def replace(self, contexts: Sequence[Sequence[int]], samples: Sequence[Sample]) -> None:
        """Remember what was sampled after each context, and what was finished before."""
        self._keep_finished()
        self._weights = self._version()
        self._prefixes = {
            (*context, *sample.ids): sample.prefix
            for context, sample in zip(contexts, samples, strict=True)
            if self._enabled and sample.prefix is not None
        }

    def clear(self) -> None:
        """Forget everything, which frees the memory."""
        self._prefixes, self._continued, self._finished = {}, set(), {}

    def _keep_finished(self) -> None:
        """Keep what the call before remembered and this one did not continue."""
        if not self.finished_tokens:
            return
        ended = {ids: one for ids, one in self._prefixes.items() if ids not in self._continued}
        room = self.finished_tokens
        kept: dict[tuple[int, ...], Prefix] = {}  # latest first
        for ids, prefix in reversed({**self._finished, **ended}.items()):
            room -= len(prefix)
            if room < 0:
                break
            # A view would keep the buffers of its whole batch alive: copy once, when it ends.
            kept[ids] = prefix.alone() if ids in ended else prefix
        self._finished = dict(reversed(kept.items()))

    def _check_weights(self) -> None:
        if self._weights != self._version():
            self.clear()

    def _version(self) -> tuple[tuple[int, int], ...]:
        # Torch counts the writes to a tensor; an optimiser's step raises the count of each. Tensors
        # made under inference_mode have none, and cannot be trained.
        return tuple(
            (parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version)
            for parameter in self._model.parameters()
        )
