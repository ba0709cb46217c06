"""The controls: what each pays by hand, and that the placebo moves values without changing them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igsearch_env import Document, Episode, Question
from igsearch_env.credit import GRPO, AnswerStringBonus, IGPermuted, IGSearch, OracleBonus
from tests.igsearch_env.credit.test_ig_options import bonuses
from tests.igsearch_env.credit.test_ig_search import PLAIN, batches, episode_of, slow_ig_search
from tests.igsearch_env.credit.test_outcome import slow_advantages

GOLD = Question("q", "Who?", ("Lima",), gold_ids=("a", "b"))


def searching(*found: str, question: Question = GOLD, outcome: float = 0.0) -> Episode:
    """One search of two query tokens per string of document ids; "L" holds the answer.

    A capital is a copy of the document whose id is the small letter.
    """
    episode = episode_of(outcome, *[(2, None)] * len(found))
    steps = list(episode.steps)
    for number, ids in enumerate(found):
        texts = ("in Lima now" if one == "L" else f"Limassol, {one.lower()}" for one in ids)
        documents = tuple(Document(i, "", text) for i, text in zip(ids, texts, strict=True))
        steps[number] = replace(steps[number], documents=documents, query=f"{ids} {number}")
    return replace(episode, question=question, steps=tuple(steps))


class TestOracle:
    def test_each_newly_found_passage_pays_its_search(self) -> None:
        credit = OracleBonus(alpha=1.0, normalizer="none")
        batch = [searching("x", "ax", "a", "b"), searching("ab", "a"), searching()]
        assert bonuses(credit, batch) == [[0.0, 1.0, 0.0, 1.0], [1.0, 0.0], []]

    def test_a_copy_under_another_id_is_not_paid_again(self) -> None:
        question = replace(GOLD, gold_ids=("a", "A", "b"))
        batch = [searching("a", "A", "bA", question=question), searching("x", "A", question=GOLD)]
        credit = OracleBonus(alpha=1.0, normalizer="none")
        assert bonuses(credit, batch) == [[1.0, 0.0, 1.0], [0.0, 0.0]]

    def test_weight_normaliser_and_return_to_go_hold(self) -> None:
        credit = OracleBonus(alpha=0.6, gamma=0.5)
        assert bonuses(credit, [searching("x", "a")]) == [pytest.approx([0.15, 0.3])]

    def test_the_outcome_is_that_of_grpo(self) -> None:
        batch = [searching("x", outcome=1.0), searching("x", outcome=0.0)]
        for mine, grpo in zip(OracleBonus()(batch), GRPO()(batch), strict=True):
            np.testing.assert_array_equal(mine, grpo)

    def test_it_refuses_questions_without_supporting_passages(self) -> None:
        with pytest.raises(ValueError, match="question 'q' has no gold_ids"):
            OracleBonus()([searching("a", question=replace(GOLD, gold_ids=()))])

    @settings(deadline=None)
    @given(st.lists(st.lists(st.text("abx", max_size=3), max_size=5), max_size=4))
    def test_agrees_with_plain_loops(self, found: list[list[str]]) -> None:
        batch = [searching(*ids) for ids in found]
        for episode, array, base in zip(
            batch,
            OracleBonus(alpha=1.0, normalizer="none")(batch),
            slow_advantages(batch),
            strict=True,
        ):
            expected = [base] * episode.policy_tokens
            for t, step in enumerate(episode.searches):
                before = {d.id for s in episode.searches[:t] for d in s.documents}
                now = {d.id for d in step.documents}
                if any(gold in now and gold not in before for gold in ("a", "b")):
                    for p in range(step.query_tokens.start, step.query_tokens.stop):
                        expected[p] += 1.0
            np.testing.assert_allclose(array, expected)


class TestAnswerString:
    def test_the_first_search_that_holds_a_gold_answer_is_paid(self) -> None:
        credit = AnswerStringBonus(alpha=1.0, normalizer="none")
        batch = [searching("x", "xL", "L"), searching("x"), searching("L")]
        assert bonuses(credit, batch) == [[0.0, 1.0, 0.0], [0.0], [1.0]]

    def test_any_alias_and_the_title_count_as_whole_words(self) -> None:
        question = Question("q", "Who?", ("The City of Kings", "lima"))
        episode = searching("x", "x", question=question)
        titled = Document("t", "City of Kings", "")
        steps = (episode.steps[0], replace(episode.steps[1], documents=(titled,)), episode.steps[2])
        credit = AnswerStringBonus(alpha=1.0, normalizer="none")
        assert bonuses(credit, [replace(episode, steps=steps)]) == [[0.0, 1.0]]

    @settings(deadline=None)
    @given(st.lists(st.lists(st.text("Lxy", max_size=3), max_size=5), max_size=4))
    def test_agrees_with_plain_loops(self, found: list[list[str]]) -> None:
        batch = [searching(*ids, outcome=float(n % 2)) for n, ids in enumerate(found)]
        credit = AnswerStringBonus(alpha=0.5, normalizer="none")
        for ids, episode, array, base in zip(
            found, batch, credit(batch), slow_advantages(batch), strict=True
        ):
            expected = [base] * episode.policy_tokens
            for number, (step, letters) in enumerate(zip(episode.searches, ids, strict=True)):
                if "L" in letters and not any("L" in earlier for earlier in ids[:number]):
                    for p in range(step.query_tokens.start, step.query_tokens.stop):
                        expected[p] += 0.5
            np.testing.assert_allclose(array, expected, atol=1e-6)

    def test_nothing_is_scored_for_it(self) -> None:
        assert not AnswerStringBonus.uses_information_gain
        assert not OracleBonus.uses_information_gain
        assert IGPermuted.uses_information_gain


def counted(signals: Sequence[Sequence[float | None]]) -> Counter[float | None]:
    return Counter(value for row in signals for value in row)


class TestPermuted:
    BATCH = (
        episode_of(0.0, *[(1, float(n)) for n in range(1, 6)]),
        episode_of(1.0, *[(1, float(n)) for n in range(6, 11)], (1, None)),
    )

    def test_values_move_between_rollouts_and_none_is_lost(self) -> None:
        real = IGSearch().gains(self.BATCH)
        dealt = IGPermuted().gains(self.BATCH)
        assert counted(dealt) == counted(real)
        assert dealt[1][5] is None
        assert set(dealt[0]) != set(real[0])

    def test_the_same_batch_is_dealt_alike_and_another_seed_otherwise(self) -> None:
        assert IGPermuted().gains(self.BATCH) == IGPermuted().gains(self.BATCH)
        assert IGPermuted(seed=1).gains(self.BATCH) != IGPermuted().gains(self.BATCH)

    def test_other_queries_are_dealt_otherwise(self) -> None:
        first = replace(self.BATCH[0].steps[0], query="another")
        other = (replace(self.BATCH[0], steps=(first, *self.BATCH[0].steps[1:])), self.BATCH[1])
        assert IGPermuted().gains(other) != IGPermuted().gains(self.BATCH)

    def test_every_place_gets_every_value(self) -> None:
        firsts = {IGPermuted(seed=seed).gains(self.BATCH)[0][0] for seed in range(100)}
        assert firsts == {float(n) for n in range(1, 11)}

    def test_a_failed_rollout_stays_out(self) -> None:
        failed = episode_of(1.0, (1, 77.0), (1, None), failed=1)
        dealt = IGPermuted().gains([*self.BATCH, failed])
        assert dealt[2] == [77.0, None]
        assert 77.0 not in dealt[0] + dealt[1]

    @settings(deadline=None)
    @given(batches(), st.integers(0, 3))
    def test_bonuses_are_those_of_ig_search_in_other_places(
        self, batch: list[Episode], seed: int
    ) -> None:
        options = {"alpha": 1.0, "normalizer": "none", "shaping": PLAIN}
        real = IGSearch(**options).signals(batch)  # type: ignore[arg-type]
        dealt = IGPermuted(**options, seed=seed).signals(batch)  # type: ignore[arg-type]
        pick = [not episode.retrieval_failed for episode in batch]
        assert counted([r for r, k in zip(real, pick, strict=True) if k]) == counted(
            [r for r, k in zip(dealt, pick, strict=True) if k]
        )
        arrays = IGPermuted(**options, seed=seed)(batch)  # type: ignore[arg-type]
        assert [array.shape for array in arrays] == [(e.policy_tokens,) for e in batch]
        moved = [
            with_gains(episode, gains)
            for episode, gains in zip(batch, IGPermuted(seed=seed).gains(batch), strict=True)
        ]
        expected = slow_ig_search(moved, 1.0, PLAIN, "none")
        for array, tokens in zip(arrays, expected, strict=True):
            np.testing.assert_allclose(array, tokens, atol=1e-6)


def with_gains(episode: Episode, gains: Sequence[float | None]) -> Episode:
    """The episode with other gains, search by search."""
    left = iter(gains)
    steps = tuple(
        replace(step, information_gain=next(left)) if step.action == "search" else step
        for step in episode.steps
    )
    return replace(episode, steps=steps)
