"""Question sets and corpora in the layouts that others publish them in."""

from __future__ import annotations

import gzip
import json
import logging
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from igsearch_env import SearchQAEnv
from igsearch_env.cli.recall import main as recall
from igsearch_env.data.corpus import load_corpus
from igsearch_env.data.questions import load_question_set, load_questions
from igsearch_env.episode import Document, Question
from igsearch_env.retrieval.bm25 import BM25Retriever

PAGES = [Document("d 1", "Lima", "The capital\u2028of Peru."), Document("2", "", "Rome")]


DPR = 'id\ttext\ttitle\nd 1\t"The capital\u2028of Peru."\tLima\n2\tRome\t\n'


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "quiz"
    pages = [{"_id": p.id, "title": p.title, "text": p.text, "metadata": {}} for p in PAGES]
    write(folder / "corpus.jsonl", lines(*pages))
    queries = [{"_id": f"q{i}", "text": f"Capital {i}?", "metadata": {}} for i in range(4)]
    queries[0]["metadata"] = {"answer": "Lima", "supporting_facts": [["Lima", 0]]}
    write(folder / "queries.jsonl", lines(*queries))
    head = "query-id\tcorpus-id\tscore\n"
    write(folder / "qrels" / "test.tsv", f"{head}q0\t2\t1\nq0\td 1\t2\nq2\t2\t0\n")
    write(folder / "qrels" / "train.tsv", "q1 0 2 1\n")  # as TREC writes them
    return folder


def test_beir(beir: Path) -> None:
    assert load_corpus(beir) == load_corpus(beir / "corpus.jsonl") == PAGES
    with pytest.raises(ValueError, match=r"queries.jsonl, line 3: no column 'golden_answers'"):
        load_questions(beir)
    for source in (beir, beir / "queries.jsonl"):
        first, second = load_question_set(source, answers_needed=False).questions
        assert first == Question(
            "q0", "Capital 0?", ("Lima",), beir.name, None, ("d 1", "2"), ("Lima",)
        )
        assert (second.id, second.gold_ids) == ("q2", ())
    (other,) = load_question_set(beir, split="train", answers_needed=False).questions
    assert (other.id, other.gold_ids) == ("q1", ("2",))
    with pytest.raises(ValueError, match=r"no dev.tsv; choose one of its splits: test, train"):
        load_questions(beir, split="dev")
    with pytest.raises(ValueError, match="'q2' has no golden answers"):
        SearchQAEnv(load_question_set(beir, answers_needed=False).questions)


def test_recall_needs_no_answers(beir: Path, tmp_path: Path) -> None:
    BM25Retriever.build(load_corpus(beir)).save(tmp_path / "index")
    for source in (beir, beir / "queries.jsonl"):
        names = ["--questions", str(source), "--index", str(tmp_path / "index")]
        recall([*names, "--top-k", "2", "--out", str(tmp_path / "out")])
        (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
        assert (row["n"], row["recall"]) == (1, 0.5)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("psgs_w100.tsv", DPR),
        ("psgs_w100.tsv.gz", DPR),
        ("collection.tsv", "d 1\tThe capital\u2028of Peru.\tLima\n2\tRome\t\n"),
        ("wiki.csv", "ID,Title,Text\r\nd 1,Lima,The capital\u2028of Peru.\r\n2,,Rome\r\n"),
        (
            "wiki.json",
            json.dumps([{"docid": p.id, "title": p.title, "text": p.text} for p in PAGES]),
        ),
        ("wiki.json", lines(*({"id": p.id, "title": p.title, "text": p.text} for p in PAGES))),
        (
            "pyserini.jsonl",
            lines(
                {"id": "d 1", "contents": "Lima\nThe capital\u2028of Peru."},
                {"id": 2, "contents": "Rome"},
            ),
        ),
        (
            "kilt.jsonl",
            lines(
                {"_id": "d 1", "wikipedia_title": "Lima", "text": ["The capital\u2028of Peru.\n"]},
                {"_id": "2", "wikipedia_title": "", "text": ["Rome\n"]},
            ),
        ),
    ],
)
def test_corpora(tmp_path: Path, name: str, text: str) -> None:
    assert load_corpus(write(tmp_path / name, text)) == PAGES


