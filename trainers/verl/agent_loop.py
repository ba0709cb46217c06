"""verl's agent loop over the environment: one call of ``run`` plays one episode.

verl makes a :class:`SearchAgentLoop` for each episode, from the entry of the file that
``actor_rollout_ref.rollout.agent.agent_loop_config_path`` names. All of a worker share the engine
of the environment, its index and its evidence pool. Information gain is computed with the servers
that sampled the episode, before verl changes their weights.
"""

from __future__ import annotations

import asyncio
import json
from time import perf_counter
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from verl.experimental.agent_loop.agent_loop import (
    AgentLoopBase,
    AgentLoopMetrics,
    AgentLoopOutput,
)

from agents.tokenization import SegmentTokenizer
from igsearch_env.credit import CreditAssignment, settle_for
from igsearch_env.episode import Episode
from igsearch_env.gain.prompt_scorer import Pair, checked
from igsearch_env.record import episode_record
from trainers.config import make_credit_from
from trainers.one_completion import OneCompletion
from trainers.rollout_settings import RolloutSettings, read_label
from trainers.server_rollouts import (
    SampledTurn,
    ServerScorer,
    Tables,
    check_credit,
    make_tables,
    play_episode,
    stop_reason,
)
from trainers.verl.rows import EPISODE

_tables: dict[str, Tables] = {}


