"""The training program: killed and resumed, and what it says when it cannot run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from agents.loading import POLICIES
from igsearch_env.cli.program import run
from igsearch_env.cli.view import main as view
from igsearch_env.credit import CREDIT
from igsearch_env.evaluation.metrics import METRICS
from igsearch_env.outcome import COMPONENTS
from igsearch_env.retrieval.open import RETRIEVERS
from scripts.train import last_step, main

ROOT = Path(__file__).resolve().parents[2]
Settings = Callable[..., list[str]]
STEPS = 8
RUN = (
    f"optimization.steps={STEPS}",
    "optimization.kl=0.05",
    "optimization.minibatches=2",
    "optimization.micro_batch_size=3",
    "optimization.schedule=cosine",
    "optimization.warmup_steps=3",
    "environment.counterfactual=documents+refinement",
    "run.checkpoint_every=3",
    "run.eval_every=4",
    "run.eval_limit=4",
    "run.save_rollouts_every=5",
)


def arguments(out: Path, settings: Sequence[str], *flags: str) -> list[str]:
    overrides = [part for setting in settings for part in ("--set", setting)]
    return ["--out", str(out), *overrides, *flags]


def start(*words: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.train", *arguments(*words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the program in this process; returns its exit code."""

    def call(*words: Any) -> int:
        monkeypatch.setattr(sys, "argv", ["train", *arguments(*words)])
        with pytest.raises(SystemExit) as ended:
            run(main)
        code = ended.value.code
        assert isinstance(code, int)
        return code

    return call


def rows(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [{**json.loads(line), "seconds": None} for line in lines]


def saved(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").glob("step-*"))


def kill_after(process: subprocess.Popen[str], out: Path, step: int) -> None:
    """SIGKILL as soon as a step's row is there, that is, in the middle of what follows it."""
    deadline = time.monotonic() + 200
    while len(rows(out)) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    _, stderr = process.communicate()
    assert process.returncode == -9, stderr
    assert step <= len(rows(out)) < STEPS
    assert not (out / "policy").exists()


def assert_same_tensors(one: Path, other: Path) -> None:
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    assert len(left) > 10
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_run_that_is_killed_ends_like_one_that_is_not(
    tmp_path: Path, tiny_settings: Settings, taught_policy: Path, train: Callable[..., int]
) -> None:
    settings = tiny_settings(*RUN)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    kill_after(start(cut, settings), cut, 4)
    assert saved(cut)[0] == "step-000003"
    reached = int(saved(cut)[-1][-6:])
    last = start(cut, [], "--resume")  # its own settings are enough
    stdout, stderr = last.communicate(timeout=200)
    assert last.returncode == 0, stderr
    assert f"going on after step {reached}" in stdout
    assert f"last step ({STEPS})" in stdout
    assert train(whole, settings) == 0
    assert [row["step"] for row in rows(whole)] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows(whole) if "eval" in row] == [4, 8]
    assert rows(whole)[-1]["kl"] > 0
    assert rows(whole) == rows(cut)
    weights = "policy/model.safetensors"
    assert_same_tensors(whole / weights, cut / weights)
    with pytest.raises(AssertionError):
        assert_same_tensors(taught_policy / "model.safetensors", cut / weights)
    results = [json.loads((out / "results.json").read_text()) for out in (whole, cut)]
    assert [{**one, "seconds": None} for one in results] == [rows(whole)[-1]] * 2
    assert saved(whole) == saved(cut) == ["step-000006", "step-000008"]
    kept = [path.name for path in sorted((whole / "rollouts").iterdir())]
    assert kept == [f"step-{step:06d}.jsonl" for step in (1, 5, 8)]
    for name in kept:
        assert (whole / "rollouts" / name).read_bytes() == (cut / "rollouts" / name).read_bytes()


def test_a_finished_run_stays_as_it_is(
    tmp_path: Path, tiny_settings: Settings, train: Callable[..., int]
) -> None:
    out = tmp_path / "run"
    assert train(out, tiny_settings("optimization.steps=2")) == 0
    names = ("metrics.jsonl", "results.json", "config.json", "view.html")
    files = (*names, "policy/model.safetensors", "rollouts/step-000001.jsonl")
    before = [(out / name).read_bytes() for name in files]
    assert train(out, [], "--resume") == 0
    assert [(out / name).read_bytes() for name in files] == before


def test_the_settings_come_from_a_file_too(
    tmp_path: Path, tiny_settings: Settings, train: Callable[..., int]
) -> None:
    config = tmp_path / "run.toml"
    config.write_text('[credit]\nmethod = "outcome"\n[run]\nseed = 3\n')
    plain = tiny_settings("optimization.steps=1", "run.seed=4")
    settings = [setting for setting in plain if not setting.startswith("credit")]
    assert train(tmp_path / "run", settings, "--config", str(config)) == 0
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["credit"] == {"method": "outcome"}
    assert written["run"]["seed"] == 4
    assert "information_gain" not in rows(tmp_path / "run")[0]


def test_a_method_of_ones_own_is_imported_first_and_again_by_resume(
    tmp_path: Path, tiny_settings: Settings, train: Callable[..., int]
) -> None:
    file = tmp_path / "my_credit.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "import numpy as np\n"
        "from igsearch_env import CreditAssignment, register_credit\n"
        "@register_credit('constant')\n"
        "@dataclass(frozen=True)\n"
        "class Constant(CreditAssignment):\n"
        "    uses_information_gain = False\n"
        "    def __call__(self, episodes):\n"
        "        return [np.ones(episode.policy_tokens) for episode in episodes]\n"
        "from igsearch_env.evaluation.metrics import Metric, register_metric\n"
        "register_metric(Metric('turns_taken', 'turns', lambda e: [float(len(e.steps))]))\n"
    )
    settings = tiny_settings("optimization.steps=1", "credit.method=constant")

    def forget() -> None:
        """What another process would not know."""
        del CREDIT["constant"]
        del METRICS["turns_taken"]
        del sys.modules["igsearch_plugin_my_credit"]

    assert train(tmp_path / "run", settings) == 2
    assert train(tmp_path / "run", settings, "--import", str(file)) == 0
    forget()
    assert train(tmp_path / "run", ["optimization.steps=2"], "--resume") == 0
    assert len(rows(tmp_path / "run")) == 2
    forget()
    page = tmp_path / "run" / "view.html"
    page.unlink()
    view([str(tmp_path / "run"), "--import", str(file)])
    assert "turns_taken" in page.read_text()
    forget()


