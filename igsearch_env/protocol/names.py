"""Protocols by name: presets, files of a grammar, and variants that a model's own template frames.

=========================  =======================================================================
``refine``                 a preset of :data:`~igsearch_env.protocol.tags.PROTOCOLS`
``grammar.toml``           a file (or .json) with fields of a protocol
``chat``, ``chat:NAME``    NAME (default ``refine``) in messages of the model's chat template
``tools``, ``tools:NAME``  searches are calls of a function, as the chat template writes them
``parallel:NAME``          the same, with several calls in one turn
=========================  =======================================================================

The tools that may be called beside the search engine are those of NAME: ``tools:browse`` has
``get_document``.

A variant needs the model's tokenizer; :func:`agents.chat.protocol_for` makes it.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from igsearch_env.protocol.tags import PROTOCOLS, TagProtocol
from igsearch_env.protocol.tool_calls import ToolCallProtocol
from igsearch_env.text import parse_toml, read_json

VARIANTS = ("chat", "tools", "parallel")
_BUILT_IN = dict(PROTOCOLS)


class ProtocolError(ValueError):
    """A protocol that cannot be had: nothing of that name, a bad file, a template that differs."""


def variant_of(name: str) -> tuple[str | None, str]:
    """The variant that a name asks for, or None, and the name of what it is a variant of.

    >>> variant_of("chat:search-r1"), variant_of("tools"), variant_of("refine-bare")
    (('chat', 'search-r1'), ('tools', 'refine'), (None, 'refine-bare'))
    """
    variant, _, base = name.partition(":")
    return (variant, base or "refine") if variant in VARIANTS else (None, name)


def get_protocol(protocol: TagProtocol | str | None) -> TagProtocol:
    """Look up a preset or read a file of a grammar; a protocol is returned as it is.

    Args:
        protocol: A name or a protocol; None for ``"refine"``.

    Raises:
        ProtocolError: If there is nothing of that name, the file cannot be used, or it is a variant
            that only a model's tokenizer can make.
    """
    if isinstance(protocol, TagProtocol):
        return protocol
    name = "refine" if protocol is None else protocol
    if not isinstance(name, str):
        raise ProtocolError(f"unknown protocol {name!r}: expected a name or a TagProtocol")
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    if variant_of(name)[0]:
        raise ProtocolError(
            f"the protocol {name!r} is rendered from a model's chat template, and there is no "
            "model here; give a preset or a file of a grammar"
        )
    if Path(name).suffix in (".toml", ".json"):
        return _read(Path(name))
    known = ", ".join(sorted(PROTOCOLS))
    raise ProtocolError(
        f"unknown protocol {name!r}; known are {known}, chat, tools, chat:NAME and tools:NAME, or "
        "give a .toml or .json file of a grammar, or a TagProtocol; names of your own need "
        "--import FILE"
    )


def check_protocol(name: str | None) -> None:
    """Check a name as far as that goes without a model.

    Raises:
        ProtocolError: If there is nothing of that name.
    """
    get_protocol(None if name is None else variant_of(name)[1] if isinstance(name, str) else name)


def protocol_record(protocol: TagProtocol) -> str | dict[str, Any]:
    """A protocol as JSON-ready data: the name of a built-in preset, or else all of its fields.

    A class of one's own is known by its name alone.
    """
    whole = type(protocol) in (TagProtocol, ToolCallProtocol)
    if _BUILT_IN.get(protocol.name) == protocol or not whole:
        return protocol.name
    return asdict(protocol)


def protocol_from_record(data: Any) -> TagProtocol:
    """The protocol that :func:`protocol_record` wrote, or a user in a file.

    ``base`` in the data names a preset; the other fields are what differs from it.

    Raises:
        ValueError: If a field is unknown, or the protocol cannot be used.
    """
    if not isinstance(data, dict):
        return get_protocol(data)
    given = dict(data)
    base = given.pop("base", None)
    tools = "call" in given or "function" in given
    kind = ToolCallProtocol if tools else TagProtocol
    known = {field.name for field in fields(kind)}
    if strange := sorted(given.keys() - known):
        raise ValueError(
            f"a protocol has no field {', '.join(strange)}; known are {', '.join(sorted(known))}"
        )
    if base is None:
        if "name" not in given or "prompt" not in given:
            raise ValueError("a protocol needs a name and a prompt, or a base: name a preset")
        return kind(**given)
    if tools:
        raise ValueError("a protocol with calls of a function has no base; give all its fields")
    return replace(get_protocol(base), **given)


def _read(file: Path) -> TagProtocol:
    try:
        text = file.read_text(encoding="utf-8-sig")  # as Windows writes
        data: Any = parse_toml(text) if file.suffix == ".toml" else read_json(text)
        if not isinstance(data, dict):
            raise ValueError(f"expected a table of fields, got {type(data).__name__}")
        return protocol_from_record({"name": file.stem, **data})
    except (OSError, ValueError, TypeError) as error:
        raise ProtocolError(f"cannot use {file} as the file of a protocol ({error})") from error
