"""The evaluation script: its files, its figures, interruptions, and what it refuses."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.loading import resolve_precision
from igsearch_env.cli.view import main as view
from igsearch_env.data.corpus import load_corpus
from igsearch_env.data.questions import load_questions
from igsearch_env.evaluation import play as evaluation
from igsearch_env.evaluation.folder import chunk_line
from igsearch_env.evaluation.metrics import METRICS
from igsearch_env.evaluation.scores import all_averages, score_example
from igsearch_env.evaluation.setup import _files_sha256
from igsearch_env.record import episode_from_record
from igsearch_env.retrieval.bm25 import BM25Retriever
from tests.igsearch_env.cli.evaluating import (
    ROOT,
    evaluate,
    read_json,
    read_records,
    same_results,
    write_rows,
)
from tests.igsearch_env.retrieval.loopback import LoopbackServer

WORLD = ("--questions", "world-test", "--corpus", "world", "--threads", "1")
FILES = ("manifest.json", "episodes.jsonl", "results.json")


def test_records_results_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "oracle"
    assert evaluate(*WORLD, "--agent", "oracle", "--limit", 300, "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted((".lock", *FILES))
    episodes = [episode_from_record(record) for record in read_records(out / "episodes.jsonl")]
    assert [e.question for e in episodes] == load_questions("world-test", limit=300)
    results = read_json(out / "results.json")
    assert results == all_averages([score_example(episode) for episode in episodes])
    micro = results["micro"]
    assert (micro["n"], micro["em"], micro["cover_em"]) == (300, 1.0, 1.0)
    assert micro["em_interval"] == [1.0, 1.0]
    assert results["datasets"]["world-2hop"]["searches"] == 2.0
    assert "information_gain" not in micro
    printed = capsys.readouterr().out
    assert all(
        name in printed for name in ("oracle on world-test", "world-1hop", "micro", "macro", "EM")
    )


@pytest.mark.parametrize("agent", ["direct", "search_once", "random_query"])
def test_scripted_agents_with_information_gain(tmp_path: Path, agent: str) -> None:
    out = tmp_path / "out"
    code = evaluate(*WORLD, "--agent", agent, "--limit", 40, "--information-gain", "--out", out)
    assert code == 0
    results = read_json(out / "results.json")["micro"]
    searches = {"direct": 0.0, "search_once": 1.0, "random_query": 2.0}[agent]
    assert results["searches"] == searches
    assert ("information_gain" in results) == (searches > 0)
    for record in read_records(out / "episodes.jsonl"):
        known: set[str] = set()
        for step in (step for step in record["steps"] if step["action"] == "search"):
            found = {document["id"] for document in step["documents"]}
            # One that found nothing has nothing to compare it with, nor a gain if nothing is new.
            assert len(step["counterfactuals"]) == (3 if found else 0)
            assert (step["information_gain"] is None) == (found <= known)
            known |= found


@pytest.mark.parametrize(
    ("agent", "said"),
    [
        ("search_once", "3 of 3 searches had no counterfactual evidence"),
        ("direct", "nothing was searched for"),
    ],
)
def test_it_is_said_why_there_is_no_information_gain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], agent: str, said: str
) -> None:
    rows = [{"id": str(i), "title": f"Page {i}", "text": "What is Lima ?"} for i in range(3)]
    asked = [{"question": f"What is {i} of Lima ?", "golden_answers": ["x"]} for i in range(3)]
    corpus = write_rows(tmp_path / "corpus.jsonl", rows)
    questions = write_rows(tmp_path / "questions.jsonl", asked)
    run = ("--questions", questions, "--corpus", corpus, "--agent", agent, "--information-gain")
    assert evaluate(*run, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert f"no information gain: {said}" in printed
    assert printed.count("questions.jsonl: 3 questions\n") == 1


def test_options_reach_the_environment(tmp_path: Path) -> None:
    options = ("--top-k", 1, "--max-searches", 1, "--protocol", "search-r1", "--limit", 5)
    assert evaluate(*WORLD, "--agent", "random_query", *options, "--out", tmp_path / "out") == 0
    for record in read_records(tmp_path / "out" / "episodes.jsonl"):
        actions = [step["action"] for step in record["steps"]]
        assert actions == ["search", "invalid", "answer"]
        assert len(record["steps"][0]["documents"]) <= 1
        assert "<information>" in record["steps"][0]["observation"]["text"]


def test_smoke(tmp_path: Path) -> None:
    assert evaluate("--smoke", "--out", tmp_path / "out") == 0
    assert read_json(tmp_path / "out" / "results.json")["micro"]["n"] == 6


def test_the_same_seed_gives_the_same_files(checkpoint: Path, tmp_path: Path) -> None:
    agent = (*WORLD, "--agent", checkpoint, "--limit", 20, "--batch-size", 8)
    for name, options in {
        "one": (),
        "again": (),
        "other": ("--seed", 1),
        "greedy": ("--greedy",),
        "greedy-other": ("--greedy", "--seed", 1),
    }.items():
        assert evaluate(*agent, *options, "--out", tmp_path / name) == 0
    assert same_results(tmp_path / "one", tmp_path / "again")
    assert not same_results(tmp_path / "one", tmp_path / "other")
    assert same_results(tmp_path / "greedy", tmp_path / "greedy-other")
    records = read_records(tmp_path / "one" / "episodes.jsonl")
    first = [record["steps"][0]["turn"]["text"] for record in records]
    assert len({*first}) > 15, "each chunk has a seed of its own"


def test_a_checkpoint_brings_its_protocol_and_scorer(checkpoint: Path, tmp_path: Path) -> None:
    agent = ("--agent", checkpoint, "--limit", 12, "--information-gain")
    assert evaluate(*WORLD, *agent, "--out", tmp_path / "own") == 0
    manifest = read_json(tmp_path / "own" / "manifest.json")
    assert manifest["config"]["environment"] == {}
    assert manifest["inputs"]["protocol"] == "refine-bare"
    assert manifest["inputs"]["model"]["max_new_tokens"] == 16
    auto = ("--agent", checkpoint, "--limit", 2, "--precision", "auto")
    assert evaluate(*WORLD, *auto, "--out", tmp_path / "auto") == 0
    model = read_json(tmp_path / "auto" / "manifest.json")["inputs"]["model"]
    assert model["precision"] == resolve_precision("auto", "cpu")
    records = read_records(tmp_path / "own" / "episodes.jsonl")
    assert all(record["prompt"]["text"].startswith("question : ") for record in records)
    turns = [step["turn"] for record in records for step in record["steps"]]
    assert max(len(turn["token_ids"]) for turn in turns) == 16
    gains = [step["information_gain"] for record in records for step in record["steps"]]
    assert any(gain is not None for gain in gains)
    told = ("--protocol", "refine", "--max-new-tokens", 4, "--out", tmp_path / "told")
    assert evaluate(*WORLD, *agent, *told) == 0
    records = read_records(tmp_path / "told" / "episodes.jsonl")
    assert all(record["prompt"]["text"].startswith("Answer") for record in records)
    turns = [step["turn"] for record in records for step in record["steps"]]
    assert max(len(turn["token_ids"]) for turn in turns) == 4


def test_a_checkpoint_brings_the_environment_it_was_trained_in(tmp_path: Path) -> None:
    shipped = ("--agent", "agents/world-tiny", "--limit", 3, "--information-gain", "--threads", 1)
    world = ("--questions", "world-test:40", "--corpus", "world:40")
    assert evaluate(*world, *shipped, "--out", tmp_path / "own") == 0
    inputs = read_json(tmp_path / "own" / "manifest.json")["inputs"]
    assert (inputs["top_k"], inputs["max_searches"]) == (1, 4)
    assert (inputs["counterfactual"], inputs["scorer"]) == ("documents", "TrieScorer")
    told = ("--top-k", 2, "--max-searches", 1, "--counterfactual", "documents+refinement")
    told = (*told, "--max-attempts", 2)
    assert evaluate(*world, *shipped, *told, "--out", tmp_path / "told") == 0
    inputs = read_json(tmp_path / "told" / "manifest.json")["inputs"]
    assert (inputs["top_k"], inputs["max_searches"]) == (2, 1)
    assert inputs["counterfactual"] == "documents+refinement"
    searches = [
        step
        for record in read_records(tmp_path / "told" / "episodes.jsonl")
        for step in record["steps"]
        if step["action"] == "search"
    ]
    assert {len(step["documents"]) for step in searches} <= {0, 1, 2}
    assert max(step["search_step"] for step in searches) == 1  # one in each attempt
    assert {step["attempt"] for step in searches} == {0, 1}


@pytest.mark.parametrize("name", ["model.bin", "chat_template.jinja", "merges.txt"])
def test_a_checkpoint_that_changed_is_another_model(tmp_path: Path, name: str) -> None:
    policy = tmp_path / "policy"
    shutil.copytree(ROOT / "agents" / "world-tiny", policy)
    found = [_files_sha256(policy)]
    for text in ("one", "two"):
        (policy / name).write_text(text)
        found.append(_files_sha256(policy))
    (policy / name).rename(policy / f"other-{name}")
    assert len({*found, _files_sha256(policy)}) == 4


def test_samples_of_a_checkpoint_differ_and_begin_with_those_of_a_single_run(
    checkpoint: Path, tmp_path: Path
) -> None:
    run = (*WORLD, "--agent", checkpoint, "--limit", 7, "--batch-size", 3)
    assert evaluate(*run, "--out", tmp_path / "one") == 0
    assert evaluate(*run, "--samples", 3, "--out", tmp_path / "three") == 0
    one, three = (read_records(tmp_path / name / "episodes.jsonl") for name in ("one", "three"))
    assert three[:7] == one
    turns = [
        [record["steps"][0]["turn"]["text"] for record in part]
        for part in (three[:7], three[7:14], three[14:])
    ]
    assert turns[0] != turns[1] != turns[2] != turns[0]
    micro = read_json(tmp_path / "three" / "results.json")["micro"]
    assert micro["pass_at_1"] == pytest.approx(micro["em"])
    assert micro["pass_at_1"] <= micro["pass_at_2"] <= micro["pass_at_3"]


KILLS = int(os.environ.get("IGSEARCH_KILLS", "1"))


@pytest.mark.timeout(1200)  # processes that start on a busy machine take their time
def test_killed_at_random_moments_it_resumes_to_the_same_bytes(
    checkpoint: Path, tmp_path: Path
) -> None:
    """``IGSEARCH_KILLS=10`` kills it ten times."""
    agent = (*WORLD, "--agent", checkpoint, "--information-gain", "--max-searches", 2)
    asked_of = 12 * KILLS + 6
    run = (*agent, "--limit", asked_of, "--samples", 2, "--batch-size", 3)  # short last chunks
    assert evaluate(*run, "--out", tmp_path / "whole") == 0
    out = tmp_path / "killed"
    partial = out / "episodes.jsonl.partial"
    command = [
        sys.executable,
        "-m",
        "igsearch_env.cli",
        "evaluate",
        *map(str, run),
        "--out",
        str(out),
    ]
    moments, done = random.Random(), 0
    for kill in range(KILLS):
        process = subprocess.Popen([*command, "--resume"], cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            least = done + moments.randrange(3) + (kill == 0)
            while (partial.read_bytes().count(b"\n") if partial.exists() else 0) < least:
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.05))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL
        done = partial.read_bytes().count(b"\n")
    assert evaluate(*run, "--out", out, "--resume") == 0
    assert same_results(tmp_path / "whole", out)
    assert not partial.exists()
    asked = [(r["question"]["id"]) for r in read_records(out / "episodes.jsonl")]
    assert {asked.count(one) for one in asked} == {2}
    runs = read_json(out / "manifest.json")["runs"]
    assert 0 < runs[-1]["resumed_after"] <= 2 * asked_of


@pytest.mark.parametrize("lines", [0, 1, 2, 3])
@pytest.mark.parametrize("torn", [0, 7])
def test_resuming_after_any_number_of_chunks(tmp_path: Path, lines: int, torn: int) -> None:
    run = (*WORLD, "--agent", "search_once", "--limit", 12, "--batch-size", 5, "--information-gain")
    assert evaluate(*run, "--out", tmp_path / "whole") == 0
    out = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", out)
    records = read_records(out / "episodes.jsonl")
    chunks = [chunk_line(n, records[5 * n : 5 * n + 5]) for n in (1, 2, 0)]
    text = "".join(chunks[:lines])
    (out / "episodes.jsonl.partial").write_text(text + chunks[0][:torn])
    for name in ("episodes.jsonl", "results.json"):
        (out / name).unlink()
    assert evaluate(*run, "--out", out, "--resume") == 0
    assert same_results(tmp_path / "whole", out)
    resumed = sum(len(json.loads(chunk)["episodes"]) for chunk in chunks[:lines])
    assert read_json(out / "manifest.json")["runs"][-1]["resumed_after"] == resumed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--scorer", "vllm"), "give an address as the agent and --information-gain"),
        (("--outcome", "em=1,emm=2"), "outcome must be one of em, f1"),
        (("--outcome", "em=much"), "invalid"),
        (("--outcome-range", 1, 0), "outcome_range must be two finite numbers"),
        (("--outcome", "judge"), "'judge' needs the setting judge"),
        (("--judge", "somewhere"), "expected an address like http://127.0.0.1:8000/v1"),
    ],
)
def test_outcomes_and_scorers_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], said: str
) -> None:
    run = (*WORLD, "--agent", "oracle", "--limit", 2)
    assert evaluate(*run, *options, "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err


def test_components_are_reported_beside_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = (*WORLD, "--agent", "oracle", "--limit", 6, "--out", tmp_path / "out")
    assert evaluate(*run, "--outcome", "em=1,searches=-0.1,evidence_recall=0.5") == 0
    micro = read_json(tmp_path / "out" / "results.json")["micro"]
    assert micro["outcome_em"] == micro["em"]
    assert micro["outcome_searches"] == micro["searches"] > 0
    parts = micro["em"] - 0.1 * micro["searches"] + 0.5 * micro["outcome_evidence_recall"]
    assert micro["outcome"] == pytest.approx(parts)
    assert "evidence_recall" in capsys.readouterr().out


def test_a_chunk_that_is_there_twice_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = (*WORLD, "--agent", "direct", "--limit", 4, "--batch-size", 2, "--out", tmp_path / "out")
    assert evaluate(*run) == 0
    records = read_records(tmp_path / "out" / "episodes.jsonl")
    line = chunk_line(0, records[:2])
    for text in (line + line, chunk_line(1, records[:2])):
        (tmp_path / "out" / "episodes.jsonl.partial").write_text(text)
        assert "is there twice or holds other questions" in error_of(capsys, *run, "--resume")


def test_resuming_where_nothing_is_left_or_nothing_was_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = error_of(capsys, "--out", tmp_path / "out", "--resume")
    assert "out holds no evaluation to go on with; leave out --resume" in nothing
    run = (*WORLD, "--agent", "direct", "--limit", 5, "--out", tmp_path / "out", "--resume")
    assert evaluate(*run) == 0  # it starts where there is nothing to resume
    before = {name: (tmp_path / "out" / name).read_bytes() for name in FILES[1:]}
    assert evaluate("--out", tmp_path / "out", "--resume") == 0
    (tmp_path / "out" / "results.json").unlink()  # killed just before it was written
    assert evaluate(*run) == 0
    assert before == {name: (tmp_path / "out" / name).read_bytes() for name in FILES[1:]}
    assert len(read_json(tmp_path / "out" / "manifest.json")["runs"]) == 3


def test_an_interrupt_keeps_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = (*WORLD, "--agent", "oracle", "--limit", 12, "--batch-size", 4)
    assert evaluate(*run, "--out", tmp_path / "whole") == 0
    collect = evaluation.collect
    calls: list[None] = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return collect(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "collect", interrupted)
        assert evaluate(*run, "--out", tmp_path / "out") == 130
    advice = f"go on with igsearch evaluate --out {tmp_path / 'out'} --resume"
    assert capsys.readouterr().err == f"interrupted; {advice}\n"
    assert len(read_records(tmp_path / "out" / "episodes.jsonl.partial")) == 2
    assert evaluate(*run, "--out", tmp_path / "out", "--resume") == 0
    assert same_results(tmp_path / "whole", tmp_path / "out")


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The error of a run that must fail; it is one line."""
    capsys.readouterr()
    assert evaluate(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in lines[-1:]] == [True]
    assert sum("error" in line.lower() for line in lines) == 1
    return lines[-1]


