from __future__ import annotations

import json
import math
import socket
from pathlib import Path

import pytest
from transformers import AutoTokenizer

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
    assert row["recall_interval"][0] < 0.5 < row["recall_interval"][1]
    both = 1 + 1 / math.log2(3)  # two gold documents, the best of which comes first or second
    second = 1 / math.log2(3)
    ahead = [one.id for one in BM25Retriever.load(index).search(["Peru or Italy"], 2)[0]]
    ndcg = [1.0, (1.0 if ahead[0] == "lima" else second) / both, 0.0]
    assert row["ndcg"] == pytest.approx(sum(ndcg) / 3)
    assert row["size_per_gold"] == pytest.approx((4 + 8 + 0) / 2)  # four words each, two found
    low, high = row["size_per_gold_interval"]
    assert low <= row["size_per_gold"] <= high
    assert row["questions"] == "one.questions"
    assert "0.500" in capsys.readouterr().out
    main([*arguments, "--top-k", "1"])
    (row,) = json.loads((out / "results.json").read_text())["rows"]
    assert (row["n"], row["recall"]) == (4, pytest.approx(2.5 / 4))


def test_questions_without_gold_passages_are_refused(index: Path, tmp_path: Path) -> None:
    blank = write_questions(tmp_path / "q.jsonl", [("Peru", [], "dev")])
    with pytest.raises(ValueError, match="none of the 1 questions of q names its gold documents"):
        main(["--questions", str(blank), "--index", str(index), "--out", str(tmp_path / "out")])


def test_ndcg_and_tokens_against_a_slow_form(index: Path, tmp_path: Path) -> None:
    rows = [
        ("Peru Ecuador lies in Italy", ["rome", "missing"], "dev"),
        ("Ecuador Italy lies", ["quito", "rome", "lima"], "dev"),
        ("nothing", ["rome"], "dev"),
    ]
    file = write_questions(tmp_path / "q.jsonl", rows)
    tiny = Path(__file__).parents[3] / "agents" / "world-tiny"
    command = ["--questions", str(file), "--index", str(index), "--tokenizer", str(tiny)]
    main([*command, "--top-k", "3", "--out", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    values, tokens, found = [], 0, 0
    for text, gold, _ in rows:
        best = BM25Retriever.load(index).search([text], 3)[0]
        gains = [1 / math.log2(place + 2) for place, one in enumerate(best) if one.id in gold]
        values.append(sum(gains) / sum(1 / math.log2(n + 2) for n in range(min(3, len(gold)))))
        texts = [f"{one.title}\n{one.text}" for one in best]
        tokens += sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts)
        found += len(gains)
    (row,) = results["rows"]
    assert results["unit"] == "tokens"
    assert row["ndcg"] == pytest.approx(sum(values) / 3)
    assert row["size_per_gold"] == pytest.approx(tokens / found)
    with pytest.raises(ValueError, match="cannot load the tokenizer of 'nowhere'"):
        main([*command[:-1], "nowhere", "--out", str(tmp_path / "out")])


def test_nothing_found_has_no_size_per_document(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_questions(tmp_path / "q.jsonl", [("Chile", ["rome"], "dev")])
    main(["--questions", str(file), "--index", str(index), "--out", str(tmp_path / "out")])
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert (row["recall"], row["ndcg"], row["size_per_gold"]) == (0.0, 0.0, None)
    assert row["recall_interval"] is row["ndcg_interval"] is None, "of a single question"
    assert "±" not in capsys.readouterr().out


def test_questions_of_another_corpus_are_refused(index: Path, tmp_path: Path) -> None:
    file = write_questions(tmp_path / "q.jsonl", [("Peru", ["p1"], "dev"), ("x", ["p2"], "dev")])
    with pytest.raises(ValueError, match=r"bm25, q: none of the 2 gold_ids .* 'p1', .* 'rome'"):
        main(["--questions", str(file), "--index", str(index), "--out", str(tmp_path / "out")])
    titled = [Document(name, name, text) for name, text in PAGES.items()]
    BM25Retriever.build(titled).save(tmp_path / "titled")
    row = {"question": "Peru", "golden_answers": ["x"], "gold_titles": ["Bern"]}
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"none of the 1 gold_titles .* 'Bern'.* 'rome'"):
        main(
            [
                *("--questions", str(file), "--index", str(tmp_path / "titled")),
                *("--out", str(tmp_path / "out")),
            ]
        )


def test_a_failing_index_loses_nothing_of_those_before(index: Path, tmp_path: Path) -> None:
    file = write_questions(tmp_path / "q.jsonl", [("Peru", ["lima"], "dev")])
    BM25Retriever.build([Document("lima", "", "Lima")]).save(tmp_path / "small")
    out = tmp_path / "out"
    both = ["--index", str(index), str(tmp_path / "small")]
    with pytest.raises(ValueError, match=r"small has 1 documents; --top-k 2 is too many"):
        main(["--questions", str(file), *both, "--top-k", "2", "--out", str(out)])
    (row,) = json.loads((out / "results.json").read_text())["rows"]
    assert row["recall"] == 1.0


def test_questions_may_know_their_documents_in_two_ways(index: Path, tmp_path: Path) -> None:
    """One kind is not taken for the other where nothing is found."""
    titled = [Document(name, name, text) for name, text in PAGES.items()]
    BM25Retriever.build(titled).save(tmp_path / "titled")
    file = tmp_path / "q.jsonl"
    rows = [{"gold_ids": ["gone"]}, {"gold_titles": ["rome"]}]
    common = {"question": "Chile", "golden_answers": ["x"]}
    file.write_text("".join(json.dumps({**common, **row}) + "\n" for row in rows))
    where = ["--index", str(tmp_path / "titled"), "--out", str(tmp_path / "out"), "--top-k", "1"]
    main(["--questions", str(file), *where])
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert (row["n"], row["recall"]) == (2, 0.0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "q.jsonl").write_text(file.read_text())
    with pytest.raises(ValueError, match="two question sets have the name 'q'"):
        main(["--questions", str(file), str(tmp_path / "other" / "q.jsonl"), *where])


def test_a_server_that_does_not_answer_is_named(index: Path, tmp_path: Path) -> None:
    file = write_questions(tmp_path / "q.jsonl", [("Peru", ["lima"], "dev")])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    where = ["--index", str(index), f"http://127.0.0.1:{port}/retrieve", "--out", str(tmp_path)]
    with pytest.raises(ValueError, match=rf"127.0.0.1:{port}/retrieve, q: "):
        main(["--questions", str(file), *where])
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == 1
