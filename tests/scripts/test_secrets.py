"""Logins and keys: sent to their server, and found nowhere in what programs write and print."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from igsearch_env import BM25Retriever, load_corpus
from igsearch_env.cli import check, evaluate, recall, view
from igsearch_env.cli.program import run
from igsearch_env.retrieval.wire import make_answer
from igsearch_env.text import without_logins
from scripts import train
from tests.igsearch_env.retrieval.loopback import LoopbackServer
from tests.scripted_server import ScriptedServer
from trainers.local import trackers

SECRET, KEY = "hunter2-of-ann", "sk-hunter2-key"
LOGIN = f"ann:{SECRET}"


@pytest.fixture
def retrieval() -> Iterator[LoopbackServer]:
    """A retrieval server over the embedded world that asks for a login."""
    world = BM25Retriever.build(load_corpus("world:40"))

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        if server.logins[-1] != "Basic " + base64.b64encode(LOGIN.encode()).decode():
            return 401, {"detail": "who are you?"}
        if "queries" not in body:
            return 422, {"detail": "field required"}
        found = world.search(body["queries"], body.get("topk", 3))
        return 200, make_answer("search-r1", found, True)

    server = LoopbackServer(answer)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ended(capfd: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Run a program, which must end with a status and print no secret."""

    def call(main: Callable[[list[str]], None], *arguments: object, status: int = 0) -> None:
        with pytest.raises(SystemExit) as end:
            run(lambda: main([str(argument) for argument in arguments]))
        printed = "".join(capfd.readouterr())
        assert SECRET not in printed
        assert KEY not in printed
        assert end.value.code == status, printed

    return call


def files_with(folder: Path, *secrets: str) -> list[Path]:
    """The files that hold a secret, hidden ones included."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    return [f for f in files if any(secret.encode() in f.read_bytes() for secret in secrets)]


def test_addresses_lose_their_login() -> None:
    for address in (
        "http://ann:pw@host/a",
        "http://ann:p@w@host/a",
        "HTTP://ann@host/a",
        "s://ann:p/w@host/a",
    ):
        assert without_logins(f"see {address}, x@y").lower() in (
            "see http://host/a, x@y",
            "see s://host/a, x@y",
        )
    hosts = ("host/a@b", "h:80/a@b", "[::1]:80/a@b", "host?q=a@b", "host says a@b")
    for other in ("a@b", *(f"http://{host}" for host in hosts)):
        assert without_logins(other) == other
    assert without_logins({"a": ("http://x:y@z", 1)}) == {"a": ["http://z", 1]}


def test_a_training_run_holds_no_login(
    retrieval: LoopbackServer,
    ended: Callable[..., None],
    tiny_settings: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = retrieval.url.replace("//", f"//{LOGIN}@")
    asked = tiny_settings(
        "environment.questions=world-train:40",
        "environment.eval_questions=world-test:40",
        f"environment.retriever={address}",
        "optimization.steps=1",
        "run.save_rollouts_every=1",
        'run.trackers=["wandb"]',
    )
    asked = [one for one in asked if not one.startswith("world.")]
    sets = [part for one in asked for part in ("--set", one)]
    out = tmp_path / "run"
    told: list[Any] = []

    class Told:
        """A tracker that keeps what it is given."""

        def __init__(self, *given: object) -> None:
            told.append(given)

        def log(self, numbers: object, step: int) -> None:
            told.append(numbers)

        def close(self) -> None:
            pass

    monkeypatch.setitem(trackers._KINDS, "wandb", Told)
    ended(train.main, "--out", out, *sets)
    ended(view.main, out)
    assert not files_with(out, SECRET)
    assert len(told) == 2
    assert SECRET not in str(told)
    go_on = ("--out", out, "--resume", "--set", "optimization.steps=2")
    ended(train.main, *go_on, status=2)  # the run does not know the login
    ended(train.main, *go_on, "--set", "world.people=7", status=2)
    ended(train.main, *go_on, "--set", f"environment.retriever={address}")
    monkeypatch.setenv("IGSEARCH_RETRIEVER_LOGIN", LOGIN)
    ended(train.main, *go_on[:-1], "optimization.steps=3")
    assert not files_with(out, SECRET)


def test_an_evaluation_holds_no_login_and_no_key(
    retrieval: LoopbackServer,
    ended: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model = ScriptedServer()
    model.says("<search> Lima </search>")
    at = model.url.replace("//", f"//{LOGIN}@")
    index = retrieval.url.replace("//", f"//{LOGIN}@")
    out = tmp_path / "evaluation"
    asked = ("--questions", "world-test:40", "--limit", 3, "--model", "m", "--out", out)
    ended(evaluate.main, *asked, "--agent", at, "--index", index)
    ended(view.main, out)
    again = ("--out", out, "--resume")
    ended(evaluate.main, *again)
    ended(evaluate.main, *again, "--index", index.replace("127.0.0.1", "localhost"), status=2)
    ended(evaluate.main, *again, "--index", index)
    assert not files_with(out, SECRET, KEY)
    key = model.answer
    model.answer = lambda number, body: (401, {"error": {"message": f"wrong key {KEY}"}})
    refused = (*asked[:-1], tmp_path / "refused")
    ended(evaluate.main, *refused, "--agent", model.url, "--index", index, status=2)
    model.answer = key
    model.close()
    dead = (*asked[:-1], tmp_path / "dead", "--retries", 0)
    ended(evaluate.main, *dead, "--agent", at, "--index", index, status=2)


def test_programs_that_ask_a_server_print_no_login(
    retrieval: LoopbackServer, ended: Callable[..., None], tmp_path: Path
) -> None:
    address = retrieval.url.replace("//", f"//{LOGIN}@")
    ended(check.main, address, "--query", "Lima")
    ended(check.main, address + "/nowhere:x", "--query", "Lima")
    asked = ("--questions", "world-test:40", "--out", tmp_path)
    ended(recall.main, *asked, "--index", address)
    for wrong in (f"http://ann:{SECRET}/@host", f"ftp://{LOGIN}@h"):
        ended(check.main, wrong, status=2)
        ended(recall.main, *asked, "--index", wrong, status=2)
    assert all(SECRET not in path.read_text() for path in tmp_path.iterdir())
