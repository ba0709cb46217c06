"""Belief shifts: each method by hand, and against plain loops on ragged batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igsearch_env import Document, Episode, Shaping
from igsearch_env.credit import TIPS, BeliefGroup, BeliefShift, DeltaBelief, make_credit
from tests.igsearch_env.credit.test_ig_options import bonuses
from tests.igsearch_env.credit.test_ig_search import PLAIN, episode_of
from tests.igsearch_env.credit.test_outcome import slow_advantages

Searches = Sequence[tuple[str, float | None]]


def believing(
    prior: float | None,
    *searches: tuple[str, float | None],
    outcome: float = 0.0,
    group: str = "g",
    failed: int | None = None,
) -> Episode:
    """Searches of two query tokens: the ids that each found, and the belief after it."""
    episode = episode_of(outcome, *[(2, None)] * len(searches), group=group, failed=failed)
    steps = list(episode.steps)
    for number, (ids, belief) in enumerate(searches):
        documents = tuple(Document(one, "", f"text {one.lower()}") for one in ids)
        steps[number] = replace(steps[number], documents=documents, log_prob=belief)
    return replace(episode, steps=tuple(steps), prior_log_prob=prior)


class TestByHand:
    def test_tips_pays_the_whole_change_from_each_search_on(self) -> None:
        batch = [believing(-3.0, ("a", -2.0), ("b", -2.5), ("c", -1.0))]
        # -1 - -3 = 2, -1 - -2 = 1, -1 - -2.5 = 1.5, times .02
        assert bonuses(TIPS(), batch) == [pytest.approx([0.04, 0.02, 0.03])]

    def test_tips_telescopes_over_a_search_that_found_nothing(self) -> None:
        batch = [believing(-3.0, ("a", -2.0), ("", None), ("c", -1.0))]
        assert bonuses(TIPS(alpha=1.0), batch) == [pytest.approx([2.0, 0.0, 1.0])]

    def test_delta_belief_never_punishes(self) -> None:
        credit = DeltaBelief(alpha=1.0, normalizer="none", penalty=0.0)
        batch = [believing(-3.0, ("a", -2.0), ("b", -2.5), ("c", -1.0))]
        assert bonuses(credit, batch) == [[1.0, 0.0, 1.5]]

    def test_delta_belief_charges_for_each_search(self) -> None:
        credit = DeltaBelief(alpha=1.0, normalizer="none", penalty=0.2)
        batch = [believing(-3.0, ("a", -2.0), ("b", -2.5))]
        assert bonuses(credit, batch) == [pytest.approx([0.8, -0.2])]
        with pytest.raises(ValueError, match="penalty must be at least 0"):
            DeltaBelief(penalty=-0.1)

    def test_siblings_share_a_drift(self) -> None:
        credit = BeliefGroup(alpha=1.0, normalizer="none", shaping=PLAIN)
        batch = [
            believing(-3.0, ("a", -3.5), ("b", -1.0)),  # shifts -.5, 2.5
            believing(-3.0, ("c", -3.5)),  # shift -.5: nobody found anything, nobody is punished
            believing(-3.0, ("d", -2.0)),  # shift 1
            believing(-3.0, ("e", -9.0), group="alone"),
        ]
        assert bonuses(credit, batch) == [[-0.75, 0.0], [-0.75], [1.5], [0.0]]

    def test_what_was_found_before_has_no_shift_and_is_nobodys_sibling(self) -> None:
        credit = BeliefGroup(alpha=1.0, normalizer="none", shaping=PLAIN)
        batch = [
            believing(-3.0, ("a", -2.0), ("a", -1.0)),
            believing(-3.0, ("a", -2.0), ("A", -1.0)),  # the same words under another id
            believing(-3.0, ("a", -2.0), ("b", -1.5)),
            believing(-3.0, ("a", -2.0), ("c", -2.5)),
        ]
        assert bonuses(credit, batch) == [[0.0, 0.0]] * 2 + [[0.0, 1.0], [0.0, -1.0]]

    def test_a_failed_rollout_is_nobodys_sibling(self) -> None:
        credit = BeliefGroup(alpha=1.0, normalizer="none", shaping=PLAIN)
        batch = [
            believing(-3.0, ("a", -2.0)),
            believing(-3.0, ("a", -1.0)),
            believing(-3.0, ("a", 0.0), failed=0),
        ]
        assert bonuses(credit, batch) == [[-1.0], [1.0], [0.0]]

    def test_probability_and_shaping(self) -> None:
        batch = [believing(math.log(0.1), ("a", math.log(0.4)), ("b", math.log(0.35)))]
        credit = TIPS(alpha=1.0, gamma=0.0, measure="probability", shaping=Shaping(0.1, 1.0, None))
        assert bonuses(credit, batch) == [pytest.approx([0.3, 0.0])]

    @pytest.mark.parametrize("name", ["tips", "delta_belief", "belief_group"])
    def test_beliefs_that_nobody_computed_are_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"call settle_belief"):
            make_credit(name)([believing(None, ("a", None))])


def slow(batch: Sequence[Episode], credit: BeliefShift) -> list[list[float]]:
    """Each token's advantage, one after the other."""
    shifts: dict[tuple[int, int], float] = {}
    for i, episode in enumerate(batch):
        last = episode.prior_log_prob
        for t, step in enumerate(episode.searches):
            if step.log_prob is None:
                continue
            earlier = {d.id for s in episode.searches[:t] for d in s.documents}
            fresh = any(d.id not in earlier for d in step.documents)
            if last is not None and (fresh or not credit.new_only):
                shifts[i, t] = step.log_prob - last
            last = step.log_prob
    result = []
    for i, (episode, base) in enumerate(zip(batch, slow_advantages(batch), strict=True)):
        row = [base] * episode.policy_tokens
        paid = []
        for t in range(len(episode.searches)):
            value = shifts.get((i, t))
            if value is not None and isinstance(credit, DeltaBelief):
                value = (value if value > 0 else 0.0) - credit.penalty
            if value is not None and isinstance(credit, BeliefGroup):
                others = [
                    shifts[j, t]
                    for j, other in enumerate(batch)
                    if j != i
                    and other.group_id == episode.group_id
                    and not other.retrieval_failed
                    and (j, t) in shifts
                ]
                value = value - sum(others) / len(others) if others else 0.0
            paid.append(0.0 if value is None else credit.shaping(value))
        for t, step in enumerate(episode.searches):
            if episode.retrieval_failed or not step.documents:
                continue
            total = sum(paid[k] * credit.gamma ** (k - t) for k in range(t, len(paid)))
            length = 2 if credit.normalizer == "query" else 1
            for p in range(step.query_tokens.start, step.query_tokens.stop):
                row[p] += credit.alpha * total / length
        result.append(row)
    return result


@st.composite
def believers(draw: st.DrawFn) -> Episode:
    beliefs = st.sampled_from([-4.0, -2.5, -1.0, -0.25])
    found = draw(st.lists(st.tuples(st.text("abc", max_size=2), beliefs), max_size=4))
    searches = [(ids, belief if ids else None) for ids, belief in found]
    failed = 0 if searches and draw(st.integers(0, 5)) == 0 else None
    return believing(
        draw(st.sampled_from([-3.0, -1.0])),
        *searches,
        outcome=draw(st.sampled_from([0.0, 1.0])),
        group=draw(st.sampled_from("gh")),
        failed=failed,
    )


@settings(deadline=None)
@given(
    st.lists(believers(), max_size=6),
    st.sampled_from([TIPS(), DeltaBelief(alpha=0.7, gamma=0.5), BeliefGroup(alpha=1.0)]),
)
def test_agrees_with_plain_loops(batch: list[Episode], credit: BeliefShift) -> None:
    for array, expected in zip(credit(batch), slow(batch, credit), strict=True):
        np.testing.assert_allclose(array, expected, atol=1e-12)
