"""Loops of other libraries over the vector environment, in each of Gymnasium's autoreset modes.

Gymnasium's own vectorisation of the single environment says what is right in each mode.
"""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from igsearch_env import RetrievalError, SearchQAEnv, SearchQAVectorEnv
from igsearch_env.outcome import OutcomeFailedError
from igsearch_env.wrappers import TranscriptObservation, VectorTranscriptObservation
from tests.igsearch_env.fakes import PERU, QUESTIONS, FakeRetriever

ROWS = 3
SETTINGS: dict[str, Any] = {
    "questions": QUESTIONS,
    "num_counterfactuals": 0,  # rows of one vector share a pool, single environments do not
    "max_searches": 2,
}
TURNS = [
    "<search>Peru</search>",
    "<answer>Lima</answer>",
    "no action",
    "<answer>Rome</answer>",
    "<search>Italy Cuba</search>",
]
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


def ours(mode: AutoresetMode, **more: Any) -> SearchQAVectorEnv:
    return SearchQAVectorEnv(
        ROWS, autoreset_mode=mode, retriever=FakeRetriever(), **SETTINGS | more
    )


def single() -> gymnasium.Env[str, str]:
    return SearchQAEnv(retriever=FakeRetriever(), **SETTINGS)


def theirs(mode: AutoresetMode) -> SyncVectorEnv:
    return SyncVectorEnv([single] * ROWS, autoreset_mode=mode)


def actions(step: int) -> list[str]:
    """Rows do different things, and end apart."""
    return [TURNS[(step * (row + 1) + row) % len(TURNS)] for row in range(ROWS)]


def restart(env: VectorEnv[Any, Any, Any], done: Any) -> list[Any]:
    """What a loop does without autoreset: begin the rows that have ended anew."""
    if not done.any():
        return []
    texts, infos = env.reset(options={"reset_mask": done})
    return [[text for text, new in zip(texts, done, strict=True) if new], infos]


@pytest.mark.parametrize("mode", MODES)
def test_a_loop_over_a_vector_sees_what_the_single_environment_gives(mode: AutoresetMode) -> None:
    seen: list[list[Any]] = []
    for env in (ours(mode), theirs(mode)):
        texts, infos = env.reset(seed=4)
        found: list[Any] = [list(texts), infos]
        for step in range(40):
            texts, rewards, terminated, truncated, infos = env.step(actions(step))
            found.append([list(texts), rewards, terminated, truncated, infos])
            if mode is AutoresetMode.DISABLED:
                found.append(restart(env, terminated | truncated))
        seen.append(found)
    one, other = seen
    ended = sum(int((step[2] | step[3]).sum()) for step in one[2:] if len(step) == 5)
    assert ended > 15
    for mine, its in zip(one, other, strict=True):
        assert data_equivalence(_sorted(mine), _sorted(its)), (mine, its)


