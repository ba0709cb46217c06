"""Token-level advantages of a credit method in SkyRL's trainer.

:class:`SearchGenerator` plays the episodes of a batch with SkyRL's inference servers, has the
credit method look at them while the servers still hold the weights that sampled, and hands SkyRL
one advantage per token where it takes rewards of tokens (``GeneratorOutput.rewards``). The
advantage estimator ``igsearch``, which importing this module registers, takes them as they are.
:class:`SearchExperiment` is SkyRL's experiment with both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from skyrl.backends.skyrl_train.inference_servers.base import InferenceEngineInput
from skyrl.backends.skyrl_train.inference_servers.utils import resolve_policy_model_name
from skyrl.backends.skyrl_train.utils.ppo_utils import register_advantage_estimator
from skyrl.train.entrypoints.main_base import BasePPOExp
from skyrl.train.generators.base import GeneratorInput, GeneratorInterface, GeneratorOutput
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from agents.tokenization import SegmentTokenizer
from igsearch_env.credit import CreditAssignment, assign_credit, settle_for
from igsearch_env.data.questions import load_questions
from igsearch_env.episode import Episode, Question
from igsearch_env.evaluation.metrics import batch_metrics
from igsearch_env.gain.prompt_scorer import Pair, checked
from trainers.config import make_credit_from
from trainers.one_completion import OneCompletion
from trainers.rollout_settings import RolloutSettings
from trainers.server_rollouts import (
    SampledTurn,
    ServerScorer,
    check_credit,
    make_tables,
    play_episode,
    stop_reason,
)
from trainers.skyrl.environment import NAME
from trainers.steady import RetrieverLostError, failed_share


@register_advantage_estimator(NAME)  # type: ignore[untyped-decorator]  # SkyRL has no types
def token_credit(
    token_level_rewards: Tensor, response_mask: Tensor, **others: Any
) -> tuple[Tensor, Tensor]:
    """The advantages that :class:`SearchGenerator` made.

    Args:
        token_level_rewards: They, shape (B, T).
        response_mask: Not used: they are 0 where the policy did not write.
        **others: Not used.

    Returns:
        Advantages, shape (B, T), and the same as returns.
    """
    return token_level_rewards, token_level_rewards


class SearchGenerator(GeneratorInterface):  # type: ignore[misc]
    """Plays episodes, one per row; rows of one question are a group.

    Args:
        config: SkyRL's settings (``SkyRLTrainConfig``).
        client: SkyRL's ``RemoteInferenceClient``.
        tokenizer: The policy's.
        settings: How episodes are played.
        credit: The credit method.

    Attributes:
        steps: Number of training steps, for methods that change with them; None if it is not
            known.

    Raises:
        ValueError: If a setting does not go with SkyRL's.
    """

    def __init__(
        self,
        config: Any,
        client: Any,
        tokenizer: PreTrainedTokenizerFast,
        settings: RolloutSettings,
        credit: CreditAssignment,
    ) -> None:
        check_config(config, settings)
        check_credit(credit, settings, "SkyRL")
        self.client, self.settings, self.credit = client, settings, credit
        self.model = resolve_policy_model_name(config)
        self.max_length = config.generator.max_input_length + settings.max_new_tokens
        self.tables = make_tables(settings, tokenizer)
        held_out = load_questions(settings.eval_questions) if settings.eval_questions else []
        self.questions = {
            "train": {one.id: one for one in self.tables.training.engine.questions},
            "eval": {one.id: one for one in held_out},
        }
        self.steps: int | None = None

    async def generate(
        self, input_batch: GeneratorInput, disable_tqdm: bool = False
    ) -> GeneratorOutput:
        """Play a batch.

        Args:
            input_batch: SkyRL's. Its rows are those of :func:`trainers.skyrl.environment.rows`.
            disable_tqdm: Not used: there is no bar.

        Returns:
            One completion per episode. In training, ``rewards`` has the advantage of each token,
            and in evaluation the outcome of each episode. An episode in which a search failed, or
            whose outcome could not be had, has a mask of zeros.

        Raises:
            RetrieverLostError: If too many searches fail, each time that the batch is played.
            ValueError: If a row names no question.
        """
        meta = input_batch["batch_metadata"]
        training = meta.training_phase == "train"
        asked = [self._question(row, meta.training_phase) for row in input_batch["env_extras"]]
        groups = [f"{meta.global_step}-{one.instance_id}" for one in input_batch["trajectory_ids"]]
        sampling = input_batch["sampling_params"]
        for _ in range(self.settings.failed_tries):
            episodes = await asyncio.gather(
                *(
                    self._play(question, group, sampling, training=training)
                    for question, group in zip(asked, groups, strict=True)
                )
            )
            failed = failed_share(episodes)
            if failed <= self.settings.max_failed_searches:
                break
        else:
            raise RetrieverLostError(
                f"{failed:.0%} of the searches failed in the last of {self.settings.failed_tries} "
                "tries; see to the retriever, and go on from the last checkpoint"
            )
        ones = [OneCompletion.of(episode, self.tables.tokenizer) for episode in episodes]
        rewards: list[Any] = [float(episode.outcome or 0.0) for episode in episodes]
        if training:
            rewards = await self._token_rewards(episodes, ones, meta.global_step)
        log_probs = [one.log_probs for one in ones]
        return GeneratorOutput(
            prompt_token_ids=[one.prompt_ids for one in ones],
            response_ids=[one.completion_ids for one in ones],
            rewards=rewards,
            loss_masks=[
                [int(mine and not episode.left_out) for mine in one.written]
                for one, episode in zip(ones, episodes, strict=True)
            ],
            stop_reasons=["length" if episode.truncated else "stop" for episode in episodes],
            rollout_logprobs=None if None in log_probs else log_probs,
            # SkyRL adds metrics of several batches up unless their name holds "mean".
            rollout_metrics={
                f"igsearch_mean/{name}": value for name, value in batch_metrics(episodes).items()
            },
            trajectory_ids=None,
            is_last_step=None,
        )

    def _question(self, row: Mapping[str, Any], phase: str) -> Question:
        question = self.questions[phase].get(str(row.get("question_id")))
        if question is None:
            raise ValueError(
                f"the question {row.get('question_id')!r} is not one of the settings; make the "
                "data sets with rows(load_questions(...)) of questions and eval_questions"
            )
        return question

    async def _play(
        self, question: Question, group: str, sampling: Mapping[str, Any], *, training: bool
    ) -> Episode:
        table = self.tables.training if training else self.tables.evaluation
        tokenizer, protocol = self.tables.tokenizer, table.engine.rules.protocol
        session = uuid4().hex

        async def sample(ids: list[int], room: int) -> SampledTurn:
            asked = {
                **sampling,
                "max_tokens": room,
                "stop": list(protocol.stop),
                "include_stop_str_in_output": True,
                "skip_special_tokens": False,  # a model's tags may be such tokens
            }
            given = InferenceEngineInput(
                prompt_token_ids=[ids], session_ids=[session], sampling_params=asked
            )
            output = await self.client.generate(given, model=self.model)
            (sampled,), logged = output["response_ids"], output.get("response_logprobs")
            reason = stop_reason(sampled, room, tokenizer, protocol)
            return SampledTurn(sampled, logged[0] if logged else None, reason)

        try:
            return await play_episode(
                table,
                table.engine.rules.begin(question, group),
                tokenizer,
                sample,
                max_new_tokens=self.settings.max_new_tokens,
                max_length=self.max_length,
            )
        finally:
            await self.client.finish_session(session)

    async def _token_rewards(
        self, episodes: list[Episode], ones: list[OneCompletion], step: int
    ) -> list[list[float]]:
        """The advantage of each token of each completion, 0 where the environment wrote."""
        credit = self.credit.at(min(1.0, step / self.steps) if self.steps else 0.0)
        gain = self.tables.training.engine.information_gain
        loop = asyncio.get_running_loop()
        scorer = ClientScorer(self.client, self.model, self.tables.tokenizer, loop, self.max_length)
        settled = await asyncio.to_thread(settle_for, credit, episodes, gain, scorer)
        rewards = []
        for values, one, episode in zip(
            assign_credit(credit, settled), ones, episodes, strict=True
        ):
            row = np.zeros(len(one.written))
            if not episode.left_out:
                row[np.flatnonzero(one.written)] = values
            rewards.append(row.tolist())
        return rewards


class ClientScorer(ServerScorer):
    """Scores answers with SkyRL's inference servers.

    Args:
        client: SkyRL's ``RemoteInferenceClient``.
        model: The policy's name at the servers; None for their own.
        tokenizer: The policy's tokenizer.
        loop: The running event loop.
        max_length: The longest prompt and reply that the servers take, in tokens.
    """

    def __init__(
        self,
        client: Any,
        model: str | None,
        tokenizer: SegmentTokenizer,
        loop: asyncio.AbstractEventLoop,
        max_length: int,
    ) -> None:
        super().__init__(tokenizer, loop, max_length)
        self.client, self.model = client, model

    async def score_one(self, pair: Pair) -> NDArray[np.float64] | None:
        """The log-probabilities of one answer; None if the server gave none."""
        ids, count = pair
        asked = {
            "model": self.model,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": list(ids)}]},
            "sampling_params": {"max_tokens": 1, "temperature": 1.0},
            "include_prompt_logprobs": True,
        }
        known = (await self.client.sample({"json": asked}))["prompt_logprobs"] or []
        return checked(known[-count:]) if len(known) == len(ids) else None


class SearchExperiment(BasePPOExp):  # type: ignore[misc]
    """SkyRL's experiment, in which :class:`SearchGenerator` plays the episodes.

    Args:
        cfg: SkyRL's settings.
        rollout: Fields of :class:`trainers.rollout_settings.RolloutSettings`.
        credit: The credit method, as ``{"method": name, option: value}``.

    Raises:
        ValueError: If a setting is out of range, or does not go with SkyRL's.
    """

    def __init__(self, cfg: Any, rollout: Mapping[str, Any], credit: Mapping[str, Any]) -> None:
        self.rollout, self.credit = RolloutSettings(**rollout), make_credit_from(dict(credit))
        check_config(cfg, self.rollout)
        super().__init__(cfg)

    def get_generator(
        self, cfg: Any, tokenizer: PreTrainedTokenizerFast, inference_engine_client: Any
    ) -> SearchGenerator:
        """What plays the episodes."""
        return SearchGenerator(cfg, inference_engine_client, tokenizer, self.rollout, self.credit)

    def get_trainer(self, **given: Any) -> Any:
        """SkyRL's trainer, whose number of steps the generator gets to know."""
        trainer = super().get_trainer(**given)
        trainer.generator.steps = trainer.total_training_steps
        return trainer


