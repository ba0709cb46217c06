"""Policies from GGUF files: the weights, the tokenizer, and saving what was read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from agents.loading import load_policy
from tests.agents.conftest import MakeModel

gguf = pytest.importorskip("gguf")
TEXT = "who wrote the book of sand? Zürich 日本 🙂 <search> capital </search>"


def as_llama_cpp(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries or keys in the order in which llama.cpp rotates them."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write(path: Path, model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """What llama.cpp's converter writes for a Llama model with a byte-level BPE."""
    import json

    c = model.config
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(c.max_position_embeddings)
    out.add_embedding_length(c.hidden_size)
    out.add_block_count(c.num_hidden_layers)
    out.add_feed_forward_length(c.intermediate_size)
    out.add_head_count(c.num_attention_heads)
    out.add_head_count_kv(c.num_key_value_heads)
    out.add_rope_dimension_count(c.head_dim)
    out.add_rope_freq_base(10_000.0)
    out.add_layer_norm_rms_eps(c.rms_norm_eps)
    out.add_vocab_size(c.vocab_size)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    special = set(tokenizer.all_special_ids)
    out.add_tokenizer_model("gpt2")
    out.add_token_list(tokenizer.convert_ids_to_tokens(list(range(c.vocab_size))))
    out.add_token_types([3 if i in special else 1 for i in range(c.vocab_size)])
    out.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    out.add_eos_token_id(tokenizer.eos_token_id)
    out.add_bos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name.endswith("q_proj.weight"):
            weight = as_llama_cpp(weight, c.num_attention_heads)
        if name.endswith("k_proj.weight"):
            weight = as_llama_cpp(weight, c.num_key_value_heads)
        out.add_tensor(names.get_name(name, (".weight",)), weight.numpy().astype(np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


@pytest.fixture(scope="module")
def source(make_model: MakeModel, bpe: PreTrainedTokenizerFast) -> Any:
    return make_model("llama", len(bpe), initializer_range=0.1, hidden_size=64, head_dim=16)


@pytest.fixture(scope="module")
def file(
    tmp_path_factory: pytest.TempPathFactory, source: Any, bpe: PreTrainedTokenizerFast
) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write(path, source, bpe)
    return path


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([ids])).logits
    return found


def test_a_file_gives_the_same_ids_and_logits_and_is_saved_as_any_other(
    file: Path, source: Any, bpe: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    policy = load_policy(str(file), "refine-bare", max_new_tokens=7)
    ids = bpe(TEXT)["input_ids"]
    assert policy.tokenizer.tokenizer(TEXT)["input_ids"] == ids
    assert policy.model.dtype == torch.float32
    expected = logits(source, ids)
    torch.testing.assert_close(logits(policy.model, ids), expected, atol=1e-4, rtol=1e-4)
    policy.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    again = load_policy(str(tmp_path))
    assert (again.protocol, again.max_new_tokens) == (policy.protocol, 7)
    torch.testing.assert_close(logits(again.model, ids), logits(policy.model, ids))
    assert again.tokenizer.tokenizer(TEXT)["input_ids"] == ids


def test_what_is_no_such_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        load_policy(str(tmp_path / "absent.gguf"))
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(ValueError, match="cannot read the GGUF file"):
        load_policy(str(tmp_path / "text.gguf"))


@pytest.mark.skipif("IGSEARCH_GGUF" not in os.environ, reason="needs the path of a real model")
def test_a_real_model_knows_a_capital(tmp_path: Path) -> None:
    policy = load_policy(os.environ["IGSEARCH_GGUF"], precision="bfloat16-autocast")
    template: Any = policy.tokenizer.tokenizer.apply_chat_template
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    text = template(asked, tokenize=False, add_generation_prompt=True)
    ids = policy.tokenizer.tokenizer(text, return_tensors="pt")
    written = policy.model.generate(**ids, max_new_tokens=16, do_sample=False)
    assert "Paris" in policy.tokenizer.decode(written[0].tolist())
