"""A turn of text together with the tokens that were sampled for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, get_args

StopReason = Literal["stop", "length", "end", "no_room", "refused"]
"""Why a turn ends: at a stop string (a closing tag), at its largest number of tokens, at an
end-of-sequence token, or before it began because the transcript filled the model's context or the
model's server refused the request."""


class Completion(str):
    """A turn of text with the tokens that were sampled for it.

    It is a ``str``, so environments and wrappers that know nothing of tokens accept it.

    Args:
        text: The decoded text.
        token_ids: Sampled ids, shape (tokens,).
        log_probs: Log-probability of each id under the sampling policy, in nats, shape (tokens,).
        token_ends: For each token, how many characters of ``text`` are complete once it has been
            decoded, shape (tokens,). :meth:`from_tokens` computes it.
        stop_reason: Why the turn ends (:data:`StopReason`); None if that is not known.

    Raises:
        ValueError: If the three do not have the same length, or ``token_ends`` does not end at
            ``len(text)``.
    """

    __slots__ = ("log_probs", "stop_reason", "token_ends", "token_ids")
    token_ids: tuple[int, ...] | None
    log_probs: tuple[float, ...] | None
    token_ends: tuple[int, ...] | None
    stop_reason: StopReason | None

    def __new__(
        cls,
        text: str,
        token_ids: Sequence[int] | None = None,
        log_probs: Sequence[float] | None = None,
        token_ends: Sequence[int] | None = None,
        stop_reason: StopReason | None = None,
    ) -> Completion:
        """Check the lengths and attach the tokens."""
        self = super().__new__(cls, text)
        self.token_ids = None if token_ids is None else tuple(token_ids)
        self.log_probs = None if log_probs is None else tuple(log_probs)
        self.token_ends = None if token_ends is None else tuple(token_ends)
        if stop_reason is not None and stop_reason not in get_args(StopReason):
            known = ", ".join(get_args(StopReason))
            raise ValueError(f"stop_reason must be None or one of {known}, got {stop_reason!r}")
        self.stop_reason = stop_reason
        if self.token_ids is not None:
            self._check(self.token_ids)
        elif self.log_probs is not None or self.token_ends is not None:
            raise ValueError("log_probs and token_ends need token_ids")
        return self

    def _check(self, token_ids: tuple[int, ...]) -> None:
        ends = self.token_ends
        if ends is None:
            raise ValueError(
                "a Completion with token_ids needs token_ends too; "
                "build it with Completion.from_tokens(token_ids, log_probs, decode)"
            )
        log_probs = token_ids if self.log_probs is None else self.log_probs
        if not len(token_ids) == len(ends) == len(log_probs):
            raise ValueError(
                "token_ids, log_probs and token_ends must have the same length, got "
                f"{len(token_ids)}, {len(log_probs)} and {len(ends)}"
            )
        bounds = (0, *ends)
        rising = all(before <= after for before, after in pairwise(bounds))
        if not rising or bounds[-1] != len(self):
            raise ValueError(
                f"token_ends must rise from 0 to len(text) = {len(self)}, got {list(ends)}"
            )

    def __reduce__(self) -> tuple[object, ...]:
        tokens = (self.token_ids, self.log_probs, self.token_ends)
        return (type(self), (str(self), *tokens, self.stop_reason))

    @classmethod
    def from_tokens(
        cls,
        token_ids: Sequence[int],
        log_probs: Sequence[float] | None,
        decode: Callable[[list[int]], str],
        stop_reason: StopReason | None = None,
    ) -> Completion:
        """Decode sampled ids, and find where each of them ends in the text.

        Args:
            token_ids: Sampled ids, shape (tokens,).
            log_probs: Their log-probabilities in nats, shape (tokens,), or None.
            decode: Maps ids to text without cleaning it up or dropping special tokens.
            stop_reason: Why the turn ends.
        """
        ids = list(token_ids)
        text = decode(ids)
        return cls(text, ids, log_probs, token_ends(ids, text, decode), stop_reason)

    def tokens_within(self, start: int, end: int) -> slice:
        """The tokens that lie wholly inside the characters ``[start, end)``.

        A token that straddles a bound belongs to what is outside of it, and so does a token with a
        part of the character at ``end``. (A token that completes the last character inside and
        starts the next one counts as inside; at a tag, which is ASCII, there is none.) A token that
        adds no character before an ASCII one belongs to what is before it. Without token ids the
        slice is empty.
        """
        if self.token_ends is None:
            return slice(0, 0)
        ends = (0, *self.token_ends)
        # ends[i] characters are complete before token i, so the first token inside is the first one
        # before which everything up to the start is complete: a token that straddles it is out.
        first = next((i for i, done in enumerate(ends) if done >= start), len(self.token_ends))
        reach = next((i for i, done in enumerate(ends) if done >= end), len(self.token_ends))
        last = reach if ends[reach] <= end else reach - 1
        # A character may be spread over several tokens, the last of which completes it. Tokens that
        # complete nothing belong to the character after them, unless that one is ASCII (one byte).
        if self[end : end + 1].isascii():
            while last < len(self.token_ends) and ends[last + 1] == end:
                last += 1
        return slice(first, max(first, last))

    def head(self, end: int) -> Completion:
        """The shortest prefix of whole tokens that holds the characters ``[0, end)``."""
        if self.token_ids is None or self.token_ends is None:
            return Completion(self[:end], stop_reason=self.stop_reason)
        ends = (0, *self.token_ends)
        count = next((i for i, done in enumerate(ends) if done >= end), len(self.token_ends))
        stop = self.token_ends[count - 1] if count else 0
        log_probs = None if self.log_probs is None else self.log_probs[:count]
        ids, ends = self.token_ids[:count], self.token_ends[:count]
        return Completion(self[:stop], ids, log_probs, ends, self.stop_reason)

    def pieces(self, ends: Sequence[int]) -> list[Completion]:
        """Parts that join to it, each up to a place in the text and the token that reaches it.

        A token that straddles a place belongs to the part before it.

        Args:
            ends: Rising places in the text; the last part reaches to the end of the text.
        """
        bounds = [*ends[:-1], len(self)]
        if self.token_ids is None or self.token_ends is None:
            texts = (self[a:b] for a, b in pairwise([0, *bounds]))
            return [Completion(text, stop_reason=self.stop_reason) for text in texts]
        parts: list[Completion] = []
        first = start = 0
        for end in bounds[:-1]:
            whole = self.head(end)
            parts.append(self._part(first, len(whole.token_ids or ()), start))
            first, start = len(whole.token_ids or ()), len(whole)
        return [*parts, self._part(first, len(self.token_ids), start)]

    def without(self, spans: Sequence[tuple[int, int]]) -> Completion:
        """What is left without the tokens that lie inside of some characters ``[start, end)``.

        A token that straddles a bound stays.
        """
        if self.token_ids is None or self.token_ends is None:
            kept = [0, *(place for span in spans for place in span), len(self)]
            return Completion(
                "".join(self[a:b] for a, b in zip(kept[::2], kept[1::2], strict=True))
            )
        ids: list[int] = []
        texts: list[str] = []
        ends: list[int] = []
        for token, (a, b) in zip(self.token_ids, pairwise((0, *self.token_ends)), strict=True):
            if not any(start <= a < end and b <= end for start, end in spans):
                ids.append(token)
                texts.append(self[a:b])
                ends.append((ends[-1] if ends else 0) + b - a)
        return Completion("".join(texts), ids, None, ends)

    def _part(self, first: int, last: int, start: int) -> Completion:
        """The tokens ``[first, last)``, of which the first begins at the character ``start``."""
        assert self.token_ids is not None  # or there would be no tokens
        assert self.token_ends is not None
        ends = [end - start for end in self.token_ends[first:last]]
        log_probs = None if self.log_probs is None else self.log_probs[first:last]
        text = self[start : start + (ends[-1] if ends else 0)]
        return Completion(text, self.token_ids[first:last], log_probs, ends, self.stop_reason)