def test_results_are_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = write_rows(tmp_path / "q.jsonl", [{"question": "?", "golden_answers": ["a"]}])
    out = tmp_path / "out"
    run = ("--questions", questions, "--corpus", "world", "--agent", "direct", "--out", out)
    assert evaluate(*run) == 0
    before = {name: (out / name).read_bytes() for name in FILES}
    assert "holds results already; pass --resume" in error_of(capsys, *run)
    changed = error_of(capsys, *run, "--resume", "--top-k", 2)
    assert "has another top_k: top_k was None, got 2" in changed
    assert "has another limit" in error_of(capsys, *run, "--resume", "--limit", 1)
    write_rows(questions, [{"question": "?", "golden_answers": ["b"]}])
    assert "has another questions_sha256" in error_of(capsys, *run, "--resume")
    manifest = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(manifest.replace('"limit": null', '"limit": 1'))
    assert "manifest.json is damaged (it was changed" in error_of(capsys, "--out", out, "--resume")
    (out / "manifest.json").write_text("{}")
    assert "manifest.json is damaged" in error_of(capsys, *run, "--resume")
    (out / "manifest.json").unlink()
    assert "no manifest.json" in error_of(capsys, *run, "--resume")
    for name in FILES[1:]:
        assert (out / name).read_bytes() == before[name]
    assert "is not a folder" in error_of(capsys, *run[:-1], questions)


