"""The wheel, unpacked far from the checkout: every subcommand runs on small files, with no torch.

Python runs without ``site``, so that the checkout's editable install is not found; the packages of
the environment are.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.igsearch_env.cli.evaluating import ROOT, read_json, write_rows
from tests.scripted_server import ScriptedServer

pytest.importorskip("fastapi")
PLACES = ("Lima", "Oslo", "Cairo", "Quito")


class Installed:
    """Runs the ``igsearch`` of an unpacked wheel in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        source, self.wheel, self.work = folder / "source", folder / "wheel", folder / "work"
        self.work.mkdir()
        source.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE", "igsearch_env"):
            (source / name).symlink_to(ROOT / name)
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir"]
        subprocess.run([*build, str(folder), str(source)], check=True, capture_output=True)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(self.wheel)
        (points,) = self.wheel.glob("*.dist-info/entry_points.txt")
        found = re.search(r"^igsearch = (.+):main$", points.read_text(), re.MULTILINE)
        assert found is not None
        self.command = [sys.executable, "-S", "-m", found[1]]
        packages = sysconfig.get_paths()["purelib"]
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join((str(self.wheel), packages)),
            "PYTHONSAFEPATH": "1",
            "COLUMNS": "200",
        }

    def __call__(self, *words: object, status: int = 0) -> str:
        ended = subprocess.run(
            [*self.command, *map(str, words)],
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == status, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    def python(self, code: str) -> str:
        words = [sys.executable, "-S", "-c", code]
        return subprocess.run(
            words, cwd=self.work, env=self.environment, capture_output=True, text=True, check=True
        ).stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"))


@pytest.fixture
def endpoint() -> Iterator[ScriptedServer]:
    """A model that searches for the city that is asked for, and then names it."""
    server = ScriptedServer()

    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        if not body:
            return 200, {"data": [{"id": "a-model"}]}
        asked = body["prompt"].rpartition("Question")[2]
        city = next(city for city in PLACES if f"in {city}?" in asked)
        text = f"<answer> {city} " if "<search>" in asked else f"<search> {city} "
        return 200, {"choices": [{"text": text, "finish_reason": "stop"}]}

    server.answer = answer
    yield server
    server.close()


def documents_and_questions(work: Path) -> None:
    rows: Sequence[dict[str, Any]] = [
        {"id": city, "title": city, "text": f"{city} is a city with a river."} for city in PLACES
    ]
    write_rows(work / "wiki.jsonl", rows)
    asked = [
        {"id": city, "question": f"Who is in {city}?", "golden_answers": [city], "gold_ids": [city]}
        for city in PLACES
    ]
    write_rows(work / "asked.jsonl", asked)


@pytest.mark.timeout(900)  # programs that start on a busy machine take their time
def test_every_subcommand_of_the_wheel(installed: Installed, endpoint: ScriptedServer) -> None:
    place = "import igsearch_env; print(igsearch_env.__file__)"
    assert installed.python(place).startswith(str(installed.wheel))
    work = installed.work
    documents_and_questions(work)
    assert "4 documents" in installed("index", "--corpus", "wiki.jsonl", "--out", "index")
    found = installed("recall", "--questions", "asked.jsonl", "--index", "index", "--out", "recall")
    assert "1.000" in found
    served = subprocess.Popen(
        [*installed.command, "serve", "--index", "index", "--port", "0"],
        cwd=work,
        env=installed.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert served.stdout is not None
        url = served.stdout.readline().split()[1].rstrip(";")
        assert served.stdout.readline().startswith("ready: 4 documents")
        assert "dialect='search-r1'" in installed("check", url, "--query", "Lima", "--wait", 60)
        asked = ("--questions", "asked.jsonl", "--top-k", 1, "--index", url)
        remote = ("--agent", endpoint.url, "--information-gain")
        assert "a-model" not in installed("evaluate", *asked, *remote, "--out", "served")
    finally:
        served.send_signal(signal.SIGINT)
        served.wait(60)
    results = read_json(work / "served" / "results.json")["micro"]
    assert (results["n"], results["em"], results["searches"]) == (4, 1.0, 1.0)
    assert results["information_gain"] > 0
    direct = ("--questions", "asked.jsonl", "--index", "index", "--top-k", 1, "--agent", "direct")
    installed("evaluate", *direct, "--out", "direct")
    compared = installed("compare", "direct", "served", "--out", "comparison")
    assert "right more often in B: 4" in compared
    assert "4 rollouts" in installed("view", "served")
    page = (work / "served" / "view.html").read_text(encoding="utf-8")
    assert "Who is in Lima?" in page
    assert json.loads((work / "comparison" / "results.json").read_text())["n"] == 4


def test_a_checkpoint_without_the_checkout_says_what_to_do(installed: Installed) -> None:
    (installed.work / "policy").mkdir(exist_ok=True)
    asked = ("--questions", "world-test", "--corpus", "world", "--agent", "policy", "--out", "no")
    (line,) = installed("evaluate", *asked, status=2).splitlines()[-1:]
    assert line.startswith("error: a checkpoint is loaded with torch and a checkout")
    assert "vllm serve" in line
    asked = (*asked[:-3], "orcale", "--out", "no")
    assert "unknown agent 'orcale': expected direct" in installed("evaluate", *asked, status=2)
