"""Outcomes: what a finished episode is paid, as a function or as a sum of weighted components.

A component measures one thing about an episode, such as exact match or the number of searches. The
settings name one component (``outcome = "em"``) or give several their weights
(``outcome = {em = 1.0, searches = -0.05}``). From Python, any function of the episode will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import inf, isfinite
from numbers import Real
from typing import Any

from igsearch_env.answers import cover_exact_match, exact_match, f1_score
from igsearch_env.episode import Document, Episode, OutcomePart, Question, Step


class OutcomeFailedError(Exception):
    """The outcome of an episode could not be had, such as from a judge that gave no verdict.

    An outcome function or a component raises it. The episode then has no outcome
    (``episode.unscored``): trainers learn nothing from it, and no mean counts it.
    """


OutcomeFunction = Callable[[Episode], float | Mapping[str, float] | Sequence[OutcomePart]]
"""A function of the episode at the end of an attempt. It returns a finite number, or named parts
whose sum is the outcome."""

Outcome = str | Mapping[str, float] | OutcomeFunction
"""The name of a component, weights of components by name, or a function."""


@dataclass(frozen=True)
class Component:
    """One thing that can be measured about an episode.

    Args:
        measure: A function of the episode at the end of an attempt. It returns a number, or None
            where the component does not apply: nothing is added to the outcome then.
        least: The least value that it may return.
        most: The greatest one.
        concurrency: How many episodes may be measured at once, for what waits for a server.
    """

    measure: Callable[[Episode], float | None]
    least: float = -inf
    most: float = inf
    concurrency: int = 1

    def __deepcopy__(self, memo: dict[int, object]) -> Component:
        """Itself: Gymnasium copies an environment's arguments."""
        return self


def attempt_steps(episode: Episode) -> tuple[Step, ...]:
    """The steps of the attempt that ended last."""
    last = episode.steps[-1].attempt if episode.steps else 0
    return tuple(step for step in episode.steps if step.attempt == last)


def gold_share(question: Question, documents: Sequence[Document]) -> float | None:
    """Share of a question's gold documents that are among some; None if they are unknown.

    >>> question = Question("q", "?", ("Lima",), gold_titles=("Lima", "Peru"))
    >>> gold_share(question, [Document("1", "Peru", "..."), Document("2", "Rome", "...")])
    0.5
    """
    if question.gold_ids:
        return _share(question.gold_ids, [document.id for document in documents])
    return _share(question.gold_titles, [document.title for document in documents])


def _share(gold: Sequence[str], seen: Sequence[str]) -> float | None:
    return len(set(gold) & set(seen)) / len(set(gold)) if gold else None


def _found(episode: Episode) -> list[Document]:
    return [document for step in episode.searches for document in step.documents]


def _gold_titles(episode: Episode) -> float | None:
    return _share(episode.question.gold_titles, [one.title for one in _found(episode)])


def _format(episode: Episode) -> float:
    steps = attempt_steps(episode)
    return float(all(step.valid for step in steps) and episode.answer is not None)


def _searches(episode: Episode) -> float:
    return float(sum(step.action == "search" for step in attempt_steps(episode)))


def _length(episode: Episode) -> float | None:
    steps = attempt_steps(episode)
    if any(step.turn.token_ids is None for step in steps):
        return None  # text alone has no number of tokens
    return float(sum(len(step.turn.token_ids or ()) for step in steps))


def _no_search(episode: Episode) -> float | None:
    question = episode.question
    if not (question.gold_ids or question.gold_titles or question.hops):
        return None  # nobody knows whether the answer stands in a document
    return float(not any(step.action == "search" for step in episode.steps))


