"""The local trainer: GRPO in one process, on a CPU or one GPU."""

from __future__ import annotations

import copy
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from igsearch_env.credit import GRPO
from igsearch_env.episode import Question
from igsearch_env.evaluation.play import play_questions
from igsearch_env.files import write_whole
from igsearch_env.rollout import collect
from igsearch_env.threads import set_threads
from igsearch_env.viewer.saved_rollouts import rollouts_file, save_rollouts
from trainers.config import TrainSettings
from trainers.local.checkpoint import checkpoints, load_state, save_checkpoint
from trainers.local.metrics import evaluation_results, rollout_metrics
from trainers.local.run_log import RunLog
from trainers.local.update import Updater, sign_flips
from trainers.memory import keep_freed_memory, lasting_objects
from trainers.setup import group_ids, make_agent, make_questions, make_training_engine

Report = Callable[[dict[str, Any]], None]


class GRPOTrainer:
    """Trains a policy with group-relative advantages.

    Each step samples a group of rollouts for each of a batch of questions, settles the information
    gain of their searches under the weights that sampled, assigns credit, and updates.

    Args:
        config: The settings.
        out: Folder of the run: ``config.json``, ``metrics.jsonl``, ``rollouts/``, ``checkpoints/``
            and, at the end, ``policy/``.
        resume: Go on from the newest checkpoint in ``out``.

    Raises:
        ValueError: If ``out`` holds a run and ``resume`` is not set, or one with other settings.
    """

    def __init__(self, config: TrainSettings, out: str | Path, *, resume: bool = False) -> None:
        self.config, self.out = config, Path(out)
        saved = self._check_folder(resume)
        self.threads = set_threads(config.run.threads)
        keep_freed_memory()
        self.engine = make_training_engine(config, config.run.seed)
        self.agent = make_agent(config, self.engine)
        self.policy = self.agent.policy
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
            copy.deepcopy(self.policy.model).eval() if config.optimization.kl > 0 else None,
            self.policy.autocast,
        )
        self.step = 0
        if saved is not None:
            self._restore(saved)

    def run(self, report: Report | None = None) -> dict[str, Any]:
        """Train to the end.

        Args:
            report: Called with the metrics of each step.

        Returns:
            The metrics of the last step.
        """
        text = json.dumps(self.config.to_dict(), indent=2)
        write_whole(self.out / "config.json", text + "\n")
        log = RunLog(self.out, self.step)
        with lasting_objects():
            while self.step < self.config.optimization.steps:
                row = self.train_step()
                if self._due(self.config.run.eval_every):
                    row["eval"] = self.evaluate()
                log.write(row)
                if self._due(self.config.run.checkpoint_every):
                    self._save()
                if report is not None:
                    report(row)
        log.close()
        self.policy.save_pretrained(self.out / "policy")
        return log.last

    def train_step(self) -> dict[str, Any]:
        """One batch of rollouts and its update; returns metrics and ``seconds`` by part."""
        seconds: defaultdict[str, float] = defaultdict(float)
        o = self.config.optimization
        # They follow from seed and step alone: methods that differ are asked the same questions.
        asking, shuffling = np.random.default_rng([self.config.run.seed, self.step]).spawn(2)
        picks = asking.integers(len(self.engine.questions), size=o.questions_per_step)
        asked = [self.engine.questions[int(pick)] for pick in picks]
        groups = group_ids(asked, self.step, o.group_size)
        repeated = [question for question in asked for _ in range(o.group_size)]
        episodes = collect(self.engine, self.agent, repeated, groups, seconds=seconds)
        started = time.perf_counter()
        progress = self.step / max(1, o.steps - 1)
        episodes = self.agent.settle(episodes, progress)
        settled = time.perf_counter()
        advantages = self.agent.advantages(episodes, progress)
        losses = self.updater.step(episodes, advantages, shuffling)
        self.policy.memory.clear()
        self.step += 1
        seconds["information_gain"] += settled - started
        seconds["update"] += time.perf_counter() - settled
        if self._due(every := self.config.run.save_rollouts_every) or (every and self.step == 1):
            path, decode = rollouts_file(self.out, self.step), self.policy.tokenizer.decode
            save_rollouts(path, episodes, advantages, decode)
        return {
            "step": self.step,
            **rollout_metrics(episodes),
            **losses,
            "sign_flips": sign_flips(advantages, GRPO()(episodes)),
            "pool": dict(self.engine.pool.counts),
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
        }

    def evaluate(self) -> dict[str, Any]:
        """Sampled metrics on held-out questions; leaves the generators of training alone."""
        episodes = play_questions(self.engine, self.policy, self._eval_questions, seed=10_000)
        return evaluation_results(episodes)

    def _due(self, every: int) -> bool:
        last = self.step == self.config.optimization.steps
        return every > 0 and (self.step % every == 0 or last)

    def _check_folder(self, resume: bool) -> Path | None:
        found = checkpoints(self.out / "checkpoints")
        written = self.out / "config.json"
        if not resume:
            if found or written.exists():
                raise ValueError(
                    f"{self.out} holds a run already; pass --resume to go on with it, or choose "
                    "another folder"
                )
            return None
        if written.exists():
            old = json.loads(written.read_text(encoding="utf-8"))
            new = json.loads(json.dumps(self.config.to_dict()))
            changed = [
                f"{section}.{key} was {old.get(section, {}).get(key)!r}, got {value!r}"
                for section, values in new.items()
                for key, value in values.items()
                if old.get(section, {}).get(key) != value
            ]
            if changed or old.keys() != new.keys() or old["credit"] != new["credit"]:
                raise ValueError(
                    f"the run in {self.out} has other settings ({'; '.join(changed)}); resume it "
                    "with its own (config.json), or choose another folder"
                )
        return found[-1] if found else None

    def _save(self) -> None:
        state = {
            "step": self.step,
            "optimizer": self.updater.optimizer.state_dict(),
            "schedule": self.updater.schedule.state_dict(),
            "policy": self.policy.state_dict(),
            "pool": self.engine.pool.state_dict(),
            "torch": torch.get_rng_state(),
        }
        keep = self.config.run.keep_checkpoints
        save_checkpoint(self.out / "checkpoints", self.policy, state, self.step, keep)

    def _restore(self, checkpoint: Path) -> None:
        state = load_state(checkpoint)
        model = self.policy.model
        loaded = type(model).from_pretrained(checkpoint, dtype=model.dtype)
        model.load_state_dict(loaded.state_dict())
        self.updater.optimizer.load_state_dict(state["optimizer"])
        self.updater.schedule.load_state_dict(state["schedule"])
        self.policy.load_state_dict(state["policy"])
        self.engine.pool.load_state_dict(state["pool"])
        torch.set_rng_state(state["torch"])
        self.step = state["step"]
