"""The pure rules of one turn: reading what the policy wrote, and adding it to the episode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from igsearch_env.completion import Completion
from igsearch_env.episode import (
    NO_REFINEMENT,
    Document,
    Episode,
    Evidence,
    Question,
    Segment,
    Step,
    changed,
)
from igsearch_env.protocol.tags import Answer, Invalid, Search, TagProtocol
from igsearch_env.text import clean_text


@dataclass(frozen=True)
class TurnRules:
    """How long an episode may be, and how its turns are read.

    Args:
        protocol: The tag grammar.
        max_searches: Searches per attempt; a further one is an invalid turn.
        max_attempts: Attempts at the question. After each but the last the protocol's reflection
            asks for another one, whether the answer was right or not.

    Raises:
        ValueError: If ``max_searches`` or ``max_attempts`` is less than 1.
    """

    protocol: TagProtocol
    max_searches: int = 5
    max_attempts: int = 1

    def __post_init__(self) -> None:
        for name in ("max_searches", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def max_turns(self) -> int:
        """Turns after which an attempt without an answer has ended: 2 * max_searches + 1."""
        return 2 * self.max_searches + 1

    def begin(self, question: Question, group_id: str = "") -> Episode:
        """A new episode; rollouts of one question share its id as the group by default."""
        prompt = self.protocol.render_prompt(question.text)
        return Episode(question, prompt, group_id=group_id or question.id)

    def read(self, episode: Episode, action: str) -> Turn:
        """Read one turn: its first complete action, what is kept of it, and its refinement.

        Raises:
            TypeError: If the action is not a string.
            RuntimeError: If the episode has ended.
        """
        if not isinstance(action, str):
            raise TypeError(
                f"an action must be a str (the text of one turn), got {type(action).__name__}"
            )
        if episode.finished:
            raise RuntimeError(
                f"the episode of question {episode.question.id!r} has ended; call reset() first"
            )
        completion = action if isinstance(action, Completion) else Completion(action)
        if completion.token_ids is None:  # text that was never sampled may hold anything
            completion = Completion(clean_text(completion), stop_reason=completion.stop_reason)
        parsed = self.protocol.parse(completion)
        if parsed.end is not None:
            completion = completion.head(parsed.end)
        searches = [step for step in episode.searches if step.attempt == episode.attempt]
        if isinstance(parsed, Search) and len(searches) >= self.max_searches:
            parsed = Invalid("no searches left")
        return Turn(parsed, completion, self._refinement(completion))

    def _refinement(self, completion: Completion) -> Segment:
        """The leading refinement; as text alone where its last token reaches beyond its tag."""
        end = self.protocol.refinement_end(completion)
        if end == 0:
            return NO_REFINEMENT
        whole = completion.head(end)
        return _segment(whole) if len(whole) == end else Segment(completion[:end], "policy")


@dataclass(frozen=True)
class SearchResult:
    """What a search brought.

    Args:
        documents: What was found, best first; empty if nothing was.
        failed: Whether the retriever gave up on it.
        refused: Whether the retriever does not take this query, and would not take it again.
        counterfactuals: Evidence of other questions that it is compared with.
    """

    documents: tuple[Document, ...] = ()
    failed: bool = False
    refused: bool = False
    counterfactuals: tuple[Evidence, ...] = ()


@dataclass(frozen=True)
class Turn:
    """One turn as read: the action, the text that is kept, and its leading refinement."""

    parsed: Search | Answer | Invalid
    completion: Completion
    refinement: Segment

    def without_action(self, reason: str) -> Turn:
        """The same turn, its action taken for invalid."""
        end = None if isinstance(self.parsed, Invalid) else self.parsed.end
        return replace(self, parsed=Invalid(reason, end))

    def extend(self, episode: Episode, rules: TurnRules, found: SearchResult | None) -> Episode:
        """The episode with this turn and the environment's reaction added.

        Args:
            episode: The episode before the turn.
            rules: The rules in force.
            found: What the search brought; None if the turn is no search.
        """
        parsed, protocol = self.parsed, rules.protocol
        attempt = episode.attempt
        turns = 1 + sum(step.attempt == attempt for step in episode.steps)
        answered = isinstance(parsed, Answer)
        ended = answered or turns >= rules.max_turns
        again = ended and attempt + 1 < rules.max_attempts
        start, said = episode.policy_tokens, str(self.completion)
        if isinstance(parsed, Answer):
            reaction: dict[str, Any] = {"action": "answer", "observation": None}
        elif isinstance(parsed, Invalid):
            correction = protocol.render_correction(parsed.reason, said)
            reaction = {"action": "invalid", "observation": correction}
        else:
            if found is None:
                raise ValueError("a search turn needs the result of its search")
            reaction = self._search(parsed, episode, protocol, found)
        step = Step(
            turn=_segment(self.completion),
            policy_tokens=slice(start, start + len(self.completion.token_ids or ())),
            refinement=self.refinement,
            log_probs=self.completion.log_probs,
            stop_reason=self.completion.stop_reason,
            attempt=attempt,
            # After an observation the next turn has been opened: it is closed without a word.
            reflection=protocol.render_reflection(
                episode.question.text, "" if reaction["observation"] else said
            )
            if again
            else None,
            **{"query_tokens": slice(start, start)} | reaction,
        )
        answer = parsed.text if isinstance(parsed, Answer) else None
        return changed(
            episode,
            steps=(*episode.steps, step),
            answer=answer if ended else episode.answer,
            terminated=answered and not again,
            truncated=ended and not answered and not again,
        )

    def _search(
        self, parsed: Search, episode: Episode, protocol: TagProtocol, found: SearchResult
    ) -> dict[str, Any]:
        """The fields of a step that searches."""
        query = self.completion.tokens_within(*parsed.span)
        start = episode.policy_tokens
        if found.failed:
            observation = protocol.render_failure(self.completion)
        else:
            observation = protocol.render_documents(found.documents, self.completion)
        return {
            "action": "search",
            "observation": observation,
            "query_tokens": slice(start + query.start, start + query.stop),
            "search_step": len(episode.searches),
            "query": parsed.query,
            "query_span": parsed.span,
            "documents": found.documents,
            "retrieval_failed": found.failed,
            "counterfactuals": found.counterfactuals,
        }


def _segment(completion: Completion) -> Segment:
    return Segment(str(completion), "policy", completion.token_ids)
