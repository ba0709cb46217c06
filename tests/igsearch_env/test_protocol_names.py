"""Protocols by name: presets, variants of a model's template, files."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from igsearch_env import PROTOCOLS, EnvironmentSettings, TagProtocol, ToolCallProtocol
from igsearch_env.checkpoint_settings import CheckpointSettings
from igsearch_env.protocol.names import (
    check_protocol,
    get_protocol,
    protocol_from_record,
    protocol_record,
)
from igsearch_env.protocol.tags import Frame
from igsearch_env.settings import make_engine

TOML = """\
base = "search-r1"
prompt = \"\"\"Search with <search> query </search>.\\nQuestion: {question}\\n\"\"\"
document = "{rank}. {text}"
"""
TOOLS = ToolCallProtocol(name="calls", prompt="{question}", reply=Frame("</s>", "[R]", "[/R]"))


def test_a_file_changes_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "short.toml"
    file.write_text(TOML)
    protocol = get_protocol(str(file))
    assert protocol == replace(
        PROTOCOLS["search-r1"],
        name="short",
        prompt="Search with <search> query </search>.\nQuestion: {question}\n",
        document="{rank}. {text}",
    )
    assert make_engine(protocol=str(file)).rules.protocol == protocol
    assert EnvironmentSettings(protocol=str(file)).rules.protocol is None  # a policy carries it
    check_protocol(f"chat:{file}")


@pytest.mark.parametrize("protocol", [*PROTOCOLS.values(), TOOLS], ids=lambda p: p.name)
def test_a_file_may_hold_all_of_it(protocol: TagProtocol, tmp_path: Path) -> None:
    file = tmp_path / "whole.json"
    file.write_text(json.dumps(asdict(protocol)))
    assert get_protocol(str(file)) == protocol
    assert protocol_from_record(json.loads(json.dumps(protocol_record(protocol)))) == protocol


def test_what_is_no_preset_is_recorded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert protocol_record(PROTOCOLS["refine"]) == "refine"
    own = replace(PROTOCOLS["refine"], name="own", prompt="{question}!")
    monkeypatch.setitem(PROTOCOLS, "own", own)
    assert get_protocol("own") is own
    record = protocol_record(own)
    assert isinstance(record, dict)  # the file that registers it may change
    assert record["prompt"] == "{question}!"


def test_a_checkpoint_keeps_a_grammar_of_ones_own(tmp_path: Path) -> None:
    own = replace(PROTOCOLS["refine"], name="own", frame=Frame("<e>", "<b>", "<a>"))
    CheckpointSettings(own, 7).save(tmp_path)
    assert CheckpointSettings.load(tmp_path).protocol == own


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.toml", None, "cannot use .*none.toml"),
        ("bad.toml", "prompt =", "cannot use .*bad.toml"),
        ("bad.json", "[1]", "expected a table of fields, got list"),
        ("bad.toml", 'base = "refine"\npromt = "x"', "no field promt; known are answer, "),
        ("bad.toml", 'prompt = "x"', "must hold '{question}'"),
        ("bad.toml", 'think = "t"', "needs a name and a prompt, or a base"),
        ("bad.toml", 'base = "none"', "unknown protocol 'none'"),
        ("bad.toml", 'base = "refine"\nframe = { start = "x" }', "unexpected keyword argument"),
        ("bad.toml", 'base = "refine"\ncall = "x"', "has no base"),
    ],
)
def test_a_file_that_cannot_be_used(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        EnvironmentSettings(protocol=str(tmp_path / name))


def test_a_variant_needs_a_model() -> None:
    settings = EnvironmentSettings(protocol="tools:search-r1")
    with pytest.raises(ValueError, match="rendered from a model's chat template"):
        make_engine(settings=settings)
    with pytest.raises(ValueError, match="unknown protocol 'react'"):
        EnvironmentSettings(protocol="chat:react")