def test_quotes_of_a_table(tmp_path: Path) -> None:
    text = 'id\ttext\ttitle\n1\t"He said ""no"".\nThen he left."\tIt\'s\n'
    (page,) = load_corpus(write(tmp_path / "a.tsv", text))
    assert page == Document("1", "It's", 'He said "no".\nThen he left.')
    long = "x" * 200_000
    assert load_corpus(write(tmp_path / "b.tsv", f"1\t{long}\n"))[0].text == long


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('id\ttext\n1\t"Heroes" is a song\n', r"line 1 or the row after it: .* must end with one"),
        ('id\ttext\n1\t"Heroes\n2\tx\n', r"line 1 or the row after it: .* must end with one"),
        ("id\ttext\n1\ta\tb\n", r"line 2: expected 2 columns, 'id', 'text', got 3"),
        ("a\tb\tc\td\n", r"line 1: expected a header that names the columns, got 'a', 'b'"),
        ("id\ttext\n1\t\n", r"line 2: 'text' is empty; give the document a text"),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_corpus(write(tmp_path / "a.tsv", text))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"id": "", "text": "Lima"}\n', "line 1: 'id' is empty; give the document an"),
        ("a.jsonl", '{"id": "  ", "text": "Lima"}\n', "line 1: 'id' is empty"),
        ("a.jsonl", '{"docid": null, "text": "Lima"}\n', "line 1: 'docid' is empty"),
        ("a.csv", "id,text\n,Lima\n", "line 2: 'id' is empty"),
        ("a.jsonl", '{"id": true, "text": "Lima"}\n', "must be a string or a whole number, got T"),
    ],
)
def test_an_empty_id_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_corpus(write(tmp_path / name, content))


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("id,text\n1,é\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.csv: expected text in UTF-8"):
        load_corpus(tmp_path / "a.csv")


LIMA = ("Capital of Peru?", ("Lima", "City of Kings"))


@pytest.mark.parametrize(
    ("name", "text", "titles"),
    [
        ("nq.csv", "Capital of Peru?\t['Lima', 'City of Kings']\n", ()),
        ("a.csv", 'Question,Answer\nCapital of Peru?,"[""Lima"", ""City of Kings""]"\n', ()),
        ("a.tsv", "query\tanswers\nCapital of Peru?\tLima<|answer_split|>City of Kings\n", ()),
        (
            "dpr.json",
            [{"question": LIMA[0], "answers": LIMA[1], "positive_ctxs": [{"title": "T"}]}],
            ("T",),
        ),
        (
            "hotpot.json",
            [
                {
                    "_id": "x",
                    "question": LIMA[0],
                    "answer": LIMA[1],
                    "supporting_facts": [["T", 0], ["T", 1]],
                }
            ],
            ("T",),
        ),
        (
            "squad.json",
            {
                "version": "1",
                "data": [
                    {"question": LIMA[0], "answers": {"text": LIMA[1], "answer_start": [1, 2]}}
                ],
            },
            (),
        ),
        (
            "musique.jsonl",
            [
                {
                    "question": LIMA[0],
                    "answer": "Lima",
                    "answer_aliases": ["City of Kings"],
                    "paragraphs": [
                        {"title": "F", "is_supporting": False},
                        {"title": "T", "is_supporting": True},
                    ],
                }
            ],
            ("T",),
        ),
        (
            "popqa.jsonl",
            [
                {
                    "id": 3,
                    "question": LIMA[0],
                    "possible_answers": json.dumps(LIMA[1]),
                    "s_wiki_title": "T",
                }
            ],
            ("T",),
        ),
        (
            "kilt.jsonl",
            [
                {
                    "id": "x",
                    "input": LIMA[0],
                    "output": [
                        {"answer": "Lima", "provenance": [{"title": "T", "wikipedia_id": "3"}]},
                        {"provenance": [{"title": "U"}]},
                        {"answer": "City of Kings"},
                    ],
                }
            ],
            ("T", "U"),
        ),
        (
            "skyrl.jsonl",
            [
                {
                    "prompt": [{"role": "user", "content": f"... Question: {LIMA[0]}"}],
                    "env_class": "search",
                    "reward_spec": {"method": "rule", "ground_truth": {"target": LIMA[1]}},
                }
            ],
            (),
        ),
        (
            "igpo.jsonl",
            [
                {
                    "prompt": [{"role": "user", "content": "x"}],
                    "reward_model": {"ground_truth": "Lima<|answer_split|>City of Kings"},
                    "extra_info": {"question": LIMA[0]},
                }
            ],
            (),
        ),
    ],
)
def test_question_sets(tmp_path: Path, name: str, text: Any, titles: tuple[str, ...]) -> None:
    if not isinstance(text, str):
        text = lines(*text) if name.endswith("l") else json.dumps(text, indent=1)
    (question,) = load_questions(write(tmp_path / name, text))
    assert (question.text, question.golden_answers) == LIMA
    assert question.gold_titles == titles


