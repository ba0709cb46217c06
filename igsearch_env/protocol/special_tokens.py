"""Special tokens in text that others wrote: broken up where a server makes the tokens.

Where token ids are sent, untrusted text cannot become a special token
(:class:`agents.tokenization.SegmentTokenizer`). A server that is sent text, or messages, makes the
tokens itself, and most of them read ``<|im_end|>`` in a document as the end of the message.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from functools import lru_cache

# What published models call their special tokens, by family.
_NAMES = (
    # Llama 2, Mistral, Gemma, T5, BERT, GPT-NeoX, and what most tokenizers begin with
    *("s", "/s", "unk", "pad", "mask", "cls", "sep", "bos", "eos", "eod", "eot", "eop", "sop"),
    *("start_of_turn", "end_of_turn", "start_of_image", "end_of_image", "image_soft_token"),
    r"(?:extra_id|unused|reserved|special|sentinel|custom_token|SPECIAL)[ _-]?\d*",
    r"reserved_special_token_\d+",
    # StarCoder, SmolLM, Qwen, Granite, CodeLlama
    r"fim[_-](?:prefix|middle|suffix|pad)",
    *("PRE", "MID", "SUF", "EOT", "file_sep", "filename", "repo_name", "reponame", "gh_stars"),
    r"(?:issue|commit|jupyter)_\w+",
    *("empty_output", "pr", r"pr_\w+", "intermediate_to_plain"),
    # Tools and thoughts: Qwen, Hermes, GLM, Llama, LFM2, Seed
    r"/?(?:tool_call|tool_calls|tool_response|tool_list|tools|tool|think|arg_key|arg_value)",
    r"/?seed:\w+",
    r"\[begin▁of▁\w+\]",
)
_BRACKETS = (
    *(r"/?INST", r"/?SYSTEM_PROMPT", r"/?AVAILABLE_TOOLS", r"/?TOOL_RESULTS", r"/?TOOL_CONTENT"),
    *("TOOL_CALLS", "CALL_ID", "ARGS", r"/?THINK", r"/?MODEL_SETTINGS", r"IMG(?:_BREAK|_END)?"),
    *("PREFIX", "MIDDLE", "SUFFIX", "CLS", "SEP", "PAD", "MASK", "UNK", "BOS", "EOS", r"[gs]?MASK"),
)
PUBLISHED = "|".join(
    (
        r"<\|[^|<>\n]{1,60}\|?>",  # ChatML, GPT, Llama 3, Phi, GLM; DeepSeek's bars are wide
        r"<<\s?/?SYS\s?>>",
        rf"<(?:{'|'.join(_NAMES)})>",
        rf"\[(?:{'|'.join(_BRACKETS)})\]",
    )
)
"""A pattern of the special tokens of published models."""


def break_up(text: str, known: Collection[str] = (), keep: Collection[str] = ()) -> str:
    """Untrusted text in which no special token stands whole.

    The first character of each becomes another one that looks alike, or a blank follows it.

    Args:
        text: The text.
        known: The special tokens of the model, where they are known; those of published models are
            broken up besides.
        keep: Strings that may stand: those that the grammar has the policy write.

    >>> break_up("Which <file_sep> ? </s> [INST]", keep=["</s>"])
    'Which ‹file_sep> ? </s> [ INST]'
    """
    pattern = _pattern(frozenset(known) - frozenset(keep))

    def broken(found: re.Match[str]) -> str:
        token = found.group()
        if token in keep:
            return token
        return f"‹{token[1:]}" if token[0] == "<" else f"{token[0]} {token[1:]}"

    # A server's normaliser may make a token of wide letters, or drop what has no width.
    for _ in range(len(text)):
        changed = pattern.sub(broken, text)
        plain = _plain(changed)
        hidden = plain != changed and any(m.group() not in keep for m in pattern.finditer(plain))
        if changed == text and not hidden:
            break
        text = plain if hidden else changed
    return text


def _plain(text: str) -> str:
    """The text as a normaliser might leave it: no compatibility forms, nothing without width."""
    if text.isascii():
        return text
    normal = unicodedata.normalize("NFKC", text)
    return "".join(
        one for one in normal if unicodedata.category(one) not in ("Cf", "Cc") or one in "\n\t"
    )


@lru_cache(64)
def _pattern(known: frozenset[str]) -> re.Pattern[str]:
    longest = sorted((one for one in known if len(one.strip()) > 1), key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, longest), PUBLISHED]), re.IGNORECASE)
