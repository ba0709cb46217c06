"""The settings of an environment, checked, and the engine that is built from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, fields
from math import inf, isfinite
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from igsearch_env.budgets import Budgets, TokenCounter, WordCounter
from igsearch_env.data.questions import load_questions
from igsearch_env.data.world import same_world, world_of_questions
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Question
from igsearch_env.gain.information_gain import AliasOperator, Counterfactual, InformationGain
from igsearch_env.gain.pool import EvidencePool
from igsearch_env.gain.scorer import AnswerScorer, UnigramScorer
from igsearch_env.gain.shaping import Shaping
from igsearch_env.outcome import COMPONENTS, Outcome, WeightedOutcome, check_outcome
from igsearch_env.protocol.names import check_protocol, get_protocol
from igsearch_env.protocol.tags import TagProtocol
from igsearch_env.retrieval.base import Retriever
from igsearch_env.retrieval.open import open_retriever
from igsearch_env.text import without_logins
from igsearch_env.turn import TurnRules

_WORDS = {
    "counterfactual": get_args(Counterfactual),
    "aliases": get_args(AliasOperator),
}
_COUNTS = {"max_searches": 1, "max_attempts": 1, "top_k": 1, "num_counterfactuals": 0}


@dataclass(frozen=True)
class EnvironmentSettings:
    """Every setting of an environment that a file or a command line can hold.

    The environments, the trainers, evaluations and OpenRLHF's rollouts all take these. A setting
    that is added here is known to all of them.

    Args:
        questions: Name or file of the questions (:func:`igsearch_env.load_questions`); empty where
            they are given as objects.
        retriever: Where to search, as :func:`igsearch_env.open_retriever` takes it: a world, the
            folder of a saved index, the http:// address of a server, the file of a corpus, or a
            registered name. ``"bm25"`` is BM25 over the documents of the questions' own world.
            Empty where it is given as an object.
        protocol: Name of the grammar (:mod:`igsearch_env.protocol.names`): a preset, ``chat`` or
            ``tools`` for the model's own chat template, or a .toml or .json file (default: that of
            the policy's checkpoint, or else ``refine``).
        max_searches: Searches per attempt. After ``2 * max_searches + 1`` turns without an answer
            the attempt has ended, and the episode is truncated if it was the last one.
        max_attempts: Attempts at the question. An answer (or the end of an attempt without one) is
            followed by the protocol's reflection, which asks for another attempt and does not say
            whether the answer was right. The reward is the outcome of the last attempt, paid at
            the end; ``episode.attempt_outcomes`` has all of them.
        top_k: Documents per search.
        num_counterfactuals: N, counterfactual contexts per search; 0 for no information gain.
        counterfactual: What is replaced in them: ``"documents"``, or ``"documents+refinement"`` as
            in the paper, where a policy is paid for an answer that it writes into a refinement.
        added_only: Whether a search gains only what it adds to its context; without it, as in the
            paper, finding the same document again is paid again. See
            :class:`igsearch_env.InformationGain`.
        floor: Least log-probability of an answer token in nats: a number below 0, ``"uniform"``
            for that of a uniform guess, or ``"none"``.
        aliases: How the scores of several golden answers become one; see
            :func:`igsearch_env.information_gain`.
        outcome: What a finished episode is paid: the name of a component of
            :data:`igsearch_env.outcome.COMPONENTS`, such as ``"em"``, ``"f1"`` or ``"zero"`` (to
            learn from information gain alone), or a table of weights by name, such as
            ``{em = 1.0, searches = -0.05}``; on a command line ``em=1,searches=-0.05``.
        outcome_range: The least and the greatest outcome that is allowed: one out of this range
            ends the run. Empty for any finite number.
        judge: Address of an OpenAI-compatible server whose model judges answers
            (:mod:`igsearch_env.endpoint.judge`). Its verdict is the component ``judge`` of the
            outcome; where ``outcome`` does not name it, it is reported and adds nothing. Empty for
            no judge. A key stands in the environment variable IGSEARCH_JUDGE_KEY.
        judge_model: Name of the judge's model; empty for the only one that is served.
        judge_cache: Folder of the judge's verdicts, which runs may share; empty to keep them in
            memory alone.
        information_gain_weight: Weight of the shaped gain in the reward of the call in which it
            settles, for algorithms that do not look at ``info``.
        shared_counterfactuals: Whether rollouts of one group draw the same evidence for a search
            that they make in the same step of a vector environment.
        document_tokens: Most tokens of a document that the policy sees. Budgets are explained in
            :class:`igsearch_env.budgets.Budgets`.
        observation_tokens: Most tokens of the documents of one observation.
        episode_tokens: Most tokens of a transcript before its last turn.
        max_turns: Most turns of an attempt (default: 2 * max_searches + 1).
        max_seconds: Seconds after which the next turn is the last one.
        snippet_tokens: Most tokens of a document among the results of a search; the tool
            ``get_document`` gives all of it.
        keep_documents: For how many turns documents stay in the context of the policy; a notice
            stands in their place then (default: they stay).
        drop_thoughts: Whether the thoughts of earlier turns leave the context, as templates of
            reasoning models drop them.

    Raises:
        ValueError: If a number is out of range, a word is unknown, or the questions are about
            another world than the documents.

    >>> EnvironmentSettings("world-train:320", "world")
    Traceback (most recent call last):
    ...
    ValueError: the questions 'world-train:320' are about another world than the documents of \