COMPONENTS: dict[str, Component] = {
    "em": Component(lambda e: exact_match(e.answer, e.question.golden_answers), 0.0, 1.0),
    "f1": Component(lambda e: f1_score(e.answer, e.question.golden_answers), 0.0, 1.0),
    "cover_em": Component(
        lambda e: cover_exact_match(e.answer, e.question.golden_answers), 0.0, 1.0
    ),
    "format": Component(_format, 0.0, 1.0),
    "gold_titles": Component(_gold_titles, 0.0, 1.0),
    "evidence_recall": Component(lambda e: gold_share(e.question, _found(e)), 0.0, 1.0),
    "searches": Component(_searches, 0.0),
    "length": Component(_length, 0.0),
    "no_search": Component(_no_search, 0.0, 1.0),
    "zero": Component(lambda e: 0.0, 0.0, 0.0),
}
"""The components by name; :func:`register_component` adds to it.

- ``em``, ``f1``, ``cover_em``: exact match, token F1, and whether the answer contains a gold one
  (:mod:`igsearch_env.answers`), from 0 to 1.
- ``format``: 1 if every turn of the attempt held a valid action and it ended with an answer.
- ``gold_titles``: share of the question's gold titles among the documents found so far. It does not
  apply to questions without gold titles.
- ``evidence_recall``: share of the question's gold documents found so far, by id, or by title where
  no ids are known. It does not apply to questions without either.
- ``searches``: number of searches of the attempt. Give it a negative weight.
- ``length``: number of tokens that the policy wrote in the attempt. It does not apply to text
  without tokens. Give it a negative weight.
- ``no_search``: 1 if nothing was searched for although the question needs a search: its gold
  documents or its number of hops are known. It does not apply to other questions. Give it a
  negative weight.
- ``zero``: 0, to learn from information gain alone.
- ``judge``: 1 if a language model takes the answer for right; it is there where the setting
  ``judge`` names a server (:mod:`igsearch_env.endpoint.judge`).
"""


def register_component(
    name: str, *, least: float = -inf, most: float = inf, concurrency: int = 1
) -> Callable[[Callable[[Episode], float | None]], Callable[[Episode], float | None]]:
    """Decorator that makes a component known by ``name``, for the settings of every program.

    Args:
        name: Its name.
        least: The least value that it may return.
        most: The greatest one.
        concurrency: How many episodes may be measured at once.

    Raises:
        ValueError: If the name is taken.
    """

    def register(measure: Callable[[Episode], float | None]) -> Callable[[Episode], float | None]:
        if name in COMPONENTS or name == "judge":
            raise ValueError(f"a component named {name!r} exists already; choose another name")
        COMPONENTS[name] = Component(measure, least, most, concurrency)
        return measure

    return register


class WeightedOutcome:
    """An outcome function: the sum of components, each with its weight.

    Args:
        weights: The weight of each component by name. One of weight 0 is measured and reported, and
            adds nothing.
        components: Components beside those of :data:`COMPONENTS`, by name.

    Attributes:
        concurrency: How many episodes may be scored at once.

    Raises:
        ValueError: If a component is unknown, a weight is no finite number, or there are none.

    >>> from igsearch_env.episode import Segment
    >>> question = Question("q", "Capital of Peru?", ("Lima",))
    >>> episode = Episode(question, Segment("?", "system"), answer="It is Lima")
    >>> for part in WeightedOutcome({"em": 1.0, "cover_em": 0.5})(episode):
    ...     print(part.name, part.weight, part.value)
    em 1.0 0.0
    cover_em 0.5 1.0
    """

    def __init__(
        self, weights: Mapping[str, float], components: Mapping[str, Component] | None = None
    ) -> None:
        known = {**COMPONENTS, **(components or {})}
        check_outcome(weights, known)
        self.weights = {name: float(weight) for name, weight in weights.items()}
        self._components = {name: known[name] for name in weights}
        self.concurrency = max(one.concurrency for one in self._components.values())

    def __deepcopy__(self, memo: dict[int, object]) -> WeightedOutcome:
        return self

    def __call__(self, episode: Episode) -> tuple[OutcomePart, ...]:
        """The parts of an episode's outcome.

        Raises:
            ValueError: If a component returns what is not finite or out of its range.
        """
        return tuple(self._part(name, weight, episode) for name, weight in self.weights.items())

    def _part(self, name: str, weight: float, episode: Episode) -> OutcomePart:
        try:
            value = measured(name, self._components[name], episode)
        except OutcomeFailedError:
            return OutcomePart(name, weight, None, failed=True)
        return OutcomePart(name, weight, value)


def measured(name: str, component: Component, episode: Episode) -> float | None:
    """The value of a component, checked.

    Raises:
        ValueError: If it is not finite, or out of the component's range.
        OutcomeFailedError: If it could not be had.
    """
    value = component.measure(episode)
    if value is None:
        return None
    value = float(value)
    if not isfinite(value) or not component.least <= value <= component.most:
        raise ValueError(
            f"the component {name!r} is {value} for question {episode.question.id!r}; it must "
            f"return a finite number from {component.least} to {component.most}"
        )
    return value


