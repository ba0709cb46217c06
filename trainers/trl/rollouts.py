"""TRL's GRPOTrainer over the environment: rollouts, rewards, and token-level advantages.

TRL (extra ``trl``) calls a ``rollout_func`` for its completions: :class:`SearchRollouts` plays
whole episodes there. With it alone, TRL's own trainer learns from the rewards that the environment
pays, which hold the shaped information gain where ``information_gain_weight`` is above 0. TRL's
public interface knows one advantage per completion; its loss also takes one per token, and
:class:`TokenCreditTrainer` hands it those of a credit method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from agents.grpo_agent import GRPOAgent
from agents.tokenization import SegmentTokenizer
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Episode, Question
from igsearch_env.retrieval.base import check_alive
from trainers.one_completion import OneCompletion
from trainers.steady import MAX_FAILED_SEARCHES, RetrieverLostError, collect_steadily

POLICY_SAMPLES = "the policy samples the turns, from its whole distribution at its temperature"
RULES_END = "the environment's rules and the policy's max_new_tokens end an episode"
PROMPT_IS_WRITTEN = "the prompt is that of the environment's protocol"
METHOD_DECIDES = "the credit method makes the advantages, one per token"

REFUSED = {
    **dict.fromkeys(
        (
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "generation_kwargs",
            "cache_implementation",
            "use_vllm",
            "use_transformers_continuous_batching",
            "use_transformers_paged",
        ),
        POLICY_SAMPLES,
    ),
    "max_tool_calling_iterations": RULES_END,
    "max_completion_length": RULES_END,
    "chat_template_kwargs": PROMPT_IS_WRITTEN,
}
"""Settings of ``GRPOConfig`` that would do nothing over episodes, and why."""

REFUSED_WITH_TOKEN_CREDIT = dict.fromkeys(
    (
        "scale_rewards",
        "reward_weights",
        "multi_objective_aggregation",
        "use_liger_kernel",
        "off_policy_mask_threshold",  # it wants one advantage for a whole completion
    ),
    METHOD_DECIDES,
)
"""Those that :class:`TokenCreditTrainer` has no use for, besides."""

ENDS = ("clipped_ratio", "terminated_length")
"""Metrics of TRL's that ask whether a completion ends with an end-of-sequence token."""
WHOLE_COMPLETIONS = ("luspo", "vespo")
"""Losses that weigh a completion as a whole."""


def prompts(questions: Sequence[Question]) -> Dataset:
    """A data set for TRL: the prompt of each row is the id of a question."""
    return Dataset.from_dict({"prompt": [question.id for question in questions]})


def reward(paid: Sequence[float | None], **others: Any) -> list[float | None]:
    """TRL's reward function: what the environment paid; None where nothing is to be learned.

    TRL leaves completions without a reward out of a group's mean.
    """
    return list(paid)


def check_config(config: GRPOConfig, temperature: float, *, token_credit: bool) -> None:
    """Refuse settings of TRL that mean nothing, or something else, where episodes are played.

    ``mask_truncated_completions`` is honoured: nothing is learned from an episode that ends without
    an answer. (TRL's own test, an end-of-sequence token at the end, would mask every episode.)
    ``importance_sampling_level="sequence"`` is honoured where a completion has one advantage: its
    ratio is the mean over what the policy wrote.

    Args:
        config: TRL's settings.
        temperature: That of the policy.
        token_credit: Whether a credit method makes the advantages.

    Raises:
        ValueError: If a setting that would do nothing is not at its default, or TRL and the policy
            disagree on the temperature.
    """
    if config.temperature != temperature:
        raise ValueError(
            f"the policy samples at temperature {temperature}, TRL learns at "
            f"{config.temperature}; set GRPOConfig(temperature=...) to the same"
        )
    refused = {**REFUSED, **(REFUSED_WITH_TOKEN_CREDIT if token_credit else {})}
    if config.loss_type == "dr_grpo":  # which divides by it, as by any constant
        del refused["max_completion_length"]
    for field in fields(GRPOConfig):
        value = getattr(config, field.name)
        default = field.default if field.default is not MISSING else None
        if field.name in refused and value != default:
            raise ValueError(
                f"GRPOConfig({field.name}={value!r}) would do nothing: {refused[field.name]}; "
                "leave it out"
            )
    if token_credit and config.importance_sampling_level != "token":
        raise ValueError(
            f"GRPOConfig(importance_sampling_level={config.importance_sampling_level!r}) has one "
            "ratio for a whole completion, whose gradient spreads the credit of a query over all "
            f"tokens, and {METHOD_DECIDES}; leave it out"
        )
    if token_credit and config.loss_type in WHOLE_COMPLETIONS:
        raise ValueError(
            f"GRPOConfig(loss_type={config.loss_type!r}) weighs a completion as a whole, and "
            f"{METHOD_DECIDES}; choose another loss, such as 'dapo'"
        )


