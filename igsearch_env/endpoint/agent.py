"""A policy behind an OpenAI-compatible endpoint: vLLM, SGLang, or a service."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from math import inf
from operator import attrgetter
from typing import Any, Protocol, get_args

from igsearch_env.completion import Completion, StopReason
from igsearch_env.endpoint import Api, RequestField
from igsearch_env.endpoint.client import Endpoint
from igsearch_env.endpoint.errors import ContextTooLongError, RequestRefusedError, ServerError
from igsearch_env.episode import Context, Episode, Segment, Step, changed
from igsearch_env.protocol.special_tokens import break_up
from igsearch_env.protocol.tags import Invalid, TagProtocol, thought_marks
from igsearch_env.protocol.tool_calls import CALL_FORMATS, ToolCallProtocol

EVERY_REQUEST = (401, 402, 403, 404, 405)
"""Statuses that mostly mean that no request is answered: the key, money, the model, the address."""
UNSUPPORTED = ("unsupported_parameter", "unsupported_value", "unknown_parameter")


class Tokenizer(Protocol):
    """What the agent needs of a tokenizer; ``agents.tokenization.SegmentTokenizer`` has it."""

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The special tokens, as they are written."""
        ...

    def encode_context(self, segments: Context) -> list[int]:
        """The ids of a transcript, shape (tokens,)."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""
        ...


@dataclass
class Refusals:
    """Questions that an endpoint refused to answer; threads may share one.

    Args:
        most: How many questions may be refused.
        reasons: What the server said of each question so far, by question id and group.
    """

    most: int = 0
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, episode: Episode, error: RequestRefusedError) -> None:
        """Count the question of an episode.

        Raises:
            RequestRefusedError: If it is one too many.
        """
        with self._lock:
            self.reasons[episode.question.id, episode.group_id] = str(error)
            count = len(self.reasons)
        if count > self.most:
            raise RequestRefusedError(
                error.status,
                ServerError(f"{error.error.message} ({count} questions so far)"),
                error.url,
            ) from error

    def __contains__(self, episode: Episode) -> bool:
        return (episode.question.id, episode.group_id) in self.reasons


@dataclass(frozen=True)
class OpenAIAgent:
    """Asks an endpoint for the next turn of each episode, many at a time.

    The seed of a request follows from the agent's seed, the question, its group and the turn, so a
    server that honours seeds answers alike in whatever order it is asked.

    Where the server makes the tokens (the chat API, and completions without a tokenizer), special
    tokens of questions, documents, tools and turns are broken up: those of the tokenizer, if there
    is one, and those of published models (:mod:`igsearch_env.protocol.special_tokens`).

    With a tokenizer, the completions API is asked with token ids, so that the server reads exactly
    the tokens that a policy was trained on, and for the ids of the turn (vLLM's
    ``return_token_ids``). Where it gives none, and without a tokenizer, turns are text alone: they
    cannot be trained on, and text that is tokenised as a whole may have other tokens at the seams.

    The text of an answer may be a string or a list of parts; where there is none, a reasoning
    model's thoughts are the turn, in which no action is read. Where a closing tag that is quoted in
    a thought has stopped a turn, the rest of it is asked for (completions). A call that the server
    has taken out of the text (``tool_calls``) is a search of a
    :class:`~igsearch_env.protocol.tool_calls.ToolCallProtocol`; a protocol of tags
    cannot read it, and the question fails with a hint. A turn that the server's content filter
    ended fails its question. Where a server knows ``max_completion_tokens`` in place of
    ``max_tokens``, it gets that.

    A status of 401 to 405 may be about one question (a filter before the server) or about
    all. So the endpoint is asked for something harmless: if it refuses that too, the run ends.

    Args:
        endpoint: The server.
        model: Name of the model.
        protocol: The tag grammar.
        api: ``"completions"`` continues the transcript as it is, which is right for a policy that
            was trained on this project's prompts; ``"chat"`` sends the prompt and observations as
            the user's messages and the turns as the assistant's.
        temperature: Of sampling; 0 for the most likely tokens.
        max_new_tokens: Longest turn, in tokens.
        seed: Seed of sampling.
        concurrency: Most requests of one call of :meth:`act` that are under way at once.
        tokenizer: The model's tokenizer, where it is at hand.
        leave_out: Fields that requests must not have. Without ``stop``, a turn goes on after its
            action; the environment ignores what follows.
        refusals: Where refused questions are counted. Their turns are empty, and their
            ``stop_reason`` is ``"refused"``; the first refusal is an error if it allows none, which
            is the default.

    Raises:
        ValueError: If an argument is out of range.
    """

    endpoint: Endpoint
    model: str
    protocol: TagProtocol
    api: Api = "completions"
    temperature: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0
    concurrency: int = 16
    tokenizer: Tokenizer | None = None
    leave_out: Sequence[RequestField] = ()
    refusals: Refusals = field(default_factory=Refusals)

    def __post_init__(self) -> None:
        if self.api not in get_args(Api):
            raise ValueError(f"api must be completions or chat, got {self.api!r}")
        if strange := set(self.leave_out) - set(get_args(RequestField)):
            raise ValueError(
                f"leave_out may hold {', '.join(get_args(RequestField))}, got {', '.join(strange)}"
            )
        if not 0 <= self.temperature < inf or self.max_new_tokens < 1 or self.concurrency < 1:
            raise ValueError(
                "an agent needs a finite temperature >= 0, max_new_tokens >= 1 and concurrency "
                f">= 1, got {self.temperature}, {self.max_new_tokens} and {self.concurrency}"
            )

    def act(self, episodes: Sequence[Episode]) -> list[Completion]:
        """Ask for one turn per episode.

        A turn is empty where the transcript is too long for the model, and where the server
        refused a request for the question.

        Raises:
            EndpointError: If the server gave no usable answer.
            RequestRefusedError: If it refused too many questions, or refuses all requests.
            ValueError: If it does not accept a field of the request, which can be left out.
        """
        if len(episodes) == 1:
            return [self._turn(episodes[0])]
        with ThreadPoolExecutor(self.concurrency) as threads:
            return list(threads.map(self._turn, episodes))

    def _turn(self, episode: Episode) -> Completion:
        asks_for_ids = self.tokenizer is not None and self.api == "completions"
        known = () if asks_for_ids else None
        refused = Completion("", known, None, known, "refused")
        if episode in self.refusals:
            return refused
        try:
            return self._sampled(episode)
        except ContextTooLongError:
            return Completion("", known, None, known, "no_room")
        except RequestRefusedError as error:
            if error.status in EVERY_REQUEST and self._refuses_greeting():
                raise
            self.refusals.add(episode, error)
            return refused

    def _sampled(self, episode: Episode) -> Completion:
        """A turn; what stopped it in a thought did not end it, so that the rest is asked for."""
        turn = self._completion(self._ask(episode))
        while self.api == "completions" and turn.stop_reason == "stop":
            ids = turn.token_ids
            left = self.max_new_tokens - (len(turn) // 4 if ids is None else len(ids))
            if self.protocol.ended(turn) or left < 1:
                break
            none = slice(0, 0)
            step = Step("invalid", Segment(str(turn), "policy", ids), None, none, none)
            longer = changed(episode, steps=(*episode.steps, step))
            rest = self._completion(replace(self, max_new_tokens=left)._ask(longer))
            if not rest:
                break
            if self.tokenizer is None or ids is None or rest.token_ids is None:
                turn = Completion(turn + rest, stop_reason=rest.stop_reason)
            else:
                ids, decode = (*ids, *rest.token_ids), self.tokenizer.decode
                turn = Completion.from_tokens(ids, None, decode, rest.stop_reason)
        return turn

    def _refuses_greeting(self) -> bool:
        """Whether the endpoint refuses what nobody could object to."""
        hello: dict[str, Any] = {"prompt": "Hello"}
        if self.api == "chat":
            hello = {"messages": [{"role": "user", "content": "Hello"}]}
        try:
            self.endpoint.post(self._path, {**self._settings("Hello"), **hello})
        except RequestRefusedError as error:
            return error.status in EVERY_REQUEST
        return False

    @property
    def _path(self) -> str:
        return "/chat/completions" if self.api == "chat" else "/completions"

    def _settings(self, asked: str) -> dict[str, Any]:
        """The fields of a request other than the transcript."""
        body: dict[str, Any] = {
            "model": self.model,
            self.endpoint.limit_field: self.max_new_tokens,
            "temperature": self.temperature,
            "seed": random.Random(asked).getrandbits(31),
            "stop": list(self.protocol.stop),
        }
        for name in self.leave_out:
            body.pop(self.endpoint.limit_field if name == "max_tokens" else name)
        return body

    def _ask(self, episode: Episode) -> dict[str, Any]:
        turn = f"{self.seed} {episode.question.id} {episode.group_id} {len(episode.steps)}"
        body = self._settings(turn)
        if self.api == "chat":
            body["messages"] = messages(episode, self._text)
        else:
            body["prompt"] = self._prompt(episode)
            if self.tokenizer is not None:
                body["return_token_ids"] = True
        try:
            return self.endpoint.post(self._path, body, "choices")
        except RequestRefusedError as error:
            if "max_tokens" in body and "max_completion_tokens" in error.error.message:
                self.endpoint.limit_field = "max_completion_tokens"
                return self._ask(episode)
            if error.error.code in UNSUPPORTED and error.error.param in body:
                field_name = error.error.param.replace("max_completion_tokens", "max_tokens")
                raise ValueError(
                    f"the endpoint does not accept {error.error.param!r} "
                    f"({error.error.message}); leave it out with --leave-out {field_name}"
                ) from error
            raise

    def _prompt(self, episode: Episode) -> str | list[int]:
        if self.tokenizer is None:
            return "".join(map(self._text, episode.context))
        return self.tokenizer.encode_context(episode.context)

    def _text(self, segment: Segment) -> str:
        """A segment as text in which only what the system wrote holds special tokens.

        The server makes the tokens, and it cannot know who wrote what.
        """
        known = () if self.tokenizer is None else self.tokenizer.control_tokens
        written = frozenset[str]()
        if segment.source == "policy":  # the grammar's own marks, some of which are special tokens
            protocol = self.protocol
            marks = (*thought_marks(protocol.think),) if protocol.think else ()
            actions = (mark for action in protocol.actions for mark in action)
            written = frozenset((*marks, *actions, *protocol.turn_ends))
        return "".join(
            part.text if part.source == "system" else break_up(part.text, known, written)
            for part in segment.parts or (segment,)
        )

    def _completion(self, answer: dict[str, Any]) -> Completion:
        """The turn in an answer, the string that stopped it included."""
        choices = answer.get("choices")
        choice: Any = choices[0] if isinstance(choices, list) and choices else None
        choice = choice if isinstance(choice, dict) else {}
        message = choice.get("message") if self.api == "chat" else choice
        if choice.get("finish_reason") == "content_filter":
            raise self._refusal("its content filter ended the turn")
        if isinstance(message, dict) and message.get("tool_calls"):
            return Completion(self._called(message), stop_reason="stop")
        text = _text(message, self.protocol.think)
        if text is None:
            said = f"expected an answer of the OpenAI API ({self.api}), got {str(answer)[:200]}"
            raise self._refusal(said)
        if choice.get("finish_reason") == "stop" and not text.endswith(self.protocol.stop):
            if "stop_reason" in choice:  # vLLM: the string, None, or a token id at the end of text
                stop = choice["stop_reason"]
                text += stop if stop in self.protocol.stop else ""
            else:
                text += open_action(self.protocol, text)
        # Servers say "stop" of a stop string and of the model's own end alike.
        ended: StopReason = "stop" if text.endswith(self.protocol.stop) else "end"
        reasons: dict[str, StopReason] = {"stop": ended, "length": "length"}
        reason = reasons.get(str(choice.get("finish_reason")))
        if self.tokenizer is not None and choice.get("token_ids") is not None:
            ids = choice["token_ids"]
            if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 2**31 for i in ids):
                problem = f"token_ids must be a list of token ids, got {str(ids)[:80]}"
                raise self._refusal(problem)
            return Completion.from_tokens(ids, None, self.tokenizer.decode, reason)
        return Completion(text, stop_reason=reason)

    def _called(self, message: dict[str, Any]) -> str:
        """The turn of a message whose call stands apart from its text."""
        said, protocol = _text({"content": message.get("content") or ""}) or "", self.protocol
        if isinstance(protocol, ToolCallProtocol):
            return said + _written(message["tool_calls"], protocol)
        if isinstance(protocol.parse(said), Invalid):
            problem = (
                "the answer is a tool call, which the server has taken out of the text, and "
                f"protocol {protocol.name!r} reads tags: start the server without its parser of "
                "tool calls, or give the agent a ToolCallProtocol"
            )
            raise self._refusal(problem)
        return said

    def _refusal(self, problem: str) -> RequestRefusedError:
        return RequestRefusedError(200, ServerError(problem), self.endpoint.url)


def _written(calls: Any, protocol: ToolCallProtocol) -> str:
    """A message's calls as text, as many as a turn may hold.

    What is none is left as JSON, in which the protocol finds nothing to carry out.
    """
    written: list[str] = []
    for call in (calls if isinstance(calls, list) else [calls])[: protocol.max_calls]:
        try:
            text = _written_call(call, protocol)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            form = CALL_FORMATS[protocol.format]
            text = json.dumps(call)
            text = f"{form.opening}{text}{form.closing}" if protocol.max_calls > 1 else text
        written.append(text.removeprefix(protocol.thought_end) if written else text)
    return "\n".join(written)


def _written_call(call: Any, protocol: ToolCallProtocol) -> str:
    function = call["function"]
    given = function["arguments"]  # JSON in a string, as OpenAI has it, or the object itself
    given = json.loads(given) if isinstance(given, str) else given
    if function["name"] in protocol.tools:
        return protocol.write_call(function["name"], {**given})
    query = given[protocol.argument]
    if function["name"] != protocol.function or not isinstance(query, str):
        raise ValueError(f"no call of {protocol.function}")
    return protocol.write_search(query)


def _text(message: Any, think: str | None = None) -> str | None:
    """What a message says, or else thinks, in that tag; None if it is no message."""
    if not isinstance(message, dict):
        return None
    for name in ("content", "text", "reasoning_content", "reasoning", "refusal"):
        said = message.get(name)
        if isinstance(said, list):  # of parts, some of which may be images
            said = "".join(_part(part) for part in said)
        if said is not None and not isinstance(said, str):
            return None
        if said:
            thought = think is not None and name.startswith("reasoning")
            return f"<{think}>{said}</{think}>" if thought else said
    known = {"content", "text", "reasoning_content"} & message.keys()
    return "" if known else None


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    return text if isinstance(text, str) else ""


def messages(
    episode: Episode, text: Callable[[Segment], str] = attrgetter("text")
) -> list[dict[str, str]]:
    """The transcript as a conversation: the environment's side is the user's, in one message.

    A blank turn is left out, since servers refuse blank messages of the assistant; what stands
    around it becomes one message.

    Args:
        episode: The episode.
        text: How a segment is written.
    """
    said = [s for s in episode.context if s.source != "policy" or s.text.strip()]
    sides = groupby(said, lambda segment: segment.source == "policy")
    return [
        {"role": "assistant" if policy else "user", "content": "".join(map(text, said))}
        for policy, said in sides
    ]


def open_action(protocol: TagProtocol, text: str) -> str:
    """The closing tag that a server cut off with its stop string; empty if no action is open.

    >>> from igsearch_env.protocol.tags import PROTOCOLS
    >>> open_action(PROTOCOLS["refine"], "<think> so </think> <search> capital of Peru ")
    '</search>'
    """
    text = protocol.spoken(text)
    opening, closing = max(protocol.actions, key=lambda action: text.rfind(action[0]))
    at = text.rfind(opening)
    return closing if at >= 0 and closing not in text[at:] else ""