def token_ends(token_ids: list[int], text: str, decode: Callable[[list[int]], str]) -> list[int]:
    """For each token, the number of characters of ``text`` that are complete once it is decoded.

    A character whose bytes are spread over several tokens is complete at the last of them: a
    prefix that ends inside it decodes to a replacement character, which differs from the text.
    """
    ends: list[int] = []
    done = 0
    # Decoding every prefix would take quadratic time. So decoding begins anew at tokens after which
    # the text was complete (`start`, `begun` characters), and a little before them (`before`): a
    # decoder may treat what opens a text in its own way.
    before = start = begun = 0
    opening = ""  # what the tokens from `before` to `start` say
    for count in range(1, len(token_ids) + 1):
        decoded = decode(token_ids[before:count])
        if not decoded.startswith(opening):
            decoded, opening, before, start, begun = decode(token_ids[:count]), "", 0, 0, 0
        said = decoded[len(opening) :]
        while done < min(begun + len(said), len(text)) and said[done - begun] == text[done]:
            done += 1
        ends.append(done)
        whole = done == begun + len(said) and said and said[-1] != "\ufffd"
        if whole and count - start >= _WINDOW:
            before, start, begun = start, count, done
            opening = decode(token_ids[before:start])
    return ends


_WINDOW = 16
"""Tokens that are decoded again and again before decoding begins anew."""
