"""What the benchmarks share: their options, tables, and cases in processes of their own."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from igsearch_env.cli.program import Parser, positive

Case = TypeVar("Case")
Result = TypeVar("Result")
Row = Mapping[str, Any]


def benchmark_parser(description: str | None) -> Parser:
    """A parser with --out and --threads; the description is the docstring of the benchmark."""
    parser = Parser(None, description)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--threads", type=positive, default=1, help="threads (default: 1)")
    return parser


def print_rows(title: str, rows: Sequence[Row], columns: Mapping[str, tuple[str, str]]) -> None:
    """Print a table of rows.

    Args:
        title: Stands above it.
        rows: Values by name; None is an empty cell.
        columns: For each name its heading and how its values are written, as in ``format``. Text
            ("s") is on the left, numbers on the right.
    """
    from igsearch_env.cli.console import make_table, print_table  # --help needs no extra

    cells = [
        [
            "" if row[name] is None else format(row[name], form)
            for name, (_, form) in columns.items()
        ]
        for row in rows
    ]
    headings = [heading for heading, _ in columns.values()]
    words = [heading for heading, form in columns.values() if form == "s"]
    print_table(make_table(title, headings, cells, text=words))


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
