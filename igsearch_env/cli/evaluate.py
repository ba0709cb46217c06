r"""Evaluate an agent on question sets: EM, F1, searches and more, with intervals.

igsearch evaluate --questions world-test --corpus world --agent oracle --out runs/oracle
igsearch evaluate --questions nq hotpotqa bamboogle --corpus wiki.jsonl \
    --index indexes/wiki --agent runs/mine/policy --out runs/mine/eval --information-gain
igsearch evaluate --questions benchmarks --index indexes/wiki --samples 4 \
    --agent http://127.0.0.1:8000/v1 --concurrency 64 --out runs/served
igsearch evaluate --out runs/served --resume
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igsearch_env.cli.program import (
    Parser,
    add_import,
    add_settings,
    on_interrupt,
    output_folder,
    say,
)
from igsearch_env.episode import Episode
from igsearch_env.evaluation.folder import EvaluationFolder, check_unchanged, read_episodes
from igsearch_env.evaluation.metrics import METRICS
from igsearch_env.evaluation.play import Chunk, play_at_once, play_chunk
from igsearch_env.evaluation.scores import ExampleScore, all_averages, score_example
from igsearch_env.evaluation.settings import EvaluationSettings, comparable
from igsearch_env.evaluation.setup import Evaluation, make_evaluation
from igsearch_env.plugins import import_again, lasting_name
from igsearch_env.record import to_record
from igsearch_env.settings import EnvironmentSettings
from igsearch_env.text import without_logins

if TYPE_CHECKING:
    from rich.table import Table

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
OPTIONS = tuple(
    f.name for f in fields(EvaluationSettings) if f.name not in ("environment", "imports")
)
LOST = 8  # episodes in a row whose searches failed: the retriever is gone
LONG_CHUNK = 60.0  # seconds that a kill may cost before a smaller batch is advised


def main(argv: Sequence[str] | None = None) -> None:
    """Play the questions, write the records and the results, and print a table.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    given = vars(_parser().parse_args(argv))
    from igsearch_env.cli.console import print_table, progress_bar

    imports = given.pop("import", None)
    out, resume, smoke = (given.pop(name) for name in ("out", "resume", "smoke"))
    changes = {name: given.pop(name) for name in ENVIRONMENT if name in given}
    folder = EvaluationFolder(out, resume=resume)
    before = folder.config()
    if resume and not before and "questions" not in given:
        raise ValueError(f"{out} holds no evaluation to go on with; leave out --resume")
    if imports is None:
        import_again(before.get("imports", ()), out)
    else:
        given["imports"] = [lasting_name(name) for name in imports]
    if changes:
        given["environment"] = {**before.get("environment", {}), **changes}
    check_unchanged(comparable(before), comparable(given) if before else {}, out)
    settings = _settings({**(SMOKE if smoke else {}), **before, **given}, out)
    started = time.perf_counter()
    with progress_bar() as bar:
        loading = bar.add_task("load agent, questions and index")
        evaluation = make_evaluation(settings, say, sys.stderr.isatty())
        bar.remove_task(loading)
        judge = evaluation.engine.judge
        seconds = defaultdict[str, float](float, loading=time.perf_counter() - started)
        try:
            with (
                folder.alone(),
                on_interrupt(f"go on with igsearch evaluate --out {out} --resume"),
            ):
                done = folder.begin(to_record(settings), evaluation.inputs, evaluation.chunks)
                _play(evaluation, folder, done, seconds, bar)
                results = all_averages([score for number in sorted(done) for score in done[number]])
                seconds["total"] = time.perf_counter() - started
                times = {name: round(value, 3) for name, value in seconds.items()}
                asking = {"judge": judge, "scorer": evaluation.player.scorer}  # servers, if any
                counts = {n: c for n, one in asking.items() if (c := getattr(one, "counts", None))}
                folder.finish(results, times, len(evaluation.player.refused), counts)
        finally:
            evaluation.player.stop()
            if judge is not None:
                judge.close()
    if refused := evaluation.player.refused:
        reason = next(iter(refused.values()))
        say(f"{len(refused):,} questions were refused and count as not answered ({reason})")
    if settings.information_gain and "information_gain" not in results["micro"]:
        say(_why_no_gain(read_episodes(folder.episodes)))
    if judge is not None:
        say(judge.summary())
    if hasattr(evaluation.player.scorer, "summary"):  # one that asks a server, and may fail
        say(evaluation.player.scorer.summary())
    title = f"{without_logins(settings.agent)} on {', '.join(settings.questions)}"
    print_table(results_table(results, title, evaluation.inputs["scorer"]))
    say(f"{folder.episodes}, results.json, manifest.json ({seconds['total']:.1f} s)")
    scored, failed = results["micro"]["n"], results["micro"]["failed"]
    if failed and not scored:
        raise ValueError(
            f"no question was scored: in each of the {failed:,} episodes a search failed; see that "
            f"{settings.index or settings.corpus} works, and go on with igsearch evaluate --out "
            f"{out} --resume"
        )
    if failed:
        say(
            f"left out: {failed:,} episodes in which a search failed; igsearch evaluate --out "
            f"{out} --resume plays them again"
        )


