"""What the page of rollouts shows, gathered from the folder of an evaluation or of a training run.

Indices of characters (``span``, ``ends``) count code points, as Python does. Documents stand in one
table, since searches and counterfactuals share them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igsearch_env.answers import contains_answer
from igsearch_env.episode import Document, Episode, Evidence, Question, Step
from igsearch_env.evaluation.metrics import METRICS
from igsearch_env.files import read_sealed
from igsearch_env.record import episode_from_record
from igsearch_env.render import is_gold
from igsearch_env.text import without_logins
from igsearch_env.viewer.saved_rollouts import SavedRollout, saved_steps

EPISODES, LOG = "episodes.jsonl", "metrics.jsonl"
SETTINGS = {"evaluation": "manifest.json", "training": "config.json"}


@dataclass(frozen=True)
class Shown:
    """A rollout that is shown, and the training step that it is from."""

    rollout: SavedRollout
    step: int | None = None

    @property
    def group(self) -> str:
        """What it shares with the rollouts that it is set beside, and with no others."""
        episode = self.rollout.episode
        return json.dumps([self.step, episode.question.dataset, episode.group_id])


def view_data(folder: Path, limit: int) -> dict[str, Any]:
    """The data of the page, ready for JSON.

    Args:
        folder: What ``igsearch evaluate`` or ``scripts.train`` wrote.
        limit: Most rollouts that are shown; of more, whole groups at even distances are.

    Raises:
        ValueError: If it is no such folder, or a line of a file cannot be read.
    """
    if (folder / EPISODES).is_file():
        kind, rollouts, metrics = "evaluation", list(_evaluated(folder)), []
    elif (folder / LOG).is_file():
        kind, rollouts = "training", list(_trained(folder))
        metrics = [row for _, row in _rows(folder / LOG)]
    else:
        raise ValueError(
            f"{folder} holds neither {EPISODES} (of igsearch evaluate) nor {LOG} (of "
            "scripts.train); give the --out of one of them that has ended"
        )
    shown = spread(rollouts, limit)
    table: dict[tuple[str, str, str], int] = {}
    numbers: dict[str, int] = {}
    return {
        "name": folder.resolve().name,
        "kind": kind,
        "settings": _settings(folder / SETTINGS[kind]),
        "metrics": metrics,
        "table": {
            name: {"label": metric.label, "digits": metric.digits, "column": bool(metric.heading)}
            for name, metric in METRICS.items()
        },
        "total": len(rollouts),
        "rollouts": [
            _rollout(one, numbers.setdefault(one.group, len(numbers)), table) for one in shown
        ],
        "documents": [list(document) for document in table],
    }


def imports_of(folder: Path) -> list[str]:
    """The files and modules that an evaluation or a training run was given with ``--import``.

    Raises:
        ValueError: If the file with its settings cannot be read.
    """
    found: list[str] = []
    for kind, section in (("evaluation", "config"), ("training", "run")):
        path = folder / SETTINGS[kind]
        try:
            found += _read_settings(path).get(section, {}).get("imports", ())
        except (AttributeError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error})") from error
    return found


def spread(rollouts: Sequence[Shown], limit: int) -> list[Shown]:
    """At most ``limit`` rollouts (but one group at least): whole groups, at even distances."""
    if len(rollouts) <= limit:
        return list(rollouts)
    groups: dict[str, list[Shown]] = {}
    for one in rollouts:
        groups.setdefault(one.group, []).append(one)
    every = list(groups.values())
    count = max(1, limit // max(map(len, every)))
    return [one for i in range(count) for one in every[i * len(every) // count]]


def _evaluated(folder: Path) -> Iterator[Shown]:
    for episode in _read(folder / EPISODES, episode_from_record):
        yield Shown(SavedRollout(episode, (), ()))


def _trained(folder: Path) -> Iterator[Shown]:
    for step, path in saved_steps(folder):
        for rollout in _read(path, SavedRollout.from_record):
            yield Shown(rollout, step)


def _read(path: Path, build: Callable[[dict[str, Any]], Any]) -> Iterator[Any]:
    for number, record in _rows(path):
        try:
            yield build(record)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number} is damaged ({error})") from error


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The whole lines of a JSONL file, with their numbers; NaN and infinities are read as None."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.strip() and line.endswith("\n"):
                try:
                    row = json.loads(line, parse_constant=lambda _: None)
                    if not isinstance(row, dict):
                        raise ValueError(f"it is no JSON object: {line[:60]!r}")
                    yield number, row
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path}, line {number} is damaged ({error})") from error


def _settings(path: Path) -> dict[str, str]:
    """The settings as ``section.key`` and text; empty where none were written."""
    return dict(_flat(_read_settings(path)))


def _read_settings(path: Path) -> dict[str, Any]:
    """What stands in a file of settings; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        return {**without_logins(read_sealed(path))}  # the page is sent around
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)


