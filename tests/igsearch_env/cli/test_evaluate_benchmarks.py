"""The seven benchmarks in one run, offline, on files in the layout of the hub."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from igsearch_env.data.benchmarks import BENCHMARKS, FOLDER_VARIABLE
from tests.igsearch_env.cli.evaluating import evaluate, read_json, read_records, write_rows

PLACES = {"Oki": "Ama", "Tobi": "Mill", "Rota": "Song"}
PASSAGES = [
    {"id": str(number), "contents": f'"{place}"\nThe capital of {place} is {capital}.'}
    for number, (place, capital) in enumerate(PLACES.items())
]


def facts(titles: Sequence[str]) -> dict[str, Any]:
    return {"supporting_facts": {"title": list(titles), "sent_id": [0] * len(titles)}}


def hops(titles: Sequence[str]) -> dict[str, Any]:
    return {"question_decomposition": [{"support_paragraph": {"title": t}} for t in titles]}


METADATA = {
    "popqa": lambda titles: {"s_wiki_title": titles[0]},
    "hotpotqa": facts,
    "2wikimultihopqa": facts,
    "musique": hops,
}


def hub_rows(name: str, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Question records as the hub has them."""
    rows = []
    for number, record in enumerate(records):
        row = {"id": f"{BENCHMARKS[name].split}_{number}", "question": record["question"]}
        row |= {"golden_answers": record["golden_answers"]}
        titles = record.get("supporting_titles") or record.get("gold_titles")
        if titles and name in METADATA:
            row["metadata"] = METADATA[name](titles)
        rows.append(row)
    return rows


def write_hub(folder: Path, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    for name, found in records.items():
        (folder / name).mkdir(parents=True)
        write_rows(folder / name / f"{BENCHMARKS[name].split}.jsonl", hub_rows(name, found))
    return folder


@pytest.fixture
def small(tmp_path: Path) -> list[object]:
    """All seven with 1 to 3 questions each, and the arguments to ask them."""
    records = [
        {"question": f"What is the capital of {place}?", "golden_answers": [capital]}
        | {"gold_titles": [place]}
        for place, capital in PLACES.items()
    ]
    sets = {name: records[: 1 + place % 3] for place, name in enumerate(BENCHMARKS)}
    write_hub(tmp_path / "hub", sets)
    corpus = write_rows(tmp_path / "corpus.jsonl", PASSAGES)
    return ["--benchmarks", tmp_path / "hub", "--corpus", corpus, "--top-k", 1, "--threads", 1]


def test_all_seven_in_one_run(
    small: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run = ("--questions", "benchmarks", *small, "--agent", "search_once", "--samples", 2)
    assert evaluate(*run, "--out", out) == 0
    results, manifest = read_json(out / "results.json"), read_json(out / "manifest.json")
    sizes = [1 + place % 3 for place in range(7)]
    assert list(results["datasets"]) == list(BENCHMARKS)
    assert [row["n"] for row in results["datasets"].values()] == sizes
    assert results["micro"]["n"] == sum(sizes) == 13
    assert results["macro"]["datasets"] == 7
    known = [name for name, row in results["datasets"].items() if "gold_documents" in row]
    assert known == ["popqa", "hotpotqa", "2wikimultihopqa", "musique"]
    assert results["macro"]["gold_documents"] == 1.0
    assert results["macro"]["gold_documents_datasets"] == 4
    described = manifest["inputs"]["questions"]
    assert [one["name"] for one in described] == list(BENCHMARKS)
    assert [one["size"] for one in described] == sizes
    assert [one["size_as_published"] for one in described] == [b.size for b in BENCHMARKS.values()]
    printed = capsys.readouterr().out
    assert "nq: 1 question of the test split (3,610 as published)" in printed
    assert "musique: 3 questions of the dev split (2,417 as published)" in printed
    records = read_records(out / "episodes.jsonl")
    asked = [record["question"]["id"] for record in records]
    assert asked[:2] == ["nq-test_0", "triviaqa-test_0"]
    assert asked[:13] == asked[13:]


def test_the_folder_may_be_named_by_a_variable_and_sets_by_split(
    small: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(small[1]))
    run = ("--questions", "bamboogle", "hotpotqa:dev", *small[2:], "--agent", "oracle")
    assert evaluate(*run, "--limit", 1, "--out", tmp_path / "out") == 0
    results = read_json(tmp_path / "out" / "results.json")
    assert [(name, row["n"]) for name, row in results["datasets"].items()] == [
        ("bamboogle", 1),
        ("hotpotqa:dev", 1),
    ]
    assert results["micro"]["em"] == 1.0


def test_exact_match_is_a_mean_over_examples_not_over_batches(
    small: list[object], tmp_path: Path
) -> None:
    """Four of five right, the wrong one alone in the last batch: means of batches would give .5."""
    rows = [{"question": f"{i}?", "golden_answers": ["yes"]} for i in range(4)]
    questions = write_rows(tmp_path / "q.jsonl", [*rows, {**rows[0], "golden_answers": ["no"]}])
    run = ("--questions", questions, *small[2:], "--agent", "direct", "--batch-size", 4)
    assert evaluate(*run, "--out", tmp_path / "out") == 0
    em = [record["em"] for record in read_records(tmp_path / "out" / "episodes.jsonl")]
    of_batches = np.mean([np.mean(em[:4]), np.mean(em[4:])])
    results = read_json(tmp_path / "out" / "results.json")
    assert of_batches == 0.5
    assert results["micro"]["em"] == results["macro"]["em"] == np.mean(em) == 0.8


@pytest.mark.skipif("IGSEARCH_DATA" not in os.environ, reason="IGSEARCH_DATA names no data folder")
def test_all_seven_with_real_questions(tmp_path: Path) -> None:
    """Real questions put into the hub's layout, and real passages."""
    data = Path(os.environ["IGSEARCH_DATA"])
    sets = {name: read_records(data / f"{name}.questions.jsonl") for name in BENCHMARKS}
    write_hub(tmp_path / "hub", sets)
    gold = {title for rows in sets.values() for row in rows for title in row["supporting_titles"]}
    with (data / "wiki_pool.corpus.jsonl").open() as file:
        pool = [row for row in map(json.loads, file) if row["title"] in gold]
    corpus = write_rows(tmp_path / "corpus.jsonl", pool)
    run = ("--questions", "benchmarks", "--benchmarks", tmp_path / "hub", "--corpus", corpus)
    run = (*run, "--index", tmp_path / "index", "--threads", 1)
    for agent, least in (("oracle", 0.99), ("search_once", 0.0)):
        out = tmp_path / agent
        assert evaluate(*run, "--agent", agent, "--out", out) == 0
        results = read_json(out / "results.json")
        assert {name: row["n"] for name, row in results["datasets"].items()} == {
            name: len(rows) for name, rows in sets.items()
        }
        assert results["micro"]["em"] >= least
        for name in ("hotpotqa", "2wikimultihopqa", "musique"):
            found = results["datasets"][name]["gold_documents"]
            assert found > (0.95 if agent == "oracle" else 0.3), (agent, name)
        assert "gold_documents" not in results["datasets"]["nq"]
    shutil.rmtree(tmp_path / "index")
