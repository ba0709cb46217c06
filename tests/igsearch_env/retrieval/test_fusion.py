from __future__ import annotations

import copy
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igsearch_env.episode import Document
from igsearch_env.retrieval.fusion import FusionRetriever

LETTERS = "abcdefgh"


class Ranked:
    """Returns its passages in one order, whatever is asked."""

    def __init__(self, order: Sequence[str], corpus: str = LETTERS) -> None:
        self._found = [Document(id_, id_.upper(), "text", 9.0 - n) for n, id_ in enumerate(order)]
        self.corpus_sha256 = corpus
        self.documents = self._found
        self.parameters = {"order": order}
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(LETTERS)

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        self.asked.append(k)
        return [self._found[:k] for _ in queries]


def slow_fusion(orders: Sequence[Sequence[str]], constant: int, depth: int) -> dict[str, Fraction]:
    """The sums as exact fractions."""
    return {
        id_: sum(
            (
                Fraction(1, constant + order.index(id_) + 1)
                for order in orders
                if id_ in order[:depth]
            ),
            Fraction(0),
        )
        for id_ in LETTERS
    }


def test_by_hand() -> None:
    fused = FusionRetriever([Ranked("abc"), Ranked("cd")], constant=60)
    (found,) = fused.search(["q"], 8)
    assert [document.id for document in found] == ["c", "a", "b", "d"]
    assert [document.score for document in found] == pytest.approx(
        [1 / 63 + 1 / 61, 1 / 61, 1 / 62, 1 / 62]
    )
    assert (found[0].title, found[0].text) == ("C", "text")
    assert fused.search(["q", "r"], 2) == [found[:2]] * 2
    assert fused.search([], 2) == []


def test_the_constant_weighs_first_ranks_and_depth_cuts() -> None:
    orders = ["abcd", "ebfa"]
    firsts = FusionRetriever([Ranked(order) for order in orders], constant=0)
    (found,) = firsts.search(["q"], 3)
    assert [(d.id, d.score) for d in found] == [("a", 1.25), ("b", 1.0), ("e", 1.0)]
    shallow = FusionRetriever([Ranked(order) for order in orders], constant=0, depth=1)
    (found,) = shallow.search(["q"], 1)
    assert [(d.id, d.score) for d in found] == [("a", 1.0)]


@given(
    st.lists(
        st.permutations(LETTERS).flatmap(
            lambda order: st.integers(0, len(order)).map(lambda n: order[:n])
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 90),
    st.integers(1, 10),
    st.integers(1, len(LETTERS)),
)
def test_the_slow_implementation_agrees(
    orders: list[list[str]], constant: int, depth: int, k: int
) -> None:
    retrievers = [Ranked(order) for order in orders]
    (found,) = FusionRetriever(retrievers, constant, depth).search(["q"], k)
    expected = slow_fusion(orders, constant, max(depth, k))
    ranked = sorted((score for score in expected.values() if score), reverse=True)[:k]
    assert [document.score for document in found] == pytest.approx([float(s) for s in ranked])
    for document in found:
        assert document.score == pytest.approx(float(expected[document.id]))
    assert all(one.asked == [min(max(depth, k), len(LETTERS))] for one in retrievers)


def test_bad_arguments() -> None:
    one = Ranked("abc")
    for arguments, message in (
        ([[]], "at least one retriever, got none"),
        ([[one], -1], "constant must be at least 0, got -1"),
        ([[one], 60, 0], "depth must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            FusionRetriever(*arguments)
    with pytest.raises(ValueError, match="search different corpora"):
        FusionRetriever([one, Ranked("abc", corpus="other")])
    fused = FusionRetriever([one])
    with pytest.raises(ValueError, match="set k to at most 8, the size of the corpus"):
        fused.search(["q"], 9)
    assert copy.deepcopy(fused) is fused
    assert fused.parameters["retrievers"] == [{"order": "abc"}]
