"""Files that carry the hash of what they hold, and files of others that are absurdly nested."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from igsearch_env.checkpoint_settings import FILE, CheckpointSettings
from igsearch_env.evaluation.folder import EvaluationFolder, read_episodes
from igsearch_env.files import SEAL, read_sealed, write_json, write_sealed
from igsearch_env.protocol.names import get_protocol
from igsearch_env.retrieval.index_directory import CorruptIndexError, parse_manifest
from igsearch_env.text import parse_toml

DEEP = "[" * 100_000
DATA = {"run": {"seed": 3, "rate": 1e-5, "note": "\ud800 é"}, "paths": ["a", "b"], "on": True}


def test_what_is_sealed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    write_sealed(file, {**DATA, 7: ("http://ann:pw@host/a",)})
    assert read_sealed(file) == {**DATA, "7": ["http://host/a"]}
    write_sealed(file, "refine")  # no object, so no hash
    assert read_sealed(file) == "refine"
    write_json(file, DATA)  # as an older version wrote it
    assert read_sealed(file) == DATA


def test_no_flipped_bit_changes_a_sealed_file_in_silence(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    write_sealed(file, DATA)
    whole, noticed = file.read_bytes(), 0
    for place in range(len(whole) * 8):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        file.write_bytes(content)
        try:
            found = read_sealed(file)
        except ValueError:
            noticed += 1
            continue
        found = {name: value for name, value in found.items() if name in DATA}
        assert found == DATA, bytes(content)  # a blank of the layout, or the name of the hash
    assert noticed > len(whole) * 4


def test_a_sealed_file_can_be_edited_on_purpose(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    write_sealed(file, DATA)
    edited = json.loads(file.read_text()) | {"on": False}
    file.write_text(json.dumps(edited))
    with pytest.raises(ValueError, match=r"changed since it was written; .*remove its entry 'sha"):
        read_sealed(file)
    del edited[SEAL]
    file.write_text(json.dumps(edited))
    assert read_sealed(file) == edited


@pytest.mark.parametrize(
    ("name", "read", "words"),
    [
        ("manifest.json", parse_manifest, "manifest.json"),
        ("g.json", lambda folder: get_protocol(str(folder / "g.json")), r"g\.json"),
        ("g.toml", lambda folder: get_protocol(str(folder / "g.toml")), r"g\.toml"),
        (FILE, CheckpointSettings.load, "igsearch.json"),
        ("episodes.jsonl", lambda folder: list(read_episodes(folder / "episodes.jsonl")), "line 1"),
        ("manifest.json", lambda f: EvaluationFolder(f, resume=True).config(), "manifest.json"),
    ],
)
@pytest.mark.parametrize("text", [DEEP, '{"a": ' * 100_000])
def test_absurdly_nested_files_are_refused_by_name(
    name: str, read: Callable[[Path], Any], words: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(f"a = {text}" if name.endswith("toml") else text)
    with pytest.raises(ValueError, match=words):
        read(tmp_path)


@pytest.mark.parametrize("text", [f"a = {DEEP}", "a = " + "{b = " * 5_000])
def test_absurdly_nested_toml_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"nested too deeply|line 1"):
        parse_toml(text)


def test_the_error_of_an_index_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(DEEP)
    with pytest.raises(CorruptIndexError, match="build the index again"):
        parse_manifest(tmp_path)
