"""Searches as tool calls: what chat models write when they are given a function to call."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from igsearch_env.episode import Document, Segment
from igsearch_env.protocol.tags import Answer, Invalid, Search, TagProtocol


@dataclass(frozen=True)
class ToolCallProtocol(TagProtocol):
    r"""A search is JSON inside ``<tool_call>``, as Qwen's and Hermes' chat templates write it.

    Answers stand in their tag as in every protocol: what is scored must be told from what is said
    around it. :func:`agents.chat.tool_protocol` builds the prompt and the frame from a tokenizer's
    chat template.

    Args:
        function: Name of the function that searches.
        argument: Name of its one argument, the query.
        frame: What stands before and after the documents: the template's markers of a tool's reply
            and of the turn that follows it. It is system text, unlike the documents.

    >>> protocol = ToolCallProtocol(name="tool-calls", prompt="{question}")
    >>> call = protocol.write_search("capital of Peru")
    >>> call
    '<tool_call>\n{"name": "search", "arguments": {"query": "capital of Peru"}}\n</tool_call>'
    >>> protocol.parse(call)
    Search(query='capital of Peru', span=(55, 70), end=86)
    """

    search: str = "tool_call"
    documents: str = "tool_response"
    refine: str | None = None
    documents_block: str = "{documents}"
    correction: str = (
        "That turn could not be carried out: {reason}. Call the function to search, or write an "
        "answer inside the {answer} tags."
    )
    failure: str = "The search engine did not respond."
    answer_before: str = ""
    function: str = "search"
    argument: str = "query"
    frame: tuple[str, str] = ("\n<tool_response>\n", "\n</tool_response>\n")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "frame", tuple(self.frame))  # JSON reads it as a list
        if len(self.frame) != 2:
            raise ValueError(
                f"protocol {self.name!r}: frame must be two strings, got {self.frame!r}"
            )

    def render_documents(self, documents: Sequence[Document]) -> Segment:
        """The observation after a search: the frame and, untrusted, the documents in it."""
        body = super().render_documents(documents)
        before, after = (Segment(text, "system") for text in self.frame)
        text = before.text + body.text + after.text
        return Segment(text, "document", parts=(before, body, after))

    def write_search(self, query: str) -> str:
        """The call of the function, as the chat template writes it."""
        call = {"name": self.function, "arguments": {self.argument: self.escape(query)}}
        return f"<{self.search}>\n{json.dumps(call, ensure_ascii=False)}\n</{self.search}>"

    def parse(self, turn: str) -> Search | Answer | Invalid:
        """Read the first complete action; the span of a search is that of the query in the JSON."""
        action = super().parse(turn)
        if not isinstance(action, Search):
            return action
        start, stop = action.span
        try:
            call = json.loads(turn[start:stop])
            name, query = call["name"], call["arguments"][self.argument]
        except (ValueError, TypeError, KeyError, RecursionError):  # the last: absurdly nested
            return Invalid(f"no JSON with name and arguments.{self.argument}", action.end)
        if name != self.function or not isinstance(query, str):
            return Invalid(f"no call of {self.function} with a text", action.end)
        if not query.strip():
            return Invalid("empty query", action.end)
        literal = re.compile(rf'"{re.escape(self.argument)}"\s*:\s*"((?:[^"\\]|\\.)*)"', re.DOTALL)
        spans = [found.span(1) for found in literal.finditer(turn, start, stop)]
        span = next(
            (s for s in reversed(spans) if json.loads(f'"{turn[slice(*s)]}"') == query),
            action.span,  # a key that is written with escapes
        )
        return Search(query.strip(), span, action.end)
