"""What both environments do in a step: one search and one scoring call for all their rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from igsearch_env.answers import exact_match, f1_score
from igsearch_env.episode import NO_REFINEMENT, Document, Episode, Evidence, Question, changed
from igsearch_env.gain.information_gain import InformationGain
from igsearch_env.gain.pool import EvidencePool
from igsearch_env.gain.scorer import AnswerScorer
from igsearch_env.gain.shaping import Shaping
from igsearch_env.outcome import Outcome, Score, score_outcomes
from igsearch_env.protocol.tags import Search
from igsearch_env.retrieval.base import RetrievalError, Retriever
from igsearch_env.text import clean_text
from igsearch_env.turn import SearchResult, Turn, TurnRules

FALLBACK_ROUNDS = 5
REFUSED = "the search engine does not take this query; write a shorter one"


@dataclass
class SearchQAEngine:
    """Plays turns of several episodes side by side.

    Args:
        questions: Where the questions of fallback counterfactuals come from.
        retriever: Searches.
        scorer: Scores answers, or None to leave information gain unsettled.
        rules: The rules of a turn.
        information_gain: How gains are computed.
        pool: Counterfactual evidence.
        top_k: Documents per search.
        num_counterfactuals: N, counterfactual contexts per search.
        information_gain_weight: Weight of the shaped gain in the reward.
        shaping: How a gain is shaped before it is paid.
        outcome: How an episode is scored (:mod:`igsearch_env.outcome`).
        outcome_range: The least and the greatest outcome that is allowed; empty for any finite
            number.
        shared_counterfactuals: Whether the rollouts of a group that make their search t in the same
            call draw alike: they share all evidence that each of them may be compared with, so that
            the choice of it cancels out of the comparison within the group. Documents found
            where the pool is short are not shared.
    """

    questions: Sequence[Question]
    retriever: Retriever
    scorer: AnswerScorer | None
    rules: TurnRules
    information_gain: InformationGain
    pool: EvidencePool
    top_k: int = 3
    num_counterfactuals: int = 3
    information_gain_weight: float = 0.0
    shaping: Shaping = field(default_factory=Shaping)
    outcome: Outcome = "em"
    outcome_range: Sequence[float] = ()
    shared_counterfactuals: bool = False

    def step(
        self, episodes: Sequence[Episode], actions: Sequence[str]
    ) -> list[tuple[Episode, dict[str, Any]]]:
        """Play one turn of each episode.

        Args:
            episodes: Unfinished episodes.
            actions: One turn of text for each.

        Returns:
            Each episode with its turn added, and the info of the call.
        """
        rules = self.rules
        turns = [rules.read(e, a) for e, a in zip(episodes, actions, strict=True)]
        results = self._search(episodes, turns)
        for row, result in enumerate(results):
            if result is not None and result.refused:
                turns[row] = turns[row].without_action(REFUSED)
                results[row] = None
        after = [
            turn.extend(episode, rules, result)
            for turn, episode, result in zip(turns, episodes, results, strict=True)
        ]
        for episode in after:
            self._remember(episode)
        if self.scorer is not None:
            after = self.information_gain.settle(after, self.scorer)
        ended = [i for i, e in enumerate(after) if e.finished or e.steps[-1].reflection is not None]
        scores = score_outcomes(self.outcome, [after[i] for i in ended], self.outcome_range)
        scored = dict(zip(ended, scores, strict=True))
        after = [
            self._score(old, new, scored.get(row))
            for row, (old, new) in enumerate(zip(episodes, after, strict=True))
        ]
        return [(new, self._info(old, new)) for old, new in zip(episodes, after, strict=True)]

    def _search(
        self, episodes: Sequence[Episode], turns: Sequence[Turn]
    ) -> list[SearchResult | None]:
        """Run every search of the step in one call, and draw what it is compared with."""
        results: list[SearchResult | None] = [None] * len(turns)
        rows = [i for i, turn in enumerate(turns) if isinstance(turn.parsed, Search)]
        queries = [t.parsed.query for t in turns if isinstance(t.parsed, Search)]
        for row, result in zip(rows, self._retrieve(queries), strict=True):
            if result.documents:  # what found nothing has no gain, and is compared with nothing
                drawn = self._draw(episodes[row], result.documents)
                result = replace(result, counterfactuals=tuple(drawn))
            results[row] = result
        self._fill_up(episodes, results)
        return results

    def _draw(self, episode: Episode, documents: Sequence[Document]) -> list[Evidence]:
        """Evidence for the next search of an episode to be compared with."""
        shared = None
        if self.shared_counterfactuals:
            shared = self.pool.shared_rng(episode.group_id, len(episode.searches))
        return self.pool.draw(episode.question, documents, self.num_counterfactuals, shared)

    def _retrieve(self, queries: list[str]) -> list[SearchResult]:
        """Search, once for all queries."""
        if not queries:
            return []
        found: Sequence[Sequence[Document] | None]
        refused: Collection[int] = ()
        try:
            found = self.retriever.search([clean_text(query) for query in queries], self.top_k)
        except RetrievalError as error:
            found = error.found or [None] * len(queries)
            refused = error.refused
        if len(found) != len(queries):
            raise ValueError(
                f"the retriever returned {len(found)} lists of documents for {len(queries)} "
                "queries; it must return one list per query"
            )
        return [
            SearchResult(refused=place in refused, failed=place not in refused)
            if documents is None
            else SearchResult(tuple(documents))
            for place, documents in enumerate(found)
        ]

    def _fill_up(self, episodes: Sequence[Episode], results: list[SearchResult | None]) -> None:
        """Where the pool was short, add documents found for the text of another question."""
        for _ in range(FALLBACK_ROUNDS):
            # A row is in the list once for each counterfactual that it lacks, so that one search
            # serves the whole step, however much each of its rows lacks.
            missing = [
                row
                for row, result in enumerate(results)
                if result is not None and result.documents
                for _ in range(self.num_counterfactuals - len(result.counterfactuals))
            ]
            if not missing:
                return
            picks = self.pool.rng.integers(len(self.questions), size=len(missing))
            asked = [self.questions[int(pick)] for pick in picks]
            found = self._retrieve([question.text for question in asked])
            # A retriever that has just failed on all of them is not asked again.
            if all(other.failed or other.refused for other in found):
                break
            for row, question, other in zip(missing, asked, found, strict=True):
                result = results[row]
                if result is None or not other.documents:
                    continue
                evidence = Evidence(other.documents, NO_REFINEMENT, question.id, question.text)
                # The same question may have been picked twice for a row. What is not allowed (the
                # answer is in it, or a document that was really found) is tried again next round.
                if evidence in result.counterfactuals:
                    continue
                if self.pool.allows(evidence, episodes[row].question, result.documents):
                    self.pool.counts["fallback"] += 1
                    counterfactuals = (*result.counterfactuals, evidence)
                    results[row] = replace(result, counterfactuals=counterfactuals)
        lacking = (r for r in results if r is not None and r.documents)
        short = (self.num_counterfactuals - len(r.counterfactuals) for r in lacking)
        self.pool.counts["short"] += sum(short)

    def _remember(self, episode: Episode) -> None:
        """Put the evidence that this turn completed into the pool."""
        gain = self.information_gain
        last = len(episode.steps) - 1
        complete = [last] if gain.counterfactual == "documents" or episode.truncated else []
        if gain.counterfactual == "documents+refinement" and last > 0:
            complete.insert(0, last - 1)
        for index in complete:
            if episode.steps[index].action == "search":
                self.pool.add(gain.evidence(episode, index))

    def _score(self, before: Episode, after: Episode, score: Score | None) -> Episode:
        """Add the score of an attempt that has ended, and the reward of this call."""
        reward = 0.0
        fields: dict[str, Any] = {}
        if score is not None:
            golds = after.question.golden_answers
            em, f1 = exact_match(after.answer, golds), f1_score(after.answer, golds)
            fields["attempt_outcomes"] = (*after.attempt_outcomes, score.total)
            fields["outcome_parts"] = score.parts
            fields["unscored"] = after.unscored or score.total is None
            if after.finished:
                reward = score.total or 0.0
                fields |= {"outcome": score.total, "em": em, "f1": f1}
        for _, gain in _newly_settled(before, after):
            reward += self.information_gain_weight * self.shaping(gain)
        if reward != after.steps[-1].reward:
            last = changed(after.steps[-1], reward=reward)
            fields["steps"] = (*after.steps[:-1], last)
        return changed(after, **fields) if fields else after

    def _info(self, before: Episode, after: Episode) -> dict[str, Any]:
        """The info of this call; a key without a value is left out."""
        step = after.steps[-1]
        info: dict[str, Any] = {"action": step.action}
        if step.action == "search":
            info |= {
                "search_step": step.search_step,
                "query": step.query,
                "query_span": step.query_span,
                "documents": step.documents,
                "retrieval_failed": step.retrieval_failed,
            }
        settled = _newly_settled(before, after)
        if self.information_gain.counterfactual == "documents+refinement":
            # A gain that truncation settles stands in information_gains alone.
            settled = [(t, gain) for t, gain in settled if t != step.search_step]
        for t, gain in settled:
            search = after.searches[t]
            info |= {
                "information_gain": gain,
                "information_gain_step": t,
                "log_prob": search.log_prob,
                "baseline_log_probs": search.baseline_log_probs,
            }
        if len(after.attempt_outcomes) > len(before.attempt_outcomes):
            scored = after.attempt_outcomes[-1]
            if self.rules.max_attempts > 1:
                info["attempt"] = step.attempt
                if scored is not None:
                    info["attempt_outcome"] = scored
            if after.outcome_parts:
                info["outcome_parts"] = after.outcome_parts
            if scored is None:
                info["unscored"] = True
        if after.finished:
            info |= {"em": after.em, "f1": after.f1, "information_gains": after.information_gains}
        if step.action == "answer":
            info["answer"] = after.answer
        return info


def _newly_settled(before: Episode, after: Episode) -> list[tuple[int, float]]:
    """Number and gain of the searches that were settled between two states of an episode."""
    known = len(before.steps)
    return [
        (step.search_step, step.information_gain)
        for index, step in enumerate(after.steps)
        if step.search_step is not None
        and step.information_gain is not None
        and (index >= known or before.steps[index].information_gain is None)
    ]
