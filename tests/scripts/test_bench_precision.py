from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from scripts.benchmarks.precision import CASES, measure
from trainers.config import load_config
from trainers.local import token_batch

Settings = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_batch, "LOGITS_AT_ONCE", token_batch.LOGITS_AT_ONCE)
    torch.set_num_threads(1)


@pytest.mark.parametrize("parts", [True, False])
def test_a_case_measures_every_part_of_a_step(tiny_settings: Settings, parts: bool) -> None:
    words = ["environment.max_searches=2", "environment.num_counterfactuals=2"]
    config = load_config(None, [*tiny_settings(), *words])
    found = measure((config, 3, parts))
    assert min(found[name] for name in ("sampling", "scoring", "update", "planned_gib")) > 0
    assert (token_batch.LOGITS_AT_ONCE == 1 << 40) is not parts


def test_each_case_changes_one_thing_of_the_one_before() -> None:
    precision, checkpointed, parts = zip(*CASES.values(), strict=True)
    assert precision == ("float32", *["bfloat16-autocast"] * 3)
    assert checkpointed == (False, False, True, False)
    assert parts == (True, True, True, False)
