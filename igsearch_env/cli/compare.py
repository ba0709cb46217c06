"""Compare two evaluations of the same questions: paired differences, and the examples that flipped.

igsearch compare runs/before runs/after --out runs/comparison
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from igsearch_env.cli.program import Parser, folder, output_folder, say
from igsearch_env.evaluation.comparison import FinishedEvaluation, compare
from igsearch_env.evaluation.metrics import METRICS
from igsearch_env.files import write_json

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 10


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print the tables and, if asked, write results.json.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    from igsearch_env.cli.console import print_table

    before, after = map(FinishedEvaluation, (arguments.before, arguments.after))
    results = compare(before, after)
    print_table(_table(results))
    for name, heading in (("gained", "right more often in B"), ("lost", "right more often in A")):
        _print_flips(results["flips"][name], heading, arguments.show)
    if arguments.out is not None:
        write_json(arguments.out / "results.json", results)
        say(f"{arguments.out / 'results.json'}")


def _parser() -> Parser:
    parser = Parser("igsearch compare", __doc__)
    parser.add_argument("before", type=folder, metavar="A", help="folder of an evaluation")
    parser.add_argument("after", type=folder, metavar="B", help="folder of another one")
    parser.add_argument(
        "--out", type=output_folder, help="folder for results.json, with every flip"
    )
    parser.add_argument(
        "--show",
        type=int,
        default=SHOWN,
        help="flips to print of either kind (default: %(default)s)",
    )
    return parser


def _table(results: Mapping[str, Any]) -> Table:
    from igsearch_env.cli.console import make_table

    title = f"A = {results['a']}, B = {results['b']}: {results['n']:,} questions in both"
    if results["unpaired"]:
        title += f", {results['unpaired']:,} left out"
    rows = list(results["rows"])
    if len({row["dataset"] for row in rows}) > 1:
        rows += [
            {"dataset": f"{kind} average", "metric": metric, **difference}
            for kind in ("macro", "micro")
            for metric, difference in results[kind].items()
        ]
    one, other = results["scorers"]
    by = one or "scorer unknown" if one == other else f"{one} in A, {other} in B: not comparable"
    cells = []
    for row in rows:
        metric = row["metric"]
        if metric in METRICS and not METRICS[metric].heading:
            continue  # in results.json only
        if metric == "information_gain":
            metric = f"{metric} ({by})"
        low, high = row["interval"]
        change = f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        values = (f"{row['n']:,}", f"{row['a']:.3f}", f"{row['b']:.3f}", change)
        cells.append((row["dataset"], metric, *values))
    headings = ("data set", "metric", "n", "A", "B", "B - A [95 %]")
    return make_table(title, headings, cells, text=("data set", "metric"))


def _print_flips(flips: Sequence[Mapping[str, Any]], heading: str, most: int) -> None:
    say(f"\n{heading}: {len(flips):,}")
    for flip in flips[:most]:
        line = f"  {flip['id']}: {flip['question']} gold: {' | '.join(flip['golden_answers'][:3])}"
        answers = " -> ".join(
            " | ".join(answer or "(none)" for answer in flip[side]["answers"]) for side in "ab"
        )
        say(f"{line}; {answers}")
    if len(flips) > most:
        say(f"  and {len(flips) - most:,} more")
