"""What information gain costs beside a training step, counted in floating-point operations.

python -m scripts.benchmarks.scoring_cost

The table is for Qwen2.5-3B at the paper's lengths. Sampling the rollouts is left out: it is bound
by memory, not by arithmetic.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from agents.scoring.flops import QWEN25_3B, RolloutShape, one_by_one, padded, trie, update_flops
from igsearch_env.cli.console import console
from igsearch_env.cli.program import run
from igsearch_env.files import write_json

METHODS = ("padded", "padded_answer_logits", "one_by_one", "packed")


def main() -> None:
    """Print the table, and save it if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for results.json")
    parser.add_argument("--group", type=int, default=5, help="G, rollouts per question")
    parser.add_argument("--counterfactuals", type=int, default=3, help="N, contexts per search")
    arguments = parser.parse_args()
    if arguments.group < 1 or arguments.counterfactuals < 1:
        raise ValueError("--group and --counterfactuals must be at least 1")
    rows = [
        row
        for searches in range(1, 6)
        for row in cost(RolloutShape(searches, arguments.counterfactuals), arguments.group)
    ]
    console.print(_table(rows, arguments))
    if arguments.out is not None:
        write_json(arguments.out / "results.json", {"rows": rows})


def cost(rollout: RolloutShape, group: int) -> list[dict[str, Any]]:
    """A row for each method: tokens and TFLOP per question, and the share of an update in %."""
    update = group * update_flops(rollout, QWEN25_3B)
    works = (
        padded(rollout),
        padded(rollout, full_logits=False),
        one_by_one(rollout),
        trie(rollout),
    )
    return [
        {
            "searches": rollout.searches,
            "method": method,
            "tokens": group * work.tokens,
            "tflop": round(group * work.flops(QWEN25_3B) / 1e12, 1),
            "update_tflop": round(update / 1e12, 1),
            "percent_of_update": round(100 * group * work.flops(QWEN25_3B) / update, 1),
        }
        for method, work in zip(METHODS, works, strict=True)
    ]


def _table(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> Table:
    n, g = arguments.counterfactuals, arguments.group
    table = Table(
        title=f"Scoring beside an update: Qwen2.5-3B, N = {n}, {g} rollouts of a question",
        caption="update: old and reference log-probs, forward and backward pass",
    )
    for heading in ("searches", "method", "tokens", "TFLOP", "update TFLOP", "of update"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in rows:
        table.add_row(
            str(row["searches"]),
            row["method"],
            f"{row['tokens']:,}",
            f"{row['tflop']:,.0f}",
            f"{row['update_tflop']:,.0f}",
            f"{row['percent_of_update']:.0f} %",
            end_section=row["method"] == METHODS[-1],
        )
    return table


if __name__ == "__main__":
    run(main)
