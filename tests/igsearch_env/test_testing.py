"""The conformance checks pass what ships, and catch one wrong implementation for every promise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from igsearch_env import BM25Retriever, Completion, Document, Episode, FusionRetriever
from igsearch_env.baselines import DirectAgent, OracleAgent, RandomQueryAgent, SearchOnceAgent
from igsearch_env.credit import CREDIT, CreditAssignment, QueryBonus, make_credit
from igsearch_env.data.world import World
from igsearch_env.episode import Context
from igsearch_env.gain.scorer import UnigramScorer
from igsearch_env.outcome import COMPONENTS
from igsearch_env.settings import make_engine
from igsearch_env.testing import (
    ConformanceError,
    check_agent,
    check_credit,
    check_outcome,
    check_retriever,
    check_scorer,
)

QUERIES = ("capital of Peru", "capital of Italy")
DOCUMENTS = [
    Document(f"d{i}", country, f"{city} is the capital of {country} .")
    for i, (country, city) in enumerate(
        [("Peru", "Lima"), ("Italy", "Rome"), ("Cuba", "Havana"), ("Fiji", "Suva")]
    )
]


@pytest.fixture(scope="module")
def bm25() -> BM25Retriever:
    return BM25Retriever.build(DOCUMENTS)


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate(seed=3, people=40)


# --- what ships ----------------------------------------------------------------------------------


def test_a_fusion(bm25: BM25Retriever) -> None:
    check_retriever(FusionRetriever([bm25, bm25]), QUERIES)


@pytest.mark.parametrize("name", sorted(CREDIT))
def test_every_credit_method(name: str) -> None:
    check_credit(make_credit(name))


@pytest.mark.parametrize(
    "options",
    [
        {"measure": "probability", "center": "search"},
        {"groups": "all_fail", "center": "group"},
        {"groups": "not_all_success", "new_only": True, "skip_last": True, "gamma": 0.5},
        {"alpha": 0.0, "alpha_final": 1.0, "alpha_from": 0.25},
        {"normalizer": "batch_mean_query"},
        {"normalizer": "none"},
    ],
)
def test_options_of_ig_search(options: dict[str, Any]) -> None:
    check_credit(make_credit("ig_search", **options))


@pytest.mark.parametrize(
    "agent", [DirectAgent(), SearchOnceAgent(), RandomQueryAgent(), OracleAgent()]
)
def test_agents_that_ship(agent: Any, world: World, bm25: BM25Retriever) -> None:
    check_agent(agent, make_engine(world.train_questions, bm25, None, num_counterfactuals=0))


@pytest.mark.parametrize(
    "outcome",
    [
        *COMPONENTS,
        dict.fromkeys(COMPONENTS, -0.5),
        lambda episode: len(episode.steps),
        lambda episode: {"steps": 0.1 * len(episode.steps), "right": 1.0},
    ],
)
def test_outcomes_that_ship_and_of_ones_own(outcome: Any) -> None:
    check_outcome(outcome)


def spoil(episode: Episode) -> float:
    object.__setattr__(episode, "answer", "Lima")
    return 0.0


CALLS = itertools.count()
WRONG_OUTCOMES: dict[str, tuple[Any, Any]] = {
    "must return a finite number": (lambda episode: math.nan, ()),
    "outcome_range allows 0": (lambda episode: len(episode.steps), (0, 1)),
    "left as they were": (spoil, ()),
    "the same scores a second time": (lambda episode: next(CALLS), ()),
    "parts with names of their own": (lambda episode: {"": 1.0}, ()),
}


@pytest.mark.parametrize("promise", WRONG_OUTCOMES)
def test_a_wrong_outcome_is_caught(promise: str) -> None:
    outcome, bounds = WRONG_OUTCOMES[promise]
    with pytest.raises(ConformanceError, match=promise):
        check_outcome(outcome, bounds)


# --- retrievers ----------------------------------------------------------------------------------


class Wrapped:
    """Hands the right answer to a function that spoils it."""

    def __init__(self, right: Any, spoil: Callable[..., Any]) -> None:
        self.right, self.spoil = right, spoil
        self.calls = itertools.count()

    def __deepcopy__(self, memo: dict[int, object]) -> Any:
        return self

    def search(self, queries: Sequence[str], k: int) -> Any:
        return self.spoil(self, queries, k, self.right.search(queries, k))


def each(change: Callable[[list[Document]], Any]) -> Callable[..., Any]:
    return lambda _, __, ___, found: [change(documents) for documents in found]


WRONG_RETRIEVERS: dict[str, Callable[..., Any]] = {
    "a list of lists of documents": lambda s, q, k, found: iter(found),
    "one list per query": lambda s, q, k, found: found[1:],
    "a list of documents per query": each(iter),
    r"at most k = 3 documents": lambda s, q, k, _: s.right.search(q, k + 1),
    "at most k = 1 documents": lambda s, q, k, _: s.right.search(q, 3),
    "igsearch_env.Document objects": each(lambda ds: [d.text for d in ds]),
    "id, title and text as strings": each(lambda ds: [replace(d, title=None) for d in ds]),
    "ids that are not empty": each(lambda ds: [replace(d, id="") for d in ds[:1]]),
    "documents with different ids": each(lambda ds: ds[:1] * 2),
    "finite scores": each(lambda ds: [replace(d, score=float("nan")) for d in ds]),
    "in the order of their scores": each(
        lambda ds: [replace(d, score=float(i)) for i, d in enumerate(ds)]
    ),
    "documents for at least one of the queries": each(lambda ds: []),
    "the same documents a second time": lambda s, q, k, found: [
        [replace(d, id=f"{d.id}-{n}") for d in ds] for n in [next(s.calls)] for ds in found
    ],
    "if the queries come in reverse order": lambda s, q, k, found: (
        found if q[0] == QUERIES[0] else [ds[:1] for ds in found]
    ),
    "the documents of the batch for 'capital of Peru' alone": lambda s, q, k, found: (
        found if len(q) > 1 else [[]]
    ),
    "the same documents for 'capital of Peru' given twice": lambda s, q, k, found: (
        [found[0], []] if len(q) == 2 and len(set(q)) == 1 else found
    ),
    "one list per query, so 0 of them": lambda s, q, k, found: found if q else [[]],
}


@pytest.mark.parametrize("promise", WRONG_RETRIEVERS)
def test_a_wrong_retriever_is_caught(promise: str, bm25: BM25Retriever) -> None:
    class Lenient:
        """Answers anything, so that only the wrong part shows."""

        def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
            return bm25.search(queries, min(k, len(DOCUMENTS))) if queries else []

    with pytest.raises(ConformanceError, match=promise):
        check_retriever(Wrapped(Lenient(), WRONG_RETRIEVERS[promise]), QUERIES)


def test_a_retriever_that_is_copied_is_caught(bm25: BM25Retriever) -> None:
    class Copied:
        search = bm25.search

    with pytest.raises(ConformanceError, match="write 'def __deepcopy__"):
        check_retriever(Copied(), QUERIES)


def test_too_few_queries_to_check_with(bm25: BM25Retriever) -> None:
    for queries in ("Peru", ["Peru"], ["Peru", "Peru"]):
        with pytest.raises(ValueError, match="at least two different strings"):
            check_retriever(bm25, queries)


# --- scorers -------------------------------------------------------------------------------------


class Scoring(UnigramScorer):
    """Spoils what a right scorer gives."""

    def __init__(self, spoil: Callable[..., Any], **more: Any) -> None:
        super().__init__()
        self.spoil = spoil
        self.calls = itertools.count()
        self.__dict__.update(more)

    def log_probs(self, contexts: Sequence[Context], answers: Sequence[str]) -> Any:
        return self.spoil(self, contexts, answers, super().log_probs(contexts, answers))


def arrays(change: Callable[[NDArray[Any]], Any]) -> Callable[..., Any]:
    return lambda s, contexts, answers, found: [change(array) for array in found]


WRONG_SCORERS: dict[str, Callable[..., Any]] = {
    "one array per pair": lambda s, c, a, found: found[1:],
    "a float array": arrays(list),
    r"an array of shape \(answer tokens,\)": arrays(lambda a: a[None]),
    r"shape \(answer tokens,\) .* got shape \(0,\)": arrays(lambda a: a[:0]),
    "no NaN": arrays(lambda a: a * np.nan),
    "log-probabilities of at most 0": arrays(np.exp),
    "the same log-probs a second time": lambda s, c, a, found: [
        array - n for n in [next(s.calls)] for array in found
    ],
    "the same log-probs in a reversed batch": lambda s, c, a, found: [
        array - 0.01 * i for i, array in enumerate(found)
    ],
    "scored alone": lambda s, c, a, found: found if len(a) > 1 else [found[0] - 0.1],
    "the first tokens of ' Lima Lima'": lambda s, c, a, found: [
        array / len(array) for array in found
    ],
    "log-probs that depend on the context": arrays(lambda a: np.full(a.shape, -1.0)),
    "no arrays for no pairs": lambda s, c, a, found: found if a else [np.zeros(1)],
}


@pytest.mark.parametrize("promise", WRONG_SCORERS)
def test_a_wrong_scorer_is_caught(promise: str) -> None:
    with pytest.raises(ConformanceError, match=promise):
        check_scorer(Scoring(WRONG_SCORERS[promise]))


class Unbounded(Scoring):
    """Scores an empty answer."""

    def log_probs(self, contexts: Sequence[Context], answers: Sequence[str]) -> Any:
        return super().log_probs(contexts, [answer or "x" for answer in answers])


class Bounded(Scoring):
    """Says which contexts fit."""

    def fits(self, contexts: Sequence[Context], answers: Sequence[str]) -> Any:
        return self.answer(contexts)  # type: ignore[attr-defined]


def right(s: Any, c: Any, a: Any, found: Any) -> Any:
    return found


@pytest.mark.parametrize(
    ("scorer", "promise"),
    [
        (Scoring(right, vocabulary_size=1), "vocabulary_size as a whole number of at least 2"),
        (Scoring(right, vocabulary_size=5.0), "vocabulary_size as a whole number"),
        (Unbounded(right), "a ValueError for an answer without tokens"),
        (Bounded(right, answer=lambda c: [True]), r"a truth value from fits\(\) for each of"),
        (Bounded(right, answer=lambda c: [1] * len(c)), r"a truth value from fits\(\)"),
        (Bounded(right, answer=lambda c: [False] * len(c)), "contexts .* that fit"),
        (
            Bounded(right, answer=lambda c: [True] * (len(c) or 1)),
            r"nothing from fits\(\) for nothing",
        ),
    ],
)
def test_other_wrong_scorers_are_caught(scorer: Any, promise: str) -> None:
    with pytest.raises(ConformanceError, match=promise):
        check_scorer(scorer)


def test_impossible_answers_and_long_contexts_are_allowed() -> None:
    check_scorer(Scoring(lambda s, c, a, found: [np.where(f < -9, -np.inf, f) for f in found]))
    check_scorer(
        Bounded(right, answer=lambda c: [sum(len(s.text) for s in one) < 200 for one in c])
    )


def test_a_scorer_that_is_copied_is_caught() -> None:
    class Copied(UnigramScorer):
        __deepcopy__ = None  # type: ignore[assignment]

    with pytest.raises(ConformanceError, match=r"Copied\.__deepcopy__ to return the object itself"):
        check_scorer(Copied())


# --- credit --------------------------------------------------------------------------------------

GRPO = make_credit("outcome")


class Wrong(CreditAssignment):
    """GRPO, spoiled."""

    uses_information_gain = False

    def __init__(self, spoil: Callable[..., Any]) -> None:
        self.spoil = spoil
        self.kept = [np.zeros(0)]

    def __call__(self, episodes: Sequence[Episode]) -> Any:
        return self.spoil(self, episodes, GRPO(episodes))


def numbers(change: Callable[[Episode, NDArray[Any]], Any]) -> Callable[..., Any]:
    return lambda s, episodes, found: [
        change(episode, array) for episode, array in zip(episodes, found, strict=True)
    ]


def regardless(episode: Episode, array: NDArray[Any]) -> NDArray[Any]:
    """Pays the searches of a rollout that were made before one failed."""
    for step in episode.searches if episode.left_out else ():
        array[step.query_tokens] += 0.0 if step.retrieval_failed else 1.0
    return array


def gains(episode: Episode, array: NDArray[Any]) -> NDArray[Any]:
    """Adds the first search's gain, though the method says that it does not use it."""
    known = [gain for gain in episode.information_gains if gain is not None]
    return array + sum(known[:1]) * (not episode.left_out)


