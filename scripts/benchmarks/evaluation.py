"""How much faster an evaluation is in batches than one question at a time.

python -m scripts.benchmarks.evaluation --out runs/bench_evaluation
python -m scripts.benchmarks.evaluation --out runs/bench_evaluation_quick --quick

The shipped policy answers questions of the demo's world, searches included, in chunks of different
sizes. The sizes take turns, so that all of them see the same machine: 128 questions a round, of
which 16 are played one at a time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from igsearch_env.cli.console import console, progress_bar
from igsearch_env.cli.program import positive, run
from igsearch_env.evaluation.play import make_chunks, play_chunk
from igsearch_env.evaluation.settings import EvaluationSettings
from igsearch_env.evaluation.setup import make_evaluation
from igsearch_env.files import write_json
from igsearch_env.threads import set_threads

SIZES = (1, 8, 32, 128)
QUESTIONS, ALONE = 128, 16
"""Questions of a round, and those that are played one at a time."""


def main() -> None:
    """Measure, print the table and write results.json."""
    arguments = _parser().parse_args()
    set_threads(arguments.threads)
    sizes = (1, 128) if arguments.quick else SIZES
    rounds = 3 if arguments.quick else 7
    config = EvaluationSettings(
        questions=("world-test:320",),
        corpus="world:320",
        agent="agents/world-tiny",
        limit=QUESTIONS,
    )
    evaluation = make_evaluation(config)
    questions = [question for chunk in evaluation.chunks for question in chunk.questions]
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    with progress_bar() as bar:
        task = bar.add_task("rounds", total=rounds * len(sizes), note="")
        for seed in range(rounds):
            for size in sizes:
                asked = questions[: ALONE if size == 1 else None]
                started = time.perf_counter()
                for chunk in make_chunks(asked, seed=seed, size=size):
                    play_chunk(evaluation.engine, evaluation.player.agent_of(chunk), chunk)
                seconds[size].append((time.perf_counter() - started) / len(asked))
                bar.advance(task)
    rows = [_row(size, seconds[size], seconds[1]) for size in sizes]
    write_json(arguments.out / "results.json", {"threads": arguments.threads, "rows": rows})
    table = Table(title=f"seconds per question, median of {rounds} rounds")
    for name in ("questions at once", "seconds per question", "times faster than one at a time"):
        table.add_column(name, justify="right")
    for row in rows:
        faster = f"{row['faster']:.1f}"
        table.add_row(str(row["batch_size"]), f"{row['seconds_per_question']:.4f}", faster)
    console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of results.json")
    parser.add_argument("--quick", action="store_true", help="two sizes, three rounds")
    parser.add_argument("--threads", type=positive, default=1, help="torch threads")
    return parser


def _row(size: int, seconds: list[float], alone: list[float]) -> dict[str, Any]:
    """Medians; the ratio is that of each round, so that a busy machine counts in both parts."""
    ratios = [one / many for one, many in zip(alone, seconds, strict=True)]
    return {
        "batch_size": size,
        "seconds_per_question": statistics.median(seconds),
        "faster": statistics.median(ratios),
        "rounds": [round(value, 5) for value in seconds],
    }


if __name__ == "__main__":
    run(main)
