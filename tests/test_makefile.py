"""The order in which ``make venv-openrlhf-gpu`` installs, with a stand-in for Python and its pip.

The packages are for GPUs, and flash-attn is compiled for one: neither can be had here.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.doc_pages import ROOT, read_blocks

PYTHON = """\
#!/bin/bash
# A Python that makes environments whose own Python writes down what it is asked to install.
if [[ "$1 $2" == "-m venv" ]]; then
  mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
  echo "VIRTUAL_ENV='$PWD/$3'" > "$3/bin/activate"
else
  echo "$*" >> installs.log
fi
"""


def test_the_environment_for_gpus_gets_torch_first_and_the_checkout_last(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    python = tmp_path / "python"
    python.write_text(PYTHON, encoding="utf-8")
    python.chmod(0o755)
    (block,) = [
        b for b in read_blocks(ROOT / "docs/guides/cluster.md") if b.text.startswith("make")
    ]
    script = f'{block.text}echo "active: $VIRTUAL_ENV"'
    found = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        | {"PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"active: {tmp_path / '.venv-openrlhf-gpu'}" in found.stdout
    torch, pins, checkout = (tmp_path / "installs.log").read_text(encoding="utf-8").splitlines()
    assert re.search(r" torch==[\d.]+ .*\bninja\b.*\bsetuptools", torch)
    assert pins.endswith("-r requirements/openrlhf-gpu.txt")
    assert checkout.endswith("--no-deps -e .")
    assert all(line.startswith("-m pip install --no-build-isolation ") for line in (torch, pins))
