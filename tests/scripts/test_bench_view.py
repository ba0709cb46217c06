"""The benchmark of the page runs, and what it measures is a page of the size it says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from igsearch_env.cli.program import run
from scripts.benchmarks.view import SEARCHES, WORDS, main, measure, records


def test_rollouts_are_as_long_as_it_says() -> None:
    for record in records(40):
        searches = [step for step in record["steps"] if step["action"] == "search"]
        assert len(searches) == SEARCHES
        for step in searches:
            assert step["information_gain"] is not None
            sets = [step["documents"], *(one["documents"] for one in step["counterfactuals"])]
            assert [len(documents) for documents in sets] == [3] * 4
            lengths = {len(one["text"].split()) for documents in sets for one in documents}
            assert lengths == {WORDS}


def test_it_opens_what_it_wrote(browser: Any, tmp_path: Path) -> None:
    row = measure(browser, tmp_path, 3)
    assert row["rollouts"] == 3
    assert row["megabytes"] == (tmp_path / "rollouts-3" / "view.html").stat().st_size / 1e6
    assert min(row["open_each"]) <= row["open"] <= max(row["open_each"])


def test_without_a_browser_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("playwright", reason="no playwright (it is in the extra dev)")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", ["bench_view", "--quick", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 2
    assert "found no chromium" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
