"""The environment package in the real verifiers, against a model behind a real HTTP server.

It needs an environment of its own: make test-verifiers.
"""

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

from igsearch_env.episode import Document  # noqa: E402
from igsearch_env.retrieval.base import RetrievalError  # noqa: E402
from tests.doc_pages import read_blocks  # noqa: E402
from tests.scripted_policy import SETTINGS, played_directly, reply  # noqa: E402
from tests.scripted_server import ScriptedServer  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()

    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        message = {"role": "assistant", "content": reply(body["messages"])}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return 200, {
            "id": str(number),
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }

    server.answer = answer
    yield server
    server.close()


def make(scorer: str | None = "unigram", **options: Any) -> Any:
    taskset = {"id": "igsearch-verifiers", "settings": SETTINGS, "scorer": scorer}
    return vf.load_environment(vf.resolve_env_config({"taskset": taskset, **options}))


def play(env: Any, server: ScriptedServer, count: int, side_by_side: int) -> list[Any]:
    """The first questions, as ``vf-eval`` plays them."""
    client = vf.EvalClientConfig(base_url=server.url)
    context = ModelContext(client=client, model="m", sampling=vf.SamplingConfig())

    async def run() -> list[Any]:
        bound = asyncio.Semaphore(side_by_side)
        async with env.serving():
            slots = [slot for task in env.taskset.take(count) for slot in env.slots(task)]
            return await asyncio.gather(*(env.run_slot(s, context, bound) for s in slots))

    return asyncio.run(run())


def test_transcripts_outcomes_and_gains_are_those_of_the_environment(
    server: ScriptedServer,
) -> None:
    played = play(make(), server, 6, side_by_side=1)
    expected = played_directly(6)
    assert any(episode.outcome for episode in expected)
    assert any(gain for episode in expected for gain in episode.information_gains)
    for episode, ours in zip(played, expected, strict=True):
        assert episode.ok, episode.errors
        (trace,) = episode.traces
        said = [node.message.content for node in trace.nodes]
        assert said == [segment.text for segment in ours.transcript]
        assert [node.sampled for node in trace.nodes] == [
            s.source == "policy" for s in ours.transcript
        ]
        found = trace.info["igsearch"]
        assert trace.reward == pytest.approx(sum(step.reward for step in ours.steps))
        assert found["rewards"] == pytest.approx([step.reward for step in ours.steps])
        assert found["information_gains"] == pytest.approx(list(ours.information_gains))
        assert (found["em"], found["f1"], found["answer"]) == (ours.em, ours.f1, ours.answer)
        assert trace.metrics["searches"] == len(ours.searches)


def test_a_batch_shares_its_searches_and_mixes_nothing_up(server: ScriptedServer) -> None:
    env = make(
        scorer=None,
        taskset={
            "id": "igsearch-verifiers",
            "settings": {**SETTINGS, "information_gain_weight": 0.0},
        },
    )
    episodes = play(env, server, 24, side_by_side=24)
    assert all(episode.ok for episode in episodes)
    for episode in episodes:
        (trace,) = episode.traces
        assert trace.task.data.question in trace.nodes[0].message.content
        assert trace.info["igsearch"]["queries"][0] == trace.task.data.question
    assert env.batcher.batches < 24 * 3


def test_requests_say_where_a_turn_ends_and_a_service_that_cuts_it_off_is_understood(
    server: ScriptedServer,
) -> None:
    whole = play(make(), server, 2, side_by_side=1)
    assert server.asked[0]["stop"] == ["</search>", "</answer>"]
    assert server.asked[0]["include_stop_str_in_output"] is True
    answer, asked = server.answer, len(server.asked)

    def cut(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        for message in body["messages"]:  # it said so before, and is answered as ever
            if message["role"] == "assistant":
                message["content"] += ">" * (not message["content"].endswith(">"))
        status, said = answer(number, body)
        text = said["choices"][0]["message"]["content"]
        said["choices"][0]["message"]["content"] = text.rpartition("</")[0]
        return status, said

    server.answer = cut
    services = play(make(stops=False), server, 2, side_by_side=1)
    assert "stop" not in server.asked[asked]
    for one, other in zip(whole, services, strict=True):
        assert other.ok, other.errors
        assert one.traces[0].info == other.traces[0].info


def test_an_episode_whose_search_failed_has_an_error_and_no_reward(server: ScriptedServer) -> None:
    env = make(
        scorer=None,
        taskset={
            "id": "igsearch-verifiers",
            "settings": {**SETTINGS, "information_gain_weight": 0.0},
        },
    )
    retriever = env.engine.retriever
    first = env.engine.questions[0].text

    class Flaky:
        def search(self, queries: list[str], k: int) -> list[list[Document]]:
            if first in queries:
                raise RetrievalError("down")
            return retriever.search(queries, k)

    env.engine.retriever = Flaky()
    failed, played = play(env, server, 2, side_by_side=1)
    assert not failed.ok
    assert "a search failed" in failed.errors[-1].message
    assert failed.traces[0].reward == 0.0
    assert not failed.traces[0].rewards.get("outcome")
    assert played.ok


def test_the_command_of_the_page_plays_and_writes_traces(
    server: ScriptedServer, tmp_path: Path
) -> None:
    page = ROOT / "docs/extend/verifiers.md"
    (command,) = [block.text for block in read_blocks(page) if block.language == "bash"]
    words = command.replace("\\\n", " ").split()
    words[words.index("http://localhost:8000/v1")] = server.url
    words[0] = str(Path(sys.executable).parent / words[0])
    subprocess.run(
        [*words, "-o", str(tmp_path), "--no-rich"], check=True, cwd=tmp_path, timeout=240
    )
    (file,) = tmp_path.rglob("traces.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 4 * 2  # -n 4 -r 2
    assert all(line["ok"] for line in lines)
