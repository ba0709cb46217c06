"""Agents behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from typing import Literal

Api = Literal["completions", "chat"]
"""``"completions"`` continues a text, ``"chat"`` a conversation."""
RequestField = Literal["max_tokens", "stop", "seed", "temperature"]
"""Fields of a request that not every server accepts."""
