"""IG-Search beyond the paper: every option by hand, and all of them at once in plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igsearch_env import Document, Episode, Shaping
from igsearch_env.credit import IGSearch, IGSearchPaper, QueryBonus, make_credit
from tests.igsearch_env.credit import rollouts
from tests.igsearch_env.credit.test_ig_search import PLAIN, batches, episode_of
from tests.igsearch_env.credit.test_outcome import slow_advantages


def bonuses(credit: QueryBonus, batch: Sequence[Episode]) -> list[list[float]]:
    """What the first query token of each search gets on top of the outcome."""
    return [
        [float(array[step.query_tokens.start]) for step in episode.searches]
        for episode, array in zip(batch, credit.bonuses(batch), strict=True)
    ]


def plain(**options: Any) -> IGSearch:
    return IGSearch(**{"alpha": 1.0, "shaping": PLAIN, "normalizer": "none", **options})


class TestByHand:
    def test_return_to_go(self) -> None:
        batch = [episode_of(0.0, (1, 1.0), (1, None), (1, 4.0))]
        assert bonuses(plain(gamma=0.5), batch) == [[2.0, 2.0, 4.0]]
        assert bonuses(plain(gamma=1.0), batch) == [[5.0, 4.0, 4.0]]
        assert bonuses(plain(gamma=0.0), batch) == [[1.0, 0.0, 4.0]]

    def test_gains_are_shaped_before_they_are_summed(self) -> None:
        # Two gains in the dead zone stay nothing; summed first they would leave it.
        batch = [episode_of(0.0, (1, 0.3), (1, 0.3))]
        shaping = Shaping(dead_zone=0.5, clip=None)
        assert bonuses(plain(gamma=1.0, shaping=shaping), batch) == [[0.0, 0.0]]

    def test_groups(self) -> None:
        batch = [
            episode_of(0.0, (1, 1.0), group="failed"),
            episode_of(0.0, (1, 2.0), group="mixed"),
            episode_of(1.0, (1, 3.0), group="mixed"),
            episode_of(1.0, (1, 4.0), group="solved"),
        ]
        assert bonuses(plain(groups="all"), batch) == [[1.0], [2.0], [3.0], [4.0]]
        assert bonuses(plain(groups="all_fail"), batch) == [[1.0], [0.0], [0.0], [0.0]]
        assert bonuses(plain(groups="not_all_success"), batch) == [[1.0], [2.0], [3.0], [0.0]]

    def test_a_failed_rollout_does_not_decide_about_its_group(self) -> None:
        batch = [episode_of(0.0, (1, 1.0)), episode_of(1.0, (1, 1.0), failed=0)]
        assert bonuses(plain(groups="all_fail"), batch) == [[1.0], [0.0]]

    def test_probability(self) -> None:
        (episode,) = [episode_of(0.0, (1, 2.0))]
        logs = {"log_prob": math.log(0.5), "baseline_log_probs": (math.log(0.1), math.log(0.3))}
        step = replace(episode.steps[0], **logs)  # type: ignore[arg-type]
        batch = [replace(episode, steps=(step, *episode.steps[1:]))]
        ((value,),) = bonuses(plain(measure="probability"), batch)
        assert value == pytest.approx(0.5 - 0.2)
        ((value,),) = bonuses(plain(measure="probability", scale=4.0), batch)
        assert value == pytest.approx(1.2)

    def test_probability_needs_the_log_probs(self) -> None:
        with pytest.raises(ValueError, match="needs the log_prob and baseline_log_probs"):
            plain(measure="probability")([episode_of(0.0, (1, 2.0))])

    def test_the_scale_comes_before_the_dead_zone(self) -> None:
        shaping = Shaping(dead_zone=1.0, clip=None)
        batch = [episode_of(0.0, (1, 0.4))]
        assert bonuses(plain(shaping=shaping), batch) == [[0.0]]
        assert bonuses(plain(shaping=shaping, scale=3.0), batch) == [[pytest.approx(1.2)]]

    def test_centered_by_search_number(self) -> None:
        batch = [
            episode_of(0.0, (1, 1.0), (1, 5.0)),
            episode_of(0.0, (1, 3.0)),
            episode_of(0.0, (1, None), (1, 9.0)),
            episode_of(0.0, (1, 7.0), group="other"),
        ]
        assert bonuses(plain(center="search"), batch) == [[-1.0, -2.0], [1.0], [0.0, 2.0], [0.0]]

    def test_centered_by_group(self) -> None:
        batch = [
            episode_of(0.0, (1, 1.0), (1, 5.0)),
            episode_of(0.0, (1, 3.0)),
            episode_of(0.0, (1, 7.0), group="other"),
            episode_of(0.0, (1, 100.0), failed=0),
        ]
        assert bonuses(plain(center="group"), batch) == [[-2.0, 2.0], [0.0], [0.0], [0.0]]

    def test_centering_comes_before_shaping(self) -> None:
        batch = [episode_of(0.0, (1, 4.0)), episode_of(0.0, (1, 2.0))]
        shaping = Shaping(dead_zone=0.0, negative_scale=0.5, clip=None)
        assert bonuses(plain(center="search", shaping=shaping), batch) == [[1.0], [-0.5]]

    def test_what_was_found_before_has_no_gain(self) -> None:
        batch = [
            found(episode_of(0.0, (1, 1.0), (1, 2.0), (1, 4.0), (1, 8.0)), "a", "a", "ab", "ba"),
            found(episode_of(0.0, (1, 3.0), (1, 5.0)), "a", ""),  # new to this rollout; nothing
        ]
        assert bonuses(plain(new_only=True), batch) == [[1.0, 0.0, 4.0, 0.0], [3.0, 0.0]]
        assert bonuses(plain(), batch) == [[1.0, 2.0, 4.0, 8.0], [3.0, 5.0]]
        # nor does it count among those that others are compared with
        centered = plain(new_only=True, center="group")
        mean = (1.0 + 4.0 + 3.0) / 3
        expected = [[1.0 - mean, 0.0, 4.0 - mean, 0.0], [3.0 - mean, 0.0]]
        assert [pytest.approx(row) for row in expected] == bonuses(centered, batch)

    def test_a_copy_under_another_id_was_found_before(self) -> None:
        batch = [found(episode_of(0.0, (1, 1.0), (1, 2.0), (1, 4.0)), "a", "A", "Ab")]
        assert bonuses(plain(new_only=True), batch) == [[1.0, 0.0, 4.0]]
        assert plain(new_only=True).needs_gain(batch) == [[True, False, True]]

    def test_the_last_search_may_have_no_gain(self) -> None:
        batch = [episode_of(0.0, (1, 1.0), (1, 2.0), (1, 4.0)), episode_of(0.0, (1, 8.0))]
        assert bonuses(plain(skip_last=True), batch) == [[1.0, 2.0, 0.0], [0.0]]
        assert bonuses(plain(skip_last=True, gamma=0.5), batch) == [[2.0, 2.0, 0.0], [0.0]]
        centered = bonuses(plain(skip_last=True, center="group"), batch)
        assert centered == [[-0.5, 0.5, 0.0], [0.0]]

    def test_what_does_not_count_need_not_be_scored(self) -> None:
        batch = [
            found(episode_of(0.0, (1, 1.0), (1, 2.0), (1, 4.0)), "a", "a", "b"),
            found(episode_of(1.0, (1, 8.0), group="other"), "c"),
            episode_of(0.0),
        ]
        for credit, expected in (
            (plain(), [[True, True, True], [True], []]),
            (plain(new_only=True), [[True, False, True], [True], []]),
            (plain(skip_last=True), [[True, True, False], [False], []]),
            (plain(new_only=True, skip_last=True), [[True, False, False], [False], []]),
            (plain(groups="all_fail"), [[True, True, True], [False], []]),
            (plain(skip_last=True, alpha=0.0), [[False, False, False], [False], []]),
        ):
            assert credit.needs_gain(batch) == expected
            unscored = [
                replace(
                    episode,
                    steps=tuple(
                        replace(step, information_gain=None)
                        if step.search_step is not None and not row[step.search_step]
                        else step
                        for step in episode.steps
                    ),
                )
                for episode, row in zip(batch, expected, strict=True)
            ]
            for one, other in zip(credit(batch), credit(unscored), strict=True):
                assert np.array_equal(one, other)


def found(episode: Episode, *documents: str) -> Episode:
    """The episode with one document per letter for each search."""
    steps, left = [], iter(documents)
    for step in episode.steps:
        if step.action == "search":
            step = replace(step, documents=tuple(Document(id, "", id.lower()) for id in next(left)))
        steps.append(step)
    return replace(episode, steps=tuple(steps))


class TestSchedule:
    def test_the_weight_moves_linearly(self) -> None:
        credit = IGSearch(alpha=1.0, alpha_final=0.2, gamma=0.5)
        for progress, alpha in ((0.0, 1.0), (0.5, 0.6), (1.0, 0.2)):
            now: Any = credit.at(progress)
            assert now.alpha == pytest.approx(alpha)
            assert (now.alpha_final, now.gamma) == (None, 0.5)

    def test_it_may_get_there_early_and_stays(self) -> None:
        credit = IGSearch(alpha=1.0, alpha_final=0.0, alpha_until=0.5)
        for progress, alpha in ((0.0, 1.0), (0.25, 0.5), (0.5, 0.0), (0.8, 0.0), (1.0, 0.0)):
            now: Any = credit.at(progress)
            assert now.alpha == pytest.approx(alpha)
            assert now.alpha_until == 1.0

    def test_it_may_hold_before_it_moves(self) -> None:
        credit = IGSearch(alpha=2.0, alpha_final=1.0, alpha_from=0.25, alpha_until=0.75)
        for progress, alpha in ((0.0, 2.0), (0.25, 2.0), (0.5, 1.5), (0.75, 1.0), (1.0, 1.0)):
            now: Any = credit.at(progress)
            assert now.alpha == pytest.approx(alpha)
            assert now.alpha_from == 0.0

    def test_it_may_be_a_step(self) -> None:
        credit = IGSearch(alpha=1.0, alpha_final=0.0, alpha_from=0.4, alpha_until=0.4)
        for progress, alpha in ((0.0, 1.0), (0.399, 1.0), (0.4, 0.0), (1.0, 0.0)):
            now: Any = credit.at(progress)
            assert now.alpha == alpha

    def test_a_weight_of_0_needs_no_gain(self) -> None:
        batch = [episode_of(0.0, (1, 1.0)), episode_of(1.0, (1, 2.0))]
        credit: Any = IGSearch(alpha=1.0, alpha_final=0.0, alpha_until=0.5).at(0.6)
        assert credit.needs_gain(batch) == [[False], [False]]
        assert IGSearch(alpha=0.1).needs_gain(batch) == [[True], [True]]
        assert IGSearch(alpha=0.0, alpha_final=1.0).needs_gain(batch) == [[True], [True]]
        found = credit(batch)
        expected = make_credit("outcome")(batch)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))

    def test_without_an_end_it_stays(self) -> None:
        credit = IGSearch(alpha=1.0)
        assert credit.at(0.7) is credit

    def test_a_method_without_a_schedule_stays_itself(self) -> None:
        outcome = make_credit("outcome")
        assert outcome.at(0.7) is outcome

    @pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
    def test_progress_out_of_range(self, progress: float) -> None:
        with pytest.raises(ValueError, match="progress must lie between 0 and 1"):
            IGSearch().at(progress)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.5}, "gamma must lie between 0 and 1, got 1.5"),
        ({"gamma": float("nan")}, "gamma must lie"),
        ({"groups": "some"}, "groups must be 'all', 'all_fail' or 'not_all_success', got 'some'"),
        ({"measure": "logit"}, "measure must be 'log_prob' or 'probability'"),
        ({"center": "batch"}, "center must be 'none', 'search' or 'group'"),
        ({"baseline": "group"}, "baseline must be 'none' or 'siblings'"),
        ({"scale": 0.0}, "scale must be above 0"),
        ({"alpha_final": -1.0}, "alpha_final must be a number of at least 0"),
        ({"alpha_final": 0.0, "alpha_until": 0.0}, "above 0; got 0.0 and 0.0"),
        ({"alpha_final": 0.0, "alpha_until": 1.5}, "above 0; got 0.0 and 1.5"),
        ({"alpha_final": 0.0, "alpha_until": "half"}, "above 0; got 0.0 and 'half'"),
        ({"alpha_final": 0.0, "alpha_from": -0.1}, "above 0; got -0.1 and 1.0"),
        ({"alpha_final": 0.0, "alpha_from": 0.6, "alpha_until": 0.5}, "got 0.6 and 0.5"),
        ({"alpha_until": 0.5}, "alpha_final, the weight then, is not set"),
        ({"alpha_from": 0.5}, "alpha_final, the weight then, is not set"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IGSearch(**options)


def test_the_papers_form() -> None:
    credit = IGSearchPaper()
    assert (credit.alpha, credit.normalizer, credit.gamma) == (0.3, "query", 0.0)
    assert (credit.groups, credit.measure, credit.center) == ("all", "log_prob", "none")
    assert (credit.scale, credit.alpha_final, credit.baseline) == (1.0, None, "none")
    assert (credit.alpha_from, credit.alpha_until) == (0.0, 1.0)
    assert 0 < credit.shaping.negative_scale < 1
    assert isinstance(make_credit("ig_search_paper"), IGSearchPaper)


def with_log_probs(batch: Sequence[Episode]) -> list[Episode]:
    """Real and baseline log-probs whose difference is the gain of each settled search."""
    result = []
    for episode in batch:
        steps = []
        for number, step in enumerate(episode.steps):
            if step.information_gain is not None:
                baselines = (-6.0 - number, -7.0, -5.5)
                real = step.information_gain + sum(baselines) / 3
                step = replace(step, log_prob=real, baseline_log_probs=baselines)
            steps.append(step)
        result.append(replace(episode, steps=tuple(steps)))
    return result


def slow(batch: Sequence[Episode], credit: IGSearch) -> list[list[float]]:
    """Every option, token by token and search by search, nothing shared with the library."""

    def raw(episode: Episode, number: int) -> float | None:
        searches = [s for s in episode.steps if s.action == "search"]
        step = searches[number]
        if step.information_gain is None or episode.retrieval_failed:
            return None
        before = [d.id for earlier in searches[:number] for d in earlier.documents]
        if credit.new_only and not [d for d in step.documents if d.id not in before]:
            return None
        if credit.skip_last and number == len(searches) - 1:
            return None
        if credit.measure == "log_prob":
            return credit.scale * step.information_gain
        assert step.log_prob is not None
        assert step.baseline_log_probs is not None
        p = [math.exp(value) for value in step.baseline_log_probs]
        return credit.scale * (math.exp(step.log_prob) - sum(p) / len(p))

    def shaped(episode: Episode, number: int) -> float:
        value = raw(episode, number)
        if value is None:
            return 0.0
        peers = []
        for other in batch:
            for place in range(len(other.searches)):
                same = place == number or credit.center == "group"
                gain = raw(other, place)
                if other.group_id == episode.group_id and same and gain is not None:
                    peers.append(gain)
        if credit.center != "none":
            value -= sum(peers) / len(peers)
        return credit.shaping(value)

    def to_go(episode: Episode, t: int) -> float:
        value = 0.0
        for k in range(t, len(episode.searches)):
            value += credit.gamma ** (k - t) * shaped(episode, k)
        return value

    def chosen(episode: Episode) -> bool:
        outcomes = [
            other.outcome or 0.0
            for other in batch
            if other.group_id == episode.group_id and not other.retrieval_failed
        ]
        if credit.groups == "all_fail":
            return all(outcome <= 0 for outcome in outcomes)
        if credit.groups == "not_all_success":
            return not (min(outcomes) > 0 and len(set(outcomes)) == 1)
        return True

    lengths = [
        len(range(*step.query_tokens.indices(10**6)))
        for episode in batch
        for step in episode.searches
        if not episode.retrieval_failed
    ]
    lengths = [length for length in lengths if length]
    result = []
    for episode, advantage in zip(batch, slow_advantages(batch), strict=True):
        tokens = [advantage] * sum(len(step.turn.token_ids or ()) for step in episode.steps)
        for t, step in enumerate(episode.searches):
            if episode.retrieval_failed or not chosen(episode):
                continue
            if not step.documents and step.information_gain is None:
                continue  # it found nothing: not even what later searches gained is its own
            value = to_go(episode, t)
            if credit.baseline == "siblings":
                siblings = [
                    to_go(other, t)
                    for other in batch
                    if other.group_id == episode.group_id and not other.retrieval_failed
                ]
                others = len(siblings) - 1
                value = value - (sum(siblings) - value) / others if others else 0.0
            size = step.query_tokens.stop - step.query_tokens.start
            for p in range(step.query_tokens.start, step.query_tokens.stop):
                divisor = {"query": size, "none": 1}.get(credit.normalizer)
                divisor = divisor or sum(lengths) / len(lengths)
                tokens[p] += credit.alpha * value / divisor
        result.append(tokens)
    return result


OPTIONS = st.builds(
    IGSearch,
    alpha=st.floats(0.0, 2.0),
    normalizer=st.sampled_from(["query", "batch_mean_query", "none"]),
    gamma=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    baseline=st.sampled_from(["none", "siblings"]),
    groups=st.sampled_from(["all", "all_fail", "not_all_success"]),
    shaping=st.sampled_from([PLAIN, Shaping(), Shaping(0.0, 0.3, 2.0)]),
    measure=st.sampled_from(["log_prob", "probability"]),
    scale=st.sampled_from([1.0, 4.0]),
    center=st.sampled_from(["none", "search", "group"]),
    new_only=st.booleans(),
    skip_last=st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(batches() | rollouts.batches(), OPTIONS, st.randoms(use_true_random=False))
def test_agrees_with_plain_loops(batch: list[Episode], credit: IGSearch, random: Random) -> None:
    batch = [
        found(episode, *(random.choice(["", "a", "b", "ab", "c"]) for _ in episode.searches))
        for episode in with_log_probs(batch)
    ]
    if credit.center != "none":  # a dead zone's edge is a matter of rounding then
        credit = replace(credit, shaping=replace(credit.shaping, dead_zone=0.0))
    arrays = credit(batch)
    expected = slow(batch, credit)
    assert [array.shape for array in arrays] == [(e.policy_tokens,) for e in batch]
    for array, tokens in zip(arrays, expected, strict=True):
        assert array.dtype == np.float64
        np.testing.assert_allclose(array, tokens, atol=1e-6)
