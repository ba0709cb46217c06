"""Make a page of an evaluation or a training run: what each search was worth.

igsearch view runs/mine

A run that was given --import has its own metrics on the page only if they are imported here too:
a folder may come from somebody else, so nothing that it names is run without being asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

from igsearch_env.cli.program import Parser, add_import, folder, positive, say
from igsearch_env.viewer.data import imports_of
from igsearch_env.viewer.page import LIMIT, write_page


def main(argv: Sequence[str] | None = None) -> None:
    """Write ``view.html`` into the folder, and say where it is.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    parser = Parser("igsearch view", __doc__)
    parser.add_argument("folder", type=folder, help="the --out of an evaluation or a training run")
    parser.add_argument(
        "--limit", type=positive, default=LIMIT, help="most rollouts to show (default: %(default)s)"
    )
    add_import(parser)
    arguments = parser.parse_args(argv)
    used = imports_of(arguments.folder)
    if used and "import" not in arguments:
        say(f"the run was made with --import {' '.join(used)}; give it here for its own metrics")
    path, data = write_page(arguments.folder, arguments.limit)
    count, total = len(data["rollouts"]), data["total"]
    of = "" if count == total else f" of {total:,}, in groups at even distances (--limit)"
    say(f"{path}: {count:,} rollouts{of}")
