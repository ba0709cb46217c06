r"""Evaluate an agent on question sets: EM, F1, searches and more, with intervals.

igsearch evaluate --questions world-test --corpus world --agent oracle --out runs/oracle
igsearch evaluate --questions nq hotpotqa bamboogle --corpus wiki.jsonl \
    --index indexes/wiki --agent runs/mine/policy --out runs/mine/eval --information-gain
igsearch evaluate --questions benchmarks --index indexes/wiki --samples 4 \
    --agent http://127.0.0.1:8000/v1 --concurrency 64 --out runs/served
igsearch evaluate --out runs/served --resume
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from rich import box
from rich.markup import escape
from rich.table import Table

from igsearch_env.cli.console import console, print_table, progress_bar
from igsearch_env.cli.program import add_settings
from igsearch_env.data.benchmarks import BENCHMARKS, FOLDER_VARIABLE, HUB
from igsearch_env.endpoint import Api
from igsearch_env.episode import Episode
from igsearch_env.evaluation.folder import EvaluationFolder, check_unchanged
from igsearch_env.evaluation.metrics import METRICS
from igsearch_env.evaluation.play import Chunk, play_at_once, play_chunk
from igsearch_env.evaluation.scores import ExampleScore, report, score_example
from igsearch_env.evaluation.settings import EvaluationSettings, Precision, comparable
from igsearch_env.evaluation.setup import Evaluation, make_evaluation
from igsearch_env.record import to_record
from igsearch_env.settings import EnvironmentSettings

SMOKE = {
    "questions": ["world-test"],
    "corpus": "world",
    "agent": "search_once",
    "limit": 6,
    "batch_size": 4,
}
ENVIRONMENT = tuple(
    field.name
    for field in fields(EnvironmentSettings)
    if field.name not in ("questions", "retriever")
)
"""The settings of the environment that a command may change."""


def main(argv: Sequence[str] | None = None) -> None:
    """Play the questions, write the records and the results, and print a table.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    given = vars(_parser().parse_args(argv))
    out, resume, smoke = (given.pop(name) for name in ("out", "resume", "smoke"))
    changes = {name: given.pop(name) for name in ENVIRONMENT if name in given}
    folder = EvaluationFolder(out, resume=resume)
    before = folder.config()
    if changes:
        given["environment"] = {**before.get("environment", {}), **changes}
    check_unchanged(comparable(before), comparable(given) if before else {}, out)
    config = _config({**(SMOKE if smoke else {}), **before, **given}, out)
    started = time.perf_counter()
    evaluation = make_evaluation(config, _say, sys.stderr.isatty())
    try:
        with folder.alone():
            done = folder.begin(to_record(config), evaluation.inputs, evaluation.chunks)
            seconds = defaultdict[str, float](float, loading=time.perf_counter() - started)
            _play(evaluation, folder, done, seconds)
            results = report([score for number in sorted(done) for score in done[number]])
            seconds["total"] = time.perf_counter() - started
            folder.finish(results, {name: round(value, 3) for name, value in seconds.items()})
    finally:
        evaluation.player.stop()
    title = f"{config.agent} on {', '.join(config.questions)}"
    print_table(results_table(results, title, evaluation.inputs["scorer"]))
    _say(f"{folder.episodes}, results.json, manifest.json ({seconds['total']:.1f} s)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="igsearch evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # to tell what was given from what was not
        allow_abbrev=False,
    )
    add = parser.add_argument
    named = ", ".join(BENCHMARKS)
    add(
        "--questions",
        nargs="+",
        help=f"one or more of {named} (NAME:SPLIT for another split), benchmarks for all of them, "
        "world-test, world-test:PEOPLE:SEED, a .jsonl or .parquet file, or hf:REPO",
    )
    add(
        "--benchmarks",
        help=f"folder of NAME/SPLIT.jsonl or .parquet (default: that in ${FOLDER_VARIABLE}, or "
        f"else {HUB} on the Hugging Face hub)",
    )
    add("--corpus", help="world, world:PEOPLE:SEED, a .jsonl or .parquet file, or hf:REPO")
    add("--index", help="folder of the BM25 index; built from the corpus if there is none yet")
    add(
        "--agent",
        help="direct, search_once, random_query, oracle, the folder of a checkpoint, or the "
        "address of an OpenAI-compatible endpoint",
    )
    add("--out", type=Path, required=True, help="folder for the records and the results")
    add("--limit", type=int, help="ask only so many questions of each set, the first ones")
    add("--samples", type=int, help="ask each question so often, for pass@k (default: 1)")
    add("--max-new-tokens", type=int, help="longest turn (default: what the checkpoint says)")
    add("--temperature", type=float, help="of sampling (default: 1)")
    add("--greedy", action="store_true", help="take the most likely tokens, do not sample")
    add("--information-gain", action="store_true", help="settle and report the gain of searches")
    add("--seed", type=int, help="of sampling (default: 0)")
    add("--batch-size", type=int, help="questions side by side; a chunk (default: 128)")
    add("--device", help="where a checkpoint runs (default: cpu)")
    add("--precision", choices=get_args(Precision), help="of a checkpoint (default: float32)")
    add("--threads", type=int, help="torch threads (default: as many as there are free cores)")
    add("--model", help="name of the endpoint's model (default: the only one that it serves)")
    add("--api", choices=get_args(Api), help="of the endpoint (default: completions)")
    add("--concurrency", type=int, help="questions at once at an endpoint (default: 16)")
    add("--retries", type=int, help="how often a request is repeated (default: 8)")
    add("--timeout", type=float, help="seconds to wait for an answer (default: 600)")
    add("--api-key-variable", help="variable that holds the key (default: OPENAI_API_KEY)")
    rules = parser.add_argument_group(
        "environment", "by default that of the checkpoint's training, or else that of the library"
    )
    add_settings(rules, EnvironmentSettings, *ENVIRONMENT)
    add("--resume", action="store_true", default=False, help="go on after what was played")
    add("--smoke", action="store_true", default=False, help="a few questions, to see that it works")
    return parser


