"""Tables and progress bars, drawn with rich."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from igsearch_env.extras import extra

with extra("eval"):
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.measure import Measurement
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskID,
        TextColumn,
    )
    from rich.table import Table
    from rich.text import Text

console = Console()
LINE_EVERY = 30.0  # seconds


def make_table(
    title: str, headings: Sequence[str], rows: Iterable[Iterable[str]], *, text: Sequence[str] = ()
) -> Table:
    """A table of strings, which are shown as they are.

    Args:
        title: Stands above it.
        headings: Of the columns.
        rows: The cells of each row.
        text: Headings of the columns with words, on the left, where the others have numbers, on the
            right; the first column alone if there are none.
    """
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, collapse_padding=True)
    for heading in headings:
        on_left = heading in (text or headings[:1])
        table.add_column(escape(heading), justify="left" if on_left else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def print_table(table: Table) -> None:
    """Print a table whole: no cell is cut; where the terminal is narrower, lines run on."""
    wide = console.options.update(max_width=1_000)
    width = Measurement.get(console, wide, table).maximum
    Console(width=max(width, console.width)).print(table)


def progress_bar(quiet: bool = False) -> Bars:
    """Bars on a terminal and in a notebook; elsewhere lines.

    Args:
        quiet: Show neither.
    """
    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeLeft(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        disable=quiet or not console.is_terminal,
        quiet=quiet,
    )


class Bars(Progress):
    """A bar for each task, or, where there is no terminal, a line now and then.

    A line is printed when a task begins, every :data:`LINE_EVERY` seconds while it has not ended,
    whether it moves or not, and when it ends.

    Args:
        *columns: Of a bar.
        quiet: Print no lines either.
        **options: Those of :class:`rich.progress.Progress`.
    """

    def __init__(self, *columns: ProgressColumn, quiet: bool = False, **options: Any) -> None:
        super().__init__(*columns, **options)
        self._speaks = self.disable and not quiet
        self._ended = threading.Event()
        self._said: dict[TaskID, float] = {}
        self._thread = threading.Thread(target=self._speak, daemon=True)

    def add_task(
        self,
        description: str,
        start: bool = True,
        total: float | None = None,
        completed: int = 0,
        visible: bool = True,
        note: str = "",
        **fields: Any,
    ) -> TaskID:
        """Begin a task; ``completed`` of it was done before, which tells nothing of its speed."""
        task = super().add_task(
            description, start, total, completed, visible, note=note, before=completed, **fields
        )
        self._say(task)
        return task

    def start(self) -> None:
        """Begin to draw, or to print lines."""
        super().start()
        if self._speaks:
            self._thread.start()

    def stop(self) -> None:
        """Draw the last time, or print the last lines."""
        super().stop()
        if self._speaks and not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            for task in self.tasks:
                if self._said.get(task.id) != task.completed:
                    self._say(task.id)

    def _speak(self) -> None:
        while not self._ended.wait(LINE_EVERY):
            for task in self.tasks:
                if not task.finished:
                    self._say(task.id)

    def _say(self, task: TaskID) -> None:
        if self._speaks:
            now = self._tasks[task]
            self._said[task] = now.completed
            print(as_line(now), flush=True)


class TimeLeft(ProgressColumn):
    """The time that is left, from the first advance on; before it, the time that has passed."""

    def render(self, task: Task) -> Text:
        """Minutes and seconds."""
        left = seconds_left(task)
        passed = 0.0 if task.elapsed is None else task.elapsed
        return Text(_clock(passed) if left is None else f"{_clock(left)} left")


def seconds_left(task: Task) -> float | None:
    """Seconds that a task still takes at the mean speed so far; None if that is not known."""
    done = task.completed - task.fields["before"]
    if task.total is None or task.elapsed is None or done <= 0 or task.finished:
        return None
    return float(task.elapsed / done * (task.total - task.completed))


def as_line(task: Task) -> str:
    """A task in a line of text."""
    if task.total is None:
        count = f"{task.completed:,.0f}" if task.completed else "under way"
    else:
        count = f"{task.completed:,.0f} of {task.total:,.0f}"
    passed = f"{_clock(task.elapsed or 0.0)} passed"
    left = seconds_left(task)
    parts = (count, passed, None if left is None else f"{_clock(left)} left", task.fields["note"])
    return f"{task.description}: {', '.join(filter(None, parts))}"


def _clock(seconds: float) -> str:
    """Time as ``h:mm:ss``."""
    return time.strftime(f"{int(seconds) // 3600}:%M:%S", time.gmtime(seconds))
