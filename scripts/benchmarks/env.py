"""Environment steps per second: one environment, Gymnasium's SyncVectorEnv, and our own rows.

python -m scripts.benchmarks.env --out runs/bench_env
python -m scripts.benchmarks.env --out runs/bench_env_quick --quick

Three workloads play scripted turns, the same ones in every arm: ``search`` is BM25 alone over the
documents of IGSEARCH_DATA/wiki_pool.corpus.jsonl (over the embedded world where there are none),
``scoring`` the demo's world with every gain settled online by the shipped policy, which reads each
transcript before a turn, as when it samples; that is not timed. ``both`` (not with --quick) scores
over the documents of ``search``, which are some 20 times as long to this policy, so that its
arithmetic is nearly all there is. A step is one turn of one row.

Rounds of all arms take turns, and medians over rounds are reported: in CPU seconds, which other
programs on the machine disturb less, and in seconds of the clock for AsyncVectorEnv (8 rows, one
process each) beside the others.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, Self

from igsearch_env.cli.program import parse_early, run
from scripts.benchmarks.kit import benchmark_parser, print_rows


def _parser() -> argparse.ArgumentParser:
    return benchmark_parser(__doc__, "less than 45 seconds")


if __name__ == "__main__":
    parse_early(_parser)

from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from agents.loading import load_policy
from agents.transformers_policy import TransformersPolicy
from igsearch_env import (
    BM25Retriever,
    EvidencePool,
    Question,
    SearchQAEnv,
    SearchQAVectorEnv,
    World,
    load_corpus,
    load_questions,
)
from igsearch_env.cli.console import console, progress_bar
from igsearch_env.files import write_json
from igsearch_env.threads import set_threads
from igsearch_env.words import query_words
from trainers.memory import keep_freed_memory, lasting_objects

Kind = Literal["single", "sync", "async", "ours"]
SEARCHES = 3
ROWS = (1, 8, 64)
ASYNC_ROWS = 8
COLUMNS = {
    "workload": ("workload", "s"),
    "kind": ("environment", "s"),
    "rows": ("rows", "d"),
    "steps_per_cpu_second": ("per CPU s", ",.0f"),
    "steps_per_second": ("per s", ",.0f"),
    "outside": ("CPU outside retriever and scorer", ".1%"),
}
MAX_OUTSIDE, MIN_SPEEDUP = 0.05, 3.0  # at 64 rows, with scoring


@dataclass(frozen=True)
class Workload:
    """What is played: questions, and the arguments that every environment gets."""

    name: Literal["search", "scoring", "both"]
    questions: Sequence[Question]
    options: dict[str, Any]
    timed: Sequence[Timed]
    policy: TransformersPolicy | None = None

    def turns(self, question: Question) -> list[str]:
        """Searches for parts of the question, each refined in the next turn, then an answer."""
        words = query_words(question.text)
        queries = [" ".join(words[start:]) or words[-1] for start in range(SEARCHES)]
        turns = [f"<search> {query} </search>" for query in queries]
        return [
            turns[0],
            *(f"<refine> {words[0]} </refine> {turn}" for turn in turns[1:]),
            f"<refine> {words[-1]} </refine> <answer> {words[-1]} </answer>",
        ]


@dataclass(frozen=True)
class Player:
    """One way to play a workload."""

    workload: Workload
    kind: Kind
    rows: int
    env: Any

    def round(self, number: int) -> dict[str, float | None]:
        """Play an episode in every row: steps per second, and the share of time outside."""
        turns = list(zip(*map(self.workload.turns, self._reset(number)), strict=True))  # by step
        before = sum(part.seconds for part in self.workload.timed)
        clock = seconds = 0.0
        for actions in turns:
            self._read()
            on_clock, started = time.perf_counter(), time.process_time()
            self.env.step(actions[0] if self.kind == "single" else actions)
            seconds += time.process_time() - started
            clock += time.perf_counter() - on_clock
        inside = sum(part.seconds for part in self.workload.timed) - before
        steps = len(turns) * self.rows
        known = self.kind != "async"  # its CPU time is spent in other processes
        return {
            "steps_per_second": steps / clock,
            "steps_per_cpu_second": steps / seconds if known else None,
            "outside": 1 - inside / seconds if known else None,
        }

    def _read(self) -> None:
        """Let the policy read the transcripts, so that its memory is that of real play."""
        if self.workload.policy is None or self.kind == "async":
            return
        envs = {"single": [self.env], "sync": getattr(self.env, "envs", [])}.get(self.kind)
        episodes = self.env.episodes if envs is None else [env.episode for env in envs]
        self.workload.policy.act(episodes)

    def _reset(self, number: int) -> list[Question]:
        """Begin an episode in every row; returns what is asked."""
        questions = self.workload.questions
        asked = [questions[(number * self.rows + i) % len(questions)] for i in range(self.rows)]
        if self.kind == "ours":
            self.env.reset(options={"questions": asked})
        elif self.kind == "single":
            self.env.reset(options={"question": asked[0]})
        else:  # their reset gives every row the same options
            _, infos = self.env.reset(seed=number * self.rows)
            if self.kind == "async":
                return list(infos["question"])
            for env, question in zip(self.env.envs, asked, strict=True):
                env.reset(options={"question": question})
        return asked


def main(argv: Sequence[str] | None = None) -> None:
    """Time every arm, print the table and the verdict, and write results.json.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    set_threads(arguments.threads)
    keep_freed_memory()
    search, scoring = search_workload(), scoring_workload()
    planned = plan(arguments.quick)
    work = [(search, planned, 3), (scoring, planned, 4)]
    if not arguments.quick:
        most = [(kind, rows) for kind, rows in planned if rows == ROWS[-1]]
        work = [(search, planned, 15), (scoring, planned, 8), (combined(search, scoring), most, 3)]
    rows = []
    for workload, kinds, rounds in work:
        arms = [make_arm(workload, kind, n) for kind, n in kinds]
        with lasting_objects():  # as in training
            rows += measure(arms, rounds)
    write_json(arguments.out / "results.json", {"rows": rows, "threads": arguments.threads})
    print_rows("environment steps", rows, COLUMNS)
    console.print(verdict(rows), soft_wrap=True)


