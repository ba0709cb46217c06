"""OpenEnv's real server and client over WebSockets, beside SearchQAEnv itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from openenv.cli._validation import get_deployment_modes, validate_multi_mode_deployment
from openenv.core.env_client import EnvClient

from igsearch_env import EnvironmentSettings, RetrievalError, SearchQAEnv, load_questions
from igsearch_env.endpoint.client import Endpoint
from igsearch_env.endpoint.scorer import EndpointScorer
from igsearch_env.retrieval.open import RETRIEVERS, register_retriever
from igsearch_openenv import SearchQAAction, SearchQAClient
from igsearch_openenv import benchmark as openenv_benchmark
from igsearch_openenv.server import app as server_app
from igsearch_openenv.server.app import app_of_variables, make_app
from igsearch_openenv.server.environment import SearchQAEnvironment
from tests.doc_pages import read_blocks
from tests.ports import free_port
from tests.scripted_server import ScriptedServer

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "trainers" / "openenv"
SETTINGS = EnvironmentSettings(
    questions="world-test", max_searches=3, information_gain_weight=0.25, outcome="f1"
)
GOLD = {question.text: question.golden_answers[0] for question in load_questions("world-test")}
SECONDS = 240  # more than anything here takes on a busy machine, less than a hang


@pytest.fixture
def start() -> Iterator[Callable[..., str]]:
    """Serves an application from a thread; returns its address."""
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def run(app: Any) -> str:
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        up = threading.Event()

        class Told(uvicorn.Server):
            async def startup(self, sockets: Any = None) -> None:
                await super().startup(sockets)
                up.set()

        server = Told(uvicorn.Config(app, log_level="warning"))
        arguments = {"sockets": [listener]}
        thread = threading.Thread(target=server.run, kwargs=arguments, daemon=True)
        thread.start()
        assert up.wait(SECONDS)
        servers.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield run
    for server, thread in servers:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def run(session: Any) -> Any:
    return asyncio.run(asyncio.wait_for(session, SECONDS))


def turns(seed: int, question: str) -> list[str]:
    """Turns of every kind: searches, a malformed one, an answer, or none until the end."""
    rng = random.Random(seed)
    words = question.split()
    said = []
    for _ in range(rng.randint(1, 4)):
        query = " ".join(rng.sample(words, 3))
        said.append(f"<search> {query} </search>" if rng.random() < 0.8 else "no action")
    if seed % 4:
        answer = GOLD[question] if seed % 4 == 1 else rng.choice(words)
        said.append(f"<answer> {answer} </answer>")
    return said + ["nothing"] * (7 * (seed % 4 == 0))


def direct(seed: int, settings: EnvironmentSettings, **options: Any) -> list[Any]:
    """What the environment itself says, in the form of :func:`served`."""
    env = SearchQAEnv(settings=settings)
    text, _ = env.reset(seed=seed, options=options)
    said: list[Any] = [(text, None, False)]
    gains = []
    for turn in turns(seed, env.episode.question.text):
        text, reward, terminated, truncated, info = env.step(turn)
        said.append((text, reward, terminated or truncated))
        if "information_gain" in info:
            gains.append((info["information_gain_step"], info["information_gain"]))
        if env.episode.finished:
            break
    episode = env.episode
    transcript = [{"source": s.source, "text": s.text} for s in episode.transcript]
    end = (transcript, list(episode.information_gains), episode.outcome, episode.finished)
    return [said, gains, end]


async def served(client: SearchQAClient, seed: int, **options: Any) -> list[Any]:
    result = await client.reset(seed=seed, **options)
    said: list[Any] = [(result.observation.text, result.reward, result.done)]
    gains = []
    for turn in turns(seed, result.observation.metadata["question"]):
        result = await client.step(SearchQAAction(text=turn))
        said.append((result.observation.text, result.reward, result.done))
        metadata = result.observation.metadata
        if "information_gain" in metadata:
            gains.append((metadata["information_gain_step"], metadata["information_gain"]))
        if result.done:
            break
    state = await client.state()
    end = (state.transcript, state.information_gains, state.outcome, state.done)
    return [said, gains, end]


def test_episodes_are_those_of_the_environment(start: Callable[..., str]) -> None:
    url = start(make_app(SETTINGS))
    seeds = range(12)
    expected = [direct(seed, SETTINGS) for seed in seeds]

    async def session() -> list[Any]:
        async with SearchQAClient(url) as client:
            return [await served(client, seed) for seed in seeds]

    assert run(session()) == expected
    assert any(gain for _, gains, _ in expected for _, gain in gains)
    assert any(end[2] for *_, end in expected)  # an outcome that is paid
    assert any(reward not in (0.0, None) for said, *_ in expected for _, reward, _ in said[:-1])


def test_64_sessions_at_once_are_not_mixed_up(start: Callable[..., str]) -> None:
    url = start(make_app(SETTINGS, sessions=64))
    everyone_is_here = asyncio.Barrier(64)

    async def session(number: int) -> list[Any]:
        async with SearchQAClient(url) as client:
            await everyone_is_here.wait()
            return [await served(client, number), await served(client, number + 64)]

    async def all_sessions() -> list[Any]:
        return await asyncio.gather(*map(session, range(64)))

    played = run(all_sessions())
    assert played == [[direct(n, SETTINGS), direct(n + 64, SETTINGS)] for n in range(64)]


def test_one_session_too_many_is_refused(start: Callable[..., str]) -> None:
    url = start(make_app(SETTINGS, sessions=1))

    async def session() -> None:
        async with SearchQAClient(url) as client:
            await client.reset(seed=1)
            other = await SearchQAClient(url).connect()
            refusal = await other._receive()
            assert refusal["data"]["code"] == "CAPACITY_REACHED"
            await other.disconnect()
            assert (await client.step(SearchQAAction(text="<answer> x </answer>"))).done

    run(session())


def test_a_question_of_the_set_by_its_id(start: Callable[..., str]) -> None:
    url = start(make_app(SETTINGS))
    question = SearchQAEnv(settings=SETTINGS).engine.questions[5]

    async def session() -> None:
        async with SearchQAClient(url) as client:
            found = await served(client, 3, question_id=question.id, group_id="g")
            assert found == direct(3, SETTINGS, question=question, group_id="g")
            state = await client.state()
            assert (state.question_id, state.question) == (question.id, question.text)
            with pytest.raises(RuntimeError, match="no question with the id 'none'"):
                await client.reset(question_id="none")

    run(session())


def test_gold_answers_stay_on_the_server(start: Callable[..., str]) -> None:
    url = start(make_app(SETTINGS))
    question = next(
        one
        for one in SearchQAEnv(settings=SETTINGS).engine.questions
        if not any(answer.lower() in one.text.lower() for answer in one.golden_answers)
    )
    heard: list[str] = []

    class Listening(SearchQAClient):
        async def _receive(self) -> dict[str, Any]:
            received = await super()._receive()
            heard.append(json.dumps(received))
            return received

    async def session() -> None:
        async with Listening(url) as client:
            await client.reset(seed=1, question_id=question.id)
            await client.state()
            await client.step(SearchQAAction(text="<answer> nobody </answer>"))
            await client.state()

    run(session())
    assert len(heard) == 4
    assert not any(answer in text for answer in question.golden_answers for text in heard)


def test_what_is_wrong_is_said_and_the_session_goes_on(start: Callable[..., str]) -> None:
    url = start(make_app(SETTINGS))

    async def session() -> None:
        async with SearchQAClient(url) as client:
            with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
                await client.step(SearchQAAction(text="<search> x </search>"))
            await client.reset(seed=2)
            assert (await client.step(SearchQAAction(text="<answer> x </answer>"))).done
            with pytest.raises(RuntimeError, match="has ended"):
                await client.step(SearchQAAction(text="more"))
            assert await served(client, 2) == direct(2, SETTINGS)

    run(session())


class Failing:
    """A retriever that has failed."""

    def search(self, queries: Any, k: int) -> Any:
        raise RetrievalError("gone")


def test_failed_searches_are_to_be_left_out(start: Callable[..., str]) -> None:
    with contextlib.suppress(ValueError):
        register_retriever("failing")(lambda name: Failing())
    url = start(make_app(EnvironmentSettings("world-test", "failing")))
    RETRIEVERS.pop("failing")

    async def session() -> Any:
        async with SearchQAClient(url) as client:
            await client.reset(seed=1)
            first = await client.step(SearchQAAction(text="<search> x </search>"))
            last = await client.step(SearchQAAction(text="<answer> x </answer>"))
            return first, last

    first, last = run(session())
    assert first.observation.metadata["retrieval_failed"] is True
    assert last.observation.metadata["left_out"] is True


class Characters:
    """A tokenizer whose tokens are characters."""

    def __len__(self) -> int:
        return 0x110000

    def encode_all_scored(
        self, contexts: Any, answers: Any
    ) -> tuple[list[tuple[list[int], int]], int]:
        pairs = []
        for context, answer in zip(contexts, answers, strict=True):
            text = "".join(segment.text for segment in context) + answer
            pairs.append((list(map(ord, text)), len(answer)))
        return pairs, max((len(ids) for ids, _ in pairs), default=0)


def test_gains_of_a_scorer_behind_an_endpoint_arrive(start: Callable[..., str]) -> None:
    """Gains are those of the environment with the same scorer; a failed one is missing, not 0."""
    server = ScriptedServer()
    fails = threading.Event()

    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        if fails.is_set():
            return 200, {"choices": []}
        choices = []
        for index, ids in enumerate(body["prompt"]):
            known: list[Any] = [None]
            for at, token in enumerate(ids[1:], start=1):
                value = -1.0 - (sum(ids[:at]) % 101) / 101  # depends on all that comes before
                known.append({str(token): {"logprob": value}})
            choices.append({"index": index, "prompt_logprobs": known})
        return 200, {"choices": choices}

    server.answer = answer

    def scorer() -> EndpointScorer:
        return EndpointScorer(Endpoint(server.url, retries=1), "m", Characters())

    last = "<answer> nobody </answer>"
    settings = EnvironmentSettings("world-test", counterfactual="documents", top_k=1)
    env = SearchQAEnv(scorer=scorer(), settings=settings)
    documents = list(env.engine.retriever.documents)
    turns = [f"<search> {documents[place].title} </search>" for place in (3, 70)]
    env.reset(seed=5)
    for turn in (*turns, last):
        env.step(turn)
    expected = list(env.episode.information_gains)
    assert None not in expected
    assert len(set(expected)) == 2
    url = start(make_app(settings, scorer()))

    async def session(client: SearchQAClient, fail: bool) -> Any:
        await client.reset(seed=5)
        await client.step(SearchQAAction(text=turns[0]))
        if fail:
            fails.set()
        await client.step(SearchQAAction(text=turns[1]))
        return (await client.step(SearchQAAction(text=last))).observation.metadata

    async def sessions() -> Any:
        async with SearchQAClient(url) as client:
            return [await session(client, fail) for fail in (False, True)]

    whole, short = run(sessions())
    server.close()
    assert whole["information_gains"] == expected
    assert short["information_gains"] == [expected[0], None]


def test_without_a_scorer_there_are_no_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGSEARCH_SETTINGS", json.dumps({"questions": "world-test", "top_k": 1}))
    monkeypatch.setenv("IGSEARCH_SCORER", "none")
    assert app_of_variables().routes
    monkeypatch.setenv("IGSEARCH_SETTINGS", '{"top": 1}')
    with pytest.raises(ValueError, match="IGSEARCH_SETTINGS must be JSON"):
        app_of_variables()
    with pytest.raises(AttributeError, match="no attribute 'application'"):
        _ = server_app.application

    env = SearchQAEnvironment(SearchQAEnv("world-test", scorer=None))
    text = env.reset(seed=1).text
    env.step(SearchQAAction(text="<search> x </search>"))
    last = env.step(SearchQAAction(text="<answer> x </answer>"))
    assert last.metadata["information_gains"] == [None]
    assert env.state.transcript[0]["text"] == text
    assert env.state.step_count == 2


def test_settings_that_cannot_be_had_are_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = '{"questions": "data/none.jsonl", "retriever": "data/none.jsonl"}'
    monkeypatch.setenv("IGSEARCH_SETTINGS", given)
    monkeypatch.setattr(sys, "argv", ["server"])
    with pytest.raises(SystemExit):
        server_app.main()
    assert "'data/none.jsonl'" in capsys.readouterr().err.splitlines()[-1]


def test_the_servers_own_description(start: Callable[..., str]) -> None:
    url = start(make_app(SETTINGS))
    assert httpx2.get(f"{url}/health").json() == {"status": "healthy"}
    schema = httpx2.get(f"{url}/schema").json()
    assert schema["action"]["properties"]["text"]["type"] == "string"
    assert {"text", "info"} <= schema["observation"]["properties"].keys()


def test_the_package_is_one_of_openenv() -> None:
    assert issubclass(SearchQAClient, EnvClient)
    _, issues = validate_multi_mode_deployment(PACKAGE)
    # A lock file of uv holds addresses of one package index; requirements/openenv.txt has the pins.
    assert issues == ["Missing uv.lock - run 'uv lock' to generate it"]
    assert get_deployment_modes(PACKAGE)["docker"]
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"igsearch-env=={version['version']}" in project["dependencies"]


def docker_steps() -> list[tuple[str, str]]:
    """The instructions of the image, in order: the word, and the rest."""
    text = (PACKAGE / "server" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_image_installs_from_what_it_copies_and_serves(tmp_path: Path) -> None:
    """Follows the image's steps in a folder and a virtual environment, where there is no Docker.

    The packages of the pins are there already, so that pip has only to find that they fit, and to
    build and install the two packages from the files that are copied.
    """
    source, home, venv = (tmp_path / name for name in ("src", "home", "venv"))
    for folder in (source, home):
        folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "pins.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    environment = {**os.environ, "PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}
    # pip takes 0 for "no build isolation": setuptools is among the pins.
    environment |= {"HOME": str(home), "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1"}
    port, health = str(free_port()), ""
    for word, rest in docker_steps():
        if word == "COPY":
            *names, to = rest.split()
            for name in names:
                into = source / (f"{to}{name}" if to.endswith("/") else to)
                into.parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, into)
        elif word == "RUN" and rest.startswith("pip "):
            command = ["python", "-m", *shlex.split(rest)]
            subprocess.run(command, check=True, cwd=source, env=environment, timeout=SECONDS)
        elif word == "HEALTHCHECK":
            health = rest.split("CMD", 1)[1].replace("8000", port)
        elif word == "CMD":
            serve = [one.replace("8000", port) for one in json.loads(rest)]
    with subprocess.Popen(
        serve, cwd=home, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                if "Uvicorn running" in line:
                    break
            else:
                pytest.fail("".join(said))
            subprocess.run(health, shell=True, check=True, env=environment, timeout=SECONDS)

            async def session() -> Any:
                async with SearchQAClient(f"http://127.0.0.1:{port}") as client:
                    return await served(client, 3)

            assert run(session()) == direct(3, EnvironmentSettings())
        finally:
            process.terminate()
    where = [str(venv / "bin/python"), "-c", "import igsearch_env as m; print(m.__file__)"]
    found = subprocess.run(where, check=True, cwd=home, stdout=subprocess.PIPE, text=True).stdout
    assert found.startswith(str(venv))


def test_the_benchmark_measures_all_rows(capsys: pytest.CaptureFixture[str]) -> None:
    openenv_benchmark.main(["--sessions", "1", "3", "--episodes", "4"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["direct", "1 session", "3 sessions"]
    assert [row.split("|")[-2].strip() for row in rows] == ["0"] * 3  # nothing is mixed up


def test_the_page_runs(start: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    blocks = read_blocks(ROOT / "docs/extend/openenv.md")
    code = [b for b in blocks if b.runs_in == "tests/openenv/test_openenv.py"]
    (client, custom) = (b.text for b in code if b.language == "python")
    namespace: dict[str, Any] = {}
    exec(custom, namespace)
    url = start(namespace["app"])
    exec(client.replace("http://127.0.0.1:8000", url), {"__name__": "page"})
    assert "information gain" in capsys.readouterr().out