def keep(s: Wrong, episodes: Sequence[Episode], found: list[NDArray[Any]]) -> Any:
    """Hands out the same arrays whenever it is called with as many episodes."""
    if [a.shape for a in s.kept] != [a.shape for a in found]:
        s.kept = found
    return s.kept


def flicker(s: Wrong, episodes: Sequence[Episode], found: list[NDArray[Any]]) -> Any:
    s.kept = [s.kept[0], *s.kept]
    return [
        array + (0.0 if e.left_out else len(s.kept))
        for e, array in zip(episodes, found, strict=True)
    ]


def spoil_episodes(s: Wrong, episodes: Sequence[Episode], found: list[NDArray[Any]]) -> Any:
    for episode in episodes:
        object.__setattr__(episode, "outcome", 9.0)
    return found


WRONG_CREDIT: dict[str, Callable[..., Any]] = {
    "one array per episode": lambda s, e, found: found[1:],
    "float arrays for": numbers(lambda e, a: a.tolist()),
    r"shape \(policy tokens,\)": numbers(lambda e, a: np.append(a, 0.0)),
    "finite advantages": numbers(lambda e, a: a / 0.0 if not e.left_out else a),
    "0 where a search failed": numbers(lambda e, a: a + 1.0),
    "0 where a search failed or there is no outcome, for a ragged batch": numbers(regardless),
    "episodes that are left as they were": spoil_episodes,
    "the same advantages a second time": flicker,
    "arrays that are new in each call": keep,
    "advantages from declared values only": numbers(gains),
}