def test_a_retriever_a_policy_and_an_outcome_of_ones_own(
    tmp_path: Path, tiny_settings: Settings, train: Callable[..., int], taught_policy: Path
) -> None:
    file = tmp_path / "my_parts.py"
    file.write_text(
        "from agents.loading import load_policy, register_policy\n"
        "from igsearch_env import Document, register_retriever\n"
        "from igsearch_env.outcome import register_component\n"
        "class One:\n"
        "    def search(self, queries, k):\n"
        "        return [[Document('mine', 'A page', 'of mine')] for _ in queries]\n"
        "register_retriever('one-page')(lambda rest: One())\n"
        "@register_policy('my-policy')\n"
        "def policy(protocol, **options):\n"
        f"    return load_policy({str(taught_policy)!r}, protocol, **options)\n"
        "register_component('seven')(lambda episode: 7.0)\n"
    )
    settings = [
        *tiny_settings("optimization.steps=1"),
        "environment.retriever=one-page",
        "policy.path=my-policy",
        "environment.outcome=seven",
    ]
    try:
        assert train(tmp_path / "run", settings) == 2
        assert train(tmp_path / "run", settings, "--import", str(file)) == 0
        assert rows(tmp_path / "run")[0]["outcome"] == 7.0
        played = (tmp_path / "run" / "rollouts" / "step-000001.jsonl").read_text()
        assert "of mine" in played
    finally:
        del COMPONENTS["seven"]
        POLICIES.clear()
        RETRIEVERS.pop("one-page", None)
        del sys.modules["igsearch_plugin_my_parts"]


def test_help_and_typos_load_nothing_heavy(tmp_path: Path) -> None:
    check = (
        "import sys\n"
        "from scripts.train import main\n"
        "try: main(sys.argv[1:])\n"
        "except (ValueError, SystemExit) as ended: print(ended, file=sys.stderr)\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
    )
    out = ["--out", str(tmp_path / "run"), "--set"]
    for words, said in (
        (["--help"], "0"),
        ([*out, "run.sed=1"], "did you mean run.seed?"),
        ([*out, "credit.alhpa=1"], "does not take alhpa"),
    ):
        command = [sys.executable, "-c", check, *words]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert said in ended.stderr


def test_smoke(tmp_path: Path, taught_policy: Path, train: Callable[..., int]) -> None:
    settings = [f"policy.path={json.dumps(str(taught_policy))}", "run.threads=1"]
    assert train(tmp_path / "run", settings, "--smoke") == 0
    assert len(rows(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    ("folder", "settings", "flags", "message"),
    [
        ("used", ["run.seed=0"], (), "holds a run already; pass --resume"),
        ("used", ["run.seed=0"], ("--resume",), "has other settings (world.people"),
        ("new", [], ("--resume",), "there is no run to resume in"),
        (
            "new",
            ["optimization.stpes=1"],
            (),
            "unknown setting optimization.stpes; did you mean optimization.steps?",
        ),
        (
            "new",
            ["optimization.steps=x"],
            (),
            "optimization.steps must be a valid integer, got 'x'",
        ),
        ("new", ["steps"], (), "expected section.key=value, got 'steps'"),
        ("new", ["credit.method=ppo"], (), "unknown credit method 'ppo'"),
        ("new", ["credit={method='outcome', alpha=1}"], (), "does not take alpha"),
        ("new", ["environment.retriever=none.jsonl"], (), "unknown retriever 'none.jsonl'"),
        ("new", ["environment.protocol=html"], (), "unknown protocol 'html'"),
        ("new", ["environment.num_counterfactuals=0"], (), "needs information gain"),
        ("new", [], ("--config", "absent.toml"), "cannot read the settings of absent.toml"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(
    tmp_path: Path,
    tiny_settings: Settings,
    train: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    folder: str,
    settings: list[str],
    flags: tuple[str, ...],
    message: str,
) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "config.json").write_text('{"world": {"seed": 1}}')
    given = tiny_settings(*settings) if settings else []
    assert train(tmp_path / folder, given, *flags) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
    assert [path.name for path in used.iterdir()] == ["config.json"]
    assert (used / "config.json").read_text() == '{"world": {"seed": 1}}'


def test_small_numbers_are_printed_with_their_digits() -> None:
    table = last_step({"step": 3, "em": 0.25, "learning_rate": 1e-6, "kl": 0.00001234})
    names, values = ([*column.cells] for column in table.columns)
    assert dict(zip(names, values, strict=True)) == {
        "em": "0.250",
        "learning_rate": "1e-06",
        "kl": "1.234e-05",
    }
