"""Where rows come from, seen through question sets."""

import gzip
import json
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
    assert question == Question("quizzes-0", "Capital of Italy?", ("Rome",))
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