@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero)")
@pytest.mark.parametrize("promise", WRONG_CREDIT)
def test_a_wrong_credit_method_is_caught(promise: str) -> None:
    with pytest.raises(ConformanceError, match=promise):
        check_credit(Wrong(WRONG_CREDIT[promise]))


class ShortNeeds(Wrong):
    def needs_gain(self, episodes: Sequence[Episode]) -> list[list[bool]]:
        return [[] for _ in episodes]


class NoNeeds(QueryBonus):
    """Reads the gains that it says it does not need."""

    def signals(self, episodes: Sequence[Episode]) -> list[list[float]]:
        return [[gain or 0.0 for gain in episode.information_gains] for episode in episodes]

    def needs_gain(self, episodes: Sequence[Episode]) -> list[list[bool]]:
        return [[False] * len(episode.searches) for episode in episodes]


class NothingLater(Wrong):
    def at(self, progress: float) -> Any:
        return self if progress < 1 else None


class Vague(Wrong):
    uses_belief = "maybe"  # type: ignore[assignment]


class NeedsEveryGain(QueryBonus):
    """Does not get along with a search whose gain could not be computed."""

    def signals(self, episodes: Sequence[Episode]) -> Any:
        return [list(episode.information_gains) for episode in episodes]


@pytest.mark.parametrize(
    ("credit", "promise"),
    [
        (
            ShortNeeds(lambda s, e, found: found),
            r"from needs_gain\(\) a truth value for each search",
        ),
        (NoNeeds(), "advantages from declared values only"),
        (NothingLater(lambda s, e, found: found), r"a credit method from at\(1\.0\)"),
        (Vague(lambda s, e, found: found), "uses_belief as True or False"),
        (lambda episodes: [], "a subclass of CreditAssignment"),
    ],
)
def test_other_wrong_credit_methods_are_caught(credit: Any, promise: str) -> None:
    with pytest.raises(ConformanceError, match=promise):
        check_credit(credit)


