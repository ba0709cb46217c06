"""The table of metrics, on episodes written by hand; and who reads it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from igsearch_env.cli.evaluate import results_table
from igsearch_env.completion import Completion
from igsearch_env.episode import Document, Episode, Question
from igsearch_env.evaluation.metrics import (
    METRICS,
    Metric,
    batch_metrics,
    confidence,
    episode_metrics,
    gain_gold_correlation,
    gold_document_rate,
    register_metric,
)
from igsearch_env.evaluation.scores import all_averages, evaluation_results, score_example
from igsearch_env.protocol.tags import PROTOCOLS
from igsearch_env.record import episode_record
from igsearch_env.turn import SearchResult, TurnRules
from igsearch_env.viewer.data import view_data
from tests.igsearch_env.fakes import sampled

SEARCH = "<search> Allia home </search>"
ANSWER = "<answer> Delmora </answer>"
FOUND = (Document("d1", "Allia", "Allia lives in Delmora ."), Document("d9", "Nex", "Nex ."))


def question(name: str = "q", dataset: str = "", golds: Sequence[str] = ("Delmora",)) -> Question:
    return Question(
        name, "what is the home of Allia ?", tuple(golds), dataset, gold_ids=("d1", "d2")
    )


def written(
    question: Question,
    turns: Sequence[str],
    *,
    documents: Sequence[Document] = (),
    failed: bool = False,
    **ending: Any,
) -> Episode:
    """An episode turn by turn; each search finds the documents given."""
    rules = TurnRules(PROTOCOLS["refine"], max_searches=3)
    episode = rules.begin(question)
    for text in turns:
        turn = rules.read(episode, sampled(text))
        episode = turn.extend(episode, rules, SearchResult(tuple(documents), failed=failed))
    return replace(episode, **ending)


def settled(episode: Episode, *gains: float | None) -> Episode:
    """The episode with these gains: log-probs -1 + gain and, of the two baselines, -1 and -1."""
    steps, left = [], list(gains)
    for step in episode.steps:
        if step.action == "search":
            gain = left.pop(0)
            if gain is not None:
                step = replace(
                    step,
                    information_gain=gain,
                    log_prob=-1 + gain,
                    baseline_log_probs=(-1.0, -1.0),
                )
        steps.append(step)
    assert not left
    return replace(episode, steps=tuple(steps))


@pytest.mark.parametrize(
    ("ids", "titles", "expected"),
    [
        (("d1", "d2"), (), 0.5),
        (("d1",), (), 1.0),
        (("d1", "d1", "d7", "d8"), (), pytest.approx(1 / 3)),
        (("d7",), ("Allia",), 0.0),  # ids count where they are known
        ((), ("Allia", "Nex"), 1.0),
        ((), ("Allia", "Bor", "Cas", "Dun"), 0.25),
        ((), (), None),
    ],
)
def test_gold_documents(
    ids: tuple[str, ...], titles: tuple[str, ...], expected: float | None
) -> None:
    asked = Question("q", "who ?", ("x",), gold_ids=ids, gold_titles=titles)
    assert gold_document_rate(written(asked, [SEARCH, ANSWER], documents=FOUND)) == expected
    if expected is not None:
        assert gold_document_rate(written(asked, [ANSWER])) == 0.0


def test_rollouts() -> None:
    good: dict[str, Any] = {"outcome": 1.0, "em": 1.0, "f1": 1.0}
    bad: dict[str, Any] = {"outcome": 0.0, "em": 0.0, "f1": 0.5}
    q = question()
    episodes = [
        settled(written(q, [SEARCH, ANSWER], documents=FOUND, group_id="a", **good), 0.5),
        written(q, ["home", ANSWER], group_id="a", **bad),
        written(q, [ANSWER], group_id="b", **good),
        written(q, [ANSWER], group_id="b", **good),
        settled(
            written(q, [SEARCH, SEARCH, ANSWER], documents=FOUND[1:], group_id="c", **bad),
            -0.25,
            None,
        ),
    ]
    found = batch_metrics(episodes)
    assert found == pytest.approx(
        {
            "outcome": 3 / 5,
            "em": 3 / 5,
            "f1": 4 / 5,
            "searches": 3 / 5,
            "cover_em": 1.0,
            "tokens": (11 + 7 + 5 + 5 + 17) / 5,
            "gold_documents": 0.5 / 5,
            "invalid_turns": 1 / 9,
            "query_tokens": 4.0,  # " Al", "lia", " ho", "me "
            "failed_searches": 0.0,
            "failed_rollouts": 0.0,
            "all_fail": 1 / 3,
            "all_success": 1 / 3,
            "information_gain": 0.125,
            "information_gain_positive": 0.5,
            "log_prob": -0.875,
            "baseline_log_prob": -1.0,
            "gain_gold_correlation": 1.0,
        }
    )


def test_rollouts_without_searches_leave_out_what_is_not_known() -> None:
    asked = Question("q", "who ?", ("x",))
    found = batch_metrics([written(asked, [ANSWER], outcome=0.0, em=0.0, f1=0.0)])
    assert found == {
        "outcome": 0.0,
        "em": 0.0,
        "f1": 0.0,
        "cover_em": 0.0,
        "searches": 0.0,
        "tokens": 5.0,
        "invalid_turns": 0.0,
        "failed_rollouts": 0.0,
        "all_fail": 1.0,
        "all_success": 0.0,
    }


def test_lengths_in_tokens_are_not_known_of_an_agent_that_gives_text_alone() -> None:
    rules = TurnRules(PROTOCOLS["refine"])
    episode = rules.begin(question())
    for text in (SEARCH, ANSWER):
        turn = rules.read(episode, Completion(text))
        episode = turn.extend(episode, rules, SearchResult(FOUND))
    assert len(episode.searches) == 1
    assert not {"tokens", "query_tokens"} & set(episode_metrics(episode))


def test_groups_of_partial_success() -> None:
    def group(name: str, *outcomes: float) -> list[Episode]:
        ending = {"em": 0.0, "f1": 0.0, "group_id": name}
        return [written(question(), [ANSWER], outcome=value, **ending) for value in outcomes]

    found = batch_metrics([*group("a", 0.4, 0.4), *group("b", 0.4, 0.5), *group("c", 0.0, 1.0)])
    assert found["all_fail"] == 0.0
    assert found["all_success"] == pytest.approx(1 / 3)


def test_a_failed_search_takes_its_rollout_out_of_the_metrics() -> None:
    good = written(question(), [SEARCH, ANSWER], documents=FOUND, outcome=1.0, em=1.0, f1=1.0)
    broken = written(
        question(), [SEARCH, SEARCH, "home", ANSWER], failed=True, outcome=0.0, em=0.0, f1=0.0
    )
    found = batch_metrics([good, broken])
    assert found == {
        **batch_metrics([good]),
        "failed_searches": pytest.approx(2 / 3),
        "failed_rollouts": 0.5,
    }
    assert found["all_fail"] == 0.0
    assert batch_metrics([broken]) == {"failed_searches": 1.0, "failed_rollouts": 1.0}
    results = evaluation_results([good, broken])
    assert (results["n"], results["failed"], results["em"]) == (1, 1, 1.0)
    assert evaluation_results([good])["failed"] == 0


def test_evaluation_is_a_mean_over_questions_not_over_data_sets() -> None:
    """A mean of the means of batches or data sets would give .5 here."""
    numbers = itertools.count()

    def played(dataset: str, em: float, answer: str, searches: int, **rest: Any) -> Episode:
        turns = [*[SEARCH] * searches, f"<answer> {answer} </answer>"]
        asked = question(f"q{next(numbers)}", dataset, **rest)
        return written(asked, turns, documents=FOUND, em=em, f1=em, outcome=em)

    episodes = [
        played("big", 1.0, "Delmora", 1),
        played("big", 1.0, "Delmora", 2),
        played("big", 1.0, "Delmora", 1),
        played("small", 0.0, "the Delmora city", 0),
        played("", 0.0, "no", 0, golds=["Yes", " no "]),
    ]
    episodes[0] = settled(episodes[0], 1.0)
    found = evaluation_results(episodes)
    assert found["n"] == 5
    assert found["em"] == pytest.approx(3 / 5)
    assert found["cover_em"] == 1.0
    assert found["searches"] == pytest.approx(4 / 5)
    assert found["gold_documents"] == pytest.approx(1.5 / 5)
    assert found["information_gain"] == 1.0
    assert found["yes_no"] == {"n": 1, "em": 0.0}
    low, high = found["em_interval"]
    assert 0 <= low < 0.6 < high <= 1
    assert {name: part["n"] for name, part in found["datasets"].items()} == {
        "big": 3,
        "small": 1,
        "unnamed": 1,
    }
    assert found["datasets"]["big"]["em"] == 1.0
    assert found["datasets"]["small"]["cover_em"] == 1.0
    assert "information_gain" not in found["datasets"]["small"]
    assert "yes_no" not in found["datasets"]["big"]


def test_gains_are_compared_with_new_gold_passages() -> None:
    """What is found again counts for nothing: 1, 0, 0 against gains of 2, 1, 0."""
    episode = written(question(), [SEARCH, SEARCH, SEARCH, ANSWER], documents=FOUND)
    episode = settled(episode, 2.0, 1.0, 0.0)
    gains, found = [2.0, 1.0, 0.0], [1.0, 0.0, 0.0]
    means = [sum(gains) / 3, sum(found) / 3]
    over = sum((g - means[0]) * (f - means[1]) for g, f in zip(gains, found, strict=True))
    spreads = [sum((x - m) ** 2 for x in xs) for xs, m in zip((gains, found), means, strict=True)]
    expected = over / (spreads[0] * spreads[1]) ** 0.5
    assert gain_gold_correlation([episode]) == pytest.approx(expected)
    assert batch_metrics([episode])["gain_gold_correlation"] == pytest.approx(expected)
    assert gain_gold_correlation([settled(written(question(), [ANSWER]))]) is None


@pytest.fixture
def own_metric() -> Iterator[Metric]:
    """One entry more in the table: how many turns an episode has."""
    metric = Metric(
        "turns",
        "turns per rollout",
        lambda episode: [float(len(episode.steps))],
        heading="turns",
        digits=1,
        interval=True,
    )
    register_metric(metric)
    yield metric
    del METRICS["turns"]


def test_one_entry_adds_a_metric_everywhere(own_metric: Metric, tmp_path: Path) -> None:
    """In the results and the table of an evaluation, the training log, and the viewer's page."""
    ending: dict[str, Any] = {"outcome": 1.0, "em": 1.0, "f1": 1.0, "terminated": True}
    episodes = [
        written(question("a"), [SEARCH, ANSWER], documents=FOUND, **ending),
        written(question("b"), [SEARCH, "home", "home", ANSWER], documents=FOUND, **ending),
    ]
    results = all_averages([score_example(episode) for episode in episodes])
    assert results["micro"]["turns"] == 3.0
    assert results["micro"]["turns_interval"] == [2.0, 4.0]
    assert "turns" in results["macro"]
    assert "turns" in results["datasets"]["unnamed"]
    table = results_table(results, "two episodes", None)
    (column,) = [column for column in table.columns if column.header == "turns"]
    assert next(iter(column.cells)) == "3.0\n2.00–4.00"
    assert batch_metrics(episodes)["turns"] == 3.0
    lines = [json.dumps(episode_record(episode)) + "\n" for episode in episodes]
    (tmp_path / "episodes.jsonl").write_text("".join(lines))
    page = view_data(tmp_path, 10)
    assert page["table"]["turns"] == {"label": "turns per rollout", "digits": 1, "column": True}
    assert [rollout["metrics"]["turns"] for rollout in page["rollouts"]] == [[2.0], [4.0]]


