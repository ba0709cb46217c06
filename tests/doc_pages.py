"""The code blocks of README and docs, and a program that runs those of one page in order.

``python -m tests.doc_pages PAGE [SECTION]`` runs them where it is started, all or those below one
heading; ``8000=8123`` behind it stands for another port. A comment above a block may say

- ``<!-- runs in: FILE -->``: the file, a script or test of the checkout, runs it;
- ``<!-- in tests: python -m scripts.train --set ... -->``: the program that the comment begins with
  gets the words that follow.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("mermaid", "", "toml", "text")  # languages that are looked at, not run


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
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    comment = r"(?:^<!-- (?:runs in: ([^>]*)|in tests: ([^>]*)) -->\n)?"
    pattern = comment + r"^```(\w*)\n(.*?)^```$"
    name = page.relative_to(ROOT).as_posix()
    blocks = []
    for found in re.finditer(pattern, text, flags=re.MULTILINE | re.DOTALL):
        before = re.sub(r"^```.*?^```$", "", text[: found.start()], flags=re.MULTILINE | re.DOTALL)
        section = (re.findall(r"^#+ (.*)$", before, flags=re.MULTILINE) or [""])[-1]
        line = text.count("\n", 0, found.start(4))
        blocks.append(Block(name, section, line, found[3], found[4], found[1], found[2]))
    return blocks


def run_page(page: str, sections: Sequence[str], ports: dict[str, str]) -> None:
    """Run the blocks of a page here; one that begins with ``# NAME.py`` is saved as that file.

    Raises:
        ValueError: If sections are named and have none.
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
        for port, free in ports.items():
            text = re.sub(rf"\b{port}\b", free, text)
        if block.language == "python":
            if saved := re.match(r"# (\w+\.py)\n", text):
                Path(saved[1]).write_text(text, encoding="utf-8")
            else:
                exec(compile("\n" * block.line + text, block.where, "exec", 0, True), namespace)
        elif block.language == "bash":
            subprocess.run(["bash", "-e", "-c", text], check=True)
        else:
            raise ValueError(f"{block.where}: cannot run {block.language}")


if __name__ == "__main__":
    words = sys.argv[2:]
    run_page(
        sys.argv[1],
        [word for word in words if "=" not in word],
        dict(word.split("=") for word in words if "=" in word),
    )