def test_json_that_holds_no_rows(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match='expected a list of objects, or an object with a list "data"'
    ):
        load_questions(write(tmp_path / "a.json", '{\n"version": 1\n}'))
    with pytest.raises(ValueError, match="row 0: expected a JSON object, got str"):
        load_questions(write(tmp_path / "a.json", '["a"]'))
    with pytest.raises(ValueError, match="expected JSON in UTF-8"):
        load_questions(write(tmp_path / "a.json", "[1,"))


def test_benchmarks_are_known_wherever_questions_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"id": "test_0", "question": LIMA[0], "golden_answers": LIMA[1]}
    write(tmp_path / "nq" / "test.jsonl", lines(row))
    monkeypatch.setenv("IGSEARCH_BENCHMARKS", str(tmp_path))
    expected = Question("nq-test_0", *LIMA, dataset="nq")
    assert load_questions("nq") == load_questions("nq", split="test") == [expected]
    env = SearchQAEnv("nq", BM25Retriever.build(PAGES), top_k=1, num_counterfactuals=0)
    assert LIMA[0] in env.reset()[0]
    with pytest.raises(ValueError, match="the name asks for split 'test', the argument for 'dev'"):
        load_questions("nq:test", split="dev")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub at an address where nobody listens."""
    pytest.importorskip("datasets")
    from huggingface_hub import constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.delenv("IGSEARCH_BENCHMARKS", raising=False)


def test_without_a_network_the_hub_is_not_asked_again(
    tmp_path: Path, no_hub: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(ValueError, match="cannot be reach") as at:
        load_questions("nq")
    assert "etry" not in caplog.text
    assert re.search(r"for a benchmark, name the folder .*--benchmarks", str(at.value))
    row = {"id": "test_0", "question": LIMA[0], "golden_answers": LIMA[1]}
    file = write(tmp_path / "nq" / "test.jsonl", lines(row))  # as the message says
    assert load_question_set("nq", folder=tmp_path).questions[0].text == LIMA[0]
    assert load_questions(file)[0].text == LIMA[0]


def test_the_hints_for_names_of_data_sets_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"):
        row = {"question": split, "golden_answers": ["x"]}
        write(tmp_path / "quiz" / f"{split}.jsonl", lines(row))
    with pytest.raises(ValueError, match="for a folder of data files, write ") as first:
        load_questions(tmp_path / "quiz")
    hint = str(first.value).rpartition("write ")[2]
    with pytest.raises(ValueError, match="name one of them, as in ") as second:
        load_questions(hint)
    hint = str(second.value).rpartition("as in ")[2]
    assert len(load_questions(hint)) == 1


@pytest.mark.parametrize("first", ["0\tThe Manhattan Project", '0\t"The Manhattan" Project'])
def test_a_quote_in_a_table_without_header_is_a_character(tmp_path: Path, first: str) -> None:
    """MS MARCO's collection.tsv and queries.tsv hold such lines."""
    table = first + '\n1\t"Heroes" is a\rsong\n2\t12" records\r\n'
    pages = load_corpus(write(tmp_path / "collection.tsv", table))
    assert [page.text for page in pages[1:]] == ['"Heroes" is a\rsong', '12" records']
    assert pages[0].text == first.partition("\t")[2]
    asked = write(tmp_path / "queries.dev.tsv", table)
    found = load_question_set(asked, answers_needed=False).questions
    assert [question.text for question in found] == [page.text for page in pages]


def test_whole_numbers_that_pandas_wrote(tmp_path: Path) -> None:
    rows = [
        {"question": "a", "answer": "b", "hops": 2.0, "gold_ids": "[1, 22]"},
        {"question": "c", "answer": "[1, 2]", "hops": float("nan"), "gold_ids": "[REC]"},
    ]
    first, second = load_questions(write(tmp_path / "q.jsonl", lines(*rows)))
    assert (first.hops, first.gold_ids) == (2, ("1", "22"))
    assert (second.hops, second.gold_ids) == (None, ("[REC]",))
    assert second.golden_answers == ("[1, 2]",)


