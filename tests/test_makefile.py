"""What make installs and when, with a stand-in for Python and its pip; what CI runs.

The packages of ``make venv-openrlhf-gpu`` are for GPUs, and flash-attn is compiled for one: neither
can be had here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.doc_pages import ROOT, read_blocks

PYTHON = """\
#!/bin/bash
# A Python that makes environments whose own Python writes down what it is asked to install.
if [[ "$1 $2" == "-m venv" ]]; then
  mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
  echo "VIRTUAL_ENV='$PWD/$3'" > "$3/bin/activate"
elif [[ "$1" != "--version" ]]; then
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


def test_an_environment_is_made_again_only_if_its_pins_change(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    python, log = tmp_path / "python", tmp_path / "installs.log"
    python.write_text(PYTHON, encoding="utf-8")
    python.chmod(0o755)

    def installed() -> list[str]:
        """What `make test-skyrl` does in the environment: its packages, the checkout, tests."""
        log.write_text("", encoding="utf-8")
        subprocess.run(
            ["make", "test-skyrl", f"ENVIRONMENTS={tmp_path / 'kept'}", f"PYTHON={python}"],
            cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        lines = log.read_text(encoding="utf-8").splitlines()
        return ["pins" if "-r " in line else line.split()[2] for line in lines]

    assert installed() == ["pins", "install", "--confcutdir=tests/skyrl"]
    (tmp_path / "pyproject.toml").touch()
    assert installed() == ["--confcutdir=tests/skyrl"]
    with (tmp_path / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("# changed")
    assert installed() == ["install", "--confcutdir=tests/skyrl"]
    with (tmp_path / "requirements" / "skyrl.txt").open("a", encoding="utf-8") as file:
        file.write("# changed")
    assert installed() == ["pins", "install", "--confcutdir=tests/skyrl"]


def test_ci_runs_the_trainers_that_a_change_touches_or_one_in_turn(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    script = Path(shutil.copy(ROOT / ".ci" / "adapters", tmp_path / ".ci"))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)

    def chosen(*paths: str) -> list[str]:
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            with (tmp_path / path).open("a", encoding="utf-8") as file:
                file.write("more\n")
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
        return subprocess.run(
            [str(script)], check=True, stdout=subprocess.PIPE, text=True
        ).stdout.split()

    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (names,) = re.findall(r"^ADAPTERS := (.*)", makefile, flags=re.MULTILINE)
    known = set(names.split())
    assert len(chosen()) == 1  # the first commit has none before it
    assert chosen("trainers/verl/rows.py", "igsearch_env/env.py") == ["verl"]
    touched = chosen("docs/extend/skyrl.md", "requirements/openrlhf-cpu.txt")
    assert set(touched) == {"skyrl", "openrlhf"}
    (one,) = chosen("README.md")
    assert one in known - {"openrlhf"}  # its tests take the longest
    several = chosen(*(f"tests/{name}/test_it.py" for name in known))
    assert len(several) == 2
    assert set(several) <= known
