"""The engine: counterfactuals drawn when a search runs, fallbacks, and what goes into the pool."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from igsearch_env import Document, Episode, EvidencePool, Question, RetrievalError
from igsearch_env.engine import FALLBACK_ROUNDS, SearchQAEngine
from igsearch_env.episode import NO_REFINEMENT
from igsearch_env.settings import make_engine
from tests.igsearch_env.fakes import (
    CAPITALS,
    DOCUMENTS,
    PERU,
    QUESTIONS,
    SWAP_PAIRS,
    FakeRetriever,
    FakeScorer,
)


def engine_of(retriever: FakeRetriever | None = None, **more: Any) -> SearchQAEngine:
    arguments: dict[str, Any] = {
        "pool": EvidencePool(tries=500),
        "counterfactual": "documents+refinement",
        **more,
    }
    return make_engine(QUESTIONS, retriever or FakeRetriever(), FakeScorer(), **arguments)


def play(engine: SearchQAEngine, turns: Sequence[str], question: Question = PERU) -> Episode:
    episode = engine.rules.begin(question)
    for turn in turns:
        ((episode, _),) = engine.step([episode], [turn])
    return episode


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_an_outcome_that_is_no_number_is_not_paid(number: float) -> None:
    engine = engine_of(outcome=lambda episode: number)
    with pytest.raises(ValueError, match=r"the outcome of question '.*' is (nan|-?inf)"):
        play(engine, ["<answer>Lima</answer>"])


class TestDraws:
    def test_a_warm_pool_gives_what_a_search_is_compared_with(self) -> None:
        retriever = FakeRetriever()
        engine = engine_of(retriever, num_counterfactuals=2)
        for pair in SWAP_PAIRS:
            engine.pool.add(pair)
        (step,) = play(engine, ["<search>Peru</search>"]).steps
        assert set(step.counterfactuals) == set(SWAP_PAIRS)
        assert retriever.calls == [(("Peru",), 3)]  # no fallback
        assert engine.pool.counts["drawn"] == 2

    def test_they_are_recorded_when_the_search_runs(self) -> None:
        engine = engine_of(num_counterfactuals=2)
        for pair in SWAP_PAIRS:
            engine.pool.add(pair)
        first = play(engine, ["<search>Peru</search>"])
        drawn = first.steps[0].counterfactuals
        engine.pool.seed(99)
        ((second, _),) = engine.step([first], ["<answer>Lima</answer>"])
        assert second.steps[0].counterfactuals == drawn

    def test_answers_and_invalid_turns_draw_nothing(self) -> None:
        engine = engine_of()
        episode = play(engine, ["x", "<answer>Lima</answer>"])
        assert [step.counterfactuals for step in episode.steps] == [(), ()]
        assert engine.pool.counts == Counter()

    def test_a_failed_search_draws_nothing(self) -> None:
        engine = engine_of()
        (step,) = play(engine, ["<search>broken</search>"]).steps
        assert step.counterfactuals == ()
        assert engine.pool.counts == Counter()


class TestSharedDraws:
    """Eight rollouts of one question, and one of another, search side by side in a warm pool."""

    QUERIES = ("Peru", "Peru", "Italy", "Norway", "Cuba", "Peru", "Kenya", "Fiji")

    def drawn(self, shared: bool, seed: int = 0) -> list[tuple[str, ...]]:
        engine = engine_of(
            pool=EvidencePool(seed=seed), num_counterfactuals=2, shared_counterfactuals=shared
        )
        for number in range(60):
            (document,) = FakeRetriever().search(["Japan"], 1)[0]
            document = replace(document, id=f"other {number}", text="Elsewhere.")
            engine.pool.add(replace(SWAP_PAIRS[1], documents=(document,)))
        groups = ["g"] * 8 + ["h"]
        episodes = [engine.rules.begin(PERU, group) for group in groups]
        turns = [f"<search>{query}</search>" for query in (*self.QUERIES, "Peru")]
        played = [episode for episode, _ in engine.step(episodes, turns)]
        played = [episode for episode, _ in engine.step(played, turns)]
        return [
            tuple(p.documents[0].id for step in e.searches for p in step.counterfactuals)
            for e in played
        ]

    def test_rollouts_of_a_group_draw_alike_and_searches_and_groups_do_not(self) -> None:
        *group, other = self.drawn(shared=True)
        assert len(set(group)) == 1
        assert other not in group
        assert group[0][:2] != group[0][2:]
        assert len(set(self.drawn(shared=False))) > 1

    def test_they_follow_from_the_seed_of_the_pool(self) -> None:
        assert self.drawn(shared=True, seed=3) == self.drawn(shared=True, seed=3)
        assert self.drawn(shared=True, seed=3) != self.drawn(shared=True, seed=4)

    def test_what_one_of_them_may_not_see_is_drawn_for_the_others_alone(self) -> None:
        engine = engine_of(num_counterfactuals=2, shared_counterfactuals=True)
        for name in ("Italy", "Norway", "Kenya", "Japan", "Ghana", "Fiji"):
            pair = replace(SWAP_PAIRS[0], documents=(DOCUMENTS[name],), question_id=name)
            engine.pool.add(pair)
        begun = [engine.rules.begin(PERU, "g")] * 7
        names = ("Peru", "Italy", "Norway", "Kenya", "Japan", "Ghana", "Fiji")
        played = engine.step(begun, [f"<search>{name}</search>" for name in names])
        (first, second), *others = [
            [pair.question_id for pair in e.steps[0].counterfactuals] for e, _ in played
        ]
        for name, drawn in zip(names[1:], others, strict=True):
            assert name not in drawn
            assert {first, second} - {name} <= set(drawn)


class PartlyDown(FakeRetriever):
    """Has no answer to the queries that hold a word, and answers the others."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        found = super().search(queries, k)
        if not any(self.word in query for query in queries):
            return found
        answers = [None if self.word in q else d for q, d in zip(queries, found, strict=True)]
        raise RetrievalError("some shards are down", answers)


