"""The log of a run that may be killed at any time."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from igsearch_env.files import write_whole
from trainers.local.run_log import RunLog, read_log


def rows(*steps: int) -> list[dict[str, Any]]:
    return [{"step": step, "em": step / 8, "seconds": {"update": 0.5}} for step in steps]


def test_rows_are_appended(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    assert log.last == {}
    for row in rows(1, 2):
        log.write(row)
        assert log.last == row
        assert read_log(log.path)[-1] == row  # at once, so that others can follow the run
    log.close()
    assert read_log(tmp_path / "metrics.jsonl") == rows(1, 2)
    assert read_log(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize(("step", "kept"), [(0, ()), (2, (1, 2)), (9, (1, 2, 3))])
def test_later_rows_are_dropped(tmp_path: Path, step: int, kept: tuple[int, ...]) -> None:
    log = RunLog(tmp_path, 0)
    for row in rows(1, 2, 3):
        log.write(row)
    again = RunLog(tmp_path, step)
    assert read_log(again.path) == rows(*kept)
    assert again.last == (rows(*kept)[-1] if kept else {})
    again.write(rows(step + 1)[0])
    assert read_log(again.path) == rows(*kept, step + 1)


@pytest.mark.parametrize("cut", [1, 10, len(json.dumps(rows(2)[0]))])
def test_a_last_line_that_was_cut_is_left_out(tmp_path: Path, cut: int) -> None:
    log = RunLog(tmp_path, 0)
    log.write(rows(1)[0])
    with log.path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(rows(2)[0])[:cut])
    assert read_log(log.path) == rows(1)
    again = RunLog(tmp_path, 2)
    again.write(rows(2)[0])
    assert read_log(log.path) == rows(1, 2)


def test_tensorboard_is_used_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        assert RunLog(tmp_path, 0)._board is None
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            self.arguments = (folder, purge_step)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append(("closed", 0, 0))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    log = RunLog(tmp_path, 4)
    assert log._board.arguments == (str(tmp_path / "tensorboard"), 5)
    log.write(rows(5)[0])
    log.close()
    assert written == [("em", 5 / 8, 5), ("seconds/update", 0.5, 5), ("closed", 0, 0)]


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file.json"
    write_whole(path, "é\n")
    assert path.read_bytes() == "é\n".encode()

    def killed(self: Path, *args: Any, **kwargs: Any) -> int:
        self.write_bytes(b"hal")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            write_whole(path, "half\n")
    assert path.read_text(encoding="utf-8") == "é\n"
    write_whole(path, "next\n")
    assert [file.name for file in path.parent.iterdir()] == ["file.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is full")
def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    log.path.unlink()
    log.path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
        log.write(rows(1)[0])
    (tmp_path / ".config.json.unfinished").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*/config\.json'"):
        write_whole(tmp_path / "config.json", "{}\n")


@pytest.mark.parametrize("line", ["\0\0\0", "[]", "{}", "7"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    log = RunLog(tmp_path, 0)
    for row in rows(1, 2):
        log.write(row)
    text = log.path.read_text(encoding="utf-8").split("\n")
    log.path.write_text("\n".join([text[0], line, *text[1:]]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2 of .*metrics\.jsonl is damaged .*remove it"):
        RunLog(tmp_path, 1)
