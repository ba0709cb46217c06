"""Where rows come from, seen through question sets."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from igsearch_env.data.questions import load_questions
from igsearch_env.episode import Question

LIMA = {"question": "Capital of Peru?", "golden_answers": ["Lima"]}
ROME = {"question": "Capital of Italy?", "golden_answers": ["Rome"]}


def write(path: Path, *rows: Any) -> Path:
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_unreadable_sources(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"built-in names are .*popqa, .*world-train, and no file"):
        load_questions("wordl-train")
    with pytest.raises(ValueError, match="empty"):
        load_questions(write(tmp_path / "set.jsonl", "\n"))
    with pytest.raises(ValueError, match=r"write hf:"):
        load_questions(tmp_path)
    with pytest.raises(ValueError, match=r"ends in \.jsonl, .*, \.parquet"):
        load_questions(write(tmp_path / "set.xlsx", "a,b"))


def test_damaged_files(tmp_path: Path) -> None:
    whole = write(tmp_path / "set.jsonl.gz", LIMA, ROME).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(ValueError, match="not a complete gzip file"):
        load_questions(tmp_path / "cut.jsonl.gz")
    (tmp_path / "set.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        load_questions(tmp_path / "set.parquet")


@pytest.mark.parametrize(
    ("suffix", "split"),
    [("::test", None), (":test", None), ("", "test"), (":default:test", "test")],
)
def test_a_hub_data_set(tmp_path: Path, hub_cache: None, suffix: str, split: str | None) -> None:
    folder = tmp_path / "quiz"
    folder.mkdir()
    row = {**LIMA, "metadata": {"supporting_facts": {"title": ["Peru"], "sent_id": [0]}}}
    write(folder / "train.jsonl", {**row, "id": "train_0"})
    write(folder / "test.jsonl", {**row, "id": "test_0"}, {**row, "id": "test_1"})
    questions = load_questions(f"hf:{folder}{suffix}", split=split)
    assert [q.id for q in questions] == ["test_0", "test_1"]
    assert questions[0].gold_titles == ("Peru",)


def test_a_hub_data_set_with_configurations(tmp_path: Path, hub_cache: None) -> None:
    folder = tmp_path / "quizzes"
    for name, row in (("peru", LIMA), ("italy", ROME)):
        (folder / name).mkdir(parents=True)
        write(folder / name / "train.jsonl", row)
    entries = "".join(
        f"- config_name: {name}\n  data_files: {name}/*.jsonl\n" for name in ("peru", "italy")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    (question,) = load_questions(f"hf:{folder}:italy")
    assert question == Question("quizzes-0", "Capital of Italy?", ("Rome",), "quizzes")
    with pytest.raises(ValueError, match=r"cannot load hf:.*france"):
        load_questions(f"hf:{folder}:france:train")


def test_hub_names_that_lead_nowhere(tmp_path: Path, hub_cache: None) -> None:
    folder = tmp_path / "quiz"
    folder.mkdir()
    for split in ("train", "test"):
        write(folder / f"{split}.jsonl", LIMA)
    with pytest.raises(ValueError, match=r"has the splits train, test, got ''"):
        load_questions(f"hf:{folder}")
    with pytest.raises(ValueError, match=r"has the splits train, test, got 'dev'"):
        load_questions(f"hf:{folder}::dev")
    with pytest.raises(
        ValueError, match="the name asks for split 'test', the argument for 'train'"
    ):
        load_questions(f"hf:{folder}::test", split="train")
    with pytest.raises(ValueError, match=r"expected hf:REPO\[:CONFIG\]\[:SPLIT\]"):
        load_questions("hf:a:b:c:d")
    with pytest.raises(ValueError, match="cannot load hf:"):
        load_questions(f"hf:{tmp_path / 'none'}")


@pytest.mark.parametrize(
    ("module", "name"), [("pyarrow", "set.parquet"), ("datasets", "hf:somewhere")]
)
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("set.parquet").touch()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "igsearch-env\[data\]"'):
        load_questions(name)


AS_LINE = (json.dumps(LIMA) + "\n").encode()


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (AS_LINE.decode().encode("utf-16"), "UTF-16; .*iconv -f UTF-16 -t UTF-8"),
        (AS_LINE.decode().encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8"),
        (AS_LINE.decode().encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8"),
        (AS_LINE.decode().encode("utf-32"), "iconv -f UTF-32 -t UTF-8"),
        (gzip.compress(AS_LINE.decode().encode("utf-16")), "iconv -f UTF-16 -t UTF-8"),
        (bz2.compress(AS_LINE), "unpack it first: bunzip2"),
        (lzma.compress(AS_LINE), "unpack it first: unxz"),
        (b"\x28\xb5\x2f\xfd\x04and so on", "unpack it first: zstd -d"),
        (b"PK\x03\x04and so on", "ZIP archive or an Excel workbook"),
        (b"PAR1and so on", r"end in \.parquet"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv"])
def test_files_that_are_no_text_in_utf8(
    tmp_path: Path, content: bytes, hint: str, suffix: str
) -> None:
    path = tmp_path / f"set.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"set\.{suffix} is .*{hint}"):
        load_questions(path)


def test_what_iconv_is_advised_to_do_works(tmp_path: Path) -> None:
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    text = "question,answer\nWho sings Déjà Vu?,Beyoncé\n"
    for encoding in ("WINDOWS-1252", "UTF-16", "UTF-16LE", "UTF-16BE"):
        old.write_bytes(text.encode(encoding))
        with pytest.raises(ValueError, match=f"iconv -f {encoding} -t UTF-8"):
            load_questions(old)
        done = subprocess.run(
            ["iconv", "-f", encoding, "-t", "UTF-8", old], capture_output=True, check=True
        )
        new.write_bytes(done.stdout)
        assert load_questions(new)[0].golden_answers == ("Beyoncé",)


def test_packed_files_by_name(tmp_path: Path) -> None:
    for suffix, command in ((".zst", "zstd -d"), (".bz2", "bunzip2"), (".xz", "unxz")):
        path = write(tmp_path / f"set.jsonl{suffix}", LIMA)
        with pytest.raises(ValueError, match=f"unpack it first: {command} .*{suffix}$"):
            load_questions(path)


@pytest.mark.parametrize(
    "table",
    [
        {"question": ["Capital of Peru?"], "golden_answers": [["Lima"]]},
        {"question": {"0": "Capital of Peru?"}, "golden_answers": {"0": ["Lima"]}},
        {"0": LIMA, "1": ROME},
        {"columns": ["question"], "index": [0], "data": [["Capital of Peru?"]]},
    ],
    ids=["list", "columns", "index", "split"],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_tables_in_one_object(tmp_path: Path, table: dict[str, Any], indent: int | None) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps(table, indent=indent))
    with pytest.raises(ValueError, match=r'one object per row.*orient="records", lines=True'):
        load_questions(path)


@pytest.mark.parametrize("name", ["conversations", "messages"])
def test_conversations_are_refused_with_a_hint(tmp_path: Path, name: str) -> None:
    turns = [{"from": "human", "value": "Capital of Peru?"}, {"from": "gpt", "value": "Lima."}]
    with pytest.raises(ValueError, match=f"of '{name}', write what is asked as 'question'"):
        load_questions(write(tmp_path / "set.jsonl", {name: turns}))


def test_columns_in_any_case(tmp_path: Path) -> None:
    row = {"ID": "a", "Question": "Capital of Peru?", "Answer": "Lima"}
    expected = [Question("a", "Capital of Peru?", ("Lima",), "set")]
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist([row])
    parquet.write_table(table, tmp_path / "set.parquet")
    write(tmp_path / "set.jsonl", row)
    write(tmp_path / "set.csv", "ID,Question,Answer\na,Capital of Peru?,Lima\n")
    for suffix in ("jsonl", "csv", "parquet"):
        assert load_questions(tmp_path / f"set.{suffix}") == expected
    both = {**row, "question": "Capital of Italy?", "answer": "Rome"}
    (kept,) = load_questions(write(tmp_path / "both.jsonl", both))
    assert kept.text == "Capital of Italy?"
    with pytest.raises(ValueError, match="more than one column 'answer'"):
        load_questions(write(tmp_path / "twice.csv", "question,answer,Answer\na?,b,c\n"))


def test_binary_columns_of_parquet_are_text(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    answers = pa.array([[b"Lima"]], pa.list_(pa.binary()))
    asked = pa.array(["Capital of Perú?".encode()], pa.large_binary())
    parquet.write_table(
        pa.table({"question": asked, "golden_answers": answers}), tmp_path / "set.parquet"
    )
    (question,) = load_questions(tmp_path / "set.parquet")
    assert (question.text, question.golden_answers) == ("Capital of Perú?", ("Lima",))
    broken = pa.table({"question": pa.array([b"\xff\xfe"], pa.binary()), "answer": ["Lima"]})
    parquet.write_table(broken, tmp_path / "broken.parquet")
    with pytest.raises(ValueError, match=r"broken\.parquet, row 0: expected text in UTF-8"):
        load_questions(tmp_path / "broken.parquet")


def test_qrels_in_another_encoding(tmp_path: Path) -> None:
    write(tmp_path / "queries.jsonl", {"_id": "q1", "text": "Capital of Peru?", "answer": "Lima"})
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_bytes("q1\td1\t1\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"test\.tsv is text in UTF-16"):
        load_questions(tmp_path)


def test_offline_hints_name_options_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--benchmarks helps with a benchmark's name, and with no other data set of the hub."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("IGSEARCH_BENCHMARKS", raising=False)
    with pytest.raises(ValueError, match="--benchmarks FOLDER"):
        load_questions("nq")
    with pytest.raises(ValueError, match=r"give the path of one$"):
        load_questions("hf:somebody/something")
