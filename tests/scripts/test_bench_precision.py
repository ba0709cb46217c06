from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from scripts.benchmarks.precision import CASES, measure
from trainers.config import LOGITS_AT_ONCE, load_config

Settings = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_a_case_measures_every_part_of_a_step(tiny_settings: Settings) -> None:
    words = ["environment.max_searches=2", "environment.num_counterfactuals=2"]
    config = load_config(None, [*tiny_settings(), *words])
    found, longer = (measure((config, 3, thought)) for thought in (0, 20))
    assert min(found[name] for name in ("sampling", "scoring", "update", "planned_gib")) > 0
    assert longer["planned_gib"] > found["planned_gib"]


def test_the_cases_are_what_their_names_say(tiny_settings: Settings) -> None:
    for name, words in CASES.items():
        config = load_config(None, [*tiny_settings(), *words])
        precisions = {"float32": "float32", "autocast": "bfloat16-autocast"}
        assert config.policy.precision == precisions.get(name.split(",")[0], "bfloat16")
        assert bool(config.policy.lora.rank) is name.startswith("LoRA")
        assert config.optimization.gradient_checkpointing is ("checkpointed" in name)
        assert (config.optimization.optimizer == "adamw8bit") is ("8-bit" in name)
        assert (config.optimization.micro_batch_size == 1000) is ("all at a time" in name)
        assert config.optimization.micro_batch_tokens == 0
        bound = {"logits whole": 1 << 40, "logits in eighths": LOGITS_AT_ONCE // 8}
        expected = bound.get(name.split(", ")[-1], LOGITS_AT_ONCE)
        assert config.optimization.logits_at_once == expected
