"""No cheat earns more than the honest agent, by any reward or credit method, under the defaults."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from igsearch_env.credit import CREDIT
from scripts.benchmarks.cheats import CHEATS, PLACEBO, PUBLISHED, REWARD, beaten, compare

METHODS = [REWARD, *sorted(set(CREDIT) - {*PUBLISHED, PLACEBO})]


@cache
def results(scorer: str, form: str) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in compare(scorer, form, questions=4)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scorer", ["unigram", "policy"])
def test_no_cheat_earns_more(scorer: str, method: str) -> None:
    row = results(scorer, "default")[method]
    assert row["beaten"] == [], row
    assert row["honest"] > 0


def test_the_published_forms_do_not_keep_them_out() -> None:
    """So the cheats can do it, and the test above can fail."""
    paper = results("policy", "paper")
    for method in (REWARD, "ig_search", "ig_search_paper", "enabling"):
        assert "the last query four times more" in paper[method]["beaten"], method
    assert "other searches first" in results("unigram", "default")["igpo_paper"]["beaten"]


def test_every_method_has_a_row() -> None:
    assert results("unigram", "default").keys() == {REWARD, *CREDIT}
    assert {row["cheat"] for row in results("unigram", "default").values()} <= CHEATS.keys()


def test_a_cheat_is_ahead_by_more_than_chance() -> None:
    honest = np.array([1.0, 2.0, 3.0, 4.0])
    assert beaten(honest, honest + np.array([0.1, 0.2, 0.1, 0.2]))
    assert not beaten(honest, honest + 0.001)  # by less than 1 %
    assert not beaten(honest, honest + np.array([2.0, -1.0, 1.0, -1.5]))
    assert not beaten(honest, honest - 1.0)