def check_config(config: Any, settings: RolloutSettings) -> None:
    """Refuse settings of SkyRL with which an advantage is not what the credit method made.

    Args:
        config: SkyRL's settings.
        settings: How episodes are played.

    Raises:
        ValueError: With the first that does not fit, and what to do.
    """
    algorithm, generator = config.trainer.algorithm, config.generator
    if algorithm.advantage_estimator != NAME:
        raise ValueError(
            f"set trainer.algorithm.advantage_estimator={NAME}, got "
            f"{algorithm.advantage_estimator!r}: any other one takes the advantages of tokens for "
            "rewards"
        )
    for name, set_ in (
        ("trainer.algorithm.use_kl_in_reward", algorithm.use_kl_in_reward),
        ("trainer.algorithm.advantage_batch_normalize", algorithm.advantage_batch_normalize),
        ("trainer.algorithm.dynamic_sampling.type", algorithm.dynamic_sampling.type),
        ("generator.zero_reward_on_non_stop", generator.zero_reward_on_non_stop),
        ("generator.apply_overlong_filtering", generator.apply_overlong_filtering),
        ("generator.step_wise_trajectories", generator.step_wise_trajectories),
        ("generator.batched", generator.batched),
    ):
        if set_:
            raise ValueError(
                f"{name}={set_} does not go with token credit: the credit method makes the "
                "advantages, of whole episodes; leave it out"
            )
    if generator.sampling_params.max_generate_length < settings.max_new_tokens:
        raise ValueError(
            f"max_new_tokens ({settings.max_new_tokens}) is the longest turn, and "
            "generator.sampling_params.max_generate_length is only "
            f"{generator.sampling_params.max_generate_length}; make it larger"
        )
