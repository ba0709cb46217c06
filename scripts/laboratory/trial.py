"""One run of the credit laboratory: an arm is trained on a seed and looked at on the way."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from igsearch_env.answers import contains_answer
from igsearch_env.episode import Episode, Question
from igsearch_env.evaluation.metrics import batch_metrics, gold_document_rate
from igsearch_env.evaluation.play import play_questions
from igsearch_env.files import alone_in, write_json
from igsearch_env.render import is_gold
from igsearch_env.threads import set_threads
from scripts.laboratory.study import (
    QUARTERS,
    Study,
    Trial,
    checkpoint_hash,
    data_hashes,
    evaluation_size,
    hash_of,
    is_result_of,
    settings_record,
    trial_settings,
)
from trainers.config import TrainSettings
from trainers.local.grpo import GRPOTrainer
from trainers.memory import give_back_freed_memory
from trainers.setup import WORLD_QUESTIONS, make_policy, make_questions, make_training_engine

EVAL_SEED = 55_555
EVAL_BATCH = 512  # in worlds, whose policies are tiny
UNFINISHED = ".unfinished"
"""How the name of the folder ends that holds the checkpoints of a run under way."""
COLUMNS = (
    "em",
    "all_fail",
    "all_success",
    "searches",
    "query_tokens",
    "entropy",
    "invalid_turns",
    "sign_flips",
    "clipped",
    "information_gain",
    "log_prob",
    "baseline_log_prob",
    "gain_gold_correlation",
)
"""What is kept of the training log, averaged over each quarter."""


def run_and_keep(study: Study, trial: Trial, path: Path) -> None:
    """Write what :func:`run_trial` returns, so that it is kept even if other runs are cut short.

    A run that was cut short itself goes on where it was last saved: at 25, 50, 75 or 100 % of its
    training. A result that another process has written meanwhile stays as it is.
    """
    folder = path.with_name(f"{trial.name}{UNFINISHED}")
    with alone_in(folder):
        done = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if done is None or not is_result_of(done, study, trial):
            write_json(path, run_trial(study, trial, folder))
        shutil.rmtree(folder)


def run_trial(study: Study, trial: Trial, folder: Path) -> dict[str, Any]:
    """Train and evaluate; development makes do with the smaller evaluation at the end, too.

    Args:
        study: The study.
        trial: The run.
        folder: Where its checkpoints are kept, one a quarter. If there are some of this run, with
            the same settings, weights, files and evaluations, training goes on from the newest.

    Returns:
        JSON-ready: ``evaluations`` (at 0, 25, 50, 75 and 100 % of the budget; ``cpu_seconds`` is
        what training had cost by then, evaluations apart), ``training`` (means by quarter) and
        ``wall_seconds`` by part.
    """
    config = trial_settings(study, trial)
    questions = held_out(study, trial)
    sizes = [evaluation_size(study, trial, quarter) for quarter in range(QUARTERS + 1)]
    rests = {
        "config": settings_record(config),
        "checkpoint": checkpoint_hash(config.policy.path),
        "data": data_hashes(config),
    }
    trainer = GRPOTrainer(config, folder / hash_of([rests, sizes]), resume=True)
    steps = config.optimization.steps
    due = {round(steps * quarter / QUARTERS): quarter for quarter in range(QUARTERS + 1)}
    so_far = trainer.notes or {"cpu": 0.0, "log": [], "evaluations": []}
    cpu, log, evaluations = so_far["cpu"], so_far["log"], so_far["evaluations"]
    while True:
        quarter = due.get(trainer.step)
        if quarter is not None:
            if trainer.step:
                notes = {"cpu": cpu, "log": log, "evaluations": evaluations}
                trainer.notes = json.loads(json.dumps(notes))  # checkpoints hold plain numbers
                trainer.save()
            asked, samples = sizes[quarter]
            found = _evaluate(trainer, questions[:asked], samples, trainer.step, cpu)
            evaluations.append(found)
            give_back_freed_memory()  # an evaluation's batches are larger than those of training
        if trainer.step == steps:
            break
        started = time.process_time()
        log.append(trainer.train_step())
        cpu += time.process_time() - started
    parts = {part for row in log for part in row["seconds"]}
    return {
        "trial": {
            "stage": trial.stage,
            "regime": trial.regime,
            "arm": trial.arm,
            "seed": trial.seed,
        },
        "changes": list(trial.changes),
        **rests,
        "evaluations": evaluations,
        "training": [
            _means(log[steps * quarter // QUARTERS : steps * (quarter + 1) // QUARTERS])
            for quarter in range(QUARTERS)
        ],
        "wall_seconds": {
            part: round(sum(row["seconds"].get(part, 0.0) for row in log), 2)
            for part in sorted(parts)
        },
    }


def held_out(study: Study, trial: Trial) -> list[Question]:
    """The questions that a run is evaluated with; of a file, the same ones for every seed.

    Raises:
        ValueError: If there are fewer than the study asks, or the gold documents of one are not
            known.
    """
    config = trial_settings(study, trial)
    name = config.environment.eval_questions
    questions = _shuffled(make_questions(name, config.world), name)
    asked, _ = evaluation_size(study, trial, QUARTERS)
    if len(questions) < asked:
        raise ValueError(
            f"{trial.name} is to be asked {asked} held-out questions, but {name} has "
            f"{len(questions)}; ask fewer"
        )
    return questions


def _shuffled(questions: Sequence[Question], name: str) -> list[Question]:
    """The questions of a file in a random order, since files are often sorted; always the same one.

    Raises:
        ValueError: If a question names no gold documents.
    """
    for question in questions:
        if not question.gold_ids:
            raise ValueError(
                f"question {question.id!r} of {name} has no gold_ids, by which the laboratory "
                "counts what searches find; leave it out"
            )
    if name in WORLD_QUESTIONS:  # mixed by the seed of the world
        return list(questions)
    return random.Random(0).sample(list(questions), len(questions))


def look_at_start(study: Study, regime: str, seed: int) -> dict[str, float]:
    """What a regime is like before training: the figures that it has to qualify by.

    Args:
        study: The study.
        regime: Name of the regime.
        seed: A development seed.

    Returns:
        ``all_fail``, the share of groups without a success; ``all_fail_supported``, the share of
        those in which a rollout found a gold document of any hop; ``reads``, the share of
        rollouts that are right among those that found a gold document with the answer in it.
    """
    config = trial_settings(study, Trial("qualify", regime, "grpo", seed))
    set_threads(config.run.threads)
    engine = make_training_engine(config, config.run.seed)
    policy = make_policy(
        replace(config.policy, batch_size=_batch_size(config)),
        config.environment.protocol,
        temperature=config.policy.temperature,
    )
    asked = _shuffled(engine.questions, config.environment.questions)[: study.qualifying_groups]
    size = config.optimization.group_size
    repeated = [question for question in asked for _ in range(size)]
    episodes = play_questions(engine, policy, repeated, seed=seed)
    fails: list[bool] = []
    supported: list[bool] = []
    read: list[bool] = []
    for start in range(0, len(episodes), size):
        group = episodes[start : start + size]
        fails.append(not any(episode.em for episode in group))
        if fails[-1]:
            supported.append(any(gold_document_rate(episode) for episode in group))
        read += [bool(e.em) for e in group if _found_answer(e)]
    return {
        "all_fail": float(np.mean(fails)),
        "all_fail_supported": float(np.mean(supported or [False])),
        "reads": float(np.mean(read or [False])),
    }


def _evaluate(
    trainer: GRPOTrainer, questions: Sequence[Question], samples: int, step: int, cpu: float
) -> dict[str, Any]:
    """Sampled figures on held-out questions, ``samples`` times each."""
    policy = trainer.policy.fresh(0)  # the weights as they are now, in larger batches
    policy.batch_size = _batch_size(trainer.config)
    episodes: list[Episode] = []
    for number in range(samples):
        episodes += play_questions(trainer.engine, policy, questions, seed=EVAL_SEED + number)
    right = np.array([e.em or 0.0 for e in episodes]).reshape(samples, -1)  # (samples, questions)
    by_hop: defaultdict[int, list[float]] = defaultdict(list)
    by_search: defaultdict[int, list[float]] = defaultdict(list)
    for episode in episodes:
        for number, found in enumerate(_finds(episode)):
            by_search[number].append(float(found))
        for number, found in enumerate(_hop_hits(episode)):
            by_hop[number].append(float(found))
    means = batch_metrics(episodes)
    by_hops: defaultdict[int, list[float]] = defaultdict(list)
    for episode in episodes:
        by_hops[episode.question.hops or 0].append(episode.em or 0.0)
    return {
        "step": step,
        "cpu_seconds": round(cpu, 2),
        "questions": len(questions),
        "samples": samples,
        "em": means["em"],
        "em_by_hops": {str(hops): float(np.mean(ems)) for hops, ems in sorted(by_hops.items())},
        "pass_at": {str(k): float(right[:k].max(axis=0).mean()) for k in _powers(samples)},
        "gold_documents": means.get("gold_documents"),
        "hop_hits": [float(np.mean(by_hop[number])) for number in sorted(by_hop)],
        "gold_by_search": [float(np.mean(by_search[number])) for number in sorted(by_search)],
        "searches": means["searches"],
        "query_tokens": means.get("query_tokens", 0.0),
    }


def _batch_size(config: TrainSettings) -> int:
    """Rollouts at a time in an evaluation."""
    return (
        EVAL_BATCH if config.environment.questions in WORLD_QUESTIONS else config.policy.batch_size
    )


def _hop_hits(episode: Episode) -> list[bool]:
    """For each gold document in hop order, whether any search found it."""
    found = {document.id for step in episode.searches for document in step.documents}
    return [one in found for one in episode.question.gold_ids]


def _found_answer(episode: Episode) -> bool:
    """Whether a search found a gold document that holds a gold answer."""
    question = episode.question
    return any(
        is_gold(document, question)
        and contains_answer(f"{document.title} {document.text}", question.golden_answers)
        for step in episode.searches
        for document in step.documents
    )


def _finds(episode: Episode) -> list[bool]:
    """For each search, whether it found a gold document of any hop."""
    gold = set(episode.question.gold_ids)
    return [any(d.id in gold for d in step.documents) for step in episode.searches]


def _powers(samples: int) -> list[int]:
    return [k for k in (1, 2, 4, 8, 16) if k <= samples]


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    columns = {name: [row[name] for row in rows if name in row] for name in COLUMNS}
    return {name: float(np.mean(values)) for name, values in columns.items() if values}
