"""The shape of the shipped policy: a byte-level BPE of whole words, and a small Qwen2 model."""

from __future__ import annotations

import json
import re
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from igsearch_env.data.lexicon import (
    DISTRACTORS,
    FIRST_NAMES,
    NAME_WORDS,
    QUESTION,
    QUESTION_PART,
    RELATIONS,
)
from igsearch_env.protocol.tags import PROTOCOLS

PROTOCOL = PROTOCOLS["refine-bare"]
"""The grammar that the shipped policy writes."""

END = "<|endoftext|>"


def vocabulary() -> list[str]:
    """Every piece of text that is to be one token, in a fixed order.

    These are the words of the embedded world, of its questions and of the protocol with the blank
    before them, and the pieces that Qwen2's tokenizer cuts tags into.
    """
    texts = [*FIRST_NAMES, *(word for words in NAME_WORDS.values() for word in words)]
    for relation in RELATIONS:
        texts += [relation.keyword, relation.noun, *relation.wordings]
    texts += [*DISTRACTORS, QUESTION, QUESTION_PART, "question : search failed invalid"]
    texts += [
        "no complete action",
        "no searches left",
        "empty query",
        "empty answer",
        "nothing was found",
    ]
    words = (word for text in texts for word in re.findall(r"\w+|[.,?:]", _bare(text)))
    tags = [piece for tag in PROTOCOL.tags for piece in (f"<{tag}", tag)]
    pieces = ["question", "invalid", "</", " </", ">", ">\n", "\n"]
    return list(dict.fromkeys([*(f" {word}" for word in words), *tags, *pieces]))


def build_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's tokenizer with merges that make each entry of :func:`vocabulary` one token.

    A word-level tokenizer would be shorter still, but for a Qwen2 model ``AutoTokenizer`` builds
    Qwen2's byte-level one, whatever the checkpoint's files say.
    """
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(vocabulary(), trainer)
    model = json.loads(bpe.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    return Qwen2Tokenizer(model["vocab"], merges, unk_token=END, eos_token=END, pad_token=END)


def _bare(template: str) -> str:
    return re.sub(r"\{\w*\}", " ", template)


def build_model(seed: int = 0, *, layers: int = 3, hidden: int = 128) -> Qwen2ForCausalLM:
    """A fresh model with random weights, in float32.

    Args:
        seed: Seed of the weights; the global generator of torch is left as it was.
        layers: Number of layers.
        hidden: Width; the feed-forward part is 2.5 times as wide, and a head has 32.
    """
    tokenizer = build_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=5 * hidden // 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)
