"""TRL's real trainer on the environment, with the shipped policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch

trl = pytest.importorskip("trl", reason="needs the extra trl")

from agents.grpo_agent import GRPOAgent  # noqa: E402
from agents.loading import load_policy  # noqa: E402
from agents.tokenization import SegmentTokenizer  # noqa: E402
from igsearch_env import BM25Retriever, Document, RetrievalError, World, make_credit  # noqa: E402
from igsearch_env.completion import Completion  # noqa: E402
from igsearch_env.credit import GRPO  # noqa: E402
from igsearch_env.episode import Episode  # noqa: E402
from igsearch_env.settings import make_engine  # noqa: E402
from trainers.local.token_batch import TokenBatch, policy_log_probs  # noqa: E402
from trainers.local.update import policy_loss  # noqa: E402
from trainers.steady import RetrieverLostError  # noqa: E402
from trainers.trl.rollouts import (  # noqa: E402
    REFUSED,
    REFUSED_WITH_TOKEN_CREDIT,
    SearchRollouts,
    TokenCreditTrainer,
    check_config,
    completion,
    prompts,
    reward,
)

pytestmark = pytest.mark.filterwarnings("ignore")
Make = Callable[..., Any]


def cpu_config(folder: Path, **settings: Any) -> Any:
    """What TRL needs to train on a CPU, and to write nothing."""
    return trl.GRPOConfig(
        str(folder),
        learning_rate=1e-3,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        **settings,
    )


class Flaky:
    """BM25 that gives up on every call but the first and each third after it."""

    def __init__(self, retriever: BM25Retriever) -> None:
        self.retriever, self.calls = retriever, 2

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        self.calls += 1
        if self.calls % 3:
            raise RetrievalError("down")
        return self.retriever.search(queries, k)


@pytest.fixture
def make(world: World, tmp_path: Path) -> Make:
    def make(
        kind: Any = TokenCreditTrainer,
        flaky: bool = False,
        weight: float = 0.0,
        temperature: float = 1.0,
        credit: str = "ig_search",
        allowed: float = 1.0,
        **settings: Any,
    ) -> Any:
        policy = load_policy("agents/world-tiny", seed=3)
        bm25 = BM25Retriever.build(world.documents)
        train = [question for question in world.train_questions if question.hops == 1]
        engine = make_engine(
            train,
            Flaky(bm25) if flaky else bm25,
            policy.scorer() if weight else None,
            protocol=policy.protocol,
            max_searches=2,
            top_k=1,
            counterfactual="documents",
            information_gain_weight=weight,
        )
        agent = GRPOAgent(policy, engine.information_gain, make_credit(credit))
        config = cpu_config(
            tmp_path,
            per_device_train_batch_size=8,
            num_generations=4,
            temperature=temperature,
            **settings,
        )
        return kind(
            policy.model,
            reward,
            args=config,
            train_dataset=prompts(train),
            processing_class=policy.tokenizer.tokenizer,
            rollout_func=SearchRollouts(engine, agent, max_failed_searches=allowed),
        )

    return make


def searching(policy: Any) -> Completion:
    """A turn that searches."""
    ids = policy.tokenizer.encode_answer("", "<search> Allia home </search>")[1]
    return Completion.from_tokens(ids, [-1.0] * len(ids), policy.tokenizer.decode)


def generate(trainer: Any) -> dict[str, Any]:
    ids = [row["prompt"] for row in trainer.train_dataset.select(range(2)) for _ in range(4)]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch: dict[str, Any] = trainer._generate_and_score_completions([{"prompt": i} for i in ids])
    return batch


def test_two_optimisation_steps(make: Make) -> None:
    trainer = make(max_steps=2, logging_steps=1)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 2
    moved = [not torch.equal(before[n], w) for n, w in trainer.model.named_parameters()]
    assert all(moved)
    assert {"reward", "loss"} <= trainer.state.log_history[0].keys()


def test_the_method_is_told_how_far_training_has_come(make: Make) -> None:
    trainer = make(max_steps=2)
    agent, told = trainer.rollout_func.agent, []

    class Told(GRPO):
        def at(self, progress: float) -> Self:
            told.append(progress)
            return self

    agent.credit = Told()
    trainer.train()
    assert told == [0.0, 0.0, 1.0, 1.0]  # once to settle, once for the advantages


def test_the_gradient_is_that_of_the_local_trainer(make: Make) -> None:
    trainer = make()
    model, rollouts = trainer.model, trainer.rollout_func
    batch = generate(trainer)
    episodes, agent = rollouts.episodes, rollouts.agent
    assert any(gain is not None for e in episodes for gain in e.information_gains)
    trainer._compute_loss(model, batch).backward()
    theirs = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    model.zero_grad()
    tokens = TokenBatch.from_episodes(episodes, agent.policy.tokenizer)
    log_probs, _ = policy_log_probs(model, tokens)
    advantages = tokens.spread(agent.advantages(episodes))
    assert advantages.abs().max() > 0
    policy_loss(log_probs, log_probs.detach(), advantages, len(log_probs)).loss.backward()
    ours = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    assert ours.norm() > 1e-3
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-3)


def test_a_method_that_reads_beliefs_gets_them(make: Make) -> None:
    trainer = make(credit="igpo")
    batch = generate(trainer)
    episodes = trainer.rollout_func.episodes
    assert all(episode.prior_log_prob is not None for episode in episodes)
    assert batch["advantages"].abs().max() > 0
    assert not trainer.rollout_func.agent.policy.memory.held()  # room for the update


def test_sampled_log_probs_stand_at_their_tokens(make: Make) -> None:
    trainer = make()
    batch = generate(trainer)
    ids = torch.cat((batch["prompt_ids"], batch["completion_ids"]), dim=1)
    seen = torch.cat((batch["prompt_mask"], batch["completion_mask"]), dim=1)
    with torch.no_grad():
        width = batch["completion_ids"].shape[1]
        values, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, seen, width)
    mask = (batch["tool_mask"] * batch["completion_mask"]).bool()
    torch.testing.assert_close(
        values[mask], batch["sampling_per_token_logps"][mask], atol=1e-4, rtol=1e-3
    )


def test_an_episode_whose_search_failed_teaches_nothing(make: Make) -> None:
    trainer = make(flaky=True)
    batch = generate(trainer)
    failed = [episode.retrieval_failed for episode in trainer.rollout_func.episodes]
    assert any(failed)
    assert not (batch["tool_mask"] * batch["completion_mask"])[failed].any()
    assert not batch["advantages"][failed].any()


def test_an_episode_whose_outcome_could_not_be_had_teaches_nothing(
    sampled: list[Episode], tokenizer: SegmentTokenizer
) -> None:
    whole = completion(sampled[0], tokenizer)
    masked = completion(replace(sampled[0], outcome=None, unscored=True), tokenizer)
    assert (masked["paid"], sum(masked["env_mask"])) == (None, 0)
    assert whole["paid"] is not None
    assert sum(whole["env_mask"]) > 0
    assert masked["completion_ids"] == whole["completion_ids"]


def test_trls_own_trainer_learns_from_shaped_rewards(make: Make) -> None:
    trainer = make(trl.GRPOTrainer, weight=0.5)
    batch = generate(trainer)
    assert batch["advantages"].shape == (8,)
    episodes = trainer.rollout_func.episodes
    assert any(step.reward for episode in episodes for step in episode.searches)
    paid = np.array([sum(step.reward for step in e.steps) for e in episodes]).reshape(2, 4)
    centred = paid - paid.mean(axis=1, keepdims=True)
    expected = centred / (paid.std(axis=1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(batch["advantages"].numpy(), expected.ravel(), atol=1e-4)


def test_temperatures_must_agree(make: Make) -> None:
    with pytest.raises(ValueError, match="samples at temperature 1"):
        make(temperature=0.7)
    with pytest.raises(ValueError, match="samples at temperature 1"):
        generate(make(trl.GRPOTrainer, temperature=0.7))


@pytest.mark.parametrize("kind", [TokenCreditTrainer, trl.GRPOTrainer])
def test_nothing_is_learned_from_truncated_episodes_if_that_is_asked_for(
    make: Make, kind: Any
) -> None:
    trainer = make(kind, mask_truncated_completions=True)
    policy = trainer.rollout_func.agent.policy
    stubborn = trainer.train_dataset[1]["prompt"]  # it is never answered
    sampled = policy.act

    def act(episodes: Sequence[Episode]) -> list[Completion]:
        return [
            searching(policy) if episode.question.id == stubborn else turn
            for episode, turn in zip(episodes, sampled(episodes), strict=True)
        ]

    policy.act = act
    batch = generate(trainer)
    truncated = np.array([episode.truncated for episode in trainer.rollout_func.episodes])
    assert 0 < truncated.sum() < len(truncated)
    learned = (batch["tool_mask"] * batch["completion_mask"]).any(dim=1).numpy()
    assert (learned == ~truncated).all()
    assert batch["completion_mask"].any(dim=1).all()  # what is not learned is still read
    logged = trainer._metrics["train"]
    assert logged["episodes/truncated"] == [truncated.mean()]
    assert ("completions/clipped_ratio" in logged) == (kind is trl.GRPOTrainer)
    if kind is TokenCreditTrainer:
        assert not batch["advantages"][truncated].any()
        assert batch["advantages"].any()
    trainer._compute_loss(trainer.model, batch).backward()


def config(tmp_path: Path, **settings: Any) -> Any:
    return trl.GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"top_p": 0.9}, "the policy samples the turns"),
        ({"top_k": 50}, "the policy samples the turns"),
        ({"min_p": 0.1}, "the policy samples the turns"),
        ({"repetition_penalty": 1.1}, "the policy samples the turns"),
        ({"generation_kwargs": {"top_k": 5}}, "the policy samples the turns"),
        ({"use_vllm": True}, "the policy samples the turns"),
        ({"max_completion_length": 64}, "the environment's rules"),
        ({"max_tool_calling_iterations": 3}, "the environment's rules"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "the prompt is that"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(
    tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=rf"GRPOConfig\({name}=.*would do nothing: {reason}"):
        check_config(config(tmp_path, **settings), 1.0, token_credit=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"scale_rewards": "batch"},
        {"reward_weights": [0.5]},
        {"multi_objective_aggregation": "normalize_then_sum"},
        {"use_liger_kernel": True},
        {"off_policy_mask_threshold": 0.5},
        {"loss_type": "vespo"},
        {"importance_sampling_level": "sequence"},
    ],
)
def test_what_is_made_for_rewards_is_refused_with_token_credit_alone(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    given = config(tmp_path, **settings)
    check_config(given, 1.0, token_credit=False)
    with pytest.raises(ValueError, match="the credit method makes the advantages"):
        check_config(given, 1.0, token_credit=True)


def test_settings_that_keep_their_meaning_pass(tmp_path: Path) -> None:
    check_config(config(tmp_path), 1.0, token_credit=True)
    kept = config(
        tmp_path,
        loss_type="dr_grpo",
        max_completion_length=900,
        mask_truncated_completions=True,
        num_iterations=2,
        beta=0.04,
        epsilon=0.1,
        top_entropy_quantile=0.5,
    )
    check_config(kept, 1.0, token_credit=True)
    for field in (*REFUSED, *REFUSED_WITH_TOKEN_CREDIT):
        assert hasattr(kept, field), f"trl has no {field} any more"


def test_a_retriever_that_dies_ends_training_with_a_checkpoint(make: Make, tmp_path: Path) -> None:
    trainer = make(flaky=True, allowed=0.1, max_steps=3)
    policy = trainer.rollout_func.agent.policy
    policy.act = lambda episodes: [searching(policy) for _ in episodes]
    with pytest.raises(RetrieverLostError, match="of the searches of step 1 failed"):
        trainer.train()
    assert (tmp_path / "checkpoint-0").is_dir()


def test_a_prompt_that_is_no_question_is_named(make: Make) -> None:
    trainer = make()
    with pytest.raises(ValueError, match="the prompt 'what' is not the id of a question"):
        trainer.rollout_func(["what"], trainer)
