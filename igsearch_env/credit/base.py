"""What a credit method is, and the registry of all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from inspect import isabstract
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from igsearch_env.episode import Episode


@dataclass(frozen=True)
class Hindsight:
    """What a teacher reads before the transcript of each episode.

    The teacher is the policy itself. The policy is pulled towards it on the tokens of queries.

    Args:
        weight: Weight of the Jensen-Shannon divergence in the loss, at least 0.
        texts: One per episode; empty for one that has no teacher.
    """

    weight: float
    texts: Sequence[str]


class CreditAssignment(ABC):
    """Base of every credit method: a function from finished episodes to token-level advantages.

    A method is a frozen dataclass: its fields are its options, which a settings file or command
    line sets by name. Only :meth:`__call__` must be written. The other names have defaults: a
    method sets those that save work or ask for more.

    Attributes:
        uses_information_gain: Set it to False if the method does not read
            ``step.information_gain``: nothing is scored then, and no counterfactuals are drawn.
        uses_belief: Set it to True if the method reads ``episode.prior_log_prob`` and
            ``step.log_prob``, the policy's belief in the gold answer before the first search and
            after each one.
        uses_enabling: Set it to True if the method reads ``step.enabling``, how much the documents
            of a search raised the probability of the next query. It needs counterfactuals, so
            ``uses_information_gain`` must be True.
        uses_hindsight_shift: Set it to True if the method reads ``step.hindsight_shift``, how much
            more probable a turn is for the policy that has been told the gold answer.
        uses_silver: Set it to True if the method reads ``question.silver_ids``; a trainer then
            looks for silver evidence in the corpus before it starts.
        uses_answer_distances: Set it to True if the method reads ``question.answer_distances``; a
            trainer then looks for them in the corpus before it starts.

    Raises:
        TypeError: When a class is defined that misspells one of these names, or that has a public
            constant without an annotation.

    >>> from dataclasses import dataclass
    >>> from igsearch_env.credit import group_advantages
    >>> @dataclass(frozen=True)
    ... class LastTurn(CreditAssignment):
    ...     "GRPO's advantage, on the tokens of the last turn alone."
    ...     uses_information_gain = False
    ...     scale: float = 1.0
    ...     def __call__(self, episodes):
    ...         advantages = [np.zeros(episode.policy_tokens) for episode in episodes]
    ...         for i, value in enumerate(group_advantages(episodes)):  # 0 where a search failed
    ...             advantages[i][episodes[i].steps[-1].policy_tokens] = self.scale * value
    ...         return advantages
    >>> LastTurn(scale=0.5)
    LastTurn(scale=0.5)
    """

    uses_information_gain: ClassVar[bool] = True
    uses_belief: ClassVar[bool] = False
    uses_enabling: ClassVar[bool] = False
    uses_hindsight_shift: ClassVar[bool] = False
    uses_silver: ClassVar[bool] = False
    uses_answer_distances: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        """Assign credit.

        Args:
            episodes: Finished episodes of several groups, with the gains and beliefs that the
                method uses. A value that could not be computed is None.

        Returns:
            The advantage of each policy token: one finite array per episode, shape
            (policy tokens,). It is all 0 where a search failed.
        """

    def needs_gain(self, episodes: Sequence[Episode]) -> list[list[bool]]:
        """Which searches need their information gain computed; all of them by default.

        Args:
            episodes: Finished episodes, before their gains are computed.

        Returns:
            One truth value for each search of each episode.
        """
        return [[True] * len(episode.searches) for episode in episodes]

    def at(self, progress: float) -> Self:
        """The method at a point of training; itself by default.

        Override it if an option changes over training. Trainers call it in every step.

        Args:
            progress: From 0.0 (the first step) to 1.0 (the last).
        """
        return self

    def hindsight(self, episodes: Sequence[Episode]) -> Hindsight | None:
        """What a teacher knows of the episodes; None, the default, for a method without one.

        A teacher is a loss beside the advantages. Only the local trainer has it; the others refuse
        a method that overrides this.

        Args:
            episodes: Finished episodes, the same as for the advantages.
        """
        return None

    def needs_scorer(self) -> bool:
        """Whether the policy has to score something before the method is called."""
        return self.uses_information_gain or self.uses_belief or self.uses_hindsight_shift

    def reads_corpus(self) -> bool:
        """Whether something has to be looked for in the corpus before training."""
        return self.uses_silver or self.uses_answer_distances

    @classmethod
    def has_teacher(cls) -> bool:
        """Whether the method writes :meth:`hindsight`."""
        return cls.hindsight is not CreditAssignment.hindsight

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _check_names(cls)


def assign_credit(
    credit: CreditAssignment, episodes: Sequence[Episode]
) -> list[NDArray[np.float64]]:
    """Call a method, and check what it returns: it may be anybody's.

    Returns:
        The advantage of each policy token: one array of shape (policy tokens,) per episode.

    Raises:
        ValueError: If an advantage is not a finite number, or one is missing or too many.
    """
    advantages = list(credit(episodes))
    method = type(credit).__name__
    if len(advantages) != len(episodes):
        raise ValueError(
            f"the credit method {method} must return one array per episode, so {len(episodes)}, "
            f"got {len(advantages)}"
        )
    for episode, array in zip(episodes, advantages, strict=True):
        if np.shape(array) != (episode.policy_tokens,):
            raise ValueError(
                f"the credit method {method} must return one advantage per policy token, shape "
                f"({episode.policy_tokens},) for question {episode.question.id!r}, got shape "
                f"{np.shape(array)}"
            )
        if not np.isfinite(array).all():
            wrong = np.asarray(array)[~np.isfinite(array)]
            raise ValueError(
                f"the credit method {method} must return finite advantages, got {wrong[0]} for "
                f"{len(wrong)} tokens of question {episode.question.id!r}"
            )
    return advantages


FLAGS = (
    "uses_information_gain",
    "uses_belief",
    "uses_enabling",
    "uses_hindsight_shift",
    "uses_silver",
    "uses_answer_distances",
)
CONTRACT = (*FLAGS, "needs_gain", "hindsight", "at")
"""What a credit method may set beside its options."""

CREDIT: dict[str, type[CreditAssignment]] = {}
"""The methods by name; :func:`register_credit` adds to it."""


def _check_names(cls: type[CreditAssignment]) -> None:
    """Refuse what can only be a mistake: it would be ignored, and the default would hold.

    A misspelt name costs hours of scoring or drops the signal, and nothing in a run shows it.
    """
    annotated = vars(cls).get("__annotations__", {})
    for name, value in {**dict.fromkeys(annotated), **vars(cls)}.items():
        if name.startswith("_") or name in CONTRACT:
            continue
        # "at" is too short to compare with: "bat" would be taken for it.
        close = get_close_matches(name, CONTRACT[:-1], n=1, cutoff=0.8)
        if close or name.startswith(("uses_", "needs_")):
            hint = f"; did you mean {close[0]}?" if close else ""
            raise TypeError(
                f"{cls.__name__}.{name} is not among the names that a credit method may set beside "
                f"its options: {_listed()}{hint}"
            )
        constant = not callable(value) and not hasattr(value, "__get__")
        if name not in annotated and constant:
            raise TypeError(
                f"{cls.__name__}.{name} is not among the names that a credit method may set beside "
                f"its options: {_listed()}; write '{name}: {type(value).__name__} = {value!r}' to "
                "make it an option, or annotate it as ClassVar"
            )


def _listed() -> str:
    return ", ".join(CONTRACT)


T = TypeVar("T", bound=type[CreditAssignment])


def register_credit(name: str) -> Callable[[T], T]:
    """Class decorator that makes a method known by ``name``.

    It stands above ``@dataclass(frozen=True)``.

    Raises:
        ValueError: If the name is taken.
        TypeError: If the class is no credit method.
    """

    def register(method: T) -> T:
        if name in CREDIT:
            raise ValueError(f"a credit method named {name!r} exists already; choose another name")
        if not (isinstance(method, type) and issubclass(method, CreditAssignment)):
            raise TypeError(
                f"a credit method must derive from igsearch_env.credit.CreditAssignment, which "
                f"holds the defaults of {_listed()}; got {method!r}"
            )
        if isabstract(method):
            raise TypeError(
                f"{method.__name__} has no __call__(episodes), which assigns the credit"
            )
        if not (is_dataclass(method) and "__dataclass_params__" in vars(method)):
            raise TypeError(
                f"{method.__name__} is no dataclass, so its options cannot be set; write "
                "@dataclass(frozen=True) between @register_credit and the class"
            )
        for flag in FLAGS:
            if not isinstance(getattr(method, flag), bool | property):
                raise TypeError(
                    f"{method.__name__}.{flag} must be True or False, got {getattr(method, flag)!r}"
                )
        CREDIT[name] = method
        return method

    return register


def make_credit(name: str, **options: Any) -> CreditAssignment:
    """Build a method by name.

    Args:
        name: A name in :data:`CREDIT`.
        **options: The fields of the method's dataclass.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If an option is unknown.
    """
    if name not in CREDIT:
        raise ValueError(
            f"unknown credit method {name!r}; known are {', '.join(sorted(CREDIT))}; names of your "
            "own need --import FILE"
        )
    return CREDIT[name](**options)
