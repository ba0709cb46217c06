"""The tables of signals by what a search found: by hand, and of real rollouts."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igsearch_env import Document, Episode, Question
from igsearch_env.answers import contains_answer
from igsearch_env.data.world import World
from igsearch_env.protocol.names import get_protocol
from igsearch_env.protocol.tags import PROTOCOLS
from igsearch_env.retrieval.bm25 import BM25Retriever
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
from tests.igsearch_env.retrieval.loopback import LoopbackServer
from trainers.config import load_config
from trainers.setup import make_world

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


def asked_often(batch: list[Episode], times: int) -> list[Episode]:
    """The episodes again and again, each time of another question."""
    return [
        replace(episode, question=replace(episode.question, id=f"q{number}"))
        for number in range(times)
        for episode in batch
    ]


def test_separation() -> None:
    batch = asked_often(BATCH, 5)
    rows = {row["signal"]: row for row in separation(batch, signals(batch))}
    assert rows["information gain"]["bridge/miss"] == [1.0, 1.0, 1.0]
    assert rows["silver"]["bridge/miss"] == [0.5, 0.5, 0.5]  # both 0
    assert rows["silver"]["last/miss"] == [1.0, 1.0, 1.0]
    assert rows["distance"]["bridge/miss"] == [1.0, 1.0, 1.0]


def test_few_questions_have_no_separation() -> None:
    """Of five questions one has no miss, so four are left: too few to resample."""
    batch = asked_often(BATCH, 5)[:-1]
    rows = {row["signal"]: row for row in separation(batch, signals(batch))}
    assert rows["information gain"]["bridge/miss"] is None
    assert rows["hindsight"]["bridge/miss"] is None  # nobody has any


@given(st.lists(st.integers(0, 4), min_size=1), st.lists(st.integers(0, 4), min_size=1))
def test_auc_is_what_counting_pairs_gives(high: list[int], low: list[int]) -> None:
    slow = sum((h > low_one) + (h == low_one) / 2 for h in high for low_one in low) / (
        len(high) * len(low)
    )
    assert auc(np.array(high, float), np.array(low, float)) == pytest.approx(slow)


def test_the_interval_resamples_questions() -> None:
    """Two questions of six have all the right searches: resamples have none to all of them."""
    batch = []
    for number, gain in enumerate((1.0, -1.0, -1.0) * 2):
        episode = found(
            believing(-3.0, ("x", -2.0), ("x", -2.0)), "bridge", "miss", gains=(gain, 0.0)
        )
        batch.append(replace(episode, question=replace(ASKED, id=f"q{number}")))
    (row,) = [r for r in separation(batch, signals(batch)) if r["signal"] == "information gain"]
    # Each bridge is above all misses or below: the AUC is the share of the right questions drawn,
    # a sixth of a binomial of six draws with probability 1/3, whose quantiles are 0 and 4.
    assert row["bridge/miss"] == pytest.approx([1 / 3, 0.0, 4 / 6])


def test_titles_to_search_for() -> None:
    other = Question("r", "Who?", ("Ann",), gold_ids=("7",))
    documents = [Document(name, name, TEXTS[name]) for name in ("bridge", "last")]
    agent = TitleAgent(
        [(ASKED, documents), (other, [Document("7", "Ann", "")])], PROTOCOLS["refine"]
    )
    start = replace(BATCH[0], question=ASKED, steps=(), outcome=None, terminated=False)
    grammar = PROTOCOLS["refine"]
    turns = [str(one) for one in agent.act([start, start, start])]
    assert turns == [grammar.write_search(name) for name in ("bridge", "last", "Ann")]
    (end,) = agent.act([BATCH[0]])
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
            r"set credit.method to one that needs gains, such as ig_search \(it is outcome\)",
        ),
        (
            ("--questions", "2", "--set", "environment.num_counterfactuals=0"),
            r"environment.num_counterfactuals to at least 1 \(it is 0\)",
        ),
        (
            ("--questions", "1", "--constructed"),
            "no other question has gold documents that question .* has not",
        ),
        (("--questions", "100000"), "--questions asks for 100000, but there are "),
        (
            ("--questions", "2", "--set", "policy.max_new_tokens=2"),
            r"of their (\d+) turns 0 were answers, \1 were cut before they were complete, ",
        ),
        (
            ("--questions", "2", "--set", "environment.episode_tokens=20"),
            "none of 4 rollouts made a search: .* 4 rollouts ran out of environment.episode_tokens",
        ),
        (
            (
                "--questions",
                "2",
                "--set",
                "environment.retriever=http://ann:pw@127.0.0.1:9/retrieve",
            ),
            r"all \d+ searches of the last questions failed; .* engine, http://127.0.0.1:9/retrieve",
        ),
        (
            (
                *("--questions", "2", "--constructed"),
                *("--set", "environment.retriever=http://127.0.0.1:9/retrieve"),
            ),
            "--constructed reads the gold documents' titles and texts in the index",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        play(tmp_path, *flags)
    assert not (tmp_path / "results.json").exists()


def test_an_index_without_the_gold_documents_is_refused(tmp_path: Path) -> None:
    BM25Retriever.build([Document("z", "Qqx", "Wwx.")]).save(tmp_path / "index")
    with pytest.raises(ValueError, match="no gold document of these 2 questions is in the index"):
        play(
            tmp_path / "out",
            *("--questions", "2", "--set", f"environment.retriever={tmp_path / 'index'}"),
        )
    assert not (tmp_path / "out" / "results.json").exists()


@cache
def world() -> World:
    """The world of :func:`play`."""
    return make_world(load_config("trainers/configs/demo.toml", ["world.people=40"]).world)


def questions_file(folder: Path, *left_out: str) -> tuple[str, ...]:
    """Flags for questions of the world in a file, without some of their columns."""
    file = folder / "questions.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        titles = {document.id: document.title for document in world().documents}
        for number, question in enumerate(world().train_questions[:6]):
            row = {
                "id": f"q{number}",
                "question": question.text,
                "golden_answers": list(question.golden_answers),
                "gold_ids": list(question.gold_ids),
                "gold_titles": [titles[id_] for id_ in question.gold_ids],
            }
            lines.write(json.dumps({k: v for k, v in row.items() if k not in left_out}) + "\n")
    settings = (f"environment.questions={file}", "environment.retriever=world")
    return ("--questions", "6", *(word for one in settings for word in ("--set", one)))


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The questions of :func:`questions_file`."""
    with (folder / "questions.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_questions_without_gold_documents_are_refused(tmp_path: Path) -> None:
    flags = questions_file(tmp_path, "gold_ids", "gold_titles")
    with pytest.raises(ValueError, match="question 'q0' has neither gold_ids nor gold_titles"):
        play(tmp_path / "out", *flags)


@pytest.mark.parametrize("left_out", ["gold_ids", "gold_titles"])
def test_gold_documents_are_found_by_id_or_by_title(tmp_path: Path, left_out: str) -> None:
    play(tmp_path / "out", *questions_file(tmp_path, left_out), "--constructed")
    kinds = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["kinds"]
    assert sum(row["searches"] for row in kinds) == 18
    assert {"bridge", "miss"} <= {row["found"] for row in kinds}


def test_questions_whose_gold_documents_have_no_titles_are_refused(tmp_path: Path) -> None:
    """The index has the gold documents of the other questions, and of this one without titles."""
    flags = questions_file(tmp_path, "gold_titles")
    untitled = set(read_rows(tmp_path)[0]["gold_ids"])
    BM25Retriever.build(
        [replace(one, title="") if one.id in untitled else one for one in world().documents]
    ).save(tmp_path / "index")
    with pytest.raises(ValueError, match="no gold document of question 'q0' is in the index with"):
        play(
            tmp_path / "out",
            *(*flags, "--constructed"),
            *("--set", f"environment.retriever={tmp_path / 'index'}"),
        )


def test_searches_that_find_nothing_are_refused(tmp_path: Path) -> None:
    """The gold documents are in the index, with other words than the questions."""
    flags = questions_file(tmp_path, "gold_titles")
    ids = {id_ for row in read_rows(tmp_path) for id_ in row["gold_ids"]}
    BM25Retriever.build([Document(id_, "Qqx", "Wwx.") for id_ in sorted(ids)]).save(
        tmp_path / "index"
    )
    with pytest.raises(ValueError, match=r"none of \d+ searches has a gain: 0 failed, and 0 found"):
        play(tmp_path / "out", *flags, "--set", f"environment.retriever={tmp_path / 'index'}")


def test_a_server_that_is_lost(tmp_path: Path) -> None:
    """Searches that failed are counted; the run ends once none of a batch is answered."""
    index = BM25Retriever.build(world().documents)
    requests = 0

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        nonlocal requests
        requests += 1
        if requests > 1:
            return 500, {}
        found = index.search(body["queries"], body["topk"])
        shown = [[{"id": d.id, "contents": f'"{d.title}"\n{d.text}'} for d in one] for one in found]
        return 200, {"result": [[{"document": d, "score": 1.0} for d in one] for one in shown]}

    server = LoopbackServer(answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = (
        *questions_file(tmp_path, "gold_titles"),
        *("--set", f"environment.retriever={server.url}"),
    )
    play(tmp_path / "partly", *flags, "--questions", "4")
    requests = 0
    one_each = ("--set", "optimization.questions_per_step=1")
    with pytest.raises(ValueError, match=r"all \d+ searches of the last questions failed; see to"):
        play(tmp_path / "lost", *flags, *one_each)
    server.shutdown()
    server.server_close()
    assert not (tmp_path / "lost" / "results.json").exists()
    kinds = json.loads((tmp_path / "partly" / "results.json").read_text(encoding="utf-8"))["kinds"]
    found = {row["found"] for row in kinds}
    assert "failed" in found
    assert found & {"bridge", "miss", "last"}


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


def test_worked_examples_are_episodes_as_the_environment_writes_them() -> None:
    """Searches, then what they found, then an answer that the last document holds."""
    protocol = get_protocol("scripts/laboratory/three_examples.toml")
    *examples, asked = protocol.prompt.strip().split("\n\n")
    assert asked == "question : {question}"
    assert len(examples) == 3
    for example in examples:
        question = example.partition("\n")[0].removeprefix("question : ")
        found = re.findall(r"<search> (.+) </search>\n<documents>\n (.+)\n</documents>", example)
        (answer,) = re.findall("<answer> (.+) </answer>", example)
        written = PROTOCOLS["refine-bare"].prompt.replace("{question}", question)
        for query, text in found:
            written += protocol.write_search(query)
            written += protocol.render_documents([Document("d", "", text)]).text
        assert example == written + protocol.write_answer(answer)
        assert contains_answer(found[-1][1], (answer,))


def test_results_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match=r"results\.json exists already"):
        play(tmp_path)
    assert (tmp_path / "results.json").read_text() == "{}"