'world'; search 'world:320' instead
    """

    questions: str = "world-train"
    retriever: str = "bm25"
    protocol: str | None = None
    max_searches: int = 5
    max_attempts: int = 1
    top_k: int = 3
    num_counterfactuals: int = 3
    counterfactual: Counterfactual = "documents"
    added_only: bool = True
    floor: float | Literal["uniform", "none"] = "uniform"
    aliases: AliasOperator = "max"
    outcome: str | dict[str, float] = "em"
    outcome_range: tuple[float, ...] = ()
    judge: str = ""
    judge_model: str = ""
    judge_cache: str = ""
    information_gain_weight: float = 0.0
    shared_counterfactuals: bool = False
    document_tokens: int | None = None
    observation_tokens: int | None = None
    episode_tokens: int | None = None
    max_turns: int | None = None
    max_seconds: float | None = None
    snippet_tokens: int | None = None
    keep_documents: int | None = None
    drop_thoughts: bool = False

    def __post_init__(self) -> None:
        for name in ("questions", "retriever"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(
                    f"{name} of the settings must be text, got {value!r}; objects and paths are "
                    "arguments of the environment itself"
                )
        for name, least in _COUNTS.items():
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"{name} must be a whole number of at least {least}, got {value!r}"
                )
        weight = self.information_gain_weight
        if not isinstance(weight, Real) or not 0 <= weight < inf:
            raise ValueError(
                f"information_gain_weight must be a finite number of at least 0, got {weight!r}"
            )
        for name, known in _WORDS.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        check_outcome(self.outcome, {**COMPONENTS, **({"judge": None} if self.judge else {})})
        object.__setattr__(self, "outcome_range", tuple(self.outcome_range))  # JSON has lists
        _check_bounds(self.outcome_range)
        floor = self.floor
        if floor not in ("uniform", "none") and not (isinstance(floor, Real) and -inf < floor < 0):
            raise ValueError(
                f"floor must be 'uniform', 'none' or a finite number below 0, got {floor!r}"
            )
        check_protocol(self.protocol)
        check_worlds(self.questions, self.retriever)
        _ = self.budgets  # which are checked when they are made
        kept = self.keep_documents
        if kept is not None and (type(kept) is not int or kept < 1):
            raise ValueError(
                f"keep_documents must be a whole number of at least 1 or None, got {kept!r}"
            )

    @property
    def budgets(self) -> Budgets:
        """The limits of an episode."""
        return Budgets(
            document_tokens=self.document_tokens,
            observation_tokens=self.observation_tokens,
            episode_tokens=self.episode_tokens,
            turns=self.max_turns,
            seconds=self.max_seconds,
            snippet_tokens=self.snippet_tokens,
        )

    @property
    def searched(self) -> str:
        """The name of the retriever, ``"bm25"`` replaced by the world that it stands for."""
        if self.retriever != "bm25":
            return self.retriever
        return world_of_questions(self.questions) or "world"

    @property
    def rules(self) -> EnvironmentSettings:
        """The settings that a policy carries along.

        They are all but what is asked, what is searched, and the grammar, which it carries whole.
        """
        left_out = {"questions": "", "retriever": "", "protocol": None, "judge_cache": ""}
        left_out["judge"] = without_logins(self.judge)
        return EnvironmentSettings(**{**_values(self), **left_out})

    def make_information_gain(self, protocol: TagProtocol | None = None) -> InformationGain:
        """How gains are computed.

        Args:
            protocol: The tag grammar, where it is another one than that of the name.
        """
        return InformationGain(
            get_protocol(self.protocol) if protocol is None else protocol,
            self.counterfactual,
            floor=None if self.floor == "none" else self.floor,
            aliases=self.aliases,
            added_only=self.added_only,
        )


def _check_bounds(bounds: Sequence[float]) -> None:
    numbers = all(isinstance(one, Real) and isfinite(one) for one in bounds)
    if bounds and not (numbers and len(bounds) == 2 and bounds[0] < bounds[1]):
        raise ValueError(
            "outcome_range must be two finite numbers, the least outcome and the greatest, or "
            f"empty, got {list(bounds)}"
        )


def check_worlds(questions: str, retriever: str) -> None:
    """Refuse questions about one world and the documents of another.

    Args:
        questions: Name of a question set; empty if it is not known by name.
        retriever: Name of a retriever; likewise.

    Raises:
        ValueError: If they do not belong together.
    """
    world = world_of_questions(questions)
    if retriever == "bm25" and questions and world is None:
        raise ValueError(
            f"the questions are {questions!r}, but 'bm25' searches the documents of the embedded "
            "world; give a retriever of their corpus: its file, the folder of an index, or the "
            "address of a server"
        )
    if world is not None and not same_world(world, retriever):
        raise ValueError(
            f"the questions {questions!r} are about another world than the documents of "
            f"{without_logins(retriever)!r}; search {world!r} instead"
        )


class QuestionSet(tuple[Question, ...]):
    """Questions that are shared, not copied, when Gymnasium copies an environment's arguments."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, object]) -> QuestionSet:
        return self


