"""The seven benchmarks by name: from a folder, and through datasets in the layout of the hub."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from igsearch_env.data.benchmarks import BENCHMARKS, FOLDER_VARIABLE, HUB
from igsearch_env.data.questions import load_question_set, load_questions

FACTS = {"supporting_facts": {"title": ["Oki", "Oki", "Ama"], "sent_id": [0, 1, 0]}}
HOPS = {"question_decomposition": [{"support_paragraph": {"title": "Ama"}}, {"question": "?"}]}
METADATA: dict[str, Any] = {
    "nq": None,
    "triviaqa": None,
    "popqa": {"subj": "Oki", "prop": "capital", "s_wiki_title": "Oki Islands", "s_pop": 142},
    "hotpotqa": {"type": "bridge", "level": "hard", **FACTS},
    "2wikimultihopqa": {"type": "compositional", **FACTS},
    "musique": HOPS,
    "bamboogle": {},
}
TITLES = {
    "popqa": ("Oki Islands",),
    "hotpotqa": ("Oki", "Ama"),
    "2wikimultihopqa": ("Oki", "Ama"),
    "musique": ("Ama",),
}


def rows(name: str) -> list[dict[str, Any]]:
    """Two rows as the hub has them; their ids say the split only."""
    split = BENCHMARKS[name].split
    found = []
    for number, (place, answer) in enumerate({"Oki": "Ama", "Tobi": "Mill"}.items()):
        row = {"id": f"{split}_{number}", "question": f"what is the capital of {place} ?"}
        row |= {"golden_answers": [answer, f"{answer} Town"]}
        metadata = METADATA[name]
        found.append(row if metadata is None else {**row, "metadata": metadata})
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All seven, one of them in Parquet and one compressed."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for name, benchmark in BENCHMARKS.items():
        (tmp_path / name).mkdir()
        path = tmp_path / name / f"{benchmark.split}.jsonl"
        text = "".join(json.dumps(row) + "\n" for row in rows(name))
        if name == "hotpotqa":
            table = pyarrow.Table.from_pylist(rows(name))
            parquet.write_table(table, path.with_suffix(".parquet"))
        elif name == "musique":
            path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_read_by_name(folder: Path, name: str) -> None:
    found = load_question_set(name, folder=folder)
    first, second = found.questions
    assert (first.text, first.golden_answers) == (
        "what is the capital of Oki ?",
        ("Ama", "Ama Town"),
    )
    assert first.id == f"{name}-{BENCHMARKS[name].split}_0"
    assert first.dataset == second.dataset == name
    assert first.gold_titles == TITLES.get(name, ())
    assert (found.split, found.whole) == (BENCHMARKS[name].split, BENCHMARKS[name].size)
    assert Path(found.source).parent == folder / name
    assert str(found).startswith(f"{name}: 2 questions of the {found.split} split (")
    assert len(load_question_set(name, limit=1, folder=folder).questions) == 1


def test_the_sizes_are_those_of_the_papers() -> None:
    assert sum(benchmark.size for benchmark in BENCHMARKS.values()) == 51_713
    assert {name for name, one in BENCHMARKS.items() if one.split == "dev"} == {
        "hotpotqa",
        "2wikimultihopqa",
        "musique",
    }


def test_another_split_may_be_named(folder: Path) -> None:
    (folder / "nq" / "test.jsonl").rename(folder / "nq" / "dev.jsonl")
    found = load_question_set("nq:dev", folder=folder)
    assert (found.split, found.whole, found.questions[0].dataset) == ("dev", None, "nq:dev")
    with pytest.raises(ValueError, match=r"test.parquet in .*nq, which has none of them"):
        load_question_set("nq", folder=folder)


def test_two_files_of_one_split_are_refused(folder: Path) -> None:
    (folder / "hotpotqa" / "dev.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"has dev.jsonl and dev.parquet"):
        load_question_set("hotpotqa", folder=folder)


def test_the_folder_may_be_named_by_a_variable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    assert load_question_set("bamboogle") == load_question_set("bamboogle", folder=folder)


def test_other_names_are_those_of_load_questions(folder: Path) -> None:
    file = str(folder / "nq" / "test.jsonl")
    found = load_question_set(file, limit=1)
    assert (found.name, found.source, found.split, found.whole) == (file, file, None, None)
    assert found.questions == tuple(load_questions(file, limit=1))
    assert str(found) == f"{file}: 1 question"


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A folder that datasets takes for the hub's data set: same name, same configurations."""
    pytest.importorskip("datasets")
    repo = folder / "here" / HUB
    repo.mkdir(parents=True)
    configs = []
    for name, benchmark in BENCHMARKS.items():
        (repo / name).mkdir()
        text = "".join(json.dumps(row) + "\n" for row in rows(name))
        (repo / name / f"{benchmark.split}.jsonl").write_text(text, encoding="utf-8")
        configs.append(
            f"- config_name: {name}\n  data_files:\n  - split: {benchmark.split}\n"
            f"    path: {name}/{benchmark.split}.jsonl\n"
        )
    (repo / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    return lambda: monkeypatch.chdir(folder / "here")


@pytest.mark.parametrize("name", ["nq", "2wikimultihopqa"])
def test_without_a_folder_they_come_through_datasets(
    folder: Path, hub: Callable[[], None], name: str
) -> None:
    local = load_question_set(name, folder=folder)
    hub()
    found = load_question_set(name)
    assert found.source == f"hf:{HUB}:{name}:{BENCHMARKS[name].split}"
    assert found.questions == local.questions
