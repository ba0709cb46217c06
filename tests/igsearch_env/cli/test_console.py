"""What the programs print."""

from __future__ import annotations

import pytest
from rich.table import Table

from igsearch_env.cli import console
from igsearch_env.cli.console import print_table


def test_a_table_is_printed_whole_whatever_the_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console.console, "width", 40)
    table = Table()
    for number in range(8):
        table.add_column(f"heading{number}")
    table.add_row(*(f"0.12{number}" for number in range(8)))
    console.console.print(table)
    assert "0.127" not in capsys.readouterr().out  # left to itself, rich cuts cells
    print_table(table)
    printed = capsys.readouterr().out
    assert all(f"heading{n}" in printed and f"0.12{n}" in printed for n in range(8))
