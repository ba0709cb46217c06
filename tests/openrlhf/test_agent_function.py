"""The agent function with an engine that writes long turns: many threads, whole batches."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import vllm
from openrlhf.trainer.ray.vllm_engine import _load_agent_executor
from transformers import AutoTokenizer

from trainers.openrlhf.flags import AGENT
from trainers.openrlhf.launch import SETTINGS
from trainers.rollout_settings import RolloutSettings, make_label

from .conftest import POLICY, ROOT

TURN = 200
GOLD = -1.0


class LongWinded:
    """Writes up to 200 tokens and a search, or the right answer; believes in all answers alike."""

    def __init__(self, tokenizer: Any, questions: list[Any]) -> None:
        self.tokenizer = tokenizer
        self.questions = questions
        self.random = random.Random(0)
        self.scored = 0

    async def generate(self, ids: list[int], asked: Any) -> Any:
        await asyncio.sleep(self.random.uniform(0.005, 0.05))
        if asked.prompt_logprobs is not None:
            self.scored += 1
            known = [{token: SimpleNamespace(logprob=GOLD)} for token in ids]
            return SimpleNamespace(prompt_logprobs=known)
        words = self.random.choices(["the", "city", "born"], k=self.random.randint(5, TURN - 20))
        action = f"<search>{self.random.choice(self.questions).text}</search>"
        if self.random.random() < 0.2:
            prompt = self.tokenizer.decode(ids)
            asked_for = next(q for q in self.questions if q.text in prompt)
            action = f"<answer>{asked_for.golden_answers[0]}</answer>"
        written = self.tokenizer(" ".join(words) + action, add_special_tokens=False).input_ids
        return SimpleNamespace(
            outputs=[
                SimpleNamespace(
                    token_ids=written, logprobs=None, finish_reason="stop", stop_reason=None
                )
            ]
        )


Play = Callable[..., tuple[list[dict[str, Any]], LongWinded]]


@pytest.fixture
def play(index: Path, question_file: Path, questions: list[Any]) -> Play:
    """Play episodes side by side, each begun ``stagger`` seconds after the one before it."""

    def run(stagger: float, count: int, *, training: bool = True, **changes: Any) -> Any:
        asked = questions[:count]
        settings = RolloutSettings(
            **{"questions": str(question_file), "retriever": str(index), **changes},
            max_searches=3,
            top_k=2,
            max_new_tokens=2 * TURN,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(os.environ, SETTINGS, settings.to_json())
            executor = _load_agent_executor(str(ROOT / AGENT))
        tokenizer = AutoTokenizer.from_pretrained(POLICY)
        engine = LongWinded(tokenizer, asked)
        sampling = vllm.SamplingParams(max_tokens=None)

        async def one(place: int, question: Any) -> dict[str, Any]:
            await asyncio.sleep(place * stagger)
            label = make_label(question, training=training)
            played: dict[str, Any] = await executor.execute(
                question.text, label, sampling, 4096, tokenizer, engine
            )
            return played

        async def all_of_them() -> list[dict[str, Any]]:
            return list(await asyncio.gather(*(one(i, q) for i, q in enumerate(asked))))

        return asyncio.run(all_of_them()), engine

    return run


@pytest.mark.parametrize(("scorer", "stagger"), [("policy", 0.02), ("vllm", 0.0)])
def test_a_batch_of_long_turns_is_played_and_scored(
    play: Play, scorer: str, stagger: float
) -> None:
    """One thread decodes turns, others tokenise what is to be scored, and the loop prompts."""
    # Every search counts here, also one that finds nothing new.
    responses, engine = play(stagger, 40, scorer=scorer, added_only=False)
    episodes = [response["label"] for response in responses]
    assert all(episode.finished for episode in episodes)
    assert max(len(step.turn.token_ids) for e in episodes for step in e.steps) > TURN // 2
    judged = [step for e in episodes for step in e.searches if step.counterfactuals]
    assert len(judged) > len(episodes)
    if scorer == "policy":
        assert engine.scored == 0
        assert all(step.information_gain is None for step in judged)
    else:
        assert engine.scored > len(judged)
        assert all(step.information_gain == pytest.approx(0.0) for step in judged)


def test_an_evaluation_is_judged_by_exact_match_whatever_training_is(play: Play) -> None:
    trained, _ = play(0.0, 16, outcome="zero")
    assert not any(response["reward"] for response in trained)
    held_out, _ = play(0.0, 16, outcome="zero", training=False)
    for response in held_out:
        assert response["reward"] == response["scores"] == response["label"].em
    assert any(response["label"].em for response in held_out)


def test_several_attempts_are_one_rollout(play: Play) -> None:
    responses, _ = play(0.0, 16, max_attempts=2)
    more = [response for response in responses if response["label"].attempt > 0]
    assert more
    for response in more:
        written = [
            response["observation_tokens"][start:end] for start, end in response["action_ranges"]
        ]
        turns = [list(step.turn.token_ids) for step in response["label"].steps]
        assert written == [turn for turn in turns if turn]  # one without room left has no tokens
