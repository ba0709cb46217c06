"""One GRPO update: the clipped loss of settled episodes and their advantages, and the step."""

from __future__ import annotations

import logging
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from agents.inference import check_logits, check_weights, computing_in, evaluating
from agents.lora import adapters_off
from agents.tokenization import SegmentTokenizer
from igsearch_env.credit import Hindsight
from igsearch_env.episode import Episode
from trainers.config import OptimizationSettings
from trainers.local.distillation import Lesson, divergence, lessons
from trainers.local.health import TrainingStoppedError
from trainers.local.token_batch import TokenBatch, micro_batches, policy_log_probs, training_tokens
from trainers.memory import give_back_freed_memory
from trainers.optimizer import STOPPED, NotFiniteError, clip_gradients, make_optimizer

logger = logging.getLogger(__name__)

KEPT = 1 << 28
"""Bytes of freed memory that may be kept between micro-batches. They differ in width, so blocks
that one has freed seldom fit the next."""


@dataclass
class _Row:
    """A sequence of an episode to learn from, up to the last token that the loss depends on.

    An episode has one, unless its context was managed.

    Args:
        ids: Its tokens; empty if the loss depends on none.
        written: Which of them the policy wrote.
        advantages: Of those, shape (policy tokens that are run,).
        old_log_probs: Under the policy that sampled, in nats, of the same shape.
        policy_tokens: Number of policy tokens of the whole sequence.
        lessons: What a teacher is asked about, if the credit method has one.
    """

    ids: list[int]
    written: list[bool]
    advantages: NDArray[np.float64]
    old_log_probs: NDArray[np.float64]
    policy_tokens: int
    lessons: Sequence[Lesson] = ()


