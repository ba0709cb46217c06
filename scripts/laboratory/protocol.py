"""The written protocol of the credit laboratory: regimes, arms, seeds, and what was fixed before.

It is a TOML file (``scripts/laboratory/protocol.toml``). A run's settings are those of ``base``,
then the regime's, then the arm's, then what the regime has tuned for the arm's family.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from agents.loading import CHECKOUT
from scripts.laboratory.hashes import checkpoint_hash, sha256_of
from trainers.config import TrainSettings, build, from_dict

Stage = Literal["develop", "qualify", "compare"]
Settings = dict[str, dict[str, Any]]
QUARTERS = 4
"""Evaluations per run, evenly spaced; the primary endpoint is the mean of their EM."""


@dataclass(frozen=True)
class Arm:
    """A way to assign credit.

    Args:
        settings: Sections of a training configuration.
        family: Whose tuned settings it takes: those of ``"outcome"`` (tuned with GRPO) or of
            ``"gain"`` (tuned with IG-Search, for everything that adds a bonus to searches).
        seeds: On how many of the fresh seeds it runs, where the regime does not say.
    """

    settings: Settings
    family: Literal["outcome", "gain"] = "outcome"
    seeds: int = 3


@dataclass(frozen=True)
class Span:
    """The fresh seeds from the first to the last one."""

    first: int
    last: int


@dataclass(frozen=True)
class Regime:
    """A world and a way to search it in which arms are compared.

    Args:
        settings: Sections of a training configuration.
        primary: The one arm that is tested against GRPO.
        primaries_before: Those that were it before, in order; they count as tests, too.
        checkpoints: Warm-started policies in the place of the protocol's, if it needs its own.
        seeds: The fresh seeds of some arms, by name: one that was chosen when some of them had
            been looked at leaves those out.
        tuned: For each family, what tuning on development seeds settled.
        why: What the regime is for, in a line.
    """

    settings: Settings
    primary: str
    primaries_before: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    seeds: dict[str, Span] = field(default_factory=dict)
    tuned: dict[str, Settings] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Protocol:
    """Everything that is settled before fresh worlds are looked at.

    Args:
        base: File of the training settings that everything starts from.
        checkpoints: Warm-started policies; seed s starts from the s-th, round and round.
        seeds: Fresh seeds. A seed fixes world, questions, checkpoint and sampling.
        development_seeds: Seeds for qualifying, tuning and choosing.
        questions: Held-out questions of the final evaluation.
        samples: Samples per question in the final evaluation.
        interim_questions: Held-out questions of the evaluations before it.
        qualifying_groups: Groups of G rollouts that a regime is looked at with before training.
        arms: By name; ``"grpo"`` and ``"oracle"`` must be among them.
        regimes: By name.
    """

    base: str
    checkpoints: tuple[str, ...]
    seeds: tuple[int, ...]
    development_seeds: tuple[int, ...]
    questions: int
    samples: int
    interim_questions: int
    qualifying_groups: int
    arms: dict[str, Arm]
    regimes: dict[str, Regime]

    def __post_init__(self) -> None:
        if common := set(self.seeds) & set(self.development_seeds):
            raise ValueError(f"fresh seeds must not be development seeds, got {sorted(common)}")
        regimes = self.regimes.values()
        primaries = [arm for r in regimes for arm in (r.primary, *r.primaries_before)]
        for name in ("grpo", "oracle", *primaries):
            if name not in self.arms:
                raise ValueError(f"the protocol needs an arm {name!r}; it has {sorted(self.arms)}")
        for name, regime in self.regimes.items():
            _check_regime(name, regime)
        for name, arm in self.arms.items():
            if not 1 <= arm.seeds <= len(self.seeds):
                raise ValueError(
                    f"arm {name!r} asks for {arm.seeds} seeds; the protocol has {len(self.seeds)}"
                )
        for name in self.regimes:
            self._check_seeds(name)

    def _check_seeds(self, name: str) -> None:
        """Refuse seeds of a regime's arms that there are not, or that GRPO does not run on."""
        for arm, span in self.regimes[name].seeds.items():
            known = arm in self.arms and {span.first, span.last} <= set(self.seeds)
            if not known or span.first > span.last:
                raise ValueError(
                    f"regime {name!r} gives {span} to arm {arm!r}; expected an arm of the "
                    "protocol, and the first and the last of its fresh seeds"
                )
        for arm in self.arms:
            if alone := set(self.seeds_of(name, arm)) - set(self.seeds_of(name, "grpo")):
                raise ValueError(
                    f"regime {name!r} has {arm!r} run on the seeds {sorted(alone)}, where 'grpo' "
                    "does not run to be compared with"
                )

    def seeds_of(self, regime: str, arm: str) -> list[int]:
        """The fresh seeds that an arm runs on."""
        if arm in self.regimes[regime].seeds:
            span = self.regimes[regime].seeds[arm]
            return [seed for seed in self.seeds if span.first <= seed <= span.last]
        return list(self.seeds[: self.arms[arm].seeds])


