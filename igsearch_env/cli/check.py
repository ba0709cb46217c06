"""Say which dialects a retrieval server speaks, whoever wrote it, and what is wrong with it.

igsearch check http://127.0.0.1:8000/retrieve --wait 60
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from igsearch_env.cli.program import Parser, say
from igsearch_env.text import without_logins

if TYPE_CHECKING:
    from rich.table import Table

    from igsearch_env.retrieval.conformance import Finding

COLOURS = {"good": "green", "note": "yellow", "wrong": "red", "not spoken": "dim"}


def main(argv: Sequence[str] | None = None) -> None:
    """Ask the server, and print what was found; the status is 1 if no dialect is right.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    from igsearch_env.cli.console import print_table, progress_bar
    from igsearch_env.retrieval.conformance import check_server, spoken_dialects

    address = without_logins(arguments.url)
    with progress_bar() as bar:
        bar.add_task(f"ask {address}")
        findings = check_server(arguments.url, arguments.query, wait=arguments.wait)
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
    add("url", help="address of the server")
    add("--query", default="capital of Peru", help="what to search for (default: %(default)s)")
    add("--wait", type=float, default=0.0, help="seconds to wait for it to get ready (default: 0)")
    return parser
