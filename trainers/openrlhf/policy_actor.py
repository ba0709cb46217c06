"""The policy's actor, which scores answers with the very weights that it trains."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from deepspeed.runtime.zero.stage3 import unwrap_model_for_generation
from openrlhf.trainer.ray import ppo_actor
from transformers import PreTrainedModel

from agents.scoring.one_by_one import OneByOneScorer
from agents.scoring.trie_scorer import TrieScorer
from agents.tokenization import SegmentTokenizer
from igsearch_env.credit import CreditAssignment, settle_for
from igsearch_env.episode import Episode
from igsearch_env.gain.scorer import AnswerScorer
from trainers.openrlhf.seams import original_class

log = logging.getLogger(__name__)


class GainPolicyActor(original_class(ppo_actor.PolicyModelActor)):  # type: ignore[misc]
    """OpenRLHF's policy actor with :meth:`settle`."""

    _scorer: AnswerScorer | None = None

    def settle(self, episodes: Sequence[Episode], credit: CreditAssignment) -> list[Episode]:
        """Compute what the credit method reads, with the present weights.

        All ranks have to call it at once, each with episodes of its own, which may be none.
        """
        gain = self.strategy.args.ig.rollout.information_gain(self.tokenizer)
        with whole_weights(self.actor.model) as model:
            if self._scorer is None:
                sharded = self.strategy.args.ds.ring_attn_size > 1
                self._scorer = make_scorer(model, SegmentTokenizer(self.tokenizer), sharded)
            return settle_for(credit, episodes, gain, self._scorer)


@contextmanager
def whole_weights(engine: Any) -> Iterator[PreTrainedModel]:
    """The model of a DeepSpeed engine, such that ranks may run it differently often.

    Under ZeRO-3 every rank holds all weights meanwhile, and the hooks that would gather them layer
    by layer, in step with the other ranks, are off.
    """
    if engine.zero_optimization_stage() < 3:
        yield engine.module
        return
    with unwrap_model_for_generation(engine):
        yield engine.module


def make_scorer(model: PreTrainedModel, tokenizer: SegmentTokenizer, sharded: bool) -> AnswerScorer:
    """The scorer that runs shared prefixes once; the plain one if the model does not allow it.

    Args:
        model: The policy.
        tokenizer: Its tokenizer.
        sharded: Whether ring attention shares sequences out among processes. Only the first scorer
            has an attention of its own; that of the model would take a whole context for a part.

    Raises:
        ValueError: If the model does not allow the first, and sharding rules out the second.
    """
    try:
        return TrieScorer(model, tokenizer)
    except ValueError as error:
        if sharded:
            raise ValueError(
                "answers cannot be scored by this model under --ds.ring_attn_size above 1 "
                f"({error}); leave that out, or set --ig.scorer vllm"
            ) from error
        log.warning("contexts are scored one by one, which takes longer: %s", error)
        return OneByOneScorer(model, tokenizer)
