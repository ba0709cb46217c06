"""The pure rules of one turn: reading what the policy wrote, and adding it to the episode."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, NamedTuple

from igsearch_env.budgets import Budgets, Room, TokenCounter, WordCounter, room_for
from igsearch_env.completion import Completion
from igsearch_env.episode import (
    NO_REFINEMENT,
    Document,
    EndedBy,
    Episode,
    Evidence,
    Question,
    Segment,
    Step,
    changed,
)
from igsearch_env.protocol.tags import (
    CALLS,
    Action,
    Answer,
    Invalid,
    Place,
    Search,
    TagProtocol,
    ToolUse,
)
from igsearch_env.text import clean_text


@dataclass(frozen=True)
class TurnRules:
    """How long an episode may be, and how its turns are read.

    Args:
        protocol: The tag grammar.
        max_searches: Searches per attempt; a further one is an invalid turn.
        max_attempts: Attempts at the question. After each but the last the protocol's reflection
            asks for another one, whether the answer was right or not.
        budgets: Further limits.
        counter: Counts the tokens that budgets limit.
        keep_documents: For how many turns documents stay in the context; None for all of them.
        drop_thoughts: Whether thoughts leave the context when their turn is over.
        clock: Gives the time in seconds, for a budget of seconds.

    Raises:
        ValueError: If ``max_searches`` or ``max_attempts`` is less than 1.
    """

    protocol: TagProtocol
    max_searches: int = 5
    max_attempts: int = 1
    budgets: Budgets = field(default_factory=Budgets)
    counter: TokenCounter = field(default_factory=WordCounter, compare=False)
    clock: Callable[[], float] = field(default=time.monotonic, compare=False)
    keep_documents: int | None = None
    drop_thoughts: bool = False

    def __post_init__(self) -> None:
        for name in ("max_searches", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def max_turns(self) -> int:
        """Turns after which an attempt without an answer has ended.

        That is 2 * max_searches + 1, unless there is a budget.
        """
        return self.budgets.turns or 2 * self.max_searches + 1

    def begin(self, question: Question, group_id: str = "") -> Episode:
        """A new episode; rollouts of one question share its id as the group by default."""
        prompt = self.protocol.render_prompt(question.text)
        began = None if self.budgets.seconds is None else self.clock()
        return Episode(
            question,
            prompt,
            group_id=group_id or question.id,
            tokens=self.count(prompt),
            began=began,
            keep_documents=self.keep_documents,
        )

    def read(self, episode: Episode, action: str) -> Turn:
        """Read one turn: its actions, what is kept of it, and its refinement.

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
        if not isinstance(action, Completion):
            completion = Completion(clean_text(action))
        elif action.token_ids is None:  # text that was never sampled may hold anything
            completion = Completion(clean_text(action), stop_reason=action.stop_reason)
        else:
            completion = action
        parsed = self.protocol.parse_turn(completion)
        end = self.protocol.turn_end(completion, parsed[-1])
        if end is not None:
            completion = completion.head(end)
        spent = self._spent(episode)
        left = self.max_searches
        for step in episode.searches:
            left -= step.attempt == episode.attempt and not step.tool
        actions: list[Action] = []
        for one in parsed:
            if isinstance(one, CALLS) and spent:
                one = Invalid(f"no {spent} left", one.end)
            elif isinstance(one, Search) and left < 1:
                one = Invalid("no searches left", one.end)
            left -= isinstance(one, Search)
            actions.append(one)
        if not spent and self.left(episode, completion) < 1:  # nothing could be shown of a result
            actions = [_without(one, "no tokens left") for one in actions]
        return Turn(tuple(actions), completion, self._refinement(completion), spent)

    def left(self, episode: Episode, completion: Completion) -> float:
        """Tokens that are left of the episode's budget after a turn with this text."""
        if self.budgets.episode_tokens is None:
            return inf
        return self.budgets.episode_tokens - episode.tokens - self.count(completion)

    def room(self, episode: Episode, turn: Turn, *, snippets: bool) -> Room | None:
        """What the result of one call of a turn may hold; None if nothing limits it.

        Args:
            episode: The episode before the turn.
            turn: The turn.
            snippets: Whether the call is a search, whose documents may be shown in part.
        """
        if not self.budgets.cuts:
            return None
        calls = sum(isinstance(one, CALLS) for one in turn.actions)
        left = self.left(episode, turn.completion)
        return room_for(self.budgets, left, calls, snippets=snippets)

    def count(self, said: Segment | Completion) -> int:
        """Tokens of what was said; 0 where no budget limits those of an episode."""
        if self.budgets.episode_tokens is None:
            return 0
        if said.token_ids is not None:
            return len(said.token_ids)
        text = said.text if isinstance(said, Segment) else str(said)
        return len(self.counter.token_ends(text))

    def _spent(self, episode: Episode) -> EndedBy | None:
        """The budget that had run out when the policy wrote its next turn, if any."""
        tokens, seconds = self.budgets.episode_tokens, self.budgets.seconds
        if tokens is not None and episode.tokens >= tokens:
            return "tokens"
        if seconds is not None and episode.began is not None:
            return "seconds" if self.clock() - episode.began >= seconds else None
        return None

    def _refinement(self, completion: Completion) -> Segment:
        """The leading refinement; as text alone where its last token reaches beyond its tag."""
        end = self.protocol.refinement_end(completion)
        if end == 0:
            return NO_REFINEMENT
        whole = completion.head(end)
        return _segment(whole) if len(whole) == end else Segment(completion[:end], "policy")


