"""OpenRLHF's trainers, sync and async, with the project's experience maker and metrics."""

from __future__ import annotations

from typing import Any

from openrlhf.trainer import ppo_trainer, ppo_trainer_async
from openrlhf.utils.logging_utils import init_logger

from trainers.openrlhf.experience_maker import GainExperienceMaker
from trainers.openrlhf.seams import original_class

log = init_logger(__name__)


class _WithGains:
    """What both trainers get."""

    experience_maker: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.experience_maker = GainExperienceMaker.in_place_of(self.experience_maker)

    def train_step(self, rollout_samples: Any, global_step: int) -> Any:
        """Tell the experience maker how far training has come, and train."""
        steps: int = self.experience_maker.args.ig.steps
        self.experience_maker.progress = min(1.0, global_step / max(1, steps - 1))
        return super().train_step(rollout_samples, global_step)  # type: ignore[misc]

    def save_logs_and_checkpoints(
        self,
        global_step: int,
        logs_dict: dict[str, Any] | None = None,
        client_states: dict[str, Any] | None = None,
    ) -> None:
        """Log the metrics of the step beside OpenRLHF's, under ``ig/``."""
        logs = {**(logs_dict or {}), **step_metrics(self.experience_maker, logs_dict or {})}
        shown = [f"{name} {value:.4g}" for name, value in logs.items() if name.startswith("ig/")]
        log.info(f"Step {global_step}: {', '.join(shown)}")
        if failed := logs.get("ig/failed_rollouts"):
            log.warning(
                f"Step {global_step}: in {failed:.1%} of the rollouts a search failed; they were "
                "left out of the update. Is the retriever server well?"
            )
        super().save_logs_and_checkpoints(global_step, logs, client_states)  # type: ignore[misc]


def step_metrics(maker: GainExperienceMaker, logs: dict[str, Any]) -> dict[str, float]:
    """Metrics of a step by the names they are logged under.

    ``ig/time_share`` is the share of the step's wall-clock time that settling gains took.
    """
    metrics = {f"ig/{name}": value for name, value in maker.metrics.items()}
    metrics["ig/seconds"] = maker.seconds
    if total := logs.get("timing/step_total"):
        metrics["ig/time_share"] = maker.seconds / total
    return metrics


class GainTrainer(_WithGains, original_class(ppo_trainer.PPOTrainer)):  # type: ignore[misc]
    """The synchronous trainer."""


_TrainingActor = original_class(ppo_trainer_async.TrainingActor)


class GainTrainingActor(_WithGains, _TrainingActor):  # type: ignore[misc, valid-type]
    """The training half of the asynchronous trainer."""