def test_a_metric_is_entered_once_and_of_one_kind(own_metric: Metric) -> None:
    with pytest.raises(ValueError, match="a metric named 'turns' exists already"):
        register_metric(own_metric)
    with pytest.raises(ValueError, match="metric 'x' must have either values or batch"):
        Metric("x", "x")
    with pytest.raises(ValueError, match="metric 'x' must have either values or batch"):
        Metric("x", "x", lambda episode: [], lambda episodes: None)


def test_the_table_says_which_scorer_made_the_gains() -> None:
    ending: dict[str, Any] = {"outcome": 1.0, "em": 1.0, "f1": 1.0}
    episode = settled(written(question(), [SEARCH, ANSWER], documents=FOUND, **ending), 0.5)
    results = all_averages([score_example(episode)])
    headings = [column.header for column in results_table(results, "", "TrieScorer").columns]
    assert "IG, nats\nTrieScorer" in headings
    assert {"invalid", "EM", "gold"} <= {*headings}


def test_numbers_of_an_episode_are_averaged_within_it() -> None:
    episode = written(question(), ["home", SEARCH, SEARCH, ANSWER], documents=FOUND)
    found = episode_metrics(settled(episode, 0.5, 0.25))
    assert found["invalid_turns"] == 0.25
    assert found["information_gain"] == 0.375
    assert "em" not in found  # it has not ended


