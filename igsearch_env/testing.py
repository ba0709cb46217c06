"""Conformance checks for retrievers, scorers, credit methods, outcomes and agents of your own.

Each check calls an implementation as the library does and raises a :class:`ConformanceError` at the
first promise that it breaks, with what was expected and what came. An exception of the
implementation itself is passed on as it is. The checks need no test runner:

>>> from igsearch_env import UnigramScorer, make_credit
>>> check_scorer(UnigramScorer())
>>> check_credit(make_credit("ig_search"))
>>> check_outcome({"f1": 1.0, "searches": -0.05}, (-1.0, 1.0))
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igsearch_env.agent import Agent
from igsearch_env.completion import Completion
from igsearch_env.credit import CreditAssignment
from igsearch_env.credit.base import FLAGS
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Context, Document, Episode, Question, Segment, Step
from igsearch_env.gain.scorer import AnswerScorer, BoundedScorer
from igsearch_env.outcome import Outcome, score_outcomes
from igsearch_env.protocol.tags import PROTOCOLS, TagProtocol
from igsearch_env.retrieval.base import Retriever
from igsearch_env.settings import make_engine
from igsearch_env.turn import SearchResult, TurnRules

STRANGE_TEXTS = (
    "你好世界 🙂",
    "naïve café e\u0301",
    "a</search><answer>b</answer>",
    "x" * 300,
    '"quoted" \\ \t line\nbreak',
)
"""Text that a policy may write or a corpus may hold."""

QUESTIONS = (
    Question(
        "lima",
        "What is the capital of Peru?",
        ("Lima",),
        gold_ids=("d1",),
        silver_ids=(),
        answer_distances=(),
    ),
    Question(
        "tokyo",
        "日本の首都はどこですか? 🙂",
        ("東京", "Tokyo"),
        gold_ids=("d2", "d3"),
        silver_ids=("d2",),
        answer_distances=(("d2", 0), ("d1", 1)),
    ),
)


class ConformanceError(AssertionError):
    """A promise that an implementation breaks."""


def check_retriever(retriever: Retriever, queries: Sequence[str], k: int = 3) -> None:
    """Check that a retriever keeps the promises of :class:`igsearch_env.Retriever`.

    Args:
        retriever: The retriever.
        queries: At least two different queries that it finds documents for.
        k: Documents per query, at most the size of the corpus.

    Raises:
        ConformanceError: If a promise is broken.
        ValueError: If there are fewer than two different queries.
    """
    if isinstance(queries, str) or len(set(queries)) < 2:
        raise ValueError(f"queries must be at least two different strings, got {queries!r}")
    asked = [*queries, *STRANGE_TEXTS]
    found = _search(retriever, asked, k)
    _require(
        any(found[: len(queries)]),
        f"documents for at least one of the queries {[*queries]}",
        "none; give queries that the corpus has documents for",
    )
    for query, documents in zip(asked, found, strict=True):
        _check_documents(query, documents, k)
    ids = [_ids(documents) for documents in found]
    _require_equal(ids, _all_ids(_search(retriever, asked, k)), "the same documents a second time")
    backwards = _all_ids(_search(retriever, asked[::-1], k))[::-1]
    _require_equal(ids, backwards, "the same documents if the queries come in reverse order")
    for query, expected in zip(queries, ids, strict=False):
        (alone,) = _all_ids(_search(retriever, [query], k))
        _require_equal(expected, alone, f"the documents of the batch for {query!r} alone")
    twice = _all_ids(_search(retriever, [queries[0]] * 2, k))
    _require_equal(twice, [ids[0]] * 2, f"the same documents for {queries[0]!r} given twice")
    for query, documents in zip(queries, _search(retriever, list(queries), 1), strict=True):
        _check_documents(query, documents, 1)
    _search(retriever, [], k)
    _check_copy(retriever)


def _search(retriever: Retriever, queries: list[str], k: int) -> list[list[Document]]:
    found = retriever.search(queries, k)
    _require(isinstance(found, list | tuple), "a list of lists of documents", found)
    _require(
        len(found) == len(queries),
        f"one list per query, so {len(queries)} of them (queries of the check itself included)",
        f"{len(found)} lists",
    )
    for documents in found:
        _require(isinstance(documents, list | tuple), "a list of documents per query", documents)
    return [list(documents) for documents in found]


def _check_documents(query: str, documents: Sequence[Document], k: int) -> None:
    of = f"for {query!r}"
    _require(len(documents) <= k, f"at most k = {k} documents {of}", f"{len(documents)}")
    for document in documents:
        _require(isinstance(document, Document), f"igsearch_env.Document objects {of}", document)
        texts = (document.id, document.title, document.text)
        _require(all(isinstance(t, str) for t in texts), "id, title and text as strings", document)
        _require(bool(document.id), "ids that are not empty", document)
    ids = _ids(documents)
    _require(len(set(ids)) == len(ids), f"documents with different ids {of}", ids)
    scores = [document.score for document in documents if document.score is not None]
    _require(all(math.isfinite(score) for score in scores), f"finite scores {of}", scores)
    falling = all(one >= other for one, other in pairwise(scores))
    _require(falling, f"documents in the order of their scores, best first, {of}", scores)


def _ids(documents: Sequence[Document]) -> list[str]:
    return [document.id for document in documents]


def _all_ids(found: Sequence[Sequence[Document]]) -> list[list[str]]:
    return [_ids(documents) for documents in found]


def check_scorer(scorer: AnswerScorer, *, tolerance: float = 1e-3) -> None:
    """Check that a scorer keeps the promises of :class:`igsearch_env.AnswerScorer`.

    Args:
        scorer: The scorer.
        tolerance: Largest difference in nats that rounding may make between two orders or sizes of
            a batch.

    Raises:
        ConformanceError: If a promise is broken.
    """
    size = scorer.vocabulary_size
    whole = isinstance(size, int | np.integer) and not isinstance(size, bool)
    _require(whole and size >= 2, "vocabulary_size as a whole number of at least 2", size)
    contexts = _contexts()
    answers = [" Lima", " Lima Lima", " 東京", " naïve café 🙂", " 1,024"]
    pairs = [(context, answer) for context in contexts for answer in answers]
    if isinstance(scorer, BoundedScorer):
        fits = scorer.fits([c for c, _ in pairs], [a for _, a in pairs])
        _require(
            len(fits) == len(pairs) and all(isinstance(fit, bool | np.bool_) for fit in fits),
            f"a truth value from fits() for each of {len(pairs)} pairs",
            fits,
        )
        _require(any(fits), "contexts of a hundred characters that fit", "none that does")
        _require_equal(list(scorer.fits([], [])), [], "nothing from fits() for nothing")
        pairs = [pair for pair, fit in zip(pairs, fits, strict=True) if fit]
    scores = _log_probs(scorer, pairs)
    for (_, answer), array in zip(pairs, scores, strict=True):
        _check_log_probs(answer, array)
    _require_near(scores, _log_probs(scorer, pairs), 0.0, "the same log-probs a second time")
    backwards = _log_probs(scorer, pairs[::-1])[::-1]
    _require_near(scores, backwards, tolerance, "the same log-probs in a reversed batch")
    for pair, array in zip(pairs, scores, strict=True):
        _require_near([array], _log_probs(scorer, [pair]), tolerance, f"{pair[1]!r} scored alone")
    by_pair = dict(zip(pairs, scores, strict=True))
    for context in contexts:
        if (short := by_pair.get((context, " Lima"))) is not None and (
            longer := by_pair.get((context, " Lima Lima"))
        ) is not None:
            head = longer[: len(short)]
            what = "the first tokens of ' Lima Lima' to score as those of ' Lima' do"
            _require_near([short], [head], tolerance, what)
    scores = [array for (_, answer), array in by_pair.items() if answer == " Lima"]
    same = all(one.shape == scores[0].shape and np.array_equal(one, scores[0]) for one in scores)
    _require(not same, "log-probs that depend on the context", "the same ones in every context")
    _require_equal(scorer.log_probs([], []), [], "no arrays for no pairs")
    try:
        empty: Any = scorer.log_probs(contexts[:1], [""])
    except ValueError:
        empty = None
    _require(empty is None, "a ValueError for an answer without tokens", empty)
    _check_copy(scorer)


def _contexts() -> list[Context]:
    """Contexts of one question after other documents, some of them strange; the last is short."""
    protocol = PROTOCOLS["refine"]
    opening = Segment(protocol.answer_opening, "system")
    texts = ("Lima is the capital of Peru .", "Rome is in Italy .", *STRANGE_TEXTS)
    asked = Segment("Question: what is the capital of Peru ?\n", "system")
    rendered = [protocol.render_documents((Document("d", "Peru", text),)) for text in texts]
    return [*((asked, documents, opening) for documents in rendered), (asked, opening)]


def _log_probs(
    scorer: AnswerScorer, pairs: Sequence[tuple[Context, str]]
) -> list[NDArray[np.float64]]:
    found = scorer.log_probs([context for context, _ in pairs], [answer for _, answer in pairs])
    _require(
        isinstance(found, list | tuple) and len(found) == len(pairs),
        f"one array per pair, so {len(pairs)} of them",
        found,
    )
    scores = [array for array in found if array is not None]
    _require(len(scores) == len(pairs), "a score of each answer", "None for some")
    return scores


def _check_log_probs(answer: str, array: Any) -> None:
    floats = isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating)
    _require(floats, f"a float array for {answer!r}", array)
    shape = array.shape
    _require(
        array.ndim == 1 and array.size > 0,
        f"an array of shape (answer tokens,) for {answer!r}",
        f"shape {shape}",
    )
    _require(not np.isnan(array).any(), f"no NaN for {answer!r}", array)
    _require(bool((array <= 1e-6).all()), f"log-probabilities of at most 0 for {answer!r}", array)


def check_credit(credit: CreditAssignment) -> None:
    """Check that a credit method keeps the promises of :class:`igsearch_env.CreditAssignment`.

    It is called with groups of several rollouts and of one, ragged ones, some with failed searches,
    invalid turns, several attempts, searches without a gain, and batches without any of these.

    Args:
        credit: The method.

    Raises:
        ConformanceError: If a promise is broken.
    """
    _require(isinstance(credit, CreditAssignment), "a subclass of CreditAssignment", credit)
    for flag in FLAGS:
        value = getattr(credit, flag)
        _require(isinstance(value, bool), f"{flag} as True or False", value)
    batch, given = _rollouts(), _rollouts()
    whole = [episode for episode in batch if not episode.left_out]
    batches = {
        "a ragged batch": batch,
        "a group of one": batch[:1],
        "a group in which every search failed": [e for e in batch if e.retrieval_failed],
        "a group without outcomes": [e for e in batch if e.unscored],
        "rollouts without a search": [e for e in batch if not e.searches],
        "equal outcomes": [_with_outcome(episode, 0.0) for episode in whole],
        "searches without a gain": [_without_gains(episode) for episode in batch],
        "no episodes": [],
    }
    for progress in (0.0, 0.5, 1.0):
        method = credit.at(progress)
        _require(
            isinstance(method, CreditAssignment), f"a credit method from at({progress})", method
        )
        for name, episodes in batches.items():
            _check_needs(method, episodes, name)
            _check_arrays(method(episodes), episodes, name)
        first = method(batch)
        _require(given == batch, "episodes that are left as they were", "changed ones")
        _require_near(first, method(batch), 0.0, "the same advantages a second time")
        for array in first:
            array += 1.0  # trainers may work on the arrays in place
        again = method(batch)
        _require_near([a - 1.0 for a in first], again, 1e-9, "arrays that are new in each call")
        declared = _as_declared(method, batch)
        _require_near(
            again,
            method(declared),
            1e-9,
            "advantages from declared values only (uses_information_gain, uses_belief, "
            "uses_enabling, uses_hindsight_shift, needs_gain)",
        )


def _check_needs(credit: CreditAssignment, episodes: Sequence[Episode], name: str) -> None:
    rows = credit.needs_gain(episodes)
    sizes = [len(episode.searches) for episode in episodes]
    fit = isinstance(rows, Sequence) and [len(row) for row in rows] == sizes
    fit = fit and all(isinstance(value, bool | np.bool_) for row in rows for value in row)
    what = f"from needs_gain() a truth value for each search, rows of {sizes}, for {name}"
    _require(fit, what, rows)


def _check_arrays(arrays: Any, episodes: Sequence[Episode], name: str) -> None:
    _require(
        isinstance(arrays, list | tuple) and len(arrays) == len(episodes),
        f"one array per episode, so {len(episodes)}, for {name}",
        arrays,
    )
    for episode, array in zip(episodes, arrays, strict=True):
        floats = isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating)
        _require(floats, f"float arrays for {name}", array)
        shape = (episode.policy_tokens,)
        _require(array.shape == shape, f"shape (policy tokens,) = {shape} for {name}", array.shape)
        _require(bool(np.isfinite(array).all()), f"finite advantages for {name}", array)
        if episode.left_out:
            what = "0 where a search failed or there is no outcome"
            _require(not array.any(), f"{what}, for {name}", array)


UNSCORED: dict[str, Any] = {"outcome": None, "attempt_outcomes": (None,), "unscored": True}


def _rollouts() -> list[Episode]:
    """Finished rollouts of two questions in five groups, with all that a credit method may read."""
    search, other = "<search> capital of Peru </search>", "<search>Lima</search>"
    refined = "<refine>It is Lima.</refine>" + other
    answer, wrong = "<answer> Lima </answer>", "<answer> Rome </answer>"
    lima, tokyo = QUESTIONS
    return [
        _rollout(lima, "alone", 1.0, [search, answer], gains=[0.5]),
        _rollout(lima, "a", 1.0, [search, refined, answer], gains=[0.75, -0.25]),
        _rollout(lima, "a", 0.0, [search, "no action", wrong], gains=[None]),
        _rollout(lima, "a", 0.5, [answer]),
        _rollout(lima, "a", 0.0, [search, other, wrong], gains=[0.5], failed=1),
        _rollout(tokyo, "b", 0.0, [search, other, "no action"], gains=[1.5, 0.0]),
        _rollout(tokyo, "b", 0.0, ["東京 🙂", search, wrong], gains=[-3.0]),
        _rollout(tokyo, "c", 1.0, [search, wrong, other, answer], gains=[0.1, 2.0], attempts=2),
        _rollout(tokyo, "c", 0.0, [answer, search, wrong], gains=[0.2], attempts=2),
        _rollout(lima, "broken", 0.0, [search, wrong], failed=0),
        replace(_rollout(lima, "a", 0.0, [search, answer], gains=[0.5]), **UNSCORED),
    ]


def _rollout(
    question: Question,
    group: str,
    outcome: float,
    turns: Sequence[str],
    *,
    gains: Sequence[float | None] = (),
    failed: int | None = None,
    attempts: int = 1,
) -> Episode:
    rules = TurnRules(PROTOCOLS["refine"], max_searches=3, max_attempts=attempts)
    episode = rules.begin(question, group)
    for number, text in enumerate(turns):
        documents = (Document(f"d{number}", "Peru", text), Document("d9", "", "Lima ."))
        found = SearchResult(documents, failed=number == failed)
        episode = rules.read(episode, _completion(text)).extend(episode, rules, found)
    values = iter(gains)
    steps = [_settled(s, next(values, None)) if s.action == "search" else s for s in episode.steps]
    steps = [replace(s, hindsight_shift=0.3 - i / 4) for i, s in enumerate(steps)]
    ended = replace(steps[-1], reward=outcome)
    answered = ended.action == "answer"
    return replace(
        episode,
        steps=(*steps[:-1], ended),
        outcome=outcome,
        em=float(outcome == 1.0),
        f1=outcome,
        attempt_outcomes=(*[0.0] * ended.attempt, outcome),
        prior_log_prob=-4.0,
        terminated=answered,
        truncated=not answered,
    )


def _completion(text: str) -> Completion:
    """A turn with a token per tag, and per two characters of what is between the tags."""
    parts = re.findall(r"</?\w+>|[^<]{1,2}|<", text)
    decode = dict(enumerate(parts))
    log_probs = [-0.5] * len(parts)
    return Completion.from_tokens(
        range(len(parts)), log_probs, lambda ids: "".join(decode[i] for i in ids)
    )


def _settled(step: Step, gain: float | None) -> Step:
    if gain is None or step.retrieval_failed:
        return step
    baselines = (-3.0, -3.5)
    mean = sum(baselines) / len(baselines)
    return replace(
        step,
        information_gain=gain,
        log_prob=mean + gain,
        baseline_log_probs=baselines,
        enabling=0.5 - gain / 4,
    )


def _with_outcome(episode: Episode, outcome: float) -> Episode:
    steps = (*episode.steps[:-1], replace(episode.steps[-1], reward=outcome))
    ends = (*episode.attempt_outcomes[:-1], outcome)
    return replace(episode, steps=steps, outcome=outcome, f1=outcome, attempt_outcomes=ends)


def _without_gains(episode: Episode) -> Episode:
    return replace(episode, steps=tuple(_gainless(step) for step in episode.steps))


def _gainless(step: Step, *, belief: bool = False) -> Step:
    kept = step.log_prob if belief else None
    return replace(step, information_gain=None, log_prob=kept, baseline_log_probs=None)


def _as_declared(credit: CreditAssignment, episodes: Sequence[Episode]) -> list[Episode]:
    """The episodes with those values only that the method says it uses."""
    result = []
    for episode, row in zip(episodes, credit.needs_gain(episodes), strict=True):
        needed = iter(row)
        steps = [
            step
            if step.action != "search" or (next(needed) and credit.uses_information_gain)
            else _gainless(step, belief=credit.uses_belief)
            for step in episode.steps
        ]
        if not credit.uses_enabling:
            steps = [replace(step, enabling=None) for step in steps]
        if not credit.uses_hindsight_shift:
            steps = [replace(step, hindsight_shift=None) for step in steps]
        prior = episode.prior_log_prob if credit.uses_belief else None
        result.append(replace(episode, steps=tuple(steps), prior_log_prob=prior))
    return result


def check_outcome(outcome: Outcome, bounds: Sequence[float] = ()) -> None:
    """Check that an outcome keeps the promises of :data:`igsearch_env.outcome.OutcomeFunction`.

    It scores episodes that ended in every way: with right, wrong, strange and no answers, with and
    without searches, with failed ones, after several attempts, in text without tokens, and for
    questions of which no gold documents are known. An outcome that asks a judge asks it then.

    Args:
        outcome: The name of a component, weights of components, or a function.
        bounds: The least and the greatest outcome that is allowed; empty for any finite number.

    Raises:
        ConformanceError: If a promise is broken.
    """
    search = "<search> capital of Peru </search>"
    answers = [f"<answer> {text} </answer>" for text in ("Lima", "Rome", *STRANGE_TEXTS)]
    plain = replace(QUESTIONS[0], gold_ids=(), silver_ids=None, answer_distances=None)

    def ended() -> list[Episode]:
        episodes = [e for e in _rollouts() if not e.unscored]
        episodes += [_rollout(plain, "d", 0.0, [search, answer]) for answer in answers]
        return [replace(e, outcome=None, attempt_outcomes=()) for e in (*episodes, _wordy(plain))]

    batch, given = ended(), ended()
    try:
        scores = score_outcomes(outcome, batch, bounds)
    except ValueError as error:
        raise ConformanceError(f"expected finite outcomes in their ranges; got: {error}") from error
    _require(given == batch, "episodes that are left as they were", "changed ones")
    for score in scores:
        names = [part.name for part in score.parts]
        good = all(isinstance(name, str) and name.strip() for name in names)
        _require(good and len(set(names)) == len(names), "parts with names of their own", names)
    again = score_outcomes(outcome, batch, bounds)
    _require(scores == again, f"the same scores a second time, {scores}", again)
    alone = [score_outcomes(outcome, [episode], bounds)[0] for episode in batch]
    _require(scores == alone, f"the same scores for each episode alone, {scores}", alone)


def _wordy(question: Question) -> Episode:
    """An episode of text without tokens, such as a chat API gives."""
    rules = TurnRules(PROTOCOLS["refine"], max_searches=3)
    episode = rules.begin(question)
    return rules.read(episode, "<answer> Lima </answer>").extend(episode, rules, None)


def check_agent(agent: Agent, engine: SearchQAEngine | None = None, *, episodes: int = 4) -> None:
    """Check that an agent keeps the promises of :class:`igsearch_env.Agent`.

    It plays a few episodes to the end, side by side and alone.

    Args:
        agent: The agent.
        engine: The environment to play in; None for the embedded world under the agent's own
            ``protocol``, or the tag grammar ``refine`` if it has none. Its pool is used up.
        episodes: How many of its questions to play, at least 2.

    Raises:
        ConformanceError: If a promise is broken.
        ValueError: If there are fewer than two episodes.
    """
    if episodes < 2:
        raise ValueError(f"episodes must be at least 2, got {episodes}")
    if engine is None:
        protocol = getattr(agent, "protocol", PROTOCOLS["refine"])
        _require(isinstance(protocol, TagProtocol), "protocol as a TagProtocol", protocol)
        engine = make_engine(scorer=None, num_counterfactuals=0, protocol=protocol, max_searches=2)
    strange = [
        replace(QUESTIONS[1], id=f"strange-{i}", text=t) for i, t in enumerate(STRANGE_TEXTS)
    ]
    running = [engine.rules.begin(q) for q in (*engine.questions[:episodes], *strange)]
    for episode in running[:2]:
        _act(agent, [episode])
    # Episodes that ended are left out, so the agent meets batches of every size and unequal length.
    while running:
        turns = _act(agent, running)
        running = [new for new, _ in engine.step(running, turns) if not new.finished]


def _act(agent: Agent, episodes: list[Episode]) -> list[Completion]:
    given = list(episodes)
    turns = agent.act(episodes)
    _require(given == episodes, "the list of episodes left as it was", "a changed one")
    _require(
        isinstance(turns, list | tuple) and len(turns) == len(episodes),
        f"one completion per episode, so {len(episodes)}",
        turns,
    )
    for turn in turns:
        _check_completion(turn)
    return list(turns)


def _check_completion(turn: Any) -> None:
    _require(isinstance(turn, Completion), "turns of the class igsearch_env.Completion", repr(turn))
    if turn.token_ids is not None:
        whole = all(isinstance(i, int | np.integer) and i >= 0 for i in turn.token_ids)
        _require(whole, "token ids as whole numbers of at least 0", turn.token_ids)
    if turn.log_probs is not None:
        good = all(math.isfinite(value) and value <= 1e-6 for value in turn.log_probs)
        _require(good, "finite log-probs of at most 0 nats for sampled tokens", turn.log_probs)


def _check_copy(part: object) -> None:
    """Gymnasium copies the arguments of an environment whenever its spec is read."""
    _require(
        copy.deepcopy(part) is part,
        f"{type(part).__name__}.__deepcopy__ to return the object itself, because gymnasium copies "
        "the arguments of an environment, and an index or a model must not be there twice; write "
        "'def __deepcopy__(self, memo): return self'",
        "a copy",
    )


def _require_near(
    expected: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]], tolerance: float, what: str
) -> None:
    for one, other in zip(expected, found, strict=True):
        # -inf equals -inf here, and is far from every finite value.
        near = one.shape == other.shape and np.allclose(one, other, rtol=0.0, atol=tolerance)
        _require(near, f"{what}, {one}", other)


def _require_equal(expected: Any, found: Any, what: str) -> None:
    _require(list(found) == expected, what, f"{found}")


def _require(holds: bool, expected: str, found: object) -> None:
    if not holds:
        text = found if isinstance(found, str) else repr(found)
        raise ConformanceError(f"expected {expected}; got {text[:300]}")
