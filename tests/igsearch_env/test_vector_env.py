"""The vector environment: batched calls, rows that have ended, seeds, and Gymnasium's wrappers."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from igsearch_env import EvidencePool, SearchQAEnv, SearchQAVectorEnv
from igsearch_env.render import render_text
from tests.igsearch_env.fakes import (
    CAPITALS,
    DOCUMENTS,
    ITALY,
    PERU,
    QUESTIONS,
    SWAP_PAIRS,
    FakeRetriever,
    FakeScorer,
    sampled,
)

ID = "igsearch_env:igsearch/SearchQA-v0"
NORWAY = QUESTIONS[2]
PERU_ASKED = {"questions": [PERU, ITALY, NORWAY]}


def warm_env(rows: int = 3, **more: Any) -> SearchQAVectorEnv:
    """Rows that ask for the capitals of Peru, Italy and Norway, their pool filled."""
    arguments: dict[str, Any] = {
        "questions": QUESTIONS,
        "retriever": FakeRetriever(),
        "scorer": FakeScorer(),
        "num_counterfactuals": 2,
        "counterfactual": "documents+refinement",  # so that a gain settles one call later
        "added_only": False,
        "pool": EvidencePool(tries=1000),
    }
    env = SearchQAVectorEnv(rows, **arguments | more)
    env.reset(options={"questions": list(QUESTIONS[:rows])})
    for pair in SWAP_PAIRS:
        env.engine.pool.add(pair)
    return env


def calls_of(env: SearchQAVectorEnv) -> tuple[int, int]:
    """How often the retriever and the scorer were called."""
    retriever, scorer = env.engine.retriever, env.engine.scorer
    assert isinstance(retriever, FakeRetriever)
    assert isinstance(scorer, FakeScorer)
    return len(retriever.calls), len(scorer.calls)


def search(name: str) -> str:
    return f"<search>{name}</search>"


ANSWER = "<answer>Lima</answer>"


class TestBatching:
    @pytest.mark.parametrize("counterfactual", ["documents+refinement", "documents"])
    def test_one_search_and_one_scoring_call_per_step(self, counterfactual: str) -> None:
        env = warm_env(8, counterfactual=counterfactual, num_counterfactuals=1)
        names = list(CAPITALS)
        env.step([search(names[(row + 1) % 8]) for row in range(8)])
        at_once = counterfactual == "documents"
        assert calls_of(env) == (1, int(at_once))
        for turn in range(2, 5):
            env.step(
                [f"<refine>r{row}</refine>{search(names[(row + turn) % 8])}" for row in range(8)]
            )
            assert calls_of(env) == (turn, turn if at_once else turn - 1)
        env.step([ANSWER] * 8)
        assert calls_of(env) == (4, 4)
        assert env.engine.pool.counts["fallback"] == 0
        assert all(None not in episode.information_gains for episode in env.episodes)

    def test_only_searching_rows_are_searched_for(self) -> None:
        env = warm_env()
        env.step([search("Peru"), "x", search("Cuba")])
        retriever = env.engine.retriever
        assert isinstance(retriever, FakeRetriever)
        assert retriever.calls == [(("Peru", "Cuba"), 3)]
        env.step(["x", "y", "z"])
        assert len(retriever.calls) == 1

    def test_each_row_gets_what_it_asked_for(self) -> None:
        env = warm_env()
        texts, _, _, _, infos = env.step([search("Peru"), ANSWER, search("Cuba")])
        assert "Lima" in texts[0]
        assert texts[1] == ""
        assert "Havana" in texts[2]
        assert infos["documents"][0] == (DOCUMENTS["Peru"],)
        assert infos["documents"][2] == (DOCUMENTS["Cuba"],)

    def test_rows_are_what_single_environments_would_be(self) -> None:
        arguments: dict[str, Any] = {"questions": QUESTIONS, "num_counterfactuals": 0}
        turns = [search("Peru Italy"), "hm", "<refine>r</refine>" + search("Cuba"), ANSWER]
        vector = SearchQAVectorEnv(3, retriever=FakeRetriever(), **arguments)
        texts, infos = vector.reset(seed=11)
        rows: list[list[Any]] = [[] for _ in range(3)]
        for turn in turns:
            step = vector.step([sampled(turn)] * 3)
            for row in range(3):
                rows[row].append([part[row] for part in step[:4]])
        for row in range(3):
            single = SearchQAEnv(retriever=FakeRetriever(), **arguments)
            text, info = single.reset(seed=11 + row)
            assert (texts[row], infos["question"][row]) == (text, info["question"])
            assert rows[row] == [list(single.step(sampled(turn))[:4]) for turn in turns]
            assert vector.episodes[row] == single.episode


class TestInfos:
    def test_are_stacked_as_gymnasium_stacks_them(self) -> None:
        env = SearchQAVectorEnv(3, retriever=FakeRetriever(), questions=QUESTIONS)
        infos = [
            (0, {"search_step": 1, "query": "Peru", "query_span": (1, 2), "gain": 0.5}),
            (2, {"search_step": 2, "em": 1.0, "failed": True, "documents": (), "gain": -1.0}),
        ]
        theirs: dict[str, Any] = {}
        for row, info in infos:
            theirs = env._add_info(theirs, info, row)
        ours = env._stacked(infos)
        assert ours.keys() == theirs.keys()
        for key, array in theirs.items():
            assert ours[key].dtype == array.dtype, key
            assert ours[key].tolist() == array.tolist(), key

    def test_masks_tell_which_rows_have_a_key(self) -> None:
        env = warm_env()
        _, _, _, _, infos = env.step([search("Peru"), "x", "<answer>Rome</answer>"])
        assert infos["action"].tolist() == ["search", "invalid", "answer"]
        for key in ("query", "query_span", "documents", "search_step", "retrieval_failed"):
            assert infos[f"_{key}"].tolist() == [True, False, False], key
        for key in ("answer", "em", "f1", "information_gains"):
            assert infos[f"_{key}"].tolist() == [False, False, True], key
        assert "information_gain" not in infos
        assert infos["query_span"][0] == (8, 12)
        assert infos["information_gains"][2] == ()

    def test_gains(self) -> None:
        env = warm_env()
        env.step([search("Peru"), "x", search("Cuba")])
        _, _, _, _, infos = env.step([search("Cuba"), search("Peru"), ANSWER])
        assert infos["_information_gain"].tolist() == [True, False, True]
        assert infos["information_gain_step"].tolist() == [0, 0, 0]
        for row in (0, 2):
            step = env.episodes[row].searches[0]
            assert infos["information_gain"][row] == step.information_gain
            assert infos["log_prob"][row] == step.log_prob
            assert infos["baseline_log_probs"][row] == step.baseline_log_probs
        assert infos["information_gain"].dtype == np.float64
        assert infos["information_gains"][2] == env.episodes[2].information_gains

    def test_rewards(self) -> None:
        env = warm_env(information_gain_weight=1.0)
        env.step([search("Peru"), "x", "<answer>Oslo</answer>"])
        _, rewards, *_ = env.step([ANSWER, "<answer>in Rome</answer>", ""])
        gain = env.engine.shaping(env.episodes[0].information_gains[0] or 0.0)
        assert gain != 0.0
        assert rewards == pytest.approx([1.0 + gain, 0.0, 0.0])
        assert rewards.dtype == np.float64


class TestEndedRows:
    def test_flags_are_true_in_the_ending_call_alone(self) -> None:
        env = warm_env(max_searches=1)
        steps = [env.step([ANSWER, "x", search("Peru")]) for _ in range(5)]
        terminated = [step[2].tolist() for step in steps]
        truncated = [step[3].tolist() for step in steps]
        assert terminated == [[True, False, False]] + [[False] * 3] * 4
        assert truncated == [[False] * 3] * 2 + [[False, True, True]] + [[False] * 3] * 2
        assert [step[1].tolist() for step in steps] == [[1.0, 0.0, 0.0]] + [[0.0] * 3] * 4
        for texts, *_, infos in steps[1:]:
            assert texts[0] == ""
            assert all(not mask[0] for key, mask in infos.items() if key.startswith("_"))
        assert steps[3][0] == ("", "", "")
        assert steps[3][4] == steps[4][4] == {}

    def test_nothing_is_played_for_them(self) -> None:
        env = warm_env()
        env.step([ANSWER, ANSWER, "x"])
        before = env.episodes
        env.step([search("Peru"), search("Peru"), search("Cuba")])
        assert env.episodes[:2] == before[:2]
        retriever = env.engine.retriever
        assert isinstance(retriever, FakeRetriever)
        assert retriever.calls == [(("Cuba",), 3)]

    def test_their_actions_may_be_anything(self) -> None:
        env = warm_env()
        env.step([ANSWER, "x", "y"])
        nothing: Any = None
        env.step([nothing, "x", "y"])
        with pytest.raises(TypeError, match="an action must be a str"):
            env.step(["x", nothing, "y"])


class TestReset:
    def test_a_mask_starts_some_rows_anew(self) -> None:
        env = warm_env()
        env.step([ANSWER, "x", ANSWER])
        kept = env.episodes[1]
        mask = np.array([True, False, False])
        texts, infos = env.reset(options={"reset_mask": mask, "questions": [ITALY, PERU, PERU]})
        assert ITALY.text in texts[0]
        assert texts[1:] == ("", "")
        assert infos["_question"].tolist() == [True, False, False]
        assert infos["question"][0] == ITALY
        assert env.episodes[1] is kept
        _, _, terminated, _, infos = env.step([ANSWER, ANSWER, ANSWER])
        assert terminated.tolist() == [True, True, False]
        assert infos["_action"].tolist() == [True, True, False]

    def test_the_options_of_the_caller_are_left_alone(self) -> None:
        env = warm_env()
        options: dict[str, Any] = {"reset_mask": np.array([True, False, True])}
        env.reset(options=options)
        assert list(options) == ["reset_mask"]

    def test_groups(self) -> None:
        env = warm_env()
        env.reset(options={"questions": [PERU] * 3, "group_ids": ["a", "a", None]})
        assert [episode.group_id for episode in env.episodes] == ["a", "a", PERU.id]
        assert [episode.question for episode in env.episodes] == [PERU] * 3

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"reset_mask": [True]}, ValueError, r"shape \(3,\), got bool of shape \(1,\)"),
            ({"reset_mask": [1, 0, 1]}, ValueError, r"bool array of shape \(3,\), got int64"),
            (
                {"questions": [PERU]},
                ValueError,
                r"questions must have one entry per row \(3\), got 1",
            ),
            ({"group_ids": ["a"]}, ValueError, r"group_ids must have one entry per row \(3\)"),
            ({"questions": ["a", "b", "c"]}, TypeError, "must be a Question, got str"),
            ({"mask": [True] * 3}, ValueError, r"unknown reset options \['mask'\]; known are"),
        ],
    )
    def test_bad_options(self, options: Any, error: Any, message: str) -> None:
        env = warm_env()
        before = env.episodes
        with pytest.raises(error, match=message):
            env.reset(options=options)
        assert env.episodes == before

    def test_the_first_reset_starts_every_row(self) -> None:
        env = SearchQAVectorEnv(2, questions=QUESTIONS, retriever=FakeRetriever())
        with pytest.raises(RuntimeError, match="must start every row; leave out reset_mask"):
            env.reset(options={"reset_mask": np.array([True, False])})
        env.reset()
        assert len(env.episodes) == 2


class TestSeeds:
    @staticmethod
    def ask(env: SearchQAVectorEnv, times: int = 6, **reset: Any) -> list[tuple[Any, ...]]:
        asked = [tuple(env.reset(**reset)[1]["question"])]
        return asked + [tuple(env.reset()[1]["question"]) for _ in range(times - 1)]

    def test_a_seed_decides_everything(self) -> None:
        def run(env: SearchQAVectorEnv, seed: int) -> list[Any]:
            result: list[Any] = [env.reset(seed=seed)]
            for turn in (search("Peru Cuba"), search("Japan"), ANSWER):
                env.step([turn] * 3)
            return [*result, env.episodes]

        env, other = warm_env(), warm_env()
        assert repr(run(env, 5)) == repr(run(env, 5)) == repr(run(other, 5))
        assert repr(run(env, 5)) != repr(run(env, 6))

    def test_row_i_gets_seed_plus_i(self) -> None:
        whole = self.ask(warm_env(), seed=5)
        assert whole == self.ask(warm_env(), seed=[5, 6, 7])
        shifted = self.ask(warm_env(), seed=6)
        assert [row[1] for row in whole] == [row[0] for row in shifted]
        assert len({tuple(column) for column in zip(*whole, strict=True)}) == 3

    def test_rows_without_a_seed_go_on(self) -> None:
        env, twin = warm_env(), warm_env()
        env.reset(seed=1)
        twin.reset(seed=1)
        assert self.ask(env, seed=[None, 2, None])[0][0] == self.ask(twin)[0][0]

    def test_rows_that_are_left_alone_keep_their_generator(self) -> None:
        env, twin = warm_env(), warm_env()
        env.reset(seed=1)
        twin.reset(seed=1)
        env.reset(seed=[8, 9, 10], options={"reset_mask": np.array([True, False, True])})
        assert [row[1] for row in self.ask(env)] == [row[1] for row in self.ask(twin)]
        assert len(env.engine.pool) == 0

    @pytest.mark.parametrize(
        ("seed", "left"), [(None, 2), ([None, 1, 2], 2), ([1, None, None], 0), (0, 0)]
    )
    def test_the_first_seed_clears_the_pool(self, seed: Any, left: int) -> None:
        env = warm_env()
        env.reset(seed=seed)
        assert len(env.engine.pool) == left

    def test_seeds_per_row(self) -> None:
        with pytest.raises(ValueError, match=r"seed must have one entry per row \(3\), got 2"):
            warm_env().reset(seed=[1, 2])

    def test_the_rows_share_one_pool(self) -> None:
        env = warm_env(num_counterfactuals=1)
        env.engine.pool.seed(0)
        env.step([search("Cuba"), ANSWER, ANSWER])
        env.step([ANSWER] * 3)  # the pair of row 0 is complete
        env.reset(options={"reset_mask": np.array([False, True, False]), "questions": [ITALY] * 3})
        env.step(["", search("Fiji"), ""])
        (pair,) = env.episodes[1].steps[0].counterfactuals
        assert pair.question_id == PERU.id


@pytest.mark.parametrize("rows", [0, -1])
def test_needs_a_row(rows: int) -> None:
    with pytest.raises(ValueError, match=f"num_envs must be at least 1, got {rows}"):
        SearchQAVectorEnv(rows)


class TestSteps:
    @pytest.mark.parametrize(
        ("actions", "got"), [(["x"], "1"), (["x"] * 4, "4"), ("xyz", "a single str"), ([], "0")]
    )
    def test_one_action_per_row(self, actions: Any, got: str) -> None:
        with pytest.raises(ValueError, match=f"expected 3 actions, one per row, got {got}"):
            warm_env().step(actions)

    def test_before_the_first_reset(self) -> None:
        env = SearchQAVectorEnv(2, questions=QUESTIONS, retriever=FakeRetriever())
        with pytest.raises(RuntimeError, match=r"no episodes yet; call reset\(\) first"):
            env.step(["x", "y"])

    def test_a_bad_action_leaves_every_row_as_it_was(self) -> None:
        env = warm_env()
        before = env.episodes
        bad: Any = [search("Peru"), 3, "x"]
        with pytest.raises(TypeError, match="an action must be a str"):
            env.step(bad)
        assert env.episodes == before
        assert calls_of(env) == (0, 0)

    def test_a_retriever_failure_is_data(self) -> None:
        env = warm_env()
        _, rewards, terminated, truncated, infos = env.step([search("broken"), "x", ANSWER])
        assert infos["retrieval_failed"].tolist() == [True, False, False]
        assert not (terminated | truncated)[:2].any()
        assert rewards.tolist() == [0.0, 0.0, 0.0]
        assert [episode.retrieval_failed for episode in env.episodes] == [True, False, False]

    def test_arrays_and_completions_are_actions(self) -> None:
        env = warm_env()
        env.step(np.array(["x", "y", "z"]))  # type: ignore[arg-type]
        env.step([sampled("<answer>Lima</answer>")] * 3)
        assert all(episode.policy_tokens for episode in env.episodes)

    def test_render(self) -> None:
        env = warm_env(render_mode="ansi")
        env.step([search("Peru"), "x", ANSWER])
        shown = env.render()
        assert shown is not None
        assert shown == tuple(map(render_text, env.episodes))
        assert search("Peru") in shown[0]
        assert ANSWER in shown[2]
        assert warm_env().render() is None


@pytest.fixture
def _strict() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("_strict")
class TestGymnasium:
    @pytest.mark.parametrize("mode", [None, "vector_entry_point", "sync", "async"])
    def test_make_vec(self, mode: Any) -> None:
        keywords = {"shared_memory": False} if mode == "async" else {}
        env = gymnasium.make_vec(ID, 2, vectorization_mode=mode, vector_kwargs=keywords)
        try:
            own = mode in (None, "vector_entry_point")
            assert isinstance(env.unwrapped, SearchQAVectorEnv) is own
            texts, infos = env.reset(seed=3)
            assert len(texts) == 2
            assert texts in env.observation_space
            singly = [gymnasium.make(ID).reset(seed=3 + row) for row in range(2)]
            assert tuple(texts) == tuple(text for text, _ in singly)
            texts, rewards, terminated, _, infos = env.step((search("Zencorp"), ANSWER))
            assert terminated.tolist() == [False, True]
            assert infos["action"].tolist() == ["search", "answer"]
            assert rewards.tolist() == [0.0, 0.0]
            assert texts in env.observation_space
        finally:
            env.close()

    def test_what_it_tells_about_itself(self) -> None:
        env = gymnasium.make_vec(ID, 2, render_mode="ansi", questions="world-test")
        assert env.num_envs == 2
        assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        assert env.render_mode == "ansi"
        assert env.spec is not None
        assert env.spec.id == "igsearch/SearchQA-v0"
        assert env.action_space.sample() in env.action_space

    def test_statistics_count_an_episode_once(self) -> None:
        retriever = FakeRetriever()
        env = RecordEpisodeStatistics(
            gymnasium.make_vec(ID, 3, questions=QUESTIONS, retriever=retriever, max_searches=1)
        )
        env.reset(options=dict(PERU_ASKED))
        counted = []
        for _ in range(6):
            *_, infos = env.step([ANSWER, search("Italy"), "x"])
            counted += [infos["_episode"].tolist()] if "episode" in infos else []
        assert counted == [[True, False, False], [False, True, True]]
        assert env.episode_count == 3
        assert list(env.return_queue) == [1.0, 0.0, 0.0]
        assert list(env.length_queue) == [1, 3, 3]

        env.reset(options={"reset_mask": np.array([True, False, False]), **PERU_ASKED})
        env.step([search("Peru"), "", ""])
        *_, infos = env.step([ANSWER, "", ""])
        assert infos["episode"]["l"].tolist()[0] == 2
        assert env.episode_count == 4


def test_pickling_goes_on_from_the_same_place() -> None:
    env = warm_env()
    env.step([search("Peru"), "x", ANSWER])
    twin = pickle.loads(pickle.dumps(env))
    assert twin.episodes == env.episodes
    turns = ["<refine>r</refine>" + search("Fiji")] * 3
    assert repr(twin.step(turns)) == repr(env.step(turns))
    assert repr(twin.reset()) == repr(env.reset())
    assert twin.episodes == env.episodes


class TestNextStepAutoreset:
    def make(self, rows: int = 4, **more: Any) -> Any:
        arguments: dict[str, Any] = {"autoreset_mode": "NextStep", "max_searches": 1, **more}
        return gymnasium.make_vec(
            ID,
            num_envs=rows,
            questions=QUESTIONS,
            num_counterfactuals=0,
            retriever=FakeRetriever(),
            **arguments,
        )

    def test_a_loop_that_never_resets_goes_on_for_ever(self) -> None:
        """The loop of CleanRL's PPO: one reset, then steps; finished rows begin anew by themselves.

        Row i answers in its turn i + 1, so that rows end apart.
        """
        envs = RecordEpisodeStatistics(self.make())
        texts, _ = envs.reset(seed=1)
        ended, begun, ages, over = [0] * 4, [1] * 4, [0] * 4, np.zeros(4, dtype=bool)
        for _ in range(40):
            actions = [ANSWER if age >= row else "x" for row, age in enumerate(ages)]
            texts, rewards, terminated, truncated, infos = envs.step(actions)
            done = terminated | truncated
            for row in range(4):
                if over[row]:  # this call began an episode: it is no transition
                    assert texts[row].splitlines()[-1].startswith("Question: ")
                    assert not done[row]
                    assert rewards[row] == 0.0
                    assert infos["_question"][row]
                    assert infos["question"][row].text in texts[row]
                    begun[row], ages[row] = begun[row] + 1, 0
                else:
                    ages[row] += 1
                ended[row] += done[row]
            over = done
        assert min(ended) >= 8
        assert all(e <= b <= e + 1 for e, b in zip(ended, begun, strict=True))
        assert envs.episode_count == sum(ended)

    def test_questions_follow_from_the_seed(self) -> None:
        def asked(seed: int) -> list[str]:
            env = self.make(2)
            texts, _ = env.reset(seed=seed)
            found = [*texts]
            for _ in range(8):
                texts, *_ = env.step([ANSWER] * 2)
                found += texts
            return found

        assert asked(3) == asked(3) != asked(4)

    def test_the_mode_is_told_and_is_off_unless_it_is_asked_for(self) -> None:
        assert self.make().metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        assert SearchQAVectorEnv(2).metadata["autoreset_mode"] is AutoresetMode.DISABLED
        assert SearchQAVectorEnv.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        mode = AutoresetMode.NEXT_STEP
        assert SearchQAVectorEnv(2, autoreset_mode=mode).metadata["autoreset_mode"] is mode

    def test_other_modes_are_refused(self) -> None:
        with pytest.raises(ValueError, match="always"):
            SearchQAVectorEnv(2, autoreset_mode="always")


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_seeds_of_numpy_are_seeds(kind: Any) -> None:
    env, same = SearchQAEnv(), SearchQAEnv()
    assert env.reset(seed=kind(3))[0] == same.reset(seed=3)[0]
    rows, others = SearchQAVectorEnv(2), SearchQAVectorEnv(2)
    assert rows.reset(seed=kind(3))[0] == others.reset(seed=3)[0]
    assert rows.reset(seed=[kind(5), None])[0][0] == others.reset(seed=[5, None])[0][0]


def test_small_numpy_seeds_do_not_wrap_round() -> None:
    env = SearchQAVectorEnv(3, num_counterfactuals=0)
    assert env.reset(seed=np.uint8(254))[0] == env.reset(seed=254)[0]  # type: ignore[arg-type]
    for wrong in (3.7, "3"):
        with pytest.raises(TypeError):
            SearchQAEnv().reset(seed=wrong)  # type: ignore[arg-type]
