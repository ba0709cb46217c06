"""Protocols in the words of a model's own chat template.

The template is asked to render small conversations; the text around their messages becomes the
frames of a protocol. So a transcript is what the template would render of the same conversation,
and a template that prints today's date is asked once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerFast

from agents.tokenization import GuardedTokenizer
from igsearch_env.protocol.names import ProtocolError, get_protocol, variant_of
from igsearch_env.protocol.tags import PROTOCOLS, Frame, TagProtocol, thought_marks
from igsearch_env.protocol.tool_calls import CALL_FORMATS, NO_ID, Call, ToolCallProtocol
from igsearch_env.tools import TOOLS

_PLACEHOLDER = "{question}"
_INSTRUCTIONS = """\
Answer the question with the help of the search function; call it as often as you need.
Once you know the answer, write it, and nothing else, inside <answer> and </answer>, \
for example <answer> Lima </answer>.

Question: {question}"""
_MORE_INSTRUCTIONS = """\
Answer the question with the help of the functions; call them as often as you need.
Once you know the answer, write it, and nothing else, inside <answer> and </answer>, \
for example <answer> Lima </answer>.

Question: {question}"""
PARALLEL_CALLS = 4
"""Most calls of a turn in the variant ``parallel``."""

_SEARCH_TOOL = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Finds passages about a topic.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "What to look for."}},
            "required": ["query"],
        },
    },
}
_THOUGHTS = ("think", "seed:think", "[THINK]")
"""Names of the tags around thoughts that chat templates write."""


def protocol_for(
    protocol: TagProtocol | str | None, tokenizer: PreTrainedTokenizerFast
) -> TagProtocol:
    """The protocol that a name means for a model; see :mod:`igsearch_env.protocol.names`.

    Args:
        protocol: A name, or a protocol, which is returned as it is; None for ``"refine"``.
        tokenizer: The model's.

    Raises:
        ProtocolError: If there is nothing of that name, or the tokenizer's template does not fit.
    """
    if not isinstance(protocol, str):
        return get_protocol(protocol)
    variant, base = variant_of(protocol)
    if variant == "chat":
        return chat_protocol(get_protocol(base), tokenizer)
    if variant is not None:
        max_calls = PARALLEL_CALLS if variant == "parallel" else 1
        return tool_protocol(tokenizer, base=get_protocol(base), max_calls=max_calls)
    return get_protocol(base)


def chat_protocol(protocol: TagProtocol, tokenizer: PreTrainedTokenizerFast) -> TagProtocol:
    """A protocol in messages of a tokenizer's chat template.

    Args:
        protocol: The tag grammar.
        tokenizer: A tokenizer with a chat template.

    Returns:
        The same tags; the prompt and whatever the environment says are messages of the user, the
        turns those of the assistant. The template's markers are system text, so they are tokenised
        as control tokens.

    Raises:
        ProtocolError: If the tokenizer has no chat template, or one that does not fit.
    """
    template = _Template(tokenizer)
    prompt, frame = template.prompt(protocol.prompt), template.frame()
    think = template.think or protocol.think
    return replace(
        protocol,
        name=f"chat:{protocol.name}",
        prompt=prompt,
        documents_block=protocol.documents_block.strip(),
        correction=protocol.correction.strip(),
        failure=protocol.failure.strip(),
        reflection=protocol.reflection.strip(),
        answer_before="",
        think=think,
        thought_end=template.thought_end(prompt, think),
        frame=frame,
        markers=template.markers(prompt, frame),
    )


def tool_protocol(
    tokenizer: PreTrainedTokenizerFast,
    instructions: str | None = None,
    *,
    base: TagProtocol = PROTOCOLS["refine"],
    max_calls: int = 1,
) -> ToolCallProtocol:
    """The protocol in which a chat model calls ``search(query)`` as its template taught it.

    Args:
        tokenizer: A tokenizer with a chat template that writes calls in one of the formats of
            :data:`~igsearch_env.protocol.tool_calls.CALL_FORMATS`.
        instructions: The user's message; holds ``{question}``.
        base: Says how documents and answers are written, and which other tools may be called.
        max_calls: Most calls of a turn, unless the base allows more.

    Raises:
        ProtocolError: If the tokenizer has no chat template, or one that writes calls otherwise,
            or a tool is unknown.
    """
    if unknown := [name for name in base.tools if name not in TOOLS]:
        raise ProtocolError(
            f"the protocol {base.name!r} has the tools {', '.join(unknown)}, and known are "
            f"{', '.join(TOOLS)}; register yours with igsearch_env.tools.register_tool before"
        )
    max_calls = max(max_calls, base.max_calls)
    if instructions is None:
        instructions = _MORE_INSTRUCTIONS if base.tools else _INSTRUCTIONS
    template = _Template(tokenizer, [_SEARCH_TOOL, *(TOOLS[name].schema for name in base.tools)])
    prompt, frame = template.prompt(instructions), template.frame()
    name, call, written, reply, json_reply = template.call()
    think = template.think or base.think
    return ToolCallProtocol(
        name=f"{'tools' if max_calls == 1 else 'parallel'}:{base.name}",
        prompt=prompt,
        answer=base.answer,
        document=base.document,
        no_documents=base.no_documents.strip(),
        reflection=base.reflection.strip(),
        answer_lead=base.answer_lead,
        think=think,
        thought_end=template.thought_end(prompt, think),
        frame=frame,
        markers=template.markers(prompt, frame, written),
        format=name,
        call=call,
        reply=reply,
        json_reply=json_reply,
        max_calls=max_calls,
        between=template.between() if max_calls > 1 else "",
        tools=base.tools,
    )


def _function(query: str) -> dict[str, Any]:
    return {"name": "search", "arguments": {"query": query}}


class _Template:
    """A chat template, asked for what it writes around messages.

    Args:
        tokenizer: The tokenizer that has it.
        tools: Functions that the model may call.

    Raises:
        ProtocolError: If the tokenizer has none.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, tools: Sequence[dict[str, Any]] | None = None
    ) -> None:
        if not tokenizer.chat_template:
            raise ProtocolError(
                f"the tokenizer {tokenizer.name_or_path!r} has no chat template; "
                "use the protocol as it is, or set tokenizer.chat_template"
            )
        self.tokenizer, self.tools = tokenizer, tools
        words = f"{tokenizer.chat_template} {' '.join(tokenizer.get_added_vocab())}"
        self.think = next((name for name in _THOUGHTS if thought_marks(name)[1] in words), None)

    def prompt(self, text: str) -> str:
        """A user's message and the opening of the reply.

        What the tokenizer puts before every text by itself (a BOS token) is left out.
        """
        rendered = self._render([{"role": "user", "content": text}])
        if _PLACEHOLDER not in rendered:
            raise ProtocolError(
                f"expected the chat template to keep {_PLACEHOLDER!r} of the prompt, got "
                f"{rendered!r}"
            )
        leading = GuardedTokenizer(self.tokenizer).leading
        return rendered.removeprefix(str(self.tokenizer.decode(leading)) if leading else "")

    def frame(self) -> Frame:
        """What stands around a user's message that follows a turn."""
        said = [
            {"role": "user", "content": "@ask@"},
            {"role": "assistant", "content": "@turn@"},
            {"role": "user", "content": "@text@"},
        ]
        rest = self._render(said).partition("@turn@")[2]
        before, found, after = rest.partition("@text@")
        if not found:
            raise ProtocolError(
                "expected the chat template to keep every message of a conversation, got "
                f"{self._render(said)!r}"
            )
        return self._frame(before, after)

    def call(self) -> tuple[str, str, str, Frame, bool]:
        """How a call is written: its format, its text, that as rendered, the reply's frame.

        The last value says whether the reply is written as the inside of a JSON string.
        """
        reply = '@re"ply@'
        call = _function("@query@")
        said: list[dict[str, Any]] = [
            {"role": "user", "content": "@ask@"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": NO_ID, "type": "function", "function": call}],
            },
            {"role": "tool", "name": "search", "tool_call_id": NO_ID, "content": reply},
        ]
        rendered = self._render(said).partition("@ask@")[2]
        as_json = '@re\\"ply@'
        body = as_json if as_json in rendered else reply
        written, found, after = rendered.partition(body)
        name, read = self._format(written, self._render(said[:1]).partition("@ask@")[2])
        if read is None or not found:
            raise ProtocolError(
                "expected a chat template that writes a call of search(query) in one of the "
                f"formats {', '.join(CALL_FORMATS)} and its reply after it, got {rendered!r}; use "
                "the chat variant of a protocol for this tokenizer"
            )
        text = written[read.start : read.end]
        before, after = (part.replace(NO_ID, "{id}") for part in (written[read.end :], after))
        frame = self._frame(before, after)
        call_text = text.replace("@query@", "{query}").replace(NO_ID, "{id}")
        return name, call_text, written, frame, body == as_json

    def between(self) -> str:
        """What stands between the replies to two calls of a turn, as for ``ToolCallProtocol``."""
        ids, bodies = ("000000001", "000000002"), ("@one@", "@two@")
        calls = [
            {"id": name, "type": "function", "function": _function(query)}
            for name, query in zip(ids, ("first", "second"), strict=True)
        ]
        replies = [
            {"role": "tool", "name": "search", "tool_call_id": name, "content": body}
            for name, body in zip(ids, bodies, strict=True)
        ]
        asked, called = {"role": "user", "content": "@ask@"}, {"role": "assistant", "content": ""}
        try:
            rendered = self._render([asked, {**called, "tool_calls": calls}, *replies])
        except ProtocolError:  # some templates write one call, and any number of replies
            rendered = self._render([asked, {**called, "tool_calls": calls[:1]}, *replies])
        between, found, _ = rendered.partition(bodies[0])[2].partition(bodies[1])
        if not found:
            raise ProtocolError(
                "expected the chat template to write the replies to two calls of a turn, got "
                f"{rendered!r}; use the variant tools, with one call a turn"
            )
        return between.replace(ids[0], "{previous}").replace(ids[1], "{id}")

    @staticmethod
    def _format(written: str, opening: str) -> tuple[str, Call | None]:
        """The first format that reads a call, and the call."""
        for name, form in CALL_FORMATS.items():
            found = form.find(written, "search", "query")
            if found is None or found.query != "@query@":
                continue
            # What has no opening of its own must stand at the opening of the turn.
            if form.opening or written[: found.start].strip() == opening.strip():
                return name, found
        return "", None

    def thought_end(self, prompt: str, think: str | None) -> str:
        """What closes the thought that a prompt opens, as the template does; empty if none."""
        if think is None or not prompt.rstrip().endswith(thought_marks(think)[0]):
            return ""
        said = [{"role": "user", "content": "@ask@"}, {"role": "assistant", "content": "@turn@"}]
        opening = self._render(said[:1]).partition("@ask@")[2]
        written = self._render(said, add_generation_prompt=False).partition("@ask@")[2]
        closed = written.partition("@turn@")[0].removeprefix(opening)
        closing = thought_marks(think)[1]
        return closed if closed.lstrip().startswith(closing) else f"\n{closing}\n\n"

    def markers(self, *rendered: str | Frame) -> tuple[str, ...]:
        """The control tokens in what was rendered, longest first."""
        parts = (
            (part.end, part.before, part.after) if isinstance(part, Frame) else (part,)
            for part in rendered
        )
        text = "\n".join("\n".join(part) for part in parts)
        tokens = [*self.tokenizer.get_added_vocab(), *self.tokenizer.all_special_tokens]
        known = {token for token in tokens if len(token.strip()) > 1 and token in text}
        return tuple(sorted(known, key=lambda token: (-len(token), token)))

    def _frame(self, before: str, after: str) -> Frame:
        """A frame whose ``end`` is what the policy writes itself when it ends its turn."""
        tokens = sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True)
        eos = self.tokenizer.eos_token
        if eos is not None and eos in before:
            end = before[: before.index(eos) + len(eos)]
        else:
            first = next((t for t in tokens if before.lstrip().startswith(t)), "")
            end = before[: before.index(first) + len(first)] if first else ""
        return Frame(end, before[len(end) :], after)

    def _render(self, messages: list[dict[str, Any]], **options: Any) -> str:
        given = {"tools": self.tools, "add_generation_prompt": True, **options}
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **given))
        except Exception as error:  # templates raise whatever they like
            roles = ", ".join(message["role"] for message in messages)
            reason = " ".join(str(error).split())[:200]
            raise ProtocolError(
                f"the chat template of {self.tokenizer.name_or_path!r} cannot render messages of "
                f"{roles} ({type(error).__name__}: {reason}); "
                + (
                    "it knows no tool calls: use the chat variant of a protocol"
                    if "tool" in roles
                    else "use a preset as it is"
                )
            ) from error
