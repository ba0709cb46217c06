"""A search that finds nothing earns nothing: no gain, no belief, no credit, no reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from igsearch_env import (
    Completion,
    Document,
    Episode,
    Evidence,
    SearchQAEnv,
    SearchQAVectorEnv,
    Segment,
    make_credit,
    settle_belief,
)
from igsearch_env.credit import CREDIT
from igsearch_env.credit.query_bonus import QueryBonus
from igsearch_env.engine import SearchQAEngine
from igsearch_env.gain.hindsight import settle_hindsight
from igsearch_env.gain.shaping import Shaping
from igsearch_env.settings import make_engine
from tests.igsearch_env.fakes import PERU, QUESTIONS, FakeRetriever, FakeScorer

FOUND, NOTHING = "<search>Peru</search>", "<search>zzz</search>"
ANSWER = "<refine>r</refine><answer>Lima</answer>"


def engine_of(**changes: Any) -> SearchQAEngine:
    engine = make_engine(QUESTIONS, FakeRetriever(), FakeScorer(), top_k=1, **changes)
    for number in range(6):
        document = Document(f"other {number}", "", "Elsewhere.")
        refined = Segment("<refine>o</refine>", "policy", None)
        engine.pool.add(Evidence((document,), refined, f"q{number}", f"other question {number}?"))
    return engine


def sampled(turn: str) -> Completion:
    """A turn with one token per character, as a policy would have sampled it."""
    ids = [ord(character) for character in turn]
    return Completion.from_tokens(ids, [-0.5] * len(ids), lambda part: "".join(map(chr, part)))


def play(engine: SearchQAEngine, turns: Sequence[str], group: str = "g") -> Episode:
    episode = engine.rules.begin(PERU, group)
    for turn in turns:
        ((episode, _),) = engine.step([episode], [sampled(turn)])
    return episode


@pytest.mark.parametrize("counterfactual", ["documents", "documents+refinement"])
def test_there_is_no_gain_and_nothing_is_scored_for_it(counterfactual: str) -> None:
    engine = engine_of(counterfactual=counterfactual)
    episode = play(engine, [NOTHING, FOUND, NOTHING, ANSWER])
    assert [gain is None for gain in episode.information_gains] == [True, False, True]
    first = episode.searches[0]
    assert (first.documents, first.retrieval_failed, first.valid) == ((), False, True)
    assert (first.log_prob, first.baseline_log_probs, first.counterfactuals) == (None, None, ())


def test_nothing_is_drawn_for_it_and_the_pool_does_not_count_it_as_short() -> None:
    engine = engine_of()
    play(engine, [NOTHING, NOTHING, ANSWER])
    assert {name: n for name, n in engine.pool.counts.items() if n} == {}


def test_there_is_no_belief_after_it() -> None:
    """The change of belief that a later search brings starts from the last belief there is."""
    engine = engine_of(counterfactual="documents")
    episode = play(replace(engine, scorer=None), [NOTHING, FOUND, ANSWER])
    (settled,) = settle_belief([episode], FakeScorer(), engine.information_gain)
    assert [step.log_prob is None for step in settled.searches] == [True, False]


@pytest.mark.parametrize("environment", [SearchQAEnv, SearchQAVectorEnv])
def test_there_is_no_reward_for_it_and_no_key_in_the_info(environment: Any) -> None:
    env = environment(
        questions=QUESTIONS,
        retriever=FakeRetriever(),
        scorer=FakeScorer(),
        top_k=1,
        num_counterfactuals=1,
        counterfactual="documents",
        information_gain_weight=1.0,
        shaping=Shaping(dead_zone=0.0),
    )
    env.reset(seed=0)
    for turn in (NOTHING, "<search>Cuba</search>"):
        action = [turn] if environment is SearchQAVectorEnv else turn
        _, reward, _, _, info = env.step(action)
        paid = turn is not NOTHING
        assert (float(np.sum(reward)) != 0.0) == paid
        assert ("information_gain" in info) == paid


def batch(gamma: float) -> list[Episode]:
    """Two rollouts of a group whose first search finds nothing, and whose second one finds."""
    engine = engine_of(counterfactual="documents")
    episodes = [
        play(engine, [NOTHING, FOUND, answer], "g") for answer in (ANSWER, "<answer>x</answer>")
    ]
    episodes = settle_belief(episodes, FakeScorer(), engine.information_gain)
    episodes = settle_hindsight(episodes, FakeScorer(), engine.information_gain)
    known = tuple(sorted(document.id for document in episodes[0].searches[1].documents))
    near = tuple((name, 0) for name in known)
    question = replace(PERU, gold_ids=known, silver_ids=known, answer_distances=near)
    return [replace(episode, question=question) for episode in episodes]


@pytest.mark.parametrize("name", sorted(CREDIT))
def test_no_method_credits_its_query(name: str) -> None:
    """What a query's tokens get beyond the rest of its turn is the search's own credit: none."""
    options = {"gamma": 1.0} if name in ("ig_search", "oracle_bonus", "answer_string_bonus") else {}
    credit = make_credit(name, **options)
    for episode, values in zip(batch(1.0), credit(batch(1.0)), strict=True):
        first, second = episode.searches
        around = slice(first.policy_tokens.start, first.query_tokens.start)
        assert np.ptp(values[first.policy_tokens]) == 0.0, "a credit of the query alone"
        assert values[first.query_tokens].size
        assert values[around].size
        if name in ("ig_search", "oracle_bonus", "answer_string_bonus"):
            assert np.ptp(values[second.policy_tokens]) > 0.0  # the one that found has some


class Penalty(QueryBonus):
    """Takes something from every search."""

    def signals(self, episodes: Sequence[Episode]) -> list[list[float]]:
        return [[-1.0] * len(episode.searches) for episode in episodes]


def test_no_bonus_of_ones_own_reaches_its_query_not_even_a_penalty() -> None:
    episodes = batch(0.0)
    for episode, values in zip(episodes, Penalty().bonuses(episodes), strict=True):
        first, second = episode.searches
        assert not values[first.query_tokens].any()
        assert values[second.query_tokens].sum() == pytest.approx(-0.3)