class SearchRollouts:
    """Plays an episode for each prompt; TRL's ``rollout_func``.

    Where too many searches fail, the episodes are played again; after three tries a checkpoint is
    written and the run ends (:func:`trainers.steady.collect_steadily`).

    Args:
        engine: The environment's engine (``SearchQAVectorEnv(...).engine``); the prompts are ids
            of its questions.
        agent: Samples with the very model that is trained. What its credit method looks at is
            settled with the weights that sampled.

        max_failed_searches: Largest share of the searches of a step that may fail.

    TRL's log gets ``episodes/truncated``, the share that ended without an answer. TRL's own
    ``completions/clipped_ratio`` and the lengths of terminated completions look for an
    end-of-sequence token, with which no episode need end: they say nothing here, and
    :class:`TokenCreditTrainer` leaves them out.

    Attributes:
        episodes: Those of the last call, in the order of its prompts.
        progress: How far training had come then, from 0 to 1.

    Raises:
        ValueError: If the retriever does not answer.
    """

    def __init__(
        self,
        engine: SearchQAEngine,
        agent: GRPOAgent,
        *,
        max_failed_searches: float = MAX_FAILED_SEARCHES,
    ) -> None:
        check_alive(engine.retriever, engine.questions[0].text, engine.top_k)
        self.engine, self.agent, self.max_failed_searches = engine, agent, max_failed_searches
        self.episodes: list[Episode] = []
        self.progress = 0.0
        self._questions = {question.id: question for question in engine.questions}

    def __call__(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """Play; each prompt comes once per completion, and completions of a group in a row.

        Returns:
            Lists with one entry per prompt: ``prompt_ids``, ``completion_ids``, ``logprobs`` (nats;
            0 where the environment wrote), ``env_mask`` (1 where the policy wrote) and ``paid``.

        Raises:
            ValueError: If :func:`check_config` refuses TRL's settings, or a prompt is not the id of
                a question.
            RetrieverLostError: If too many searches fail.
        """
        credited = isinstance(trainer, TokenCreditTrainer)
        check_config(trainer.args, self.agent.policy.temperature, token_credit=credited)
        trainer.mask_truncated_completions = False  # it is done here
        if unknown := [prompt for prompt in prompts if prompt not in self._questions]:
            raise ValueError(
                f"the prompt {unknown[0]!r} is not the id of a question of the engine; make data "
                "sets with prompts(engine.questions)"
            )
        training = trainer.model.training
        size = trainer.num_generations if training else trainer.num_generations_eval
        asked = [self._questions[prompt] for prompt in prompts]
        groups = [f"{i // size}-{question.id}" for i, question in enumerate(asked)]
        self.agent.policy.memory.clear()  # the weights have changed
        state = trainer.state
        self.progress = min(1.0, state.global_step / max(1, state.max_steps - 1))
        try:
            episodes = collect_steadily(
                self.engine,
                self.agent,
                asked,
                groups,
                step=state.global_step + 1,
                max_failed=self.max_failed_searches,
            )
        except RetrieverLostError:
            if training:
                trainer._save_checkpoint(trainer.model, trial=None)
            raise
        episodes = self.agent.settle(episodes, self.progress)
        self.agent.policy.memory.clear()  # room for the update
        self.episodes = episodes
        cut = sum(episode.truncated for episode in episodes) / len(episodes)
        trainer._metrics["train" if training else "eval"]["episodes/truncated"].append(cut)
        tokenizer, whole = self.agent.policy.tokenizer, trainer.args.mask_truncated_completions
        rows = [completion(episode, tokenizer, only_whole=whole) for episode in episodes]
        return {key: [row[key] for row in rows] for key in rows[0]}


def completion(
    episode: Episode, tokenizer: SegmentTokenizer, *, only_whole: bool = False
) -> dict[str, Any]:
    """An episode as TRL sees it: all that follows the prompt is one completion.

    Of an episode in which a search failed, or whose outcome could not be had, no token counts.

    Args:
        episode: A finished episode.
        tokenizer: The policy's.
        only_whole: Whether no token counts of an episode that ended without an answer, either.
    """
    one = OneCompletion.of(episode, tokenizer)
    counts = not (episode.left_out or (only_whole and episode.truncated))
    return {
        "prompt_ids": one.prompt_ids,
        "completion_ids": one.completion_ids,
        "logprobs": one.log_probs,
        "env_mask": [int(mine and counts) for mine in one.written],
        "paid": None if episode.left_out else sum(step.reward for step in episode.steps),
    }


class TokenCreditTrainer(GRPOTrainer):  # type: ignore[misc]  # trl has no types
    """TRL's GRPOTrainer with the advantages of a credit method, one per token.

    It takes what :class:`trl.GRPOTrainer` takes; its ``rollout_func`` is a
    :class:`SearchRollouts`, whose agent knows the method. Rewards are logged, not used.

    Raises:
        ValueError: If there are several processes (a group must be whole in one of them), the
            credit method has a teacher, or :func:`check_config` refuses TRL's settings.
    """

    def __init__(self, *args: Any, rollout_func: SearchRollouts, **kwargs: Any) -> None:
        super().__init__(*args, rollout_func=rollout_func, **kwargs)
        check_config(self.args, rollout_func.agent.policy.temperature, token_credit=True)
        if rollout_func.agent.credit.has_teacher():
            raise ValueError(
                f"{type(rollout_func.agent.credit).__name__} has a teacher, whose loss TRL's "
                "trainer does not have; train with scripts.train"
            )
        if self.accelerator.num_processes > 1:
            raise ValueError(
                "token-level credit compares the rollouts of a group within one process, got "
                f"{self.accelerator.num_processes}; use trl.GRPOTrainer with shaped rewards there"
            )

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name in [name for name in metrics if name.endswith(ENDS)]:
            del metrics[name]
        mask = batch["completion_mask"] * batch["tool_mask"]  # (B, T)
        advantages = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        rollouts = self.rollout_func
        credited = rollouts.agent.advantages(rollouts.episodes, rollouts.progress)
        for row, values in enumerate(credited):
            tokens = mask[row].bool()
            if tokens.any():  # else nothing is learned from the episode
                advantages[row, tokens] = torch.as_tensor(values).to(advantages)
        batch["advantages"] = advantages
        return batch