def test_two_processes_never_write_into_one_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second one would end first, and the first one then write its own part as the whole."""
    run = (*WORLD, "--agent", "direct", "--limit", 4, "--out", tmp_path / "out", "--resume")
    holder = (
        "import sys; from pathlib import Path; from igsearch_env.evaluation.folder import *\n"
        "with EvaluationFolder(Path(sys.argv[1]), resume=True).alone():\n"
        "    print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "out")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        assert "another process is at work in" in error_of(capsys, *run)
        process.kill()
    assert evaluate(*run) == 0


def test_damaged_records_are_not_counted_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = (*WORLD, "--agent", "direct", "--limit", 4, "--out", tmp_path / "out")
    assert evaluate(*run) == 0
    file = tmp_path / "out" / "episodes.jsonl"
    records = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*records[:2], "{}\n", records[3]]))
    assert "episodes.jsonl is damaged" in error_of(capsys, *run, "--resume")


QUESTION = {"id": "q", "question": "What is the capital of Peru?", "golden_answers": ["Lima"]}
PASSAGE = {"id": "p", "contents": '"Lima"\nLima is the capital of Peru.'}


def questions_of(*rows: object) -> Callable[[Path, Path], list[object]]:
    return lambda folder, _: ["--questions", write_rows(folder / "q.jsonl", rows)]


def corpus_of(*rows: object, k: int = 1) -> Callable[[Path, Path], list[object]]:
    return lambda folder, _: ["--corpus", write_rows(folder / "c.jsonl", rows), "--top-k", k]


def options(*given: object) -> Callable[[Path, Path], list[object]]:
    return lambda folder, checkpoint: list(given)


def index_with(change: Callable[[Path], object]) -> Callable[[Path, Path], list[object]]:
    def arguments(folder: Path, _: Path) -> list[object]:
        BM25Retriever.build(load_corpus("world")).save(folder / "index")
        change(folder / "index")
        return ["--index", folder / "index"]

    return arguments


def index_of_another_corpus(folder: Path, _: Path) -> list[object]:
    BM25Retriever.build(load_corpus("world")).save(folder / "index")
    corpus = write_rows(folder / "c.jsonl", [PASSAGE])
    return ["--index", folder / "index", "--corpus", corpus]


def questions_twice(folder: Path, _: Path) -> list[object]:
    files = [write_rows(folder / name, [QUESTION]) for name in ("a.jsonl", "b.jsonl")]
    return ["--questions", *files, "--corpus", "nowhere.jsonl"]  # told before it is looked at


def checkpoint_with(change: Callable[[Path], object]) -> Callable[[Path, Path], list[object]]:
    def arguments(folder: Path, checkpoint: Path) -> list[object]:
        shutil.copytree(checkpoint, folder / "policy")
        change(folder / "policy")
        return ["--agent", folder / "policy"]

    return arguments


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (options("--questions", "wordl-test"), "unknown question set 'wordl-test'"),
        (options("--questions", "nowhere.jsonl"), "no file was found"),
        (questions_of(), "is empty; a question set needs at least one row"),
        (questions_of({**QUESTION, "question": None}), "no column 'question'"),
        (questions_of({"id": "q", "question": "?"}), "no column 'golden_answers'"),
        (questions_of({**QUESTION, "golden_answers": []}), "the question has no golden answers"),
        (questions_of({**QUESTION, "golden_answers": [" "]}), "must be a non-blank string"),
        (questions_of(QUESTION, QUESTION), "the question id 'q' was used before"),
        (options("--corpus", "wolrd"), "unknown corpus 'wolrd'"),
        (corpus_of(), "is empty; a corpus needs at least one row"),
        (corpus_of({"id": 1}), "no column 'contents'"),
        (corpus_of(PASSAGE, PASSAGE), "the document id 'p' was used before"),
        (corpus_of({"id": "p", "text": "!"}), "none of the 1 documents has a word"),
        (
            corpus_of(PASSAGE, k=2),
            "top_k must be at most 1, the number of documents of the corpus, got 2",
        ),
        (index_with(lambda index: cut(index / "documents.jsonl")), "build the index again"),
        (index_with(lambda index: cut(index / "manifest.json")), "is not valid JSON"),
        (index_with(lambda index: (index / "manifest.json").unlink()), "is not an index"),
        (index_of_another_corpus, "was built from another corpus"),
        (
            lambda folder, _: ["--index", write_rows(folder / "file", [])],
            "cannot read a corpus from",
        ),
        (options("--agent", "orcale"), "unknown agent 'orcale': expected direct, search_once"),
        (options("--agent", "runs/nowhere/policy"), "nothing was found at that path"),
        (checkpoint_with(no_tokenizer), "holds no tokenizer"),
        (checkpoint_with(lambda f: cut(f / "model.safetensors")), "cannot load a policy"),
        (checkpoint_with(lambda f: (f / "model.safetensors").unlink()), "cannot load a policy"),
        (checkpoint_with(lambda f: cut(f / "tokenizer.json")), "cannot load a policy"),
        (checkpoint_with(lambda f: cut(f / "config.json")), "cannot load a policy"),
        (checkpoint_with(lambda f: cut(f / "igsearch.json")), "correct it or remove it"),
        (lambda _, checkpoint: ["--agent", checkpoint, "--device", "tpux"], "cannot use the dev"),
        (options("--protocol", "refined"), "unknown protocol 'refined'"),
        (options("--limit", 0), "limit must be at least 1, got 0"),
        (options("--top-k", 0), "top_k must be a whole number of at least 1, got 0"),
        (options("--max-searches", 0), "max_searches must be a whole number of at least 1, got 0"),
        (options("--batch-size", -3), "batch_size must be at least 1, got -3"),
        (options("--threads", -1), "threads must be at least 0, got -1"),
        (options("--questions", ""), "give --questions"),
        (options("--questions", "world-test", "world-test"), "is asked for more than once"),
        (questions_twice, "b.jsonl both have a question 'q'; ids must be unique"),
        (options("--questions", "nq", "benchmarks"), "nq is asked for more than once"),
        (options("--questions", "world-test:320"), "search 'world:320' instead"),
        (options("--corpus", "world:40"), "search 'world' instead"),
        (options("--corpus", "world:x", "--questions", "world-test:x"), "expected a name like"),
        (options("--questions", "nq", "--benchmarks", "nowhere"), "in nowhere/nq, which has none"),
        (options("--agent", "http://127.0.0.1:9/v1", "--retries", 0), "gave no answer in 1 tries"),
        (options("--samples", 0), "samples must be at least 1"),
        (options("--temperature", 0), "temperature must be at least 0.001"),
        (options("--temperature", 1e-300), "temperature must be at least 0.001"),
        (options("--threads", 10**23), "threads must be at most 1024"),
        (options("--agent", ""), "give --agent"),
        (options("--corpus", ""), "give --corpus"),
        (options("--limit", 1, "--information-gain"), "there is only one question"),
    ],
)
def test_bad_input_is_told_in_one_line_and_nothing_is_written(
    tmp_path: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Callable[[Path, Path], list[object]],
    message: str,
) -> None:
    run = (*WORLD, "--agent", "direct", "--out", tmp_path / "out")
    assert message in error_of(capsys, *run, *arguments(tmp_path, checkpoint))
    assert not (tmp_path / "out").exists()


def test_an_index_is_built_once_and_may_stand_for_the_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "index"
    run = ("--questions", "world-test", "--agent", "oracle", "--limit", 20, "--index", index)
    without = error_of(capsys, *run, "--out", tmp_path / "none")
    assert f"there is no index in {index}; give --corpus" in without
    assert evaluate(*run, "--corpus", "world", "--out", tmp_path / "built") == 0
    assert "saved the index" in capsys.readouterr().out
    assert evaluate(*run, "--corpus", "world", "--out", tmp_path / "checked") == 0
    assert "indexing" not in capsys.readouterr().out
    assert evaluate(*run, "--corpus", "", "--out", tmp_path / "alone") == 0
    assert evaluate(*WORLD, *run[2:6], "--out", tmp_path / "memory") == 0
    for name in ("checked", "alone", "memory"):
        assert same_results(tmp_path / "built", tmp_path / name)


needs_data = pytest.mark.skipif(
    "IGSEARCH_DATA" not in os.environ, reason="IGSEARCH_DATA names no data folder"
)


@pytest.fixture(scope="session")
def wiki_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One index of all real passages, built by the script itself."""
    data = Path(os.environ["IGSEARCH_DATA"])
    folder = tmp_path_factory.mktemp("wiki")
    run = ("--questions", data / "hotpotqa.questions.jsonl", "--agent", "direct", "--limit", 1)
    corpus = ("--corpus", data / "wiki_pool.corpus.jsonl", "--index", folder / "index")
    assert evaluate(*run, *corpus, "--out", folder / "first") == 0
    return folder / "index"


