"""Tools that a policy may call beside the search engine, by name.

A tool is one function with a schema. What it returns is untrusted text, like a document. A grammar
says which tools may be called (its field ``tools``), and the environment looks them up here.
"""

from __future__ import annotations

import ast
import inspect
import logging
import math
import operator
import threading
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from igsearch_env.text import clean_text

logger = logging.getLogger(__name__)

SECONDS = 10.0
"""How long a call may take, unless its tool says otherwise."""

_TYPES: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


class ToolError(Exception):
    """The policy called a tool wrongly; the message is shown to it as the result of the call."""


@dataclass(frozen=True)
class Tool:
    """A function that a policy may call.

    Args:
        name: Its name.
        description: What it does, for the policy.
        parameters: JSON schema of its arguments: ``properties`` by name, each with a ``type``
            (``string``, ``integer``, ``number`` or ``boolean``), and ``required``.
        function: Takes the arguments by name, returns text, and raises :class:`ToolError` where
            they make no sense. None for a tool that the environment itself carries out.
        seconds: How long a call may take; None for no limit.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Callable[..., str] | None
    seconds: float | None = SECONDS

    @property
    def schema(self) -> dict[str, Any]:
        """What chat templates and endpoints take for the description of a function."""
        described = {
            "name": self.name,
            "description": self.description,
            "parameters": {"type": "object", **self.parameters},
        }
        return {"type": "function", "function": described}

    def arguments(self, given: Mapping[str, Any] | str) -> dict[str, Any]:
        """Arguments as the function takes them.

        Args:
            given: By name, or the text of the only one. A text where the schema has a number or a
                boolean is read as JSON, since some formats of calls know only text.

        Raises:
            ToolError: If they do not fit the schema.
        """
        properties: Mapping[str, Any] = self.parameters.get("properties", {})
        if isinstance(given, str):
            if len(properties) != 1:
                raise ToolError(f"{self.name} takes {_listed(properties)}")
            given = {next(iter(properties)): given}
        missing = [name for name in self.parameters.get("required", ()) if name not in given]
        if missing or not given.keys() <= properties.keys():
            raise ToolError(f"{self.name} takes {_listed(properties)}, not {_listed(given)}")
        return {name: _typed(name, value, properties[name]) for name, value in given.items()}


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(map(str, names)) or "no arguments"


def _typed(name: str, value: Any, schema: Mapping[str, Any]) -> Any:
    kind = schema.get("type", "string")
    if isinstance(value, str) and kind != "string":
        try:
            value = ast.literal_eval({"true": "True", "false": "False"}.get(value, value.strip()))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
    fits = isinstance(value, _KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))
    if not fits:
        raise ToolError(f"{name} must be of the type {kind}")
    return clean_text(value) if isinstance(value, str) else value


TOOLS: dict[str, Tool] = {}
"""The tools by name; :func:`register_tool` adds to it."""


def register_tool(
    function: Callable[..., str] | None = None,
    *,
    name: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    seconds: float | None = SECONDS,
) -> Any:
    """Decorator that makes a function known as a tool.

    Args:
        function: The function. Its docstring tells the policy what it does.
        name: Name of the tool; that of the function by default.
        parameters: JSON schema of the arguments; by default it follows from the annotations, which
            must then be ``str``, ``int``, ``float`` or ``bool``.
        seconds: How long a call may take; None for no limit.

    Raises:
        ValueError: If the name is taken, there is no docstring, or an argument is of another
            kind.

    >>> @register_tool
    ... def backwards(text: str) -> str:
    ...     "Turns a text around."
    ...     return text[::-1]
    >>> TOOLS["backwards"].schema["function"]["parameters"]["properties"]
    {'text': {'type': 'string'}}
    >>> run_tools([(TOOLS["backwards"], {"text": "amiL"})])
    [ToolResult(text='Lima', failed=False)]
    """

    def register(function: Callable[..., str]) -> Callable[..., str]:
        known = name or function.__name__
        if known in TOOLS or known == "search":
            raise ValueError(f"a tool named {known!r} exists already; choose another name")
        described = inspect.getdoc(function)
        if not described:
            raise ValueError(f"the tool {known!r} needs a docstring, which tells what it does")
        given = _parameters(known, function) if parameters is None else parameters
        for argument, schema in given.get("properties", {}).items():
            kind = schema.get("type", "string")
            if not isinstance(kind, str) or kind not in _KINDS:
                raise ValueError(
                    f"the argument {argument!r} of the tool {known!r} must be of one of the types "
                    f"{', '.join(_KINDS)}, got {kind!r}"
                )
        description = " ".join(described.split("\n\n")[0].split())
        TOOLS[known] = Tool(known, description, given, function, seconds)
        return function

    return register if function is None else register(function)


def _parameters(name: str, function: Callable[..., str]) -> dict[str, Any]:
    """The schema of a function's arguments, from its annotations."""
    hints = typing.get_type_hints(function)
    properties, required = dict[str, Any](), list[str]()
    for parameter in inspect.signature(function).parameters.values():
        kind = _TYPES.get(hints.get(parameter.name))
        if kind is None:
            raise ValueError(
                f"the tool {name!r}: {parameter.name} must be annotated as str, int, float or "
                f"bool, got {hints.get(parameter.name)!r}; or give parameters, a JSON schema"
            )
        properties[parameter.name] = {"type": kind}
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
    return {"properties": properties, "required": required}


