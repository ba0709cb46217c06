"""A model whose replies depend on the conversation alone, and its episodes in ``SearchQAEnv``."""

from __future__ import annotations

from typing import Any

from igsearch_env import SearchQAEnv, load_questions
from igsearch_env.episode import Episode

SETTINGS: dict[str, Any] = {
    "questions": "world-train",
    "max_searches": 2,
    "information_gain_weight": 0.5,
}
KNOWN = {q.text: q.golden_answers[0] for q in load_questions("world-train")[::2]}


def reply(messages: list[dict[str, Any]]) -> str:
    """What the model says: it searches for the question, then for a title, then answers.

    It knows the answer to every other question.
    """
    question = messages[0]["content"].rsplit("Question: ", 1)[1].strip()
    titles = [
        line.split('"')[1] for m in messages for line in m["content"].split("\n") if '"' in line
    ]
    if len(messages) == 1:
        return f"<think> so </think> <search> {question} </search>"
    if len(messages) == 3:
        return f"<refine> {titles[0]} </refine> <search> {titles[-1]} </search>"
    return f"<refine> so </refine>\n<answer> {KNOWN.get(question, titles[-1])} </answer>"


def played_directly(count: int) -> list[Episode]:
    """The first questions in the Gymnasium environment, one after the other, from seed 0."""
    env = SearchQAEnv(**SETTINGS)
    episodes = []
    for number, question in enumerate(load_questions(SETTINGS["questions"])[:count]):
        said, _ = env.reset(seed=None if number else 0, options={"question": question})
        messages, ended = [{"content": said}], False
        while not ended:
            messages.append({"content": reply(messages)})
            said, _, terminated, truncated, _ = env.step(messages[-1]["content"])
            messages.append({"content": said})
            ended = terminated or truncated
        episodes.append(env.episode)
    return episodes