class SearchAgentLoop(AgentLoopBase):  # type: ignore[misc]  # verl has no types
    """Plays one episode with the rollout servers of verl.

    Args:
        *args: verl's own.
        rollout: Fields of :class:`trainers.rollout_settings.RolloutSettings`.
        credit: The credit method, as ``{"method": name, option: value}``: it says what is computed
            of an episode. :mod:`trainers.verl.token_credit` makes the advantages.
        tools: verl's; not used.
        **kwargs: verl's own.

    Raises:
        ValueError: If a setting is out of range, or does not go with verl's.
    """

    def __init__(
        self,
        *args: Any,
        rollout: DictConfig,
        credit: DictConfig,
        tools: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.credit = make_credit_from(_plain(credit))
        self.settings = RolloutSettings(**_plain(rollout))
        _check(self.rollout_config, self.settings, self.credit)
        key = self.settings.to_json()
        if key not in _tables:
            _tables[key] = make_tables(self.settings, self.tokenizer)
        self.tables = _tables[key]

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """Play one episode.

        Args:
            sampling_params: Those of all turns.
            **kwargs: The columns of the row; :func:`trainers.verl.rows.rows` makes them. Rollouts
                of one ``uid`` are a group.

        Returns:
            The episode as one completion. The mask is 1 where the policy wrote. Nothing is to be
            learned from an episode in which a search failed, or whose outcome could not be had:
            of its tokens the mask keeps one, without which a batch of nothing but failures would
            divide by zero, and which has the advantage 0.
        """
        question, training = read_label(kwargs["label"])
        table = self.tables.training if training else self.tables.evaluation
        protocol = table.engine.rules.protocol
        episode = table.engine.rules.begin(question, str(kwargs.get("uid") or ""))
        tokenizer, limits = self.tables.tokenizer, self.rollout_config
        prompt = tokenizer.encode_context(episode.transcript)
        if len(prompt) > limits.prompt_length:
            raise ValueError(
                f"the prompt of question {question.id!r} has {len(prompt)} tokens, and "
                f"data.max_prompt_length is {limits.prompt_length}; make it larger"
            )
        max_length = limits.max_model_len or limits.prompt_length + limits.response_length
        request, seconds, versions = uuid4().hex, 0.0, []

        async def sample(ids: list[int], room: int) -> SampledTurn:
            nonlocal seconds
            started = perf_counter()
            output = await self.server_manager.generate(
                request_id=request,
                prompt_ids=ids,
                sampling_params={
                    **sampling_params,
                    "max_tokens": room,
                    "stop": list(protocol.stop),
                    "include_stop_str_in_output": True,
                },
                priority=int(kwargs.get("priority", 0)),
            )
            seconds += perf_counter() - started
            versions.append(output.extra_fields)
            reason = stop_reason(output.token_ids, room, tokenizer, protocol)
            return SampledTurn(output.token_ids, output.log_probs or None, reason)

        began = perf_counter()
        episode = await play_episode(
            table,
            episode,
            tokenizer,
            sample,
            max_new_tokens=self.settings.max_new_tokens,
            max_length=min(len(prompt) + limits.response_length, max_length),
        )
        if training and not episode.left_out:
            loop = asyncio.get_running_loop()
            scorer = ClientScorer(self.server_manager, tokenizer, loop, max_length)
            gain = table.engine.information_gain
            # The rest of the group is played elsewhere.
            (episode,) = await asyncio.to_thread(
                settle_for, self.credit, [episode], gain, scorer, whole_groups=False
            )
        one = OneCompletion.of(episode, tokenizer)
        mask = [int(mine) for mine in one.written]
        if episode.left_out and any(mask):
            first = mask.index(1)
            mask = [int(place == first) for place in range(len(mask))]
        return AgentLoopOutput(
            prompt_ids=one.prompt_ids,
            response_ids=one.completion_ids,
            response_mask=mask,
            response_logprobs=one.log_probs,
            reward_score=float(episode.outcome or 0.0),
            num_turns=len(episode.transcript),
            metrics=AgentLoopMetrics(
                generate_sequences=seconds, tool_calls=perf_counter() - began - seconds
            ),
            extra_fields={
                EPISODE: json.dumps(episode_record(episode)),
                "reward_extra_info": _logged(episode),
                "turn_scores": [step.reward for step in episode.steps],
                "tool_rewards": [],
                "min_global_steps": versions[0].get("min_global_steps") if versions else None,
                "max_global_steps": versions[-1].get("max_global_steps") if versions else None,
            },
        )


class ClientScorer(ServerScorer):
    """Scores answers with verl's rollout servers.

    Args:
        client: verl's ``LLMServerClient``.
        tokenizer: The policy's tokenizer.
        loop: The running event loop.
        max_length: The longest prompt and reply that the servers take, in tokens.
    """

    def __init__(
        self,
        client: Any,
        tokenizer: SegmentTokenizer,
        loop: asyncio.AbstractEventLoop,
        max_length: int,
    ) -> None:
        super().__init__(tokenizer, loop, max_length)
        self.client = client

    async def score_one(self, pair: Pair) -> NDArray[np.float64] | None:
        """The log-probabilities of one answer; None if the server gave none."""
        ids, count = pair
        output = await self.client.generate(
            request_id=uuid4().hex,
            prompt_ids=list(ids),
            sampling_params={"prompt_logprobs": 0, "max_tokens": 1, "temperature": 1.0},
        )
        # Row i is about token i + 1; the last row is a filler.
        known = output.extra_fields.get("prompt_logprobs") or []
        named = output.extra_fields.get("prompt_ids") or []
        places = range(len(ids) - count - 1, len(ids) - 1)
        if len(known) != len(ids) or any(named[at][0] != ids[at + 1] for at in places):
            return None
        return checked([known[at][0] for at in places])


def _logged(episode: Episode) -> dict[str, float]:
    """Numbers of an episode that verl averages in validation."""
    return {
        "em": float(episode.em or 0.0),
        "f1": float(episode.f1 or 0.0),
        "searches": float(len(episode.searches)),
        "truncated": float(episode.truncated),
        "left_out": float(episode.left_out),
    }


def _plain(config: DictConfig) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(config, resolve=True)
    return dict(values)


def _check(config: Any, settings: RolloutSettings, credit: CreditAssignment) -> None:
    """Refuse settings of verl with which an episode is not what it should be."""
    if config.name != "vllm":
        raise ValueError(
            f"actor_rollout_ref.rollout.name must be 'vllm', got {config.name!r}: turns end at "
            "stop strings that are kept, and other servers ask for that in other words"
        )
    if config.get("skip_tokenizer_init", True):
        raise ValueError(
            "turns end at stop strings, for which the server needs its tokenizer; set "
            "actor_rollout_ref.rollout.skip_tokenizer_init=False"
        )
    check_credit(credit, settings, "verl")
