"""Environment steps per CPU second: one environment, Gymnasium's SyncVectorEnv, and our own rows.

python -m scripts.benchmarks.env --out runs/bench_env

Three workloads play scripted turns, the same ones in every arm: ``search`` is BM25 alone over the
documents of IGSEARCH_DATA/wiki_pool.corpus.jsonl (over the embedded world where there are none),
``scoring`` the demo's world with every gain settled online by the shipped policy, which reads each
transcript before a turn, as when it samples; that is not timed. ``managed`` is the same with two
calls a turn, budgets of tokens and a managed context. A step is one turn of one row. Rounds of all
arms take turns, and medians over rounds are reported.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, Self

from igsearch_env.cli.program import parse_early, run
from scripts.benchmarks.kit import benchmark_parser, print_rows


def _parser() -> argparse.ArgumentParser:
    return benchmark_parser(__doc__)


if __name__ == "__main__":
    parse_early(_parser)

from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents.loading import load_policy
from agents.transformers_policy import TransformersPolicy
from igsearch_env import (
    PROTOCOLS,
    BM25Retriever,
    EvidencePool,
    Question,
    SearchQAEnv,
    SearchQAVectorEnv,
    World,
    load_corpus,
    load_questions,
)
from igsearch_env.cli.console import progress_bar
from igsearch_env.files import write_json
from igsearch_env.threads import set_threads
from igsearch_env.words import query_words
from trainers.memory import keep_freed_memory, lasting_objects

Kind = Literal["single", "sync", "ours"]
ARMS: tuple[tuple[Kind, int], ...] = (
    ("single", 1),
    *((kind, rows) for rows in (8, 64) for kind in ("sync", "ours")),
)
SEARCHES = 3
COLUMNS = {
    "workload": ("workload", "s"),
    "kind": ("environment", "s"),
    "rows": ("rows", "d"),
    "steps_per_cpu_second": ("per CPU s", ",.0f"),
    "outside": ("CPU outside retriever and scorer", ".1%"),
}


@dataclass(frozen=True)
class Workload:
    """What is played: questions, and the arguments that every environment gets."""

    name: str
    questions: Sequence[Question]
    options: dict[str, Any]
    timed: Sequence[Timed]
    policy: TransformersPolicy | None = None
    calls: int = 1

    def turns(self, question: Question) -> list[str]:
        """Searches for parts of the question, each refined in the next turn, then an answer."""
        words = query_words(question.text)
        queries = [" ".join(words[start:]) or words[-1] for start in range(SEARCHES)]
        turns = [f"<search> {query} </search>" for query in queries]
        if self.calls > 1:
            turns = [f"{turn} <search> {words[-1]} </search>" for turn in turns]
        return [
            turns[0],
            *(f"<refine> {words[0]} </refine> {turn}" for turn in turns[1:]),
            f"<refine> {words[-1]} </refine> <answer> {words[-1]} </answer>",
        ]


class Player:
    """One way to play a workload; its rows share a pool of counterfactuals."""

    def __init__(self, workload: Workload, kind: Kind, rows: int) -> None:
        self.workload, self.kind, self.rows = workload, kind, rows
        options = {"questions": workload.questions, **workload.options, "pool": EvidencePool()}
        self.env: Any
        if kind == "ours":
            self.env = SearchQAVectorEnv(rows, **options)
        elif kind == "single":
            self.env = SearchQAEnv(**options)
        else:
            makers = [lambda: SearchQAEnv(**options)] * rows
            self.env = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)

    def round(self, number: int) -> dict[str, float]:
        """Play an episode in every row: steps per CPU second, and the share of time outside."""
        turns = list(zip(*map(self.workload.turns, self._reset(number)), strict=True))  # by step
        before = sum(part.seconds for part in self.workload.timed)
        seconds = 0.0
        for actions in turns:
            if self.workload.policy is not None:  # so that its memory is that of real play
                self.workload.policy.act(self.episodes())
            started = time.process_time()
            self.env.step(actions[0] if self.kind == "single" else actions)
            seconds += time.process_time() - started
        inside = sum(part.seconds for part in self.workload.timed) - before
        steps = len(turns) * self.rows
        return {"steps_per_cpu_second": steps / seconds, "outside": 1 - inside / seconds}

    def episodes(self) -> Any:
        """The episode of each row."""
        if self.kind == "ours":
            return self.env.episodes
        return [env.episode for env in ([self.env] if self.kind == "single" else self.env.envs)]

    def _reset(self, number: int) -> list[Question]:
        """Begin an episode in every row; returns what is asked."""
        questions = self.workload.questions
        asked = [questions[(number * self.rows + i) % len(questions)] for i in range(self.rows)]
        if self.kind == "ours":
            self.env.reset(options={"questions": asked})
        elif self.kind == "single":
            self.env.reset(options={"question": asked[0]})
        else:  # its reset gives every row the same options
            self.env.reset(seed=number * self.rows)
            for env, question in zip(self.env.envs, asked, strict=True):
                env.reset(options={"question": question})
        return asked


def main(argv: Sequence[str] | None = None) -> None:
    """Time every arm, print the table and write results.json.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    set_threads(arguments.threads)
    keep_freed_memory()
    rows = []
    scoring = scoring_workload()
    for workload, rounds in ((search_workload(), 15), (scoring, 8), (managed_workload(scoring), 8)):
        arms = [Player(workload, kind, rows) for kind, rows in ARMS]
        with lasting_objects():  # as in training
            rows += measure(arms, rounds)
    write_json(arguments.out / "results.json", {"rows": rows, "threads": arguments.threads})
    print_rows("environment steps", rows, COLUMNS)


