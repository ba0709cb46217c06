"""What the programs print."""

from __future__ import annotations

import signal
import threading

import pytest
from rich.table import Table

from igsearch_env.cli import console
from igsearch_env.cli.console import print_table
from igsearch_env.cli.program import on_interrupt


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


def test_without_a_terminal_lines_appear_though_nothing_moves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "LINE_EVERY", 0.001)
    lines: list[str] = []
    spoken = threading.Event()

    def note(line: str, flush: bool) -> None:
        lines.append(line)
        if len(lines) > 3:
            spoken.set()

    monkeypatch.setattr(console, "print", note, raising=False)
    with console.progress_bar() as bar:
        task = bar.add_task("load", total=8, completed=2)
        assert spoken.wait(60)
        bar.update(task, completed=4, note="em 0.5")
    assert lines[0].startswith("load: 2 of 8, ")
    assert " left" not in lines[0]
    assert lines[-1].startswith("load: 4 of 8, ")
    assert lines[-1].endswith(" left, em 0.5")  # from the first advance on
    with console.progress_bar(quiet=True) as bar:
        before = len(lines)
        bar.add_task("load", total=8)
    assert len(lines) == before


def test_sigterm_is_like_ctrl_c_while_a_program_works_and_not_after() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as caught, on_interrupt("go on with --resume"):
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.__notes__ == ["go on with --resume"]
    assert signal.getsignal(signal.SIGTERM) is before
