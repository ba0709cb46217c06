from __future__ import annotations

import json
from pathlib import Path

import pytest

from igsearch_env.cli.recall import main
from igsearch_env.episode import Document
from igsearch_env.retrieval.bm25 import BM25Retriever

PAGES = {
    "lima": "Lima lies in Peru",
    "quito": "Quito lies in Ecuador",
    "rome": "Rome lies in Italy",
}


@pytest.fixture
def index(tmp_path: Path) -> Path:
    BM25Retriever.build([Document(id_, "", text) for id_, text in PAGES.items()]).save(
        tmp_path / "bm25"
    )
    return tmp_path / "bm25"


def write_questions(path: Path, rows: list[tuple[str, list[str], str]]) -> Path:
    path.write_text(
        "".join(
            json.dumps({"question": text, "golden_answers": ["x"], "gold_ids": ids, "split": split})
            + "\n"
            for text, ids, split in rows
        )
    )
    return path


def test_recall_by_hand(index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_questions(
        tmp_path / "one.questions.jsonl",
        [
            ("Peru", ["lima"], "dev"),
            ("Peru or Italy", ["lima", "quito"], "dev"),
            ("Chile", ["lima"], "dev"),
            ("Italy", ["rome"], "holdout"),
            ("Italy", [], "dev"),  # nobody knows what is right
        ],
    )
    out = tmp_path / "out"
    arguments = ["--questions", str(one), "--index", str(index), "--out", str(out)]
    main([*arguments, "--top-k", "2", "--split", "dev"])
    (row,) = json.loads((out / "results.json").read_text())["rows"]
    assert (row["n"], row["recall"]) == (3, 0.5)
    assert row["interval"][0] < 0.5 < row["interval"][1]
    assert row["questions"] == "one.questions"
    assert "0.500" in capsys.readouterr().out
    main([*arguments, "--top-k", "1"])
    (row,) = json.loads((out / "results.json").read_text())["rows"]
    assert (row["n"], row["recall"]) == (4, pytest.approx(2.5 / 4))


def test_questions_without_gold_passages_are_refused(index: Path, tmp_path: Path) -> None:
    blank = write_questions(tmp_path / "q.jsonl", [("Peru", [], "dev")])
    with pytest.raises(ValueError, match="none of 1 questions names its gold documents"):
        main(["--questions", str(blank), "--index", str(index), "--out", str(tmp_path / "out")])