def check_outcome(outcome: object, known: Mapping[str, object] = COMPONENTS) -> None:
    """Check the name of a component, or weights by name.

    Raises:
        ValueError: If a component is unknown, a weight is no finite number, or there are none.
    """
    if not isinstance(outcome, str | Mapping) or not outcome:
        raise ValueError(
            "outcome must be the name of a component or a table of weights by name, such as "
            f"{{em = 1.0, searches = -0.05}}, got {outcome!r}"
        )
    for name in [outcome] if isinstance(outcome, str) else outcome:
        if name not in known:
            raise ValueError(
                f"outcome must be one of {', '.join(known)}, or a table of weights of them, got "
                f"{name!r}; names of your own need --import FILE, and 'judge' needs the setting "
                "judge"
            )
    for name, weight in outcome.items() if isinstance(outcome, Mapping) else ():
        if not isinstance(weight, Real) or isinstance(weight, bool) or not isfinite(weight):
            raise ValueError(
                f"the weight of {name!r} in outcome must be a finite number, got {weight!r}"
            )


@dataclass(frozen=True)
class Score:
    """What came of scoring an episode.

    Args:
        total: The outcome; None if it could not be had.
        parts: What it is made of, where its function says so.
    """

    total: float | None
    parts: tuple[OutcomePart, ...] = ()


def score_outcomes(
    outcome: Outcome, episodes: Sequence[Episode], bounds: Sequence[float] = ()
) -> list[Score]:
    """Score the attempts that ended last.

    An outcome with an attribute ``concurrency`` above 1 is called from that many threads.

    Args:
        outcome: How.
        episodes: Episodes of which an attempt has just ended.
        bounds: The least and the greatest outcome that is allowed; empty for any finite number.

    Raises:
        ValueError: If a number is not finite or out of its range, or a component is unknown.
    """
    if not episodes:
        return []
    function = _function(outcome)
    threads = min(getattr(function, "concurrency", 1), len(episodes))
    if threads == 1:
        return [_score(function, episode, bounds) for episode in episodes]
    pool = ThreadPoolExecutor(threads)
    try:
        return list(pool.map(lambda episode: _score(function, episode, bounds), episodes))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an interrupt does not wait for a server


def _function(outcome: Outcome) -> Callable[[Episode], Any]:
    if isinstance(outcome, str):
        check_outcome(outcome)
        component = COMPONENTS[outcome]
        return lambda episode: measured(outcome, component, episode) or 0.0
    return WeightedOutcome(outcome) if isinstance(outcome, Mapping) else outcome


def _plain(part: OutcomePart) -> OutcomePart:
    """The same in Python's own numbers, which every record can hold."""
    value = None if part.value is None else float(part.value)
    return replace(part, weight=float(part.weight), value=value)


def _score(function: Callable[[Episode], Any], episode: Episode, bounds: Sequence[float]) -> Score:
    parts: tuple[OutcomePart, ...] = ()
    try:
        found = function(episode)
    except OutcomeFailedError:
        return Score(None)
    pairs = found.items() if isinstance(found, Mapping) else ()
    if isinstance(found, Mapping) and all(isinstance(value, Real) for _, value in pairs):
        parts = tuple(OutcomePart(str(name), 1.0, float(value)) for name, value in pairs)
    elif isinstance(found, list | tuple) and all(isinstance(one, OutcomePart) for one in found):
        parts = tuple(_plain(part) for part in found)
    elif not isinstance(found, Real):
        raise ValueError(
            f"the outcome of question {episode.question.id!r} is {found!r}; an outcome function "
            "must return a number, numbers by name, or a sequence of OutcomePart"
        )
    if any(part.failed and part.weight for part in parts):
        return Score(None, parts)
    every = [part.paid for part in parts]
    total = float(found) if isinstance(found, Real) else float(sum(every))
    if not all(map(isfinite, (total, *every))):
        made_of = f", made of {', '.join(f'{p.name} {p.paid}' for p in parts)}" if parts else ""
        raise ValueError(
            f"the outcome of question {episode.question.id!r} is {total}{made_of}; an outcome "
            "function must return a finite number"
        )
    if bounds and not bounds[0] <= total <= bounds[1]:
        raise ValueError(
            f"the outcome of question {episode.question.id!r} is {total}, and outcome_range allows "
            f"{bounds[0]} to {bounds[1]}; mend the outcome, or widen the range"
        )
    return Score(total, parts)
