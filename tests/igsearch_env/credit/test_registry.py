"""The registry of credit methods."""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from igsearch_env import Episode, Question
from igsearch_env.credit import (
    CREDIT,
    GRPO,
    CreditAssignment,
    IGSearch,
    assign_credit,
    make_credit,
    register_credit,
)
from tests.igsearch_env.credit import rollouts
from tests.igsearch_env.fakes import finished, policy_step


def test_the_methods() -> None:
    assert {"outcome": GRPO, "ig_search": IGSearch}.items() <= CREDIT.items()


@settings(deadline=None, max_examples=30)
@given(rollouts.batches(), st.sampled_from(sorted(CREDIT)))
def test_whatever_was_played_each_token_gets_a_number(batch: list[Episode], name: str) -> None:
    question = Question(
        "q", "Who?", ("Lima",), gold_ids=("a",), silver_ids=("a",), answer_distances=(("a", 0),)
    )
    batch = [replace(episode, question=question) for episode in batch]
    arrays = make_credit(name)(batch)
    assert [array.shape for array in arrays] == [(e.policy_tokens,) for e in batch]
    for episode, array in zip(batch, arrays, strict=True):
        assert array.dtype == np.float64
        assert np.isfinite(array).all()
        if episode.retrieval_failed:
            assert not array.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda a: [*a[:-1], a[-1] * np.nan], r"finite advantages, got nan for \d+ tokens"),
        (lambda a: [*a[:-1], a[-1] + np.inf], r"finite advantages, got inf for \d+ tokens"),
        (lambda a: a[:-1], "one array per episode, so 2, got 1"),
        (lambda a: [*a[:-1], a[-1][1:]], r"one advantage per policy token, shape \(\d+,\)"),
    ],
)
def test_what_a_method_returns_is_checked(wrong: Any, message: str) -> None:
    class Wrong(CreditAssignment):
        def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
            arrays: list[NDArray[np.float64]] = wrong(GRPO()(episodes))
            return arrays

    batch = [finished(float(n), [policy_step("answer", 0, 4)]) for n in range(2)]
    assert [len(array) for array in assign_credit(GRPO(), batch)] == [4, 4]
    with pytest.raises(ValueError, match=message):
        assign_credit(Wrong(), batch)


