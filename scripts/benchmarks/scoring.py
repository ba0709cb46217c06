"""Compare ways to score the contexts of information gain: time, memory, tokens, and equality.

python -m scripts.benchmarks.scoring --out runs/bench_scoring
python -m scripts.benchmarks.scoring --out runs/bench_scoring_quick --quick

Every arm runs in a process of its own, one after another, and is kept: --resume goes on after the
last one. CPU seconds are medians where an arm is cheap enough to be run more than once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from agents.scoring.flops import RolloutShape
from igsearch_env.cli.console import console, progress_bar
from igsearch_env.cli.program import run
from igsearch_env.files import write_json
from scripts.benchmarks.scoring_arms import Measurement, Method, ScoringCase, measure

METHODS: tuple[Method, ...] = ("padded", "padded_answer_logits", "one_by_one", "packed")
MODELS = ((4, 256), (8, 512))
TOLERANCE = 1e-4  # nats
TARGETS = {"padded": 6.0, "one_by_one": 2.2}  # times the CPU seconds of packed, from 4 searches on
TARGETS_FROM = 4


def main() -> None:
    """Run every arm that is missing, then print and save the table."""
    arguments = _parser().parse_args()
    arms = plan(quick=arguments.quick, threads=arguments.threads)
    folder = arguments.out / "arms"
    if not arguments.resume and any(folder.glob("*.json")):
        raise ValueError(
            f"{folder} holds arms already; pass --resume to go on, or choose another folder"
        )
    results = run_arms(arms, folder)
    summary = summarise(arms, results)
    write_json(arguments.out / "results.json", summary)
    console.print(_table(summary["rows"]))
    for ratio in summary["ratios"]:
        console.print(_verdict(ratio))
    worst = summary["largest_difference"]
    console.print(f"largest difference between arms: {worst:.1e} nats (allowed: {TOLERANCE:.0e})")
    if worst > TOLERANCE:
        raise ValueError(f"the arms differ by {worst:.1e} nats, more than {TOLERANCE:.0e}")


def plan(*, quick: bool, threads: int) -> list[ScoringCase]:
    """The arms, cheap ones first in each group."""
    arms = []
    for layers, hidden in MODELS[:1] if quick else MODELS:
        for searches in (2, 4) if quick else (2, 4, 5):
            for method in reversed(METHODS):
                slow = method in ("padded", "padded_answer_logits")
                scaled = layers > 4 and method != "packed"
                arms.append(
                    ScoringCase(
                        layers,
                        hidden,
                        method,
                        RolloutShape(searches),
                        run=1 if quick or scaled else 10,
                        rows=4 if quick and slow else None,
                        repeats=1 if quick else 3,
                        threads=threads,
                    )
                )
    return arms


def run_arms(arms: Sequence[ScoringCase], folder: Path) -> list[Measurement]:
    """Measure the arms whose file is not in ``folder`` yet, each in a fresh process.

    Raises:
        ValueError: If a file holds an arm with other settings, or a process was killed.
    """
    context = multiprocessing.get_context("forkserver")  # forks clean children with torch loaded
    context.set_forkserver_preload(["scripts.benchmarks.scoring_arms"])
    found = []
    with (
        ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool,
        progress_bar() as bar,
    ):
        task = bar.add_task("arms", total=len(arms), note="")
        for arm in arms:
            name = f"{arm.layers}x{arm.hidden}-T{arm.rollout.searches}-{arm.method}"
            bar.update(task, note=name)
            path = folder / f"{name}.json"
            settings = asdict(arm)
            if not path.is_file():
                try:
                    done = pool.submit(measure, arm).result()
                except BrokenProcessPool as error:
                    raise ValueError(f"the process of {name} was killed: out of memory?") from error
                write_json(path, {"arm": settings, "measurement": asdict(done)})
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["arm"] != settings:
                raise ValueError(f"{path} is of another benchmark; choose another folder")
            found.append(Measurement(**saved["measurement"]))
            bar.update(task, advance=1)
    return found


def summarise(arms: Sequence[ScoringCase], results: Sequence[Measurement]) -> dict[str, Any]:
    """The rows of the table, the ratios to ``packed``, and the largest difference of scores."""
    rows = [_row(arm, result) for arm, result in zip(arms, results, strict=True)]
    cells = {
        (row["searches"], row["layers"], row["hidden"], row["method"]): (row, result)
        for row, result in zip(rows, results, strict=True)
    }
    ratios = []
    differences = [0.0]
    for (*place, method), (row, result) in cells.items():
        if method == "packed":
            continue
        fast, ours = cells[*place, "packed"]
        differences += _differences(ours, result)
        ratios.append(
            {name: row[name] for name in ("searches", "layers", "hidden", "method")}
            | {
                "ratio": round(row["cpu_seconds"] / fast["cpu_seconds"], 2),
                "target": TARGETS.get(method) if row["searches"] >= TARGETS_FROM else None,
            }
        )
    return {"rows": rows, "ratios": ratios, "largest_difference": max(differences)}


def _row(arm: ScoringCase, result: Measurement) -> dict[str, Any]:
    return {
        "searches": arm.rollout.searches,
        "layers": arm.layers,
        "hidden": arm.hidden,
        "method": arm.method,
        "tokens": round(result.tokens * arm.scale),
        "cpu_seconds": round(result.cpu_seconds * arm.scale, 3),
        "peak_mb": round(result.peak_mb),
        "scaled": arm.scale != 1,
    }


def _differences(left: Measurement, right: Measurement) -> Iterable[float]:
    """Absolute differences, in nats, of the scores that both have."""
    common = left.scores.keys() & right.scores.keys()
    if not common:
        raise ValueError("the arms have no context in common, so they cannot be compared")
    for number in common:
        pairs = zip(left.scores[number], right.scores[number], strict=True)
        yield from (abs(a - b) for a, b in pairs)


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(
        title="Scoring 10 rollouts, N = 3 (~: fewer were run, and time and tokens scaled up)",
        caption="d: width, T: searches, peak: memory of the process, libraries included",
    )
    for heading in ("layers", "d", "T"):
        table.add_column(heading, justify="right")
    table.add_column("method", no_wrap=True)
    for heading in ("tokens", "CPU s", "peak MiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        about = "~" if row["scaled"] else ""
        table.add_row(
            *(str(row[name]) for name in ("layers", "hidden", "searches", "method")),
            f"{about}{row['tokens']:,}",
            f"{about}{row['cpu_seconds']:.1f}",
            f"{row['peak_mb']:,}",
            end_section=row["method"] == METHODS[0],
        )
    return table


def _verdict(ratio: dict[str, Any]) -> str:
    target = ratio["target"]
    verdict = ""
    if target is not None:
        verdict = f"  target ≥ {target}×: {'met' if ratio['ratio'] >= target else 'MISSED'}"
    place = f"T = {ratio['searches']}, {ratio['layers']} layers, d = {ratio['hidden']}"
    return f"{place}: {ratio['method']} / packed = {ratio['ratio']:.2f}×{verdict}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--resume", action="store_true", help="keep the arms that are done")
    parser.add_argument(
        "--quick", action="store_true", help="small model, 2 and 4 searches, part of the work"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    return parser


if __name__ == "__main__":
    run(main)
