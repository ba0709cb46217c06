"""Every code block of README and docs runs, and the files and programs that they name exist.

The blocks of a page run in order, in a process of their own, in the folder that ``doc_standins``
lays out: a small corpus and question sets under ``data``, the checkout's ``agents`` and
``trainers``, and stand-ins for the hub, the benchmarks and vLLM. What CI runs elsewhere, or at a
smaller size, has a comment above it and is listed here.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.doc_pages import ROOT, read_blocks
from tests.doc_standins import environment, free_ports, make_folder

PAGES = [
    ROOT / "README.md",
    *sorted(
        page
        for page in (ROOT / "docs").rglob("*.md")
        if not {"_build", "generated"} & set(page.parts)
    ),
]
ELSEWHERE = {
    ("README.md", "make demo"): ".ci/run",
    ("README.md", "pip install -e ."): ".ci/run",
    ("README.md", "python -m scripts.train_openrlhf"): "tests/openrlhf/test_under_ray.py",
    ("docs/guides/cluster.md", "make venv-openrlhf-gpu"): "tests/test_makefile.py",
    (
        "docs/guides/cluster.md",
        "python -m scripts.train_openrlhf",
    ): "tests/openrlhf/test_under_ray.py",
    ("docs/guides/cluster.md", "ray job submit"): "tests/openrlhf/test_under_ray.py",
}
"""Blocks by page and first words: what installs, tests, or needs OpenRLHF, and where CI runs it."""
SMALLER = {
    ("README.md", "python -m scripts.train --out runs/mine --config"),
    ("README.md", "python -m scripts.train --out runs/look"),
    ("README.md", "python -m scripts.train --out runs/try"),
}
PORTS = ("8000", "8001")  # those of the pages; each run of a page has others

ALL = {page.relative_to(ROOT).as_posix(): read_blocks(page) for page in PAGES}


@pytest.mark.timeout(900)  # programs start afresh in every shell block
@pytest.mark.parametrize("page", ALL)
def test_the_blocks_of_a_page_run_in_order(page: str, tmp_path: Path, minilm: str) -> None:
    if shutil.which("curl") is None and any(b.text.startswith("curl ") for b in ALL[page]):
        pytest.skip("a block of the page needs curl, which is not installed")
    ports = [f"{old}={new}" for old, new in zip(PORTS, free_ports(len(PORTS)), strict=True)]
    log = tmp_path / "log"  # a file: servers in the background would hold a pipe open
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.doc_pages", page, *ports],
            cwd=make_folder(tmp_path / "page", minilm),
            env=environment(tmp_path / "page"),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=800)
        finally:
            with suppress(ProcessLookupError):  # nobody is left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert status == 0, log.read_text(encoding="utf-8")[-8000:]


def test_what_is_run_smaller_is_listed() -> None:
    marked = [block for page in ALL.values() for block in page if block.in_tests is not None]
    for block in marked:
        assert block.command != block.text
        found = [
            start for page, start in SMALLER if page == block.page and block.text.startswith(start)
        ]
        assert len(found) == 1, block.where
    assert len(marked) == len(SMALLER)


def test_what_runs_elsewhere_is_listed() -> None:
    marked = [block for page in ALL.values() for block in page if block.runs_in is not None]
    for block in marked:
        places = [
            place
            for (page, start), place in ELSEWHERE.items()
            if page == block.page and block.text.startswith(start)
        ]
        assert places == [block.runs_in], block.where
        assert (ROOT / block.runs_in).is_file()
    assert len(marked) == len(ELSEWHERE)


def test_the_script_of_ci_has_the_lines_that_run_in_it() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    marked = [block for page in ALL.values() for block in page if block.runs_in == ".ci/run"]
    for line in "".join(block.text for block in marked).splitlines():
        command = line.partition("#")[0].strip()
        assert re.search(rf"^{re.escape(command)}( |$)", script, flags=re.MULTILINE), command


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