def test_the_page_of_methods_names_every_method_and_option() -> None:
    text = (Path(__file__).parents[3] / "docs/concepts/credit.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, flags=re.MULTILINE))
    assert rows.keys() >= CREDIT.keys()
    for name, method in CREDIT.items():
        row = rows[name]
        for like in re.findall(r"as `(\w+)`", row):
            row += rows[like]
        options: Any = fields(method)  # type: ignore[arg-type]
        for option in options:
            assert f"`{option.name}`" in row, (name, option.name)
            if isinstance(option.default, str):
                assert f"`{option.name}` {option.default}" in row, (name, option.name)


def test_options_are_bound_at_construction() -> None:
    credit: Any = make_credit("ig_search", alpha=0.7, normalizer="none")
    assert credit == IGSearch(alpha=0.7, normalizer="none")
    with pytest.raises(FrozenInstanceError):
        credit.alpha = 1.0
    assert pickle.loads(pickle.dumps(credit)) == credit


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown credit method 'ppo'; known are .*ig_search"):
        make_credit("ppo")


def test_an_unknown_option() -> None:
    with pytest.raises(TypeError, match="beta"):
        make_credit("ig_search", beta=1.0)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A copy of the registry, which a test may add to."""
    copy: dict[str, Any] = dict(CREDIT)
    monkeypatch.setattr("igsearch_env.credit.base.CREDIT", copy)
    return copy


class Ones(CreditAssignment):
    """1 on every token; a method without options."""

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        return [np.ones(episode.policy_tokens) for episode in episodes]


def test_a_method_of_ones_own(registry: dict[str, Any]) -> None:
    @register_credit("constant")
    @dataclass(frozen=True)
    class Constant(Ones):
        value: float = 1.0
        most: ClassVar[float] = 9.0

        def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
            return [self.value * array for array in super().__call__(episodes)]

    (array,) = make_credit("constant", value=2.0)([finished(1.0, [policy_step("answer", 0, 2)])])
    assert array.tolist() == [2.0, 2.0]
    with pytest.raises(ValueError, match="named 'constant' exists already; choose another name"):
        register_credit("constant")(Constant)
    assert registry["constant"] is Constant


def test_the_defaults_hold_for_every_method() -> None:
    credit = Ones()
    steps = [policy_step("search", 0, 1, search_step=0), policy_step("answer", 1, 1)]
    assert credit.uses_information_gain
    assert not credit.uses_belief
    assert not credit.uses_enabling
    assert not credit.uses_hindsight_shift
    assert not credit.uses_silver
    assert not credit.uses_answer_distances
    assert credit.needs_gain([finished(1.0, steps), finished(0.0)]) == [[True], []]
    assert credit.at(0.5) is credit


KNOWN = (
    "uses_information_gain, uses_belief, uses_enabling, uses_hindsight_shift, uses_silver, "
    "uses_answer_distances, needs_gain, hindsight, at"
)


@pytest.mark.parametrize(
    ("body", "annotated"),
    [
        ({"uses_information_gian": False}, {}),
        ({"use_information_gain": False}, {}),
        ({"uses_information_gian": False}, {"uses_information_gian": "ClassVar[bool]"}),
        ({}, {"uses_information_gian": "bool"}),
        ({"uses_answer_log_probs": True}, {}),
        ({"uses_gain": False}, {"uses_gain": "ClassVar[bool]"}),
        ({"uses_beliefs": property(lambda self: True)}, {}),
        ({"needs_gains": lambda self, episodes: []}, {}),
        ({"need_gain": lambda self, episodes: []}, {}),
        ({"scale": 2.0}, {}),
    ],
)
def test_a_name_that_would_be_ignored_is_refused(
    body: dict[str, Any], annotated: dict[str, str]
) -> None:
    (name,) = {**body, **annotated}
    with pytest.raises(TypeError, match=rf"Mine\.{name} is not among .*: {KNOWN}"):
        type("Mine", (Ones,), {**body, "__annotations__": annotated})


def test_the_name_that_was_meant_is_told() -> None:
    with pytest.raises(TypeError, match=r"did you mean uses_information_gain\?"):
        type("Mine", (Ones,), {"uses_information_gian": False})


def test_names_of_the_methods_own_are_free() -> None:
    """Options, helpers and constants, even those that have letters of a known name."""

    class Mine(Ones):
        rate: float = 0.5
        beta: float = 0.5
        limit: ClassVar[int] = 3
        _cache = 0

        def gains(self) -> None: ...

        @property
        def gain(self) -> float:
            return 1.0

        @staticmethod
        def bat() -> None: ...

    assert Mine().gain == 1.0


class Plain:
    """No credit method, though it looks like one; the flag would be ignored."""

    uses_information_gian = False

    def __call__(self, episodes: Sequence[Episode]) -> list[NDArray[np.float64]]:
        return []


class Unfinished(CreditAssignment):
    """Has no ``__call__``."""


@dataclass(frozen=True)
class Text(Ones):
    """A flag that is no truth value."""

    uses_belief = "no"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Plain, rf"must derive from igsearch_env\.credit\.CreditAssignment, .* of {KNOWN}; got"),
        (lambda episodes: [], r"must derive from .* got <function"),
        (Unfinished, r"Unfinished has no __call__\(episodes\)"),
        (Ones, r"Ones is no dataclass.* write @dataclass\(frozen=True\) between"),
        (Text, r"Text\.uses_belief must be True or False, got 'no'"),
    ],
)
def test_what_is_no_method_is_refused(registry: dict[str, Any], method: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        register_credit("mine")(method)
    assert "mine" not in registry


def test_a_name_is_given_once() -> None:
    before = dict(CREDIT)
    with pytest.raises(ValueError, match="named 'outcome' exists already"):
        register_credit("outcome")(GRPO)
    assert before == CREDIT
