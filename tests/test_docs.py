"""Every code block of README and docs runs, and the files and programs that they name exist.

The blocks of a page run in order, in a process of their own, in a folder that ``doc_standins``
lays out: a small corpus and question sets under ``data``, the checkout's ``agents`` and
``trainers``, and stand-ins for the hub, the benchmarks and vLLM. What CI runs elsewhere, or at a
smaller size, has a comment above it. The cells of notebooks run when the documentation is built.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.doc_pages import PRELOADED, ROOT, enter, forks, read_blocks, run_page
from tests.doc_standins import environment, make_folder, make_standins
from tests.fork_server import fork_server
from tests.ports import free_ports

PAGES = [
    page
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
    if "_build" not in page.parts
]
PORTS = ("8000", "8001")  # those of the pages; each run of a page has others

ALL = {page.relative_to(ROOT).as_posix(): read_blocks(page) for page in PAGES}
BLOCKS = [block for blocks in ALL.values() for block in blocks]


@pytest.fixture(scope="module")
def standins(tmp_path_factory: pytest.TempPathFactory, minilm: str) -> Iterator[Path]:
    """The stand-ins, and a fork server that sees them."""
    folder = make_standins(tmp_path_factory.mktemp("standins"), minilm)
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)  # modules are loaded from here
            for name, value in environment(folder).items():
                patch.setenv(name, value)
            stack.enter_context(fork_server(PRELOADED))
        yield folder


def play(page: str, folder: str, variables: dict[str, str], ports: dict[str, str]) -> None:
    """In a process of its own, which leads a group: run a page."""
    os.setpgid(0, 0)
    enter(folder, variables, f"{folder}/../log")
    run_page(page, ports=ports)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [page for page, blocks in ALL.items() if blocks])
def test_the_blocks_of_a_page_run_in_order(page: str, tmp_path: Path, standins: Path) -> None:
    if shutil.which("curl") is None and any(b.text.startswith("curl ") for b in ALL[page]):
        pytest.skip("a block of the page needs curl, which is not installed")
    folder = make_folder(tmp_path / "work")
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    variables = environment(standins, folder)
    process = forks.Process(target=play, args=(page, str(folder), variables, ports))
    process.start()
    try:
        process.join()
    finally:
        with suppress(ProcessLookupError):  # servers in the background may have ended
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    assert process.exitcode == 0, (tmp_path / "log").read_text(encoding="utf-8")[-8000:]


def test_what_is_run_smaller_gets_more_words() -> None:
    marked = [block for block in BLOCKS if block.in_tests is not None]
    assert marked
    assert all(block.command != block.text for block in marked)
    programs = {block.in_tests.split()[2] for block in marked if block.in_tests}
    assert programs == {"scripts.train"}  # all others run as they stand


def test_what_runs_elsewhere_does() -> None:
    marked = [block for block in BLOCKS if block.runs_in is not None]
    assert {block.runs_in for block in marked} == {
        ".ci/run",
        "tests/openenv/test_openenv.py",
        "tests/openrlhf/test_under_ray.py",
        "tests/skyrl/test_environment.py",
        "tests/skyrl/test_token_credit.py",
        "tests/test_makefile.py",
        "tests/trainers/test_trl_tools.py",
        "tests/verifiers/test_environment.py",
        "tests/verl/test_verl.py",
    }
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for block in marked:
        if block.runs_in == ".ci/run":
            for line in block.text.splitlines():
                command = line.partition("#")[0].strip()
                pattern = rf"^{re.escape(command)}( |$)"
                assert re.search(pattern, script, flags=re.MULTILINE), command
        else:
            # These files pick their blocks by the page and the comment.
            text = (ROOT / str(block.runs_in)).read_text(encoding="utf-8")
            assert block.page in text, block.where


def test_files_and_programs_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for module in re.findall(r"python -m (scripts(?:\.\w+)+)", text):
            assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), (page, module)
        for file in re.findall(
            r"\b((?:trainers|tests|docs|igsearch_env|agents)/[\w/.-]+\.\w+)", text
        ):
            assert (ROOT / file).exists() or "NAME" in file, (page, file)
        for file, names in re.findall(r"(tests/[\w/]+\.py)::([\w:]+)", text):
            tests = (ROOT / file).read_text(encoding="utf-8")
            for name in names.split("::"):
                assert re.search(rf"(def|class) {name}\b", tests), (page, file, name)
        for target in re.findall(r"(?:^|`)make ([\w-]+)", text, flags=re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), (page, target)


def test_readme_is_short_and_names_every_folder() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= 7168
    tree = next(block for block in ALL["README.md"] if block.text.startswith("igsearch_env/")).text
    folders = [
        folder.name
        for folder in (ROOT / "igsearch_env").iterdir()
        if (folder / "__init__.py").exists()
    ]
    for folder in (*folders, "agents", "trainers", "scripts", "docs", "tests"):
        assert re.search(rf"\b{folder}/", tree), folder


def test_pages_link_to_pages_that_exist() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            target = page.parent / link
            assert target.exists() or "generated" in target.parts, (page, link)
