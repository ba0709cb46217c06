"""Options of every program: read before slow packages are loaded, and shown without them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from igsearch_env.cli.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for file in (ROOT / "scripts").rglob("*.py")
    if '__name__ == "__main__"' in file.read_text(encoding="utf-8")
)
PROGRAMS = [*((name,) for name in MODULES), *(("igsearch_env.cli", name) for name in COMMANDS)]
SLOW = ("torch", "transformers", "trl", "datasets", "faiss", "sentence_transformers", "matplotlib")
EXTRAS = (*SLOW, "rich", "pydantic", "scipy", "httpx2", "fastapi", "uvicorn", "filelock", "pyarrow")
RUN = f"""
import json, os, runpy, sys
import gymnasium, bm25s, igsearch_env.cli.program  # what the base install has, once for all
lacking, commands, folder = json.load(sys.stdin)
for name in {EXTRAS} if lacking else ():
    sys.modules[name] = None  # importing it fails, as if it were not installed
for number, (module, *words) in enumerate(commands):
    if os.fork():
        os.wait()
        continue
    for stream in (1, 2):
        os.dup2(os.open(f"{{folder}}/{{number}}.{{stream}}", os.O_CREAT | os.O_WRONLY), stream)
    sys.argv = sys.orig_argv = [module, *words]
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    with open(f"{{folder}}/{{number}}.ended", "w") as file:
        json.dump([code, [name for name in {SLOW} if sys.modules.get(name)]], file)
    os._exit(0)
"""


@dataclass
class Ended:
    output: str
    errors: str
    code: int
    loaded: list[str]


def run(folder: Path, commands: Sequence[Sequence[str]], *, lacking: bool = False) -> list[Ended]:
    """Run programs one after another, each in a fork of one process."""
    asked = json.dumps([lacking, commands, str(folder)])
    subprocess.run([sys.executable, "-c", RUN], cwd=ROOT, input=asked, text=True, check=True)
    found = []
    for number in range(len(commands)):
        code, loaded = json.loads((folder / f"{number}.ended").read_text())
        output, errors = ((folder / f"{number}.{stream}").read_text() for stream in (1, 2))
        found.append(Ended(output, errors, code, loaded))
    return found


def test_there_are_programs() -> None:
    assert {"scripts.train", "scripts.examples.ppo", "scripts.laboratory.gain_signal"} <= {*MODULES}
    assert len(PROGRAMS) > 22


def test_help_needs_no_extra_and_so_loads_nothing_slow(tmp_path: Path) -> None:
    shown = run(tmp_path, [(*program, "--help") for program in PROGRAMS], lacking=True)
    for program, one in zip(PROGRAMS, shown, strict=True):
        assert (one.errors, one.code, one.loaded) == ("", 0, []), program
        assert one.output.startswith("usage: "), program
        assert "options:" in one.output, program


def test_a_mistyped_option_is_refused_in_one_line_before_anything_slow_is_loaded(
    tmp_path: Path,
) -> None:
    ended = run(tmp_path, [(*program, "--nonsense") for program in PROGRAMS])
    for program, one in zip(PROGRAMS, ended, strict=True):
        assert (one.output, one.code, one.loaded) == ("", 2, []), program
        assert one.errors.startswith("error: "), program
        assert one.errors.count("\n") == 1, program


SETTINGS = (
    ("scripts.train", "--set", "optimization.stepz=3"),
    ("scripts.demo", "--set", "optimization.stepz=3"),
    ("scripts.train_openrlhf", "--ig.questions", "world-train", "--ig.retriever", "world"),
    ("scripts.laboratory.gain_signal", "--set", "optimization.stepz=3"),
    ("scripts.benchmarks.precision", "--set", "optimization.stepz=3"),
    ("scripts.laboratory.compare_credit", "develop", "--arms", "stepz"),
    ("igsearch_env.cli", "evaluate", "--stepz", "3"),
)


def test_a_mistyped_setting_is_refused_before_anything_slow_is_loaded(tmp_path: Path) -> None:
    openrlhf = ("--ig.stepz", "3")
    commands = [
        (*words, *(openrlhf if "openrlhf" in words[0] else ()), "--out", str(tmp_path / "out"))
        for words in SETTINGS
    ]
    for words, one in zip(commands, run(tmp_path, commands), strict=True):
        assert one.code == 2, words
        assert not {"torch", "transformers", "trl"} & {*one.loaded}, words
        assert one.errors.count("\n") == 1, words
        assert "stepz" in one.errors, words


def test_a_file_in_place_of_a_folder_is_refused_before_anything_slow_is_loaded(
    tmp_path: Path,
) -> None:
    (tmp_path / "help").mkdir()
    shown = run(tmp_path / "help", [(*program, "--help") for program in PROGRAMS])
    (tmp_path / "file").write_text("kept")
    commands = [
        (*program, option, str(tmp_path / "file" / "in"))
        for program, one in zip(PROGRAMS, shown, strict=True)
        for option in ("--out", "--report")
        if f" {option} " in one.output
    ]
    assert len(commands) > 20
    for words, one in zip(commands, run(tmp_path, commands), strict=True):
        assert (one.output, one.code, one.loaded) == ("", 2, []), words
        assert f": expected a folder, got {tmp_path}/file/in: {tmp_path}/file is" in one.errors
        assert one.errors.count("\n") == 1, words
