"""Tokenising text so that untrusted parts of it can never become control tokens.

It does not rely on the tokenizer's flags: ``split_special_tokens`` spares added tokens that are not
marked special (``<tool_call>``), and a normaliser can make a marker out of other characters. What
counts is the ids that come out.
"""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise

from transformers import PreTrainedTokenizerFast

Tokens = tuple[tuple[int, ...], tuple[tuple[int, int], ...]]
"""Ids and, for each of them, the characters ``[start, end)`` that it stands for."""


class GuardedTokenizer:
    """Tokenises text of which only a leading part may form control tokens.

    It works on a copy of its own, whose settings are made once. So it does not matter how others
    call the tokenizer, which sets its padding and truncation for all later calls; and any number of
    threads may tokenise and decode at once, as long as nothing is set meanwhile.

    Control tokens are the added tokens, special or not, except for those of whitespace only, the
    unknown token and words of one character. Where untrusted text would form one, it is cut after
    the token's first character and the pieces are tokenised apart.

    Args:
        tokenizer: A fast tokenizer.

    Attributes:
        backend: The copy.

    Raises:
        ValueError: If it has a special token of one character, which no cut could keep out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._control = _control_ids(tokenizer)
        self.backend = deepcopy(tokenizer.backend_tokenizer)
        self.backend.no_padding()
        self.backend.no_truncation()
        self.backend.encode_special_tokens = False

    def tokenise(self, text: str, trusted: int) -> Tokens:
        """Tokenise without adding special tokens.

        Args:
            text: The text.
            trusted: Control tokens may end within this many leading characters, not after.

        Raises:
            ValueError: If a single character becomes a control token.
        """
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        pending = [(0, len(text))]  # pieces still to be tokenised, the first of them last
        while pending:
            start, end = pending.pop()
            piece_ids, piece_spans = self._piece(text, start, end)
            cuts = [
                _cut(text, *span)
                for token, span in zip(piece_ids, piece_spans, strict=True)
                if token in self._control and span[1] > trusted
            ]
            if cuts:
                bounds = [start, *cuts, end]
                pending.extend(reversed(list(pairwise(bounds))))
            else:
                ids.extend(piece_ids)
                spans.extend(piece_spans)
        return tuple(ids), tuple(spans)

    def _piece(self, text: str, start: int, end: int) -> Tokens:
        encoding = self.backend.encode(text[start:end], add_special_tokens=False)
        offsets = ((start + first, start + last) for first, last in encoding.offsets)
        return tuple(encoding.ids), tuple(offsets)


def _control_ids(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    control = set()
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if not token.content.strip() or token_id == tokenizer.unk_token_id:
            continue
        if len(token.content) > 1:
            control.add(token_id)
        elif token.special:
            raise ValueError(
                f"the special token {token.content!r} is one character long, so a document that "
                "holds this character would become a control token; give it a longer name"
            )
    return frozenset(control)


def _cut(text: str, start: int, end: int) -> int:
    """Where to cut a control token: after its first character that is no blank."""
    cut = end - len(text[start:end].lstrip()) + 1
    if cut >= end:
        raise ValueError(
            f"the tokenizer turns {text[start:end]!r} into a control token, "
            "and a single character cannot be cut; remove that token or its normalisation"
        )
    return cut