def make_engine(
    questions: Sequence[Question] | str | PathLike[str] | None = None,
    retriever: Retriever | str | Path | None = None,
    scorer: AnswerScorer | str | None = "unigram",
    *,
    settings: EnvironmentSettings | None = None,
    protocol: TagProtocol | str | None = None,
    outcome: Outcome | None = None,
    information_gain: InformationGain | None = None,
    shaping: Shaping | None = None,
    pool: EvidencePool | None = None,
    tokenizer: TokenCounter | None = None,
    **changes: Any,
) -> SearchQAEngine:
    """Build the engine of an environment; :class:`igsearch_env.SearchQAEnv` has the same arguments.

    Args:
        questions: Questions, or the name or file of a set; None for that of the settings.
        retriever: Searches, or the name of what searches; None for that of the settings.
        scorer: Scores answers; ``"unigram"`` needs no weights. With None, information gain is left
            for :meth:`igsearch_env.InformationGain.settle`.
        settings: The settings; None for the defaults of :class:`EnvironmentSettings`.
        protocol: The tag grammar, or the name of a preset.
        outcome: How an episode is scored: the name of a component, weights of components by name,
            or a function of the finished episode (:mod:`igsearch_env.outcome`).
        information_gain: All settings of the gain, in place of those of the record.
        shaping: How a gain is shaped before it is paid.
        pool: Where counterfactual evidence is kept; share one between environments to mix theirs.
        tokenizer: Counts the tokens that budgets limit; words are counted by default.
        **changes: Further fields of :class:`EnvironmentSettings`, in place of those of the record.

    Raises:
        ValueError: If an argument is out of range or names something unknown.
        TypeError: If there is no such setting.
    """
    if isinstance(questions, PathLike):
        questions = str(questions)
    if isinstance(retriever, Path):  # which is never an address or a registered name
        retriever = open_retriever(retriever)
    named: dict[str, Any] = {}
    if protocol is not None and not isinstance(protocol, TagProtocol):
        named["protocol"] = protocol
    if outcome is not None and not callable(outcome):
        named["outcome"] = dict(outcome) if isinstance(outcome, Mapping) else outcome
    for name, value in (("questions", questions), ("retriever", retriever)):
        if value is not None:  # an object has no name, and says nothing of its world
            named[name] = value if isinstance(value, str) else ""
    given = _values(settings or EnvironmentSettings())
    record = EnvironmentSettings(**{**given, **named, **changes})
    grammar = protocol if isinstance(protocol, TagProtocol) else get_protocol(record.protocol)
    gain = information_gain or record.make_information_gain(grammar)
    if gain.protocol != grammar:
        raise ValueError(
            f"information_gain is for the protocol {gain.protocol.name!r}, the environment for "
            f"{grammar.name!r}; build it with InformationGain(protocol=...) of the same"
        )
    if record.information_gain_weight > 0 and (scorer is None or record.num_counterfactuals == 0):
        raise ValueError(
            f"information_gain_weight = {record.information_gain_weight} pays a gain that is never "
            "known: give a scorer and num_counterfactuals of at least 1, or set the weight to 0"
        )
    judge = None
    if record.judge:
        if callable(outcome):
            raise ValueError(
                "an outcome function scores episodes alone; leave out judge, or call a Judge in it"
            )
        from igsearch_env.endpoint.judge import Judge  # needs the extra eval

        judge = Judge.at(record.judge, record.judge_model, record.judge_cache)
        paid = record.outcome
        weights = {paid: 1.0} if isinstance(paid, str) else paid
        outcome = WeightedOutcome({"judge": 0.0, **weights}, {"judge": judge.component})
    return SearchQAEngine(
        questions=_questions(questions, record),
        retriever=_retriever(retriever, record),
        scorer=_scorer(scorer),
        rules=TurnRules(
            grammar,
            record.max_searches,
            record.max_attempts,
            record.budgets,
            WordCounter() if tokenizer is None else tokenizer,
            keep_documents=record.keep_documents,
            drop_thoughts=record.drop_thoughts,
        ),
        information_gain=gain,
        pool=EvidencePool() if pool is None else pool,
        top_k=record.top_k,
        num_counterfactuals=record.num_counterfactuals,
        information_gain_weight=record.information_gain_weight,
        shaping=shaping or Shaping(),
        outcome=outcome if callable(outcome) else record.outcome,
        outcome_range=record.outcome_range,
        judge=judge,
        shared_counterfactuals=record.shared_counterfactuals,
    )


