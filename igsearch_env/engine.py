"""What both environments do in a step: one search and one scoring call for all their rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from igsearch_env.answers import exact_match, f1_score
from igsearch_env.budgets import Room
from igsearch_env.episode import NO_REFINEMENT, Document, Episode, Evidence, Question, changed
from igsearch_env.gain.information_gain import InformationGain
from igsearch_env.gain.pool import EvidencePool
from igsearch_env.gain.scorer import AnswerScorer
from igsearch_env.gain.shaping import Shaping
from igsearch_env.outcome import Outcome, Score, score_outcomes
from igsearch_env.protocol.tags import CALLS, Search, ToolUse
from igsearch_env.retrieval.base import RetrievalError, Retriever
from igsearch_env.text import clean_text
from igsearch_env.tools import TOOLS, Tool, ToolError, run_tools
from igsearch_env.turn import SearchResult, Turn, TurnRules

if TYPE_CHECKING:
    from igsearch_env.endpoint.judge import Judge

FALLBACK_ROUNDS = 5
OF_A_SEARCH = ("search_step", "query", "query_span", "documents", "retrieval_failed")
NO_DOCUMENT = "no search has found a document with that id"
REFUSED = "the search engine does not take this query; write a shorter one"

Gains = list[tuple[int, float]]
"""Number and gain of searches."""

_of_a_search = attrgetter(*OF_A_SEARCH)


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
        judge: The judge that the outcome asks, for its counts; None if there is none.
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
    judge: Judge | None = None
    shared_counterfactuals: bool = False

    def __post_init__(self) -> None:
        if unknown := [name for name in self.rules.protocol.tools if name not in TOOLS]:
            raise ValueError(
                f"the protocol {self.rules.protocol.name!r} has the tools {', '.join(unknown)}, "
                f"and known are {', '.join(TOOLS)}; register yours with "
                "igsearch_env.tools.register_tool before (programs: --import FILE)"
            )
        self.tools = {name: TOOLS[name] for name in self.rules.protocol.tools}

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
        results = self._call(episodes, turns)
        for (row, place), result in results.items():
            if result.refused:
                turns[row] = turns[row].refuse(place, result.refused)
        after = [
            turn.extend(episode, rules, *(results.get((row, n)) for n in range(len(turn.actions))))
            for row, (turn, episode) in enumerate(zip(turns, episodes, strict=True))
        ]
        for before, episode in zip(episodes, after, strict=True):
            self._remember(episode, len(before.steps))
        if self.scorer is not None:
            after = self.information_gain.settle(after, self.scorer)
        ended = [i for i, e in enumerate(after) if e.finished or e.steps[-1].reflection is not None]
        scores = score_outcomes(self.outcome, [after[i] for i in ended], self.outcome_range)
        scored = dict(zip(ended, scores, strict=True))
        played = []
        for row, (old, new) in enumerate(zip(episodes, after, strict=True)):
            settled = _newly_settled(old, new)
            new = self._score(old, new, scored.get(row), settled)
            played.append((new, self._info(old, new, settled)))
        return played

    def _call(
        self, episodes: Sequence[Episode], turns: Sequence[Turn]
    ) -> dict[tuple[int, int], SearchResult]:
        """Carry out the calls of the step, all searches at once, and draw counterfactuals.

        Returns:
            The result of each call, by its row and its place in the turn.
        """
        calls = {
            (row, place): action
            for row, turn in enumerate(turns)
            for place, action in enumerate(turn.actions)
            if isinstance(action, CALLS)
        }
        searches = {p: one.query for p, one in calls.items() if isinstance(one, Search)}
        found = dict(zip(searches, self._retrieve([*searches.values()]), strict=True))
        found |= self._use_tools(episodes, {p: c for p, c in calls.items() if p not in found})
        rooms: dict[tuple[int, int], Room | None] = dict.fromkeys(calls)
        results = found
        if self.rules.budgets.cuts:
            made: dict[tuple[int, bool], Room | None] = {}  # the calls of a turn share it
            for (row, place), action in calls.items():
                kind = row, isinstance(action, Search)
                if kind not in made:
                    made[kind] = self.rules.room(episodes[row], turns[row], snippets=kind[1])
                rooms[row, place] = made[kind]
            results = {place: self._fit(found[place], rooms[place]) for place in calls}
        compared = {place: self._found_so_far(results, place) for place in calls}
        # What found nothing new has no gain, and is compared with nothing.
        due = {place: documents for place, (documents, anew) in compared.items() if anew}
        for (row, place), drawn in zip(due, self._draw(episodes, due), strict=True):
            if (row, place) not in searches:
                question, documents = episodes[row].question, due[row, place]
                drawn = [_opened(evidence) for evidence in drawn]
                drawn = [e for e in drawn if self.pool.allows(e, question, documents)]
            results[row, place] = self._with_counterfactuals(
                results[row, place], drawn, rooms[row, place]
            )
        opened = compared.keys() - searches.keys()
        self._fill_up(episodes, results, due, rooms, opened)
        return results

    def _use_tools(
        self, episodes: Sequence[Episode], calls: Mapping[tuple[int, int], Search | ToolUse]
    ) -> dict[tuple[int, int], SearchResult]:
        """Call the tools, all functions side by side; ``get_document`` looks into the episode."""
        results: dict[tuple[int, int], SearchResult] = {}
        jobs: dict[tuple[int, int], tuple[Tool, Mapping[str, Any]]] = {}
        for (row, place), call in calls.items():
            assert isinstance(call, ToolUse)  # searches have been made
            tool = self.tools[call.tool]
            try:
                arguments = tool.arguments(call.arguments)
            except ToolError as error:
                results[row, place] = SearchResult(text=clean_text(f"error: {error}"))
                continue
            if tool.function is None:
                results[row, place] = _open(episodes[row], arguments["id"])
            else:
                jobs[row, place] = tool, arguments
        done = run_tools([*jobs.values()])
        for where, one in zip(jobs, done, strict=True):
            results[where] = SearchResult(text=one.text, failed=one.failed)
        return results

    def _found_so_far(
        self, results: Mapping[tuple[int, int], SearchResult], place: tuple[int, int]
    ) -> tuple[tuple[Document, ...], bool]:
        """The documents of a call and of earlier ones of its turn, and whether it has new ones."""
        row, number = place
        documents = results[place].documents
        if number == 0:
            return documents, bool(documents)
        earlier = [
            d for n in range(number) if (row, n) in results for d in results[row, n].documents
        ]
        known = {document.id for document in earlier}
        anew = any(document.id not in known for document in documents)
        return (*documents, *earlier), anew

    def _fit(self, result: SearchResult, room: Room | None) -> SearchResult:
        """The result as far as there is room for it."""
        if room is None:
            return result
        if result.text:
            (shown,), cut = room.fit([Document("", "", result.text)], self.rules.counter)
            return result._replace(text=shown.text, cut=cut)
        documents, cut = room.fit(result.documents, self.rules.counter)
        return result._replace(documents=documents, cut=cut)

    def _with_counterfactuals(
        self, result: SearchResult, drawn: Sequence[Evidence], room: Room | None
    ) -> SearchResult:
        """The result with further counterfactual evidence, which is cut like its own documents."""
        if room is not None:
            cut = [room.fit(one.documents, self.rules.counter)[0] for one in drawn]
            drawn = [
                one if shown == one.documents else replace(one, documents=shown)
                for one, shown in zip(drawn, cut, strict=True)
            ]
        return result._replace(counterfactuals=(*result.counterfactuals, *drawn))

    def _draw(
        self, episodes: Sequence[Episode], due: Mapping[tuple[int, int], Sequence[Document]]
    ) -> list[list[Evidence]]:
        """Evidence for each of these calls to be compared with, given what it found."""
        count = self.num_counterfactuals
        if not self.shared_counterfactuals:
            found = [(episodes[row].question, documents) for (row, _), documents in due.items()]
            return self.pool.draw_each(found, count)
        drawn = []
        for (row, call), documents in due.items():
            episode = episodes[row]
            shared = self.pool.shared_rng(episode.group_id, len(episode.searches) + call)
            drawn.append(self.pool.draw(episode.question, documents, count, shared))
        return drawn

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
            SearchResult(refused=REFUSED if place in refused else "", failed=place not in refused)
            if documents is None
            else SearchResult(tuple(documents))
            for place, documents in enumerate(found)
        ]

    def _fill_up(
        self,
        episodes: Sequence[Episode],
        results: dict[tuple[int, int], SearchResult],
        due: Mapping[tuple[int, int], Sequence[Document]],
        rooms: Mapping[tuple[int, int], Room | None],
        opened: Collection[tuple[int, int]] = (),
    ) -> None:
        """Where the pool was short, add documents found for the text of another question."""
        for _ in range(FALLBACK_ROUNDS):
            # A call is in the list once for each counterfactual that it lacks, so that one search
            # serves the whole step, however much each of its calls lacks.
            missing = [
                place
                for place in due
                for _ in range(self.num_counterfactuals - len(results[place].counterfactuals))
            ]
            if not missing:
                return
            picks = self.pool.rng.integers(len(self.questions), size=len(missing))
            asked = [self.questions[int(pick)] for pick in picks]
            found = self._retrieve([question.text for question in asked])
            # A retriever that has just failed on all of them is not asked again.
            if all(other.failed or other.refused for other in found):
                break
            for place, question, other in zip(missing, asked, found, strict=True):
                if not other.documents:
                    continue
                evidence = Evidence(other.documents, NO_REFINEMENT, question.id, question.text)
                evidence = _opened(evidence) if place in opened else evidence
                more = self._with_counterfactuals(results[place], [evidence], rooms[place])
                # The same question may have been picked twice for a call. What is not allowed (the
                # answer is in it, or a document that was really found) is tried again next round.
                if more.counterfactuals[-1] in results[place].counterfactuals:
                    continue
                if self.pool.allows(evidence, episodes[place[0]].question, due[place]):
                    self.pool.counts["fallback"] += 1
                    results[place] = more
        self.pool.counts["short"] += sum(
            self.num_counterfactuals - len(results[place].counterfactuals) for place in due
        )

    def _remember(self, episode: Episode, first: int) -> None:
        """Put the evidence that the turn from step ``first`` on completed into the pool."""
        gain = self.information_gain
        complete = list(range(first, len(episode.steps)))
        if gain.counterfactual == "documents+refinement":
            ended = complete if episode.truncated else []
            complete = [*(episode.turn_of(first - 1) if first else ()), *ended]
        for index in complete:
            if episode.steps[index].action == "search":
                self.pool.add(gain.evidence(episode, index))

    def _score(
        self, before: Episode, after: Episode, score: Score | None, settled: Gains
    ) -> Episode:
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
        for _, gain in settled:
            reward += self.information_gain_weight * self.shaping(gain)
        if reward != after.steps[-1].reward:
            last = changed(after.steps[-1], reward=reward)
            fields["steps"] = (*after.steps[:-1], last)
        return changed(after, **fields) if fields else after

    def _info(self, before: Episode, after: Episode, settled: Gains) -> dict[str, Any]:
        """The info of this call; a key without a value is left out."""
        step = after.steps[-1]
        first = len(before.steps)
        info: dict[str, Any] = {"action": step.action}
        searches = [one for one in after.steps[first:] if one.action == "search"]
        info |= self._of_searches(
            dict(zip(OF_A_SEARCH, _of_a_search(one), strict=True)) for one in searches
        )
        if self.information_gain.counterfactual == "documents+refinement":
            # A gain that truncation settles stands in information_gains alone.
            known = len(before.searches)
            settled = [(t, gain) for t, gain in settled if t < known]
        all_searches = after.searches if settled else ()
        info |= self._of_searches(
            {
                "information_gain": gain,
                "information_gain_step": t,
                "log_prob": all_searches[t].log_prob,
                "baseline_log_probs": all_searches[t].baseline_log_probs,
            }
            for t, gain in settled
        )
        cut = dict.fromkeys(budget for one in after.steps[first:] for budget in one.cut)
        if cut:
            info["cut"] = tuple(cut)
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
        if after.ended_by in ("tokens", "seconds"):
            info["ended_by"] = after.ended_by
        if step.action == "answer":
            info["answer"] = after.answer
        return info

    def _of_searches(self, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """Values of the searches of a turn by key: of one search, or tuples of all of them."""
        columns = list(rows)
        if self.rules.protocol.max_calls == 1:
            return columns[0] if columns else {}
        return {name: tuple(row[name] for row in columns) for name in (columns or [{}])[0]}


def _open(episode: Episode, name: str) -> SearchResult:
    """The whole of a document that a search of the episode has found."""
    known = [d for step in episode.searches for d in step.documents if d.id == name.strip()]
    if not known:
        return SearchResult(refused=NO_DOCUMENT)
    return SearchResult((_whole(known[-1]),))


def _opened(evidence: Evidence) -> Evidence:
    """Evidence of which the policy asked to see the first document whole."""
    return replace(evidence, documents=tuple(map(_whole, evidence.documents[:1])))


def _whole(document: Document) -> Document:
    if document.whole is None:
        return document
    return replace(document, text=document.whole, whole=None)


def _newly_settled(before: Episode, after: Episode) -> Gains:
    """Number and gain of the searches that were settled between two states of an episode."""
    known = len(before.steps)
    return [
        (step.search_step, step.information_gain)
        for index, step in enumerate(after.steps)
        if step.search_step is not None
        and step.information_gain is not None
        and (index >= known or before.steps[index].information_gain is None)
    ]
