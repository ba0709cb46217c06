"""What happens in one episode, as typed, frozen data.

Text is kept in segments that say who wrote it (:data:`Source`), because only the policy's own words
are parsed for actions, scored for answers and trained on. Token ids that a policy sampled are kept
beside the text and never re-made from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal, Self, TypeVar

from igsearch_env.completion import StopReason
from igsearch_env.text import clean_text
from igsearch_env.words import words

Source = Literal["policy", "document", "user", "system"]
Action = Literal["search", "tool", "answer", "invalid"]
EndedBy = Literal["turns", "tokens", "seconds"]


def _clean(value: object, *names: str) -> None:
    """Let the text of some fields through the gate for text that others wrote."""
    for name in names:
        before = getattr(value, name)
        if isinstance(before, str) and (after := clean_text(before)) is not before:
            object.__setattr__(value, name, after)


@dataclass(frozen=True, slots=True)
class Document:
    """A document of the corpus.

    Args:
        id: Identifier, unique in its corpus.
        title: Title of the page that the document comes from; may be empty.
        text: The document without its title.
        score: The retriever's score for the query that found it, if it gave one.
        whole: The text before it was cut for a budget; None where ``text`` is all of it.
    """

    id: str
    title: str
    text: str
    score: float | None = None
    whole: str | None = None

    def __post_init__(self) -> None:
        _clean(self, "id", "title", "text", "whole")

    @property
    def known_by(self) -> tuple[object, object]:
        """What copies of a document share: either its id, or its words under another id."""
        return self.id, _words_of(self.title, self.text if self.whole is None else self.whole)


@lru_cache(4_096)  # what an episode has found is looked at again after each of its searches
def _words_of(title: str, text: str) -> tuple[str, ...]:
    """The words of a document in one text, or title and text where it has none; never an id."""
    found = words(f"{title} {text}")
    return (" ".join(found),) if found else (title, text)


@dataclass(frozen=True, slots=True)
class Question:
    """A question and every answer that counts as right.

    Args:
        id: Identifier, unique in its question set.
        text: The question.
        golden_answers: Accepted answers (aliases), none of them blank. Without any, retrieval can
            be measured, but no episode played.
        dataset: Name of the data set, used to report metrics apart.
        hops: Number of facts needed, where known.
        gold_ids: Ids of the gold documents, where known, in hop order.
        gold_titles: Titles of the gold documents, where known.
        silver_ids: Ids of documents that :func:`igsearch_env.data.silver.find_silver` takes for
            evidence without any annotation; None if nobody has looked, empty if there are none.
        answer_distances: Pairs of a document's id and its distance to the answer, as
            :func:`igsearch_env.data.silver.answer_distances` finds them; None if nobody has looked.

    Raises:
        ValueError: If the text or an answer is blank, or a distance is none.
    """

    id: str
    text: str
    golden_answers: tuple[str, ...]
    dataset: str = ""
    hops: int | None = None
    gold_ids: tuple[str, ...] = ()
    gold_titles: tuple[str, ...] = ()
    silver_ids: tuple[str, ...] | None = None
    answer_distances: tuple[tuple[str, int], ...] | None = None

    def __post_init__(self) -> None:
        _clean(self, "id", "text", "dataset")
        for name in ("golden_answers", "gold_ids", "gold_titles", "silver_ids"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise ValueError(
                    f"question {self.id!r}: {name} must be a sequence of strings, "
                    f"got the string {value!r}; wrap it in a tuple"
                )
            if value is not None:
                cleaned = (clean_text(v) if isinstance(v, str) else v for v in value)
                object.__setattr__(self, name, tuple(cleaned))
        if self.answer_distances is not None:
            object.__setattr__(self, "answer_distances", _distances(self))
        if not self.text.strip():
            raise ValueError(f"question {self.id!r}: text must not be blank, got {self.text!r}")
        for answer in self.golden_answers:
            if not isinstance(answer, str) or not answer.strip():
                raise ValueError(
                    f"question {self.id!r}: every golden answer must be a non-blank string, "
                    f"got {answer!r}"
                )

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Itself: Gymnasium copies an environment's arguments, of which a set may hold 100,000."""
        return self


