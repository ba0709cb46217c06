"""The file of a warm start that was cut short."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainers.warm_start.state import read_state, write_state

SETTINGS = {"steps": 3}
STATE = {"settings": SETTINGS, "done": 2, "model": {"w": torch.ones(1000)}}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.pt"
    assert read_state(path, SETTINGS) is None
    write_state(path, STATE)
    state = read_state(path, SETTINGS)
    assert state is not None
    assert state["done"] == 2
    assert [one.name for one in path.parent.iterdir()] == ["state.pt"]
    with pytest.raises(ValueError, match="with other settings"):
        read_state(path, {"steps": 4})


@pytest.mark.parametrize("part", [0, 0.5, 0.999])
def test_a_damaged_file_is_named(tmp_path: Path, part: float) -> None:
    path = tmp_path / "state.pt"
    write_state(path, STATE)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match=r"state\.pt is damaged .*remove it to begin anew"):
        read_state(path, SETTINGS)
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"state\.pt is damaged") as found:
        read_state(path, SETTINGS)
    assert "weights_only" not in str(found.value)  # torch's advice would run what the file holds


def test_a_state_that_is_something_else(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "state.pt")
    with pytest.raises(ValueError, match="is damaged"):
        read_state(tmp_path / "state.pt", SETTINGS)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_leaves_the_state_before(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write_state(path, STATE)
    (tmp_path / "state.unfinished").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"cannot write .*state\.pt .*is the disk full"):
        write_state(path, {**STATE, "done": 3})
    state = read_state(path, SETTINGS)
    assert state is not None
    assert state["done"] == 2
    assert [one.name for one in tmp_path.iterdir()] == ["state.pt"]