def _check_regime(name: str, regime: Regime) -> None:
    """Refuse what would never reach training."""
    if unknown := regime.tuned.keys() - {"outcome", "gain"}:
        raise ValueError(
            f"regime {name!r} tunes the families {sorted(unknown)}; there are 'outcome' and 'gain'"
        )
    if any("credit" in settings for settings in (regime.settings, *regime.tuned.values())):
        raise ValueError(
            f"regime {name!r} sets credit, which an arm says all of; write it into the arm, or "
            "add an arm"
        )


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        stage: What it is for.
        regime: Name of the regime.
        arm: Name of the arm.
        seed: World, questions, checkpoint and sampling.
        changes: Further settings that are tried, in development only.
    """

    stage: Stage
    regime: str
    arm: str
    seed: int
    changes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A file name."""
        tail = "".join(f"-{change.replace('=', '_')}" for change in self.changes)
        return f"{self.regime}-{self.arm}-{self.seed}{tail}"


def load_protocol(path: Path) -> Protocol:
    """Read a protocol.

    Raises:
        ValueError: If the file is not TOML, or a key is unknown or of the wrong type.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"cannot read the protocol {path}: {error}") from error
    return build(Protocol, data)


def rests_on(protocol: Protocol, path: Path) -> dict[str, str]:
    """Hashes of everything that a comparison rests on, by name.

    Args:
        protocol: The protocol.
        path: Its file.
    """
    hashes = {"protocol": sha256_of(path), protocol.base: sha256_of(CHECKOUT / protocol.base)}
    own = [name for regime in protocol.regimes.values() for name in regime.checkpoints]
    return hashes | {name: checkpoint_hash(name) for name in (*protocol.checkpoints, *own)}


def evaluation_size(protocol: Protocol, job: Job, quarter: int) -> tuple[int, int]:
    """Questions of an evaluation, and how often each is asked."""
    if quarter == QUARTERS and job.stage == "compare":
        return protocol.questions, protocol.samples
    return protocol.interim_questions, 1


def is_run_of(run: Mapping[str, Any], protocol: Protocol, job: Job) -> bool:
    """Whether a kept run is what the protocol asks for now: settings, checkpoint, evaluations."""
    config = job_config(protocol, job)
    sizes = [evaluation_size(protocol, job, quarter) for quarter in range(QUARTERS + 1)]
    try:
        same = from_dict(run["config"]) == config
    except ValueError:  # it has settings that there are no more
        return False
    return (
        same
        and run.get("checkpoint") == checkpoint_hash(config.policy.path)
        and [(one["questions"], one["samples"]) for one in run["evaluations"]] == sizes
    )


def settings_hash(protocol: Protocol, regime: str) -> str:
    """Hash of what the verdict on a regime rests on: its runs' settings on development seeds."""
    jobs = [
        Job("develop", regime, arm, seed)
        for arm in ("grpo", "oracle")
        for seed in protocol.development_seeds
    ]
    configs = [job_config(protocol, job) for job in jobs]
    told = [(one.to_dict(), checkpoint_hash(one.policy.path)) for one in configs]
    text = json.dumps([told, protocol.interim_questions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def shortened(protocol: Protocol) -> Protocol:
    """The same protocol at a size that shows that it works, and nothing else."""
    arms = {name: replace(arm, seeds=min(arm.seeds, 2)) for name, arm in protocol.arms.items()}
    tiny: Settings = {"optimization": {"steps": QUARTERS, "questions_per_step": 2, "group_size": 2}}
    regimes = {
        name: replace(regime, settings=merged(regime.settings, tiny), seeds={})
        for name, regime in protocol.regimes.items()
    }
    return replace(
        protocol,
        seeds=protocol.seeds[:2],
        development_seeds=protocol.development_seeds[:2],
        questions=6,
        samples=2,
        interim_questions=4,
        qualifying_groups=4,
        arms=arms,
        regimes=regimes,
    )


def job_config(protocol: Protocol, job: Job) -> TrainSettings:
    """The training settings of a run."""
    regime, arm = protocol.regimes[job.regime], protocol.arms[job.arm]
    base = tomllib.loads((CHECKOUT / protocol.base).read_text(encoding="utf-8"))
    checkpoints = regime.checkpoints or protocol.checkpoints
    checkpoint = checkpoints[job.seed % len(checkpoints)]
    fixed: Settings = {
        "world": {"seed": job.seed},
        "run": {"seed": job.seed, "threads": 1},
        "policy": {"path": checkpoint},
    }
    parts = (regime.settings, arm.settings, regime.tuned.get(arm.family, {}), fixed)
    data: dict[str, Any] = base
    for part in parts:
        data = merged(data, part)
    if "credit" in arm.settings:  # an arm says all of it: nothing is left over from the base
        data["credit"] = dict(arm.settings["credit"])
    for change in job.changes:
        section, rest = change.split(".", 1)
        key, value = rest.split("=", 1)
        data = merged(data, {section: {key: tomllib.loads(f"v = {value}")["v"]}})
    return from_dict(data)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two configurations of sections, the second one's values winning."""
    result = {section: dict(values) for section, values in base.items()}
    for section, values in over.items():
        result[section] = {**result.get(section, {}), **values}
    return result
