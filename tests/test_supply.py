"""What the project is made of: no pickles, known licences, a wheel that comes out the same."""

from __future__ import annotations

import ast
import hashlib
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.loading import load_policy
from igsearch_env.data.corpus import load_corpus
from igsearch_env.data.questions import load_questions
from igsearch_env.episode import Document
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.encoder import EncoderSettings, SentenceEncoder
from igsearch_env.retrieval.index_directory import write_manifest
from trainers.local.checkpoint import STATE, load_checkpoint
from trainers.warm_start.state import read_state

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("igsearch_env", "agents", "trainers", "scripts")
RUNS_WHAT_IT_READS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
KNOWN_LICENCES = re.compile(
    r"0BSD|Apache|BSD|BSL-1\.0|CC0|CNRI-Python|ISC|LLVM-exception|MIT|Mozilla|MPL|PSF|Zlib"
    r"|Python Software Foundation|Public Domain"
)


def sources() -> Iterator[tuple[str, ast.AST]]:
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            name = str(file.relative_to(ROOT))
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                yield name, node


def test_no_source_reads_what_may_run_code() -> None:
    found = []
    for name, node in sources():
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = {alias.name for alias in node.names}
            modules = {module or ""} | (names if module in (None, "ray") else set())
            if {one.partition(".")[0] for one in modules} & RUNS_WHAT_IT_READS:
                found.append((name, sorted(names)))
        if isinstance(node, ast.Call):
            called, options = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
            safe = {"weights_only": True, "allow_pickle": False, "trust_remote_code": False}
            for option, value in options.items():
                if option in safe and ast.unparse(value) != str(safe[option]):
                    found.append((name, ast.unparse(node)))
            if called == "torch.load" and "weights_only" not in options:
                found.append((name, ast.unparse(node)))
            if called in ("eval", "exec", "pickle.loads", "pickle.load", "yaml.load"):
                found.append((name, ast.unparse(node)))
    # The name of an error, and a function that is sent to workers of the same run.
    assert found == [
        ("trainers/local/checkpoint.py", ["UnpicklingError"]),
        ("trainers/openrlhf/launch.py", ["cloudpickle"]),
    ]


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch '{self.mark}'",)


def plant(mark: Path, folder: Path) -> dict[str, Callable[[], object]]:
    """Every loader, on files that hold a bomb where it looks for something else."""
    bomb, folder = Bomb(mark), folder / "files"
    folder.mkdir()
    torch.save({"step": 1, "settings": bomb}, folder / STATE)
    torch.save({"weight": bomb}, folder / "pytorch_model.bin")
    raw = pickle.dumps(bomb)
    for name in ("corpus.jsonl", "questions.parquet", "adapter_model.bin"):
        (folder / name).write_bytes(raw)
    tiny = ROOT / "agents" / "world-tiny"
    for file in tiny.iterdir():
        if file.name != "model.safetensors":
            shutil.copy(file, folder)
    index, array = folder / "index", np.array([bomb], dtype=object)
    BM25Retriever.build([Document("1", "Lima", "Peru")]).save(index)
    (index / "manifest.json").unlink()
    for name in ("data.csc.index.npy", "documents.offsets.npy"):
        np.save(index / name, array, allow_pickle=True)
    rule = BM25Retriever.build([Document("1", "Lima", "Peru")]).parameters
    write_manifest(index, "igsearch-env bm25", 2, {"passages": 1, "parameters": rule})
    model = load_policy(str(tiny)).model
    return {
        "a corpus": lambda: load_corpus(folder / "corpus.jsonl"),
        "questions": lambda: load_questions(folder / "questions.parquet"),
        "an index": lambda: BM25Retriever.load(index),
        "a policy": lambda: load_policy(str(folder)),
        "an encoder": lambda: SentenceEncoder(EncoderSettings(str(folder))),
        "a checkpoint": lambda: load_checkpoint(folder, model, lambda state, weights: None),
        "a warm start": lambda: read_state(folder / STATE, {}),
    }


def test_no_loader_runs_what_it_reads(tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    for name, load in plant(mark, tmp_path).items():
        with pytest.raises(ValueError, match=r"."):
            load()
        assert not mark.exists(), name
    pickle.loads(pickle.dumps(Bomb(mark)))  # the bomb is one
    assert mark.exists()


def wheel(folder: Path, age: int) -> str:
    """The hash of a wheel that is built from a copy of the sources of some age.

    Their modes are part of a wheel: make wheel takes those that git has.
    """
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "igsearch_env", source / "igsearch_env", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for file in source.rglob("*"):
        os.utime(file, (age, age))
        file.chmod(0o755 if file.is_dir() else 0o644)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run(
        [*build, str(source)],
        check=True,
        capture_output=True,
        umask=0o022,
        env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000"},
    )
    (built,) = folder.glob("*.whl")
    return hashlib.sha256(built.read_bytes()).hexdigest()


def test_two_builds_of_the_wheel_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = wheel(tmp_path / "a", 1_600_000_000)
    assert wheel(tmp_path / "b", 1_750_000_000) == first


def test_every_dependency_has_a_licence_that_is_known() -> None:
    lines = (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {
        re.split("[=><]", line)[0].lower().replace("_", "-") for line in lines if line[0] != "#"
    }
    table = (ROOT / "requirements" / "LICENCES.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("| ") and not line.startswith("| Name")
    ]
    listed = {row[0].lower().replace("_", "-"): row[2] for row in rows}
    assert pinned - listed.keys() == set(), "run make licences"
    unknown = {name for name, text in listed.items() if not KNOWN_LICENCES.search(text)}
    assert unknown == {"atheris"}  # Apache-2.0 by its source; its package does not say