def test_a_data_list_on_one_line(tmp_path: Path) -> None:
    rows = {"data": [{"question": "a", "answer": "b"}]}
    for indent in (None, 1):
        path = write(tmp_path / "q.json", json.dumps(rows, indent=indent))
        assert load_questions(path)[0].text == "a"


def test_the_split_in_an_object_that_is_text(tmp_path: Path) -> None:
    table = "question,answer,extra_info\na,b,{'split': 'dev'}\nc,d,{'split': 'train'}\n"
    path = write(tmp_path / "q.csv", table)
    assert [question.text for question in load_questions(path, split="dev")] == ["a"]


def test_squad_as_questions_and_as_a_corpus(tmp_path: Path) -> None:
    answers = [{"text": "Lima", "answer_start": 0}, {"text": "Lima", "answer_start": 9}]
    asked = [
        {"id": "s1", "question": "Capital of Peru?", "answers": answers, "is_impossible": False},
        {"id": "s2", "question": "Capital of Mu?", "answers": [], "is_impossible": True},
    ]
    texts = [{"context": "Lima is Peru's.", "qas": asked}, {"context": "More.", "qas": []}]
    for indent in (None, 1):
        data = json.dumps({"version": "v2.0", "data": [{"title": "Lima", "paragraphs": texts}]})
        file = write(tmp_path / "dev.json", json.dumps(json.loads(data), indent=indent))
        assert load_questions(file) == [
            Question("s1", "Capital of Peru?", ("Lima",), "dev", gold_titles=("Lima",))
        ]
        assert load_corpus(file) == [
            Document("Lima-0", "Lima", "Lima is Peru's."),
            Document("Lima-1", "Lima", "More."),
        ]


def test_triviaqa_as_published(tmp_path: Path) -> None:
    row = {
        "Question": "Capital of Peru?",
        "QuestionId": "tc_1",
        "Answer": {"Value": "Lima", "Aliases": ["Lima", "Lima, Peru"], "Type": "WikipediaEntity"},
    }
    for data in ({"Data": [row], "Domain": "Web"}, [row]):
        file = write(tmp_path / "web.json", json.dumps(data))
        (question,) = load_questions(file)
        assert (question.id, question.text) == ("tc_1", "Capital of Peru?")
        assert set(question.golden_answers) == {"Lima", "Lima, Peru"}


def test_dpr_as_published(tmp_path: Path) -> None:
    contexts = [{"title": "Lima", "text": "It is.", "score": 1, "passage_id": "7"}]
    row = {
        "dataset": "nq_dev",
        "question": "capital of peru",
        "answers": ["Lima"],
        "positive_ctxs": contexts,
        "negative_ctxs": [],
        "hard_negative_ctxs": contexts,
    }
    (question,) = load_questions(write(tmp_path / "nq-dev.json", json.dumps([row], indent=4)))
    assert question == Question(
        "nq-dev-0", "capital of peru", ("Lima",), "nq_dev", gold_titles=("Lima",)
    )


def test_nq_open_and_the_original(tmp_path: Path) -> None:
    opened = write(tmp_path / "open.jsonl", lines({"question": "capital?", "answer": ["Lima"]}))
    assert load_questions(opened)[0].golden_answers == ("Lima",)
    original = {"example_id": 7, "question_text": "capital?", "document_text": "Lima", "a": []}
    with pytest.raises(ValueError, match=r"line 1: .*take NQ-open, .*or --questions nq"):
        load_questions(write(tmp_path / "v1.0-simplified.jsonl", lines(original)))


def test_files_that_are_not_what_their_names_say(tmp_path: Path) -> None:
    row = lines({"question": "capital?", "answer": "Lima"})
    plain = write(tmp_path / "one.jsonl.gz", row)
    zipped = tmp_path / "two.jsonl"
    zipped.write_bytes(plain.read_bytes())
    plain.write_text(row)
    for file in (plain, zipped):
        assert load_questions(file)[0].golden_answers == ("Lima",)
    sheet = write(tmp_path / "three.csv", "\ufeffquestion;answer\r\ncapital?;Lima\r\n")
    assert load_questions(sheet)[0].golden_answers == ("Lima",)


@pytest.mark.parametrize("name", ["deep.jsonl", "deep.json"])
def test_a_row_that_is_nested_without_end_is_named(tmp_path: Path, name: str) -> None:
    deep = write(tmp_path / name, '{"question": "?", "answer": ' + "[" * 9000 + "]" * 9000 + "}\n")
    with pytest.raises(ValueError, match=rf"{name}.*: expected .*JSON"):
        load_questions(deep)
