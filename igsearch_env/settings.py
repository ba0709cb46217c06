"""The arguments of both environments, checked and resolved into an engine."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from functools import lru_cache
from pathlib import Path
from weakref import WeakValueDictionary

from igsearch_env.data.questions import load_questions
from igsearch_env.data.world import world_of_name
from igsearch_env.engine import Outcome, SearchQAEngine
from igsearch_env.episode import Question
from igsearch_env.gain.information_gain import Counterfactual, InformationGain
from igsearch_env.gain.pool import EvidencePool
from igsearch_env.gain.scorer import AnswerScorer, UnigramScorer
from igsearch_env.gain.shaping import Shaping
from igsearch_env.protocol.tags import TagProtocol, get_protocol
from igsearch_env.retrieval.base import Retriever
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.saved_index import load_retriever
from igsearch_env.turn import TurnRules

_servers: WeakValueDictionary[str, Retriever] = WeakValueDictionary()


class QuestionSet(tuple[Question, ...]):
    """Questions that are shared, not copied, when Gymnasium copies an environment's arguments."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, object]) -> QuestionSet:
        return self


@lru_cache(maxsize=2)
def world_retriever(name: str) -> BM25Retriever:
    """BM25 over the embedded world, or over the one that a name such as "world:320:7" asks for."""
    return BM25Retriever.build(world_of_name(name).documents)


def make_engine(
    questions: Sequence[Question] | str = "world-train",
    retriever: Retriever | str = "bm25",
    scorer: AnswerScorer | str | None = "unigram",
    *,
    protocol: TagProtocol | str = "refine",
    max_searches: int = 5,
    max_attempts: int = 1,
    top_k: int = 3,
    num_counterfactuals: int = 3,
    counterfactual: Counterfactual = "documents+refinement",
    information_gain: InformationGain | None = None,
    information_gain_weight: float = 0.0,
    shaping: Shaping | None = None,
    outcome: Outcome = "em",
    pool: EvidencePool | None = None,
    shared_counterfactuals: bool = False,
) -> SearchQAEngine:
    """Check the arguments of an environment; :class:`igsearch_env.SearchQAEnv` describes them."""
    for name, value, least in (
        ("top_k", top_k, 1),
        ("num_counterfactuals", num_counterfactuals, 0),
        ("information_gain_weight", information_gain_weight, 0),
    ):
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if information_gain_weight > 0 and (scorer is None or num_counterfactuals == 0):
        raise ValueError(
            f"information_gain_weight = {information_gain_weight} pays a gain that is never known: "
            "give a scorer and num_counterfactuals of at least 1, or set the weight to 0"
        )
    if not callable(outcome) and outcome not in ("em", "f1"):
        raise ValueError(f"outcome must be 'em', 'f1' or a callable, got {outcome!r}")
    rules = TurnRules(get_protocol(protocol), max_searches, max_attempts)
    gain = information_gain or InformationGain(rules.protocol, counterfactual)
    if gain.protocol != rules.protocol:
        raise ValueError(
            f"information_gain is for the protocol {gain.protocol.name!r}, the environment for "
            f"{rules.protocol.name!r}; build it with InformationGain(protocol=...) of the same"
        )
    if retriever == "bm25" and isinstance(questions, str) and questions.startswith("world-"):
        _, colon, size = questions.partition(":")  # "world-test:320" is about another world
        found: Retriever = world_retriever(f"world{colon}{size}")
    else:
        found = resolve_retriever(retriever)
    if isinstance(found, Sized) and top_k > len(found):
        raise ValueError(
            f"top_k must be at most {len(found)}, the number of passages of the corpus, got {top_k}"
        )
    return SearchQAEngine(
        questions=_questions(questions, num_counterfactuals),
        retriever=found,
        scorer=_scorer(scorer),
        rules=rules,
        information_gain=gain,
        pool=EvidencePool() if pool is None else pool,
        top_k=top_k,
        num_counterfactuals=num_counterfactuals,
        information_gain_weight=information_gain_weight,
        shaping=shaping or Shaping(),
        outcome=outcome,
        shared_counterfactuals=shared_counterfactuals,
    )


def _questions(questions: Sequence[Question] | str, num_counterfactuals: int) -> QuestionSet:
    asked = QuestionSet(load_questions(questions) if isinstance(questions, str) else questions)
    strange = next((item for item in asked if not isinstance(item, Question)), None)
    if strange is not None:
        raise TypeError(
            f"questions must be Question objects, got {type(strange).__name__}; "
            "load_questions reads them from a file"
        )
    if not asked:
        raise ValueError("the question set is empty; give at least one question")
    unanswered = next((item for item in asked if not item.golden_answers), None)
    if unanswered is not None:
        raise ValueError(f"question {unanswered.id!r} has no golden answers; give at least one")
    if num_counterfactuals and len(asked) < 2:
        raise ValueError(
            "counterfactual evidence comes from other questions, and there is only one question; "
            "give at least 2, or set num_counterfactuals=0"
        )
    ids = {question.id for question in asked}
    if len(ids) < len(asked):
        raise ValueError(
            f"question ids must be unique, got {len(asked)} questions with {len(ids)} ids; "
            "rename those that occur twice"
        )
    return asked


def resolve_retriever(retriever: Retriever | str) -> Retriever:
    """The retriever that a string stands for: a name, the folder of an index, or an address.

    Raises:
        ValueError: If it stands for none.
        ImportError: If it is an address and the ``http`` extra is not installed.
    """
    if not isinstance(retriever, str):
        return retriever
    if retriever == "bm25":
        return world_retriever("world")
    if retriever.startswith(("http://", "https://")):
        return _server(retriever)
    if Path(retriever).is_dir():
        return load_retriever(retriever)
    raise ValueError(
        f"unknown retriever {retriever!r}: expected 'bm25' (over the embedded world), the folder "
        "of a saved index, the http:// address of a server, or an object with search(queries, k)"
    )


def _server(url: str) -> Retriever:
    """The client of a server: one for all who use it now, not a pool of connections for each."""
    from igsearch_env.retrieval.http import HTTPRetriever

    found = _servers.get(url)
    if found is None:
        found = _servers[url] = HTTPRetriever(url)
    return found


def _scorer(scorer: AnswerScorer | str | None) -> AnswerScorer | None:
    if not isinstance(scorer, str):
        return scorer
    if scorer == "unigram":
        return UnigramScorer()
    raise ValueError(
        f"unknown scorer {scorer!r}: expected 'unigram', None, or an object with "
        "log_probs(contexts, answers)"
    )
