"""The code blocks of README and docs, and a program that runs those of one page in order.

``python -m tests.doc_pages PAGE [SECTION]`` runs them in the current folder: all, or those below
one heading. A comment above a block may say

- ``<!-- runs in: FILE -->``: the file, a script or test of the checkout, runs it;
- ``<!-- in tests: python -m scripts.train --set ... -->``: the program that the comment begins with
  gets these words in addition.

Programs of this project are forked from a process that has imported torch already
(``multiprocessing``'s fork server), because most of a small run would be its imports.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("", "toml", "text")  # languages that are looked at, not run
FENCE = re.compile(r"^( *)(```+|~~~+|:::+)([^\n`]*)$")
COMMENT = re.compile(r"^<!-- (runs in|in tests): (.*) -->$")
PRELOADED = ["sentence_transformers", "trainers.local.grpo", "igsearch_env.cli.evaluate"]

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(PRELOADED)


@dataclass(frozen=True)
class Block:
    """A code block: its page, where it stands, and what the comment above it says, if anything."""

    page: str
    section: str
    line: int
    language: str
    text: str
    runs_in: str | None
    in_tests: str | None

    @property
    def where(self) -> str:
        return f"{self.page}, line {self.line}"

    @property
    def command(self) -> str:
        """The text, with the words that the program gets in tests."""
        if self.in_tests is None:
            return self.text
        program = " ".join(self.in_tests.split()[:3])  # python -m NAME
        if not re.search(rf"^{re.escape(program)}\s", self.text, flags=re.MULTILINE):
            raise ValueError(f"{self.where}: expected {program!r} in the block")
        return self.text.replace(program, self.in_tests, 1)


def read_blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order; directives such as ``{note}`` are none."""
    name = page.relative_to(ROOT).as_posix()
    blocks = []
    section, says = "", {}
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), start=1))
    for number, line in lines:
        if fence := FENCE.match(line):
            indent, closing, language = fence[1], fence[2], fence[3].strip()
            text = _until(lines, indent, closing)
            if not language.startswith("{"):
                blocks.append(
                    Block(
                        name,
                        section,
                        number,
                        language,
                        text,
                        says.get("runs in"),
                        says.get("in tests"),
                    )
                )
        elif heading := re.match(r"^#+ (.*)$", line):
            section = heading[1]
        comment = COMMENT.match(line)
        says = {comment[1]: comment[2]} if comment else {}
    return blocks


def _until(lines: Iterator[tuple[int, str]], indent: str, closing: str) -> str:
    """The lines before the closing fence."""
    found = []
    for _, line in lines:
        if line.strip() == closing:
            return "".join(found)
        found.append(line.removeprefix(indent) + "\n")
    raise ValueError(f"a block that {closing!r} opens is not closed")


def run_page(page: str, sections: Sequence[str] = (), ports: dict[str, str] | None = None) -> None:
    """Run the blocks of a page here; one that begins with ``# NAME.py`` is saved as that file.

    Args:
        page: The page, from the root of the checkout.
        sections: Headings; only the blocks right below them are run.
        ports: What stands for a port of the page.

    Raises:
        ValueError: If sections are named and have none.
        RuntimeError: If a program fails.
    """
    namespace: dict[str, object] = {"__name__": "page"}
    blocks = [
        block
        for block in read_blocks(ROOT / page)
        if block.runs_in is None
        and block.language not in SHOWN
        and (not sections or block.section in sections)
    ]
    if sections and not blocks:
        raise ValueError(f"{page} has no block to run in {', '.join(sections)}")
    for block in blocks:
        print(f"--- {block.where}", flush=True)
        text = block.command
        for port, free in (ports or {}).items():
            text = re.sub(rf"\b{port}\b", free, text)
        if block.language == "python":
            if saved := re.match(r"# (\w+\.py)\n", text):
                Path(saved[1]).write_text(text, encoding="utf-8")
            else:
                exec(compile("\n" * block.line + text, block.where, "exec", 0, True), namespace)
        elif block.language == "bash":
            for command in split_shell(text):
                run_command(command)
        else:
            raise ValueError(f"{block.where}: cannot run {block.language}")


def split_shell(text: str) -> Iterator[str | list[str]]:
    """The commands of a block: the words of a program of this project, or lines for bash.

    >>> list(split_shell("igsearch view a\\ncd b\\nls\\npython -m scripts.train --out c &\\n"))
    [['igsearch_env.cli', 'view', 'a'], 'cd b\\nls\\npython -m scripts.train --out c &']
    """
    shell: list[str] = []
    for line in text.replace("\\\n", " ").splitlines():
        program = re.match(r"(?:python -m (?=igsearch_env|scripts)|igsearch )(?!.*[&|<>;$])", line)
        if program is None:
            shell.append(line)
            continue
        if shell:
            yield "\n".join(shell)
            shell = []
        words = shlex.split(line.removeprefix("python -m "), comments=True)
        yield ["igsearch_env.cli", *words[1:]] if words[0] == "igsearch" else words
    if shell:
        yield "\n".join(shell)


def run_command(command: str | list[str]) -> None:
    """Run lines in bash, or a program in a fork.

    Raises:
        RuntimeError: If it ends with another status than 0.
    """
    if isinstance(command, str):
        status = subprocess.run(["bash", "-e", "-c", command], check=False).returncode
    else:
        where = (os.getcwd(), dict(os.environ), os.getpgid(0), os.readlink("/dev/fd/1"))
        process = forks.Process(target=run_program, args=(command, *where))
        process.start()
        process.join()
        status = process.exitcode or 0
    if status:
        raise RuntimeError(f"{command} ended with status {status}")


def run_program(
    words: list[str], folder: str, variables: dict[str, str], group: int, log: str
) -> None:
    """In a fork: run a module with arguments, in a folder, as ``python -m`` would."""
    os.setpgid(0, group)
    enter(folder, variables, log)
    sys.argv[:] = words
    sys.path.insert(0, folder)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def enter(folder: str, variables: dict[str, str], log: str) -> None:
    """Go to a folder, with these variables; what is printed is added to a file."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[:0] = [path for path in variables.get("PYTHONPATH", "").split(os.pathsep) if path]
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)


if __name__ == "__main__":
    run_page(sys.argv[1], sys.argv[2:])
