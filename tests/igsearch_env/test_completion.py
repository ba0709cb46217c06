"""A turn with its sampled tokens: which tokens a span of characters means."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from igsearch_env.completion import Completion, StopReason, token_ends


def by_vocabulary(*vocabulary: bytes) -> Callable[[list[int]], str]:
    """A byte-level tokenizer's decode."""
    return lambda ids: b"".join(vocabulary[i] for i in ids).decode("utf-8", errors="replace")


def completion_of(*tokens: bytes) -> Completion:
    ids = list(range(len(tokens)))
    return Completion.from_tokens(ids, [-float(i) for i in ids], by_vocabulary(*tokens))


class TestCompletion:
    def test_is_a_str(self) -> None:
        turn = Completion("<search> Peru </search>")
        assert isinstance(turn, str)
        assert turn == "<search> Peru </search>"
        assert (turn.token_ids, turn.log_probs, turn.token_ends) == (None, None, None)

    def test_from_tokens_keeps_the_sampled_ids(self) -> None:
        decode = by_vocabulary(b"a", b"b", b"ab", b" ")
        # "ab" has an id of its own, but two others were sampled for it.
        turn = Completion.from_tokens([0, 1, 3, 2], [-0.5, -1.5, -2.5, -3.5], decode)
        assert turn == "ab ab"
        assert turn.token_ids == (0, 1, 3, 2)
        assert turn.log_probs == (-0.5, -1.5, -2.5, -3.5)
        assert turn.token_ends == (1, 2, 3, 5)

    def test_from_tokens_without_log_probs(self) -> None:
        turn = Completion.from_tokens([1, 0], None, by_vocabulary(b"a", b"b"))
        assert (turn, turn.token_ids, turn.log_probs) == ("ba", (1, 0), None)

    def test_from_no_tokens(self) -> None:
        turn = Completion.from_tokens([], [], by_vocabulary())
        assert (turn, turn.token_ids, turn.token_ends) == ("", (), ())
        assert turn.tokens_within(0, 0) == slice(0, 0)

    @pytest.mark.parametrize(
        ("log_probs", "ends"),
        [((-1.0,), (1, 2)), ((-1.0, -1.0, -1.0), (1, 2)), (None, (2,)), ((-1.0, -1.0), (0, 1, 2))],
    )
    def test_refuses_other_lengths(
        self, log_probs: tuple[float, ...] | None, ends: tuple[int, ...]
    ) -> None:
        with pytest.raises(ValueError, match="must have the same length, got 2, "):
            Completion("ab", (5, 6), log_probs, ends)

    @pytest.mark.parametrize(
        "ends", [(1, 2), (1, 4), (2, 1), (-1, 3), (4, 3)], ids=lambda ends: str(ends)
    )
    def test_refuses_ends_that_do_not_rise_to_the_end_of_the_text(
        self, ends: tuple[int, ...]
    ) -> None:
        with pytest.raises(ValueError, match=r"must rise from 0 to len\(text\) = 3, got \["):
            Completion("abc", (5, 6), None, ends)

    def test_refuses_text_without_tokens_for_it(self) -> None:
        with pytest.raises(ValueError, match=r"must rise from 0 to len\(text\) = 3, got \[\]"):
            Completion("abc", (), (), ())

    def test_tokens_may_end_where_another_does(self) -> None:
        turn = Completion("abc", (5, 6, 7), None, (0, 3, 3))
        assert turn.tokens_within(0, 3) == slice(0, 3)

    def test_refuses_ids_without_ends(self) -> None:
        with pytest.raises(ValueError, match=r"needs token_ends too; .*from_tokens"):
            Completion("ab", (5, 6), (-1.0, -1.0))

    @pytest.mark.parametrize(("log_probs", "ends"), [((-1.0,), None), (None, (2,))])
    def test_refuses_the_rest_without_ids(
        self, log_probs: tuple[float, ...] | None, ends: tuple[int, ...] | None
    ) -> None:
        with pytest.raises(ValueError, match="need token_ids"):
            Completion("ab", None, log_probs, ends)

    @pytest.mark.parametrize(
        "clone",
        [
            copy.copy,
            copy.deepcopy,
            *(
                lambda turn, p=p: pickle.loads(pickle.dumps(turn, protocol=p))
                for p in range(pickle.HIGHEST_PROTOCOL + 1)
            ),
        ],
    )
    @pytest.mark.parametrize(
        "turn", [Completion("scripted"), completion_of(b"<", b"\xc3", b"\xa9")]
    )
    def test_copies_keep_the_tokens(
        self, clone: Callable[[Completion], Completion], turn: Completion
    ) -> None:
        twin = clone(turn)
        assert type(twin) is Completion
        assert twin == turn
        assert twin.token_ids == turn.token_ids
        assert twin.log_probs == turn.log_probs
        assert twin.token_ends == turn.token_ends


