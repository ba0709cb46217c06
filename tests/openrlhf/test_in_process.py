"""OpenRLHF's own maker, Experience, PolicyLoss and ActorPPOTrainer, in this process.

Episodes are played by the agent function with the engine's stand-in. DeepSpeed runs ZeRO-3 in one
process, in float32, so that both paths can be compared to 1e-5.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
import vllm
from openrlhf.models import PolicyLoss
from openrlhf.models.utils import compute_approx_kl
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor, _load_agent_executor
from openrlhf.utils import get_strategy
from openrlhf.utils import utils as openrlhf_utils
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.scoring.one_by_one import OneByOneScorer
from agents.scoring.trie_scorer import TrieScorer
from agents.tokenization import SegmentTokenizer
from agents.transformers_policy import TransformersPolicy
from igsearch_env.credit import GRPO, CreditAssignment, IGSearch, make_credit
from igsearch_env.episode import Episode
from igsearch_env.gain.belief import settle_belief
from igsearch_env.gain.shaping import Shaping
from trainers.local.update import policy_loss
from trainers.openrlhf.experience_maker import GainExperienceMaker, grouped, write_advantages
from trainers.openrlhf.flags import AGENT, read_flags
from trainers.openrlhf.launch import SETTINGS, Checked, launch
from trainers.openrlhf.policy_actor import GainPolicyActor, make_scorer
from trainers.openrlhf.seams import original_class
from trainers.rollout_settings import make_label
from trainers.steady import RetrieverLostError

from .conftest import POLICY, ROOT

GROUP = 4
MAX_LEN = 512


@pytest.fixture(scope="module")
def args(
    tmp_path_factory: pytest.TempPathFactory, question_file: Any, index: Any
) -> SimpleNamespace:
    """Settings as OpenRLHF's parser and validators leave them, in float32 on one rank."""
    from .conftest import TINY, as_words

    flags = {
        "out": tmp_path_factory.mktemp("run") / "run",
        "ig.questions": question_file,
        "ig.retriever": index,
        **TINY,
        "actor.num_gpus_per_node": 1,
        "check": True,
    }
    with pytest.raises(Checked) as checked:
        launch(read_flags(as_words(flags)))
    settings: SimpleNamespace = checked.value.args[0]
    settings.ds.param_dtype = "fp32"  # not for users: the parser knows bf16 and fp16
    return settings