def plan(quick: bool) -> list[tuple[Kind, int]]:
    """Kinds of environment and numbers of rows."""
    arms: list[tuple[Kind, int]] = [("single", 1)]
    for rows in ROWS:
        arms += [("sync", rows), ("ours", rows)]
        if rows == ASYNC_ROWS and not quick:
            arms.append(("async", rows))
    return arms


def search_workload() -> Workload:
    """Searches alone."""
    folder = os.environ.get("IGSEARCH_DATA")
    if folder:
        console.print(f"indexing {Path(folder) / 'wiki_pool.corpus.jsonl'}")
        documents = load_corpus(Path(folder) / "wiki_pool.corpus.jsonl")
        questions = load_questions(str(Path(folder) / "hotpotqa.questions.jsonl"))
    else:
        world = World.generate(seed=0, people=8_000)  # 43,000 documents
        documents, questions = list(world.documents), list(world.test_questions)
    retriever = Timed(BM25Retriever.build(documents), "search")
    options = {"retriever": retriever, "scorer": None, "top_k": 3}
    return Workload("search", questions, {"questions": questions, **options}, [retriever])


def scoring_workload() -> Workload:
    """The demo's world, with gains settled by the shipped policy as they fall due."""
    world = World.generate(seed=0, people=320)
    questions = [question for question in world.test_questions if question.hops == 2]
    retriever = Timed(BM25Retriever.build(world.documents), "search")
    policy = load_policy("agents/world-tiny", max_new_tokens=1)
    scorer = Timed(policy.scorer(), "fits", "log_probs")
    options = {"retriever": retriever, "scorer": scorer, "protocol": "refine-bare", "top_k": 1}
    options = {"questions": questions, **options}
    return Workload("scoring", questions, options, [retriever, scorer], policy)


def combined(search: Workload, scoring: Workload) -> Workload:
    """The searches of one workload, scored as in the other."""
    options = scoring.options | {name: search.options[name] for name in ("questions", "retriever")}
    timed = [search.timed[0], scoring.timed[1]]
    return Workload("both", search.questions, options, timed, scoring.policy)


def make_arm(workload: Workload, kind: Kind, rows: int) -> Player:
    """Build the environment of an arm; its rows share a pool of counterfactuals."""
    options = {**workload.options, "pool": EvidencePool()}
    if kind == "ours":
        return Player(workload, kind, rows, SearchQAVectorEnv(rows, **options))
    if kind == "single":
        return Player(workload, kind, rows, SearchQAEnv(**options))
    makers = [lambda: SearchQAEnv(**options)] * rows
    if kind == "async":
        mode = AutoresetMode.DISABLED
        return Player(workload, kind, rows, AsyncVectorEnv(makers, False, autoreset_mode=mode))
    return Player(
        workload, kind, rows, SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
    )


def measure(arms: Sequence[Player], rounds: int) -> list[dict[str, Any]]:
    """Play rounds of all arms in turn, after one of single rows to warm up."""
    results: list[list[dict[str, float | None]]] = [[] for _ in arms]
    for arm in arms:
        if arm.rows == 1:
            arm.round(0)
    with progress_bar() as bar:
        task = bar.add_task(arms[0].workload.name, total=rounds * len(arms), note="")
        for number in range(rounds):
            for arm, played in zip(arms, results, strict=True):
                played.append(arm.round(number))
                bar.advance(task)
    for arm in arms:
        arm.env.close()
    return [
        {
            "workload": arm.workload.name,
            "kind": arm.kind,
            "rows": arm.rows,
            **{key: _median([row[key] for row in played]) for key in played[0]},
        }
        for arm, played in zip(arms, results, strict=True)
    ]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """Whether the two aims at 64 rows with scoring are met, in one line."""
    speed = {
        row["kind"]: row["steps_per_cpu_second"]
        for row in rows
        if (row["workload"], row["rows"]) == ("scoring", ROWS[-1])
    }
    (outside,) = [
        row["outside"]
        for row in rows
        if (row["workload"], row["kind"], row["rows"]) == ("scoring", "ours", ROWS[-1])
    ]
    ratio = speed["ours"] / speed["sync"]
    met = ratio >= MIN_SPEEDUP and outside <= MAX_OUTSIDE
    return (
        f"{'met' if met else 'MISSED'} at {ROWS[-1]} rows: ours is {ratio:.1f} times SyncVectorEnv "
        f"with scoring (aim: {MIN_SPEEDUP:g}), and spends {outside:.1%} of its time outside "
        f"retriever and scorer (aim: at most {MAX_OUTSIDE:.0%})"
    )


class Timed:
    """A retriever or a scorer that adds up the CPU seconds spent in some of its methods.

    Args:
        part: The retriever or the scorer.
        *methods: Their names.
    """

    def __init__(self, part: Any, *methods: str) -> None:
        self.part, self.seconds = part, 0.0
        self.vocabulary_size = getattr(part, "vocabulary_size", None)
        for name in methods:
            setattr(self, name, partial(self._call, name))

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __len__(self) -> int:
        return len(self.part)

    def _call(self, method: str, *arguments: Any) -> Any:
        started = time.process_time()
        found = getattr(self.part, method)(*arguments)
        self.seconds += time.process_time() - started
        return found


if __name__ == "__main__":
    run(main)
