"""Searches as tool calls: what chat models write when they are given a function to call."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from igsearch_env.episode import Segment
from igsearch_env.protocol.tags import (
    ALONE,
    Action,
    Answer,
    Frame,
    Invalid,
    Place,
    Search,
    TagProtocol,
    ToolUse,
)
from igsearch_env.text import clean_text

NO_ID = "000000000"
"""Stands for the id of a call where the policy wrote none."""


class Call(NamedTuple):
    """A call in a turn.

    Args:
        start: Its first character.
        end: The character after it.
        query: The query; empty where ``problem`` says why there is none.
        span: Characters ``[start, end)`` of the query, as it is written in the turn.
        problem: Why the call cannot be carried out; empty if it can.
    """

    start: int
    end: int
    query: str
    span: tuple[int, int]
    problem: str = ""


Read = tuple[str, tuple[int, int]] | str
"""A query and where it stands in what was read, or why there is none."""

Arguments = tuple[str, Mapping[str, Any]] | None
"""The name of a function and its arguments; None where they cannot be read."""

Write = Callable[[str, Mapping[str, Any]], str]
"""Writes the inside of a call: name of the function, its arguments."""


def _no_call(function: str) -> str:
    return f"no call of {function} with a text"


def _literal(body: str, argument: str, query: str) -> tuple[int, int]:
    """Where a JSON string stands; all of the body where its key is written with escapes."""
    pattern = re.compile(rf'"{re.escape(argument)}"\s*:\s*"((?:[^"\\]|\\.)*)"', re.DOTALL)
    spans = [found.span(1) for found in pattern.finditer(body)]
    same = (span for span in reversed(spans) if json.loads(f'"{body[slice(*span)]}"') == query)
    return next(same, (0, len(body)))


def _read_json(body: str, function: str, argument: str) -> Read:
    """``{"name": ..., "arguments": {...}}``, or ``parameters``; alone or first in a list."""
    try:
        data = json.loads(body)
        call = data[0] if isinstance(data, list) else data
        name = call["name"]
        query = (call["arguments"] if "arguments" in call else call["parameters"])[argument]
    except (ValueError, TypeError, LookupError, RecursionError):  # the last: absurdly nested
        return f"no JSON with name and arguments.{argument}"
    if name != function or not isinstance(query, str):
        return _no_call(function)
    return query, _literal(body, argument, query)


def _read_named_json(body: str, function: str, argument: str) -> Read:
    """``NAME[ARGS]{...}``, with or without ``[CALL_ID]...`` after the name."""
    found = re.match(r"\s*([^\s\[{]+)\s*(?:\[CALL_ID\]\w*)?\s*\[ARGS\]", body)
    if found is None or found.group(1) != function:
        return _no_call(function)
    try:
        query = json.loads(body[found.end() :])[argument]
    except (ValueError, TypeError, LookupError, RecursionError):
        return f"no JSON with {argument}"
    if not isinstance(query, str):
        return _no_call(function)
    start, end = _literal(body[found.end() :], argument, query)
    return query, (found.end() + start, found.end() + end)


def _json_arguments(body: str) -> Arguments:
    try:
        data = json.loads(body)
        call = data[0] if isinstance(data, list) else data
        name = call["name"]
        given = call["arguments"] if "arguments" in call else call["parameters"]
        given = json.loads(given) if isinstance(given, str) else given
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return (name, given) if isinstance(name, str) and isinstance(given, dict) else None


def _named_json_arguments(body: str) -> Arguments:
    found = re.match(r"\s*([^\s\[{]+)\s*(?:\[CALL_ID\]\w*)?\s*\[ARGS\]", body)
    try:
        given = json.loads(body[found.end() :]) if found else None
    except (ValueError, RecursionError):
        return None
    return (found[1], given) if found and isinstance(given, dict) else None


def _marked_arguments(name: str, argument: str) -> Callable[[str], Arguments]:
    """A reader of calls whose arguments stand between marks; their values are text."""

    def read(body: str) -> Arguments:
        function = re.match(name, body)
        if function is None:
            return None
        found = re.finditer(argument, body[function.end() :], re.DOTALL)
        return function[1], {one[1].strip(): one[2].strip() for one in found}

    return read


def _python_arguments(body: str) -> Arguments:
    try:
        (call,) = ast.parse(body.strip(), mode="eval").body.elts  # type: ignore[attr-defined]
        return call.func.id, {one.arg: ast.literal_eval(one.value) for one in call.keywords}
    except (ValueError, SyntaxError, AttributeError, TypeError, MemoryError, RecursionError):
        return None


def _write_json(name: str, arguments: Mapping[str, Any], key: str = "arguments") -> str:
    return json.dumps({"name": name, key: {**arguments}}, ensure_ascii=False)


def _write_marked(before: str, argument: str, after: str = "") -> Write:
    def write(name: str, arguments: Mapping[str, Any]) -> str:
        values = (
            argument.format(key=key, value=value if isinstance(value, str) else json.dumps(value))
            for key, value in arguments.items()
        )
        return before.format(name=name) + "".join(values) + after

    return write


def _reader(pattern: str, value: Callable[[str], Any] = str) -> Callable[[str, str, str], Read]:
    """A reader of calls that a pattern describes, in which the group ``query`` is the query."""

    def read(body: str, function: str, argument: str) -> Read:
        names = {"FUNCTION": re.escape(function), "ARGUMENT": re.escape(argument)}
        whole = re.sub("FUNCTION|ARGUMENT", lambda found: names[found.group()], pattern)
        found = re.fullmatch(whole, body, re.DOTALL)
        if found is None:
            return _no_call(function)
        try:
            return str(value(found["query"])), found.span("query")
        except (ValueError, SyntaxError, MemoryError):
            return _no_call(function)

    return read


def _in_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _in_python(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")


def _of_python(text: str) -> Any:
    """The value of what stands between the quotes of a string of Python."""
    return ast.literal_eval("'" + re.sub(r"(?<!\\)((?:\\\\)*)'", r"\1\\'", text) + "'")


def _json_end(text: str, start: int) -> int | None:
    """Where the JSON that begins there ends; None if there is none, or it is not complete."""
    try:
        return json.JSONDecoder().raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True)
class CallFormat:
    """A way to write a call.

    Args:
        opening: What opens a call; empty where the JSON of the call stands alone.
        closing: What closes it; empty where it ends with its JSON.
        read: Reads what stands between them: text, name of the function, name of its argument.
        arguments: Reads what stands between them as the call of any function.
        write: Writes what stands between them: name of the function, its arguments.
        quote: Writes a query into a call.
    """

    opening: str
    closing: str
    read: Callable[[str, str, str], Read]
    arguments: Callable[[str], Arguments]
    write: Write
    quote: Callable[[str], str] = _in_json

    def find(self, text: str, function: str, argument: str, at: int = 0) -> Call | None:
        """The first complete call in a text, from a place on."""
        extent = self._extent(text, at)
        if extent is None:
            return None
        start, first, last, end = extent
        found = self.read(text[first:last], function, argument)
        if isinstance(found, str):
            return Call(start, end, "", (first, last), found)
        query, (before, after) = found
        problem = "" if query.strip() else "empty query"
        return Call(start, end, query.strip(), (first + before, first + after), problem)

    def find_any(self, text: str, at: int = 0) -> tuple[Arguments, Call] | None:
        """The first complete call of any function, from a place on."""
        extent = self._extent(text, at)
        if extent is None:
            return None
        start, first, last, end = extent
        body = text[first:last]
        return self.arguments(body), Call(start, end, body.strip(), (first, last))

    def _extent(self, text: str, at: int) -> tuple[int, int, int, int] | None:
        """Where the call starts, its inside starts and ends, and the call ends."""
        if self.closing:
            last = text.find(self.closing, at)
            start = text.rfind(self.opening, at, max(0, last))
            if last < 0 or start < 0:
                return None
            return start, start + len(self.opening), last, last + len(self.closing)
        if self.opening:
            start = text.find(self.opening, at)
            first = start + len(self.opening)
            name = re.compile(r"[^\[{]*(?:\[(?:CALL_ID|ARGS)\][^\[{]*)*").match(text, first)
            end = _json_end(text, name.end()) if start >= 0 and name is not None else None
            return None if end is None else (start, first, end, end)
        for brace in re.compile(r"\{").finditer(text, at):
            end = _json_end(text, brace.start())
            if end is not None and '"name"' in text[brace.start() : end]:
                return brace.start(), brace.start(), end, end
        return None


CALL_FORMATS: dict[str, CallFormat] = {
    # Qwen2.5, Qwen3, Hermes
    "json": CallFormat(
        "<tool_call>",
        "</tool_call>",
        _read_json,
        _json_arguments,
        lambda name, given: f"\n{_write_json(name, given)}\n",
    ),
    # Qwen3-Coder, Qwen3.5, Nemotron 3
    "xml": CallFormat(
        "<tool_call>",
        "</tool_call>",
        _reader(
            r"\s*<function=FUNCTION>\s*<parameter=ARGUMENT>\s*(?P<query>.*?)\s*</parameter>\s*"
            r"</function>\s*"
        ),
        _marked_arguments(
            r"\s*<function=([^>\s]+)>", r"<parameter=([^>]+)>\s*(.*?)\s*</parameter>"
        ),
        _write_marked(
            "\n<function={name}>\n",
            "<parameter={key}>\n{value}\n</parameter>\n",
            "</function>\n",
        ),
        str,
    ),
    # GLM-4.5
    "glm": CallFormat(
        "<tool_call>",
        "</tool_call>",
        _reader(
            r"\s*FUNCTION\s*<arg_key>\s*ARGUMENT\s*</arg_key>\s*<arg_value>\s*(?P<query>.*?)\s*"
            r"</arg_value>\s*"
        ),
        _marked_arguments(
            r"\s*(\S+?)\s*(?=<arg_key>|\Z)",
            r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>",
        ),
        _write_marked("{name}\n", "<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n"),
        str,
    ),
    # LFM2
    "python": CallFormat(
        "<|tool_call_start|>",
        "<|tool_call_end|>",
        _reader(
            r"""\s*\[\s*FUNCTION\(\s*ARGUMENT\s*=\s*(?P<quote>['"])"""
            r"(?P<query>(?:(?!(?P=quote))[^\\\n]|\\.)*)(?P=quote)\s*\)\s*\]\s*",
            _of_python,
        ),
        _python_arguments,
        lambda name, given: f"[{name}({', '.join(f'{k}={v!r}' for k, v in given.items())})]",
        _in_python,
    ),
    # Mistral, from 2025 on: [TOOL_CALLS]search[ARGS]{"query": ...}
    "mistral-args": CallFormat(
        "[TOOL_CALLS]",
        "",
        _read_named_json,
        _named_json_arguments,
        lambda name, given: f"{name}[ARGS]{json.dumps({**given}, ensure_ascii=False)}",
    ),
    # Mistral before: [TOOL_CALLS] [{"name": ..., "arguments": ..., "id": ...}]
    "mistral": CallFormat(
        "[TOOL_CALLS]",
        "",
        _read_json,
        _json_arguments,
        lambda name, given: f" [{_write_json(name, given)}]",
    ),
    # Llama 3: {"name": ..., "parameters": ...}, with nothing around it
    "bare": CallFormat("", "", _read_json, _json_arguments, partial(_write_json, key="parameters")),
}
"""How chat templates write calls, by name. :func:`agents.chat.tool_protocol` takes the first that
reads the call which a template renders."""


_REPLY = Frame(before="\n<tool_response>\n", after="\n</tool_response>\n")


@dataclass(frozen=True)
class ToolCallProtocol(TagProtocol):
    r"""A search is a call of a function, in one of the formats of :data:`CALL_FORMATS`.

    Answers stand in their tag as in every protocol: what is scored must stand apart from the
    text around it. :func:`agents.chat.tool_protocol` builds the prompt and the frames from a
    tokenizer's chat template.

    Args:
        function: Name of the function that searches.
        argument: Name of its one argument, the query.
        format: How calls are written, a name of :data:`CALL_FORMATS`.
        call: How a call is written here; holds ``{query}``, and may hold ``{function}``,
            ``{argument}`` and ``{id}``.
        reply: Around the documents: the frame of a tool's reply. It is system text, unlike the
            documents, and may hold ``{id}``, the id of the call.
        json_reply: Whether a tool's reply is written as the inside of a JSON string.

    ``between`` may hold ``{previous}`` and ``{id}``, the ids of the two calls.

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
        "That turn could not be carried out: {reason}. Call the function if searches are left, "
        "or write an answer inside the {answer} tags."
    )
    failure: str = "The search engine did not respond."
    tool_failure: str = "The tool {tool} did not respond."
    answer_before: str = ""
    function: str = "search"
    argument: str = "query"
    format: str = "json"
    call: str = (
        '<tool_call>\n{"name": "{function}", "arguments": {"{argument}": "{query}"}}\n</tool_call>'
    )
    reply: Frame = _REPLY
    json_reply: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.reply, Frame):  # as JSON and TOML have it
            object.__setattr__(self, "reply", Frame(**self.reply))
        if self.format not in CALL_FORMATS:
            raise ValueError(
                f"protocol {self.name!r}: format must be one of {', '.join(CALL_FORMATS)}, got "
                f"{self.format!r}"
            )
        if self.max_calls > 1 and self.format in ("mistral", "python"):
            raise ValueError(
                f"protocol {self.name!r}: the format {self.format!r} writes the calls of a turn as "
                "one list, which is not read; set max_calls = 1"
            )
        found = self.parse(self.write_search("a query"))
        if not isinstance(found, Search) or found.query != "a query":
            raise ValueError(
                f"protocol {self.name!r}: a call like {self.call!r} cannot be read in the format "
                f"{self.format!r} ({found})"
            )

    @property
    def _tool_tags(self) -> tuple[str, ...]:
        return ()  # tools are functions here, too

    @property
    def actions(self) -> tuple[tuple[str, str], ...]:
        """What opens and what closes each action that ends with a string of its own."""
        written = CALL_FORMATS[self.format]
        call = ((written.opening, written.closing),) if written.closing else ()
        return (*call, (f"<{self.answer}>", f"</{self.answer}>"))

    @property
    def turn_ends(self) -> tuple[str, ...]:
        """What the template writes at the end of a turn or of a call."""
        ends = (self.reply.end.strip(),) if self.reply.end else ()
        return (*super().turn_ends, *ends)

    def render_failure(self, turn: str = "", place: Place = ALONE, tool: str = "") -> Segment:
        """The observation after a search that the retriever gave up on: the tool's reply, too."""
        text = self.tool_failure.replace("{tool}", tool) if tool else self.failure
        return self._replied(Segment(text, "system"), turn, place)

    def render_correction(self, reason: str, turn: str = "", place: Place = ALONE) -> Segment:
        """The observation after a turn that could not be carried out.

        It is the tool's reply where it is about one of several calls.
        """
        if place == ALONE:
            return super().render_correction(reason, turn)
        return self._replied(self._corrected(reason), turn, place)

    def _result(self, body: str, turn: str, place: Place) -> Segment:
        """The tool's reply with, untrusted, its result in it."""
        text = self.documents_block.replace("{tag}", self.documents).replace("{documents}", body)
        return self._replied(Segment(text.strip(), "document"), turn, place)

    def _replied(self, said: Segment, turn: str, place: Place) -> Segment:
        if self.json_reply:
            quoted = tuple(Segment(_in_json(part.text), part.source) for part in said.parts)
            said = Segment(_in_json(said.text), said.source, parts=quoted)
        reply, between = self.reply, self.between
        if "{id}" in reply.before + reply.after + between:
            ids, number = self._ids(turn), place[0]
            known = ids[number] if number < len(ids) else NO_ID
            previous = ids[number - 1] if 0 < number <= len(ids) else NO_ID
            parts = (reply.end, reply.before, reply.after)
            reply = Frame(*(part.replace("{id}", known) for part in parts))
            between = between.replace("{previous}", previous).replace("{id}", known)
        return self._framed(said, turn, place, reply, between)

    def _ids(self, turn: str) -> list[str]:
        """The id of each call of a turn, as far as the policy wrote one."""
        spoken, ids, at = self.spoken(turn), list[str](), 0
        while (found := CALL_FORMATS[self.format].find_any(spoken, at)) is not None:
            written = turn[found[1].start : found[1].end]
            known = re.search(r'(?:"id"\s*:\s*"|\[CALL_ID\])([A-Za-z0-9]+)', written)
            ids.append(known[1] if known else NO_ID)
            at = found[1].end
        return ids

    def write_search(self, query: str) -> str:
        """The call of the function, as the chat template writes it."""
        quoted = CALL_FORMATS[self.format].quote(self.escape(query))
        names = {"function": self.function, "argument": self.argument, "query": quoted, "id": NO_ID}
        call = re.sub(r"\{(function|argument|query|id)\}", lambda m: names[m[1]], self.call)
        return self.thought_end + call

    def write_call(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """A call of a tool, as a policy would write it.

        Raises:
            ValueError: If the grammar has no such tool.
        """
        if tool not in self.tools:
            raise ValueError(
                f"protocol {self.name!r} has the tools {', '.join(self.tools) or 'none'}, got "
                f"{tool!r}"
            )
        form = CALL_FORMATS[self.format]
        given = {k: self.escape(v) if isinstance(v, str) else v for k, v in arguments.items()}
        return f"{self.thought_end}{form.opening}{form.write(tool, given)}{form.closing}"

    def _next(self, spoken: str, start: int) -> Action | None:
        """The first complete action; the span of a search is that of the query in the call."""
        form = CALL_FORMATS[self.format]
        call = form.find(spoken, self.function, self.argument, start)
        answered = self._answered.search(spoken, start)
        if answered is not None and (call is None or answered.start() < call.start):
            text = answered.group(1).strip()
            if not text:
                return Invalid("empty answer", answered.end())
            return Answer(text, answered.span(1), answered.end())
        if call is None:
            return None
        any_call = form.find_any(spoken, start) if call.problem and self.tools else None
        known = any_call[0] if any_call is not None else None
        if any_call is not None and known is not None and known[0] in self.tools:
            found = any_call[1]
            return ToolUse(*known, found.query, found.span, found.end)
        if call.problem:
            return Invalid(call.problem, call.end)
        return Search(clean_text(call.query), call.span, call.end)  # JSON may hold half a character

    @property
    def _answered(self) -> re.Pattern[str]:
        tag, tags = re.escape(self.answer), "|".join(map(re.escape, self.tags))
        return re.compile(rf"<{tag}>((?:(?!</?(?:{tags})>)[^\0])*)</{tag}>")
