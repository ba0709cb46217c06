"""What all subcommands of ``igsearch`` share: help without extras, errors, any encoding."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from igsearch_env.cli.__main__ import COMMANDS, main
from igsearch_env.cli.program import did_you_mean
from igsearch_env.data.world import default_world
from tests.igsearch_env.cli.evaluating import ROOT

EXTRAS = (
    *("rich", "filelock", "httpx2", "tenacity", "uvloop", "fastapi", "uvicorn", "pydantic"),
    *("torch", "transformers", "faiss", "sentence_transformers", "datasets", "pyarrow"),
)
WITHOUT = f"""
import sys
for name in {EXTRAS}:
    sys.modules[name] = None  # importing it fails, as if it were not installed
from igsearch_env.cli.__main__ import main
for words in sys.stdin:
    try:
        main(words.split())
    except SystemExit as ended:
        print("status", ended.code, flush=True)
"""


def without_extras(*commands: str) -> subprocess.CompletedProcess[str]:
    """Run command lines one after another in a process that has the base install only."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT],
        cwd=ROOT,
        input="\n".join(commands),
        capture_output=True,
        text=True,
        check=True,
    )


def test_help_and_mistyped_options_need_no_extra() -> None:
    helped = without_extras("--help", *(f"{name} --help" for name in COMMANDS))
    assert helped.stdout.count("status 0") == 1 + len(COMMANDS)
    for name in COMMANDS:
        assert f"usage: igsearch {name} " in helped.stdout
    assert helped.stderr == ""
    mistyped = without_extras("evalute", "evaluate --out x --questins y", "view", "serve --port x")
    assert mistyped.stdout.split("\n")[:4] == ["status 2"] * 4
    lines = mistyped.stderr.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True] * 4
    assert "no command 'evalute'; did you mean evaluate?" in lines[0]
    assert "--questins y; did you mean --questions? (igsearch evaluate --help" in lines[1]


def test_a_word_that_is_like_no_other_has_no_suggestion() -> None:
    options = ("--k1", "--set", "--title-weight")
    assert [did_you_mean(word, options) for word in ("--kind", "--credit", "--b")] == [""] * 3
    assert did_you_mean("--titel-weight", options) == "; did you mean --title-weight?"


@pytest.mark.parametrize("name", ["scripts.train", "scripts.examples.ppo"])
def test_a_program_of_the_checkout_without_its_packages_says_what_to_install(name: str) -> None:
    command = [sys.executable, "-S", "-m", name]  # -S: no packages
    run, helped = (
        subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, check=False)
        for words in ((), ("--help",))
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert 'pip install -e ".[train]"' in run.stderr
    assert helped.returncode == 0
    assert helped.stderr == ""
    assert f"python -m {name}" in helped.stdout
    assert 'pip install -e ".[train]"' in helped.stdout


def test_an_extra_that_is_missing_is_named() -> None:
    index = "index --corpus world --out nowhere"
    serve = "serve --corpus world"
    missing = without_extras(index, serve, "check http://127.0.0.1:9")
    assert missing.stdout.count("status 2") == 3
    extras = [line.rpartition("igsearch-env[")[2] for line in missing.stderr.splitlines()]
    assert extras == ['eval]"', 'serve]"', 'eval]"']


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_no_encoding_of_the_terminal_ends_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    questions = tmp_path / "問い — ë.jsonl"
    gold = [default_world().documents[0].id]
    row = {"id": "ü", "question": "東京 – Ω?", "golden_answers": ["Ελλάς"], "gold_ids": gold}
    questions.write_text(json.dumps(row) + "\n", encoding="utf-8")
    runs = [str(tmp_path / name) for name in ("ä", "ж")]
    asked = ["--questions", str(questions)]
    for command in (
        *(
            ["evaluate", *asked, "--corpus", "world", "--agent", a, "--out", run]
            for a, run in zip(("oracle", "direct"), runs, strict=True)
        ),
        ["compare", *runs],
        ["view", runs[0]],
        ["index", "--corpus", "world", "--out", str(tmp_path / "ø")],
        ["recall", *asked, "--index", str(tmp_path / "ø"), "--out", str(tmp_path / "œ")],
        ["view", str(tmp_path / "日本")],  # which is not there: the error names it
    ):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit) as ended:
            main(command)
        monkeypatch.undo()
        out, err = (s.buffer.getvalue().decode(encoding) for s in streams if not s.flush())
        assert ended.value.code == (2 if "日本" in command[1] else 0), (command, out, err)
        if encoding == "utf-8" and command[0] == "compare":
            assert "東京 – Ω?" in out
