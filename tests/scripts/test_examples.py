"""The examples run from the start to the last line; what they learn is measured apart."""

from __future__ import annotations

import importlib
import re

import pytest

SMALL = ["--steps", "1", "--eval-questions", "6", "--people", "40"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["reinforce", "ppo", "trl_grpo"])
def test_an_example_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "trl_grpo":
        pytest.importorskip("trl", reason="needs the extra trl")
    batch = [] if name == "trl_grpo" else ["--batch", "6"]
    monkeypatch.setattr("sys.argv", [name, *SMALL, *batch])
    importlib.import_module(f"scripts.examples.{name}").main()
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.match(r"sampled EM on 6 held-out questions: [01]\.\d{3}.* -> [01]\.\d{3}", last)
