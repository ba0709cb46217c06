"""Runs OpenRLHF's program with this project's parts in their places."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import openrlhf.utils.config
import ray
from openrlhf.trainer import ppo_trainer, ppo_trainer_async
from openrlhf.trainer.ray import ppo_actor
from ray import cloudpickle

from agents.loading import CHECKOUT
from igsearch_env.checkpoint_settings import CheckpointSettings
from igsearch_env.protocol.names import get_protocol
from trainers.openrlhf import policy_actor, trainers
from trainers.openrlhf.flags import Flags
from trainers.openrlhf.preparation import prepare

PROGRAM = "openrlhf.cli.train_ppo_ray"
SETTINGS = "IGSEARCH_ROLLOUT"  # trainers.openrlhf.agent_function reads both
PLUGINS = "IGSEARCH_PLUGINS"


class Checked(Exception):
    """Raised in place of the start of Ray where a run is only to be checked.

    Attributes:
        args: OpenRLHF's settings, nested; the exception's first argument.
    """


def launch(flags: Flags) -> None:
    """Train, from the parsing of the flags to the last checkpoint.

    Raises:
        ValueError: If OpenRLHF or this project refuses the flags; nothing has been started then.
        Checked: If everything is in order and ``flags.check`` is set.
    """
    run = _WrappedCalls(flags)
    for module in (policy_actor, trainers):
        # OpenRLHF's classes travel by value, since their names stand for remote ones. A class of
        # ours that travelled by name would find another copy of its base at the other end than
        # Ray's wrapped methods hold on to, and their super() would fail.
        cloudpickle.register_pickle_by_value(module)
    with ExitStack() as stack:
        for place, name, value in (
            (openrlhf.utils.config, "hierarchize", run.hierarchize),
            (ray, "init", run.init),
            (ppo_actor, "PolicyModelActor", ray.remote(num_gpus=1)(policy_actor.GainPolicyActor)),
            (ppo_trainer, "PPOTrainer", ray.remote(trainers.GainTrainer)),
            (ppo_trainer_async, "TrainingActor", ray.remote(trainers.GainTrainingActor)),
            (sys, "argv", [PROGRAM, *flags.arguments]),
        ):
            stack.enter_context(_replaced(place, name, value))
        try:
            runpy.run_module(PROGRAM, run_name="__main__")
        except AssertionError as error:
            if run.started:
                raise
            raise ValueError(f"OpenRLHF refuses these flags: {error}") from error
    policy = flags.out / "policy"
    if policy.is_dir():  # on this machine
        rollout = flags.rollout
        protocol = get_protocol(str(flags.out / "protocol.json"))
        CheckpointSettings(protocol, rollout.max_new_tokens, rollout.rules).save(policy)


class _WrappedCalls:
    """The two calls of OpenRLHF's program that are wrapped."""

    def __init__(self, flags: Flags) -> None:
        self.flags = flags
        self.args: Any = None
        self.started = False
        self._hierarchize = openrlhf.utils.config.hierarchize
        self._init = ray.init

    def hierarchize(self, flat: Any) -> Any:
        """Add this project's settings to OpenRLHF's."""
        flags = self.flags
        self.args = self._hierarchize(flat)
        if not (engines := self.args.vllm.num_engines):  # before OpenRLHF compares their number
            raise ValueError(
                f"episodes are played by vLLM engines, got --vllm.num_engines {engines}; "
                "give at least 1"
            )
        self.args.ig = SimpleNamespace(
            rollout=flags.rollout, credit=flags.credit, modules=flags.modules
        )
        return self.args

    def init(self, *arguments: Any, **options: Any) -> Any:
        """Check everything, then start or join Ray, with what its workers need."""
        rollout = prepare(self.args, self.flags)
        if self.flags.check:
            raise Checked(self.args)
        self.started = True
        environment = options.setdefault("runtime_env", {}).setdefault("env_vars", {})
        self.args.ig.rollout = rollout
        environment[SETTINGS] = rollout.to_json()
        environment[PLUGINS] = os.pathsep.join(self.flags.modules)
        if "RAY_JOB_ID" not in os.environ and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
            paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
            environment["PYTHONPATH"] = os.pathsep.join(paths)
        return self._init(*arguments, **options)


@contextmanager
def _replaced(place: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)