class TestPartialFailures:
    def test_only_the_rows_without_an_answer_fail(self) -> None:
        engine = engine_of(PartlyDown("lost"), num_counterfactuals=1)
        episodes = [engine.rules.begin(question) for question in QUESTIONS[:3]]
        turns = ["<search>Peru</search>", "<search>lost</search>", "<search>Norway</search>"]
        played = [episode.steps[-1] for episode, _ in engine.step(episodes, turns)]
        assert [step.retrieval_failed for step in played] == [False, True, False]
        assert [step.documents for step in played] == [
            (DOCUMENTS["Peru"],),
            (),
            (DOCUMENTS["Norway"],),
        ]
        assert [len(step.counterfactuals) for step in played] == [1, 0, 1]

    def test_a_fallback_without_an_answer_is_passed_over(self) -> None:
        retriever = PartlyDown("Kenya")
        engine = engine_of(retriever, num_counterfactuals=6)
        (step,) = play(engine, ["<search>Peru</search>"]).steps
        assert any("Kenya" in query for queries, _ in retriever.calls for query in queries)
        assert not step.retrieval_failed
        assert step.counterfactuals
        assert all(pair.question_id != "q-Kenya" for pair in step.counterfactuals)

    def test_too_few_answers_are_an_error_there_too(self) -> None:
        class Short(FakeRetriever):
            def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
                raise RetrievalError("some failed", [None, None])

        with pytest.raises(ValueError, match="2 lists of documents for 1 queries"):
            play(engine_of(Short()), ["<search>Peru</search>"])


