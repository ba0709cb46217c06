"""IGPO's turn-level advantages: by hand, in plain loops, and where a naive version goes wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igsearch_env import Episode
from igsearch_env.credit import IGPO, IGPOCode, IGPOPaper, IGPOWithIGSearch, IGSearch
from tests.igsearch_env.credit.rollouts import batches, on_tokens, per_turn, rollout


def logs(*probabilities: float) -> list[float | None]:
    return [math.log(p) for p in probabilities]


def turns(credit: Any, batch: Sequence[Episode]) -> list[list[float]]:
    return [per_turn(e, array) for e, array in zip(batch, credit(batch), strict=True)]


class TestByHand:
    # p: .1 -> .2 -> .5, then F1 1; and .1 -> .1, then F1 0. Gains .1, .3; 0.
    BATCH = (
        rollout("ssa", 1.0, prior=math.log(0.1), log_probs=logs(0.2, 0.5)),
        rollout("sa", 0.0, prior=math.log(0.1), log_probs=logs(0.1)),
    )

    def test_joint(self) -> None:
        # Pool .1, .3, 1, 0, 0: mean .28, population variance .1416.
        z = [(r - 0.28) / (math.sqrt(0.1416 + 1e-8) + 1e-6) for r in (0.1, 0.3, 1.0, 0.0)]
        first, second = turns(IGPOPaper(), self.BATCH)
        assert first == pytest.approx([z[0] + z[1] + z[2], z[1] + z[2], z[2]], abs=1e-9)
        assert second == pytest.approx([2 * z[3], z[3]], abs=1e-9)

    def test_the_default_compares_with_the_others(self) -> None:
        # Sums of what comes: 1.4, 1.3, 1 and 0, 0; a rollout that has ended counts as 0.
        first, second = turns(IGPO(), self.BATCH)
        assert first == pytest.approx([1.4, 1.3, 1.0])
        assert second == pytest.approx([-1.4, -1.3])

    def test_what_the_policy_writes_is_not_paid(self) -> None:
        # p: .1 before, .3 once the query names the answer, .4 after the documents of search 0;
        # .6 before those of search 1, .5 after them: no rise, and .5 after .4 is one of .1.
        beliefs = logs(0.4, 0.5)
        one = rollout("ssa", 1.0, prior=math.log(0.1), log_probs=beliefs)
        other = rollout("a", 0.0, prior=math.log(0.1))

        def told(*before: float) -> Episode:
            steps = [
                replace(step, before_log_prob=value)
                for step, value in zip(one.steps, logs(*before), strict=False)
            ]
            return replace(one, steps=(*steps, one.steps[-1]))

        assert turns(IGPO(), [told(0.3, 0.6), other])[0] == pytest.approx([1.0, 0.9, 1.0])
        assert turns(IGPO(), [told(0.3, 0.2), other])[0] == pytest.approx([1.2, 1.1, 1.0])
        assert turns(IGPO(), [one, other])[0] == pytest.approx([1.4, 1.1, 1.0])  # the paper's

    def test_separate(self) -> None:
        # Gains .1, .3, 0: mean .4 / 3; outcomes 1, 0: mean .5, deviation .5.
        mean = 0.4 / 3
        deviation = math.sqrt(((0.1 - mean) ** 2 + (0.3 - mean) ** 2 + mean**2) / 3)
        z = [(r - mean) / deviation for r in (0.1, 0.3, 0.0)]
        first, second = turns(IGPO(normalization="separate"), self.BATCH)
        assert first == pytest.approx([z[0] + z[1] + 1, z[1] + 1, 1], abs=1e-4)
        assert second == pytest.approx([z[2] - 1, -1], abs=1e-4)

    def test_discount(self) -> None:
        z = [(r - 0.28) / math.sqrt(0.1416) for r in (0.1, 0.3, 1.0)]
        first, _ = turns(IGPOPaper(gamma=0.5), self.BATCH)
        assert first == pytest.approx([z[0] + z[1] / 2 + z[2] / 4, z[1] + z[2] / 2, z[2]], abs=1e-4)

    def test_log_probs(self) -> None:
        # Gains ln 2, ln 2.5 and 0, apart from the outcomes.
        gains = np.log([2.0, 2.5, 1.0])
        z = (gains - gains.mean()) / gains.std()
        first, second = turns(IGPOCode(), self.BATCH)
        assert first == pytest.approx([z[0] + z[1] + 1, z[1] + 1, 1], abs=1e-4)
        assert second == pytest.approx([z[2] - 1, -1], abs=1e-4)
        assert IGPOCode() == IGPOCode(measure="log_prob", normalization="separate", gamma=1.0)

    def test_no_answer_costs_two(self) -> None:
        batch = [rollout("sa", 1.0, log_probs=[-3.0]), rollout("ss", 1.0, log_probs=[-3.0, -3.0])]
        # Gains 0 and 0; outcomes 1 and -2, whatever the environment paid the second.
        first, second = turns(IGPO(normalization="separate"), batch)
        assert first == pytest.approx([1, 1], abs=1e-4)
        assert second == pytest.approx([-1, -1], abs=1e-4)
        gentle = turns(IGPO(normalization="separate", no_answer=1.0), batch)
        assert gentle == [[0.0, 0.0], [0.0, 0.0]]

    def test_terminal_outcome(self) -> None:
        batch = [rollout("a", 1.0, f1=0.0), rollout("a", 0.0, f1=0.0)]
        assert turns(IGPOPaper(), batch) == [[0.0], [0.0]]
        assert turns(IGPOPaper(terminal="outcome"), batch)[0] == pytest.approx([1.0], abs=1e-4)

    def test_an_invalid_turn_has_no_reward_of_its_own_and_counts_for_nobody(self) -> None:
        batch = [rollout("isa", 1.0, log_probs=[-1.0]), rollout("sa", 0.0, log_probs=[-2.0])]
        plain = [rollout("sa", 1.0, log_probs=[-1.0]), batch[1]]
        first, second = turns(IGPOPaper(), batch)
        assert [first[1:], second] == turns(IGPOPaper(), plain)
        assert first[0] == first[1]  # gamma = 1: all of what comes later
        assert turns(IGPOPaper(gamma=0.5), batch)[0][0] == pytest.approx(
            turns(IGPOPaper(gamma=0.5), batch)[0][1] / 2
        )

    def test_a_search_that_was_not_scored_hands_its_gain_to_the_next(self) -> None:
        batch = [rollout("ssa", 1.0, prior=-3.0, log_probs=[None, -1.0]), rollout("a", 0.0)]
        plain = [rollout("sa", 1.0, prior=-3.0, log_probs=[-1.0]), batch[1]]
        assert turns(IGPOPaper(), batch)[0][1:] == turns(IGPOPaper(), plain)[0]

    def test_a_failed_rollout_counts_for_nobody(self) -> None:
        failed = rollout("sa", 1.0, log_probs=[None], failed=True)
        with_it = turns(IGPOPaper(), [self.BATCH[0], failed, self.BATCH[1]])
        assert with_it[1] == [0.0, 0.0]
        assert [with_it[0], with_it[2]] == turns(IGPOPaper(), self.BATCH)

    def test_a_lone_answer_gets_nothing(self) -> None:
        assert turns(IGPOPaper(), [rollout("a", 1.0)]) == [[0.0]]
        assert IGPOPaper()([]) == []


class TestPitfalls:
    def test_normalise_before_discounting(self) -> None:
        # Summed first, every turn of the long rollout would be a sample of the same statistics,
        # and its first turn's would not be the sum of its own z-scores.
        batch = TestByHand.BATCH
        raw = [[0.1, 0.3, 1.0], [0.0, 0.0]]
        sums = [[math.fsum(row[t:]) for t in range(len(row))] for row in raw]
        pooled = [value for row in sums for value in row]
        naive = [[(v - np.mean(pooled)) / np.std(pooled) for v in row] for row in sums]
        mine = turns(IGPOPaper(), batch)
        assert abs(mine[0][0] - naive[0][0]) > 0.1
        single = [(v - 0.28) / math.sqrt(0.1416) for v in raw[0]]
        assert mine[0][0] == pytest.approx(math.fsum(single), abs=1e-4)

    def test_a_turn_with_a_reward_of_exactly_zero_is_a_turn(self) -> None:
        # Found by reward != 0, turn 1 of the first rollout would melt into turn 2, and the
        # second rollout would have no turn at all: their zeros would be no samples.
        batch = [
            rollout("ssa", 0.0, prior=-1.0, log_probs=[-1.0, -0.5]),
            rollout("sa", 0.0, prior=-1.0, log_probs=[-1.0]),
        ]
        gain = math.exp(-0.5) - math.exp(-1.0)
        mean = gain / 5
        deviation = math.sqrt((4 * mean**2 + (gain - mean) ** 2) / 5)
        zero, up = -mean / deviation, (gain - mean) / deviation
        first, second = turns(IGPOPaper(), batch)
        assert first == pytest.approx([zero + up + zero, up + zero, zero], abs=1e-4)
        assert second == pytest.approx([2 * zero, zero], abs=1e-4)
        assert first[0] != first[1]

    def test_the_deviation_is_the_populations(self) -> None:
        first, _ = turns(IGPOPaper(), [rollout("a", 1.0), rollout("a", 0.0)])
        assert first == pytest.approx([1.0], abs=1e-4)  # the unbiased one would give .707


class TestUnsettled:
    def test_without_beliefs_it_says_what_is_missing(self) -> None:
        with pytest.raises(ValueError, match="call settle_belief"):
            IGPO()([rollout("sa", prior=None)])

    def test_one_without_a_prior_beside_others_has_outcomes_alone(self) -> None:
        batch = [rollout("sa", 1.0, prior=None), rollout("a", 0.0)]
        first, second = turns(IGPOPaper(), batch)
        assert first == pytest.approx([1.0, 1.0], abs=1e-4)
        assert second == pytest.approx([-1.0], abs=1e-4)

    def test_an_unfinished_episode_is_refused(self) -> None:
        with pytest.raises(ValueError, match="has no outcome yet"):
            IGPO()([replace(rollout("sa"), outcome=None)])

    def test_an_answer_without_f1(self) -> None:
        with pytest.raises(ValueError, match="has an answer but no F1"):
            IGPO()([replace(rollout("a"), f1=None)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "nats"}, "measure must be 'probability' or 'log_prob'"),
        ({"normalization": "none"}, "normalization must be 'joint', 'separate' or 'leave_one_out'"),
        ({"terminal": "em"}, "terminal must be 'f1' or 'outcome'"),
        ({"gamma": 2.0}, "gamma must lie between 0 and 1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IGPO(**options)


def slow_igpo(batch: Sequence[Episode], credit: IGPO) -> list[list[float]]:
    """Turn by turn, nothing shared with the library: (episode, turn, kind, reward)."""
    entries: list[tuple[int, int, str, float]] = []
    for number, episode in enumerate(batch):
        if any(step.retrieval_failed for step in episode.steps):
            continue
        last_known = episode.prior_log_prob
        for t, step in enumerate(episode.steps):
            if t == len(episode.steps) - 1:
                end = episode.f1 if credit.terminal == "f1" else episode.outcome
                reward = credit.no_answer if episode.answer is None else end
                assert reward is not None
                entries.append((number, t, "outcome", reward))
            elif step.log_prob is not None:
                assert last_known is not None
                if credit.measure == "probability":
                    reward = math.exp(step.log_prob) - math.exp(last_known)
                else:
                    reward = step.log_prob - last_known
                entries.append((number, t, "gain", reward))
                last_known = step.log_prob

    def z(entry: tuple[int, int, str, float]) -> float:
        group = batch[entry[0]].group_id
        pool = [
            other[3]
            for other in entries
            if batch[other[0]].group_id == group
            and (credit.normalization == "joint" or other[2] == entry[2])
        ]
        mean = sum(pool) / len(pool)
        variance = sum((value - mean) ** 2 for value in pool) / len(pool)
        return (entry[3] - mean) / (math.sqrt(variance + 1e-8) + 1e-6)

    def to_go(number: int, t: int) -> float:
        own = [entry for entry in entries if entry[0] == number and t <= entry[1]]
        plain = credit.normalization == "leave_one_out"
        return sum(credit.gamma ** (e[1] - t) * (e[3] if plain else z(e)) for e in own)

    result = []
    for number, episode in enumerate(batch):
        values = [to_go(number, t) for t in range(len(episode.steps))]
        if credit.normalization == "leave_one_out" and not episode.retrieval_failed:
            others = [
                j
                for j, other in enumerate(batch)
                if j != number and other.group_id == episode.group_id and not other.retrieval_failed
            ]
            for t in range(len(values)):
                if others:
                    values[t] -= sum(to_go(j, t) for j in others) / len(others)
                else:
                    values[t] = 0.0
        result.append(on_tokens(episode, values))
    return result


OPTIONS = st.builds(
    IGPO,
    measure=st.sampled_from(["probability", "log_prob"]),
    normalization=st.sampled_from(["joint", "separate", "leave_one_out"]),
    gamma=st.sampled_from([0.0, 0.5, 1.0]),
    terminal=st.sampled_from(["f1", "outcome"]),
    no_answer=st.sampled_from([-2.0, 0.0]),
)


@settings(deadline=None, max_examples=60)
@given(batches(), OPTIONS)
def test_agrees_with_plain_loops(batch: list[Episode], credit: IGPO) -> None:
    arrays = credit(batch)
    assert [array.shape for array in arrays] == [(e.policy_tokens,) for e in batch]
    for array, tokens in zip(arrays, slow_igpo(batch, credit), strict=True):
        assert array.dtype == np.float64
        np.testing.assert_allclose(array, tokens, atol=1e-5)


class TestWithIGSearch:
    @settings(deadline=None, max_examples=30)
    @given(batches())
    def test_it_is_the_sum_of_both(self, batch: list[Episode]) -> None:
        igpo, ig_search = IGPO(gamma=0.5), IGSearch(alpha=1.0, gamma=0.5)
        arrays = IGPOWithIGSearch(igpo, ig_search)(batch)
        for array, turn, bonus in zip(arrays, igpo(batch), ig_search.bonuses(batch), strict=True):
            np.testing.assert_allclose(array, turn + bonus)

    def test_by_hand(self) -> None:
        batch = [rollout("sa", 0.0, log_probs=[-3.0], gains=[2.0], tokens=3)]
        (array,) = IGPOWithIGSearch(ig_search=IGSearch(alpha=0.5))(batch)
        assert array == pytest.approx([0.5 * math.log(3.0), 0, 0, 0, 0, 0])

    def test_it_is_annealed(self) -> None:
        now: Any = IGPOWithIGSearch(ig_search=IGSearch(alpha=1.0, alpha_final=0.0)).at(0.75)
        assert now.ig_search.alpha == pytest.approx(0.25)
        assert now.igpo == IGPO()
