"""The local trainer: GRPO in one process, on a CPU or one GPU."""

from __future__ import annotations

import copy
import json
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agents.lora import has_adapters, set_adapters
from igsearch_env.credit import GRPO
from igsearch_env.episode import Episode, Question
from igsearch_env.evaluation.metrics import batch_metrics
from igsearch_env.evaluation.play import play_questions
from igsearch_env.evaluation.scores import evaluation_results
from igsearch_env.files import alone_in, read_sealed, write_sealed
from igsearch_env.protocol.names import protocol_from_record, protocol_record
from igsearch_env.protocol.tags import TagProtocol
from igsearch_env.retrieval.base import check_alive
from igsearch_env.text import without_logins
from igsearch_env.threads import set_threads
from igsearch_env.viewer.saved_rollouts import rollouts_file, save_rollouts
from trainers.config import RESUMABLE, TrainSettings, read_settings
from trainers.interrupt import interrupt_delayed
from trainers.local.checkpoint import (
    checkpoints,
    load_checkpoint,
    save_checkpoint,
    save_policy,
    step_of,
)
from trainers.local.health import Health, TrainingStoppedError
from trainers.local.run_log import RunLog, read_log
from trainers.local.trackers import open_tracker
from trainers.local.update import Updater, sign_flips
from trainers.memory import (
    give_back_freed_memory,
    keep_freed_memory,
    large_blocks_given_back,
    lasting_objects,
)
from trainers.setup import (
    group_ids,
    make_agent,
    make_questions,
    make_training_engine,
    with_precision,
    with_protocol,
)
from trainers.steady import RetrieverLostError, collect_steadily

PROTOCOL = "protocol.json"
"""File of a run that holds its grammar, in full where it is none of the presets."""

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]
"""Called with the metrics of each step."""

Watch = Callable[[str, int, int], None]
"""Called while a step is under way with the part it is at (``"rollouts"``, ``"gains"``,
``"update"`` or ``"evaluation"``), how many episodes of it are done, and of how many."""


