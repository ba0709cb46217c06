"""What the teacher of sd_search reads, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from igsearch_env.credit import GRPO, SDSearch
from tests.igsearch_env.credit.test_controls import searching


def test_the_teacher_reads_how_each_rollout_of_the_group_went() -> None:
    batch = [
        searching("a", "b", outcome=1.0),
        searching(outcome=0.0),
        searching("c", outcome=0.4),
        replace(searching("d"), group_id="another"),
        replace(searching(), group_id="nothing"),
    ]
    told = SDSearch(distillation=0.5).hindsight(batch)
    text = (
        "Attempts at the question below:\n"
        "- right: searched for a 0; b 1\n"
        "- wrong: searched for nothing\n"
        "- right: searched for c 0\n"
    )
    alone = "Attempts at the question below:\n- wrong: searched for d 0\n"
    assert told.weight == 0.5
    assert told.texts == [text, text, text, alone, ""]


def test_a_rollout_that_is_left_out_teaches_nothing() -> None:
    out = replace(searching("a", outcome=1.0), unscored=True)
    told = SDSearch().hindsight([out, searching("b", outcome=0.0)])
    assert told.texts == ["", "Attempts at the question below:\n- wrong: searched for b 0\n"]


def test_the_advantages_are_those_of_grpo() -> None:
    batch = [searching("a", outcome=1.0), searching("b", outcome=0.0)]
    for mine, grpo in zip(SDSearch()(batch), GRPO()(batch), strict=True):
        np.testing.assert_array_equal(mine, grpo)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "much"])
def test_a_weight_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="distillation must be a finite number of at least 0"):
        SDSearch(distillation=value)


def test_a_method_has_a_teacher_if_it_says_what_the_teacher_reads() -> None:
    assert SDSearch.has_teacher()
    assert not GRPO.has_teacher()
    assert GRPO().hindsight([]) is None