@needs_data
@pytest.mark.parametrize(
    ("name", "least"), [("hotpotqa", 0.59), ("musique", 0.36), ("popqa", 0.65)]
)
def test_scripted_agents_on_real_questions(
    wiki_index: Path, tmp_path: Path, name: str, least: float
) -> None:
    questions = Path(os.environ["IGSEARCH_DATA"]) / f"{name}.questions.jsonl"
    run = ("--questions", questions, "--index", wiki_index, "--limit", 100, "--threads", 1)
    results = {}
    for agent in ("direct", "search_once", "random_query", "oracle"):
        gain = () if agent == "direct" else ("--information-gain",)
        assert evaluate(*run, *gain, "--agent", agent, "--out", tmp_path / agent) == 0
        whole = read_json(tmp_path / agent / "results.json")
        assert set(whole["datasets"]) == {name}
        results[agent] = whole["micro"]
        assert results[agent]["n"] == 100
    assert results["oracle"]["em"] == results["oracle"]["f1"] == 1.0
    assert results["oracle"]["gold_documents"] >= 0.95
    assert results["search_once"]["gold_documents"] >= least
    assert results["random_query"]["gold_documents"] < results["oracle"]["gold_documents"]
    assert results["direct"]["gold_documents"] == results["direct"]["searches"] == 0.0
    gains = {agent: results[agent].get("information_gain") for agent in results}
    assert gains["direct"] is None
    assert gains["oracle"] > 0.0 < gains["search_once"]