class TestTokensWithin:
    # <search>  a  </search>: the query's blanks are tokens of their own.
    APART = (b"<search>", b" ", b"a", b" ", b"</search>")
    # Here the tags swallow the query's blanks: both outer tokens straddle a bound.
    STRADDLING = (b"<search> ", b"a", b" </", b"search>")

    def test_between_tags(self) -> None:
        assert completion_of(*self.APART).tokens_within(8, 11) == slice(1, 4)

    def test_a_straddling_token_lies_outside(self) -> None:
        turn = completion_of(*self.STRADDLING)
        assert turn == "<search> a </search>"
        assert turn.tokens_within(8, 11) == slice(1, 2)  # "a" alone, not "<search> " nor " </"
        assert turn.tokens_within(0, 8) == slice(0, 0)  # the first token ends at 9
        assert turn.tokens_within(11, 20) == slice(3, 4)  # " </" starts at 10

    def test_one_token_over_the_whole_query_and_both_tags(self) -> None:
        turn = completion_of(b"<search>a</search>")
        assert [0][turn.tokens_within(8, 9)] == []
        assert turn.tokens_within(0, 18) == slice(0, 1)

    @pytest.mark.parametrize("at", [0, 3, 8, 11, 20])
    def test_an_empty_span_holds_nothing(self, at: int) -> None:
        span = completion_of(*self.APART).tokens_within(at, at)
        assert span.start == span.stop

    def test_the_whole_turn(self) -> None:
        assert completion_of(*self.APART).tokens_within(0, 20) == slice(0, 5)

    def test_past_the_end(self) -> None:
        span = completion_of(*self.APART).tokens_within(25, 30)
        assert span == slice(5, 5)

    def test_a_character_spread_over_tokens(self) -> None:
        turn = completion_of(b"<search>", b"\xf0\x9f", b"\x98", b"\x80", b"</search>")
        assert turn == "<search>😀</search>"
        assert turn.token_ends == (8, 8, 8, 9, 18)
        assert turn.tokens_within(8, 9) == slice(1, 4)

    def test_a_character_of_which_a_tag_holds_a_part(self) -> None:
        turn = completion_of(b"<search>\xc3", b"\xa9", b"t\xc3", b"\xa9</search>")
        assert turn == "<search>été</search>"
        assert turn.tokens_within(8, 11) == slice(1, 3)

    def test_a_part_of_the_character_after_the_span_lies_outside(self) -> None:
        turn = completion_of(b"<refine>r</refine>", b"\xc3", b"\xa9t")
        assert turn == "<refine>r</refine>ét"
        assert turn.tokens_within(0, 18) == slice(0, 1)

    def test_a_token_without_text_beside_a_tag_lies_within(self) -> None:
        turn = completion_of(b"<search>", b"", b"a", b"", b"</search>")
        assert turn.tokens_within(8, 9) == slice(1, 4)

    def test_a_broken_character_before_a_tag_lies_within(self) -> None:
        turn = completion_of(b"<search>", b"a", b"\xe6", b"\x97", b"</search>")
        assert turn == "<search>a\ufffd</search>"
        assert turn.tokens_within(8, 10) == slice(1, 4)

    def test_text_without_tokens(self) -> None:
        assert Completion("<search>a</search>").tokens_within(8, 9) == slice(0, 0)


class TestHead:
    def test_cuts_between_tokens(self) -> None:
        head = completion_of(b"<a>", b"x", b"</a>", b" and", b" more").head(8)
        assert head == "<a>x</a>"
        assert head.token_ids == (0, 1, 2)
        assert head.log_probs == (0.0, -1.0, -2.0)
        assert head.token_ends == (3, 4, 8)

    def test_keeps_a_token_that_straddles_the_end_whole(self) -> None:
        head = completion_of(b"<a>", b"x", b"</a>.\n", b"more").head(8)
        assert head == "<a>x</a>.\n"
        assert head.token_ids == (0, 1, 2)

    def test_is_the_shortest(self) -> None:
        head = completion_of(b"x>", b"\xc3", b"\xa9").head(2)
        assert (head, head.token_ids) == ("x>", (0,))

    def test_takes_every_token_of_a_spread_character(self) -> None:
        head = completion_of(b"x", b"\xc3", b"\xa9", b"y").head(2)
        assert (head, head.token_ids) == ("xé", (0, 1, 2))

    def test_of_nothing(self) -> None:
        head = completion_of(b"\xc3", b"\xa9").head(0)
        assert (head, head.token_ids, head.log_probs, head.token_ends) == ("", (), (), ())

    @pytest.mark.parametrize("end", [4, 99])
    def test_of_everything(self, end: int) -> None:
        turn = completion_of(b"ab", b"cd")
        head = turn.head(end)
        assert (head, head.token_ids) == (turn, turn.token_ids)

    def test_without_log_probs(self) -> None:
        turn = Completion.from_tokens([0, 1], None, by_vocabulary(b"a", b"b"))
        assert turn.head(1).log_probs is None

    def test_without_tokens(self) -> None:
        head = Completion("<a>x</a> and more").head(8)
        assert type(head) is Completion
        assert (head, head.token_ids) == ("<a>x</a>", None)


