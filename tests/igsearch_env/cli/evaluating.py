"""Running the evaluation script, and reading what it wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from igsearch_env.cli import program
from igsearch_env.cli.evaluate import main

ROOT = Path(__file__).resolve().parents[3]


def evaluate(*arguments: object) -> int:
    """Run the script in this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        program.run(lambda: main([str(argument) for argument in arguments]))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def same_results(one: Path, other: Path) -> bool:
    return all(
        (one / name).read_bytes() == (other / name).read_bytes()
        for name in ("results.json", "episodes.jsonl")
    )
