"""Say what is wrong with a retrieval server, whoever wrote it, or with the files of an index.

igsearch check http://127.0.0.1:8000/retrieve --wait 60
igsearch check indexes/wiki

Of a server: which dialects it speaks, and how well. Of an index: every byte of it is compared with
the checksums that were written with it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from igsearch_env.cli.program import Parser, say
from igsearch_env.text import without_logins

if TYPE_CHECKING:
    from rich.table import Table

    from igsearch_env.retrieval.conformance import Finding

COLOURS = {"good": "green", "note": "yellow", "wrong": "red", "not spoken": "dim"}


def main(argv: Sequence[str] | None = None) -> None:
    """Check, and print what was found.

    The status is 1 if a server speaks no dialect without an error, or a file is damaged.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    if Path(arguments.what).is_dir():
        _check_index(Path(arguments.what))
    else:
        _check_server(arguments)


def _check_index(folder: Path) -> None:
    from igsearch_env.retrieval.open import damage

    found = damage(folder)
    for sentence in found:
        say(sentence)
    if found:
        sys.exit(1)
    say(f"{folder}: every byte is as it was written")


def _check_server(arguments: argparse.Namespace) -> None:
    from igsearch_env.cli.console import print_table, progress_bar
    from igsearch_env.retrieval.conformance import check_server, spoken_dialects

    address = without_logins(arguments.what)
    with progress_bar() as bar:
        bar.add_task(f"ask {address}")
        findings = check_server(arguments.what, arguments.query, wait=arguments.wait)
    print_table(_table(address, findings))
    spoken = spoken_dialects(findings)
    if not spoken:
        say("no dialect is spoken without an error")
        sys.exit(1)
    say(f"HTTPRetriever({address!r}, dialect={spoken[0]!r}) searches with it")


def _table(url: str, findings: Sequence[Finding]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(url))
    for heading in ("", "verdict", "what was found"):
        table.add_column(heading)
    for finding in findings:
        verdict = Text(finding.verdict, COLOURS[finding.verdict])
        table.add_row(finding.subject, verdict, Text(finding.text))
    return table


def _parser() -> Parser:
    parser = Parser("igsearch check", __doc__)
    add = parser.add_argument
    add("what", metavar="URL|FOLDER", help="address of a server, or folder of an index")
    add("--query", default="capital of Peru", help="what to search for (default: %(default)s)")
    add("--wait", type=float, default=0.0, help="seconds to wait for it to get ready (default: 0)")
    return parser