@st.composite
def chunked(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """``data`` cut at random into non-empty tokens."""
    cuts = draw(st.sets(st.integers(1, len(data) - 1))) if len(data) > 1 else set()
    return [data[a:b] for a, b in pairwise(sorted({0, *cuts, len(data)}))]


# Texts that put characters of one to four bytes side by side.
TEXT = st.text(
    st.one_of(st.sampled_from("ab <>/é‹日😀"), st.characters(codec="utf-8")), max_size=12
)
# A policy can sample any bytes, whole characters or not.
BYTES = st.one_of(TEXT.map(str.encode), st.binary(max_size=12))


def byte_ends(tokens: list[bytes], text: str) -> list[int]:
    """For each token, how many characters have all of their bytes in the tokens up to it."""
    ends, seen = [], 0
    for token in tokens:
        seen += len(token)
        ends.append(sum(len(text[:n].encode()) <= seen for n in range(1, len(text) + 1)))
    return ends


@settings(deadline=None)
@given(data=st.data(), text=TEXT.filter(lambda text: "\ufffd" not in text))
def test_token_ends_count_complete_characters(data: st.DataObject, text: str) -> None:
    tokens = data.draw(chunked(text.encode()))
    found = token_ends(list(range(len(tokens))), text, by_vocabulary(*tokens))
    assert found == byte_ends(tokens, text)


@dataclass(frozen=True)
class Tagged:
    """Bytes around and between two tags, cut into tokens."""

    before: bytes
    inside: bytes
    tokens: list[bytes]


@st.composite
def tagged(draw: st.DrawFn) -> Tagged:
    before, inside, after = draw(BYTES), draw(BYTES), draw(BYTES)
    data = before + b"<search>" + inside + b"</search>" + after
    return Tagged(before, inside, draw(chunked(data)))


@settings(deadline=None)
@given(tagged())
@example(Tagged(b"", b"", [b"<search>", b"</search>"]))
@example(Tagged(b"", b"\xc3", [b"<search>\xc3</search>"]))
@example(
    Tagged(
        b"\xef\xbf\xbd",
        b"\xef\xbf\xbd",
        [bytes([b]) for b in b"\xef\xbf\xbd<search>\xef\xbf\xbd</search>"],
    )
)
def test_tokens_within_tags_are_those_whose_bytes_lie_within(turn: Tagged) -> None:
    first_byte = len(turn.before) + len(b"<search>")
    last_byte = first_byte + len(turn.inside)
    expected, offset = [], 0
    for index, token in enumerate(turn.tokens):
        if first_byte <= offset and offset + len(token) <= last_byte:
            expected.append(index)
        offset += len(token)

    start = len(turn.before.decode(errors="replace")) + len("<search>")
    end = start + len(turn.inside.decode(errors="replace"))
    completion = completion_of(*turn.tokens)
    assert completion[start - 8 : start] == "<search>"
    assert completion[end : end + 9] == "</search>"
    assert list(range(len(turn.tokens)))[completion.tokens_within(start, end)] == expected


@settings(deadline=None)
@given(data=st.data(), text=TEXT)
def test_head_is_the_shortest_prefix_that_holds_the_end(data: st.DataObject, text: str) -> None:
    tokens = data.draw(chunked(text.encode()))
    end = data.draw(st.integers(0, len(text)))
    completion = completion_of(*tokens)
    head = completion.head(end)
    assert head.token_ids is not None
    assert head.token_ids == tuple(range(len(head.token_ids)))
    assert completion.startswith(head)
    assert len(head) >= end
    if head.token_ids and "\ufffd" not in text:
        shorter = byte_ends(tokens, text)[len(head.token_ids) - 2] if len(head.token_ids) > 1 else 0
        assert shorter < end


class TestStopReason:
    @pytest.mark.parametrize("reason", ["stop", "length", "end", "no_room", None])
    def test_is_kept(self, reason: StopReason | None) -> None:
        decode = by_vocabulary(b"a", b"b")
        for turn in (
            Completion("ab", stop_reason=reason),
            Completion.from_tokens([0, 1], [-1.0, -1.0], decode, reason),
        ):
            same = (turn, turn.head(1), copy.deepcopy(turn), pickle.loads(pickle.dumps(turn)))
            assert [one.stop_reason for one in same] == [reason] * 4

    def test_an_unknown_one_is_refused(self) -> None:
        unknown: Any = "eos"
        with pytest.raises(ValueError, match="stop_reason must be None or one of stop, length"):
            Completion("a", stop_reason=unknown)
