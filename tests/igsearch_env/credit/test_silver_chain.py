"""Silver chains: bonuses by hand; the arithmetic around them is that of the other bonuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from igsearch_env import Question
from igsearch_env.credit import GRPO
from igsearch_env.credit.silver_chain import SilverChain
from tests.igsearch_env.credit.test_controls import searching
from tests.igsearch_env.credit.test_ig_options import bonuses

ASKED = Question("q", "Who?", ("Lima",), silver_ids=("a", "b"))


def test_each_newly_found_document_pays_its_search() -> None:
    credit = SilverChain(alpha=1.0, normalizer="none")
    batch = [
        searching("x", "ax", "a", "b", question=ASKED),
        searching("ab", "a", question=ASKED),
        searching(question=ASKED),
    ]
    assert bonuses(credit, batch) == [[0.0, 1.0, 0.0, 1.0], [1.0, 0.0], []]


def test_a_question_without_a_chain_learns_as_with_grpo() -> None:
    chainless = replace(ASKED, silver_ids=())
    batch = [searching("a", question=chainless, outcome=value) for value in (1.0, 0.0)]
    for mine, grpo in zip(SilverChain()(batch), GRPO()(batch), strict=True):
        np.testing.assert_array_equal(mine, grpo)


def test_silver_that_nobody_looked_for_is_refused() -> None:
    with pytest.raises(ValueError, match="question 'q' has no silver_ids"):
        SilverChain()([searching("a", question=replace(ASKED, silver_ids=None))])
