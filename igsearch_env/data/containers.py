"""Values of a row that hold others: lists, objects, and text that is a list or an object.

CSV files, pandas and several published question sets store a list as text:
``'["politician", "pol"]'`` (JSON), ``"['politician', 'pol']"`` (Python) or
``"journalist<|answer_split|>journo"`` (DeepResearcher and IGPO). Taken as one answer, such a text
would never be matched. :func:`opened` and :func:`strings` read them.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any

SEPARATOR = "<|answer_split|>"
"""Stands between the answers of one text in the files of DeepResearcher and IGPO."""

_QUOTED = re.compile(r"""[\[{]\s*(?:[bru]?["']|array\()|array\(\s*[\[(]""")
_GOES_ON = re.compile(r"""[\[{][^\]}]*[\]}].*[^\]}]""", re.DOTALL)  # '["Heroes"] (song)'
_SEVERAL = re.compile(r"""["']\s*[,:]""")
_KEYS = ("target", "targets", "ground_truth", "answers", "answer", "text", "value", "aliases")


class BrokenContainerError(ValueError):
    """A text that begins like a list or an object and cannot be read as one."""


def opened(value: Any) -> Any:
    """The list or object that a value is, if it is one; other values come back as they are.

    A text that is a list or an object is parsed, and arrays and tuples become lists. What the list
    or object holds is left as it is.

    Args:
        value: What a column holds.

    Raises:
        BrokenContainerError: If a text begins with a quoted item in brackets or braces, and is
            neither JSON nor a Python literal.

    >>> opened('["a", "b"]'), opened("['a', 'b']"), opened("[REC]")
    (['a', 'b'], ['a', 'b'], '[REC]')
    """
    if isinstance(value, str):
        return _parsed(value)
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        value = value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)  # in an order that is the same in every process
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


def strings(value: Any) -> tuple[str, ...]:
    """All strings that a value holds, in order.

    - Numbers become text (a float without a fraction as a whole number), true and false become
      the two answers "yes" and "true", or "no" and "false".
    - Null, and NaN as pandas writes it, are left out.
    - Of an object, the strings under the keys ``target``, ``targets``, ``ground_truth``,
      ``answers``, ``answer``, ``text``, ``value`` and ``aliases`` are taken.
    - A text that is a list or an object is parsed. What a list in it holds is meant as it stands; a
      field of an object, or a JSON string that is a list or an object, is parsed once more.
    - A text is split at :data:`SEPARATOR`.

    Args:
        value: What a column holds.

    Raises:
        BrokenContainerError: See :func:`opened`.
        ValueError: If an object has none of the keys, or something is none of the above.

    >>> strings('{"target": ["1990", 1991]}'), strings("journalist<|answer_split|>journo")
    (('1990', '1991'), ('journalist', 'journo'))
    """
    return tuple(_strings(value))


def _strings(value: Any, from_text: bool = False) -> Iterator[str]:
    if not from_text:
        from_text = isinstance(value, str)
        value = opened(value)
    if isinstance(value, str):
        parts = value.split(SEPARATOR)
        yield from parts if len(parts) == 1 else (part.strip() for part in parts if part.strip())
    elif isinstance(value, bool):
        yield from ("yes", "true") if value else ("no", "false")
    elif isinstance(value, float) and not math.isfinite(value):
        if not math.isnan(value):
            raise ValueError(f"expected a finite number, got {value!r}")
    elif isinstance(value, int | float):
        yield str(int(value) if value == int(value) else value)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item, from_text)
    elif isinstance(value, dict):
        known = [value[key] for key in _KEYS if key in value]
        if not known:
            raise ValueError(
                f"expected an object with one of the keys {', '.join(_KEYS)}, "
                f"got {', '.join(map(repr, value)) or 'none'}"
            )
        for item in known:
            # A field of an object may be text that was encoded once more.
            yield from _strings(item, from_text and not isinstance(item, str))
    elif value is not None:
        raise ValueError(f"expected strings, numbers or a list of them, got {value!r}")


def _parsed(text: str) -> Any:
    """The list or object that a text is, or the text itself if it is neither."""
    inner = text.strip()
    if inner[:1] == '"' and inner[1:2] in ("[", "{"):
        once_more = _literal(inner)
        if isinstance(once_more, str) and isinstance(found := _parsed(once_more), list | dict):
            return found
    if inner[:1] not in ("[", "{", "(", "a"):
        return text
    value = _literal(inner) if inner[0] != "a" else None
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, dict) or (isinstance(value, list) and (not value or _names(value))):
        return value
    whole = _SEVERAL.search(inner) or not _GOES_ON.fullmatch(inner)
    if value is None and whole and _QUOTED.match(inner):
        shown = inner if len(inner) <= 60 else f"{inner[:57]}..."
        raise BrokenContainerError(
            "expected text that is a whole list or object in JSON or Python, "
            f"got {shown!r}; mend it or, if it is one plain answer, store the text of a JSON "
            "list that holds it"
        )
    return text


def _names(value: list[Any]) -> bool:
    """Whether a list holds text, bytes or null: "[1, 2]" alone may well be an answer."""
    return any(
        isinstance(item, str | bytes | dict | None)
        or (isinstance(item, list | tuple) and _names([*item]))
        for item in value
    )


def _literal(text: str) -> Any:
    """What JSON or Python reads, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return None if _glued(text) else value


def _glued(text: str) -> bool:
    """Whether strings stand side by side: numpy prints ['a' 'b'], which Python reads as ['ab']."""
    before = None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NL, tokenize.NEWLINE):
            continue
        if token.type == before == tokenize.STRING:
            return True
        before = token.type
    return False