AGENT = """
from igsearch_env import register_agent, register_retriever
from igsearch_env.baselines import OracleAgent
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.data.corpus import load_corpus

@register_agent("seer")
def seer(name, protocol, seed):
    assert name == "seer:blind"
    return OracleAgent(protocol)

@register_retriever("mine")
def mine(name):
    return BM25Retriever.build(load_corpus("world"))
"""


def test_an_agent_and_a_retriever_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own_agent.py").write_text(AGENT)
    run = ("--questions", "world-test", "--limit", 3, "--import", tmp_path / "own_agent.py")
    run = (*run, "--agent", "seer:blind", "--index", "mine", "--out", tmp_path / "out")
    assert evaluate(*run) == 0
    assert read_json(tmp_path / "out" / "results.json")["micro"]["em"] == 1.0
    inputs = read_json(tmp_path / "out" / "manifest.json")["inputs"]
    assert inputs["model"] == {"registered": "seer:blind"}
    assert evaluate(*run, "--resume") == 0


METRIC = """
from igsearch_env.evaluation.metrics import Metric, register_metric

register_metric(Metric("turns_taken", "turns taken", lambda e: [float(len(e.steps))], heading="T!"))
"""


def test_resume_imports_again_what_an_evaluation_was_given_and_view_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    file, out = tmp_path / "my_metric.py", tmp_path / "out"
    file.write_text(METRIC)

    def forget() -> None:
        """What another process would not know."""
        del METRICS["turns_taken"]
        del sys.modules[f"igsearch_plugin_{file.stem}"]

    monkeypatch.chdir(tmp_path)
    run = (*WORLD, "--agent", "direct", "--limit", 2, "--out", out)
    assert evaluate(*run, "--import", file.name) == 0
    first = (out / "results.json").read_bytes()
    assert b"turns_taken" in first
    forget()
    monkeypatch.chdir("/")
    capsys.readouterr()
    assert evaluate("--out", out, "--resume") == 0
    assert "T!" in capsys.readouterr().out
    assert (out / "results.json").read_bytes() == first
    forget()
    view([str(out)])  # a folder of somebody else's must not run code
    assert "turns_taken" not in METRICS
    assert f"--import {tmp_path / 'my_metric.py'}" in capsys.readouterr().out
    view([str(out), "--import", str(file)])
    assert "turns_taken" in (out / "view.html").read_text()
    forget()
    file = file.rename(tmp_path / "moved.py")
    assert f"there is no file {tmp_path / 'my_metric.py'}" in error_of(
        capsys, "--out", out, "--resume"
    )
    assert evaluate("--out", out, "--resume", "--import", file) == 0
    assert read_json(out / "manifest.json")["config"]["imports"] == [str(file)]
    forget()


