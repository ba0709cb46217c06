"""What the benchmarks share: their options, tables, and cases in processes of their own."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from igsearch_env.cli.program import Parser, positive

if TYPE_CHECKING:
    from rich.table import Table

Case = TypeVar("Case")
Result = TypeVar("Result")
Row = Mapping[str, Any]


def benchmark_parser(description: str | None, quick: str) -> Parser:
    """A parser with --out, --quick and --threads.

    Args:
        description: The docstring of the benchmark.
        quick: What --quick leaves of it.
    """
    parser = Parser(None, description)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--threads", type=positive, default=1, help="threads (default: 1)")
    return parser


def make_table(title: str, rows: Sequence[Row], columns: Mapping[str, tuple[str, str]]) -> Table:
    """A table of rows.

    Args:
        title: Stands above it.
        rows: Values by name; None is an empty cell.
        columns: For each name its heading and how its values are written, as in ``format``. Text
            ("s") is on the left, numbers on the right.
    """
    from rich import box  # not above: --help needs no extra
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True)
    for heading, form in columns.values():
        table.add_column(heading, justify="left" if form == "s" else "right", no_wrap=True)
    for row in rows:
        values = ((row[name], form) for name, (_, form) in columns.items())
        table.add_row(*("" if value is None else format(value, form) for value, form in values))
    return table


def measure_apart(
    cases: Mapping[str, Case], measure: Callable[[Case], Result]
) -> Iterator[tuple[str, Result]]:
    """Measure one case after the other, each in a fresh process: a peak of memory is its own.

    Args:
        cases: By name.
        measure: A function of a module.

    Yields:
        The name of a case and what was measured.

    Raises:
        ValueError: If a process was killed.
    """
    from igsearch_env.cli.console import progress_bar

    context = multiprocessing.get_context("forkserver")  # children start with torch loaded
    context.set_forkserver_preload([measure.__module__])
    with progress_bar() as bar:
        task = bar.add_task("cases", total=len(cases), note="")
        for name, case in cases.items():
            bar.update(task, note=name)
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                try:
                    result = pool.submit(measure, case).result()
                except BrokenProcessPool as error:
                    raise ValueError(f"the process of {name} was killed: out of memory?") from error
            yield name, result
            bar.update(task, advance=1)


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
