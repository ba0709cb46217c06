"""Distance to the answer: bonuses by hand, and against a count over all steps so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igsearch_env import Document, Episode, Question
from igsearch_env.credit import GDCR, GRPO
from tests.igsearch_env.credit.test_ig_options import bonuses
from tests.igsearch_env.credit.test_ig_search import episode_of

WAY = Question(
    "q",
    "Where was the director of the film with the sandworm born?",
    ("Gentilly",),
    answer_distances=(("denis", 0), ("dune", 1), ("novel", 2)),
)
TITLES = {
    "dune": "Dune (film)",
    "denis": "Denis Villeneuve",
    "novel": "Dune Messiah",
    "x": "Sand",
}


def searching(
    *searches: tuple[str, str], outcome: float = 0.0, question: Question = WAY
) -> Episode:
    """Searches: a query and the ids of what it found; capitals are copies of small letters."""
    episode = episode_of(outcome, *[(2, None)] * len(searches))
    steps = [
        replace(
            step,
            query=query,
            documents=tuple(
                Document(id_, TITLES[id_.lower()], f"about {id_.lower()}") for id_ in ids.split()
            ),
        )
        for step, (query, ids) in zip(episode.steps, searches, strict=False)
    ]
    steps += episode.steps[len(steps) :]
    return replace(episode, question=question, steps=tuple(steps))


def plain(**options: Any) -> GDCR:
    return GDCR(**{"alpha": 1.0, "normalizer": "none", "decay": 0.5, "cited": 0.0, **options})


def test_a_document_is_worth_less_the_farther_it_is() -> None:
    batch = [
        searching(("a", "novel x"), ("b", "dune novel"), ("c", "denis")),
        searching(("a", "x"), ("b", "denis dune"), ("c", "dune")),
    ]
    assert bonuses(plain(), batch) == [[0.25, 0.5, 1.0], [0.0, 1.0, 0.0]]
    assert bonuses(plain(decay=1.0), batch) == [[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]


def test_what_was_found_before_is_worth_nothing_again() -> None:
    batch = [searching(("a", "dune"), ("b", "dune"), ("c", "DUNE"))]
    assert bonuses(plain(), batch) == [[0.5, 0.0, 0.0]]


def test_a_bridge_is_paid_once_for_being_named_by_a_later_query() -> None:
    batch = [
        # Brackets of a title do not count; a second time is not paid.
        searching(("a", "dune"), ("director of dune", "x"), ("who made Dune", "x")),
        # Not found at all; and named before it was found.
        searching(("a", "x"), ("director of Dune", "x")),
        searching(("Dune", "dune"), ("director of Dune", "x")),
        # What holds the answer leads nowhere, and neither does a document beside the way.
        searching(("a", "denis x"), ("Denis Villeneuve", "x"), ("Sand", "x")),
        # The longer title counts alone, and the best of several.
        searching(("a", "dune novel"), ("Dune Messiah", "x"), ("Dune and Dune Messiah", "x")),
    ]
    assert bonuses(plain(cited=0.4), batch) == [
        pytest.approx([0.5, 0.4 * 0.5, 0.0]),
        [0.0, 0.0],
        [0.5, 0.0],
        [1.0, 0.0, 0.0],
        pytest.approx([0.5, 0.4 * 0.25, 0.4 * 0.5]),
    ]


def test_a_copy_with_a_distance_of_its_own_is_not_paid_again() -> None:
    question = replace(WAY, answer_distances=(("dune", 1), ("DUNE", 1), ("denis", 0)))
    batch = [
        searching(("a", "dune"), ("b", "DUNE"), question=question),
        searching(("a", "DENIS"), ("b", "denis"), question=question),  # a copy beside the way
    ]
    assert bonuses(plain(), batch) == [[0.5, 0.0], [0.0, 1.0]]


def test_a_query_of_the_turn_that_found_a_bridge_is_not_paid_for_naming_it() -> None:
    episode = searching(("a", "dune"), ("director of Dune", "x"), ("who made Dune", "x"))
    first, second, *rest = episode.steps
    same_turn = replace(episode, steps=(first, replace(second, call=1), *rest))
    assert bonuses(plain(cited=0.4), [same_turn]) == [[0.5, 0.0, 0.0]]


def test_a_search_that_finds_nothing_uses_no_name_up() -> None:
    batch = [searching(("a", "dune"), ("director of Dune", ""), ("who made Dune", "x"))]
    assert bonuses(plain(cited=0.4), batch) == [pytest.approx([0.5, 0.0, 0.2])]


def test_later_searches_do_not_change_what_earlier_ones_got() -> None:
    searches = [("a", "dune"), ("director of Dune Messiah", "x"), ("b", "novel")]
    (whole,) = bonuses(plain(cited=0.4), [searching(*searches)])
    (part,) = bonuses(plain(cited=0.4), [searching(*searches[:2])])
    assert whole[:2] == part


def test_what_the_question_names_is_no_step_ahead() -> None:
    question = replace(WAY, text="Where was the director of Dune born?")
    batch = [searching(("a", "dune"), ("director of dune", "x"), question=question)]
    assert bonuses(plain(cited=0.4), batch) == [[0.5, 0.0]]


def test_a_question_without_a_way_learns_as_with_grpo() -> None:
    lost = replace(WAY, answer_distances=())
    batch = [searching(("a", "dune"), question=lost, outcome=value) for value in (1.0, 0.0)]
    for mine, grpo in zip(GDCR()(batch), GRPO()(batch), strict=True):
        np.testing.assert_array_equal(mine, grpo)


def test_distances_that_nobody_looked_for_are_refused() -> None:
    with pytest.raises(ValueError, match="question 'q' has no answer_distances"):
        GDCR()([searching(("a", "dune"), question=replace(WAY, answer_distances=None))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 0.0}, "decay must lie above 0 and not above 1, got 0.0"),
        ({"decay": 1.5}, "decay must lie above 0"),
        ({"decay": "1"}, "decay must lie above 0"),
        ({"cited": -0.1}, "cited must be a finite number of at least 0"),
        ({"cited": float("nan")}, "cited must be a finite number of at least 0"),
        ({"cited": float("inf")}, "cited must be a finite number of at least 0"),
        ({"alpha": -1.0}, "alpha must be a number of at least 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GDCR(**options)


def slow(searches: Sequence[tuple[str, str]], cited: float) -> list[float]:
    """The same by looking at all earlier searches for each one; titles are single words."""
    distance, result = dict(WAY.answer_distances or ()), []
    for t, (query, ids) in enumerate(searches):
        before = {id_ for _, earlier in searches[:t] for id_ in earlier.split()}
        new = [0.5 ** distance[i] for i in ids.split() if i in distance and i not in before]
        named = []
        for id_ in before & {"dune"}:
            if id_ in query and not any(id_ in q for q, _ in searches[:t]):
                named.append(0.5 ** distance[id_])
        result.append(max(new, default=0.0) + cited * max(named, default=0.0))
    return result


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["dune", "sand", "who made dune", ""]),
            st.lists(st.sampled_from(["dune", "denis", "x"]), max_size=2, unique=True),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_the_same_as_looking_back_at_every_search(drawn: list[tuple[str, list[str]]]) -> None:
    searches = [(query, " ".join(ids) or "x") for query, ids in drawn]
    found = bonuses(plain(cited=0.3), [searching(*searches)])
    assert found == [pytest.approx(slow(searches, 0.3))]
