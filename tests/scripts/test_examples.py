"""The examples run from the start to the last line; what they learn is measured apart."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--steps", "1", "--eval-questions", "6", "--people", "40"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["reinforce", "ppo", "trl_grpo", "trl_grpo --shaped"])
def test_an_example_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *words = name.split()
    if name == "trl_grpo":
        pytest.importorskip("trl", reason="needs the extra trl")
    batch = [] if name == "trl_grpo" else ["--batch", "6"]
    monkeypatch.setattr("sys.argv", [name, *SMALL, *batch, *words])
    importlib.import_module(f"scripts.examples.{name}").main()
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.match(r"sampled EM on 6 held-out questions: [01]\.\d{3}.* -> [01]\.\d{3}", last)


@pytest.mark.timeout(3600)
@pytest.mark.skipif("IGSEARCH_EXAMPLES" not in os.environ, reason="minutes of training each")
@pytest.mark.parametrize("name", ["reinforce", "ppo", "trl_grpo", "trl_grpo --shaped"])
def test_an_example_doubles_what_it_starts_with(name: str) -> None:
    program, *words = name.split()
    command = [sys.executable, "-m", f"scripts.examples.{program}", *words]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    last = ran.stdout.splitlines()[-1]
    before, after = re.findall(r"([01]\.\d{3})(?: \[[^]]*\])?(?= ->|$)", last)
    assert float(after) >= 2 * float(before)