def _values(settings: EnvironmentSettings) -> dict[str, Any]:
    """The fields of the record itself, without those that a trainer has added in a subclass."""
    return {field.name: getattr(settings, field.name) for field in fields(EnvironmentSettings)}


def _questions(
    questions: Sequence[Question] | str | None, record: EnvironmentSettings
) -> QuestionSet:
    if questions is None or isinstance(questions, str):
        questions = load_questions(record.questions)
    asked = QuestionSet(questions)
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
    if record.num_counterfactuals and len(asked) < 2:
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


def _retriever(retriever: Retriever | str | None, record: EnvironmentSettings) -> Retriever:
    found = open_retriever(record.searched) if isinstance(retriever, str | None) else retriever
    if isinstance(found, Sized) and record.top_k > len(found):
        raise ValueError(
            f"top_k must be at most {len(found)}, the number of documents of the corpus, got "
            f"{record.top_k}"
        )
    return found


def _scorer(scorer: AnswerScorer | str | None) -> AnswerScorer | None:
    if scorer is None or (hasattr(scorer, "log_probs") and hasattr(scorer, "vocabulary_size")):
        return scorer
    if scorer == "unigram":
        return UnigramScorer()
    raise ValueError(
        f"unknown scorer {scorer!r}: expected 'unigram', None, or an object with "
        "log_probs(contexts, answers)"
    )
