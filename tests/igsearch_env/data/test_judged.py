"""BRIGHT and BrowseComp-Plus in the layouts of their files, from disk to the table of recall."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from igsearch_env import BM25Retriever, SearchQAEnv, load_corpus, load_questions
from igsearch_env.cli.data import main
from igsearch_env.cli.recall import main as recall
from igsearch_env.data.judged import write_bright
from igsearch_env.data.questions import load_question_set

MOTHS = "why are insects attracted to light"
EXAMPLES: list[dict[str, Any]] = [
    {
        "query": MOTHS,
        "reasoning": "Phototaxis.",
        "id": "0",
        "excluded_ids": ["moths/insects_light.txt"],
        "gold_ids_long": ["moths/Phototaxis.txt"],
        "gold_ids": ["moths/Phototaxis_1.txt", "moths/Phototaxis_2.txt"],
        "gold_answer": "A page of text.",
    },
    {
        "query": "do trees sleep",
        "reasoning": "",
        "id": "1",
        "excluded_ids": ["N/A"],
        "gold_ids_long": ["trees/Circadian.txt"],
        "gold_ids": ["trees/Circadian_0.txt"],
        "gold_answer": "",
    },
]
DOCUMENTS = {
    "moths/insects_light.txt": "insects attracted to light insects attracted to light",
    "moths/Phototaxis_1.txt": "moths steer by light\nof the moon",
    "moths/Phototaxis_2.txt": "phototaxis is movement",
    "trees/Circadian_0.txt": "trees droop at night , as in sleep",
    "trees/Other.txt": "a wood",
}
LONG = {
    "moths/Phototaxis.txt": "moths steer by light . phototaxis",
    "trees/Circadian.txt": "trees sleep",
}


@pytest.fixture
def bright(tmp_path: Path) -> Path:
    folder = tmp_path / "BRIGHT"
    pages = [{"id": name, "content": text} for name, text in DOCUMENTS.items()]
    long = [{"id": name, "content": text} for name, text in LONG.items()]
    for part, rows in (("examples", EXAMPLES), ("documents", pages), ("long_documents", long)):
        (folder / part).mkdir(parents=True)
        file = folder / part / "biology-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(rows), file)
    for part, rows in (("examples", EXAMPLES[1:]), ("documents", pages)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / part / "pony.jsonl").write_text(text)
    return folder


def rows_of(*command: object) -> list[dict[str, Any]]:
    recall([str(one) for one in command])
    out = Path(str(command[command.index("--out") + 1]))
    rows: list[dict[str, Any]] = json.loads((out / "results.json").read_text())["rows"]
    return rows


def test_bright(bright: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    main(["--bright", str(bright), "--split", "biology", "pony", "--out", str(out)])
    assert "biology_long: 2 questions, 2 documents" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["biology", "biology_long", "pony"]
    assert {one.id: one.text for one in load_corpus(out / "biology")} == DOCUMENTS
    asked = load_question_set(out / "biology", answers_needed=False)
    assert asked.excluded_ids == {"0": ("moths/insects_light.txt",)}
    first, second = asked.questions
    assert (first.text, first.gold_ids) == (MOTHS, tuple(EXAMPLES[0]["gold_ids"]))
    assert second.gold_ids == ("trees/Circadian_0.txt",)
    (alone,) = load_question_set(out / "pony", answers_needed=False).questions
    assert alone.id == "1"

    BM25Retriever.build(load_corpus(out / "biology")).save(tmp_path / "index")
    (row,) = rows_of(
        *("--questions", out / "biology", "--index", tmp_path / "index"),
        *("--top-k", 1, "--out", tmp_path / "recall"),
    )
    best = BM25Retriever.load(tmp_path / "index").search([MOTHS], 1)[0][0]
    assert best.id == "moths/insects_light.txt"  # the page of the question itself
    assert row["recall"] == pytest.approx((1 / 2 + 1) / 2)
    assert row["ndcg"] == 1.0
    (all_of_it,) = rows_of(
        *("--questions", out / "biology", "--index", tmp_path / "index"),
        *("--top-k", 5, "--out", tmp_path / "recall"),
    )
    assert all_of_it["n"] == 2
    assert all_of_it["recall"] < 1  # no word of the question is in "phototaxis is movement"


def test_the_rows_of_bright_can_be_read_as_they_are(bright: Path) -> None:
    asked = load_question_set(bright / "examples" / "pony.jsonl", answers_needed=False)
    assert asked.questions[0].gold_ids == ("trees/Circadian_0.txt",)
    assert asked.excluded_ids == {}
    assert len(load_corpus(bright / "documents" / "pony.jsonl")) == len(DOCUMENTS)


def test_what_is_no_bright_is_refused(bright: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected one file aops-\*\.parquet or aops\.jsonl"):
        write_bright(str(bright), tmp_path / "out", ["aops"])
    (bright / "documents" / "pony.jsonl").write_text('{"id": "1", "text": "no content"}\n')
    with pytest.raises(ValueError, match="no 'content', which BRIGHT's documents have"):
        write_bright(str(bright), tmp_path / "out", ["pony"])
    assert list((tmp_path / "out").iterdir()) == []
    for words in (["--bright", "x", "nq"], [], ["nq", "--corpus", "x"]):
        with pytest.raises(SystemExit):
            main([*words, "--out", str(tmp_path / "out")])


@pytest.fixture
def browsecomp(tmp_path: Path) -> Path:
    def document(name: str, text: str) -> dict[str, str]:
        return {"docid": name, "text": text, "url": f"https://example.org/{name}"}

    held = document("5412", "---\ntitle: Arwa\n---\nThe event was held in Sanaa .")
    row = {
        "query_id": "769",
        "query": "Which city held the event of 2002 ?",
        "answer": "Sanaa",
        "gold_docs": [held],
        "evidence_docs": [held, document("7", "A list of events of 2002 .")],
        "negative_docs": [document("8", "Another city .")],
    }
    file = tmp_path / "decrypted.jsonl"
    file.write_text(json.dumps(row) + "\n")
    return file


def test_browsecomp_plus(browsecomp: Path, tmp_path: Path) -> None:
    out = tmp_path / "bcp"
    main(["--browsecomp-plus", str(browsecomp), "--out", str(out)])
    corpus = load_corpus(out)
    assert [one.id for one in corpus] == ["5412", "7", "8"]
    assert corpus[0].text.startswith("---\ntitle: Arwa")
    (question,) = load_questions(out)
    assert (question.golden_answers, question.gold_ids) == (("Sanaa",), ("5412", "7"))
    assert load_questions(out, split="gold")[0].gold_ids == ("5412",)
    env = SearchQAEnv([question], BM25Retriever.build(corpus), top_k=2, num_counterfactuals=0)
    env.reset(seed=0)
    *_, info = env.step("<search> event of 2002 </search>")
    assert {one.id for one in info["documents"]} == {"5412", "7"}

    whole = tmp_path / "corpus.jsonl"
    rows = [{"docid": f"{n}", "text": f"page {n}", "url": ""} for n in (5412, 7, 8, 9)]
    whole.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["--corpus", str(whole), "--out", str(tmp_path / "more")]
    main(["--browsecomp-plus", str(browsecomp), *more])
    assert len(load_corpus(tmp_path / "more")) == 4
    with pytest.raises(ValueError, match="is there already"):
        main(["--browsecomp-plus", str(browsecomp), *more])


def test_encrypted_rows_are_refused(browsecomp: Path, tmp_path: Path) -> None:
    row = json.loads(browsecomp.read_text())
    for broken, match in (
        ({**row, "evidence_docs": "kD8="}, "'evidence_docs' must be a list"),
        ({**row, "evidence_docs": []}, "give the decrypted rows"),
        ({**row, "query": None}, "no 'query'"),
    ):
        browsecomp.write_text(json.dumps(broken) + "\n")
        with pytest.raises(ValueError, match=match):
            main(["--browsecomp-plus", str(browsecomp), "--out", str(tmp_path / "x")])