class Updater:
    """Applies GRPO updates to a model.

    Args:
        model: The policy's model.
        tokenizer: Its tokenizer.
        config: Settings of the optimisation.
        temperature: Temperature that turns are sampled at.
        reference: The frozen initial policy, if there is a KL penalty; ``model`` itself if that is
            the model without its adapters.
        autocast: Type that matrices are multiplied in; None for that of the weights.

    Raises:
        ValueError: If gradient checkpointing is asked of a model that does not know it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: SegmentTokenizer,
        config: OptimizationSettings,
        temperature: float = 1.0,
        reference: PreTrainedModel | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        check_logits(model)
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self._known = tokenizer.known_ids
        self.temperature, self.reference, self.autocast = temperature, reference, autocast
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.optimizer = make_optimizer(
            model, config.optimizer, config.learning_rate, config.weight_decay
        )
        updates = config.steps * config.epochs * config.minibatches
        self.schedule = _schedule(self.optimizer, config, updates)

    def step(
        self,
        episodes: Sequence[Episode],
        advantages: Sequence[NDArray[np.float64]],
        rng: np.random.Generator,
        progress: Callable[[int], None] | None = None,
        hindsight: Hindsight | None = None,
    ) -> dict[str, float]:
        """Learn from a batch.

        Tokens after the last one of an episode that has an advantage are not run: attention looks
        back only, so that loss and gradient are the same without them. They still count in the
        number of tokens that the loss is divided by. With a KL penalty all tokens are run.

        Args:
            episodes: Finished episodes; those in which a search failed are left out.
            advantages: One array of shape (policy tokens,) per episode.
            rng: Shuffles the episodes into minibatches.
            progress: Called with the number of episodes of each micro-batch that was run.
            hindsight: What a teacher reads, for methods that have one. The sequences with queries
                are run once more for it, and with the teacher's text.

        Returns:
            ``episodes_used``, how many episodes had no failed search; ``groups_without_advantage``,
            the share of their groups in which every advantage is 0; ``tokens_run``, the share of
            policy tokens that were run; ``grad_norm``, the mean over updates, before clipping;
            ``learning_rate``, that of the last update; ``updates_skipped``, how many were left out
            because the loss or the gradient was not finite. If any token was run: the means over
            all policy tokens ``loss``, ``kl`` and ``clipped``, and means over those that were run:
            ``entropy``; and, before the first update, ``sampling_gap``, the mean difference in nats
            between the log-probs that they were sampled with and those that the update computes,
            and ``recomputed``, the share of tokens where the latter were taken (see
            ``max_sampling_gap``). With a teacher, ``divergence``: the mean over query tokens, nats.
        """
        texts = [""] * len(episodes) if hindsight is None else hindsight.texts
        weight = 0.0 if hindsight is None else hindsight.weight
        usable = [
            (episode, advantage, text if weight else "")
            for episode, advantage, text in zip(episodes, advantages, texts, strict=True)
            if not episode.left_out and episode.policy_tokens
        ]
        groups: dict[str, bool] = {}  # whether there is an advantage in it
        for episode, advantage, _ in usable:
            groups[episode.group_id] = groups.get(episode.group_id, False) or bool(advantage.any())
        rows = [
            row
            for episode, advantage, text in usable
            if groups[episode.group_id] or text or not self.config.dynamic_sampling
            for row in self._rows(episode, advantage, text)
        ]
        sums: defaultdict[str, float] = defaultdict(float)
        norms: list[float] = []
        skipped = 0
        rates = [0.0]
        for _ in range(self.config.epochs):
            order = rng.permutation(len(rows))
            for part in np.array_split(order, self.config.minibatches):
                if len(part):
                    rates.append(float(self.schedule.get_last_lr()[0]))
                    found: defaultdict[str, float] = defaultdict(float)
                    minibatch = [rows[i] for i in part]
                    try:
                        norm = self._update(minibatch, found, progress, weight, first=not norms)
                    except NotFiniteError as error:
                        skipped += 1
                        logger.warning("an update was skipped: %s", error)
                    else:
                        norms.append(norm)
                        for name, value in found.items():
                            sums[name] += value
        try:
            check_weights(self.model)
        except ValueError as error:
            raise TrainingStoppedError(
                f"an update at learning rate {rates[-1]:g} went too far: {error}; resume from the "
                "last checkpoint, or begin again, with a lower learning rate"
            ) from error
        empty = [not learned for learned in groups.values()]
        return {
            "episodes_used": float(len(usable)),
            "groups_without_advantage": float(np.mean(empty)) if empty else 0.0,
            **_means(sums),
            "grad_norm": float(np.mean(norms or [0.0])),
            "learning_rate": rates[-1],
            "updates_skipped": float(skipped),
        }

    def _rows(
        self, episode: Episode, advantages: NDArray[np.float64], hindsight: str
    ) -> Iterator[_Row]:
        """The sequences of an episode, each cut after the last token that the loss depends on."""
        sampled = _sampled_log_probs(episode)
        if len(advantages) != len(sampled):
            raise ValueError(
                f"question {episode.question.id!r}: expected {len(sampled)} advantages, one per "
                f"policy token, got {len(advantages)}"
            )
        first = 0
        taught = list(lessons(episode, hindsight, self.tokenizer)) if hindsight else []
        for ids, written in training_tokens(episode, self.tokenizer):
            places = np.flatnonzero(written)
            values, old = (array[first : first + len(places)] for array in (advantages, sampled))
            first += len(places)
            learned = np.arange(len(places)) if self.config.kl > 0 else np.flatnonzero(values)
            count = int(learned[-1]) + 1 if len(learned) else 0
            end = int(places[count - 1]) + 1 if count else 0
            yield _Row(ids[:end], written[:end], values[:count], old[:count], len(places), taught)
            taught = []  # those of the whole episode go with its first sequence

    def _update(
        self,
        rows: list[_Row],
        sums: defaultdict[str, float],
        progress: Callable[[int], None] | None,
        weight: float,
        *,
        first: bool,
    ) -> float:
        """One optimizer step on a minibatch; returns the norm of the gradient.

        ``first`` says that the weights are still those that sampled.
        """
        # The loss is one mean over the tokens of the whole minibatch: each micro-batch divides by
        # this total, so that accumulated gradients do not depend on how it is cut.
        total = sum(row.policy_tokens for row in rows)
        sums["tokens"] += total
        taught = [lesson for row in rows for lesson in row.lessons]
        given, rows = len(rows), [row for row in rows if row.ids]
        if progress is not None:
            progress(given - len(rows))
        # No dropout, as when the turns were sampled: ratios to the sampling policy start at 1.
        self.model.eval()
        for module in self.model.modules():
            # A layer looks at its own mode to see whether to keep its activations; the modules in
            # it, which would drop out, stay as they are.
            if isinstance(module, GradientCheckpointingLayer):
                module.training = self.config.gradient_checkpointing
        self.optimizer.zero_grad(set_to_none=True)
        for indices in self._micro_batches([len(row.ids) for row in rows]):
            part = [rows[i] for i in indices]
            self._accumulate(part, total, sums, first=first)
            give_back_freed_memory(KEPT)
            if progress is not None:
                progress(len(part))
        self._learn_from_teacher(taught, weight, sums)
        norm = clip_gradients(self.model, self.config.max_grad_norm)
        self.optimizer.step()  # does nothing if no row was run, since there are no gradients then
        self.schedule.step()
        return norm

    def _micro_batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of parts that fit into memory, sequences of similar length together."""
        budget = self.config.micro_batch_tokens or sys.maxsize
        return micro_batches(lengths, budget, self.config.micro_batch_size)

    def _learn_from_teacher(
        self, taught: Sequence[Lesson], weight: float, sums: defaultdict[str, float]
    ) -> None:
        """Add the gradient of the mean divergence from the teacher, over all query tokens."""
        total = sum(sum(lesson.queries) for lesson in taught)
        for part in self._micro_batches([len(lesson.teacher[0]) for lesson in taught]):
            with computing_in(self.model, self.autocast):
                found = divergence(
                    self.model,
                    [taught[i] for i in part],
                    self.temperature,
                    self._known,
                    self.config.logits_at_once,
                )
            value = float(found.detach())
            if not math.isfinite(value):
                raise NotFiniteError(f"the divergence from the teacher is {value}; {STOPPED}")
            (weight * found / total).backward()
            give_back_freed_memory(KEPT)
            sums["divergence"] += value
        sums["taught_tokens"] += total

    def _accumulate(
        self, rows: list[_Row], total: int, sums: defaultdict[str, float], *, first: bool
    ) -> None:
        batch = TokenBatch.from_rows([(row.ids, row.written) for row in rows], self.model.device)
        reference = self._reference_log_probs(batch)
        with computing_in(self.model, self.autocast):
            log_probs, entropy = self._log_probs(self.model, batch)
        if first:
            self._compare(rows, log_probs, sums)
        clip, clip_high = self.config.clip, self.config.clip_high
        result = policy_loss(
            log_probs,
            batch.spread([row.old_log_probs for row in rows]),
            batch.spread([row.advantages for row in rows]),
            total,
            clip=clip,
            clip_high=clip if isinstance(clip_high, str) else clip_high,
            kl=self.config.kl,
            reference_log_probs=reference,
        )
        loss = float(result.loss.detach())
        if not math.isfinite(loss):  # its gradient would not be finite either
            raise NotFiniteError(
                f"the loss of a micro-batch of {len(rows)} episodes is {loss}; {STOPPED}"
            )
        result.loss.backward()
        sums["loss"] += loss * total
        sums["clipped"] += result.clipped
        sums["kl"] += result.kl
        sums["entropy"] += float(entropy.sum())
        sums["run_tokens"] += len(entropy)

    def _log_probs(self, model: PreTrainedModel, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        return policy_log_probs(
            model, batch, self.temperature, self._known, self.config.logits_at_once
        )

    def _reference_log_probs(self, batch: TokenBatch) -> Tensor | None:
        if self.reference is None:
            return None
        off = adapters_off(self.model) if self.reference is self.model else nullcontext()
        with off, evaluating(self.reference, self.autocast):
            return self._log_probs(self.reference, batch)[0]

    def _compare(self, rows: list[_Row], log_probs: Tensor, sums: defaultdict[str, float]) -> None:
        """Measure how far sampling and update differ under the same weights.

        Both compute the same numbers in another order (with a cache, or all at once), and in
        bfloat16 the order matters. Where it matters too much for the ratio of the two, the old
        log-probs become those that the update computes.
        """
        ends = np.cumsum([len(row.old_log_probs) for row in rows])
        updated = log_probs.detach().double().cpu().numpy()
        gap = np.abs(updated - np.concatenate([row.old_log_probs for row in rows]))
        sums["sampling_gap"] += float(gap.sum())
        sums["fresh_tokens"] += len(gap)
        bound = self.config.max_sampling_gap
        replaced = not isinstance(bound, str) and float(gap.mean()) > bound
        sums["recomputed"] += replaced * len(gap)
        if replaced:
            for row, end in zip(rows, ends, strict=True):
                row.old_log_probs = updated[end - len(row.old_log_probs) : end]


def sign_flips(
    advantages: Sequence[NDArray[np.float64]], outcome: Sequence[NDArray[np.float64]]
) -> float:
    """Share of policy tokens on which credit has another sign than the outcome's advantage.

    There the other side of the clip is active than under GRPO.
    """
    ours, theirs = np.concatenate(list(advantages)), np.concatenate(list(outcome))
    return float(np.mean(ours * theirs < 0)) if ours.size else 0.0


def _sampled_log_probs(episode: Episode) -> NDArray[np.float64]:
    rows = [step.log_probs for step in episode.steps]
    if any(row is None for row in rows):
        raise ValueError(
            f"a turn of question {episode.question.id!r} has no log_probs; a policy that is "
            "trained must return Completions with log_probs"
        )
    return np.array([value for row in rows for value in row or ()], dtype=np.float64)


def _means(sums: dict[str, float]) -> dict[str, float]:
    """Means over tokens from sums; see :meth:`Updater.step` for which tokens."""
    over = dict.fromkeys(("loss", "kl", "clipped"), "tokens")
    over |= {"entropy": "run_tokens", "divergence": "taught_tokens"}
    found = {n: sums[n] / sums[over.get(n, "fresh_tokens")] for n in sums if "tokens" not in n}
    tokens = sums.get("tokens", 0.0)
    return {**found, "tokens_run": sums.get("run_tokens", 0.0) / tokens if tokens else 0.0}


def _schedule(
    optimizer: torch.optim.Optimizer, config: OptimizationSettings, updates: int
) -> torch.optim.lr_scheduler.LambdaLR:
    def factor(done: int) -> float:
        if done < config.warmup_steps:
            return (done + 1) / (config.warmup_steps + 1)
        if config.schedule == "constant":
            return 1.0
        progress = (done - config.warmup_steps) / max(1, updates - config.warmup_steps)
        return float(0.5 * (1 + np.cos(np.pi * min(1.0, progress))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@dataclass(frozen=True)
class PolicyLoss:
    """The loss of a part of a batch, and what it tells.

    Args:
        loss: Sum over tokens divided by the number of tokens of the whole batch; a scalar.
        clipped: Number of tokens whose ratio was clipped.
        kl: Sum of the k3 estimates over tokens, in nats; 0 without a reference.
    """

    loss: Tensor
    clipped: float
    kl: float


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    total_tokens: int,
    *,
    clip: float = 0.2,
    clip_high: float = 0.2,
    kl: float = 0.0,
    reference_log_probs: Tensor | None = None,
) -> PolicyLoss:
    """PPO's clipped surrogate as one mean over all policy tokens of the batch.

    -(1 / total) * sum_p min(r_p A_p, clip(r_p, 1 - clip, 1 + clip_high) A_p) + kl * k3_p, with
    r_p the ratio to the policy that sampled (GRPO, arXiv 2402.03300, eq. 3; two bounds as in DAPO,
    arXiv 2503.14476, eq. 10) and k3 = exp(ref - log p) - (ref - log p) - 1. Tokens are averaged
    over the whole batch and not per sequence: a gain that was divided by the length of its query is
    not divided again.

    Args:
        log_probs: Under the present weights, nats, shape (tokens,), with gradient.
        old_log_probs: Under the weights that sampled, shape (tokens,).
        advantages: Shape (tokens,).
        total_tokens: Number of policy tokens of the whole batch.
        clip: How far below 1 a ratio counts.
        clip_high: How far above 1 a ratio counts.
        kl: Weight of the KL penalty.
        reference_log_probs: Under the reference policy, shape (tokens,); needed if ``kl`` > 0.

    Raises:
        ValueError: If ``kl`` is positive and there is no reference.
    """
    # Where min takes the bounded side its gradient is 0: a token that has moved far enough in the
    # direction of its advantage is left alone, one that has moved the wrong way is not.
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - clip, 1 + clip_high)
    surrogate = torch.minimum(ratio * advantages, bounded * advantages)
    total = -surrogate.sum()
    clipped = float((bounded * advantages < ratio * advantages).sum())
    penalty = 0.0
    if kl > 0:
        if reference_log_probs is None:
            raise ValueError("a KL penalty needs reference_log_probs")
        gap = reference_log_probs - log_probs
        k3 = (gap.exp() - gap - 1).sum()
        total = total + kl * k3
        penalty = float(k3.detach())
    return PolicyLoss(total / total_tokens, clipped, penalty)
