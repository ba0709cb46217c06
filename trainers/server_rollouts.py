"""Episodes that the inference server of another trainer samples, and the scores that it gives.

OpenRLHF and verl play episodes this way: coroutines of one process, one per episode, share the
engine of the environment, its evidence pool and its searches.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.tokenization import SegmentTokenizer
from igsearch_env.completion import Completion, StopReason
from igsearch_env.credit import CreditAssignment
from igsearch_env.episode import Episode
from igsearch_env.gain.pool import EvidencePool
from igsearch_env.gain.prompt_scorer import Pair, PromptScorer
from igsearch_env.play_batcher import PlayBatcher
from igsearch_env.protocol.tags import TagProtocol
from trainers.rollout_settings import RolloutSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class SampledTurn(NamedTuple):
    """What a server sampled.

    Args:
        token_ids: Sampled ids, shape (tokens,).
        log_probs: Their log-probabilities in nats, shape (tokens,), or None.
        stop_reason: Why the turn ends, if that is known.
    """

    token_ids: Sequence[int]
    log_probs: Sequence[float] | None
    stop_reason: StopReason | None = None


NO_ROOM = SampledTurn((), None, "no_room")

Sampler = Callable[[list[int], int], Awaitable[SampledTurn]]
"""Samples from the ids of a prompt, up to so many tokens, or up to a stop string of the protocol,
which is kept."""


class Tables(NamedTuple):  # not a dataclass: those want their module to be in sys.modules
    """Where episodes are played: those of training leave evidence for one another."""

    tokenizer: SegmentTokenizer
    training: PlayBatcher
    evaluation: PlayBatcher


def make_tables(settings: RolloutSettings, tokenizer: PreTrainedTokenizerFast) -> Tables:
    """Load what the episodes of a process share.

    Raises:
        ValueError: If the questions or the retriever cannot be had, or do not fit together.
    """
    engine = settings.engine(tokenizer)
    held_out = replace(
        engine,
        num_counterfactuals=0,
        pool=EvidencePool(),
        outcome="em" if settings.outcome == "zero" else engine.outcome,
    )
    return Tables(SegmentTokenizer(tokenizer), PlayBatcher(engine), PlayBatcher(held_out))


def check_credit(credit: CreditAssignment, settings: RolloutSettings, trainer: str) -> None:
    """Refuse a credit method that cannot have here what it reads.

    Args:
        credit: The method.
        settings: How episodes are played.
        trainer: The name of the trainer, for messages.

    Raises:
        ValueError: If it has a teacher, or reads silver evidence, or has no counterfactuals.
    """
    method = type(credit).__name__
    if credit.has_teacher():
        raise ValueError(
            f"{method} has a teacher, whose loss {trainer} does not have; train with scripts.train"
        )
    if credit.reads_corpus():
        raise ValueError(
            f"{method} reads silver evidence, which only scripts.train looks for; train with it"
        )
    if credit.uses_information_gain and not settings.num_counterfactuals:
        raise ValueError(f"{method} needs information gain; set num_counterfactuals to at least 1")


async def play_episode(
    table: PlayBatcher,
    episode: Episode,
    tokenizer: SegmentTokenizer,
    sample: Sampler,
    *,
    max_new_tokens: int,
    max_length: int,
) -> Episode:
    """Play an episode to its end, or until a search fails: then nothing is learned from it.

    Args:
        table: Where it is played.
        episode: The episode, which has begun.
        tokenizer: The policy's.
        sample: Samples turns.
        max_new_tokens: Longest turn, in tokens.
        max_length: Longest transcript up to the end of its last turn, in tokens.
    """
    protocol = table.engine.rules.protocol
    while not (episode.finished or episode.retrieval_failed):
        ids = tokenizer.encode_context(episode.transcript)
        room = min(max_new_tokens, max_length - len(ids))
        turn = await sample(ids, room) if room > 0 else NO_ROOM
        # A string that stopped it in a thought did not end it: the rest is asked for.
        while turn.stop_reason == "stop" and not protocol.ended(
            tokenizer.decode([*turn.token_ids])
        ):
            left = room - len(turn.token_ids)
            if left < 1:
                break
            turn = _joined(turn, await sample([*ids, *turn.token_ids], left))
        sampled = Completion.from_tokens(
            turn.token_ids, turn.log_probs, tokenizer.decode, turn.stop_reason
        )
        episode = await table.play(episode, sampled)
    if not episode.finished:
        episode = replace(episode, truncated=True, outcome=0.0, em=0.0, f1=0.0)
    return episode


def stop_reason(
    ids: Sequence[int], room: int, tokenizer: SegmentTokenizer, protocol: TagProtocol
) -> StopReason | None:
    """Why a turn ended, for servers that do not tell a stop string from the policy's own end.

    Args:
        ids: Sampled ids.
        room: How many could be sampled.
        tokenizer: The policy's.
        protocol: The grammar of the turns.
    """
    if not ids:
        return None
    if ids[-1] == tokenizer.tokenizer.eos_token_id:
        return "end"
    text = tokenizer.decode(ids)
    if any(stop in text for stop in protocol.stop):
        return "stop"
    return "length" if len(ids) >= room else "end"


def _joined(turn: SampledTurn, rest: SampledTurn) -> SampledTurn:
    """A turn and what was sampled after it."""
    log_probs = None
    if turn.log_probs is not None and rest.log_probs is not None:
        log_probs = [*turn.log_probs, *rest.log_probs]
    return SampledTurn([*turn.token_ids, *rest.token_ids], log_probs, rest.stop_reason)


class ServerScorer(PromptScorer):
    """Scores each answer with a request of its own, which yields one token and throws it away.

    Args:
        tokenizer: The policy's tokenizer.
        loop: The running event loop that the server's client belongs to.
        max_length: The longest prompt and reply that the server takes, in tokens.
    """

    def __init__(
        self, tokenizer: SegmentTokenizer, loop: asyncio.AbstractEventLoop, max_length: int
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.loop = loop

    def score(self, pairs: Sequence[Pair]) -> list[NDArray[np.float64] | None]:
        """The log-probabilities of each answer, in order.

        Call it from another thread than the event loop's, which has to go on meanwhile.
        """
        return asyncio.run_coroutine_threadsafe(self._score_all(pairs), self.loop).result()

    async def _score_all(self, pairs: Sequence[Pair]) -> list[NDArray[np.float64] | None]:
        return list(await asyncio.gather(*map(self.score_one, pairs)))

    @abstractmethod
    async def score_one(self, pair: Pair) -> NDArray[np.float64] | None:
        """The log-probabilities of one answer; None if the server gave none."""
