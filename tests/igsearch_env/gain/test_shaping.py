"""Shaping: dead zone, damping of losses and the soft clip."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from igsearch_env.gain.shaping import Shaping

GAINS = st.floats(-50.0, 50.0)
SCALES = st.floats(0.05, 10.0)
SHAPINGS = st.builds(
    Shaping,
    dead_zone=st.floats(0.0, 2.0),
    negative_scale=st.floats(0.0, 2.0),
    clip=st.one_of(st.none(), SCALES),
)


@pytest.mark.parametrize(
    ("shaping", "gain", "expected"),
    [
        (Shaping(0.0, 1.0, None), 0.7, 0.7),
        (Shaping(0.0, 1.0, None), -0.7, -0.7),
        (Shaping(0.1, 1.0, None), 0.0999, 0.0),
        (Shaping(0.1, 1.0, None), -0.0999, 0.0),
        (Shaping(0.1, 1.0, None), 0.1, 0.1),  # the zone is open: its edge is paid
        (Shaping(0.1, 1.0, None), -0.1, -0.1),
        (Shaping(0.1, 0.5, None), -0.4, -0.2),
        (Shaping(0.1, 0.5, None), 0.4, 0.4),
        (Shaping(0.3, 0.5, None), -0.4, -0.2),  # the zone is tested before the damping
        (Shaping(0.1, 0.0, None), -5.0, 0.0),
        (Shaping(0.0, 1.0, 1.0), math.e - 1, 1.0),
        (Shaping(0.0, 1.0, 1.0), 1 - math.e, -1.0),
        (Shaping(0.0, 1.0, 2.0), 2.0, 2 * math.log(2.0)),
        (Shaping(0.0, 0.5, 2.0), -4.0, -2 * math.log(2.0)),  # damped, then clipped
        (Shaping(0.1, 1.0, 1.0), 0.0, 0.0),
        (Shaping(0.0, 1.0, 1.0), 0.0, 0.0),
    ],
)
def test_by_hand(shaping: Shaping, gain: float, expected: float) -> None:
    assert shaping(gain) == pytest.approx(expected, abs=1e-12)


def test_defaults() -> None:
    assert Shaping() == Shaping(dead_zone=0.1, negative_scale=1.0, clip=1.0)
    assert Shaping()(-1.0) == pytest.approx(-math.log(2.0))


@settings(deadline=None)
@given(GAINS, st.floats(0.0, 2.0), st.one_of(st.none(), SCALES))
def test_without_damping_it_is_odd(gain: float, dead_zone: float, clip: float | None) -> None:
    shaping = Shaping(dead_zone, 1.0, clip)
    assert shaping(-gain) == -shaping(gain)


@settings(deadline=None)
@given(SHAPINGS, GAINS, GAINS)
def test_it_never_falls_with_the_gain(shaping: Shaping, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert shaping(low) <= shaping(high)


@settings(deadline=None)
@given(st.floats(0.0, 2.0), st.floats(0.1, 2.0), SCALES, GAINS, st.floats(0.01, 5.0))
def test_it_rises_outside_of_the_dead_zone(
    dead_zone: float, scale: float, clip: float, gain: float, more: float
) -> None:
    assume(abs(gain) >= dead_zone and abs(gain + more) >= dead_zone)
    shaping = Shaping(dead_zone, scale, clip)
    assert shaping(gain) < shaping(gain + more)


@settings(deadline=None)
@given(SHAPINGS, GAINS)
@example(Shaping(0.0, 1.0, 1.0), 1e-9)
@example(Shaping(0.0, 0.0, 5.0), 2.2250738585e-313)
def test_bounds(shaping: Shaping, gain: float) -> None:
    """It keeps the sign, never enlarges, and grows no faster than a logarithm."""
    shaped = shaping(gain)
    scaled = abs(gain) * (shaping.negative_scale if gain < 0 else 1.0)
    assert shaped * gain >= 0.0
    assert abs(shaped) <= scaled * (1 + 1e-12) + 1e-300  # subnormal numbers are coarse
    if abs(gain) < shaping.dead_zone:
        assert shaped == 0.0
    elif shaping.clip is not None:
        # log(1 + x) itself is only good to about 1e-16, however small x is.
        expected = shaping.clip * math.log(1 + scaled / shaping.clip)
        assert abs(shaped) == pytest.approx(expected, abs=1e-15 * shaping.clip + 1e-12)


@settings(deadline=None)
@given(st.floats(-1e-4, 1e-4))
def test_the_clip_hardly_touches_small_gains(gain: float) -> None:
    assert Shaping(0.0, 1.0, 1.0)(gain) == pytest.approx(gain, rel=1e-4, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dead_zone": -0.1}, "must be finite and not negative"),
        ({"negative_scale": -1.0}, "must be finite and not negative"),
        ({"clip": 0.0}, "clip must be a finite number above 0, or None for no clip, got 0.0"),
        ({"clip": -2.0}, "clip must be a finite number above 0, or None for no clip, got -2.0"),
    ],
    ids=str,
)
def test_refuses_impossible_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shaping(**options)
