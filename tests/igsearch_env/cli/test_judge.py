"""``igsearch judge``, and ``igsearch evaluate --judge``, against a real server on loopback."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from igsearch_env.cli import program
from igsearch_env.cli.judge import main
from tests.igsearch_env.cli.evaluating import evaluate, read_json, read_records, write_rows
from tests.scripted_server import ScriptedServer

WORLD = ("--questions", "world-test", "--corpus", "world", "--limit", 12)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A judge that takes for right what ends as a gold answer does, and fails on "no verdict"."""
    one = ScriptedServer()

    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        data = json.loads(body["messages"][1]["content"].split("\n", 1)[0])
        said = data["submitted_answer"].lower()
        right = any(said.endswith(gold.lower()) for gold in data["accepted_answers"])
        text = json.dumps({"reason": "its end", "correct": right})
        if "no verdict" in said:
            text = "I cannot tell."
        usage = {"prompt_tokens": 100, "completion_tokens": 5}
        return 200, {"choices": [{"message": {"content": text}}], "usage": usage}

    one.answer = answer
    yield one
    one.close()


def judge(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        program.run(lambda: main([str(argument) for argument in arguments]))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def label(answer: str, correct: bool, gold: str = "Lima") -> dict[str, Any]:
    row = {"question": f"Where to find {gold}?", "golden_answers": [gold]}
    return {**row, "answer": answer, "correct": correct}


def test_agreement_with_labels_by_hand(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [
        label("Lima", True),  # judge right, EM right
        label("in Lima", True),  # judge right, EM wrong
        label("not in Lima", False),  # judge right, EM wrong, and both graders differ from people
        label("Rome", False),
        label("no verdict", True),
        label("Rome", True, "Rome"),
    ]
    file = write_rows(tmp_path / "labels.jsonl", labels)
    assert judge("--labels", file, "--judge", server.url, "--model", "m", "--out", tmp_path) == 0
    results = read_json(tmp_path / "agreement.json")
    assert results["failed"] == {"labels": 1}
    assert results["right"]["labels"]["share"] == pytest.approx(4 / 5)
    by_pair = {(row["first"], row["second"]): row["agreement"] for row in results["rows"]}
    cells = {
        pair: [found[name] for name in ("both", "first", "second", "neither")]
        for pair, found in by_pair.items()
    }
    assert cells == {
        ("judge", "exact match"): [2, 2, 0, 1],
        ("judge", "labels"): [3, 1, 0, 1],
        ("exact match", "labels"): [2, 0, 1, 2],
    }
    # Judge and people agree on 4 of 5; they say "right" of 4 and of 3: chance agrees on 14/25.
    assert by_pair["judge", "labels"]["kappa"] == pytest.approx((20 - 14) / (25 - 14))
    assert by_pair["judge", "labels"]["questions"] == 2
    assert results["judge"] == {
        **{"judgements": 6, "calls": 8, "no_verdict": 3, "failed": 1},
        **{"prompt_tokens": 800, "completion_tokens": 40},
    }
    verdicts = read_records(tmp_path / "verdicts.jsonl")
    assert [row["verdict"] for row in verdicts] == [True, True, True, False, None, True]
    assert [row["reason"] for row in verdicts][-2:] == [None, "its end"]
    said = capsys.readouterr().out
    assert "6 judgements, 0 of them known before, 8 replies" in said
    assert "the judge gave no verdict in 3 replies" in said
    assert "judge, labels" in said


def test_an_evaluation_is_judged_while_it_is_made_and_afterwards(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, out = tmp_path / "verdicts", tmp_path / "eval"
    given = ("--judge", server.url, "--judge-model", "m", "--judge-cache", cache)
    assert evaluate(*WORLD, "--agent", "oracle", *given, "--out", out) == 0
    assert "judge: 12 judgements" in capsys.readouterr().out
    results = read_json(out / "results.json")["micro"]
    assert results["em"] == results["outcome"] == results["outcome_em"]
    assert 0 < results["outcome_judge"] <= 1
    assert len(results["outcome_judge_interval"]) == 2
    manifest = read_json(out / "manifest.json")
    assert manifest["runs"][0]["judge"]["calls"] == len({json.dumps(b) for b in server.asked})
    assert manifest["inputs"]["judge_model"] == "m"
    assert "judge" not in manifest["inputs"]

    before = len(server.asked)
    command = (out, "--judge", server.url, "--model", "m", "--cache", cache, "--out", tmp_path)
    assert judge(*command) == 0
    assert len(server.asked) == before  # all verdicts were known
    (row,) = read_json(tmp_path / "agreement.json")["rows"]
    assert row["agreement"]["n"] == 12
    assert row["agreement"]["both"] / 12 == pytest.approx(results["em"])

    # The server may move while an evaluation is resumed.
    assert evaluate("--out", out, "--resume", "--judge", "http://127.0.0.1:9/v1") == 0


def test_a_judge_that_is_gone_leaves_the_rest(
    tmp_path: Path, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda number, body: (401, {"error": {"message": "no key"}})
    out = tmp_path / "eval"
    command = (*WORLD, "--agent", "oracle", "--judge", server.url, "--judge-model", "m")
    assert evaluate(*command, "--out", out) == 0
    results = read_json(out / "results.json")["micro"]
    assert results["em"] == results["outcome"]
    assert "outcome_judge" not in results
    assert "failed; the last because" in (said := capsys.readouterr().out)
    assert "no key" in said
    assert judge(out, "--judge", server.url, "--model", "m") == 2
    assert "no answer was judged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[]", "expected an object with question"),
        ("{", "line 1: expected an object"),
        (json.dumps({**label("a", True), "correct": 1}), "correct \\(true or false\\)"),
        (json.dumps({**label("a", True), "golden_answers": []}), "golden_answers"),
        (json.dumps({**label("a", True), "golden_answers": "Lima"}), "golden_answers"),
        (json.dumps({**label("a", True), "answer": None}), "expected an object"),
        ("", "there is nothing to judge: no answers"),
    ],
)
def test_labels_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(line + "\n")
    assert judge("--labels", file, "--judge", "http://127.0.0.1:9/v1") == 2
    assert re.search(said, capsys.readouterr().err)


def test_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge("--judge", "http://127.0.0.1:9/v1") == 2
    assert "give the folder of an evaluation, or --labels" in capsys.readouterr().err
    assert judge(tmp_path, "--judge", "http://127.0.0.1:9/v1") == 2
    assert "holds no finished evaluation" in capsys.readouterr().err
