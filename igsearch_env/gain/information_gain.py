"""Information gain: what a search step was worth.

IG_t = l(a* | C_t) - mean_j l(a* | C_t^j), with l the mean log-probability of the gold answer's
tokens in nats (IG-Search, arXiv 2604.15148). C_t is the transcript up to the documents of search t,
C_t^j the same with the j-th documents drawn from another question in their place. In the paper's
form both end with the refinement that was written after the documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from igsearch_env.episode import (
    NO_REFINEMENT,
    Context,
    Document,
    Episode,
    Evidence,
    Segment,
    Step,
    changed,
)
from igsearch_env.gain.scorer import AnswerScorer, BoundedScorer
from igsearch_env.protocol.tags import PROTOCOLS, TagProtocol

AliasOperator = Literal["best_real", "max", "logmeanexp"]
Counterfactual = Literal["documents+refinement", "documents"]
LogProbs = NDArray[np.float64]


def information_gain(
    real: Sequence[LogProbs],
    counterfactual: Sequence[Sequence[LogProbs]],
    head_tokens: int = 0,
    head_weight: float = 1.0,
    floor: float | None = None,
    aliases: AliasOperator = "best_real",
) -> float:
    """Information gain of one search, in nats per answer token.

    Args:
        real: Token log-probs of each gold alias in the real context: one array of shape
            (answer tokens,) per alias.
        counterfactual: For each alias, its token log-probs in each of N counterfactual contexts.
        head_tokens: See :func:`answer_scores`.
        head_weight: See :func:`answer_scores`.
        floor: See :func:`answer_scores`.
        aliases: ``"best_real"`` takes the alias with the highest real score and its own baselines
            (the published rule; its expectation is above 0 under pure noise). ``"max"`` and
            ``"logmeanexp"`` reduce the aliases in every context alike.

    Raises:
        ValueError: If the shapes do not fit or there is nothing to compare with.

    >>> real, swapped = np.log([0.5, 0.5]), [np.log([0.25, 0.25]), np.log([0.125, 0.125])]
    >>> round(information_gain([real], [swapped]), 6)
    1.039721
    """
    if not real or len(counterfactual) != len(real):
        raise ValueError(
            "information_gain needs one list of counterfactual arrays per alias, got "
            f"{len(real)} real and {len(counterfactual)} counterfactual aliases"
        )
    if len({len(rows) for rows in counterfactual}) != 1 or not counterfactual[0]:
        raise ValueError(
            "every alias needs the same number N >= 1 of counterfactual arrays, got "
            f"{[len(rows) for rows in counterfactual]}"
        )
    _check_aliases(aliases)

    table = [
        answer_scores([first, *rest], head_tokens, head_weight, floor)
        for first, rest in zip(real, counterfactual, strict=True)
    ]
    return _differences([_reduced(np.array(table), aliases)])[0]


def _check_aliases(aliases: str) -> None:
    if aliases not in ("best_real", "max", "logmeanexp"):
        raise ValueError(f"aliases must be 'best_real', 'max' or 'logmeanexp', got {aliases!r}")


def _reduced(table: LogProbs, aliases: AliasOperator) -> LogProbs:
    """Scores of the real context and the N others, (1 + N,), from those by alias."""
    if len(table) == 1:  # every rule makes the same
        only: LogProbs = table[0]
        return only
    if aliases == "best_real":
        return np.asarray(table[np.argmax(table[:, 0])], dtype=np.float64)
    return reduce_aliases(table, aliases)


def _differences(rows: Sequence[LogProbs]) -> list[float]:
    """Of each row of 1 + N scores, the first less the mean of the N others."""
    found = [0.0] * len(rows)
    for size in {row.size for row in rows}:  # one sum over all rows of a length
        places = [place for place, row in enumerate(rows) if row.size == size]
        table = np.array([rows[place] for place in places])
        gains = table[:, 0] - table[:, 1:].sum(axis=1) / (size - 1)
        for place, gain in zip(places, gains.tolist(), strict=True):
            found[place] = gain
    return found


def limited(gain: float, after: float, best: float | None) -> float:
    """What of a gain lies above the best that was known before; a loss stays as it is.

    Args:
        gain: By how much something rose, compared with anything.
        after: What it rose to.
        best: The highest value that it had before; None if there is none.

    >>> limited(3.0, -1.0, -2.0), limited(3.0, -2.5, -2.0), limited(-3.0, -4.0, -2.0)
    (1.0, 0.0, -3.0)
    """
    return gain if best is None or gain <= 0 else max(0.0, min(gain, after - best))


def reduce_aliases(scores: LogProbs, aliases: AliasOperator) -> LogProbs:
    """One score per context, shape (contexts,), from those of each alias, (aliases, contexts).

    Where contexts are not compared, ``"best_real"`` is the highest score as ``"max"`` is.
    """
    if aliases == "logmeanexp":
        reduced: LogProbs = np.logaddexp.reduce(scores, axis=0) - math.log(len(scores))
        return reduced
    return np.asarray(scores.max(axis=0), dtype=np.float64)


def answer_scores(
    log_probs: Sequence[NDArray[np.float64]],
    head_tokens: int = 0,
    head_weight: float = 1.0,
    floor: float | None = None,
) -> NDArray[np.float64]:
    """Weighted mean of the token log-probabilities of each answer, in nats per token.

    Args:
        log_probs: Log-probability of each token in nats, one array of shape (answer tokens,) per
            answer.
        head_tokens: How many leading tokens of an answer weigh more.
        head_weight: Their weight against 1 for the others.
        floor: Each token counts at least this much, in nats; None for no floor.

    Returns:
        The scores, shape (answers,).

    Raises:
        ValueError: If an answer has no tokens, a number is not a log-probability, one is -inf and
            there is no floor, or the weights are out of range.
    """
    check_head(head_tokens, head_weight)
    if not log_probs:
        return np.zeros(0)
    arrays = [np.asarray(values, dtype=np.float64) for values in log_probs]
    shapes = [values.shape for values in arrays]
    if bad := [shape for shape in shapes if len(shape) != 1 or not shape[0]]:
        raise ValueError(
            "an answer needs at least one token: expected log-probs of shape (answer tokens,), "
            f"got shape {bad[0]}"
        )
    lengths = np.array([size for (size,) in shapes])
    starts = np.cumsum(lengths) - lengths  # (answers,)
    flat = np.concatenate(arrays)  # (tokens of all answers,)
    if not flat.max() <= 1e-6:  # nor is NaN
        wrong = next(values for values in arrays if not values.max() <= 1e-6)
        raise ValueError(f"log-probs must be numbers of at most 0, got {wrong.tolist()}")
    if floor is not None:
        flat = np.maximum(flat, floor)
    elif np.isneginf(flat).any():
        wrong = next(values for values in arrays if np.isneginf(values).any())
        raise ValueError(f"a log-prob of -inf needs a floor, got {wrong.tolist()} and no floor")
    places = np.arange(flat.size) - np.repeat(starts, lengths)
    weights = np.where(places < head_tokens, head_weight, 1.0)
    scores: NDArray[np.float64] = np.add.reduceat(flat * weights, starts)
    return scores / np.add.reduceat(weights, starts)


def check_head(head_tokens: int, head_weight: float) -> None:
    """Refuse weights of leading tokens that are out of range."""
    if head_tokens < 0 or not 0 < head_weight < math.inf:
        raise ValueError(
            "head_tokens must be at least 0 and head_weight above 0 and finite, "
            f"got {head_tokens} and {head_weight}"
        )


@dataclass(frozen=True)
class InformationGain:
    """Settles the information gain of search steps: the one implementation of it.

    The environment calls :meth:`settle` online; a trainer that runs the environment without a
    scorer calls it once per batch, with the policy that sampled.

    Args:
        protocol: The tag grammar of the episodes.
        counterfactual: What is swapped. ``"documents"`` settles a search at once.
            ``"documents+refinement"`` (the paper) settles search t once the next turn is known; a
            policy that writes the answer into its refinement is paid for it.
        floor: Least log-probability of an answer token, in nats: ``"uniform"`` for that of a
            uniform guess, ``-ln(vocabulary size)``; None for no floor.
        head_tokens: See :func:`answer_scores`.
        head_weight: See :func:`answer_scores`.
        aliases: See :func:`information_gain`.
        added_only: Whether a search gains only what it adds to its context: documents that an
            earlier search of the episode found are left out of the scored contexts, a search that
            found nothing else has no gain, and a gain ends where the belief in the gold answer was
            after an earlier search. Without it (the paper) a policy can live on finding the same
            again and again.
    """

    protocol: TagProtocol = PROTOCOLS["refine"]
    counterfactual: Counterfactual = "documents"
    floor: float | Literal["uniform"] | None = "uniform"
    head_tokens: int = 0
    head_weight: float = 1.0
    aliases: AliasOperator = "max"
    added_only: bool = True

    def __post_init__(self) -> None:
        if self.counterfactual not in ("documents+refinement", "documents"):
            raise ValueError(
                "counterfactual must be 'documents+refinement' or 'documents', "
                f"got {self.counterfactual!r}"
            )
        if isinstance(self.floor, str) and self.floor != "uniform":
            raise ValueError(f"floor must be 'uniform', a number or None, got {self.floor!r}")
        if isinstance(self.floor, int | float) and not -math.inf < self.floor < 0:
            raise ValueError(f"a floor is a finite log-probability, below 0 nats, got {self.floor}")
        check_head(self.head_tokens, self.head_weight)
        _check_aliases(self.aliases)

    @classmethod
    def paper(cls, protocol: TagProtocol = PROTOCOLS["refine"]) -> Self:
        """The published form: refinements count, known documents too, and there is no floor.

        Of several gold answers, the one with the highest real score counts.
        """
        return cls(
            protocol, "documents+refinement", added_only=False, floor=None, aliases="best_real"
        )

    def settle(
        self,
        episodes: Sequence[Episode],
        scorer: AnswerScorer,
        needs_gain: Sequence[Sequence[bool]] | None = None,
    ) -> list[Episode]:
        """Fill in the information gain of every search step that is due and has none yet.

        Searches that failed or found nothing, those without counterfactual evidence, and those of
        which a context is too long for a :class:`~igsearch_env.gain.scorer.BoundedScorer` or has no
        score stay None.

        Args:
            episodes: Episodes, finished or not.
            scorer: Scores answers; one call is made for the whole batch.
            needs_gain: For each search of each episode, whether to settle it; None for all.

        Returns:
            The episodes in the same order, with their due steps settled.

        Raises:
            ValueError: If ``needs_gain`` is not one truth value per search of each episode.
        """
        if needs_gain is not None:
            _check_needs_gain(needs_gain, episodes)
        places = [
            (number, index)
            for number, episode in enumerate(episodes)
            for index in range(len(episode.steps))
            if self.due(episode, index)
            and (needs_gain is None or needs_gain[number][_search_step(episode.steps[index])])
        ]
        jobs = [
            (self.contexts(episodes[number], index), episodes[number].question.golden_answers)
            for number, index in places
        ]
        settled = [list(episode.steps) for episode in episodes]
        rows = {
            place: _reduced(table, self.aliases)
            for place, table in zip(places, self.scores(jobs, scorer), strict=True)
            if table is not None
        }
        for (place, row), gain in zip(rows.items(), _differences([*rows.values()]), strict=True):
            number, index = place
            steps = settled[number]
            known = [step.log_prob for step in steps[:index] if step.log_prob is not None]
            best = max(known, default=None) if self.added_only else None
            steps[index] = _settled(steps[index], row, gain, best)
        touched = {number for number, _ in places}
        return [
            changed(episode, steps=tuple(settled[number])) if number in touched else episode
            for number, episode in enumerate(episodes)
        ]

    def scores(
        self,
        jobs: Sequence[tuple[Sequence[Context], Sequence[str]]],
        scorer: AnswerScorer,
        lead: str | None = None,
    ) -> list[LogProbs | None]:
        """Score answers in contexts, in one call.

        Args:
            jobs: Contexts that belong together, and the aliases that are scored in each.
            scorer: Scores answers.
            lead: What stands before each of them; None for the protocol's ``answer_lead``.

        Returns:
            The mean log-probs of each job, shape (aliases, contexts); None where one of its
            contexts is too long for a :class:`~igsearch_env.gain.scorer.BoundedScorer`, or the
            scorer gave no score in it.
        """
        lead = self.protocol.answer_lead if lead is None else lead
        # The lead (a blank) is scored with the answer: a byte-level BPE has them in one token, and
        # a blank scored apart from its word would be a token that no policy ever writes.
        parts = [
            [(c, lead + alias) for c in contexts for alias in golds] for contexts, golds in jobs
        ]
        if isinstance(scorer, BoundedScorer):
            every = list(chain.from_iterable(parts))
            fits = iter(scorer.fits([c for c, _ in every], [answer for _, answer in every]))
            known = [[next(fits) for _ in part] for part in parts]
            # A job is dropped whole: a mean over the counterfactuals that happen to fit would be
            # compared with other evidence than that of its neighbours.
            parts = [part if all(fit) else [] for part, fit in zip(parts, known, strict=True)]
        # One call for everything, so that a scorer can share prefixes and fill its batches.
        scored = list(chain.from_iterable(parts))
        given = scorer.log_probs(*map(list, zip(*scored, strict=True))) if scored else []
        bounds = np.cumsum([0, *map(len, parts)]).tolist()
        whole = [all(one is not None for one in given[a:b]) for a, b in pairwise(bounds)]
        parts = [part if known else [] for part, known in zip(parts, whole, strict=True)]
        found = [
            one
            for (a, b), known in zip(pairwise(bounds), whole, strict=True)
            for one in (given[a:b] if known else ())
            if one is not None
        ]
        floor = -math.log(scorer.vocabulary_size) if self.floor == "uniform" else self.floor
        flat = answer_scores(found, self.head_tokens, self.head_weight, floor)
        tables: list[LogProbs | None] = []
        start = 0
        for part, (contexts, golds) in zip(parts, jobs, strict=True):
            scores = flat[start : start + len(part)]  # context by context, each with every alias
            tables.append(scores.reshape(len(contexts), len(golds)).T if part else None)
            start += len(part)
        return tables

    def due(self, episode: Episode, index: int) -> bool:
        """Whether step ``index`` is a search whose gain can be settled now and is not yet."""
        step = episode.steps[index]
        if step.information_gain is not None or not step.counterfactuals:
            return False
        # Documents of other questions against none at all would measure the length of the context
        # and the words "nothing was found", not what the query was worth.
        if not self.documents(episode, index):
            return False
        return (
            self.counterfactual == "documents"
            or episode.finished
            or episode.turn_of(index).stop < len(episode.steps)
        )

    def contexts(self, episode: Episode, index: int) -> list[Context]:
        """The real context of search step ``index`` and its N counterfactual ones, in that order.

        Each ends with the answer's opening tag. Of several calls in a turn each is scored as if
        the turn had ended with it. Documents that earlier calls of the turn found, too, stand in
        all contexts, so that what two queries find counts once, for the first of them.
        """
        step = episode.steps[index]
        replies = self.until_replies(episode, index, self.shown(episode, index))
        opening = Segment(self.protocol.answer_opening, "system")
        real = self.refinement(episode, index)
        refinements = [real, *(other.refinement for other in step.counterfactuals)]
        if not all(refinement.text for refinement in refinements):
            # Where one context has no refinement none has: only their content is to differ.
            return [(*context, opening) for context in replies]
        return [
            (*context, refinement, opening)
            for context, refinement in zip(replies, refinements, strict=True)
        ]

    def before_reply(self, episode: Episode, index: int) -> Context:
        """What the policy sees after search step ``index``, without the documents."""
        # The documents are read in the next turn, so it is the context of that turn.
        return episode.context_after(index)

    def until_replies(
        self, episode: Episode, index: int, documents: Sequence[Sequence[Document]]
    ) -> list[Context]:
        """What the policy sees after search step ``index``, with each of these in its reply."""
        calls = episode.steps[episode.turn_of(index).start : index + 1]
        said = "".join(step.turn.text for step in calls)
        place = (len(calls) - 1, len(calls))
        before, render = self.before_reply(episode, index), self.protocol.render_documents
        return [(*before, render(found, said, place)) for found in documents]

    def shown(self, episode: Episode, index: int) -> list[tuple[Document, ...]]:
        """The documents of step ``index`` that count, and those in their place, shape (1 + N,)."""
        real, earlier = self.documents(episode, index), _found_earlier(episode, index)
        others = [other.documents for other in episode.steps[index].counterfactuals]
        if self.added_only:  # as many as count of the real ones
            others = [documents[: len(real)] for documents in others]
        return [real, *(_swapped(real, documents, earlier) for documents in others)]

    def documents(self, episode: Episode, index: int) -> tuple[Document, ...]:
        """The documents of step ``index`` that count.

        With ``added_only`` they are :meth:`igsearch_env.Episode.new_documents`.
        """
        return episode.new_documents(index) if self.added_only else episode.steps[index].documents

    def refinement(self, episode: Episode, index: int) -> Segment:
        """What the policy wrote about the documents of step ``index``, where that is scored.

        What it wrote after a turn of several calls belongs to the last of them.
        """
        following = episode.steps[index + 1 : index + 2]
        if self.counterfactual == "documents" or not following or following[0].call:
            return NO_REFINEMENT
        same = following[0].attempt == episode.steps[index].attempt
        return following[0].refinement if same else NO_REFINEMENT

    def evidence(self, episode: Episode, index: int) -> Evidence:
        """The documents and the refinement of step ``index``, for the pool."""
        question = episode.question
        documents = episode.steps[index].documents
        return Evidence(documents, self.refinement(episode, index), question.id, question.text)


def _found_earlier(episode: Episode, index: int) -> set[object]:
    """What the documents are known by that earlier calls of the same turn found."""
    earlier = episode.steps[episode.turn_of(index).start : index]
    return {name for step in earlier for one in step.documents for name in one.known_by}


def _swapped(
    documents: Sequence[Document], others: Sequence[Document], kept: set[object]
) -> tuple[Document, ...]:
    """Other documents in place of these, apart from those that are to be kept."""
    stays = [not kept.isdisjoint(document.known_by) for document in documents] if kept else []
    if not any(stays):
        return tuple(others)
    left = iter(others)
    swapped = (
        document if stay else next(left, None)
        for document, stay in zip(documents, stays, strict=True)
    )
    return tuple(document for document in swapped if document is not None)


def _check_needs_gain(rows: Sequence[Sequence[bool]], episodes: Sequence[Episode]) -> None:
    expected = [len(episode.searches) for episode in episodes]
    if not all(isinstance(row, Sequence) for row in rows) or expected != [*map(len, rows)]:
        raise ValueError(
            "needs_gain must have a row for each episode with a truth value for each of its "
            f"searches, so rows of {expected}; got {rows}"
        )


def _search_step(step: Step) -> int:
    assert step.search_step is not None  # searches have numbers
    return step.search_step


def _settled(step: Step, row: LogProbs, gain: float, best: float | None) -> Step:
    """The step with its scores: that of the real context and those of the N others."""
    real, *others = row.tolist()
    return changed(
        step,
        information_gain=limited(gain, real, best),
        log_prob=real,
        baseline_log_probs=tuple(others),
        best_log_prob=best,
    )
