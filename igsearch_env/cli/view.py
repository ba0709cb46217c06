"""Make a page of an evaluation or a training run: what each search was worth.

igsearch view runs/mine
"""

from __future__ import annotations

from collections.abc import Sequence

from igsearch_env.cli.program import Parser, folder, positive, say
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
    arguments = parser.parse_args(argv)
    path, data = write_page(arguments.folder, arguments.limit)
    count, total = len(data["rollouts"]), data["total"]
    of = "" if count == total else f" of {total:,}, in groups at even distances (--limit)"
    say(f"{path}: {count:,} rollouts{of}")
