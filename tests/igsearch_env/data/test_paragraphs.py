"""Data sets that carry paragraphs, in the layouts that the hub and the authors publish them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from igsearch_env import BM25Retriever, load_corpus, load_questions
from igsearch_env.cli.data import main
from igsearch_env.data.paragraphs import write_paragraph_sets

LIMA = ("Lima", ["Lima is the capital of Peru.", " It lies on the coast."])
LIMA_TEXT = "Lima is the capital of Peru. It lies on the coast."
PERU = ("Peru", ["Peru is a country."])
ROME = ("Rome", ["Rome is the capital of Italy."])
ROW: dict[str, Any] = {
    "id": "5a7",
    "question": "Where does the capital of Peru lie?",
    "answer": "on the coast",
    "type": "bridge",
    "level": "medium",
}
AS_LISTS = {
    **ROW,
    "supporting_facts": [["Peru", 0], ["Lima", 0], ["Lima", 1]],
    "context": [list(LIMA), list(PERU), list(ROME)],
}
AS_COLUMNS = {
    **ROW,
    "supporting_facts": {"title": ["Peru", "Lima", "Lima"], "sent_id": [0, 0, 1]},
    "context": {
        "title": [LIMA[0], PERU[0], ROME[0]],
        "sentences": [LIMA[1], PERU[1], ROME[1]],
    },
}
AS_TEXT = {
    **ROW,
    "supporting_facts": json.dumps(AS_LISTS["supporting_facts"]),
    "context": json.dumps(AS_LISTS["context"]),
}
AS_METADATA = {
    "id": "5a7",
    "question": ROW["question"],
    "golden_answers": ["on the coast"],
    "metadata": {key: AS_COLUMNS[key] for key in ("supporting_facts", "context")},
}
MUSIQUE = {
    "id": "2hop__1_2",
    "question": ROW["question"],
    "answer": "on the coast",
    "answer_aliases": ["coast"],
    "answerable": True,
    "paragraphs": [
        # Two paragraphs of one page: the title alone does not say which of them is gold.
        {"idx": 0, "title": "Lima", "paragraph_text": "Lima is old.", "is_supporting": False},
        {"idx": 1, "title": "Lima", "paragraph_text": LIMA_TEXT, "is_supporting": True},
        {"idx": 2, "title": "Peru", "paragraph_text": PERU[1][0], "is_supporting": True},
    ],
    "question_decomposition": [
        {"id": 1, "question": "capital of Peru", "paragraph_support_idx": 2},
        {"id": 2, "question": "where is #1", "paragraph_support_idx": 1},
    ],
}
DPR = {
    **ROW,
    "answers": ["on the coast"],
    "positive_ctxs": [{"title": "Lima", "text": LIMA_TEXT}],
    "negative_ctxs": [],
    "hard_negative_ctxs": [{"title": "Rome", "text": ROME[1][0]}],
}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("row", [AS_LISTS, AS_COLUMNS, AS_TEXT, AS_METADATA], ids=str)
def test_hotpotqa_in_its_layouts(tmp_path: Path, row: dict[str, Any]) -> None:
    written = write_paragraph_sets([str(write(tmp_path / "hotpot.jsonl", row))], tmp_path / "out")
    assert written.questions == {"hotpot.questions.jsonl": 1}
    documents = {one.id: one for one in load_corpus(tmp_path / "out" / "corpus.jsonl")}
    assert [one.title for one in documents.values()] == ["Lima", "Peru", "Rome"]
    (question,) = load_questions(tmp_path / "out" / "hotpot.questions.jsonl")
    assert (question.id, question.golden_answers) == ("5a7", ("on the coast",))
    assert question.gold_titles == ("Peru", "Lima")
    assert [documents[id_].title for id_ in question.gold_ids] == ["Lima", "Peru"]
    found = documents[question.gold_ids[0]]
    assert found.text == LIMA_TEXT


def test_parquet_gives_what_jsonl_gives(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([AS_COLUMNS]), tmp_path / "rows.parquet")
    write_paragraph_sets([str(tmp_path / "rows.parquet")], tmp_path / "one")
    write_paragraph_sets([str(write(tmp_path / "rows.jsonl", AS_COLUMNS))], tmp_path / "two")
    for name in ("corpus.jsonl", "rows.questions.jsonl"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


def test_musique_marks_paragraphs_and_not_pages(tmp_path: Path) -> None:
    write_paragraph_sets([str(write(tmp_path / "musique.jsonl", MUSIQUE))], tmp_path / "out")
    documents = {one.id: one for one in load_corpus(tmp_path / "out" / "corpus.jsonl")}
    (question,) = load_questions(tmp_path / "out" / "musique.questions.jsonl")
    assert len(documents) == 3
    assert question.hops == 2
    gold = [documents[id_].text for id_ in question.gold_ids]
    assert gold == [LIMA_TEXT, PERU[1][0]]
    assert question.golden_answers == ("on the coast", "coast")


def test_dpr_passages(tmp_path: Path) -> None:
    write_paragraph_sets([str(write(tmp_path / "dpr.jsonl", DPR))], tmp_path / "out")
    documents = {one.id: one.title for one in load_corpus(tmp_path / "out" / "corpus.jsonl")}
    (question,) = load_questions(tmp_path / "out" / "dpr.questions.jsonl")
    assert [documents[id_] for id_ in question.gold_ids] == ["Lima"]
    assert sorted(documents.values()) == ["Lima", "Rome"]


def test_sets_share_one_corpus(tmp_path: Path) -> None:
    """The same paragraph is one document, whichever set brings it and however it is spaced."""
    hotpot = write(tmp_path / "hotpot.jsonl", AS_LISTS)
    musique = write(tmp_path / "musique.jsonl", MUSIQUE)
    written = write_paragraph_sets([str(hotpot), str(musique)], tmp_path / "out")
    assert written.documents == 4  # Lima, Peru and Rome, and the other paragraph about Lima
    ids = [
        set(load_questions(tmp_path / "out" / f"{name}.questions.jsonl")[0].gold_ids)
        for name in ("hotpot", "musique")
    ]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 2


def test_the_hubs_layout_by_folder_and_split(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    write(folder / "train.jsonl", AS_COLUMNS, {**AS_COLUMNS, "id": "6b"})
    write(folder / "validation.jsonl", {**AS_COLUMNS, "id": "7c"})
    out = tmp_path / "out"
    main([f"hf:{folder}", "--split", "train", "validation", "--limit", "1", "--out", str(out)])
    assert {path.name for path in out.iterdir()} == {
        "hub.train.questions.jsonl",
        "hub.validation.questions.jsonl",
        "corpus.jsonl",
        "SOURCES.md",
    }
    (question,) = load_questions(out / "hub.validation.questions.jsonl")
    assert question.id == "7c"


def test_what_comes_out_can_be_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write(tmp_path / "musique.jsonl", MUSIQUE, {"answerable": False})
    main([str(rows), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "left out: 1" in said
    assert "3 documents" in said
    retriever = BM25Retriever.build(load_corpus(tmp_path / "out" / "corpus.jsonl"))
    assert retriever.search(["coast"], 1)[0][0].title == "Lima"
    sources = (tmp_path / "out" / "SOURCES.md").read_text()
    assert "musique.questions.jsonl | 1 |" in sources
    assert "CC BY-SA" in sources


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**ROW}], "no paragraphs"),
        ([{**ROW, "context": "a passage in words"}], "no paragraphs"),
        ([{**ROW, "context": {"title": ["a", "b"], "sentences": [["x"]]}}], "cannot be read"),
        ([{**ROW, "context": [["a"]]}], "must hold pairs of a title and sentences"),
        ([{**ROW, "context": [["a", [["b"]]]]}], "text of 'a' must be text or sentences"),
        ([{**ROW, "context": [[["a"], ["b"]]]}], "a title must be text, got"),
        ([{**ROW, "paragraphs": [{"title": "x"}]}], "text of 'x' must be text or sentences"),
        ([{**ROW, "paragraphs": ["x"]}], "'paragraphs' must be a list of objects"),
        ([{**ROW, "positive_ctxs": {"text": "x"}}], "'positive_ctxs' must be a list of objects"),
        ([{**ROW, "paragraphs": "[{'title'"}], "cannot be read"),
        ([{k: v for k, v in AS_LISTS.items() if k != "answer"}], "golden_answers"),
        ([AS_LISTS, AS_LISTS], "used before"),
        ([{"answerable": False}], "none of its rows has an answer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_row_leaves_nothing(tmp_path: Path, rows: list[Any], message: str) -> None:
    path = write(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(ValueError, match=message):
        write_paragraph_sets([str(path)], tmp_path / "out")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["rows.jsonl"]


def test_a_folder_with_data_is_not_overwritten(tmp_path: Path) -> None:
    rows = str(write(tmp_path / "rows.jsonl", AS_LISTS))
    write_paragraph_sets([rows], tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds corpus\.jsonl.* already"):
        write_paragraph_sets([rows], tmp_path / "out")


def test_titles_are_compared_as_the_corpus_holds_them(tmp_path: Path) -> None:
    """Marks composed or not, single or double blanks, and years as numbers."""
    row = {
        **ROW,
        "supporting_facts": [["Beyonce\u0301", 0], ["New  York", 0], [1984, 0]],
        "context": [["Beyonc\u00e9", ["a."]], ["New York", ["b."]], [1984, ["c."]], [None, ["d."]]],
    }
    written = write_paragraph_sets([str(write(tmp_path / "rows.jsonl", row))], tmp_path / "out")
    (question,) = load_questions(tmp_path / "out" / "rows.questions.jsonl")
    documents = {one.id: one for one in load_corpus(tmp_path / "out" / "corpus.jsonl")}
    assert [documents[id_].text for id_ in question.gold_ids] == ["a.", "b.", "c."]
    assert set(question.gold_titles) == {"Beyonc\u00e9", "New York", "1984"}
    assert written.without_gold == 0


def test_answerable_in_words(tmp_path: Path) -> None:
    rows = write(
        tmp_path / "rows.jsonl", {**AS_LISTS, "answerable": "True"}, {"answerable": "False"}
    )
    written = write_paragraph_sets([str(rows)], tmp_path / "out")
    assert (written.questions, written.unanswerable) == ({"rows.questions.jsonl": 1}, 1)


def test_folders_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write(tmp_path / "rows.jsonl", AS_LISTS)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; give a folder"):
        write_paragraph_sets([str(rows)], tmp_path / "file")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "SOURCES.md").write_text("my own")
    with pytest.raises(ValueError, match=r"holds SOURCES\.md already"):
        write_paragraph_sets([str(rows)], tmp_path / "own")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_paragraph_sets([str(rows)], Path())
    assert (tmp_path / "here" / "corpus.jsonl").is_file()


def test_two_files_of_one_name(tmp_path: Path) -> None:
    """The second would have overwritten the questions of the first."""
    (tmp_path / "other").mkdir()
    one = write(tmp_path / "rows.jsonl", AS_LISTS)
    two = write(tmp_path / "other" / "rows.jsonl", {**AS_LISTS, "id": "another"})
    with pytest.raises(ValueError, match=r"would both be written to rows\.questions\.jsonl"):
        write_paragraph_sets([str(one), str(two)], tmp_path / "out")


@pytest.mark.parametrize("name", ["hotpotqa", "2wikimultihopqa", "musique"])
def test_a_name_is_the_hubs(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline it fails at once and names the repository; nothing is left behind."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"cannot load hf:\w+/"):
        write_paragraph_sets([name], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_is_no_name_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"unknown data set 'hotpot': expected hotpotqa, .*hf:REPO"
    ):
        write_paragraph_sets(["hotpot"], tmp_path / "out")
