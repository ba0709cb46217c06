"""The gate for text: that of others on its way in, and addresses on their way out."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import ValuesView
from typing import Any

DEEPEST = 100
"""Objects and lists inside one another in JSON that others wrote."""

_STRANGE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LINE_ENDS = re.compile("[\x0b\x0c\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
# Up to the last @ of the host's part; or, where a password holds a slash, what is no port.
_LOGIN = re.compile(r"(?<=://)(?:[^/?#]*|[^/?#@:\[]*:(?!\d+[/?#]).*)@", re.DOTALL)
# What a parameter of an address is called that lets its owner in.
_KEY = re.compile(
    r"(?<=[?&;#])([^=&;#\s]*(?:key|token|secret|passw|pwd|auth|signature|credential|sig)[^=&;#\s]*=)"
    r"[^&;#\s\"'<>)\]}]+",
    re.IGNORECASE,
)
_WORD = re.compile(r"\S+")


def clean_text(text: str) -> str:
    r"""A text that every tokenizer, file and server can take.

    - Two halves of a surrogate pair that stand apart become their character, and a half alone
      becomes U+FFFD: no file in UTF-8 and no tokenizer can hold it.
    - Every other line end than ``\n`` and ``\r`` (U+2028, U+2029, U+0085, form feed, vertical tab)
      becomes ``\n``.
    - NUL and the other control characters become blanks, apart from the tab.

    Text without any of these comes back as the same object.

    >>> clean_text("a\x00b\u2028c\ud800d") == "a b\nc\ufffdd"
    True
    """
    if _STRANGE.search(text) is None:
        return text
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _CONTROLS.sub(" ", _LINE_ENDS.sub("\n", whole))


def read_json(text: str | bytes) -> Any:
    """JSON that a server or a stranger wrote.

    Raises:
        ValueError: If it is no JSON, or nested deeper than :data:`DEEPEST`: printing it, or writing
            it again, would exceed Python's stack.
    """
    too_deep = f"the JSON is nested deeper than {DEEPEST} levels"
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(too_deep) from error
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [
            value for values in inner if isinstance(values, list | ValuesView) for value in values
        ]
        if not level:
            return value
    raise ValueError(too_deep)


def parse_toml(text: str) -> dict[str, Any]:
    """TOML that a stranger wrote.

    Raises:
        ValueError: If it is no TOML, or absurdly nested.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("the TOML is nested too deeply") from error


def without_logins(data: Any) -> Any:
    """What may be printed, written down or sent around: addresses lose their login and their keys.

    A key is the value of a parameter such as ``?api_key=`` or ``&token=``; it becomes ``***``.

    Args:
        data: A text, or JSON-ready data with texts in it; anything else comes back as it is.

    >>> without_logins({"index": "http://ann:secret@host:8000/retrieve", "k": 3})
    {'index': 'http://host:8000/retrieve', 'k': 3}
    """
    if isinstance(data, str):
        return _WORD.sub(_without_login, data) if "://" in data else data
    if isinstance(data, dict):
        return {name: without_logins(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_logins(value) for value in data]
    return data


def _without_login(found: re.Match[str]) -> str:
    word = found.group()
    if "://" not in word:
        return word
    before, at, rest = word.rpartition("@")  # without this the pattern would take quadratic time
    return _KEY.sub(r"\1***", _LOGIN.sub("", before + at) + rest)