def _sorted(value: Any) -> Any:
    """Infos with their keys in one order, and arrays of objects as lists."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(one) for one in value]
    if isinstance(value, np.ndarray):
        return [str(value.dtype), [repr(one) for one in value.tolist()]]
    return value


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_statistics_count_the_same_episodes(mode: AutoresetMode) -> None:
    counted = []
    for env in (ours(mode), theirs(mode)):
        recorded = RecordEpisodeStatistics(env)
        recorded.reset(seed=4)
        for step in range(40):
            recorded.step(actions(step))
        counted.append((recorded.episode_count, *map(list, _queues(recorded))))
    assert counted[0] == counted[1]
    assert counted[0][0] > 15


def _queues(recorded: Any) -> tuple[Any, Any]:
    return recorded.return_queue, recorded.length_queue


def test_same_step_keeps_the_end_of_an_episode() -> None:
    env = ours(AutoresetMode.SAME_STEP)
    prompts, _ = env.reset(seed=1, options={"questions": [PERU] * ROWS})
    stay = TURNS[0]
    texts, rewards, terminated, _, infos = env.step([TURNS[1], stay, TURNS[3]])
    assert rewards.tolist() == [1.0, 0.0, 0.0]
    assert terminated.tolist() == [True, False, True]
    assert infos["_final_info"].tolist() == infos["_final_obs"].tolist() == [True, False, True]
    assert infos["final_obs"].tolist() == ["", None, ""]
    assert infos["final_info"]["answer"].tolist() == ["Lima", None, "Rome"]
    assert infos["final_info"]["em"].tolist() == [1.0, 0.0, 0.0]
    assert infos["_question"].tolist() == [True, False, True]
    assert all(infos["question"][row].text in texts[row] for row in (0, 2))
    assert sorted(env.final_episodes) == [0, 2]
    assert env.final_episodes[0].outcome == 1.0
    assert not any(episode.finished for episode in env.episodes)
    *_, infos = env.step(["x"] * ROWS)
    assert env.final_episodes == {}
    assert "final_obs" not in infos
    assert prompts[0] != ""
    # The list of infos that Stable-Baselines has comes out of Gymnasium's wrapper.
    listed = DictInfoToList(ours(AutoresetMode.SAME_STEP))
    listed.reset(seed=1, options={"questions": [PERU] * ROWS})
    *_, rows = listed.step([TURNS[1], stay, stay])
    assert rows[0]["final_info"]["answer"] == "Lima"
    assert "final_info" not in rows[1]


def test_transcripts_are_whole_at_the_end_too() -> None:
    env = VectorTranscriptObservation(ours(AutoresetMode.SAME_STEP))
    prompts, _ = env.reset(seed=1)
    texts, *_ = env.step([TURNS[0]] * ROWS)
    assert all(new.startswith(old) for old, new in zip(prompts, texts, strict=True))
    after, _, _, _, infos = env.step([TURNS[1], TURNS[2], TURNS[3]])
    assert infos["final_obs"][0] == texts[0] + TURNS[1]
    assert infos["final_obs"][1] is None
    assert after[1].startswith(texts[1])
    assert after[0] == env.unwrapped.episodes[0].prompt.text  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrapped", [False, True])
def test_gymnasiums_checker_has_no_complaint(wrapped: bool) -> None:
    env = TranscriptObservation(single()) if wrapped else single()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*different from the unwrapped version.*")
        check_env(env, skip_render_check=True)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_reward_alone_is_enough_to_learn_from(mode: AutoresetMode) -> None:
    """A loop as in Stable-Baselines or CleanRL: one reset, then steps, with a tabular policy.

    The policy chooses between turns and is updated by REINFORCE. A transition that only begins an
    episode (next-step mode) is left out, as Gymnasium asks of every loop.
    """
    rng = np.random.default_rng(0)
    env = RecordEpisodeStatistics(ours(mode, questions=[PERU]), buffer_length=60)
    turns = ["<answer>Lima</answer>", "<answer>Rome</answer>", "<answer>Oslo</answer>"]
    logits = np.zeros(len(turns))
    env.reset(seed=0)
    begins = np.zeros(ROWS, dtype=bool)
    for _ in range(150):
        chances = np.exp(logits) / np.exp(logits).sum()
        picks = rng.choice(len(turns), size=ROWS, p=chances)
        _, rewards, terminated, truncated, _ = env.step([turns[pick] for pick in picks])
        for row in np.flatnonzero(~begins):
            up = np.eye(len(turns))[picks[row]] - chances
            logits += 0.3 * (rewards[row] - chances[0]) * up
        begins = (terminated | truncated) & (mode is AutoresetMode.NEXT_STEP)
    assert np.mean(env.return_queue) > 0.9


def test_documents_are_apart_by_source() -> None:
    env = gymnasium.make("igsearch_env:igsearch/SearchQA-v0", retriever=FakeRetriever(), **SETTINGS)
    env.reset(seed=0)
    turn = TURNS[0]
    text, *_ = env.step(turn)
    inner = env.unwrapped
    assert isinstance(inner, SearchQAEnv)
    sources = [(segment.source, segment.text) for segment in inner.episode.transcript]
    assert sources[1:] == [("policy", turn), ("document", text)]
    assert "The seat of Peru is Lima." in text


class Gone(FakeRetriever):
    def search(self, queries: Any, k: int) -> Any:
        raise RetrievalError("gone")


def test_what_is_to_be_left_out_says_so() -> None:
    def broken(_: Any) -> float:
        raise OutcomeFailedError("no verdict")

    env = SearchQAEnv(retriever=Gone(), outcome=broken, **SETTINGS)
    env.reset(seed=0)
    *_, info = env.step(TURNS[0])
    assert info["retrieval_failed"]
    *_, info = env.step(TURNS[1])
    assert info["unscored"]
    assert env.episode.left_out
