"""What the command line programs share: errors in one line, a progress bar, files written whole."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

console = Console()


def run(main: Callable[[], None]) -> NoReturn:
    """Run a program; what its user can mend ends it with one line on stderr and status 2."""
    if "transformers" in sys.modules:  # its bars over the loading of weights
        sys.modules["transformers"].logging.disable_progress_bar()
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def run_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of what every program that trains takes: --out, --resume and --set."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--resume", action="store_true", help="go on with what is in the folder")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one setting; may be repeated",
    )
    return parser


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError(f"expected at least 1, got {value}")
    return value


def print_table(table: Table) -> None:
    """Print a table whole: no cell is cut; where the terminal is narrower, lines run on."""
    wide = console.options.update(max_width=1_000)
    width = Measurement.get(console, wide, table).maximum
    Console(width=max(width, console.width)).print(table)


def progress_bar() -> Progress:
    """A bar with counts and the time that is left; plain and quiet where there is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )
