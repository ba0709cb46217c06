"""An episode as plain text: everything that matters is there, and nothing that harms a terminal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from igsearch_env.episode import Document, Episode, Question, Segment, Step
from igsearch_env.render import WIDTH, is_gold, render_text

QUESTION = Question("q", "Capital of Peru?", ("Lima", "Ciudad de los Reyes"), "nq", 1, ("d1",))
SEARCH = Step(
    action="search",
    turn=Segment("<think>hm</think>\n<search> Peru </search>", "policy"),
    observation=Segment("\n<documents>…</documents>\n", "document"),
    policy_tokens=slice(0, 0),
    query_tokens=slice(0, 0),
    search_step=0,
    query="Peru",
    documents=(Document("d1", "Peru", "The seat is Lima."), Document("d2", "", "word " * 200)),
    information_gain=1.5,
    log_prob=-0.5,
    baseline_log_probs=(-1.75, -2.25),
)
CORRECTION = replace(
    SEARCH,
    action="invalid",
    turn=Segment("", "policy"),
    observation=Segment("\nThat turn could not be carried out.\n", "system"),
    documents=(),
)
ANSWER = replace(SEARCH, action="answer", turn=Segment("<answer> Lima </answer>", "policy"))
ENDED = Episode(
    QUESTION,
    Segment("prompt", "system"),
    (SEARCH, CORRECTION, replace(ANSWER, observation=None)),
    answer="Lima",
    em=1.0,
    f1=1.0,
    outcome=1.0,
    terminated=True,
)


def test_an_episode_reads_line_by_line() -> None:
    lines = render_text(ENDED).split("\n")
    found = lines.pop(7)
    assert lines == [
        "question  Capital of Peru? (nq, 1 hop)",
        "gold      Lima | Ciudad de los Reyes",
        "",
        "policy    <think>hm</think> <search> Peru </search>",
        "search 0  IG +1.50 nats per answer token ██████",
        "          log-prob -0.50, with evidence of others -1.75 -2.25",
        "found *   Peru: The seat is Lima.",
        *lines[7:9],
        "",
        "policy    (nothing)",
        "system    That turn could not be carried out.",
        "",
        "policy    <answer> Lima </answer>",
        "",
        "outcome   right: Lima (EM 1, F1 1.00)",
    ]
    assert found.startswith("found     word word")
    assert lines[8].endswith("word …")
    assert max(map(len, [found, *lines])) <= WIDTH


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"information_gain": -0.5}, "search 0  IG -0.50 nats per answer token ░░"),
        ({"information_gain": 99.0}, f"IG +99.00 nats per answer token {'█' * 40}\n"),
        ({"information_gain": None, "log_prob": None}, "search 0  IG not settled\n"),
        ({"documents": ()}, "found     (nothing)"),
        ({"documents": (Document("d", "", " "),)}, "found     (nothing)"),
        ({"reflection": Segment("\nTry again.\n", "system")}, "system    Try again.\n"),
        (
            {"retrieval_failed": True, "observation": Segment("\nno response\n", "system")},
            "system    no response\n",
        ),
    ],
)
def test_searches(changes: dict[str, object], shown: str) -> None:
    text = render_text(replace(ENDED, steps=(replace(SEARCH, **changes),)))  # type: ignore[arg-type]
    assert shown in text


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"answer": "Quito", "em": 0.0, "f1": 0.0}, "wrong: Quito (EM 0, F1 0.00)"),
        ({"answer": None, "terminated": False, "truncated": True}, "no answer before the turns"),
        ({"terminated": False}, "not finished"),
    ],
)
def test_outcomes(changes: dict[str, object], outcome: str) -> None:
    assert f"outcome   {outcome}" in render_text(replace(ENDED, **changes))  # type: ignore[arg-type]


def test_no_document_sends_commands_to_the_terminal() -> None:
    hostile = Document("d", "a\x1b[31m", "red\x1b]0;title\x07 \u202eright to left\r\nover")
    text = render_text(replace(ENDED, steps=(replace(SEARCH, documents=(hostile,)),)))
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "a [31m: red ]0;title \ufffdright to left over" in text


def test_gold_passages_are_known_by_id_or_else_by_title() -> None:
    by_title = Question("q", "?", ("a",), gold_titles=("Peru",))
    assert [is_gold(document, QUESTION) for document in SEARCH.documents] == [True, False]
    assert [is_gold(document, by_title) for document in SEARCH.documents] == [True, False]
    assert not is_gold(SEARCH.documents[0], Question("q", "?", ("a",)))


def test_a_turn_that_was_cut_off_is_told_apart_from_a_malformed_one() -> None:
    shown = {
        reason: render_text(replace(ENDED, steps=(replace(CORRECTION, stop_reason=reason),)))
        for reason in (None, "stop", "end", "length", "no_room", "refused")
    }
    assert shown[None] == shown["stop"] == shown["end"]
    assert "cut       the turn came to its largest number of tokens" in shown["length"]
    assert "cut       the transcript left no room for a turn" in shown["no_room"]
    assert "cut       the model's server refused the request" in shown["refused"]