def test_an_address_with_a_slip_is_not_made_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = (*WORLD, "--agent", "direct", "--index", "http:/localhost:8000", "--out", "out")
    assert "expected http://HOST:PORT/retrieve" in error_of(capsys, *run)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_with_the_file_and_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file may grow to 12 kB; then the system says so, as it does when a disk is full."""
    run = ("--questions", "world-test", "--corpus", "world", "--agent", "search_once")
    out = tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))
    try:
        code = evaluate(*run, "--limit", 12, "--batch-size", 1, "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    assert re.search(r"File too large: '.*episodes\.jsonl\.partial'", capsys.readouterr().err)
    assert evaluate("--out", out, "--resume") == 0
    assert len(read_records(out / "episodes.jsonl")) == 12
    assert read_json(out / "manifest.json")["runs"][-1]["resumed_after"] > 0


@pytest.mark.parametrize("batch", [1, 16])
def test_a_retriever_that_is_lost_ends_the_run_and_resume_plays_again_what_it_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], batch: int
) -> None:
    rows = [{"id": str(n), "question": f"number {n}?", "golden_answers": ["a"]} for n in range(32)]
    found = {"document": {"id": "d", "contents": '"T"\na'}, "score": 1.0}
    alive = True

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        numbers = [int(query.split()[1].rstrip("?")) for query in body["queries"]]
        if alive or max(numbers) < 16:
            return 200, {"result": [[found]] * len(numbers)}
        return 200, b"<html>gone</html>"

    server = LoopbackServer(answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    questions = write_rows(tmp_path / "questions.jsonl", rows)
    ways = ("--questions", questions, "--index", server.url, "--batch-size", batch)
    ways = (*ways, "--agent", "search_once", "--top-k", 1)
    assert evaluate(*ways, "--out", tmp_path / "whole") == 0
    alive = False
    out = tmp_path / "out"
    assert evaluate(*ways, "--out", out) != 0
    said = capsys.readouterr().err
    assert "which are not kept" in said
    assert f"--out {out} --resume" in said
    alive = True
    assert evaluate("--out", out, "--resume") == 0
    assert read_json(out / "manifest.json")["runs"][-1]["resumed_after"] == 16
    assert read_json(out / "results.json") == read_json(tmp_path / "whole" / "results.json")
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_searches_that_failed_are_counted_and_never_pass_for_a_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: int
) -> None:
    """A proxy's page in place of an answer: 0, 1 or 2 of the two questions cannot be scored.

    Once the proxy is gone, ``--resume`` plays these questions again.
    """
    rows = [{"id": str(n), "question": f"number {n}?", "golden_answers": ["a"]} for n in range(2)]
    found = {"document": {"id": "d", "contents": '"T"\na'}, "score": 1.0}

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        if int(body["queries"][0].split()[1].rstrip("?")) < broken:
            return 200, b"<html>no such page</html>"
        return 200, {"result": [[found]]}

    server = LoopbackServer(answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    questions = write_rows(tmp_path / "questions.jsonl", rows)
    out = tmp_path / "out"
    code = evaluate(
        *("--questions", questions, "--index", server.url, "--batch-size", 1),
        *("--agent", "search_once", "--top-k", 1, "--out", out),
    )
    micro = read_json(tmp_path / "out" / "results.json")["micro"]
    assert (micro["n"], micro["failed"]) == (2 - broken, broken)
    said = capsys.readouterr()
    assert code == (2 if broken == 2 else 0)
    assert ("left out: 1 episode" in said.out) == (broken == 1)
    assert ("no question was scored" in said.err) == (broken == 2)

    were, broken = broken, 0
    assert evaluate("--out", out, "--resume") == 0
    assert read_json(out / "manifest.json")["runs"][-1]["resumed_after"] == 2 - were
    micro = read_json(out / "results.json")["micro"]
    assert (micro["n"], micro["failed"]) == (2, 0)
    assert [row["question"]["id"] for row in read_records(out / "episodes.jsonl")] == ["0", "1"]
    server.shutdown()
    server.server_close()
