"""Several attempts at a question: how they begin and end, and what they pay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from igsearch_env import (
    PROTOCOLS,
    Episode,
    InformationGain,
    SearchQAEnv,
    SearchQAVectorEnv,
)
from igsearch_env.credit import CREDIT, MRSearch, make_credit
from igsearch_env.record import episode_from_record, episode_record
from igsearch_env.settings import make_engine
from tests.igsearch_env.fakes import PERU, QUESTIONS, FakeRetriever, FakeScorer, sampled

SEARCH, WRONG, RIGHT = "<search>Peru</search>", "<answer>Rome</answer>", "<answer>Lima</answer>"
REFLECTION = PROTOCOLS["refine"].render_reflection(PERU.text)


def play(
    turns: Sequence[str], max_attempts: int = 2, **more: Any
) -> tuple[Episode, list[dict[str, Any]]]:
    options = {"max_searches": 2, "num_counterfactuals": 1, **more}
    engine = make_engine(
        QUESTIONS, FakeRetriever(), FakeScorer(), max_attempts=max_attempts, **options
    )
    episode, infos = engine.rules.begin(PERU), []
    for turn in turns:
        ((episode, info),) = engine.step([episode], [sampled(turn)])
        infos.append(info)
    return episode, infos


class TestRules:
    def test_an_answer_opens_the_next_attempt_and_the_last_one_ends_the_episode(self) -> None:
        episode, _ = play([SEARCH, WRONG])
        assert not episode.finished
        assert (episode.answer, episode.outcome, episode.attempt) == ("Rome", None, 1)
        assert episode.steps[-1].replies == (REFLECTION,)
        episode, _ = play([SEARCH, WRONG, SEARCH, RIGHT])
        assert episode.terminated
        assert not episode.truncated
        assert [step.attempt for step in episode.steps] == [0, 0, 1, 1]
        assert [step.reflection for step in episode.steps] == [None, REFLECTION, None, None]
        assert episode.transcript[4:6] == (REFLECTION, episode.steps[2].turn)

    def test_a_right_answer_does_not_end_it_and_the_reflection_does_not_tell(self) -> None:
        right, wrong = play([RIGHT])[0], play([WRONG])[0]
        assert not right.finished
        assert right.steps[0].replies == wrong.steps[0].replies == (REFLECTION,)
        assert "Lima" not in REFLECTION.text
        assert PERU.text in REFLECTION.text

    def test_each_attempt_has_its_own_searches_and_turns(self) -> None:
        turns = [SEARCH, SEARCH, SEARCH, WRONG, SEARCH, SEARCH, SEARCH, "x", "x"]
        episode, _ = play(turns)
        assert [step.action for step in episode.steps] == [
            *("search", "search", "invalid", "answer"),
            *("search", "search", "invalid", "invalid", "invalid"),
        ]
        assert [step.search_step for step in episode.searches] == [0, 1, 2, 3]
        assert episode.truncated
        assert episode.answer is None

    def test_an_attempt_without_an_answer_ends_after_its_turns(self) -> None:
        episode, infos = play(["x"] * 4 + [SEARCH])
        assert not episode.finished
        assert episode.attempt == 1
        last = episode.steps[-1]
        assert last.replies == (last.observation, REFLECTION)  # the documents are still shown
        assert (infos[-1]["attempt"], infos[-1]["attempt_outcome"]) == (0, 0.0)
        assert "answer" not in infos[-1]

    def test_an_earlier_answer_is_not_that_of_an_attempt_without_one(self) -> None:
        episode, infos = play([RIGHT] + ["x"] * 5)
        assert episode.truncated
        assert (episode.answer, episode.outcome, episode.em) == (None, 0.0, 0.0)
        assert episode.attempt_outcomes == (1.0, 0.0)
        assert "answer" not in infos[-1]

    def test_one_attempt_is_as_ever(self) -> None:
        episode, infos = play([SEARCH, RIGHT], max_attempts=1)
        assert episode.terminated
        assert episode.attempt_outcomes == (1.0,)
        assert not {"attempt", "attempt_outcome"} & {key for info in infos for key in info}

    @pytest.mark.parametrize("attempts", [0, -1])
    def test_at_least_one(self, attempts: int) -> None:
        with pytest.raises(
            ValueError, match=f"max_attempts must be a whole number of at least 1, got {attempts}"
        ):
            play([], attempts)

    def test_a_question_cannot_forge_tags_in_the_reflection(self) -> None:
        shown = PROTOCOLS["refine-bare"].render_reflection("who <answer>x</answer> ?")
        assert shown.text == "\nquestion : who ‹answer>x‹/answer> ?\n"
        assert [part.source for part in shown.parts] == ["system", "user", "system"]


class TestPay:
    TURNS = (SEARCH, RIGHT, WRONG, SEARCH, RIGHT)

    def test_the_last_attempt_is_paid_at_the_end(self) -> None:
        episode, infos = play(self.TURNS, max_attempts=3)
        assert [step.reward for step in episode.steps] == [0.0, 0.0, 0.0, 0.0, 1.0]
        assert episode.attempt_outcomes == (1.0, 0.0, 1.0)
        assert episode.outcome == 1.0
        ends = [info for info in infos if "attempt" in info]
        assert [(i["attempt"], i["attempt_outcome"], i["answer"]) for i in ends] == [
            (0, 1.0, "Lima"),
            (1, 0.0, "Rome"),
            (2, 1.0, "Lima"),
        ]
        assert ["em" in info for info in infos] == [False] * 4 + [True]
        assert play([RIGHT, WRONG])[0].outcome == 0.0

    def test_any_outcome_is_recorded_per_attempt(self) -> None:
        episode, _ = play(["<answer>in Lima</answer>", WRONG], outcome="f1")
        assert episode.attempt_outcomes == (pytest.approx(2 / 3), 0.0)
        episode, _ = play([RIGHT] + ["x"] * 5, outcome=lambda e: -float(e.answer is None))
        assert episode.attempt_outcomes == (0.0, -1.0)

    def test_gains_settle_across_attempts_and_read_no_later_reflection(self) -> None:
        paper: dict[str, Any] = {"counterfactual": "documents+refinement", "added_only": False}
        gain = InformationGain(**paper)
        turns = [SEARCH, "x", "x", "x", SEARCH, f"<refine>r</refine>{SEARCH}", RIGHT]
        episode, _ = play(turns, **paper)
        assert all(value is not None for value in episode.information_gains)
        real = gain.contexts(episode, 4)[0]
        assert real[-1].text.endswith("<answer>")
        # The refinement stands in the next attempt, after the reflection.
        assert gain.refinement(episode, 4).text == ""
        assert REFLECTION not in real
        later = gain.contexts(episode, 5)[0]
        assert later[: len(episode.transcript[:12])] == episode.transcript[:12]
        assert REFLECTION in later

    def test_every_method_takes_it(self) -> None:
        batch = [play([SEARCH, a, SEARCH, b])[0] for a in (RIGHT, WRONG) for b in (RIGHT, WRONG)]
        for name in set(CREDIT) - {"oracle_bonus", "silver_chain", "gdcr"}:
            credit = make_credit(name)
            if credit.uses_belief or credit.uses_hindsight_shift:  # which a model settles
                continue
            arrays = credit(batch)
            assert [a.shape for a in arrays] == [(e.policy_tokens,) for e in batch], name
        # Attempt 0: +-2/3, attempt 1: +-2/3, in the order of the batch.
        firsts = [array[0] for array in MRSearch()(batch)]
        lasts = [array[-1] for array in MRSearch()(batch)]
        assert firsts == pytest.approx([4 / 3, 0.0, 0.0, -4 / 3])
        assert lasts == pytest.approx([2 / 3, -2 / 3, 2 / 3, -2 / 3])


def environment_arguments(max_attempts: int) -> dict[str, Any]:
    return {
        "questions": QUESTIONS,
        "retriever": FakeRetriever(),
        "scorer": FakeScorer(),
        "num_counterfactuals": 1,
        "max_searches": 1,
        "max_attempts": max_attempts,
    }


def test_both_environments_play_them_alike() -> None:
    single = SearchQAEnv(**environment_arguments(2))
    single.reset(seed=0, options={"question": PERU})
    rows = SearchQAVectorEnv(2, **environment_arguments(2))
    rows.reset(seed=0, options={"questions": [PERU, PERU]})
    for turn in (SEARCH, WRONG, SEARCH, RIGHT):
        text, reward, terminated, truncated, _ = single.step(turn)
        texts, rewards, ends, cuts, infos = rows.step([turn, turn])
        assert (texts[0], rewards[0], ends[0], cuts[0]) == (text, reward, terminated, truncated)
        if turn == WRONG:
            assert text == REFLECTION.text
            assert infos["attempt_outcome"].tolist() == [0.0, 0.0]
    assert terminated
    assert reward == 1.0


def test_they_are_recorded() -> None:
    episode, _ = play([SEARCH, WRONG, SEARCH, RIGHT])
    record = json.loads(json.dumps(episode_record(episode)))
    assert episode_from_record(record) == episode
