"""What the benchmarks share: options, tables, cases in processes of their own, a meter."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from igsearch_env.cli.program import Parser, output_folder, positive
from igsearch_env.episode import Episode

Case = TypeVar("Case")
Result = TypeVar("Result")
Row = Mapping[str, Any]
GIB = 1 << 30


def benchmark_parser(description: str | None) -> Parser:
    """A parser with --out and --threads; the description is the docstring of the benchmark."""
    parser = Parser(None, description)
    parser.add_argument("--out", type=output_folder, required=True, help="folder of the results")
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


def sampled(episode: Episode) -> Episode:
    """The episode as if its turns were sampled: with log-probs, which scripted turns lack."""
    steps = (
        replace(step, log_probs=(-1.0,) * len(step.turn.token_ids or ())) for step in episode.steps
    )
    return replace(episode, steps=tuple(steps))


class UpdateMeter:
    """CPU seconds and peak of memory of an update, on Linux; it begins when it is made.

    The peak is what weights, gradients and optimizer states hold, and what the process takes
    beside them. What libraries set up once, half a GiB where oneDNN multiplies bfloat16, is not in
    it if there was an update before.

    Args:
        model: The model that is trained.
        optimizer: Its optimizer.

    Attributes:
        seconds: CPU seconds between the beginning and :meth:`stop`.
        peak: Bytes.
    """

    def __init__(self, model: Any, optimizer: Any) -> None:
        states = [value for one in optimizer.state.values() for value in one.values()]
        weights = list(model.parameters())
        lasting = [*weights, *(one.grad for one in weights), *states]
        self._held = sum(getattr(one, "nbytes", 0) for one in lasting)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back
        self._before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
        self._started = time.process_time()

    def stop(self) -> None:
        """End the update."""
        self.seconds = time.process_time() - self._started
        self.peak = self._held + _memory("VmHWM") - self._before


def _memory(name: str) -> int:
    """Resident memory of this process in bytes, now (VmRSS) or at its peak (VmHWM), on Linux."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(one.split()[1]) for one in lines if one.startswith(f"{name}:"))


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
