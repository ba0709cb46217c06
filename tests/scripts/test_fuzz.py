"""The targets of the fuzzer: on their seeds, on input of hypothesis, and shortly on atheris."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.campaigns import fuzz


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_seeds(name: str) -> None:
    seeds = sorted((fuzz.SEEDS / name).iterdir())
    assert seeds
    for seed in seeds:
        fuzz.TARGETS[name](seed.read_bytes())


@pytest.mark.parametrize("name", fuzz.TARGETS)
@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200))
def test_random_input(name: str, data: bytes) -> None:
    fuzz.TARGETS[name](data)


def test_every_input_belongs_to_a_target() -> None:
    assert sum(fuzz.SHARES.values()) == pytest.approx(1.0)


def test_the_fuzzer_finds_what_is_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("atheris")
    fuzz.main(["--target", "wire", "--inputs", "200", "--out", str(tmp_path)])
    assert "200 inputs in total; failed: none" in capfd.readouterr().out
    assert any((tmp_path / "wire" / "corpus").iterdir())

    fuzz.main(["--target", "wire", "--inputs", "200", "--out", str(tmp_path)])
    assert capfd.readouterr().out == "200 inputs in total; failed: none\n"  # it was done already


def test_a_violation_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """An escape that forgets one tag."""
    leaky = fuzz.PROTOCOLS["refine"]
    monkeypatch.setattr(type(leaky), "escape", lambda self, text: text)
    pieces = list(fuzz.PIECES)
    tag = bytes([sorted(fuzz.PROTOCOLS).index("refine"), 1, 0, pieces.index("<search>")])
    with pytest.raises(AssertionError):
        fuzz.escaping(tag)