class GRPOTrainer:
    """Trains a policy with group-relative advantages.

    Each step samples a group of rollouts for each of a batch of questions, settles the information
    gain of their searches under the weights that sampled, assigns credit, and updates.

    Args:
        config: The settings.
        out: Folder of the run: ``config.json``, ``protocol.json``, ``metrics.jsonl``,
            ``rollouts/``, ``checkpoints/`` and, at the end, ``policy/`` (and ``adapter/``, where
            adapters were trained).
        resume: Go on from the newest checkpoint in ``out`` that can be read.

    Attributes:
        notes: JSON-ready data that :meth:`save` keeps for its caller; a resumed run has it again.

    Raises:
        ValueError: If ``out`` holds a run and ``resume`` is not set, or one with other settings
            than those of :data:`trainers.config.RESUMABLE`; or if the retriever does not answer.
    """

    def __init__(self, config: TrainSettings, out: str | Path, *, resume: bool = False) -> None:
        config = with_precision(config)  # what "auto" means here is the run's from now on
        self.config, self.out = config, Path(out)
        saved = self._check_folder(resume)
        self._newest = step_of(saved[0]) if saved else 0
        self.threads = set_threads(config.run.threads)
        keep_freed_memory()
        engine = make_training_engine(config, config.run.seed)
        check_alive(engine.retriever, engine.questions[0].text, engine.top_k)
        self.agent = make_agent(config, engine, self._frozen_protocol() if resume else None)
        self.policy = self.agent.policy
        self.engine = with_protocol(engine, self.policy.protocol, self.policy.tokenizer)
        self._eval_questions: list[Question] = []
        if config.run.eval_every:
            everything = make_questions(config.environment.eval_questions, config.world)
            limit = min(config.run.eval_limit, len(everything))
            self._eval_questions = random.Random(0).sample(everything, limit)
        self.updater = Updater(
            self.policy.model,
            self.policy.tokenizer,
            config.optimization,
            config.policy.temperature,
            self._reference() if config.optimization.kl > 0 else None,
            self.policy.autocast,
        )
        self.step, self._logged = 0, ""
        self.notes: dict[str, Any] = {}
        self._log: RunLog | None = None
        self._health = Health(config.run, [])
        self._watch: Watch = _nobody
        if saved:
            self._restore(saved)
        self._state = self._state_now()

    def run(self, report: Report | None = None, watch: Watch | None = None) -> dict[str, Any]:
        """Train to the end.

        Ctrl-C ends the run with a checkpoint of the last step that was done.

        Args:
            report: Called with the metrics of each step.
            watch: Called while a step is under way.

        Returns:
            The metrics of the last step.

        Raises:
            RetrieverLostError: If too many searches fail; a checkpoint has been written then.
            TrainingStoppedError: If there is nothing to learn from, or training has collapsed (see
                :class:`trainers.local.health.Health`), with a checkpoint; or if a gradient is not
                finite.
            OSError: If a file cannot be written.
            ValueError: If another process trains in the folder, or did since it was looked at.
        """
        with alone_in(self.out):
            return self._run(report, watch or _nobody)

    def _run(self, report: Report | None, watch: Watch) -> dict[str, Any]:
        self._watch = watch
        self._check_not_overtaken()
        give_back_freed_memory()  # what reading model and checkpoint has left
        write_sealed(self.out / "config.json", self.config.to_dict())
        write_sealed(self.out / PROTOCOL, protocol_record(self.policy.protocol))
        trackers = [
            open_tracker(name, self.out, self.step, _as_json(self.config))
            for name in self.config.run.trackers
        ]
        log = self._log = RunLog(self.out, self.step, trackers, self._logged)
        self._health = Health(self.config.run, read_log(log.path))
        try:
            with lasting_objects():
                while self.step < self.config.optimization.steps:
                    row = self._step_and_log(log)
                    if self._due(self.config.run.checkpoint_every):
                        self.save()
                    if report is not None:
                        report(row)
                    self._check_health(row)
        except (KeyboardInterrupt, RetrieverLostError):
            self.save()
            raise
        finally:
            log.close()
        save_policy(self.out / "policy", self.policy)
        if has_adapters(self.policy.model):
            save_policy(self.out / "adapter", self.policy, adapters_only=True)
        return log.last

    def _check_not_overtaken(self) -> None:
        """Refuse to go on from a state that another process has gone on from meanwhile."""
        found = checkpoints(self.out / "checkpoints")
        if found and step_of(found[-1]) > max(self._newest, self.step):
            raise ValueError(
                f"another process has trained in {self.out} meanwhile; pass --resume to go on "
                "with what it did"
            )

    def _check_health(self, row: dict[str, Any]) -> None:
        try:
            self._health.check(row)
        except TrainingStoppedError as stop:
            self.save()
            folder = self.out / "checkpoints"
            best = self._health.best([step_of(one) for one in checkpoints(folder)])
            if best is None:
                raise
            raise TrainingStoppedError(
                f"{stop}; the checkpoint of step {best} is that of the best mean: begin a new run "
                f"with policy.path={folder}/step-{best:06d} and, say, a lower learning rate"
            ) from stop

    def train_step(self) -> dict[str, Any]:
        """One batch of rollouts and its update; returns metrics and ``seconds`` by part.

        Raises:
            RetrieverLostError: If too many searches fail.
        """
        seconds = defaultdict[str, float](float)
        return self._learn(self._play(seconds), seconds)

    def evaluate(self) -> dict[str, Any]:
        """Sampled metrics on held-out questions; leaves the generators of training alone."""
        watched = self._watched("evaluation", len(self._eval_questions))
        episodes = play_questions(
            self.engine, self.policy, self._eval_questions, seed=10_000, progress=watched
        )
        return evaluation_results(episodes)

    def _reference(self) -> PreTrainedModel:
        """The initial policy: a copy, or the model itself, whose adapters can be turned off."""
        model = self.policy.model
        return model if has_adapters(model) else copy.deepcopy(model).eval()

    def _step_and_log(self, log: RunLog) -> dict[str, Any]:
        seconds = defaultdict[str, float](float)
        episodes = self._play(seconds)
        row: dict[str, Any] = {}
        try:
            # Ctrl-C in the rollouts loses nothing but these; half an update could not be undone.
            with interrupt_delayed():
                row = self._learn(episodes, seconds)
            if self._due(self.config.run.eval_every):
                started = time.perf_counter()
                row["eval"] = self.evaluate()
                row["seconds"]["evaluation"] = round(time.perf_counter() - started, 4)
        finally:
            if row:  # the update has been made, whatever came of the evaluation
                log.write(row)
        return row

    def _play(self, seconds: defaultdict[str, float]) -> list[Episode]:
        """The rollouts of a step; played again if too many of their searches failed."""
        o, run = self.config.optimization, self.config.run
        asked = self._questions()
        repeated = [question for question in asked for _ in range(o.group_size)]
        groups = group_ids(asked, self.step, o.group_size)
        return collect_steadily(
            self.engine,
            self.agent,
            repeated,
            groups,
            step=self.step + 1,
            max_failed=run.max_failed_searches,
            tries=run.failed_tries,
            seconds=seconds,
            watched=lambda: self._watched("rollouts", len(repeated)),
            restore=self._sample_again,
        )

    def _sample_again(self) -> None:
        """Go back to the state before the rollouts of this step."""
        self.policy.load_state_dict(self._state["policy"])
        self.engine.pool.load_state_dict(self._state["pool"])

    def _questions(self) -> list[Question]:
        """The questions of a step follow from seed and step, so that all methods get the same."""
        asking, _ = self._generators()
        picks = asking.integers(
            len(self.engine.questions), size=self.config.optimization.questions_per_step
        )
        return [self.engine.questions[int(pick)] for pick in picks]

    def _generators(self) -> Sequence[np.random.Generator]:
        """Those of a step: for its questions, and for shuffling its episodes."""
        return np.random.default_rng([self.config.run.seed, self.step]).spawn(2)

    def _learn(self, episodes: list[Episode], seconds: defaultdict[str, float]) -> dict[str, Any]:
        """Settle, assign credit and update; the metrics of the step."""
        started = time.perf_counter()
        progress = self.step / max(1, self.config.optimization.steps - 1)
        self._watch("gains", 0, len(episodes))
        episodes = self.agent.settle(episodes, progress)
        self.policy.memory.clear()  # keys and values need not lie beside the update's activations
        give_back_freed_memory()
        settled = time.perf_counter()
        advantages = self.agent.advantages(episodes, progress)
        _, shuffling = self._generators()
        updates = len(episodes) * self.config.optimization.epochs
        with large_blocks_given_back():
            losses = self.updater.step(
                episodes,
                advantages,
                shuffling,
                self._watched("update", updates),
                self.agent.hindsight(episodes, progress),
            )
        give_back_freed_memory()
        self.step += 1
        self._state = self._state_now()
        seconds["information_gain"] += settled - started
        seconds["update"] += time.perf_counter() - settled
        if self._due(every := self.config.run.save_rollouts_every) or (every and self.step == 1):
            path, decode = rollouts_file(self.out, self.step), self.policy.tokenizer.decode
            save_rollouts(path, episodes, advantages, decode)
        return {
            "step": self.step,
            **batch_metrics(episodes),
            **losses,
            "sign_flips": sign_flips(advantages, GRPO()(episodes)),
            "pool": dict(self.engine.pool.counts),
            **({"judge": dict(self.engine.judge.counts)} if self.engine.judge else {}),
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
        }

    def _watched(self, part: str, total: int) -> Callable[[int], None]:
        """Adds up how many episodes of a part are done, and says so."""
        done = 0

        def watched(more: int) -> None:
            nonlocal done
            done += more
            self._watch(part, done, total)

        watched(0)
        return watched

    def _due(self, every: int) -> bool:
        last = self.step == self.config.optimization.steps
        return every > 0 and (self.step % every == 0 or last)

    def _check_folder(self, resume: bool) -> list[Path]:
        """The checkpoints to resume from, newest first."""
        found = checkpoints(self.out / "checkpoints")
        written = self.out / "config.json"
        if not resume:
            if found or written.exists():
                raise ValueError(
                    f"{self.out} holds a run already; pass --resume to go on with it, or choose "
                    "another folder"
                )
            return []
        if written.exists():
            # A setting that the run did not know yet had its default.
            known, new = (_flat(_as_json(one)) for one in (TrainSettings(), self.config))
            old = {**known, **_flat(without_logins(read_settings(written)))}
            changed = [
                f"{name} was {old.get(name)!r}, got {new.get(name)!r}"
                for name in dict.fromkeys((*new, *old))
                if old.get(name) != new.get(name) and name not in RESUMABLE
            ]
            if changed:
                raise ValueError(
                    f"the run in {self.out} has other settings ({'; '.join(changed)}); resume it "
                    "with its own (config.json), or choose another folder"
                )
        return found[::-1]

    def _frozen_protocol(self) -> TagProtocol | None:
        """The grammar that the run began with; a chat template may print another one today."""
        file = self.out / PROTOCOL
        if not file.is_file():
            return None
        try:
            return protocol_from_record(read_sealed(file))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{file} is damaged ({error}); copy it from the policy of this run's newest "
                "checkpoint, or remove it to take the grammar that the settings name"
            ) from error

    def _state_now(self) -> dict[str, Any]:
        """What a checkpoint holds besides the weights."""
        return {
            "step": self.step,
            "optimizer": self.updater.optimizer.state_dict(),
            "schedule": self.updater.schedule.state_dict(),
            "policy": self.policy.state_dict(),
            "pool": self.engine.pool.state_dict(),
            "torch": torch.get_rng_state(),
        }

    def save(self) -> None:
        """Write a checkpoint of the last step that was done, whatever was begun after it."""
        if self.step:
            keep = self.config.run.keep_checkpoints
            folder = self.out / "checkpoints"
            best = self._health.best
            log = self._log.sha256 if self._log else ""
            state = self._state | {"log": log, "notes": self.notes}
            save_checkpoint(folder, self.policy, state, self.step, keep, best)

    def _restore(self, found: Sequence[Path]) -> None:
        """Go on from the first of these checkpoints that can be read."""
        for checkpoint in found:
            try:
                load_checkpoint(checkpoint, self.policy.model, self._take_up)
            except ValueError as error:
                logger.warning("%s; going on with the one before it", error)
            else:
                return
        raise ValueError(
            f"no checkpoint in {found[0].parent} can be read; remove that folder to start the "
            "run again from its beginning"
        )

    def _take_up(self, state: dict[str, Any], weights: dict[str, Tensor]) -> None:
        if has_adapters(self.policy.model):
            set_adapters(self.policy.model, weights)
        else:
            self.policy.model.load_state_dict(weights)
        self.updater.optimizer.load_state_dict(state["optimizer"])
        self.updater.schedule.load_state_dict(state["schedule"])
        self.policy.load_state_dict(state["policy"])
        self.engine.pool.load_state_dict(state["pool"])
        torch.set_rng_state(state["torch"])
        self.step, self._logged = state["step"], state.get("log", "")
        self.notes = state.get("notes", {})


def _as_json(config: TrainSettings) -> dict[str, Any]:
    """Settings as they are read from a file, with lists for tuples."""
    read: dict[str, Any] = json.loads(json.dumps(without_logins(config.to_dict())))
    return read


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Nested settings by their full names."""
    return {
        f"{section}.{name}": value
        for section, values in settings.items()
        for name, value in values.items()
    }


def _nobody(part: str, done: int, total: int) -> None:
    pass