def test_turns_cut_by_length_are_told_apart_from_malformed_ones() -> None:
    rules = TurnRules(PROTOCOLS["refine"])
    episode = rules.begin(Question("q", "?", ("Lima",)))
    for reason in ("length", "end", None, "no_room"):
        turn = rules.read(episode, Completion("no action", stop_reason=reason))
        episode = turn.extend(episode, rules, None)
    found = episode_metrics(episode)
    assert found["invalid_turns"] == 1.0
    assert found["cut_turns"] == pytest.approx(2 / 3)  # nothing is known of the third turn
    silent = replace(episode, steps=episode.steps[2:3])
    assert "cut_turns" not in episode_metrics(silent)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Confidence: 85%", 0.85),
        ("confidence: 0.4 .", 0.4),
        ("**Confidence**: 7 %", 0.07),
        ("Confidence: 20% , no , confidence = 100%", 1.0),
        ("my confidence grows", None),
        ("Confidence: 170%", None),
        ("overconfidence: 50%", None),
        ("", None),
    ],
)
def test_confidence_is_what_the_answering_turn_states(text: str, expected: float | None) -> None:
    turns = ["Confidence: 99% " + SEARCH, f"{text} {ANSWER}"]
    episode = written(question(), turns, documents=FOUND, em=1.0)
    assert confidence(episode) == expected
    values = episode_metrics(episode)
    assert values.get("confidence") == expected
    brier = None if expected is None else pytest.approx((expected - 1.0) ** 2)
    assert values.get("brier") == brier


def test_no_confidence_without_an_answer() -> None:
    assert confidence(written(question(), ["Confidence: 99% " + SEARCH], documents=FOUND)) is None