# Fields of a step that a turn may leave as they are. A step has thirty of them, and setting each
# anew took a third of the time of a turn.
_BLANK = Step("invalid", NO_REFINEMENT, None, slice(0, 0), slice(0, 0))


class SearchResult(NamedTuple):
    """What a search, or a call of another tool, brought.

    Args:
        documents: What was found, best first; empty if nothing was.
        text: What a tool returned that finds no documents.
        failed: Whether the retriever or the tool gave up on it.
        refused: Why it cannot be carried out, now or later; empty if it can.
        cut: The budgets that it was cut for.
        counterfactuals: Evidence of other questions that it is compared with.
    """

    documents: tuple[Document, ...] = ()
    text: str | None = None
    failed: bool = False
    refused: str = ""
    cut: tuple[str, ...] = ()
    counterfactuals: tuple[Evidence, ...] = ()


@dataclass(frozen=True)
class Turn:
    """One turn as read.

    Args:
        actions: What it asks for: an answer, one or more calls, or what is invalid.
        completion: The text that is kept.
        refinement: Its leading refinement.
        spent: The budget that had run out before it; no turn follows.
    """

    actions: tuple[Action, ...]
    completion: Completion
    refinement: Segment
    spent: EndedBy | None = None

    @property
    def parsed(self) -> Action:
        """The first action: the only one, unless the turn holds several calls."""
        return self.actions[0]

    def refuse(self, place: int, reason: str) -> Turn:
        """The same turn, one of its actions taken for invalid."""
        actions = list(self.actions)
        actions[place] = _without(actions[place], reason)
        return replace(self, actions=tuple(actions))

    def extend(self, episode: Episode, rules: TurnRules, *results: SearchResult | None) -> Episode:
        """The episode with this turn and the environment's reaction added.

        Args:
            episode: The episode before the turn.
            rules: The rules in force.
            *results: What each action brought; None for what is no call.
        """
        attempt = episode.attempt
        turns = 1 + sum(step.attempt == attempt and not step.call for step in episode.steps)
        answer = next((one.text for one in self.actions if isinstance(one, Answer)), None)
        ended_by: EndedBy | None = self.spent or ("turns" if turns >= rules.max_turns else None)
        ended = answer is not None or ended_by is not None
        again = ended and self.spent is None and attempt + 1 < rules.max_attempts
        steps = self._steps(episode, rules, results)
        if again:
            # After an observation the next turn has been opened: it is closed without a word.
            said = "" if steps[-1].observation else str(self.completion)
            reflection = rules.protocol.render_reflection(episode.question.text, said)
            steps[-1] = changed(steps[-1], reflection=reflection)
        truncated = ended and answer is None and not again
        tokens = 0
        if rules.budgets.episode_tokens is not None:
            parts = (part for step in steps for part in (step.turn, *step.replies))
            tokens = sum(map(rules.count, parts))
        return changed(
            episode,
            steps=(*episode.steps, *steps),
            answer=answer if ended else episode.answer,
            terminated=answer is not None and not again,
            truncated=truncated,
            ended_by=ended_by or "" if truncated else "",
            tokens=episode.tokens + tokens,
        )

    def _steps(
        self, episode: Episode, rules: TurnRules, results: Sequence[SearchResult | None]
    ) -> list[Step]:
        """One step for each action."""
        parts = [self.completion]
        if len(self.actions) > 1:
            parts = self.completion.pieces([one.end or 0 for one in self.actions])
        protocol = rules.protocol
        thoughts = protocol.thoughts(self.completion) if rules.drop_thoughts else []
        before, attempt, searches = episode.policy_tokens, episode.attempt, len(episode.searches)
        steps: list[Step] = []
        first, at = before, 0  # tokens of the episode and characters of the turn before this part
        for number, (action, part, result) in enumerate(
            zip(self.actions, parts, results, strict=True)
        ):
            end = first + len(part.token_ids or ())
            fields = self._reaction(action, (number, len(self.actions)), rules, result)
            fields["query_tokens"] = slice(first, first)
            if isinstance(action, CALLS):
                query = self.completion.tokens_within(*action.span)
                fields["query_tokens"] = slice(before + query.start, before + query.stop)
                fields["query_span"] = (max(0, action.span[0] - at), action.span[1] - at)
            if fields["action"] == "search":
                fields["search_step"] = searches
                searches += 1
            step = changed(
                _BLANK,
                turn=_segment(part),
                policy_tokens=slice(first, end),
                refinement=NO_REFINEMENT if number else self.refinement,
                log_probs=part.log_probs,
                stop_reason=self.completion.stop_reason,
                call=number,
                bare=_bare(part, at, thoughts, protocol.thought_end) if thoughts else None,
                attempt=attempt,
                **fields,
            )
            steps.append(step)
            first, at = end, at + len(part)
        return steps

    def _reaction(
        self, action: Action, place: Place, rules: TurnRules, result: SearchResult | None
    ) -> dict[str, Any]:
        """What a step says of an action and of the environment's reaction to it."""
        protocol, said = rules.protocol, str(self.completion)
        if isinstance(action, Answer):
            return {"action": "answer", "observation": None}
        if isinstance(action, Invalid):
            correction = protocol.render_correction(action.reason, said, place)
            return {"action": "invalid", "observation": correction}
        if result is None:
            raise ValueError("a search turn needs the result of its search")
        tool = action.tool if isinstance(action, ToolUse) else ""
        if result.failed:
            observation = protocol.render_failure(said, place, tool)
        elif result.text is not None:
            observation = protocol.render_result(result.text, said, place)
        else:
            observation = protocol.render_documents(result.documents, said, place)
        goes = rules.keep_documents is not None and result.documents
        return {
            "stub": protocol.render_removed(said, place) if goes else None,
            "action": "tool" if result.text is not None else "search",
            "tool": tool,
            "observation": observation,
            "query": action.text if isinstance(action, ToolUse) else action.query,
            "documents": result.documents,
            "retrieval_failed": result.failed,
            "cut": result.cut,
            "counterfactuals": result.counterfactuals,
        }


def _without(action: Action, reason: str) -> Action:
    """An action taken for invalid; an answer, and what is invalid already, stay as they are."""
    return Invalid(reason, action.end) if isinstance(action, CALLS) else action


def _bare(
    part: Completion, at: int, thoughts: Sequence[tuple[int, int]], thought_end: str
) -> tuple[Segment, ...] | None:
    """A part of a turn without the thoughts in it; None if there are none.

    Args:
        part: The part.
        at: Characters of the turn before it.
        thoughts: Characters of the turn.
        thought_end: What closes a thought that a template has opened, which is closed empty.
    """
    spans = [(max(0, a - at), min(len(part), b - at)) for a, b in thoughts]
    spans = [(a, b) for a, b in spans if a < b]
    if not spans:
        return None
    said = _segment(part.without(spans))
    opened = thought_end and at == 0 and spans[0][0] == 0
    return (Segment(thought_end, "system"), said) if opened else (said,)


def _segment(completion: Completion) -> Segment:
    return Segment(str(completion), "policy", completion.token_ids)