@dataclass(frozen=True)
class ToolResult:
    """What a call brought: its text, and whether the tool broke or ran out of time."""

    text: str = ""
    failed: bool = False


def run_tools(calls: Sequence[tuple[Tool, Mapping[str, Any]]]) -> list[ToolResult]:
    """Call functions side by side, each within its time.

    A call that raises, or takes too long, has failed; the log says why. A thread whose time is up
    cannot be stopped: it is left behind, and its result is dropped.

    Args:
        calls: Tools, and their arguments as :meth:`Tool.arguments` gives them.

    Raises:
        TypeError: If a function returns something else than text.
    """
    jobs = [_Job(tool, arguments) for tool, arguments in calls]
    for job in jobs:
        job.start()
    return [job.result() for job in jobs]


class _Job:
    """One call, in a thread of its own where its time is limited."""

    def __init__(self, tool: Tool, arguments: Mapping[str, Any]) -> None:
        self.tool, self.arguments = tool, arguments
        self.found: Any = None
        self.error: BaseException | None = None
        self.began = 0.0
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        self.began = time.monotonic()
        if self.tool.seconds is None:
            self.run()
            return
        # No pool: at its exit Python waits for the threads of a pool, however long they take.
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        assert self.tool.function is not None  # the environment keeps its own tools to itself
        try:
            self.found = self.tool.function(**self.arguments)
        except (Exception, SystemExit) as error:  # somebody else's code; one bad call is data
            self.error = error

    def result(self) -> ToolResult:
        name = self.tool.name
        if self.thread is not None and self.tool.seconds is not None:
            self.thread.join(max(0.0, self.began + self.tool.seconds - time.monotonic()))
            if self.thread.is_alive():
                logger.warning("the tool %s took longer than %g s", name, self.tool.seconds)
                return ToolResult(failed=True)
        if isinstance(self.error, ToolError):
            return ToolResult(clean_text(f"error: {self.error}"))
        if self.error is not None:
            logger.warning("the tool %s broke: %r", name, self.error)
            return ToolResult(failed=True)
        if not isinstance(self.found, str):
            raise TypeError(
                f"the tool {name!r} must return text, got {type(self.found).__name__}; return "
                "str(...) of it"
            )
        return ToolResult(clean_text(self.found))


TOOLS["get_document"] = Tool(
    "get_document",
    "Gives the whole text of a document that a search has found.",
    {
        "properties": {"id": {"type": "string", "description": "The id of the document."}},
        "required": ["id"],
    },
    None,
)

_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
LARGEST = 1e15
"""Numbers that the calculator knows lie between this and its negative."""


@register_tool
def calculator(expression: str) -> str:
    """Computes an expression of numbers, + - * / // % ** and brackets, such as (3 + 4) / 2.

    >>> calculator("2 ** 10 / 4")
    '256'
    """
    if len(expression) > 200:
        raise ToolError("the expression is longer than 200 characters")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
        return str(int(value)) if value == int(value) else f"{value:.12g}"
    except (SyntaxError, ArithmeticError, ValueError, RecursionError, MemoryError) as error:
        raise ToolError(f"the expression cannot be computed: {error}") from error


def _value(node: ast.AST) -> float:
    value: Any
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = node.value
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        first, second = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            first = float(first)  # a power of whole numbers may have a million digits
        value = _OPERATORS[type(node.op)](first, second)
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](_value(node.operand))
    else:
        raise ValueError("it holds more than numbers and signs")
    if isinstance(value, complex) or not abs(value) <= LARGEST or math.isnan(value):
        raise ValueError("a number in it is too large, or none at all")
    result: float = value
    return result
