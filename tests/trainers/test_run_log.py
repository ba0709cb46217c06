"""The log of a run that may be killed at any time."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from igsearch_env.files import write_whole
from trainers.local.run_log import RunLog, read_log
from trainers.local.trackers import PROJECT, open_tracker


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


def test_trackers_get_the_numbers_of_each_row(tmp_path: Path) -> None:
    got: list[Any] = []

    class Recorder:
        def log(self, numbers: Mapping[str, float], step: int) -> None:
            got.append((numbers, step))

        def close(self) -> None:
            got.append("closed")

    log = RunLog(tmp_path, 0, [Recorder()])
    log.write({**rows(5)[0], "note": "words are no numbers"})
    log.close()
    assert got == [({"em": 5 / 8, "seconds/update": 0.5}, 5), "closed"]


def test_tensorboard_goes_on_where_the_run_does(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for done, steps in ((0, (1, 2, 3)), (2, (3, 4))):  # step 3 was of a run that was killed
        tracker = open_tracker("tensorboard", tmp_path, done, {})
        for step in steps:
            tracker.log({"em": 10 * done + step}, step)
        tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("em")]
    assert found == [(1, 1), (2, 2), (3, 23), (4, 24)]


def test_weights_and_biases_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    names = set()
    for done in (0, 2):
        tracker = open_tracker("wandb", tmp_path, done, {"run": {"seed": 3}})
        run = wandb.run
        names.add((run.id, run.name, run.project, run.config["run"]["seed"]))
        tracker.log({"em": 0.5 + done}, done + 1)
        tracker.log({"em": 0.0}, done + 2)  # a step is written when the next one begins
        assert run.summary["em"] == 0.5 + done
        tracker.close()
    kept = (tmp_path / "tracker_id.txt").read_text(encoding="utf-8")
    assert names == {(kept, tmp_path.name, PROJECT, 3)}


def test_trackio_keeps_the_numbers_on_this_computer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    for done in (0, 1):
        tracker = open_tracker("trackio", tmp_path, done, {})
        tracker.log({"em": 0.5 + done}, done + 1)
        tracker.close()
    runs = trackio.Api().runs(PROJECT)
    assert len(runs) == 1


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("trackio", "trackio")])
def test_a_missing_tracker_is_named_with_what_installs_it(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"names '{name}', which is not .*: pip install {name}"):
        open_tracker(name, tmp_path, 0, {})


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


@pytest.mark.parametrize("line", ["5", "null", "[1]", '{"step": "x"}', '{"em": 1}', "[" * 9999])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=f"line 2 of {path} is damaged"):
        read_log(path)
    path.write_text('{"step": 1}\n' + line)  # cut short: left out
    assert [row["step"] for row in read_log(path)] == [1]
