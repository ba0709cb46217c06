"""A policy behind an OpenAI-compatible endpoint: vLLM, SGLang, or a service."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, Protocol

from igsearch_env.completion import Completion
from igsearch_env.endpoint.client import Endpoint, RequestRefusedError
from igsearch_env.episode import Context, Episode
from igsearch_env.protocol.tags import TagProtocol

Api = Literal["completions", "chat"]
_TOO_LONG = ("context length", "context_length", "maximum length", "too long", "max_model_len")


class Tokenizer(Protocol):
    """What the agent needs of a tokenizer; ``agents.tokenization.SegmentTokenizer`` has it."""

    def encode_context(self, segments: Context) -> list[int]:
        """The ids of a transcript, shape (tokens,)."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""
        ...


@dataclass(frozen=True)
class OpenAIAgent:
    """Asks an endpoint for the next turn of each episode, many at a time.

    The seed of a request follows from the agent's seed, the question, its group and the turn, so a
    server that honours seeds answers alike in whatever order it is asked.

    With a tokenizer, the completions API is asked with token ids, so that the server reads exactly
    the tokens that a policy was trained on, and for the ids of the turn (vLLM's
    ``return_token_ids``). Where it gives none, and without a tokenizer, turns are text alone: they
    cannot be trained on, and text that is tokenised as a whole may have other tokens at the seams.

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

    def __post_init__(self) -> None:
        if self.api not in ("completions", "chat"):
            raise ValueError(f"api must be completions or chat, got {self.api!r}")
        if self.temperature < 0 or self.max_new_tokens < 1 or self.concurrency < 1:
            raise ValueError(
                "an agent needs temperature >= 0, max_new_tokens >= 1 and concurrency >= 1, got "
                f"{self.temperature}, {self.max_new_tokens} and {self.concurrency}"
            )

    def act(self, episodes: Sequence[Episode]) -> list[Completion]:
        """Ask for one turn per episode.

        A turn is empty where the transcript is too long for the model.

        Raises:
            EndpointError: If the server gave no usable answer.
            RequestRefusedError: If it refuses a request for another reason than its length.
        """
        if len(episodes) == 1:
            return [self._turn(episodes[0])]
        with ThreadPoolExecutor(self.concurrency) as threads:
            return list(threads.map(self._turn, episodes))

    def _turn(self, episode: Episode) -> Completion:
        asked = f"{self.seed} {episode.question.id} {episode.group_id} {len(episode.steps)}"
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "seed": random.Random(asked).getrandbits(31),
            "stop": list(self.protocol.stop),
        }
        if self.api == "chat":
            path, body["messages"] = "/chat/completions", messages(episode)
        else:
            path, body["prompt"] = "/completions", self._prompt(episode)
            if self.tokenizer is not None:
                body["return_token_ids"] = True
        try:
            answer = self.endpoint.post(path, body)
        except RequestRefusedError as error:
            if not any(words in error.reason.lower() for words in _TOO_LONG):
                raise
            known = () if "return_token_ids" in body else None
            return Completion("", known, None, known)
        return self._completion(answer)

    def _prompt(self, episode: Episode) -> str | list[int]:
        if self.tokenizer is None:
            return "".join(segment.text for segment in episode.transcript)
        return self.tokenizer.encode_context(episode.transcript)

    def _completion(self, answer: dict[str, Any]) -> Completion:
        """The turn in an answer, the string that stopped it included."""
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] if self.api == "chat" else choice["text"]
            if not isinstance(text, str | None):
                raise TypeError(f"the text is {text!r}")
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"expected an answer of the OpenAI API ({self.api}), got {str(answer)[:200]} "
                f"({type(error).__name__}: {error})"
            ) from error
        if self.tokenizer is not None and choice.get("token_ids") is not None:
            return Completion.from_tokens(choice["token_ids"], None, self.tokenizer.decode)
        text = text or ""
        if choice.get("finish_reason") != "stop" or text.endswith(self.protocol.stop):
            return Completion(text)
        if "stop_reason" in choice:  # vLLM: the string, or None or a token id at the end of text
            stop = choice["stop_reason"]
            return Completion(text + stop if stop in self.protocol.stop else text)
        return Completion(text + open_action(self.protocol, text))


def messages(episode: Episode) -> list[dict[str, str]]:
    """The transcript as a conversation: the environment's side is the user's, in one message."""
    sides = groupby(episode.transcript, lambda segment: segment.source == "policy")
    return [
        {"role": "assistant" if policy else "user", "content": "".join(s.text for s in said)}
        for policy, said in sides
    ]


def open_action(protocol: TagProtocol, text: str) -> str:
    """The closing tag that a server cut off with its stop string; empty if no action is open.

    >>> from igsearch_env.protocol.tags import PROTOCOLS
    >>> open_action(PROTOCOLS["refine"], "<think> so </think> <search> capital of Peru ")
    '</search>'
    """
    places = {tag: text.rfind(f"<{tag}>") for tag in (protocol.search, protocol.answer)}
    tag = max(places, key=lambda name: places[name])
    opened = places[tag] >= 0 and f"</{tag}>" not in text[places[tag] :]
    return f"</{tag}>" if opened else ""
