"""A short campaign of faults, and that it notices what is not good."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.campaigns import faults

ROOT = Path(__file__).resolve().parents[2]


def test_a_short_campaign_finds_nothing_and_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.campaigns.faults", "--out", "campaign"]
    command += ["--program", "index building", "--program", "serving"]
    command += ["--kills", "3", "--others", "3", "--report", "."]

    def play() -> list[str]:
        ended = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
        return [line for line in ended.stdout.splitlines() if line.startswith("{")]

    assert len(play()) == 8
    lines = (tmp_path / "campaign" / "cases.jsonl").read_text().splitlines()
    cases = [json.loads(line) for line in lines]
    assert len(cases) == 8
    assert all(case["good"] for case in cases)
    assert sum(case.get("kills", 0) for case in cases) == 6
    rows = json.loads((tmp_path / "faults.json").read_text())
    assert sum(row["equal"] + row["error"] for row in rows) == 8
    assert "| killed | serving | 1 | 3 |" in (tmp_path / "faults.md").read_text()
    assert play() == []  # all cases are done


class Lying(faults.Job):
    """Its results differ from those of an undisturbed run."""

    def result(self, out: Path) -> str:
        return str(out)


@pytest.mark.parametrize(
    ("words", "good"),
    [
        ("error: OUT/file is damaged; remove it\n", True),
        ("noise\nerror: OUT/file is damaged\n", True),
        ("error: something is damaged\n", False),
        ("Traceback (most recent call last):\nerror: OUT/file\n", False),
        ("OUT/file is damaged\n", False),
        ("", False),
    ],
)
def test_an_error_must_name_its_file_in_a_line(tmp_path: Path, words: str, good: bool) -> None:
    ended = faults.Ended(2, words.replace("OUT", str(tmp_path)), 0.0)
    job: Any = None
    found = faults.judge(job, ended, tmp_path, "", "expected")
    assert found["good"] == good


def test_another_result_is_not_good(tmp_path: Path) -> None:
    campaign = faults.Campaign(tmp_path / "out", 0, ["index building"])
    honest = campaign.jobs["index building"]
    lying = Lying(honest.name, honest.program, honest.options, lambda out: None)

    (tmp_path / "work").mkdir()
    found = campaign.kill(lying, 1, random.Random(0), tmp_path / "work")
    assert (found["good"], found["came"]) == (False, "different")