def _parser() -> Parser:
    parser = Parser("igsearch evaluate", __doc__)
    add = parser.add_argument
    add("--out", type=output_folder, required=True, help="folder for the records and the results")
    add("--resume", action="store_true", help="go on after what was played, with the same settings")
    add("--smoke", action="store_true", help="a few questions, to see that it works")
    add_import(parser)
    add_settings(parser, EvaluationSettings, *OPTIONS)
    environment = parser.add_argument_group(
        "environment", "by default that of the checkpoint's training, or else that of the library"
    )
    add_settings(environment, EnvironmentSettings, *ENVIRONMENT)
    return parser


def _settings(values: Mapping[str, Any], out: Path) -> EvaluationSettings:
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
    bar: Any,
) -> None:
    """Play the chunks that are left, and add their episodes to the folder, their scores to done.

    Chunks in which every episode had a failed search are kept back until another one comes, so
    that after the loss of a retriever ``--resume`` plays them again.
    """
    total = sum(len(chunk.questions) for chunk in evaluation.chunks)
    scored = [score for scores in done.values() for score in scores]
    right, ended = sum(score.values["em"] for score in scored), len(scored)
    if done:
        say(f"going on after {ended:,} of {total:,} episodes")
    left = [chunk for chunk in evaluation.chunks if chunk.number not in done]
    task = bar.add_task("evaluate", total=total, completed=ended)
    advised = False
    begun = time.perf_counter()
    waiting: list[tuple[Chunk, list[Episode]]] = []

    def keep() -> None:
        while waiting:
            chunk, episodes = waiting.pop(0)
            folder.append(chunk, episodes)
            done[chunk.number] = [score_example(episode) for episode in episodes]

    for chunk, episodes in _played(evaluation, left, seconds, lambda n: bar.advance(task, n)):
        waiting.append((chunk, episodes))
        if not all(episode.retrieval_failed for episode in episodes):
            keep()
        elif (lost := sum(len(one) for _, one in waiting)) >= LOST:
            raise ConnectionError(
                f"a search failed in each of the last {lost} episodes, which are not kept; see "
                "that the retriever works, and go on with igsearch evaluate --out "
                f"{folder.path} --resume"
            )
        right += sum(episode.em or 0.0 for episode in episodes)
        ended += len(episodes)
        bar.update(task, completed=ended, note=f"em {right / ended:.3f}")
        passed, begun = time.perf_counter() - begun, time.perf_counter()
        if passed > LONG_CHUNK and len(chunk.questions) > 1 and not advised:
            advised = True
            size = max(1, int(len(chunk.questions) * LONG_CHUNK / passed))
            say(
                f"{len(chunk.questions)} questions took {passed:.0f} s, which is what a kill may "
                f"cost; --batch-size {size} would lose a minute"
            )
    keep()


def _played(
    evaluation: Evaluation,
    chunks: Sequence[Chunk],
    seconds: defaultdict[str, float],
    progress: Callable[[int], None],
) -> Iterator[tuple[Chunk, list[Episode]]]:
    engine, player = evaluation.engine, evaluation.player
    if player.workers > 1:
        yield from play_at_once(
            engine, player.agent_of, chunks, player.workers, seconds=seconds, stop=player.stop
        )
        return
    for chunk in chunks:
        agent = player.agent_of(chunk)
        yield chunk, play_chunk(engine, agent, chunk, seconds=seconds, progress=progress)


def _why_no_gain(episodes: Iterable[Episode]) -> str:
    """Why no search of an evaluation has an information gain."""
    searches = [step for episode in episodes for step in episode.searches]
    if not searches:
        return "no information gain: nothing was searched for"
    alone = sum(bool(step.documents) and not step.counterfactuals for step in searches)
    if not alone:
        return f"no information gain: {len(searches):,} of {len(searches):,} searches found nothing"
    return (
        f"no information gain: {alone:,} of {len(searches):,} searches had no counterfactual "
        "evidence (too few other documents); try --top-k 1, or more questions"
    )


def results_table(results: Mapping[str, Any], title: str, scorer: str | None) -> Table:
    """A row for each data set and the two averages, a column for each metric with a heading.

    Args:
        results: What :func:`igsearch_env.evaluation.scores.all_averages` returns.
        title: Title of the table.
        scorer: Class of the scorer that the information gains come from, or None.
    """
    from igsearch_env.cli.console import make_table

    micro, macro = results["micro"], results["macro"]
    headings = {name: metric.heading for name, metric in METRICS.items() if metric.heading}
    for name in micro:
        if name.startswith("pass_at_") and not name.endswith("_interval"):
            headings[name] = f"pass@{name.removeprefix('pass_at_')}"
        if name.startswith("outcome_") and not name.endswith("_interval"):
            headings[name] = name.removeprefix("outcome_")
    if scorer:  # gains of different scorers differ in size: a figure without its scorer says little
        headings["information_gain"] += f"\n{scorer}"
    headings = {name: heading for name, heading in headings.items() if name in micro}
    rows = dict(results["datasets"])
    if len(rows) > 1:
        rows |= {"macro average": macro}
    rows |= {"micro average": micro}
    cells = []
    for dataset, row in rows.items():
        size = f"{row['n']:,}" if "n" in row else f"{row['datasets']} sets"
        cells.append([dataset, size, *(_cell(row, name) for name in headings)])
    return make_table(title, ["data set", "n", *headings.values()], cells)


def _cell(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return "-"
    metric = METRICS.get(name)  # None for pass@k and parts of the outcome
    value = f"{row[name]:.{3 if metric is None else metric.digits}f}"
    if metric is None or not metric.interval:
        return value
    low, high = row[f"{name}_interval"]
    return f"{value}\n{low:.2f}–{high:.2f}"
