"""What a server that refuses a request says, and what it means.

Servers of the OpenAI API agree on neither the form of an error nor its words: an object under
``"error"`` (OpenAI, llama.cpp), a string there (text-generation-inference), an object at the top
(SGLang), a list of one (Gemini), FastAPI's ``"detail"``; with status 400, 413, 422, 500, or 200.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from igsearch_env.text import clean_text

TOO_LONG_CODES = ("context_length_exceeded", "exceed_context_size_error", "request_too_large")
TOO_LONG = re.compile(
    r"context[ _](length|size|window)|max_model_len"  # OpenAI, vLLM, SGLang, llama.cpp, Ollama
    r"|maximum( model| sequence| input| allowed)? length"
    r"|range of input length|model token limit|reduce the length of the (messages|prompt|input)"
    r"|\b(prompt|input)\b.{0,60}\b(too long|too large|longer than)"
    r"|\binput token count\b.{0,40}\bexceeds"  # Gemini
    r"|`?inputs`? (tokens \+|must have less than)",  # text-generation-inference
    re.IGNORECASE | re.DOTALL,
)


class EndpointError(ConnectionError):
    """The server gave no usable answer, however often it was asked."""


class RequestRefusedError(ValueError):
    """The server refuses this request, and would refuse it again.

    Args:
        status: The HTTP status, or the one that the answer names where that was 200.
        error: What the server says.
        url: The server.
    """

    def __init__(self, status: int, error: ServerError, url: str = "") -> None:
        where = f" {url}" if url else ""
        super().__init__(
            f"the endpoint{where} refuses the request with status {status}: "
            f"{error.message or 'no reason'}"
        )
        self.status = status
        self.error = error
        self.url = url


class ContextTooLongError(RequestRefusedError):
    """The transcript, or the transcript and a turn, is longer than the model can read."""


@dataclass(frozen=True)
class ServerError:
    """What an answer says is wrong.

    Args:
        message: In words.
        code: A machine-readable name, or a status.
        kind: Its class, which servers call ``type``.
        param: The field of the request that is to blame.
    """

    message: str
    code: str = ""
    kind: str = ""
    param: str = ""

    def is_too_long(self, status: int) -> bool:
        """Whether it says that the transcript is too long: by status or name first, then words."""
        named = status == 413 or {self.code, self.kind} & set(TOO_LONG_CODES)
        return bool(named or (status != 429 and TOO_LONG.search(self.message)))

    @property
    def status(self) -> int | None:
        """The HTTP status that its code is, if it is one."""
        return int(self.code) if re.fullmatch(r"[45]\d\d", self.code) else None


def read_error(answer: Any, text: str = "") -> ServerError | None:
    """Find the error in an answer.

    Args:
        answer: The decoded JSON, or None if there was none.
        text: The text of the answer, which stands for an error of no known form.

    Returns:
        The error; None if the answer has none, and no text was given.

    >>> read_error({"error": {"message": "too many tokens", "code": 400, "type": "invalid"}})
    ServerError(message='too many tokens', code='400', kind='invalid', param='')
    >>> read_error({"choices": []}) is None
    True
    """
    if isinstance(answer, list) and answer:
        answer = answer[0]
    found: Any = None
    if isinstance(answer, dict):
        found = answer.get("error") or answer.get("detail")
        if not found and (answer.get("object") == "error" or "choices" not in answer):
            found = answer if isinstance(answer.get("message"), str) else None
    if isinstance(found, dict):
        words = {name: found.get(name) for name in ("code", "type", "param")}
        code, kind, param = ("" if word is None else str(word) for word in words.values())
        return ServerError(_short(found.get("message") or found), code, kind, param)
    if found:
        return ServerError(_short(found), kind=str(answer.get("error_type") or ""))
    return ServerError(_short(text)) if text else None


def _short(message: Any) -> str:
    return " ".join(clean_text(str(message)).split())[:500]
