"""Outcomes as sums of components: by hand, in both environments, and where one cannot be had."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from igsearch_env import EnvironmentSettings, Question, SearchQAEnv, SearchQAVectorEnv
from igsearch_env.cli.program import Parser, add_settings
from igsearch_env.credit import CREDIT, make_credit
from igsearch_env.credit.groups import group_advantages
from igsearch_env.episode import Episode, OutcomePart, Segment
from igsearch_env.evaluation.metrics import batch_metrics, episode_metrics
from igsearch_env.evaluation.scores import all_averages, score_example
from igsearch_env.outcome import (
    COMPONENTS,
    Component,
    OutcomeFailedError,
    WeightedOutcome,
    register_component,
    score_outcomes,
)
from igsearch_env.record import episode_from_record, episode_record
from igsearch_env.render import render_text
from igsearch_env.viewer.data import view_data
from tests.igsearch_env.fakes import PERU, QUESTIONS, FakeRetriever, FakeScorer, sampled

ANSWERED = Episode(PERU, Segment("?", "system"), answer="Lima")
PERU_AND_ITALY = replace(
    PERU, gold_ids=("d-Peru", "d-Italy", "d-Cuba"), gold_titles=("Peru", "Norway"), hops=2
)
EVERYTHING = {
    **{"em": 1.0, "f1": 2.0, "cover_em": 0.5, "format": 0.25, "gold_titles": 0.1},
    **{"evidence_recall": 3.0, "searches": -0.05, "length": -0.01, "no_search": -1.0},
}
LONG, RIGHT = "<answer> in Lima it is </answer>", "<answer> Lima </answer>"
WALK = ("<search> Peru </search>", "no action", "<search> Italy Kenya </search>", LONG)


def environment(question: Question = PERU_AND_ITALY, **more: Any) -> SearchQAEnv:
    arguments: dict[str, Any] = {"scorer": FakeScorer(), "num_counterfactuals": 0, **more}
    env = SearchQAEnv([question], FakeRetriever(), **arguments)
    env.reset(options={"question": question})
    return env


def played(turns: Sequence[str], question: Question = PERU_AND_ITALY, **more: Any) -> Episode:
    env = environment(question, **more)
    for turn in turns:
        env.step(turn)
    assert env.episode.finished
    return env.episode


def parts_of(episode: Episode) -> dict[str, float | None]:
    return {part.name: part.value for part in episode.outcome_parts}


def test_every_component_by_hand() -> None:
    turns = [sampled(turn) for turn in WALK]
    # Found: the documents of Peru, Italy and Kenya. Four words, one of them shared with "Lima".
    expected = {
        **{"em": 0.0, "f1": 2 / 5, "cover_em": 1.0, "format": 0.0, "gold_titles": 1 / 2},
        **{"evidence_recall": 2 / 3, "searches": 2.0, "no_search": 0.0},
        "length": float(sum(len(turn.token_ids or ()) for turn in turns)),
    }
    episode = played(turns, outcome=EVERYTHING)
    assert parts_of(episode) == pytest.approx(expected)
    total = sum(EVERYTHING[name] * expected[name] for name in EVERYTHING)
    assert episode.outcome == pytest.approx(total)
    assert episode.attempt_outcomes == (episode.outcome,)
    assert sum(step.reward for step in episode.steps) == episode.outcome


@pytest.mark.parametrize(
    ("turns", "question", "expected"),
    [
        ([RIGHT], PERU_AND_ITALY, {"em": 1.0, "format": 1.0, "searches": 0.0, "no_search": 1.0}),
        ([RIGHT], replace(PERU, hops=1), {"no_search": 1.0, "gold_titles": None}),
        ([RIGHT], PERU, {"no_search": None, "evidence_recall": None, "gold_titles": None}),
        (["<search> Peru </search>", RIGHT], PERU_AND_ITALY, {"format": 1.0, "no_search": 0.0}),
        (["x", RIGHT], PERU_AND_ITALY, {"format": 0.0, "length": None}),  # text without tokens
        # Without an answer, though every turn was valid but for the search too many.
        (["<search> Peru </search>"] * 3, PERU_AND_ITALY, {"format": 0.0, "searches": 1.0}),
        # By title, where no ids are known.
        (
            ["<search> Norway </search>", RIGHT],
            replace(PERU_AND_ITALY, gold_ids=()),
            {"evidence_recall": 1 / 2},
        ),
    ],
)
def test_components_one_by_one(
    turns: list[str], question: Question, expected: dict[str, float | None]
) -> None:
    names = dict.fromkeys(expected, 1.0)
    episode = played(turns, question, outcome=names, max_searches=1)
    assert parts_of(episode) == expected
    assert episode.outcome == pytest.approx(sum(value or 0.0 for value in expected.values()))
    assert not episode.left_out  # what does not apply adds nothing, and hides nothing


def test_a_component_alone_is_an_outcome_without_parts() -> None:
    for name in ("em", "f1", "cover_em", "zero"):
        episode = played([LONG], outcome=name)
        assert episode.outcome == COMPONENTS[name].measure(episode)
        assert episode.outcome_parts == ()
    assert "outcome_em" not in batch_metrics([played([LONG])])


def test_a_function_sees_the_finished_episode() -> None:
    seen: list[Episode] = []

    def outcome(episode: Episode) -> Mapping[str, float]:
        seen.append(episode)
        return {"turns": float(len(episode.steps)), "found": 0.5 * len(episode.searches)}

    episode = played(WALK, outcome=outcome)
    assert [len(one.steps) for one in seen] == [4]
    assert (seen[0].answer, seen[0].finished, seen[0].question) == (
        "in Lima it is",
        True,
        PERU_AND_ITALY,
    )
    assert [document.id for step in seen[0].searches for document in step.documents] == [
        *("d-Peru", "d-Italy", "d-Kenya")
    ]
    assert episode.outcome == 5.0
    assert episode.outcome_parts == (OutcomePart("turns", 1.0, 4.0), OutcomePart("found", 1.0, 1.0))


def test_the_parts_are_in_info_record_metrics_and_pictures(tmp_path: Any) -> None:
    weights = {"em": 1.0, "searches": -0.05, "gold_titles": 2.0}
    env = environment(PERU, outcome=weights)
    infos = [env.step(turn)[4] for turn in ("<search> Peru </search>", RIGHT)]
    episode = env.episode
    assert "outcome_parts" not in infos[0]
    assert infos[1]["outcome_parts"] == episode.outcome_parts
    assert "unscored" not in infos[1]

    record = json.loads(json.dumps(episode_record(episode)))
    assert episode_from_record(record) == episode
    for new in ("outcome_parts", "unscored"):  # a record of before there were parts
        del record[new]
    assert episode_from_record(record) == replace(episode, outcome_parts=())

    expected = {"outcome_em": 1.0, "outcome_searches": 1.0}  # gold titles are unknown
    assert expected.items() <= episode_metrics(episode).items()
    other = played(["<search> Peru </search>"] * 2 + [RIGHT], outcome=weights)
    metrics = batch_metrics([episode, other])
    assert (metrics["outcome_searches"], metrics["outcome_gold_titles"]) == (1.5, 0.5)
    assert metrics["outcome"] == pytest.approx((0.95 + 1 - 0.1 + 2 * 0.5) / 2)
    results = all_averages([score_example(one) for one in (episode, other)])
    assert results["micro"]["outcome_searches"] == 1.5

    assert "gold_titles: does not apply" in render_text(episode)
    assert "searches: -0.05 x 1.00 = -0.05" in render_text(episode)
    (tmp_path / "episodes.jsonl").write_text(json.dumps(episode_record(episode)) + "\n")
    (shown,) = view_data(tmp_path, 10)["rollouts"]
    assert shown["parts"] == [
        ["em", 1.0, 1.0, False],
        ["searches", -0.05, 1.0, False],
        ["gold_titles", 2.0, None, False],
    ]


def test_rows_of_a_vector_environment_score_as_single_ones_do() -> None:
    env = SearchQAVectorEnv(
        3,
        questions=(PERU_AND_ITALY, *QUESTIONS[1:]),
        retriever=FakeRetriever(),
        scorer=None,
        num_counterfactuals=0,
        outcome=EVERYTHING,
    )
    env.reset(options={"questions": [PERU_AND_ITALY] * 3})
    _, rewards, *_, infos = env.step(["<search> Peru </search>", RIGHT, LONG])
    assert list(infos["_outcome_parts"]) == [False, True, True]
    for row, turn in ((1, RIGHT), (2, LONG)):
        alone = played([turn], outcome=EVERYTHING, scorer=None)
        assert (rewards[row], infos["outcome_parts"][row]) == (alone.outcome, alone.outcome_parts)


def test_the_parts_of_an_attempt_are_its_own() -> None:
    turns = ["<search> Peru </search>", LONG, RIGHT]
    env = environment(outcome={"em": 1.0, "searches": -0.1}, max_attempts=2)
    infos = [env.step(turn)[4] for turn in turns]
    assert [info.get("attempt_outcome") for info in infos] == [None, -0.1, 1.0]
    assert infos[1]["outcome_parts"] == (OutcomePart("em", 1, 0), OutcomePart("searches", -0.1, 1))
    assert env.episode.outcome_parts == (OutcomePart("em", 1, 1), OutcomePart("searches", -0.1, 0))


class TestWhatCannotBeHad:
    @staticmethod
    def failing(episode: Episode) -> float:
        raise OutcomeFailedError("no verdict")

    def outcome(self, weight: float) -> WeightedOutcome:
        return WeightedOutcome({"em": 1.0, "mine": weight}, {"mine": Component(self.failing)})

    @pytest.mark.parametrize("outcome", [failing, None])
    def test_has_no_outcome_and_is_left_out(self, outcome: Any) -> None:
        env = environment(outcome=outcome or self.outcome(0.5))
        _, reward, terminated, _, info = env.step(RIGHT)
        episode = env.episode
        assert (reward, terminated, info["unscored"]) == (0.0, True, True)
        assert (episode.outcome, episode.attempt_outcomes, episode.em) == (None, (None,), 1.0)
        assert episode.unscored
        assert episode.left_out
        assert episode_from_record(json.loads(json.dumps(episode_record(episode)))) == episode
        assert "the score could not be had" in render_text(episode)
        metrics = batch_metrics([episode, played([RIGHT])])
        assert (metrics["unscored_rollouts"], metrics["outcome"], metrics["em"]) == (0.5, 1.0, 1.0)
        assert metrics["all_success"] == 1.0
        assert "outcome" not in episode_metrics(episode)
        assert not score_example(episode).failed  # its exact match is known

    def test_hides_nothing_at_weight_0(self) -> None:
        episode = played([RIGHT], outcome=self.outcome(0.0))
        assert (episode.outcome, episode.left_out) == (1.0, False)
        assert episode.outcome_parts[1] == OutcomePart("mine", 0.0, None, failed=True)
        assert "outcome_mine" not in episode_metrics(episode)

    def test_an_earlier_attempt_leaves_the_episode_out(self) -> None:
        def outcome(episode: Episode) -> float:
            if episode.answer != "Lima":
                raise OutcomeFailedError("no verdict")
            return 1.0

        env = environment(outcome=outcome, max_attempts=2)
        first = env.step(LONG)[4]
        assert (first["unscored"], first["attempt"]) == (True, 0)
        assert "attempt_outcome" not in first
        env.step(RIGHT)
        assert (env.episode.outcome, env.episode.attempt_outcomes) == (1.0, (None, 1.0))
        assert env.episode.left_out

    @pytest.mark.parametrize("method", sorted(CREDIT))
    def test_teaches_nothing_and_changes_nobody(self, method: str) -> None:
        turns = [sampled("<search> Peru </search>"), sampled(LONG)]
        near = (("d-Peru", 0),)
        question = replace(PERU_AND_ITALY, silver_ids=("d-Peru",), answer_distances=near)
        good, bad, masked = (
            replace(played(said, question, outcome=outcome), prior_log_prob=-4.0)
            for said, outcome in (
                ([turns[0], sampled(RIGHT)], "em"),
                (turns, "em"),
                (turns, self.outcome(0.5)),
            )
        )
        good, bad, masked = (
            replace(e, steps=tuple(replace(s, hindsight_shift=0.1) for s in e.steps))
            for e in (good, bad, masked)
        )
        credit = make_credit(method)
        alone = credit([good, bad])
        *kept, last = credit([good, bad, masked])
        for one, other in zip(alone, kept, strict=True):
            np.testing.assert_array_equal(one, other)
        assert len(last) == masked.policy_tokens > 0
        assert not last.any()

    def test_by_hand(self) -> None:
        half = math.sqrt(0.5)
        batch = [played([RIGHT]), played([LONG]), played([RIGHT], outcome=self.outcome(1.0))]
        assert group_advantages(batch) == pytest.approx([half, -half, 0.0], abs=1e-5)


class TestRefusals:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite(self, value: float) -> None:
        functions: list[Callable[[Episode], Any]] = [
            lambda episode: value,
            lambda episode: {"mine": value},
            lambda episode: {"mine": 1e308, "other": 1e308},
            WeightedOutcome({"mine": 1.0}, {"mine": Component(lambda episode: value)}),
        ]
        for outcome in functions:
            with pytest.raises(ValueError, match="must return a finite number"):
                played([RIGHT], outcome=outcome)

    def test_a_component_out_of_its_range(self) -> None:
        for value in (-0.1, 1.1):
            mine = Component(lambda episode, value=value: value, 0.0, 1.0)  # type: ignore[misc]
            with pytest.raises(ValueError, match=r"'mine' is .* from 0.0 to 1.0"):
                played([RIGHT], outcome=WeightedOutcome({"mine": 1.0}, {"mine": mine}))

    def test_an_outcome_out_of_the_stated_range(self) -> None:
        weights = {"em": 1.0, "searches": -0.6}
        bounds = {"outcome": weights, "outcome_range": (-0.5, 1.0)}
        assert played([RIGHT], **bounds).outcome == 1.0
        with pytest.raises(ValueError, match=r"is -0\.6, and outcome_range allows -0\.5 to 1\.0"):
            played(["<search> Peru </search>", LONG], **bounds)

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"outcome": "emm"}, "outcome must be one of em, f1"),
            ({"outcome": {"emm": 1.0}}, "'emm'; names of your own need --import FILE"),
            ({"outcome": {}}, "a table of weights by name"),
            ({"outcome": 3}, "a table of weights by name"),
            ({"outcome": {"em": math.nan}}, "the weight of 'em' in outcome must be a finite"),
            ({"outcome": {"em": "1"}}, "the weight of 'em' in outcome must be a finite"),
            ({"outcome": {"judge": 1.0}}, "'judge' needs the setting judge"),
            ({"outcome_range": (0.0,)}, "outcome_range must be two finite numbers"),
            ({"outcome_range": (1.0, 0.0)}, "outcome_range must be two finite numbers"),
            ({"outcome_range": (0.0, math.inf)}, "outcome_range must be two finite numbers"),
        ],
    )
    def test_of_settings(self, settings: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            EnvironmentSettings(**settings)

    def test_a_name_that_is_taken(self) -> None:
        for name in ("em", "judge"):
            with pytest.raises(ValueError, match=f"named '{name}' exists already"):
                register_component(name)(lambda episode: 0.0)


def test_a_component_of_ones_own_goes_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(COMPONENTS, "turns", raising=False)

    @register_component("turns", least=0.0)
    def turns(episode: Episode) -> float:
        return float(len(episode.steps))

    try:
        assert played(WALK, outcome={"turns": -0.5}).outcome == -2.0
        assert played(WALK, outcome="turns").outcome == 4.0
    finally:
        del COMPONENTS["turns"]


def test_what_waits_is_scored_at_once() -> None:
    meeting = threading.Barrier(3, timeout=60)

    def slow(episode: Episode) -> float:
        meeting.wait()  # passes only where three are here at once
        return float(len(episode.question.text))

    outcome = WeightedOutcome({"slow": 1.0}, {"slow": Component(slow, concurrency=3)})
    episodes = [played([RIGHT], question) for question in QUESTIONS[:3]]
    scores = score_outcomes(outcome, episodes)
    assert [score.total for score in scores] == [len(q.text) for q in QUESTIONS[:3]]


def test_gymnasiums_checks_pass(recwarn: pytest.WarningsRecorder) -> None:
    check_env(environment(outcome=EVERYTHING, outcome_range=(-10.0, 10.0)), skip_render_check=True)
    for outcome in (EVERYTHING, WeightedOutcome(EVERYTHING), lambda episode: {"one": 1.0}):
        env = gymnasium.make("igsearch_env:igsearch/SearchQA-v0", outcome=outcome, scorer=None)
        env.reset(seed=0)
        _, reward, *_, info = env.step("<answer> nobody </answer>")
        assert math.isclose(float(reward), sum(part.paid for part in info["outcome_parts"]))
        assert env.spec is not None
        assert env.spec.kwargs["outcome"] == outcome  # the copy of the arguments is the same


def test_settings_on_a_command_line() -> None:
    parser = Parser("x", None)
    add_settings(parser, EnvironmentSettings, "outcome", "outcome_range", "floor")
    given = vars(parser.parse_args(["--outcome", "em=1,searches=-0.05", "--floor", "-3"]))
    assert given == {"outcome": {"em": 1.0, "searches": -0.05}, "floor": -3.0}
    assert vars(parser.parse_args(["--outcome", "f1"])) == {"outcome": "f1"}
    given = vars(parser.parse_args(["--outcome-range", "-1", "1.5"]))
    assert EnvironmentSettings(**given).outcome_range == (-1.0, 1.5)


@pytest.mark.parametrize(
    "found", ["", b"", "0.5", [0.5, 0.2], None, {"a": None}, {"a": {"b": 1.0}}], ids=repr
)
def test_what_is_no_outcome_is_refused_by_name(found: Any) -> None:
    with pytest.raises(ValueError, match="an outcome function must return a number, numbers by"):
        score_outcomes(lambda episode: found, [ANSWERED])


def test_numbers_of_other_libraries_become_pythons_own() -> None:
    half = np.float32(0.5)
    (score,) = score_outcomes(
        lambda episode: [OutcomePart("a", half, half)],
        [ANSWERED],
    )
    assert (type(score.total), type(score.parts[0].value)) == (float, float)
    assert json.loads(json.dumps([score.total, score.parts[0].weight])) == [0.25, 0.5]


def test_a_list_of_names_is_no_outcome() -> None:
    with pytest.raises(ValueError, match="outcome must be the name of a component or a table"):
        SearchQAEnv(outcome=["em"])
