"""Protocols for chat models: the prompt becomes a user's message, a search may be a tool call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerFast

from igsearch_env.protocol.tags import TagProtocol
from igsearch_env.protocol.tool_calls import ToolCallProtocol

_PLACEHOLDER = "{question}"
_INSTRUCTIONS = """\
Answer the question with the help of the search function; call it as often as you need.
Once you know the answer, write it, and nothing else, inside <answer> and </answer>, \
for example <answer> Lima </answer>.

Question: {question}"""
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


def chat_protocol(protocol: TagProtocol, tokenizer: PreTrainedTokenizerFast) -> TagProtocol:
    """Wrap a protocol's prompt in a tokenizer's chat template.

    Args:
        protocol: The tag grammar.
        tokenizer: A tokenizer with a chat template.

    Returns:
        The same protocol, its prompt a user's message followed by the opening of the reply. The
        template's markers are system text, so they are tokenised as control tokens.

    Raises:
        ValueError: If the tokenizer has no chat template, or the template loses the question.
    """
    message = {"role": "user", "content": protocol.prompt}
    return replace(protocol, prompt=_with_question(_render(tokenizer, [message])))


def tool_protocol(
    tokenizer: PreTrainedTokenizerFast, instructions: str = _INSTRUCTIONS
) -> ToolCallProtocol:
    """The protocol in which a chat model calls ``search(query)`` as its template taught it.

    Everything around calls and replies is cut out of conversations that the template renders.

    Args:
        tokenizer: A tokenizer with a chat template that writes tool calls as JSON inside
            ``<tool_call>``, as those of Qwen2.5, Qwen3 and Hermes do.
        instructions: The user's message; holds ``{question}``.

    Raises:
        ValueError: If the tokenizer has no chat template, or one that writes calls otherwise.
    """
    ask = {"role": "user", "content": instructions}
    prompt = _with_question(_render(tokenizer, [ask], tools=[_SEARCH_TOOL]))
    bare = ToolCallProtocol(name="tool-calls", prompt=prompt)
    call = {"name": "search", "arguments": {"query": "@query@"}}
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": call}],
    }
    reply = {"role": "tool", "name": "search", "content": "@reply@"}
    found = _render(tokenizer, [ask, called, reply], tools=[_SEARCH_TOOL])
    _, written, rest = found.partition(bare.write_search("@query@"))
    opening, replied, closing = rest.partition("@reply@")
    if not written or not replied:
        raise ValueError(
            f"expected a chat template that writes a call as {bare.write_search('@query@')!r} and "
            f"its reply after it, got {found!r}; use chat_protocol for this tokenizer"
        )
    said = [ask, {"role": "assistant", "content": "@turn@"}, {"role": "user", "content": "@text@"}]
    rest = _render(tokenizer, said, tools=[_SEARCH_TOOL]).partition("@turn@")[2]
    head, _, tail = rest.partition("@text@")
    return replace(
        bare,
        frame=(opening, closing),
        correction=head + bare.correction + tail,
        failure=opening + bare.failure + closing,
        reflection=head + bare.reflection.strip() + tail,
    )


def _render(tokenizer: PreTrainedTokenizerFast, messages: list[Any], **options: Any) -> str:
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template; "
            "use the protocol as it is, or set tokenizer.chat_template"
        )
    return str(
        tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **options
        )
    )


def _with_question(prompt: str) -> str:
    if _PLACEHOLDER not in prompt:
        raise ValueError(
            f"expected the chat template to keep {_PLACEHOLDER!r} of the prompt, got {prompt!r}"
        )
    return prompt
