"""The gate for text that others wrote: documents, questions, answers of servers, queries."""

from __future__ import annotations

import re

_STRANGE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LINE_ENDS = re.compile("[\x0b\x0c\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")


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
