"""The text environment in the real SkyRL-gym. It has an environment of its own: make test-skyrl."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

skyrl_gym = pytest.importorskip("skyrl_gym", reason="needs skyrl-gym: make test-skyrl")

from skyrl_gym.envs.registration import deregister  # noqa: E402
from skyrl_gym.metrics import aggregate_for_environment  # noqa: E402

from igsearch_env import load_questions  # noqa: E402
from igsearch_env.episode import Document  # noqa: E402
from igsearch_env.retrieval.base import RetrievalError  # noqa: E402
from tests.doc_pages import read_blocks  # noqa: E402
from tests.scripted_policy import SETTINGS, played_directly, reply  # noqa: E402
from trainers.skyrl import environment  # noqa: E402
from trainers.skyrl.environment import NAME, register, rows  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = load_questions(SETTINGS["questions"])


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register(SETTINGS, scorer="unigram")
    yield
    deregister(NAME)
    environment._shared.cache_clear()


def play(row: dict[str, Any]) -> tuple[Any, list[str], list[float]]:
    """An episode as SkyRL's generator plays it: the environment, what was said, and rewards."""
    env = skyrl_gym.make(row["env_class"], env_config={}, extras={**row, "max_turns": 99})
    messages, _ = env.init(row["prompt"])
    rewards, done = [], False
    while not done:
        messages.append({"role": "assistant", "content": reply(messages)})
        out = env.step(messages[-1]["content"])
        messages += out["observations"]
        rewards.append(out["reward"])
        done = out["done"]
    env.close()
    return env, [message["content"] for message in messages], rewards


def test_transcripts_outcomes_and_step_rewards_are_those_of_the_environment() -> None:
    expected = played_directly(6)
    assert any(episode.outcome for episode in expected)
    assert any(step.reward for episode in expected for step in episode.searches)
    for row, ours in zip(rows(QUESTIONS[:6]), expected, strict=True):
        env, said, rewards = play(row)
        assert said == [segment.text for segment in ours.transcript]
        assert rewards == pytest.approx([step.reward for step in ours.steps])
        assert (env.episode.outcome, env.episode.em, env.episode.answer) == (
            ours.outcome,
            ours.em,
            ours.answer,
        )
        assert env.episode.information_gains == pytest.approx(ours.information_gains)


def test_a_batch_in_threads_shares_one_engine_and_mixes_nothing_up() -> None:
    asked = rows(QUESTIONS[:32])
    with ThreadPoolExecutor(8) as threads:
        played = list(threads.map(play, asked))
    assert len({id(env._shared) for env, _, _ in played}) == 1
    for question, (env, said, _) in zip(QUESTIONS, played, strict=False):
        assert env.episode.question == question
        assert env.episode.searches[0].query == question.text
        assert said[0] == env.episode.prompt.text
    metrics = aggregate_for_environment(NAME, [env.get_metrics() for env, _, _ in played])
    assert metrics["searches"] == 2.0
    assert 0.4 < metrics["em"] < 1.0
    assert metrics["left_out"] == 0.0


def test_an_episode_whose_search_failed_is_counted() -> None:
    row = rows(QUESTIONS[:1])[0]
    first = skyrl_gym.make(row["env_class"], extras=row)
    engine = first._shared.engine
    retriever = engine.retriever

    class Down:
        def search(self, queries: list[str], k: int) -> list[list[Document]]:
            raise RetrievalError("down")

    engine.retriever = Down()
    first.step(f"<search> {QUESTIONS[0].text} </search>")
    engine.retriever = retriever
    first.step("<answer> x </answer>")
    assert first.get_metrics()["left_out"]


def test_a_question_that_the_settings_do_not_hold_is_named() -> None:
    with pytest.raises(ValueError, match="the question 'other' is not one of the settings"):
        skyrl_gym.make(NAME, extras={"question_id": "other"})


def test_a_wrong_setting_is_found_at_registration() -> None:
    with pytest.raises(ValueError, match="max_searches must be"):
        register({**SETTINGS, "max_searches": 0})


def test_the_code_of_the_page_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deregister(NAME)
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs/extend/skyrl.md"
    for block in read_blocks(page):
        if block.language == "python" and "SearchExperiment" not in block.text:
            exec(compile(block.text, block.where, "exec"), {})
    assert (tmp_path / "train.parquet").is_file()