def _rollout(one: Shown, group: int, table: dict[tuple[str, str, str], int]) -> dict[str, Any]:
    episode, question = one.rollout.episode, one.rollout.episode.question
    return {
        "id": question.id,
        "group": group,
        "step": one.step,
        "dataset": question.dataset or "unnamed",
        "hops": question.hops,
        "question": question.text,
        "golds": question.golden_answers,
        "answer": episode.answer,
        "em": episode.em,
        "f1": episode.f1,
        "outcome": episode.outcome,
        "parts": [[one.name, one.weight, one.value, one.failed] for one in episode.outcome_parts],
        "unscored": episode.unscored,
        "end": _end(episode),
        "metrics": _metrics(episode),
        "prompt": episode.prompt.text,
        "steps": [
            _step(one.rollout, number, question, table) for number in range(len(episode.steps))
        ],
    }


def _metrics(episode: Episode) -> dict[str, list[float]]:
    """The numbers of each metric; none of an episode that evaluations leave out of their means."""
    if episode.retrieval_failed or not episode.finished:
        return {}
    table = {name: metric.values for name, metric in METRICS.items() if metric.heading}
    return {name: list(values(episode)) for name, values in table.items() if values is not None}


def _end(episode: Episode) -> str:
    if episode.terminated:
        return "answered"
    return f"out of {episode.ended_by or 'turns'}" if episode.truncated else "not finished"


def _step(
    rollout: SavedRollout,
    number: int,
    question: Question,
    table: dict[tuple[str, str, str], int],
) -> dict[str, Any]:
    step: Step = rollout.episode.steps[number]
    observation = step.observation
    return {
        "action": step.action,
        "turn": step.turn.text,
        "ends": rollout.token_ends[number] if rollout.token_ends else (),
        "advantages": rollout.advantages[step.policy_tokens],
        "query": step.query,
        "span": step.query_span,
        "observation": None if observation is None else [observation.source, observation.text],
        "attempt": step.attempt,
        "reflection": None if step.reflection is None else step.reflection.text,
        "failed": step.retrieval_failed,
        "call": step.call,
        "tool": step.tool,
        "cut": step.cut,
        "documents": [
            {
                "at": _place(document, table),
                "score": document.score,
                "gold": is_gold(document, question),
                "answer": contains_answer(
                    f"{document.title} {document.text}", question.golden_answers
                ),
            }
            for document in step.documents
        ],
        "gain": step.information_gain,
        "log_prob": step.log_prob,
        "baselines": step.baseline_log_probs or (),
        "others": [_evidence(evidence, table) for evidence in step.counterfactuals],
    }


def _evidence(evidence: Evidence, table: dict[tuple[str, str, str], int]) -> dict[str, Any]:
    return {
        "question": evidence.question_text,
        "refinement": evidence.refinement.text,
        "documents": [_place(document, table) for document in evidence.documents],
    }


def _place(document: Document, table: dict[tuple[str, str, str], int]) -> int:
    return table.setdefault((document.id, document.title, document.text), len(table))
