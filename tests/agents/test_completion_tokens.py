"""Spans of characters become spans of sampled tokens, compared with arithmetic on bytes."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from agents.tokenization import SegmentTokenizer
from igsearch_env.completion import Completion, token_ends
from igsearch_env.protocol.tags import PROTOCOLS, Search
from tests.agents.test_tokenizer_families import FAMILIES, made

# U+FFFD is left out: a cut character decodes to it, so it cannot be told from one.
CHARACTERS = st.characters(codec="utf-8", exclude_characters="<>\ufffd")
TEXTS = st.text(CHARACTERS, max_size=12) | st.sampled_from([" é日本🙂 ", " book of sand ", "🙂"])


def byte_values() -> dict[str, int]:
    """Byte-level BPE's alphabet: printable bytes stand for themselves, the others follow 255."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    values = {chr(byte): byte for byte in printable}
    return values | {chr(256 + number): byte for number, byte in enumerate(others)}


VALUES = byte_values()


def strictly_inside(
    tokenizer: PreTrainedTokenizerFast, ids: list[int], text: str, span: tuple[int, int]
) -> list[int]:
    """Numbers of the tokens all of whose bytes lie within the span."""
    start, end = (len(text[:at].encode()) for at in span)
    inside, at = [], 0
    for number, token in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        size = len(bytes(VALUES[character] for character in token))
        if start <= at and at + size <= end:
            inside.append(number)
        at += size
    assert at == len(text.encode())
    return inside


@settings(max_examples=200, deadline=None)
@given(before=TEXTS, query=TEXTS, after=TEXTS, cuts=st.lists(st.integers(0, 60), max_size=6))
def test_the_tokens_of_a_query_are_those_strictly_inside(
    bpe: PreTrainedTokenizerFast, before: str, query: str, after: str, cuts: list[int]
) -> None:
    turn = f"{before}<search>{query}</search>{after}"
    bounds = sorted({0, len(turn), *(cut for cut in cuts if cut < len(turn))})
    ids = [  # tokenised in pieces: a policy need not sample the tokenizer's own choice
        token for start, end in pairwise(bounds) for token in bpe(turn[start:end])["input_ids"]
    ]
    completion = Completion.from_tokens(ids, None, SegmentTokenizer(bpe).decode)
    assert completion == turn
    start = len(before) + len("<search>")
    for span in (
        (start, start + len(query)),
        (0, len(before)),
        (start - 1, start + len(query) + 1),
    ):
        tokens = completion.tokens_within(*span)
        expected = strictly_inside(bpe, ids, turn, span)
        assert list(range(len(ids)))[tokens] == expected


def test_multi_byte_characters_at_both_ends(bpe: PreTrainedTokenizerFast) -> None:
    turn = "<search> é日本🙂 </search>"
    ids = bpe(turn)["input_ids"]
    completion = Completion.from_tokens(ids, None, SegmentTokenizer(bpe).decode)
    action = PROTOCOLS["refine"].parse(completion)
    assert isinstance(action, Search)
    tokens = completion.tokens_within(*action.span)
    assert list(range(len(ids)))[tokens] == strictly_inside(bpe, ids, turn, action.span)
    assert "é日本🙂" in SegmentTokenizer(bpe).decode(ids[tokens])


def test_words_joined_by_blanks(wordlevel: PreTrainedTokenizerFast) -> None:
    turn = "<refine> lima </refine> <search> capital of peru </search>"
    ids = wordlevel(turn)["input_ids"]
    completion = Completion.from_tokens(ids, None, SegmentTokenizer(wordlevel).decode)
    assert completion == turn
    action = PROTOCOLS["refine-bare"].parse(completion)
    assert isinstance(action, Search)
    tokens = completion.tokens_within(*action.span)
    assert wordlevel.convert_ids_to_tokens(ids[tokens]) == ["capital", "of", "peru"]


def ends_prefix_by_prefix(
    ids: list[int], text: str, decode: Callable[[list[int]], str]
) -> list[int]:
    """What ``token_ends`` says, by decoding every prefix."""
    ends, done = [], 0
    for count in range(1, len(ids) + 1):
        prefix = decode(ids[:count])
        while done < min(len(prefix), len(text)) and prefix[done] == text[done]:
            done += 1
        ends.append(done)
    return ends


@pytest.mark.parametrize("family", FAMILIES)
def test_token_ends_are_those_of_every_prefix(bpe: PreTrainedTokenizerFast, family: str) -> None:
    tokenizer = SegmentTokenizer(made(family, bpe))
    draw = random.Random(family)
    for length in range(1, 150, 3):
        ids = [draw.randrange(tokenizer.known_ids) for _ in range(length)]  # broken characters too
        text = tokenizer.decode(ids)
        found = token_ends(ids, text, tokenizer.decode)
        assert found == ends_prefix_by_prefix(ids, text, tokenizer.decode)


def test_finding_the_ends_of_tokens_is_linear(bpe: PreTrainedTokenizerFast) -> None:
    tokenizer, decoded = SegmentTokenizer(bpe), 0

    def decode(ids: list[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return tokenizer.decode(ids)

    ids = list(bpe("the book of sand " * 500)["input_ids"])
    Completion.from_tokens(ids, None, decode)
    assert len(ids) > 1_000
    assert decoded < 60 * len(ids)