@pytest.fixture(scope="module")
def policy(args: SimpleNamespace) -> Iterator[Any]:
    """The real policy actor, not remote: DeepSpeed with ZeRO-3 over gloo, one rank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openrlhf_utils, "convert_to_torch_dtype", lambda name: torch.float32)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        actor = GainPolicyActor(1, 0, "127.0.0.1", port)
        actor.init_model_from_pretrained(get_strategy(args), str(POLICY), 10, None)
        yield actor
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def make_maker(args: SimpleNamespace, policy: Any) -> Iterator[Callable[[], GainExperienceMaker]]:
    """The real maker with this project's in its place; its one actor is called directly."""

    def batch(method_name: str, **data: Any) -> list[Any]:
        count = len(next(iter(data.values())))
        return [policy.execute_batch(method_name, data, 0, count)]

    group = SimpleNamespace(
        _actor_handlers=[policy], duplicate_actors=1, async_run_method_batch=batch
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("get", "put"):
            patch.setattr(ray, name, lambda value: value)

        def make() -> GainExperienceMaker:
            kl = SimpleNamespace(value=0.0)
            strategy = SimpleNamespace(args=args)
            theirs = RemoteExperienceMaker(group, None, None, None, kl, strategy, policy.tokenizer)
            return GainExperienceMaker.in_place_of(theirs)

        yield make


Play = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def play(args: SimpleNamespace, policy: Any) -> Play:
    """Let the agent function, loaded as OpenRLHF loads it, play questions side by side."""
    llm = vllm.AsyncLLMEngine({"model": str(POLICY), "dtype": "float32", "seed": 0})
    rollout_actor = SimpleNamespace(llm=llm, _mm_pad_token_ids=None)
    rollout_actor.generate = partial(original_class(RolloutRayActor).generate, rollout_actor)
    sampling = vllm.SamplingParams(max_tokens=None, logprobs=1)

    def run(asked: list[Any], *, training: bool = True, **changes: Any) -> list[dict[str, Any]]:
        llm.turn = asyncio.Lock()  # it belongs to the event loop that first waits for it
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(os.environ, SETTINGS, replace(args.ig.rollout, **changes).to_json())
            executor = _load_agent_executor(str(ROOT / AGENT))

        async def play_all() -> list[dict[str, Any]]:
            episodes = (
                executor.execute(
                    question.text,
                    make_label(question, training=training),
                    sampling,
                    MAX_LEN,
                    policy.tokenizer,
                    rollout_actor,
                )
                for question in asked
            )
            return list(await asyncio.gather(*episodes))

        played = asyncio.run(play_all())
        assert sampling.stop == []  # it is shared by the samples of a prompt
        return played

    return run


@pytest.fixture(scope="module")
def responses(play: Play, questions: list[Any]) -> list[dict[str, Any]]:
    """Groups of episodes of eight questions."""
    return play([question for question in questions[:8] for _ in range(GROUP)])


def as_samples(responses: list[dict[str, Any]]) -> list[Experience]:
    """What OpenRLHF's generator makes of the agent's responses."""
    return [
        SamplesGenerator._process_response_into_experience(None, response, max_len=MAX_LEN)
        for response in responses
    ]


def local_advantages(
    args: SimpleNamespace, episodes: list[Episode], size: int = GROUP
) -> tuple[list[Any], list[Any]]:
    """What the local trainer's parts make of the same episodes with the same weights."""
    agent = TransformersPolicy.from_pretrained(POLICY, dtype=torch.float32)
    gain = args.ig.rollout.information_gain(agent.tokenizer.tokenizer)
    settled = gain.settle(grouped(episodes, size), agent.scorer())
    return settled, make_credit("ig_search", alpha=1.0, shaping=Shaping(dead_zone=0.0))(settled)


def rows_of(experiences: list[Experience], name: str) -> list[torch.Tensor]:
    """One row per rollout, in the order of the rollouts."""
    rows = {
        i: row
        for experience in experiences
        for i, row in zip(experience.index, getattr(experience, name), strict=True)
    }
    return [rows[i] for i in range(len(rows))]


def test_the_agent_keeps_the_ids_and_log_probs_that_were_sampled(
    responses: list[dict[str, Any]], policy: Any
) -> None:
    tokenizer = SegmentTokenizer(policy.tokenizer)
    episodes = [response["label"] for response in responses]
    assert sum(len(episode.searches) for episode in episodes) > 32
    assert any(step.counterfactuals for episode in episodes for step in episode.steps)
    for response, episode in zip(responses, episodes, strict=True):
        ids, ranges = response["observation_tokens"], response["action_ranges"]
        assert len(ids) == len(response["rollout_log_probs"]) <= MAX_LEN
        assert ids == tokenizer.encode_context(episode.transcript)[: len(ids)]
        assert ranges[-1][1] == len(ids)
        written = [ids[start:end] for start, end in ranges]
        turns = [step for step in episode.steps if step.turn.token_ids]
        assert written == [list(step.turn.token_ids or ()) for step in turns]
        for (start, end), step in zip(ranges, turns, strict=True):
            assert response["rollout_log_probs"][start:end] == list(step.log_probs or ())
        assert response["reward"] == episode.outcome


def test_the_engine_that_sampled_can_score_too(
    args: SimpleNamespace, play: Play, questions: list[Any]
) -> None:
    episodes = [response["label"] for response in play(questions[8:14], scorer="vllm")]
    gains = [g for episode in episodes for g in episode.information_gains if g is not None]
    unsettled = [
        replace(e, steps=tuple(replace(step, information_gain=None) for step in e.steps))
        for e in episodes
    ]
    settled, _ = local_advantages(args, unsettled, size=1)
    expected = [g for episode in settled for g in episode.information_gains if g is not None]
    assert len(gains) > 6
    assert gains == pytest.approx(expected, abs=1e-4)


def test_episodes_of_an_evaluation_draw_no_evidence(play: Play, questions: list[Any]) -> None:
    episodes = [response["label"] for response in play(questions[14:18], training=False)]
    assert any(episode.searches for episode in episodes)
    assert not any(step.counterfactuals for episode in episodes for step in episode.steps)


def test_a_rollout_whose_search_fails_is_played_no_further(
    play: Play, questions: list[Any]
) -> None:
    nobody = "http://127.0.0.1:9/retrieve"
    played = [r["label"] for r in play(questions[18:22], retriever=nobody)]
    failed = [episode for episode in played if episode.retrieval_failed]
    assert failed
    for episode in failed:
        assert episode.steps[-1].retrieval_failed
        assert (episode.finished, episode.outcome) == (True, 0.0)


def test_both_trainers_give_the_same_advantages(
    args: SimpleNamespace, make_maker: Callable[..., Any], responses: list[dict[str, Any]]
) -> None:
    settled, expected = local_advantages(args, [response["label"] for response in responses])
    maker = make_maker()
    experiences = maker.make_experience_batch(as_samples(responses))
    masks = rows_of(experiences, "action_mask")
    assert sum(abs(values).sum() for values in expected) > 1
    for row, mask, values in zip(rows_of(experiences, "advantages"), masks, expected, strict=True):
        torch.testing.assert_close(
            row[mask.bool()], torch.tensor(values, dtype=row.dtype), atol=1e-5, rtol=0
        )
        assert not row[~mask.bool()].any()
    gains = [g for episode in settled for g in episode.information_gains if g is not None]
    assert maker.metrics["information_gain"] == pytest.approx(sum(gains) / len(gains), abs=1e-5)
    assert all(experience.labels == [] for experience in experiences)


def test_gains_land_on_the_query_columns_and_on_no_other(
    make_maker: Callable[..., Any], responses: list[dict[str, Any]], policy: Any
) -> None:
    episodes = [response["label"] for response in responses]
    experiences = make_maker().make_experience_batch(as_samples(responses))
    outcome = GRPO()(grouped(episodes, GROUP))
    paid = 0
    for i, episode in enumerate(episodes):
        mask = rows_of(experiences, "action_mask")[i].bool()
        row, ids = rows_of(experiences, "advantages")[i], rows_of(experiences, "sequences")[i]
        extra = row.clone()
        extra[mask] -= torch.tensor(outcome[i], dtype=row.dtype)
        columns = torch.where(extra.abs() > 1e-6)[0].tolist()
        queries = [
            torch.where(mask)[0][step.query_tokens].tolist()
            for step in episode.searches
            if step.counterfactuals
        ]
        assert set(columns) <= {column for query in queries for column in query}
        scored = [step for step in episode.searches if step.counterfactuals]
        for query, step in zip(queries, scored, strict=True):
            # Column c of the advantages belongs to token c + 1 of the sequence.
            text = policy.tokenizer.decode(ids[[column + 1 for column in query]])
            assert text.strip() == step.query
            paid += set(query) <= set(columns)
    assert paid > 16


def test_the_loss_is_that_of_the_local_trainer(
    make_maker: Callable[..., Any], responses: list[dict[str, Any]]
) -> None:
    experiences = make_maker().make_experience_batch(as_samples(responses))
    one = Experience.concat_experiences(experiences, 0)
    mask = one.action_mask.bool()
    new = one.action_log_probs + 0.3 * torch.randn(
        mask.shape, generator=torch.Generator().manual_seed(0)
    )
    theirs = PolicyLoss()(new, one.action_log_probs, one.advantages, action_mask=one.action_mask)
    ours = policy_loss(new[mask], one.action_log_probs[mask], one.advantages[mask], int(mask.sum()))
    torch.testing.assert_close(theirs[0], ours.loss, atol=1e-5, rtol=0)
    assert ours.clipped > 0


def test_a_step_with_too_many_failures_teaches_nothing_and_a_third_one_ends_the_run(
    make_maker: Callable[..., Any], args: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = make_maker()
    maker._count_lost(0.5)
    maker._count_lost(0.5)
    assert maker.lost_steps == 2
    maker._count_lost(0.1)
    assert maker.lost_steps == 0
    maker._count_lost(0.5)
    maker._count_lost(0.5)
    with pytest.raises(RetrieverLostError, match="failed in each of 3 steps, 50% in the last"):
        maker._count_lost(0.5)
    allowed = replace(args.ig.rollout, max_failed_searches=0.6, failed_tries=1)
    monkeypatch.setattr(args.ig, "rollout", allowed)
    maker._count_lost(0.5)
    with pytest.raises(RetrieverLostError, match=r"more than 60% .* in each of 1 steps"):
        maker._count_lost(0.7)


def test_a_failed_search_takes_its_rollout_out_and_is_counted(
    make_maker: Callable[..., Any],
    responses: list[dict[str, Any]],
    args: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(args.ig, "rollout", replace(args.ig.rollout, max_failed_searches=1.0))
    broken = []
    for i, response in enumerate(responses):
        episode = response["label"]
        if i < GROUP + 1:  # a whole group, and one of the next
            first = replace(episode.steps[0], action="search", retrieval_failed=True)
            episode = replace(episode, steps=(first, *episode.steps[1:]))
        broken.append({**response, "label": episode})
    maker = make_maker()
    experiences = maker.make_experience_batch(as_samples(broken))
    masks, rows = rows_of(experiences, "action_mask"), rows_of(experiences, "advantages")
    assert [int(mask.sum()) for mask in masks[: GROUP + 1]] == [1] * (GROUP + 1)
    assert not any(row.any() for row in rows[: GROUP + 1])
    assert all(int(mask.sum()) > 1 for mask in masks[GROUP + 1 :])
    assert maker.metrics["failed_rollouts"] == pytest.approx((GROUP + 1) / len(responses))
    assert maker.metrics["failed_searches"] > 0


def test_a_failed_rollout_adds_nothing_to_a_kl_loss(responses: list[dict[str, Any]]) -> None:
    one = Experience.concat_experiences(as_samples(responses[:2]), 0)
    shape = one.action_mask.shape
    one.advantages = torch.ones(shape)
    one.action_log_probs = -torch.rand(shape, generator=torch.Generator().manual_seed(0))
    one.base_action_log_probs = one.action_log_probs - 0.5
    episodes = [response["label"] for response in responses[:2]]
    dead = replace(episodes[0].steps[0], action="search", retrieval_failed=True)
    episodes[0] = replace(episodes[0], steps=(dead, *episodes[0].steps[1:]))
    ones = [np.ones(int(row.sum())) for row in one.action_mask]
    write_advantages(one, episodes, ones)
    now = one.action_log_probs.clone().requires_grad_()
    kl = compute_approx_kl(now, one.base_action_log_probs, kl_estimator="k3") * one.action_mask
    kl.sum().backward()
    assert int(one.action_mask[0].sum()) == 1
    assert not kl[0].any()
    assert not now.grad[0].any()
    assert torch.equal(now.grad[1] != 0, one.action_mask[1].bool())


def test_a_model_that_needs_its_own_attention_cannot_score_in_shards() -> None:
    model = AutoModelForCausalLM.from_pretrained(POLICY)
    tokenizer = SegmentTokenizer(AutoTokenizer.from_pretrained(POLICY))
    assert isinstance(make_scorer(model, tokenizer, True), TrieScorer)
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_type": "dynamic"}
    assert type(make_scorer(model, tokenizer, False)) is OneByOneScorer
    with pytest.raises(ValueError, match=r"ring_attn_size above 1 .* or set --ig\.scorer vllm"):
        make_scorer(model, tokenizer, True)


def test_methods_get_what_they_look_at(
    make_maker: Callable[..., Any], responses: list[dict[str, Any]], args: SimpleNamespace
) -> None:
    @dataclass(frozen=True)
    class Beliefs(CreditAssignment):
        """Pays what the policy believes, scaled by how far training has come."""

        scale: float = 1.0
        uses_information_gain = False
        uses_belief = True

        def at(self, progress: float) -> Beliefs:
            return Beliefs(progress)

        def __call__(self, episodes: Sequence[Episode]) -> list[Any]:
            return [np.full(e.policy_tokens, self.scale * e.prior_log_prob) for e in episodes]

    maker = make_maker()
    maker.credit, maker.progress = Beliefs(), 0.25
    experiences = maker.make_experience_batch(as_samples(responses))
    rows, masks = rows_of(experiences, "advantages"), rows_of(experiences, "action_mask")
    agent = TransformersPolicy.from_pretrained(POLICY, dtype=torch.float32)
    gain = args.ig.rollout.information_gain(agent.tokenizer.tokenizer)
    episodes = [response["label"] for response in responses]
    settled = settle_belief(episodes, agent.scorer(), gain)
    for row, mask, episode in zip(rows, masks, settled, strict=True):
        assert row[mask.bool()].tolist() == pytest.approx(
            [0.25 * episode.prior_log_prob] * episode.policy_tokens, abs=1e-5
        )


def test_nothing_is_scored_once_the_weight_has_come_to_0(
    make_maker: Callable[..., Any], responses: list[dict[str, Any]]
) -> None:
    maker = make_maker()
    maker.credit = IGSearch(alpha=1.0, alpha_final=0.0, alpha_until=0.5)
    for progress, scored in ((0.4, True), (0.6, False)):
        maker.progress = progress
        maker.make_experience_batch(as_samples(responses))
        assert ("information_gain" in maker.metrics) is scored


def test_rollouts_of_a_group_must_belong_together(responses: list[dict[str, Any]]) -> None:
    episodes = [response["label"] for response in responses]
    assert len({episode.group_id for episode in grouped(episodes, GROUP)}) == 8
    with pytest.raises(ValueError, match=r"rollout 4 answers question .* keep the 5 rollouts"):
        grouped(episodes, GROUP + 1)


def weights(policy: Any) -> torch.Tensor:
    import deepspeed

    parameters = list(policy.actor.model.module.parameters())
    with deepspeed.zero.GatheredParameters(parameters):
        return torch.cat([parameter.detach().flatten().clone() for parameter in parameters])


def test_a_training_step_learns_from_gains_alone_and_not_from_failures(
    make_maker: Callable[..., Any], responses: list[dict[str, Any]], policy: Any
) -> None:
    """Run last: it changes the weights."""
    before = weights(policy)
    failed, lost = [], []
    for response in responses:
        first, *others = response["label"].steps
        dead = replace(first, action="search", retrieval_failed=True)
        failed.append({**response, "label": replace(response["label"], steps=(dead, *others))})
        steps = tuple(replace(step, reward=0.0) for step in response["label"].steps)
        lost.append({**response, "label": replace(response["label"], steps=steps, outcome=0.0)})
    for experience in make_maker().make_experience_batch(as_samples(failed)):
        policy.append(experience)
    status = policy.fit(0.0)
    assert status["policy_loss"] == 0.0
    torch.testing.assert_close(weights(policy), before, atol=0, rtol=0)
    for experience in make_maker().make_experience_batch(as_samples(lost)):
        assert experience.advantages.any()  # though every outcome is 0
        policy.append(experience)
    status = policy.fit(0.0)
    assert status["actor_grad_norm"] > 0
    assert not torch.equal(weights(policy), before)
    assert weights(policy).isfinite().all()