class TestFallback:
    def test_a_cold_pool_falls_back_to_other_questions(self) -> None:
        retriever = FakeRetriever()
        engine = engine_of(retriever)
        (step,) = play(engine, ["<search>Peru</search>"]).steps
        assert len(step.counterfactuals) == len(set(step.counterfactuals)) == 3
        by_id = {question.id: question for question in QUESTIONS}
        for pair in step.counterfactuals:
            asked = by_id[pair.question_id]
            assert asked != PERU
            assert pair.question_text == asked.text
            assert pair.refinement == NO_REFINEMENT
            assert [pair.documents] == [tuple(found) for found in retriever.search([asked.text], 3)]
        assert engine.pool.counts == Counter(fallback=3)
        assert len(engine.pool) == 0  # borrowed passages are nobody's evidence

    def test_only_what_is_missing(self) -> None:
        retriever = FakeRetriever()
        engine = engine_of(retriever)
        engine.pool.add(SWAP_PAIRS[0])
        (step,) = play(engine, ["<search>Peru</search>"]).steps
        assert step.counterfactuals[0] == SWAP_PAIRS[0]
        assert len(step.counterfactuals) == 3
        assert (engine.pool.counts["drawn"], engine.pool.counts["fallback"]) == (1, 2)
        assert len(retriever.calls[1][0]) == 2

    def test_the_rules_of_the_pool_hold_for_it(self) -> None:
        # "seat" stands in every passage, so nothing may be swapped in for this gold answer.
        seat = replace(PERU, id="seat", golden_answers=("seat",))
        retriever = FakeRetriever()
        engine = engine_of(retriever)
        episode = play(engine, ["<search>Peru</search>", "<answer>x</answer>"], seat)
        assert episode.steps[0].counterfactuals == ()
        assert episode.information_gains == (None,)
        assert engine.pool.counts == Counter(short=3)
        assert len(retriever.calls) == 1 + FALLBACK_ROUNDS
        assert all(len(queries) == 3 for queries, _ in retriever.calls[1:])

    def test_a_retriever_that_gives_up_on_it_does_not_fail_the_search(self) -> None:
        class Tired(FakeRetriever):
            def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
                if self.calls:
                    raise RetrievalError("enough")
                return super().search(queries, k)

        engine = engine_of(Tired())
        (step,) = play(engine, ["<search>Peru</search>"]).steps
        assert not step.retrieval_failed
        assert [document.id for document in step.documents] == ["d-Peru"]
        assert step.counterfactuals == ()
        assert engine.pool.counts == Counter(short=3)

    @pytest.mark.parametrize("seed", range(10))
    def test_never_the_question_itself_nor_what_it_found(self, seed: int) -> None:
        engine = engine_of(pool=EvidencePool(seed=seed))
        found = " ".join(list(CAPITALS)[1:4])
        (step,) = play(engine, [f"<search>{found}</search>"]).steps
        ids = {document.id for pair in step.counterfactuals for document in pair.documents}
        assert ids <= {f"d-{name}" for name in list(CAPITALS)[4:]}
        assert ids

    def test_none_is_wanted(self) -> None:
        retriever = FakeRetriever()
        engine = engine_of(retriever, num_counterfactuals=0)
        play(engine, ["<search>Peru</search>"])
        assert len(retriever.calls) == 1
        assert engine.pool.counts == Counter()


def remembered(engine: SearchQAEngine) -> list[tuple[str, str, str]]:
    """Question, first document and refinement of every pair in the pool."""
    return [
        (pair["question_id"], pair["documents"][0]["id"], pair["refinement"]["text"])
        for pair in engine.pool.state_dict()["pairs"]
    ]