def _config(values: Mapping[str, Any], out: Path) -> EvaluationSettings:
    try:
        return EvaluationSettings(**values)
    except TypeError as error:
        raise ValueError(
            f"the settings in {out} are of another version ({error}); start again in another folder"
        ) from error


def _play(
    evaluation: Evaluation,
    folder: EvaluationFolder,
    done: dict[int, list[ExampleScore]],
    seconds: defaultdict[str, float],
) -> None:
    """Play the chunks that are left, and add their episodes to the folder, their scores to done."""
    total = sum(len(chunk.questions) for chunk in evaluation.chunks)
    scored = [score for scores in done.values() for score in scores]
    right, ended = sum(score.values["em"] for score in scored), len(scored)
    if done:
        _say(f"going on after {ended:,} of {total:,} episodes")
    left = [chunk for chunk in evaluation.chunks if chunk.number not in done]
    with progress_bar() as bar:
        task = bar.add_task("evaluate", total=total, completed=ended, note="")
        for chunk, episodes in _played(evaluation, left, seconds):
            folder.append(chunk, episodes)
            done[chunk.number] = [score_example(episode) for episode in episodes]
            tenths = 10 * ended // total
            right += sum(score.values["em"] for score in done[chunk.number])
            ended += len(episodes)
            note = f"em {right / ended:.3f}"
            bar.update(task, completed=ended, note=note)
            if not console.is_terminal and 10 * ended // total > tenths:
                _say(f"{ended:,} of {total:,} episodes: {note}")


def _played(
    evaluation: Evaluation, chunks: Sequence[Chunk], seconds: defaultdict[str, float]
) -> Iterator[tuple[Chunk, list[Episode]]]:
    engine, player = evaluation.engine, evaluation.player
    if player.workers > 1:
        yield from play_at_once(
            engine, player.agent_of, chunks, player.workers, seconds=seconds, stop=player.stop
        )
        return
    for chunk in chunks:
        yield chunk, play_chunk(engine, player.agent_of(chunk), chunk, seconds=seconds)


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def results_table(results: Mapping[str, Any], title: str, scorer: str | None) -> Table:
    """A row for each data set and the two averages, a column for each metric with a heading.

    Args:
        results: What :func:`igsearch_env.evaluation.scores.report` returns.
        title: Title of the table.
        scorer: Class of the scorer that the information gains come from, or None.
    """
    micro, macro = results["micro"], results["macro"]
    headings = {name: metric.heading for name, metric in METRICS.items() if metric.heading}
    for name in micro:
        if name.startswith("pass_at_") and not name.endswith("_interval"):
            headings[name] = f"pass@{name.removeprefix('pass_at_')}"
    if scorer:  # gains of different scorers differ in size: a figure without its scorer says little
        headings["information_gain"] += f"\n{scorer}"
    headings = {name: heading for name, heading in headings.items() if name in micro}
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column("data set", no_wrap=True)
    for heading in ("n", *headings.values()):
        table.add_column(heading, justify="right")
    rows = dict(results["datasets"])
    if len(rows) > 1:
        rows |= {"macro average": macro}
    rows |= {"micro average": micro}
    for dataset, row in rows.items():
        size = f"{row['n']:,}" if "n" in row else f"{row['datasets']} sets"
        table.add_row(escape(dataset), size, *(_cell(row, name) for name in headings))
    return table


def _cell(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return "-"
    metric = METRICS.get(name)  # None for pass@k
    value = f"{row[name]:.{3 if metric is None else metric.digits}f}"
    if metric is None or not metric.interval:
        return value
    low, high = row[f"{name}_interval"]
    return f"{value}\n{low:.2f}–{high:.2f}"
