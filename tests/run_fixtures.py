"""A checkpoint that searches and answers at random, runs to be looked at, and a browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from agents.transformers_policy import TransformersPolicy
from tests.igsearch_env.cli.hostile import write_hostile_run
from trainers.config import load_config
from trainers.local.grpo import GRPOTrainer
from trainers.warm_start.tiny_policy import PROTOCOL, build_tokenizer

Settings = Callable[..., list[str]]
MadeOnce = Callable[[str, Callable[[Path], object]], Path]

PHRASES = [
    "\n<search> Zencorp lives in Marmora capital </search>",
    "\n<answer> Zencorp exports Marmora </answer>",
    "\n<refine> capital exports lives </refine>",
]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy whose next token is any that follows the last one in :data:`PHRASES`.

    It writes searches, answers and turns that are neither, so that nothing but the seed decides
    how an episode goes.
    """
    tokenizer = build_tokenizer()
    chains = [tokenizer(phrase)["input_ids"] for phrase in PHRASES]
    known = sorted({token for chain in chains for token in chain})
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).eval()
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        weights["lm_head.weight"].zero_()
        weights["model.embed_tokens.weight"].zero_()
        for place, token in enumerate(known):
            weights["model.embed_tokens.weight"][token, place] = 1.0
        for chain in chains:
            for token, successor in pairwise(chain):
                weights["lm_head.weight"][successor, known.index(token)] = 2.0
    folder = tmp_path_factory.mktemp("checkpoint") / "policy"
    TransformersPolicy(model, tokenizer, PROTOCOL, max_new_tokens=16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trained_run(made_once: MadeOnce, tiny_settings: Settings) -> Path:
    """The folder of a training run of three steps whose rollouts were all kept."""
    settings = tiny_settings("run.save_rollouts_every=2", "optimization.questions_per_step=5")
    config = load_config(overrides=settings)
    return made_once("trained-run", lambda folder: GRPOTrainer(config, folder).run())


@pytest.fixture(scope="module")  # until it ends, an event loop runs in the tests' thread
def browser() -> Iterator[Any]:
    """A headless Chromium, as the system has it."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright (it is in the extra dev)"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        # Its sandbox does not start for root, and nothing but our own files is opened.
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def hostile_run(tmp_path: Path) -> Path:
    """A run of one group of two in which markup stands wherever text can."""
    return write_hostile_run(tmp_path)
