"""The tables of signals by what a search found: by hand, and of real rollouts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igsearch_env import Document, Episode, Question
from igsearch_env.protocol.names import get_protocol
from igsearch_env.protocol.tags import PROTOCOLS, Answer, Search
from scripts.laboratory import gain_signal
from scripts.laboratory.gain_signal import (
    TitleAgent,
    auc,
    kinds_of,
    kinds_table,
    separation,
    signals,
)
from tests.igsearch_env.credit.test_belief_shift import believing

ASKED = Question(
    "q",
    "Where does the capital of Peru lie?",
    ("coast",),
    gold_ids=("bridge", "last"),
    silver_ids=("last",),
    answer_distances=(("last", 0), ("bridge", 1)),
)
TEXTS = {
    "bridge": "Lima is the capital of Peru.",
    "last": "Lima lies on the coast.",
    "answer": "Quito does not lie on the coast.",
    "miss": "Rome is old.",
}


def found(episode: Episode, *names: str, gains: tuple[float | None, ...]) -> Episode:
    """The episode with one named document for each search, or none for an empty name."""
    steps = list(episode.steps)
    for number, (name, gain) in enumerate(zip(names, gains, strict=True)):
        documents = (Document(name, name, TEXTS[name]),) if name else ()
        steps[number] = replace(
            steps[number], documents=documents, information_gain=gain, baseline_log_probs=(-4.0,)
        )
    return replace(episode, question=ASKED, steps=tuple(steps))


BATCH = [
    found(
        believing(-3.0, ("x", -2.0), ("x", -1.0), ("x", -1.5)),
        *("bridge", "last", "last"),
        gains=(0.5, 2.0, 1.0),
    ),
    found(
        believing(-3.0, ("x", -3.5), ("x", None), ("x", -3.0)),
        *("miss", "", "answer"),
        gains=(-0.1, None, 0.3),
    ),
]


def test_kinds() -> None:
    assert [kinds_of(episode) for episode in BATCH] == [
        ["bridge", "last", "known"],
        ["miss", "nothing", "answer"],
    ]


def test_signals_by_kind() -> None:
    rows = kinds_table(BATCH, signals(BATCH))
    got = {
        (row["search"], row["found"]): (
            row["searches"],
            row["information gain"],
            row["belief shift"],
        )
        for row in rows
    }
    assert got == {
        ("first", "bridge"): (1, [0.5, 0.0], [1.0, 0.0]),
        ("first", "miss"): (1, [-0.1, 0.0], [-0.5, 0.0]),
        ("later", "last"): (1, [2.0, 0.0], [1.0, 0.0]),
        ("later", "answer"): (1, [0.3, 0.0], [0.5, 0.0]),
        ("later", "known"): (1, [1.0, 0.0], [-0.5, 0.0]),
        ("later", "nothing"): (1, None, None),
    }
    first = next(row for row in rows if row["found"] == "bridge")
    assert first["less siblings"] == [1.5, 0.0]
    assert first["silver"] == [0.0, 0.0]  # only the last document is silver
    assert first["distance"] == [0.5, 0.0]
    assert first["hindsight"] is None


def test_separation_of_one_question_has_no_spread() -> None:
    rows = {row["signal"]: row for row in separation(BATCH, signals(BATCH))}
    assert rows["information gain"]["bridge/miss"] == [1.0, 1.0, 1.0]
    assert rows["silver"]["bridge/miss"] == [0.5, 0.5, 0.5]  # both 0
    assert rows["silver"]["last/miss"] == [1.0, 1.0, 1.0]
    assert rows["distance"]["bridge/miss"] == [1.0, 1.0, 1.0]


@given(st.lists(st.integers(0, 4), min_size=1), st.lists(st.integers(0, 4), min_size=1))
def test_auc_is_what_counting_pairs_gives(high: list[int], low: list[int]) -> None:
    slow = sum((h > low_one) + (h == low_one) / 2 for h in high for low_one in low) / (
        len(high) * len(low)
    )
    assert auc(np.array(high, float), np.array(low, float)) == pytest.approx(slow)


def test_the_interval_resamples_questions() -> None:
    """One question of three has all the right searches: some resamples do not draw it."""
    batch = []
    for number, gain in enumerate((1.0, -1.0, -1.0)):
        episode = found(
            believing(-3.0, ("x", -2.0), ("x", -2.0)), "bridge", "miss", gains=(gain, 0.0)
        )
        batch.append(replace(episode, question=replace(ASKED, id=f"q{number}")))
    (row,) = [r for r in separation(batch, signals(batch)) if r["signal"] == "information gain"]
    whole, low, high = row["bridge/miss"]
    assert whole == pytest.approx(1 / 3)
    assert (low, high) == (0.0, 1.0)


def test_titles_to_search_for() -> None:
    other = Question("r", "Who?", ("Ann",), gold_titles=("Ann",))
    peru = replace(ASKED, gold_titles=("bridge", "last"))
    agent = TitleAgent([peru, other], TEXTS, PROTOCOLS["refine"])
    start = replace(BATCH[0], question=peru, steps=(), outcome=None, terminated=False)
    grammar = PROTOCOLS["refine"]
    turns = [str(one) for one in agent.act([start, start, start])]
    assert turns == [grammar.write_search(name) for name in ("bridge", "last", "Ann")]
    (end,) = agent.act([replace(BATCH[0], question=peru)])
    assert end == grammar.write_answer("unknown")


def play(out: Path, *flags: str) -> None:
    sizes = ("world.people=40", "optimization.group_size=2", "optimization.questions_per_step=4")
    settings = [word for size in sizes for word in ("--set", size)]
    gain_signal.main(
        ["--config", "trainers/configs/demo.toml", "--out", str(out), *settings, *flags]
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--questions", "2", "--set", 'credit={method = "outcome"}'),
            "no search has a gain; set environment.",
        ),
        (("--questions", "100000"), "--questions asks for 100000, but there are "),
        (  # turns of two tokens are cut before they are searches
            ("--questions", "2", "--set", "policy.max_new_tokens=2"),
            r"none of 4 rollouts made a search: .* 'refine-bare'; train it to",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        play(tmp_path, *flags)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("constructed", [False, True])
def test_real_rollouts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], constructed: bool
) -> None:
    play(tmp_path, "--questions", "6", *(["--constructed"] if constructed else []))
    size = 3 if constructed else 2
    printed = capsys.readouterr().out
    assert f"{6 * size} rollouts" in printed
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["config"]["world"]["people"] == 40
    assert sum(row["searches"] for row in results["kinds"]) >= 6 * size
    names = [
        "information gain",
        "probability",
        "enabling",
        "belief shift",
        "less siblings",
        "hindsight",
        "silver",
        "distance",
    ]
    assert [row["signal"] for row in results["separation"]] == names
    costs = results["costs"]
    assert costs["hindsight"]["tokens"] > 0
    assert ("update" in costs) == ("rollouts" in costs) == (not constructed)
    assert ("of a step" in printed) == (not constructed)
    assert 0 < costs["belief"]["tokens"] < costs["information gain"]["tokens"]
    if constructed:
        assert {row["found"] for row in results["kinds"]} & {"bridge", "last"}


def test_worked_examples_let_an_untaught_policy_search() -> None:
    """Each example is made of turns that the protocol reads, with documents, and an answer."""
    protocol = get_protocol("scripts/laboratory/three_examples.toml")
    *examples, asked = protocol.prompt.strip().split("\n\n")
    assert asked == "question : {question}"
    assert len(examples) == 3
    for example in examples:
        turns = [protocol.parse(line) for line in example.split("\n") if line.startswith("<s")]
        assert turns
        assert all(isinstance(turn, Search) for turn in turns)
        assert example.count("<documents>") == example.count("</documents>") == len(turns)
        assert isinstance(protocol.parse(example.split("\n")[-1]), Answer)


def test_results_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match=r"results\.json exists already"):
        play(tmp_path)
    assert (tmp_path / "results.json").read_text() == "{}"
