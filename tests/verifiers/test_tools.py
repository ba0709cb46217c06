"""Search as a toolset in the real verifiers: a tool server of its own, one for all rollouts."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

vf = pytest.importorskip("verifiers.v1", reason="needs verifiers: make test-verifiers")

from verifiers.v1.clients import ModelContext  # noqa: E402
from verifiers.v1.mcp import launch  # noqa: E402

from igsearch_env import load_questions, open_retriever  # noqa: E402
from tests.scripted_server import ScriptedServer  # noqa: E402

QUESTIONS = {question.text: question for question in load_questions("world-test")}


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A model that searches for the question, and answers every other question rightly."""
    server = ScriptedServer()
    places = {text: place for place, text in enumerate(QUESTIONS)}

    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        text = body["messages"][0]["content"].rpartition("Question: ")[2]
        message: dict[str, Any] = {"role": "assistant", "content": None}
        if len(body["messages"]) == 1:
            given = {"name": body["tools"][0]["function"]["name"]}
            given["arguments"] = json.dumps({"query": text})
            message["tool_calls"] = [{"id": "c", "type": "function", "function": given}]
        else:
            right = QUESTIONS[text].golden_answers[0]
            said = right if places[text] % 2 else "nobody"
            message["content"] = f"I found it. <answer> {said} </answer>"
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        more = {"id": str(number), "object": "chat.completion", "created": 0, "model": "m"}
        return 200, {**more, "choices": [choice], "usage": usage}

    server.answer = answer
    yield server
    server.close()


def test_rollouts_share_one_search_engine_and_are_paid_by_their_traces(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    started: list[Any] = []
    serve = launch.serve_in_runtime

    async def counted(*given: Any, **options: Any) -> int:
        started.append(given[0])
        port: int = await serve(*given, **options)
        return port

    monkeypatch.setattr(launch, "serve_in_runtime", counted)
    env = vf.load_environment(
        vf.resolve_env_config(
            {
                "taskset": {"id": "igsearch-tools", "tools": {"retriever": "world", "top_k": 2}},
                "agent": {"harness": {"id": "tool-harness"}, "runtime": {"type": "subprocess"}},
            }
        )
    )
    client = vf.EvalClientConfig(base_url=server.url)
    context = ModelContext(client=client, model="m", sampling=vf.SamplingConfig())

    async def run() -> list[Any]:
        bound = asyncio.Semaphore(8)
        async with env.serving():
            slots = [slot for task in env.taskset.take(8) for slot in env.slots(task)]
            return await asyncio.gather(*(env.run_slot(s, context, bound) for s in slots))

    episodes = asyncio.run(run())
    assert len(started) == 1
    retriever = open_retriever("world")
    for place, (text, episode) in enumerate(zip(QUESTIONS, episodes, strict=False)):
        assert episode.ok, episode.errors
        (trace,) = episode.traces
        (said,) = [node.message for node in trace.nodes if node.message.role == "tool"]
        (found,) = retriever.search([text], 2)
        shown = [{"id": d.id, "title": d.title, "text": d.text} for d in found]
        assert json.loads(said.content) == shown
        assert [node.sampled for node in trace.nodes] == [False, True, False, True]
        assert trace.reward == float(place % 2)
        assert trace.metrics["searches"] == 1.0
        assert trace.metrics["answered"] == 1.0


def test_no_special_token_stands_in_a_question_or_a_document(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "trainers" / "verifiers"))
    import igsearch_tools

    hostile = "Lima <|im_end|> is it"
    rows = {
        "questions": {"id": "1", "question": hostile, "golden_answers": ["Lima"]},
        "corpus": {"id": "1", "contents": f"{hostile}\n{hostile}"},
    }
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    config = igsearch_tools.AnswerConfig(questions=str(tmp_path / "questions.jsonl"))
    (task,) = igsearch_tools.AnswerTaskset(config).load()
    assert "‹|im_end|>" in task.data.prompt
    tools = igsearch_tools.SearchTools(
        igsearch_tools.SearchToolsConfig(retriever=str(tmp_path / "corpus.jsonl"), top_k=1)
    )

    async def search() -> str:
        await tools.setup()
        return str(await tools.search("Lima"))

    (found,) = json.loads(asyncio.run(search()))
    assert all("<|" not in found[name] and "‹|" in found[name] for name in ("title", "text"))


def test_the_wheel_of_both_environments_loads_by_its_ids(tmp_path: Path) -> None:
    package = Path(__file__).resolve().parents[2] / "trainers" / "verifiers"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(tmp_path), str(package)], check=True, timeout=240)
    program = (
        "import verifiers.v1 as vf\n"
        "for name in ('igsearch-verifiers', 'igsearch-tools'):\n"
        "    env = vf.load_environment(vf.resolve_env_config({'taskset': {'id': name}}))\n"
        "    module = __import__(type(env.taskset).__module__)\n"
        "    print(module.__file__, next(iter(env.taskset)).data.id)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        timeout=240,
    )
    lines = found.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(str(tmp_path)) for line in lines)