def test_an_error_of_the_method_itself_is_passed_on() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        check_credit(NeedsEveryGain())


# --- agents --------------------------------------------------------------------------------------


class Acting:
    """Spoils the turns of a right agent."""

    def __init__(self, spoil: Callable[..., Any]) -> None:
        self.spoil = spoil

    def act(self, episodes: Sequence[Episode]) -> Any:
        return self.spoil(episodes, SearchOnceAgent().act(episodes))


def tokens(ids: Sequence[Any], log_probs: Sequence[Any]) -> Callable[..., Any]:
    turn = Completion("<answer> x </answer>", ids, log_probs, [20] * len(ids))
    return lambda episodes, turns: [turn] * len(turns)


WRONG_AGENTS: dict[str, Callable[..., Any]] = {
    "one completion per episode": lambda episodes, turns: turns[1:],
    "turns of the class igsearch_env.Completion": lambda e, turns: [str(turn) for turn in turns],
    "the list of episodes left as it was": lambda episodes, turns: (episodes.clear(), turns)[1],
    "token ids as whole numbers": tokens([-1], [-0.5]),
    "finite log-probs of at most 0": tokens([1], [0.5]),
    "finite log-probs .* got .*nan": tokens([1], [float("nan")]),
}


@pytest.mark.parametrize("promise", WRONG_AGENTS)
def test_a_wrong_agent_is_caught(promise: str, world: World, bm25: BM25Retriever) -> None:
    engine = make_engine(world.train_questions, bm25, None, num_counterfactuals=0)
    with pytest.raises(ConformanceError, match=promise):
        check_agent(Acting(WRONG_AGENTS[promise]), engine)


def test_an_agent_may_bring_its_protocol() -> None:
    agent: Any = SearchOnceAgent()
    agent.protocol = "refine"
    with pytest.raises(ConformanceError, match="protocol as a TagProtocol; got refine"):
        check_agent(agent)
    with pytest.raises(ValueError, match="episodes must be at least 2, got 1"):
        check_agent(SearchOnceAgent(), episodes=1)
