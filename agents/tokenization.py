"""How segments of a transcript become token ids, and ids become text again.

Sampled ids are used as they are; only text that never had ids is tokenised.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import lru_cache
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from igsearch_env.episode import Context, Segment


class SegmentTokenizer:
    """Tokenises segments one by one, and answers in place.

    System text may hold control tokens (a chat template's markers); questions, documents, what
    tools return, policy text and answers cannot form any (:class:`GuardedTokenizer`), in whatever
    segment they stand (:attr:`igsearch_env.Segment.parts`). Threads may share one.

    Args:
        tokenizer: A fast tokenizer.
        cache_size: Number of texts whose ids are remembered.

    Raises:
        ValueError: If the tokenizer is not a fast one, or has a special token of one character.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, cache_size: int = 8_192) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                "expected a fast tokenizer (PreTrainedTokenizerFast), because answers are found by "
                f"character offsets, got {type(tokenizer).__name__}; "
                "load it with AutoTokenizer.from_pretrained(path, use_fast=True)"
            )
        self.tokenizer = tokenizer
        self._guarded = GuardedTokenizer(tokenizer)
        self._encode = lru_cache(cache_size)(self._encode_text)
        self._ends = lru_cache(cache_size)(self._token_ends)
        self._encode_pair = lru_cache(cache_size)(self._encode_opening_and_answer)

    def __deepcopy__(self, memo: dict[int, object]) -> SegmentTokenizer:
        """Itself: Gymnasium copies an environment's arguments at each look at its spec."""
        return self

    def __len__(self) -> int:
        """Number of tokens that the tokenizer knows, added ones included."""
        return len(self.tokenizer)

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The tokens that only system text may hold, as they are written."""
        return self._guarded.control_tokens

    def encode_context(self, segments: Context) -> list[int]:
        """Concatenate the ids of segments, each of them tokenised on its own.

        Args:
            segments: Segments in reading order, from the first of a transcript on.

        Returns:
            Ids, shape (tokens,). They start with what the tokenizer puts before every text (a BOS
            token, for most Llama and Gemma models), once: a template may have written it.
        """
        ids: list[int] = []
        for segment in segments:
            ids.extend(self.encode_segment(segment, ids))
        leading = self._guarded.leading
        return ids if ids[: len(leading)] == leading else [*leading, *ids]

    def encode_segment(self, segment: Segment, before: Sequence[int] | None = None) -> list[int]:
        """The ids of one segment in a transcript; see :meth:`encode_context`.

        Args:
            segment: The segment.
            before: The ids before it; None for some text. A tokenizer may put a blank before a text
                (SentencePiece does), but not in the middle of one.

        Returns:
            Ids, shape (tokens,).
        """
        if segment.token_ids is not None:
            return list(segment.token_ids)
        return list(self._encode(segment.text, _trusted(segment), self._starts(before)))

    def encode_answer(
        self, opening_text: str, answer_text: str, before: Sequence[int] | None = None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokenise an opening tag and an answer jointly, as the policy would write them.

        Args:
            opening_text: What stands before the answer; system text.
            answer_text: The answer, a leading blank included; untrusted text.
            before: As for :meth:`encode_segment`.

        Returns:
            The opening's ids and the answer's. A token that straddles the bound belongs to the
            answer.

        Raises:
            ValueError: If the answer has no tokens.
        """
        trusted = ((0, len(opening_text)),)
        return self._encode_pair(opening_text, answer_text, trusted, self._starts(before))

    def encode_scored(self, context: Context, answer: str) -> tuple[list[int], int]:
        """The ids of a context with an answer, and how many of them, at the end, are the answer's.

        Args:
            context: Segments; the last of them, the opening tag, is system text without ids.
            answer: What follows the opening tag.

        Raises:
            ValueError: If the last segment is something else, or nothing precedes the answer, or
                the answer has no tokens.
        """
        if not context or context[-1].source != "system" or context[-1].token_ids is not None:
            raise ValueError(
                "a scoring context must end with the answer's opening tag, a system segment "
                f"without token_ids, got {context[-1] if context else 'no segments'!r}"
            )
        ids = self.encode_context(context[:-1])
        opening, scored = self._encode_pair(
            context[-1].text, answer, _trusted(context[-1]), self._starts(ids)
        )
        ids += opening
        if not ids:
            raise ValueError(f"nothing precedes the answer {answer!r}; give a context with text")
        return [*ids, *scored], len(scored)

    def encode_all_scored(
        self, contexts: Sequence[Context], answers: Sequence[str]
    ) -> tuple[list[tuple[list[int], int]], int]:
        """:meth:`encode_scored` of each pair, and the length of the longest, 0 without pairs."""
        pairs = [self.encode_scored(c, a) for c, a in zip(contexts, answers, strict=True)]
        return pairs, max((len(ids) for ids, _ in pairs), default=0)

    def token_ends(self, text: str) -> tuple[int, ...]:
        """Where each token of an untrusted text ends: the number of characters up to it."""
        return self._ends(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens included, nothing cleaned up."""
        text: str = self._guarded.backend.decode(list(ids), skip_special_tokens=False)
        return text

    def tokens_with(self, characters: Iterable[str]) -> frozenset[int]:
        """The tokens whose text may hold one of some ASCII characters.

        Raises:
            ValueError: If a character is not ASCII: its bytes may be spread over several tokens.
        """
        wanted = set(characters)
        if not all(len(character) == 1 and character.isascii() for character in wanted):
            raise ValueError(f"expected single ASCII characters, got {sorted(wanted)}")
        vocabulary = self.tokenizer.get_vocab()
        return frozenset(i for token, i in vocabulary.items() if not wanted.isdisjoint(token))

    @property
    def known_ids(self) -> int:
        """Ids below this number stand for tokens; a padded model has embeddings for more."""
        return max(self.tokenizer.get_vocab().values()) + 1

    def check_fits(self, model: PreTrainedModel) -> None:
        """Check that the model has an embedding for every token.

        Raises:
            ValueError: If the largest id is not below the model's vocabulary size.
        """
        largest = self.known_ids - 1
        size = int(model.config.get_text_config(decoder=True).vocab_size)
        if largest >= size:
            raise ValueError(
                f"the tokenizer's largest id is {largest}, but the model knows ids below {size}; "
                "load both from one checkpoint, or call model.resize_token_embeddings"
            )

    def _starts(self, before: Sequence[int] | None) -> bool:
        """Whether the tokenizer takes what follows these ids for the start of a text."""
        return before is not None and self._guarded.starts_after(before)

    def _encode_text(self, text: str, trusted: Spans, starts: bool) -> tuple[int, ...]:
        return self._guarded.tokenise(text, trusted, starts)[0]

    def _token_ends(self, text: str) -> tuple[int, ...]:
        return tuple([end for _, end in self._guarded.tokenise(text, ())[1]])

    def _encode_opening_and_answer(
        self, opening: str, answer: str, trusted: Spans, starts: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        ids, spans = self._guarded.tokenise(opening + answer, trusted, starts)
        first = next((i for i, (_, end) in enumerate(spans) if end > len(opening)), len(ids))
        if first == len(ids):
            raise ValueError(
                f"the answer {answer!r} has no tokens after {opening!r}; "
                "golden answers must hold at least one token"
            )
        return ids[:first], ids[first:]


def as_segment_tokenizer(
    tokenizer: PreTrainedTokenizerFast | SegmentTokenizer,
) -> SegmentTokenizer:
    """Wrap a tokenizer; a wrapped one is returned as it is, so that its cache is shared."""
    return tokenizer if isinstance(tokenizer, SegmentTokenizer) else SegmentTokenizer(tokenizer)


Spans = tuple[tuple[int, int], ...]
"""Characters ``[start, end)`` of a text, in order."""

Tokens = tuple[tuple[int, ...], Spans]
"""Ids and, for each of them, the characters ``[start, end)`` that it stands for."""


class GuardedTokenizer:
    """Tokenises text of which only some parts may form control tokens.

    It works on a copy of its own, whose settings are made once. So it does not matter how others
    call the tokenizer, which sets its padding and truncation for all later calls; and any number of
    threads may tokenise and decode at once, as long as nothing is set meanwhile.

    Control tokens are the added tokens, special or not, except for those of whitespace only, the
    unknown token and words of one character. What counts is the ids that come out, not the
    tokenizer's flags: ``split_special_tokens`` skips added tokens that are not marked special
    (``<tool_call>``), and a normaliser can make a marker out of other characters. Where untrusted
    text would form one, it is cut after the token's first character and the pieces are tokenised
    apart.

    Some tokenizers put a blank before a text (SentencePiece's dummy prefix, ``add_prefix_space``):
    all of them at its beginning, some after each control token too. In the middle of a transcript
    there is none.

    Args:
        tokenizer: A fast tokenizer.

    Attributes:
        backend: The copy.
        control_tokens: The control tokens, as they are written.
        leading: Ids that the tokenizer puts before every text.

    Raises:
        ValueError: If it has a special token of one character, which no cut could keep out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._control = _control_ids(tokenizer)
        known = tokenizer.added_tokens_decoder
        self.control_tokens = tuple(sorted(known[one].content for one in self._control))
        self.backend = deepcopy(tokenizer.backend_tokenizer)
        self.backend.no_padding()
        self.backend.no_truncation()
        self.backend.encode_special_tokens = False
        self._inner, self._after_control = _without_prefix(self.backend)
        self.leading = self._leading("a")

    def _leading(self, text: str) -> list[int]:
        """What stands before the ids of a text when special tokens are added."""
        alone: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        full: list[int] = self.backend.encode(text, add_special_tokens=True).ids
        starts = range(len(full) - len(alone) + 1)
        return full[: next((i for i in starts if full[i : i + len(alone)] == alone), 0)]

    def starts_after(self, before: Sequence[int]) -> bool:
        """Whether what follows these ids gets the blank of a text's beginning."""
        return not before or (self._after_control and before[-1] in self._control)

    def tokenise(self, text: str, trusted: Spans, starts: bool = True) -> Tokens:
        """Tokenise without adding special tokens.

        Args:
            text: The text.
            trusted: Where control tokens may stand.
            starts: Whether it begins a text.

        Raises:
            ValueError: If a single character becomes a control token.
        """
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        pending = [(0, len(text))]  # pieces still to be tokenised, the first of them last
        while pending:
            start, end = pending.pop()
            piece_ids, piece_spans = self._piece(text, start, end, starts and start == 0)
            cuts = []
            if not self._control.isdisjoint(piece_ids):  # seldom, and each text comes by here
                cuts = [
                    _cut(text, *span)
                    for token, span in zip(piece_ids, piece_spans, strict=True)
                    if token in self._control
                    and not any(first <= span[0] and span[1] <= last for first, last in trusted)
                ]
            if cuts:
                bounds = [start, *cuts, end]
                pending.extend(reversed(list(pairwise(bounds))))
            else:
                ids.extend(piece_ids)
                spans.extend(piece_spans)
        return tuple(ids), tuple(spans)

    def _piece(self, text: str, start: int, end: int, starts: bool) -> Tokens:
        encoding = self.backend.encode(text[start:end], add_special_tokens=False)
        ids, offsets = encoding.ids, encoding.offsets
        if self._inner is not None and not starts:
            # The blank is wrong at the beginning alone: after a control token all is as it was.
            inner = self._inner.encode(text[start:end], add_special_tokens=False)
            cuts = (self._first_control(ids), self._first_control(inner.ids))
            ids = [*inner.ids[: cuts[1]], *ids[cuts[0] :]]
            offsets = [*inner.offsets[: cuts[1]], *offsets[cuts[0] :]]
        if start:
            offsets = [(start + first, start + last) for first, last in offsets]
        return tuple(ids), tuple(offsets)

    def _first_control(self, ids: list[int]) -> int:
        return next((i for i, token in enumerate(ids) if token in self._control), len(ids))


def _without_prefix(backend: Tokenizer) -> tuple[Tokenizer | None, bool]:
    """A copy that puts no blank before a text, and whether the tokenizer does so after each token.

    The copy is None where the tokenizer puts none anyway.
    """
    state: dict[str, Any] = json.loads(backend.to_str())
    found: list[str] = []

    def strip(part: Any) -> Any:
        """The part of a tokenizer without what puts a blank before a text."""
        if part is None:
            return None
        for name in ("normalizers", "pretokenizers"):
            if name in part:
                kept = [strip(one) for one in part[name]]
                return {**part, name: [one for one in kept if one is not None]}
        if part["type"] == "Prepend":
            found.append("always")
            return None
        if part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never":
            found.append(part.get("prepend_scheme", "always"))
            return {**part, "prepend_scheme": "never"}
        if part["type"] == "ByteLevel" and part.get("add_prefix_space"):
            found.append("always")
            return {**part, "add_prefix_space": False}
        return part

    for name in ("normalizer", "pre_tokenizer"):
        state[name] = strip(state[name])
    if not found:
        return None, False
    return Tokenizer.from_str(json.dumps(state)), "always" in found


def _trusted(segment: Segment) -> Spans:
    """Where a segment was written by the system."""
    found: list[tuple[int, int]] = []
    at = 0
    for part in segment.parts or (segment,):
        if part.source == "system":
            found.append((at, at + len(part.text)))
        at += len(part.text)
    return tuple(found)


def _control_ids(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    control = set()
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if not token.content.strip() or token_id == tokenizer.unk_token_id:
            continue
        if len(token.content) > 1:
            control.add(token_id)
        elif token.special:
            raise ValueError(
                f"the special token {token.content!r} is one character long, so a document that "
                "holds this character would become a control token; give it a longer name"
            )
    return frozenset(control)


def _cut(text: str, start: int, end: int) -> int:
    """Where to cut a control token: after its first character that is no blank."""
    cut = end - len(text[start:end].lstrip()) + 1
    if cut >= end:
        raise ValueError(
            f"the tokenizer turns {text[start:end]!r} into a control token, "
            "and a single character cannot be cut; remove that token or its normalisation"
        )
    return cut
