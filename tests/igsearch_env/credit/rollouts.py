"""Finished rollouts from a few letters, and ragged batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from igsearch_env import Episode, Segment, Step
from tests.igsearch_env.fakes import finished, policy_step

ATTEMPTS = ("a", "sa", "s", "i", "ia", "ssa", "isa", "sia", "ssia", "ssi", "ii")
ACTIONS = {"s": "search", "i": "invalid", "a": "answer"}


def rollout(
    kinds: str,
    outcome: float = 0.0,
    group: str = "g",
    *,
    tokens: int | Sequence[int] = 2,
    observations: Sequence[str] | None = None,
    log_probs: Sequence[float | None] = (),
    gains: Sequence[float | None] = (),
    prior: float | None = -3.0,
    f1: float | None = None,
    failed: bool = False,
    attempts: Sequence[float] = (),
) -> Episode:
    """One turn per letter: ``s``earch, ``i``nvalid, ``a``nswer; ``|`` begins another attempt.

    The answer counts as given if the last turn is one. ``log_probs`` and ``gains`` are those of the
    searches in order; the first token of a search is its query. ``failed`` fails the first search.
    ``attempts`` are the outcomes of all attempts.
    """
    steps: list[Step] = []
    at = searches = attempt = number = 0
    for kind in kinds:
        if kind == "|":
            attempt += 1
            steps[-1] = replace(steps[-1], reflection=Segment("again", "system"))
            continue
        size = tokens if isinstance(tokens, int) else tokens[number]
        more: dict[str, Any] = {}
        if kind == "s":
            more = {
                "search_step": searches,
                "query": f"{group} {number}",
                "log_prob": log_probs[searches] if searches < len(log_probs) else None,
                "information_gain": gains[searches] if searches < len(gains) else None,
                "retrieval_failed": failed and searches == 0,
            }
            searches += 1
        text = f"seen {number}" if observations is None else observations[number]
        step = policy_step(ACTIONS[kind], at, size, (0, min(1, size)) if kind == "s" else None)
        more["observation"] = None if kind == "a" else Segment(text, "document")
        steps.append(replace(step, attempt=attempt, hindsight_shift=number / 4 - 0.3, **more))
        at += size
        number += 1
    answered = kinds.endswith("a")
    return finished(
        outcome,
        steps,
        group,
        answer="x" if answered else None,
        f1=outcome if f1 is None else f1,
        prior_log_prob=prior,
        attempt_outcomes=tuple(attempts),
    )


@st.composite
def rollouts(draw: st.DrawFn, observations: Sequence[str] = ("a", "b")) -> Episode:
    """Ragged in turns, tokens and attempts; some invalid, some without a search, some failed."""
    played = draw(st.lists(st.sampled_from(ATTEMPTS), min_size=1, max_size=3))
    kinds, turns = "|".join(played), sum(map(len, played))
    outcomes = [draw(st.sampled_from([0.0, 1.0, 0.4])) for _ in played]
    value = st.one_of(st.none(), st.sampled_from([-4.0, -2.5, -1.0, -0.25]))
    searches = kinds.count("s")
    log_probs = draw(st.lists(value, min_size=searches, max_size=searches))
    return rollout(
        kinds,
        outcomes[-1],
        draw(st.sampled_from("gh")),
        tokens=draw(st.lists(st.integers(0, 3), min_size=turns, max_size=turns)),
        observations=[draw(st.sampled_from(observations)) for _ in range(turns)],
        log_probs=log_probs,
        gains=draw(st.lists(value, min_size=searches, max_size=searches)),
        prior=draw(st.sampled_from([-3.0, -1.0])),
        f1=draw(st.sampled_from([0.0, 0.5, 1.0])),
        failed=searches > 0 and draw(st.integers(0, 4)) == 0,
        attempts=outcomes,
    )


def batches(**options: Any) -> st.SearchStrategy[list[Episode]]:
    """Several groups of ragged rollouts, some of them alone."""
    return st.lists(rollouts(**options), max_size=5)


def per_turn(episode: Episode, array: Any) -> list[float]:
    """The advantage of each turn that has tokens, after checking that all of them share it."""
    values = []
    for step in episode.steps:
        part = [float(value) for value in array[step.policy_tokens]]
        assert len(set(part)) <= 1
        values += part[:1]
    return values


def on_tokens(episode: Episode, values: Sequence[float]) -> list[float]:
    """One value per turn, spread over its tokens."""
    return [
        value
        for step, value in zip(episode.steps, values, strict=True)
        for _ in step.turn.token_ids or ()
    ]
