"""TRL's GRPOTrainer over the environment: rollouts, rewards, and token-level advantages.

TRL (extra ``trl``) calls a ``rollout_func`` for its completions: :class:`SearchRollouts` plays
whole episodes there. With it alone, TRL's own trainer learns from the rewards that the environment
pays, which hold the shaped information gain where ``information_gain_weight`` is above 0. TRL's
public interface knows one advantage per completion; its loss also takes one per token, and
:class:`TokenCreditTrainer` hands it those of a credit method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOTrainer

from agents.grpo_agent import GRPOAgent
from agents.tokenization import SegmentTokenizer
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Episode, Question
from igsearch_env.rollout import collect
from trainers.local.token_batch import episode_tokens


def prompts(questions: Sequence[Question]) -> Dataset:
    """A data set for TRL: the prompt of each row is the id of a question."""
    return Dataset.from_dict({"prompt": [question.id for question in questions]})


def reward(paid: Sequence[float | None], **others: Any) -> list[float | None]:
    """TRL's reward function: what the environment paid; None where a search failed.

    TRL leaves completions without a reward out of a group's mean.
    """
    return list(paid)


class SearchRollouts:
    """Plays an episode for each prompt; TRL's ``rollout_func``.

    Args:
        engine: The environment's engine (``SearchQAVectorEnv(...).engine``); the prompts are ids
            of its questions.
        agent: Samples with the very model that is trained. What its credit method looks at is
            settled with the weights that sampled.

    Attributes:
        episodes: Those of the last call, in the order of its prompts.
        progress: How far training had come then, from 0 to 1.
    """

    def __init__(self, engine: SearchQAEngine, agent: GRPOAgent) -> None:
        self.engine, self.agent = engine, agent
        self.episodes: list[Episode] = []
        self.progress = 0.0
        self._questions = {question.id: question for question in engine.questions}

    def __call__(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """Play; each prompt comes once per completion, and completions of a group in a row.

        Returns:
            Lists with one entry per prompt: ``prompt_ids``, ``completion_ids``, ``logprobs`` (nats;
            0 where the environment wrote), ``env_mask`` (1 where the policy wrote) and ``paid``.

        Raises:
            ValueError: If TRL and the policy disagree on the temperature.
        """
        if trainer.args.temperature != self.agent.policy.temperature:
            raise ValueError(
                f"the policy samples at temperature {self.agent.policy.temperature}, TRL learns at "
                f"{trainer.args.temperature}; set GRPOConfig(temperature=...) to the same"
            )
        training = trainer.model.training
        size = trainer.num_generations if training else trainer.num_generations_eval
        asked = [self._questions[prompt] for prompt in prompts]
        groups = [f"{i // size}-{question.id}" for i, question in enumerate(asked)]
        self.agent.policy.memory.clear()  # the weights have changed
        steps = max(1, trainer.state.max_steps - 1)
        self.progress = min(1.0, trainer.state.global_step / steps)
        episodes = collect(self.engine, self.agent, asked, groups)
        episodes = self.agent.settle(episodes, self.progress)
        self.agent.policy.memory.clear()  # room for the update
        self.episodes = episodes
        rows = [completion(episode, self.agent.policy.tokenizer) for episode in episodes]
        return {key: [row[key] for row in rows] for key in rows[0]}


def completion(episode: Episode, tokenizer: SegmentTokenizer) -> dict[str, Any]:
    """An episode as TRL sees it: all that follows the prompt is one completion.

    Of an episode in which a search failed, no token counts.
    """
    ids, written = episode_tokens(episode, tokenizer)
    start = len(tokenizer.encode_context((episode.prompt,)))
    log_probs = iter([value for step in episode.steps for value in step.log_probs or ()])
    counts = 0 if episode.retrieval_failed else 1
    return {
        "prompt_ids": ids[:start],
        "completion_ids": ids[start:],
        "logprobs": [next(log_probs) if mine else 0.0 for mine in written[start:]],
        "env_mask": [int(mine) * counts for mine in written[start:]],
        "paid": None if episode.retrieval_failed else sum(step.reward for step in episode.steps),
    }


class TokenCreditTrainer(GRPOTrainer):  # type: ignore[misc]  # trl has no types
    """TRL's GRPOTrainer with the advantages of a credit method, one per token.

    It takes what :class:`trl.GRPOTrainer` takes; its ``rollout_func`` is a
    :class:`SearchRollouts`, whose agent knows the method. Rewards are logged, not used.

    Raises:
        ValueError: If there are several processes: a group must be whole in one of them.
    """

    def __init__(self, *args: Any, rollout_func: SearchRollouts, **kwargs: Any) -> None:
        super().__init__(*args, rollout_func=rollout_func, **kwargs)
        if self.accelerator.num_processes > 1:
            raise ValueError(
                "token-level credit compares the rollouts of a group within one process, got "
                f"{self.accelerator.num_processes}; use trl.GRPOTrainer with shaped rewards there"
            )

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        mask = batch["completion_mask"] * batch["tool_mask"]  # (B, T)
        advantages = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        rollouts = self.rollout_func
        credited = rollouts.agent.advantages(rollouts.episodes, rollouts.progress)
        for row, (episode, values) in enumerate(zip(rollouts.episodes, credited, strict=True)):
            if not episode.retrieval_failed:
                advantages[row, mask[row].bool()] = torch.as_tensor(values).to(advantages)
        batch["advantages"] = advantages
        return batch
