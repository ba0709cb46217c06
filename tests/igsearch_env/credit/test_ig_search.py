"""IG-Search's advantages against hand-computed numbers and plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igsearch_env import Completion, Document, Episode, Shaping, Step
from igsearch_env.credit import GRPO, IGSearch
from igsearch_env.settings import make_engine
from tests.igsearch_env.credit.test_outcome import slow_advantages
from tests.igsearch_env.fakes import (
    PERU,
    QUESTIONS,
    FakeRetriever,
    FakeScorer,
    finished,
    policy_step,
)

PLAIN = Shaping(dead_zone=0.0, negative_scale=1.0, clip=None)


def episode_of(
    outcome: float,
    *searches: tuple[int, float | None],
    group: str = "g",
    failed: int | None = None,
) -> Episode:
    """Searches with ``(query tokens, gain)``, each between two tag tokens; then an answer."""
    steps: list[Step] = []
    at = 0
    for number, (length, gain) in enumerate(searches):
        query = (1, 1 + length) if length else (0, 0)
        more: dict[str, Any] = {"search_step": number, "information_gain": gain}
        more["documents"] = (Document(f"found {number}", "", f"text {number}"),)
        steps.append(
            policy_step("search", at, length + 2, query, **more, retrieval_failed=number == failed)
        )
        at += length + 2
    steps.append(policy_step("answer", at, 2))
    return finished(outcome, steps, group)


class TestByHand:
    # Two rollouts of outcomes 1 and 0: advantages +h and -h. |Q| of the three searches: 2, 4, 3.
    BATCH = (
        episode_of(1.0, (2, 1.0), (4, -2.0)),
        episode_of(0.0, (3, 0.5)),
    )
    H = 0.5 / (math.sqrt(0.5) + 1e-6)

    @pytest.mark.parametrize(
        ("normalizer", "bonuses"),
        [
            ("query", (0.3 * 1.0 / 2, 0.3 * -2.0 / 4, 0.3 * 0.5 / 3)),
            ("batch_mean_query", (0.3 * 1.0 / 3, 0.3 * -2.0 / 3, 0.3 * 0.5 / 3)),
            ("none", (0.3 * 1.0, 0.3 * -2.0, 0.3 * 0.5)),
        ],
    )
    def test_normalizers(self, normalizer: Any, bonuses: tuple[float, float, float]) -> None:
        first, second = IGSearch(shaping=PLAIN, normalizer=normalizer)(self.BATCH)
        a, b, c = bonuses
        # tag, query, tag; tag, query, tag; answer
        expected = [0, a, a, 0, 0, b, b, b, b, 0, 0, 0]
        np.testing.assert_allclose(first, self.H + np.array(expected), atol=1e-12)
        np.testing.assert_allclose(second, -self.H + np.array([0, c, c, c, 0, 0, 0]), atol=1e-12)

    def test_alpha(self) -> None:
        (array, _) = IGSearch(alpha=2.0, shaping=PLAIN)(self.BATCH)
        assert array[1] == pytest.approx(self.H + 2.0 * 1.0 / 2)
        for mine, grpo in zip(IGSearch(alpha=0.0)(self.BATCH), GRPO()(self.BATCH), strict=True):
            np.testing.assert_array_equal(mine, grpo)

    def test_the_gain_is_shaped(self) -> None:
        shaping = Shaping(dead_zone=0.6, negative_scale=0.5, clip=2.0)
        first, second = IGSearch(alpha=1.0, shaping=shaping)(self.BATCH)
        assert first[1] - self.H == pytest.approx(2 * math.log(1.5) / 2)
        assert first[5] - self.H == pytest.approx(-2 * math.log(1.5) / 4)
        assert second[1] == pytest.approx(-self.H)  # 0.5 lies in the dead zone

    def test_defaults_are_those_of_the_paper(self) -> None:
        credit = IGSearch()
        assert (credit.alpha, credit.normalizer, credit.shaping) == (0.3, "query", Shaping())

    @pytest.mark.parametrize("outcome", [0.0, 1.0])
    def test_without_a_difference_in_outcome_the_gains_alone_teach(self, outcome: float) -> None:
        batch = [episode_of(outcome, (2, 1.0)), episode_of(outcome, (1, -1.0))]
        first, second = IGSearch(alpha=1.0, shaping=PLAIN)(batch)
        assert first.tolist() == [0.0, 0.5, 0.5, 0.0, 0.0, 0.0]
        assert second.tolist() == [0.0, -1.0, 0.0, 0.0, 0.0]

    def test_a_single_rollout(self) -> None:
        (array,) = IGSearch(alpha=1.0, shaping=PLAIN)([episode_of(1.0, (2, 1.0))])
        assert array.tolist() == [0.0, 0.5, 0.5, 0.0, 0.0, 0.0]

    def test_no_search_at_all(self) -> None:
        for normalizer in ("query", "batch_mean_query", "none"):
            options: Any = {"normalizer": normalizer}
            arrays = IGSearch(**options)([episode_of(1.0), episode_of(0.0)])
            assert [a.tolist() for a in arrays] == [
                a.tolist() for a in GRPO()([episode_of(1.0), episode_of(0.0)])
            ]
            assert IGSearch(**options)([]) == []

    def test_what_has_no_gain_or_no_tokens_gets_no_bonus(self) -> None:
        batch = [episode_of(0.0, (2, None), (0, 5.0), (1, 1.0))]
        for normalizer in ("query", "batch_mean_query", "none"):
            options: Any = {"normalizer": normalizer, "alpha": 1.0, "shaping": PLAIN}
            (array,) = IGSearch(**options)(batch)
            bonus = 1.0 / 1.5 if normalizer == "batch_mean_query" else 1.0  # mean of 2 and 1
            assert array == pytest.approx([0, 0, 0, 0, 0, 0, 0, bonus, 0, 0, 0])

    def test_a_rollout_with_a_failed_search_is_left_out_whole(self) -> None:
        failed = episode_of(1.0, (2, 1.0), (50, None), failed=1)
        kept = [episode_of(1.0, (2, 1.0)), episode_of(0.0, (4, 1.0))]
        for normalizer in ("query", "batch_mean_query", "none"):
            options: Any = {"normalizer": normalizer}
            first, middle, last = IGSearch(**options)([kept[0], failed, kept[1]])
            assert middle.tolist() == [0.0] * failed.policy_tokens
            alone = IGSearch(**options)(kept)
            np.testing.assert_array_equal(first, alone[0])
            np.testing.assert_array_equal(last, alone[1])

    def test_an_unknown_normalizer(self) -> None:
        normalizer: Any = "sequence"
        with pytest.raises(ValueError, match="'batch_mean_query' or 'none', got 'sequence'"):
            IGSearch(normalizer=normalizer)

    def test_an_unfinished_episode_is_refused(self) -> None:
        with pytest.raises(ValueError, match="has no outcome yet"):
            IGSearch()([replace(episode_of(1.0), outcome=None)])


def slow_ig_search(
    batch: Sequence[Episode], alpha: float, shaping: Shaping, normalizer: str
) -> list[list[float]]:
    """A_i + alpha * IG_t / divisor where token p lies in query t, else A_i: token by token."""
    lengths = []
    for episode in batch:
        for step in episode.steps:
            length = len(range(*step.query_tokens.indices(10**6)))
            if step.action == "search" and length and not episode.retrieval_failed:
                lengths.append(length)
    mean_length = sum(lengths) / len(lengths) if lengths else 1.0
    result = []
    for episode, advantage in zip(batch, slow_advantages(batch), strict=True):
        tokens = []
        for p in range(sum(len(step.turn.token_ids or ()) for step in episode.steps)):
            value = advantage
            for step in episode.steps:
                if not step.query_tokens.start <= p < step.query_tokens.stop:
                    continue
                if step.information_gain is None or episode.retrieval_failed:
                    continue
                length = step.query_tokens.stop - step.query_tokens.start
                divisor = {"query": length, "batch_mean_query": mean_length, "none": 1}[normalizer]
                value += alpha * shaping(step.information_gain) / divisor
            tokens.append(value)
        result.append(tokens)
    return result


SEARCHES = st.lists(
    st.tuples(st.integers(0, 5), st.one_of(st.none(), st.floats(-5.0, 5.0))), max_size=4
)


@st.composite
def batches(draw: st.DrawFn) -> list[Episode]:
    """Ragged groups: single rollouts, equal rewards, failed searches, no searches, open gains."""
    result = []
    for _ in range(draw(st.integers(0, 8))):
        searches = draw(SEARCHES)
        fails = searches and draw(st.integers(0, 4)) == 0
        result.append(
            episode_of(
                draw(st.sampled_from([0.0, 1.0, 0.4])),
                *searches,
                group=draw(st.sampled_from("abc")),
                failed=draw(st.integers(0, len(searches) - 1)) if fails else None,
            )
        )
    return result


@settings(deadline=None, max_examples=150)
@given(
    batches(),
    st.floats(0.0, 2.0),
    st.sampled_from([PLAIN, Shaping(), Shaping(0.5, 0.3, 2.0)]),
    st.sampled_from(["query", "batch_mean_query", "none"]),
)
def test_agrees_with_plain_loops(
    batch: list[Episode], alpha: float, shaping: Shaping, normalizer: Any
) -> None:
    arrays = IGSearch(alpha, normalizer, shaping=shaping)(batch)
    expected = slow_ig_search(batch, alpha, shaping, normalizer)
    assert [array.shape for array in arrays] == [(len(tokens),) for tokens in expected]
    for array, tokens in zip(arrays, expected, strict=True):
        assert array.dtype == np.float64
        np.testing.assert_allclose(array, tokens, atol=1e-6)


@settings(deadline=None)
@given(batches())
def test_a_search_has_the_same_mass_whatever_its_length(batch: list[Episode]) -> None:
    credit = IGSearch(alpha=0.7, shaping=PLAIN)
    for episode, mine, grpo in zip(batch, credit(batch), GRPO()(batch), strict=True):
        for step in episode.searches:
            mass = float((mine - grpo)[step.query_tokens].sum())
            length = step.query_tokens.stop - step.query_tokens.start
            paid = 0.0 if episode.retrieval_failed or not length else step.information_gain or 0.0
            assert mass == pytest.approx(0.7 * paid, abs=1e-9)


def played(turns: Sequence[Completion | str], **more: Any) -> Episode:
    engine = make_engine(QUESTIONS, FakeRetriever(), FakeScorer(), num_counterfactuals=1, **more)
    episode = engine.rules.begin(PERU)
    for turn in turns:
        ((episode, _),) = engine.step([episode], [turn])
    return episode


class TestWithTheEnvironment:
    def test_tags_and_what_straddles_them_are_not_paid(self) -> None:
        # Tokens: "so <", "search> ", "capital", " of", " Peru</", "search>" -- two lie within.
        pieces = ["so <", "search> ", "capital", " of", " Peru</", "search>"]
        turn = Completion.from_tokens(
            list(range(6)), None, lambda ids: "".join(pieces[i] for i in ids)
        )
        episode = played([turn, "<answer>Rome</answer>"])
        (gain,) = episode.information_gains
        assert gain is not None
        assert episode.searches[0].query == "capital of Peru"
        (array,) = IGSearch(alpha=1.0, shaping=PLAIN)([episode])
        assert array == pytest.approx([0, 0, gain / 2, gain / 2, 0, 0])

    def test_a_gain_paid_in_the_reward_is_not_paid_again(self) -> None:
        turns = ["<search>Peru</search>", "<answer>Lima</answer>"]
        paid = played(turns, information_gain_weight=0.5, shaping=PLAIN)
        assert paid.information_gains != (0.0,)
        with pytest.raises(ValueError, match="pay it again; set information_gain_weight=0"):
            IGSearch()([played(turns), paid])
        assert len(IGSearch()([played(turns)])) == 1
        assert len(GRPO()([paid])) == 1

    @pytest.mark.parametrize("outcome", ["em", "f1", lambda episode: -0.3])
    def test_any_outcome_paid_alone_is_accepted(self, outcome: Any) -> None:
        episode = played(["<search>Peru</search>", "<answer>in Lima</answer>"], outcome=outcome)
        assert len(IGSearch()([episode])) == 1


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), "x"])
def test_a_weight_that_is_none_is_refused(alpha: Any) -> None:
    with pytest.raises(ValueError, match="alpha must be a number of at least 0"):
        IGSearch(alpha=alpha)
