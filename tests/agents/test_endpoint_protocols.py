"""Which grammar an endpoint's model is asked to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from agents.chat import protocol_for
from igsearch_env.checkpoint_settings import CheckpointSettings
from igsearch_env.evaluation.settings import EvaluationSettings
from igsearch_env.evaluation.setup import make_evaluation
from igsearch_env.protocol.tags import PROTOCOLS, TagProtocol
from tests.agents.test_templates import tokenizer_for


@pytest.fixture
def folder(bpe: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A served model's folder: a tokenizer with a template, and no weights."""
    tokenizer: Any = tokenizer_for(bpe, "qwen2_5", "qwen")
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    return tmp_path


def protocol_of(folder: Path, protocol: str | None, api: Any = "completions") -> TagProtocol:
    settings = EvaluationSettings(
        questions=("world-test",),
        agent="http://127.0.0.1:9/v1",
        corpus="world",
        model=str(folder),
        api=api,
        limit=1,
        environment={} if protocol is None else {"protocol": protocol},
    )
    evaluation = make_evaluation(settings)
    assert evaluation.engine.rules.protocol == evaluation.player.protocol
    return evaluation.player.protocol


def test_a_served_models_template_is_asked(folder: Path, bpe: PreTrainedTokenizerFast) -> None:
    tokenizer: Any = tokenizer_for(bpe, "qwen2_5", "qwen")
    for name in ("chat", "tools", "chat:search-r1"):
        assert protocol_of(folder, name) == protocol_for(name, tokenizer)
    assert protocol_of(folder, "search-r1") == PROTOCOLS["search-r1"]
    assert protocol_of(folder, None) == PROTOCOLS["refine"]


def test_a_chat_api_frames_messages_itself(folder: Path, bpe: PreTrainedTokenizerFast) -> None:
    assert protocol_of(folder, "chat:search-r1", "chat") == PROTOCOLS["search-r1"]
    with pytest.raises(ValueError, match=r"reads tool calls itself .* --protocol chat:refine"):
        protocol_of(folder, "tools", "chat")
    CheckpointSettings(protocol_for("chat", tokenizer_for(bpe, "qwen2_5", "qwen"))).save(folder)
    assert protocol_of(folder, None).frame.end == "<|im_end|>"
    with pytest.raises(ValueError, match="which a chat API would add once more"):
        protocol_of(folder, None, "chat")


def test_a_template_that_is_not_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"rendered by the tokenizer of .* cannot be loaded"):
        protocol_of(tmp_path / "elsewhere", "tools")