def search_workload() -> Workload:
    """Searches alone."""
    folder = os.environ.get("IGSEARCH_DATA")
    if folder:
        documents = load_corpus(Path(folder) / "wiki_pool.corpus.jsonl")
        questions = load_questions(Path(folder) / "hotpotqa.questions.jsonl")
    else:
        world = World.generate(seed=0, people=8_000)  # 43,000 documents
        documents, questions = list(world.documents), list(world.test_questions)
    retriever = Timed(BM25Retriever.build(documents), "search")
    options = {"retriever": retriever, "scorer": None, "top_k": 3}
    return Workload("search", questions, options, [retriever])


def scoring_workload() -> Workload:
    """The demo's world, with gains settled by the shipped policy as they fall due."""
    world = World.generate(seed=0, people=320)
    questions = [question for question in world.test_questions if question.hops == 2]
    retriever = Timed(BM25Retriever.build(world.documents), "search")
    policy = load_policy("agents/world-tiny", max_new_tokens=1)
    scorer = Timed(policy.scorer(), "fits", "log_probs")
    # As published, so that every search is scored.
    gain = {"counterfactual": "documents+refinement", "added_only": False}
    parts = {"retriever": retriever, "scorer": scorer, "protocol": "refine-bare", "top_k": 1}
    options = {**parts, **gain}
    return Workload("scoring", questions, options, [retriever, scorer], policy)


def managed_workload(scoring: Workload) -> Workload:
    """The same with everything on that an episode may have besides."""
    assert scoring.policy is not None  # which counts
    more = {
        "protocol": replace(PROTOCOLS["refine-bare"], name="several", max_calls=2),
        "tokenizer": scoring.policy.tokenizer,
        "max_searches": 2 * SEARCHES,
        "document_tokens": 6,
        "observation_tokens": 40,
        "episode_tokens": 2_000,
        "keep_documents": 1,
    }
    return replace(scoring, name="managed", options={**scoring.options, **more}, calls=2)


def measure(arms: Sequence[Player], rounds: int) -> list[dict[str, Any]]:
    """Play rounds of all arms in turn, after one of a single row to warm up."""
    arms[0].round(0)
    results: list[list[dict[str, float]]] = [[] for _ in arms]
    with progress_bar() as bar:
        task = bar.add_task(arms[0].workload.name, total=rounds * len(arms), note="")
        for number in range(rounds):
            for arm, played in zip(arms, results, strict=True):
                played.append(arm.round(number))
                bar.advance(task)
    return [
        {"workload": arm.workload.name, "kind": arm.kind, "rows": arm.rows}
        | {key: median(row[key] for row in played) for key in played[0]}
        for arm, played in zip(arms, results, strict=True)
    ]


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