def _distances(question: Question) -> tuple[tuple[str, int], ...]:
    """Its ``answer_distances`` as pairs, whatever sequences they came in."""
    pairs: list[tuple[str, int]] = []
    for pair in question.answer_distances or ():
        id_, distance = pair if isinstance(pair, list | tuple) and len(pair) == 2 else ("", -1)
        if not (isinstance(id_, str) and type(distance) is int and distance >= 0):
            raise ValueError(
                f"question {question.id!r}: answer_distances must be pairs of a document's id and "
                f"a whole number of at least 0, got {pair!r}"
            )
        pairs.append((clean_text(id_), distance))
    return tuple(pairs)


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the transcript, written by one side.

    Args:
        text: The text.
        source: ``"policy"`` (sampled), ``"document"`` (retrieved, or what a tool returned;
            untrusted), ``"user"`` (a question, or what quotes others; untrusted) or ``"system"``
            (templates and the protocol's own tags).
        token_ids: The ids that were sampled for this text, or None where it was never tokenised.
        parts: Where two sides wrote it (a chat template's markers around documents), the pieces in
            reading order; only those of the system may hold control tokens. They join to ``text``.

    Raises:
        ValueError: If the parts do not join to the text.
    """

    text: str
    source: Source
    token_ids: tuple[int, ...] | None = None
    parts: tuple[Segment, ...] = ()

    def __post_init__(self) -> None:
        if self.parts and "".join(part.text for part in self.parts) != self.text:
            raise ValueError(
                f"the parts of a segment must join to its text, got {self.parts} for {self.text!r}"
            )


Context = tuple[Segment, ...]
"""A transcript, or a scoring context: segments in reading order."""


NO_REFINEMENT = Segment("", "policy", ())


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a search step added to the context: documents and what the policy made of them.

    Args:
        documents: The retrieved documents, best first.
        refinement: The policy's leading refinement block after them (empty text if none).
        question_id: The question that they were retrieved for.
        question_text: Its text, since one question can stand in two sets under two ids.
    """

    documents: tuple[Document, ...]
    refinement: Segment
    question_id: str
    question_text: str


@dataclass(frozen=True)
class Step:
    """One turn of the policy, and what the environment answered.

    Where a grammar allows several calls a turn, a turn with n calls is n steps. Each of them has
    the part of the turn's text up to the end of its call, its own query, documents and gain. The
    policy writes the whole turn before it sees any of the observations.

    Args:
        action: What the turn was parsed as. A call that finds documents is a ``"search"``,
            whichever tool was called; a call of another tool is a ``"tool"``.
        turn: The policy's text as kept (nothing after the last action), with its ids.
        observation: What the environment wrote back, or None after an answer.
        refinement: The leading refinement block of this turn (empty text if none): what the policy
            made of the documents of the search before.
        policy_tokens: Where the turn's tokens lie among all policy tokens of the episode.
        query_tokens: The tokens of the query among all policy tokens of the episode, both tags
            excluded; empty if this is no search.
        log_probs: Log-probability of each token of the turn under the policy that sampled, nats.
        stop_reason: Why the turn ends, where the policy says so; see
            :data:`igsearch_env.completion.StopReason`. An invalid turn that ends at ``"length"``
            was cut off, not malformed.
        search_step: Number of this search in the episode from 0, or None if this is no search.
        tool: Name of the tool that was called; empty for the search engine, and for no call.
        query: The query, or a tool's arguments, stripped; empty if this is no call.
        query_span: Characters ``[start, end)`` of the turn between the two search tags, or those
            of the arguments.
        documents: What the search returned.
        retrieval_failed: True if the retriever gave up on this search.
        cut: Budgets that ``documents`` were cut for (:mod:`igsearch_env.budgets`).
        counterfactuals: Evidence of other questions, drawn when the search ran, shape (N,).
        information_gain: IG of this search in nats per answer token; None until settled.
        log_prob: Mean log-probability of the gold answer given the real documents, nats.
        baseline_log_probs: The same given each counterfactual, shape (N,).
        best_log_prob: The highest ``log_prob`` of an earlier search, above which a gain counts;
            None for the first search, and where gains are not limited.
        before_log_prob: Mean log-probability of the gold answer before the documents, nats; None
            unless a credit method asked for what the documents alone changed.
        enabling: How much the documents raised the log-prob of the next query, in nats per token;
            None until it is computed, and where no search follows.
        hindsight_shift: How much more probable the turn is for the policy that has been told the
            gold answer, in nats per token; None until it is computed, and for all but the last call
            of a turn.
        reward: What the environment paid for this call.
        call: Number of the call in its turn, from 0.
        stub: What stands in place of the observation once its documents leave the context; None
            where they stay.
        bare: What stands in place of the turn, without its thoughts, once the next one is written;
            None where it stays as it is.
        attempt: Number of the attempt at the question that the step belongs to, from 0.
        reflection: What the environment wrote to open the next attempt, after the last step of
            one; None after any other step.
    """

    action: Action
    turn: Segment
    observation: Segment | None
    policy_tokens: slice
    query_tokens: slice
    refinement: Segment = NO_REFINEMENT
    log_probs: tuple[float, ...] | None = None
    stop_reason: StopReason | None = None
    search_step: int | None = None
    tool: str = ""
    query: str = ""
    query_span: tuple[int, int] | None = None
    documents: tuple[Document, ...] = ()
    retrieval_failed: bool = False
    cut: tuple[str, ...] = ()
    counterfactuals: tuple[Evidence, ...] = ()
    information_gain: float | None = None
    log_prob: float | None = None
    baseline_log_probs: tuple[float, ...] | None = None
    best_log_prob: float | None = None
    before_log_prob: float | None = None
    enabling: float | None = None
    hindsight_shift: float | None = None
    reward: float = 0.0
    call: int = 0
    stub: Segment | None = None
    bare: Context | None = None
    attempt: int = 0
    reflection: Segment | None = None

    @property
    def replies(self) -> Context:
        """What the environment wrote after the turn: the observation, then the reflection."""
        if self.reflection is None:  # most of them, and each is asked for many times
            return () if self.observation is None else (self.observation,)
        return (
            (self.reflection,) if self.observation is None else (self.observation, self.reflection)
        )

    @property
    def valid(self) -> bool:
        """Whether the turn held an action that could be carried out."""
        return self.action != "invalid"


@dataclass(frozen=True, slots=True)
class OutcomePart:
    """One component of an outcome.

    Args:
        name: The component.
        weight: Its weight.
        value: What it measured; None where it does not apply to the question, or has failed.
        failed: Whether it could not be measured, such as by a judge that gave no verdict.
    """

    name: str
    weight: float
    value: float | None
    failed: bool = False

    @property
    def paid(self) -> float:
        """What the part adds to the outcome."""
        return 0.0 if self.value is None else self.weight * self.value


@dataclass(frozen=True)
class Episode:
    """A question and the steps taken so far to answer it.

    Args:
        question: The question.
        prompt: The first observation.
        steps: What has happened since.
        group_id: Rollouts of one question share it; statistics of GRPO run over it.
        outcome: Score of the episode; None until it has ended, and where the score could not be
            had (``unscored``). With several attempts it is that of the last one, whatever the
            others were.
        answer: The answer of the last attempt that has ended, or None if it gave none.
        attempt_outcomes: Score of each attempt that has ended; None where it could not be had.
        outcome_parts: What the score of the last attempt that has ended is made of, where the
            outcome has parts.
        unscored: Whether the score of an attempt could not be had, such as from a judge that gave
            no verdict.
        em: Exact match of the answer, 0.0 or 1.0; None until the episode has ended.
        f1: Token F1 of the answer; None until the episode has ended.
        prior_log_prob: Mean log-probability of the gold answer given the prompt alone, nats; None
            unless a credit method asked for it.
        terminated: True once an answer was given.
        truncated: True once the turns, or another budget, ran out without one.
        ended_by: The budget that ran out: ``"turns"``, ``"tokens"`` or ``"seconds"``; empty if
            none did.
        tokens: Tokens of the transcript, where a budget limits them; 0 where they are not counted.
        began: What the clock showed at the reset, in seconds, where a budget limits them.
        keep_documents: For how many turns documents stay in the context; None for all of them.
    """

    question: Question
    prompt: Segment
    steps: tuple[Step, ...] = ()
    group_id: str = ""
    outcome: float | None = None
    answer: str | None = None
    attempt_outcomes: tuple[float | None, ...] = ()
    outcome_parts: tuple[OutcomePart, ...] = ()
    unscored: bool = False
    em: float | None = None
    f1: float | None = None
    prior_log_prob: float | None = None
    terminated: bool = False
    truncated: bool = False
    ended_by: EndedBy | Literal[""] = ""
    tokens: int = 0
    began: float | None = None
    keep_documents: int | None = None

    @property
    def finished(self) -> bool:
        """Whether the episode has ended, either way."""
        return self.terminated or self.truncated

    @property
    def transcript(self) -> Context:
        """Everything that was said, in order."""
        return (self.prompt, *_segments(self.steps))

    def said_since(self, step: int) -> str:
        """What the environment has written from a step on: all replies of the turns since then.

        Args:
            step: Number of the first step that counts.
        """
        return "".join(reply.text for one in self.steps[step:] for reply in one.replies)

    def turn_of(self, index: int) -> range:
        """The steps of the turn that step ``index`` belongs to; a single one, unless it has calls.

        Raises:
            IndexError: If there is no such step.
        """
        first, end = index - self.steps[index].call, index + 1
        while end < len(self.steps) and self.steps[end].call:
            end += 1
        return range(first, end)

    @property
    def context(self) -> Context:
        """What the policy sees when it writes the next turn: the transcript, unless it is managed.

        Documents that have been there for ``keep_documents`` turns are replaced by a notice, and
        turns from which thoughts are to be dropped stand without them.
        """
        return self.context_before(len(self.steps))

    def new_documents(self, index: int) -> tuple[Document, ...]:
        """The documents of step ``index`` that no earlier step found, in any attempt.

        A document is known by its id, or by its words under another id. One that was shown in part
        counts once more when it is shown whole.
        """
        found = self.steps[index].documents
        if not found:
            return ()
        known: set[tuple[object, bool]] = set()
        for step in self.steps[:index]:
            for one in step.documents:
                for name in one.known_by:
                    known |= {(name, one.whole is None), (name, False)}
        return tuple(
            one for one in found if not known & {(name, one.whole is None) for name in one.known_by}
        )

    def context_before(self, index: int) -> Context:
        """What the policy saw when it wrote the turn of step ``index``."""
        first = self.turn_of(index).start if index < len(self.steps) else index
        return self._context(self.steps[:first])

    def context_after(self, index: int) -> Context:
        """What the policy sees after step ``index``, up to what was answered to it.

        Of a turn of several calls, it is as if the turn had ended with this one.
        """
        seen = self._context(self.steps[: index + 1])
        return seen[: -len(self.steps[index].replies)] if self.steps[index].replies else seen

    def _context(self, steps: tuple[Step, ...]) -> Context:
        if self.keep_documents is None and all(step.bare is None for step in steps):
            return (self.prompt, *_segments(steps))
        turns = list(accumulate(not step.call for step in steps))  # number of each step's turn
        kept = len(steps) if self.keep_documents is None else self.keep_documents
        return (self.prompt, *_segments(steps, [turns[-1] - turn >= kept for turn in turns]))

    @property
    def training_sequences(self) -> tuple[tuple[tuple[Segment, bool], ...], ...]:
        """What a policy is trained on: segments in order, and which are trained on.

        It is the transcript up to the last turn, and the turns in it. Where what the policy saw
        before a turn does not go on from what it saw before the last one, another sequence begins
        with it. Each turn is trained on once, in the order of the turns.
        """
        sequences: list[list[tuple[Segment, bool]]] = []
        index = 0
        while index < len(self.steps):
            before = self.context_before(index)
            last = [segment for segment, _ in sequences[-1]] if sequences else []
            if not last or list(before[: len(last)]) != last:
                sequences.append([])
                last = []
            sequences[-1] += [(segment, False) for segment in before[len(last) :]]
            turn = self.turn_of(index)
            sequences[-1] += [(self.steps[i].turn, True) for i in turn]
            index = turn.stop
        return tuple(map(tuple, sequences)) or (((self.prompt, False),),)

    @property
    def attempt(self) -> int:
        """Number of the attempt that the next turn belongs to, from 0."""
        if not self.steps:
            return 0
        last = self.steps[-1]
        return last.attempt + (last.reflection is not None)

    @property
    def policy_tokens(self) -> int:
        """Number of tokens that the policy sampled: the length of a credit array."""
        return self.steps[-1].policy_tokens.stop if self.steps else 0

    @property
    def searches(self) -> tuple[Step, ...]:
        """The search steps, in order; ``searches[t].search_step == t``."""
        return tuple([step for step in self.steps if step.action == "search"])

    @property
    def retrieval_failed(self) -> bool:
        """Whether any search of the episode failed."""
        return any(step.retrieval_failed for step in self.steps)

    @property
    def left_out(self) -> bool:
        """Whether the episode says nothing about the policy, so that nothing is learned from it.

        A search failed, or its outcome could not be had.
        """
        return self.unscored or self.retrieval_failed

    @property
    def information_gains(self) -> tuple[float | None, ...]:
        """IG of each search in nats per answer token, None where it is not settled."""
        return tuple(step.information_gain for step in self.searches)


Record = TypeVar("Record", Step, Episode)


def changed(record: Record, **fields: Any) -> Record:
    """A step or an episode with other values in some fields.

    It does what ``dataclasses.replace`` does and is faster, for what is done to every row in every
    step of an environment: neither class has anything to check, so ``__init__`` is not called.

    Raises:
        TypeError: If there is no such field.
    """
    values = record.__dict__ | fields
    if len(values) != len(record.__dict__):
        unknown = ", ".join(sorted(fields.keys() - record.__dict__.keys()))
        raise TypeError(f"{type(record).__name__} has no field {unknown}")
    copied = object.__new__(type(record))
    object.__setattr__(copied, "__dict__", values)
    return copied


def _segments(steps: Sequence[Step], old: Sequence[bool] | None = None) -> Iterator[Segment]:
    """What was said, turn by turn: all parts of the turn, then what was answered to each.

    Args:
        steps: The steps of whole turns.
        old: In a managed context, whether the documents of each step have left it. Turns stand
            there without the thoughts that are dropped.
    """
    replies: list[Segment] = []
    for number, step in enumerate(steps):
        if not step.call:
            yield from replies
            replies = []
        if old is None or step.bare is None:
            yield step.turn
        else:
            yield from step.bare
        if old is not None and old[number] and step.stub is not None:
            replies.append(step.stub)
            replies += () if step.reflection is None else (step.reflection,)
        else:
            replies += step.replies
    yield from replies
