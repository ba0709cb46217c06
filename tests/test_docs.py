"""Every code block of README and docs runs, and the files and programs that they name exist.

The blocks of a page run in order, in a folder with a small corpus and question sets under ``data``,
a policy under ``runs/mine``, and the checkout's ``agents`` and ``trainers``; Python blocks find
``questions``, a ``retriever`` and finished ``episodes``. One that begins with ``# NAME.py`` is
saved as that file instead. A block under ``<!-- not run: WHY -->`` is left out, and listed here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from agents.scripted import SearchOnceAgent
from igsearch_env import World
from igsearch_env.settings import make_engine
from trainers.rollout import collect

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = {
    ("README.md", "make demo"): "the tests themselves, and minutes",
    ("README.md", "pip install -e ."): "installs",
    ("README.md", "python -m scripts.train --out runs/mine"): "needs a GPU and the hub",
    ("README.md", "python -m scripts.train --out runs/try"): "minutes of training",
    ("README.md", 'pip install -e ".[serve]"'): "a server, until it is stopped",
    ("README.md", 'env = SearchQAEnv(questions, "http:'): "asks a server",
    ("README.md", "python -m scripts.evaluate --questions nq"): "needs the hub",
    ("README.md", "vllm serve runs/mine/policy"): "needs a GPU",
    ("README.md", "python -m scripts.view runs/eval"): "needs the evaluation above",
    ("docs/retrieval.md", "python -m scripts.build_index --corpus wiki.jsonl"): "needs the hub",
    ("docs/retrieval.md", "python -m scripts.recall"): "needs the indexes above",
    ("docs/serving.md", 'pip install -e ".[serve]"'): "a server, until it is stopped",
    ("docs/serving.md", "curl -s localhost:8000"): "asks a server",
    ("docs/serving.md", "from igsearch_env.retrieval.http import HTTPRetriever"): "asks a server",
    ("README.md", "python -m scripts.train_openrlhf"): "needs GPUs",
    ("docs/openrlhf.md", "python -m venv"): "installs, for GPUs",
    ("docs/openrlhf.md", "python -m scripts.build_index"): "needs GPUs",
    ("docs/openrlhf.md", "ray job submit"): "needs a cluster",
    ("docs/bring-your-policy.md", 'name = "Qwen/Qwen2.5-3B-Instruct"'): "needs the hub",
}
SHOWN = ("mermaid", "", "toml", "text")  # languages that are looked at, not run


@dataclass(frozen=True)
class Block:
    """A code block: its page, where it stands, and why it is not run, if it is not."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    pattern = r"(?:^<!-- not run: ([^>]*) -->\n)?^```(\w*)\n(.*?)^```$"
    name = page.relative_to(ROOT).as_posix()
    return [
        Block(name, text.count("\n", 0, found.start(3)), found[2], found[3], found[1])
        for found in re.finditer(pattern, text, flags=re.MULTILINE | re.DOTALL)
    ]


ALL = {page.relative_to(ROOT).as_posix(): blocks(page) for page in PAGES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the blocks of a page run."""
    world = World.generate(1, people=40)
    data = tmp_path / "data"
    data.mkdir()
    passages = [{"id": d.id, "title": d.title, "text": d.text} for d in world.documents]
    questions = [
        {"id": q.id, "question": q.text, "golden_answers": list(q.golden_answers)}
        for q in world.test_questions[:12]
    ]
    for name, rows in (("wiki", passages), ("train", questions), ("dev", questions)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (data / f"{name}.jsonl").write_text(text, encoding="utf-8")
    for name in ("agents", "trainers"):
        (tmp_path / name).symlink_to(ROOT / name)
    # A copy: a block may train in runs/mine.
    shutil.copytree(ROOT / "agents" / "world-tiny", tmp_path / "runs" / "mine" / "policy")
    return tmp_path


@pytest.mark.timeout(900)  # programs start afresh in every shell block
@pytest.mark.parametrize("page", ALL)
def test_the_blocks_of_a_page_run_in_order(
    page: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(folder))))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    engine = make_engine()
    namespace: dict[str, object] = {
        "__name__": "page",
        "questions": engine.questions,
        "retriever": engine.retriever,
        "episodes": collect(engine, SearchOnceAgent(), engine.questions[:4]),
    }
    for block in ALL[page]:
        saved = re.match(r"# (\w+\.py)\n", block.text)
        if block.not_run is not None or block.language in SHOWN:
            continue
        if block.language == "python" and saved:
            Path(saved[1]).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            where = f"{page}, line {block.line}"
            exec(compile("\n" * block.line + block.text, where, "exec", 0, True), namespace)
        else:
            assert block.language == "bash", f"{page}, line {block.line}: {block.language}"
            ran = subprocess.run(
                ["bash", "-e", "-c", block.text], capture_output=True, text=True, timeout=600
            )
            assert ran.returncode == 0, f"{page}, line {block.line}:\n{ran.stdout}\n{ran.stderr}"


def test_what_does_not_run_is_listed() -> None:
    marked = [block for page in ALL.values() for block in page if block.not_run is not None]
    for block in marked:
        reasons = [
            why
            for (page, start), why in NOT_RUN.items()
            if page == block.page and block.text.startswith(start)
        ]
        assert reasons == [block.not_run], f"{block.page}, line {block.line}"
    assert len(marked) == len(NOT_RUN)


def test_the_programs_and_configs_that_are_named_exist() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    modules = set(re.findall(r"python -m (scripts(?:\.\w+)+)", text))
    configs = set(re.findall(r"(trainers/configs/\w+\.toml)", text))
    targets = set(re.findall(r"^make (\w+)", text, flags=re.MULTILINE))
    pages = set(re.findall(r"\((docs/[\w-]+\.\w+)\)", text))
    assert modules
    assert configs
    assert targets
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for module in modules:
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
    for file in configs | pages:
        assert (ROOT / file).is_file(), file
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize(
    "line",
    re.findall(r"^  (\w[\w.]*\.py)(?= )", PAGES[0].read_text(encoding="utf-8"), flags=re.MULTILINE),
)
def test_the_files_of_the_tree_exist(line: str) -> None:
    assert (ROOT / "igsearch_env" / line).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_placeholder_is_left(page: Path) -> None:
    assert "@@" not in page.read_text(encoding="utf-8")
