from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from igsearch_env import SearchQAEnv, SearchQAVectorEnv
from igsearch_env.wrappers import TranscriptObservation, VectorTranscriptObservation
from tests.igsearch_env.fakes import ITALY, PERU, QUESTIONS, FakeRetriever, FakeScorer

TURNS = ["<search> Peru </search> cut off", "no action", "<answer> Lima </answer>"]


def inner_env() -> SearchQAEnv:
    return SearchQAEnv(QUESTIONS, FakeRetriever(), FakeScorer(), top_k=1, render_mode="ansi")


def wrapped_env() -> TranscriptObservation:
    return TranscriptObservation(inner_env())


def test_each_observation_is_the_transcript_so_far() -> None:
    plain, wrapped = inner_env(), wrapped_env()
    text, _ = plain.reset(seed=0, options={"question": PERU})
    whole, _ = wrapped.reset(seed=0, options={"question": PERU})
    assert whole == text
    for turn in TURNS:
        new, *theirs = plain.step(turn)
        before, (whole, *ours) = whole, wrapped.step(turn)
        kept = plain.episode.steps[-1].turn.text
        assert whole == before + kept + new
        assert theirs[:3] == ours[:3]
    assert whole == "".join(segment.text for segment in plain.episode.transcript)
    assert "cut off" not in whole


@pytest.mark.filterwarnings("ignore")
def test_it_is_an_environment_and_can_be_made_again() -> None:
    check_env(wrapped_env(), skip_render_check=True)
    env = TranscriptObservation(gymnasium.make("igsearch_env:igsearch/SearchQA-v0"))
    assert env.spec is not None
    assert isinstance(gymnasium.make(env.spec), TranscriptObservation)


def test_the_vector_wrapper_gives_every_row_its_own() -> None:
    env = VectorTranscriptObservation(SearchQAVectorEnv(2, retriever=FakeRetriever(), top_k=1))
    first, _ = env.reset(seed=0, options={"questions": [PERU, ITALY]})
    wholes, *_ = env.step(["<search> Peru </search>", "<answer> Rome </answer>"])
    assert all(after.startswith(before) for before, after in zip(first, wholes, strict=True))
    assert "The seat of Peru is Lima." in wholes[0]
    assert wholes[1].endswith("<answer> Rome </answer>")
    later, *_ = env.step(["<answer> Lima </answer>", ""])
    assert later[1] == wholes[1]
    fresh, _ = env.reset(options={"reset_mask": np.array([False, True])})
    assert fresh[0] == later[0]
    assert fresh[1] != later[1]


@pytest.mark.parametrize("kind", [SyncVectorEnv, partial(AsyncVectorEnv, shared_memory=False)])
def test_gymnasiums_own_vectorisation_plays_it(kind: type[SyncVectorEnv]) -> None:
    env = kind([wrapped_env] * 2, autoreset_mode=AutoresetMode.DISABLED)
    first, _ = env.reset(seed=5)
    wholes, _, terminated, _, infos = env.step(["<search> Peru </search>", "<answer> x </answer>"])
    assert wholes[0].startswith(first[0])
    assert "The seat of Peru is Lima." in wholes[0]
    assert terminated.tolist() == [False, True]
    assert infos["action"].tolist() == ["search", "answer"]
    env.close()


def test_other_environments_are_refused() -> None:
    with pytest.raises(TypeError, match="expected a SearchQAEnv inside, got CartPoleEnv"):
        TranscriptObservation(gymnasium.make("CartPole-v1"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a SearchQAVectorEnv inside"):
        VectorTranscriptObservation(gymnasium.make_vec("CartPole-v1", num_envs=2))  # type: ignore[arg-type]