class TestMemory:
    def test_a_pair_is_complete_with_the_next_turn(self) -> None:
        engine = engine_of()
        assert play(engine, ["<search>Peru</search>"]).steps
        assert remembered(engine) == []
        engine.pool.seed(0)
        play(
            engine,
            [
                "<search>Peru</search>",
                "<refine>r0</refine> oops",
                "<search>Cuba</search>",
                "<search>broken</search>",
                "<refine>late</refine><search>Fiji</search>",
                "<refine>r3</refine><answer>x</answer>",
            ],
        )
        assert remembered(engine) == [
            ("q-Peru", "d-Peru", "<refine>r0</refine>"),
            ("q-Peru", "d-Cuba", ""),
            ("q-Peru", "d-Fiji", "<refine>r3</refine>"),
        ]

    def test_at_once_where_refinements_are_not_swapped(self) -> None:
        engine = engine_of(counterfactual="documents")
        play(engine, ["<search>Peru</search>"])
        assert remembered(engine) == [("q-Peru", "d-Peru", "")]
        engine.pool.seed(0)
        play(engine, ["<search>Peru</search>", "<refine>r</refine><search>Cuba</search>", "x"])
        assert remembered(engine) == [("q-Peru", "d-Peru", ""), ("q-Peru", "d-Cuba", "")]

    def test_truncation_completes_the_last_pair(self) -> None:
        engine = engine_of(max_searches=2)
        episode = play(
            engine, [*"xyz", "<search>Peru</search>", "<refine>r</refine><search>Cuba</search>"]
        )
        assert episode.truncated
        assert remembered(engine) == [
            ("q-Peru", "d-Peru", "<refine>r</refine>"),
            ("q-Peru", "d-Cuba", ""),
        ]

    def test_a_search_that_found_nothing_is_no_evidence(self) -> None:
        engine = engine_of()
        play(engine, ["<search>Atlantis</search>", "<answer>x</answer>"])
        assert remembered(engine) == []

    def test_siblings_never_meet(self) -> None:
        engine = engine_of()
        for number in range(6):
            episode = engine.rules.begin(PERU, "g")
            for turn in (f"<search>Cuba {number}</search>", "<answer>Lima</answer>"):
                ((episode, _),) = engine.step([episode], [turn])
            drawn = episode.steps[0].counterfactuals
            assert len(drawn) == 3
            assert all(pair.question_id != PERU.id for pair in drawn)
        assert engine.pool.counts["drawn"] == 0  # the pool holds siblings alone

    def test_rollouts_of_another_question_are_drawn(self) -> None:
        engine = engine_of(num_counterfactuals=1)
        play(
            engine, ["<search>Cuba</search>", "<refine>c</refine><answer>x</answer>"], QUESTIONS[3]
        )
        (step,) = play(engine, ["<search>Peru</search>"]).steps
        (pair,) = step.counterfactuals
        assert (pair.question_id, pair.refinement.text) == ("q-Cuba", "<refine>c</refine>")
        assert pair.documents == (DOCUMENTS["Cuba"],)


def test_several_episodes_are_one_search_and_one_scoring() -> None:
    retriever = FakeRetriever()
    engine = engine_of(retriever, num_counterfactuals=2)
    for pair in SWAP_PAIRS:
        engine.pool.add(pair)
    episodes = [engine.rules.begin(question) for question in QUESTIONS[:3]]
    episodes = [
        e for e, _ in engine.step(episodes, ["<search>Peru</search>", "x", "<search>Cuba</search>"])
    ]
    assert retriever.calls == [(("Peru", "Cuba"), 3)]
    episodes = [e for e, _ in engine.step(episodes, ["<answer>a</answer>"] * 3)]
    scorer = engine.scorer
    assert isinstance(scorer, FakeScorer)
    assert len(retriever.calls) == len(scorer.calls) == 1
    assert [len(e.information_gains) for e in episodes] == [1, 0, 1]
    assert [e.steps[0].query for e in episodes] == ["Peru", "", "Cuba"]
    assert [[d.id for d in e.steps[0].documents] for e in episodes] == [["d-Peru"], [], ["d-Cuba"]]


def test_playing_nothing() -> None:
    retriever = FakeRetriever()
    assert engine_of(retriever).step([], []) == []
    assert retriever.calls == []


def test_episodes_are_not_changed_in_place() -> None:
    engine = engine_of()
    begun = engine.rules.begin(PERU)
    play(engine, ["<search>Peru</search>"])
    engine.step([begun], ["<search>Peru</search>"])
    assert begun == engine.rules.begin(PERU)
