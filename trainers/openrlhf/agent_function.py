"""The agent function of OpenRLHF: plays episodes of the environment with its vLLM engines.

OpenRLHF loads this file by its path (``--train.agent_func_path``) in each rollout actor and builds
``AgentExecutor()``; the settings come from the environment variable :data:`SETTINGS`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from openrlhf.utils.agent import AgentExecutorBase

from agents.tokenization import SegmentTokenizer
from igsearch_env.completion import StopReason
from igsearch_env.episode import Episode
from igsearch_env.plugins import import_plugin
from trainers.openrlhf.vllm_scorer import VLLMScorer
from trainers.rollout_settings import RolloutSettings, read_label
from trainers.server_rollouts import SampledTurn, Tables, make_tables, play_episode

SETTINGS = "IGSEARCH_ROLLOUT"
"""Name of the environment variable that holds :meth:`RolloutSettings.to_json`."""
PLUGINS = "IGSEARCH_PLUGINS"
"""Name of that of what is imported first, as a list of paths."""


class AgentExecutor(AgentExecutorBase):  # type: ignore[misc]  # OpenRLHF has no types
    """Plays one episode per call; concurrent calls share their searches and the evidence pool."""

    def __init__(self) -> None:
        if SETTINGS not in os.environ:
            raise RuntimeError(
                f"the environment variable {SETTINGS} is not set in this rollout actor; start the "
                "run with python -m scripts.train_openrlhf, which sets it"
            )
        for name in filter(None, os.environ.get(PLUGINS, "").split(os.pathsep)):
            import_plugin(name)
        self.settings = RolloutSettings.from_json(os.environ[SETTINGS])
        self._made: Tables | None = None

    async def execute(
        self,
        prompt: str,
        label: str,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> dict[str, Any]:
        """Play one episode.

        Args:
            prompt: The question, as the prompt data holds it.
            label: See :func:`trainers.rollout_settings.make_label`.
            sampling_params: vLLM's; shared by the samples of a prompt, so it is copied.
            max_length: The longest transcript, in tokens.
            hf_tokenizer: The policy's tokenizer.
            llm_engine: What has ``async generate(prompt_token_ids, sampling_params)``.
            images: Not used.

        Returns:
            What OpenRLHF makes an Experience of. Its ``label`` is the finished :class:`Episode`.
        """
        tables = self._tables(hf_tokenizer)
        question, training = read_label(label)
        table = tables.training if training else tables.evaluation
        episode = table.engine.rules.begin(question)
        stop = table.engine.rules.protocol.stop

        async def sample(ids: list[int], room: int) -> SampledTurn:
            return await _sample(llm_engine, ids, _turn_params(sampling_params, room, stop))

        episode = await play_episode(
            table,
            episode,
            tables.tokenizer,
            sample,
            max_new_tokens=self.settings.max_new_tokens,
            max_length=max_length,
        )
        if training and self.settings.scorer == "vllm":
            loop = asyncio.get_running_loop()
            scorer = VLLMScorer(llm_engine, tables.tokenizer, loop, max_length)
            gain = table.engine.information_gain
            (episode,) = await asyncio.to_thread(gain.settle, [episode], scorer)
        logged = sampling_params.logprobs is not None
        return {"prompt": prompt, **_response(episode, tables.tokenizer, logged)}

    def _tables(self, tokenizer: Any) -> Tables:
        if self._made is None:
            self._made = make_tables(self.settings, tokenizer)
        return self._made


def _turn_params(sampling_params: Any, room: int, stop: Sequence[str]) -> Any:
    """The parameters of one turn: it ends with an action, which is kept, or has no room left."""
    asked = deepcopy(sampling_params)
    asked.max_tokens = room
    asked.stop = list(stop)
    asked.include_stop_str_in_output = True
    return asked


async def _sample(llm_engine: Any, ids: list[int], asked: Any) -> SampledTurn:
    output = (await llm_engine.generate(ids, asked)).outputs[0]
    # vLLM's own stop_reason is the string that stopped the turn; None or a token id at its end.
    ended: StopReason = "stop" if isinstance(output.stop_reason, str) else "end"
    reasons: dict[Any, StopReason] = {"stop": ended, "length": "length"}
    reason = reasons.get(output.finish_reason)
    if asked.logprobs is None:
        return SampledTurn(output.token_ids, None, reason)
    pairs = zip(output.token_ids, output.logprobs, strict=True)
    return SampledTurn(output.token_ids, [known[token].logprob for token, known in pairs], reason)


def _response(episode: Episode, tokenizer: SegmentTokenizer, logged: bool) -> dict[str, Any]:
    """An episode as OpenRLHF takes it; what follows the policy's last token was never read."""
    ids: list[int] = []
    ranges: list[tuple[int, int]] = []
    log_probs: list[float] = []
    turns = iter(episode.steps)
    for segment in episode.transcript:
        start = len(ids)
        ids += (
            tokenizer.encode_segment(segment, ids) if ids else tokenizer.encode_context((segment,))
        )
        written = segment.source == "policy"
        log_probs += (next(turns).log_probs or ()) if written else [0.0] * (len(ids) - start)
        if written and len(ids) > start:
            ranges.append((start, len(ids)))
    end = ranges[-1][1] if ranges else len(ids)
    return {
        "label": episode,
        "reward": episode.outcome or 0.0,  # 0 where it could not be had; nothing is learned from it
        "scores": episode.outcome or 0.0,
        "observation_tokens": ids[:end],
        "action_ranges": ranges,
        "rollout_log_probs": log_probs[:end] if logged else None,
        "truncated": episode.truncated,
        "extra_logs": {},
    }
