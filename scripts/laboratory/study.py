"""The study that the laboratory carries out: regimes, arms, seeds, and what was fixed before.

It is a TOML file (``scripts/laboratory/study.toml``). A run's settings are those of ``base``,
then the regime's, then the arm's, then what the regime has tuned for the arm's family.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from igsearch_env.evaluation.setup import CHECKOUT
from trainers.config import TrainSettings, build, from_dict, read_toml

Stage = Literal["develop", "qualify", "compare"]
Settings = dict[str, dict[str, Any]]
FIXED_UNDER: Settings = {"environment": {"added_only": False}}
"""Defaults of the time when the study was fixed that are others now."""
NAMED_THEN = {"igpo": "igpo_paper"}
"""Credit methods whose names stood for another form when the study was fixed."""
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
        checkpoints: Warm-started policies in the place of the study's, if it needs its own.
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
class Study:
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
        name: What its record and its reports are called.
        title: What the study is about and what it does not show; printed with tables and plots.
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
    name: str = "credit"
    title: str = "a study of your own"

    def __post_init__(self) -> None:
        if common := set(self.seeds) & set(self.development_seeds):
            raise ValueError(f"fresh seeds must not be development seeds, got {sorted(common)}")
        regimes = self.regimes.values()
        primaries = [arm for r in regimes for arm in (r.primary, *r.primaries_before)]
        for name in ("grpo", "oracle", *primaries):
            if name not in self.arms:
                raise ValueError(f"the study needs an arm {name!r}; it has {sorted(self.arms)}")
        for name, regime in self.regimes.items():
            _check_regime(name, regime)
        for name, arm in self.arms.items():
            if not 1 <= arm.seeds <= len(self.seeds):
                raise ValueError(
                    f"arm {name!r} asks for {arm.seeds} seeds; the study has {len(self.seeds)}"
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
                    "study, and the first and the last of its fresh seeds"
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
class Trial:
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


def load_study(path: Path) -> Study:
    """Read a study.

    Raises:
        ValueError: If the file is not TOML, or a key is unknown or of the wrong type.
    """
    return build(Study, read_toml(path))


def checkpoint_hash(path: str) -> str:
    """Hash of all files of a checkpoint's folder; the name itself of one on the hub."""
    from agents.loading import checkpoint_folder  # which loads torch

    folder = checkpoint_folder(path)
    if folder is None:
        return path
    parts = [
        f"{file.relative_to(folder)} {hashlib.sha256(file.read_bytes()).hexdigest()}"
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def rests_on(study: Study) -> dict[str, Any]:
    """What a comparison rests on: a hash of each part of the study, and those of its checkpoints.

    Contents count, not where they lie: a file or a folder may be moved.
    """
    paths = dict.fromkeys(study.checkpoints)
    for regime in study.regimes.values():
        paths |= dict.fromkeys(regime.checkpoints)
    hashes = {path: checkpoint_hash(path) for path in paths}
    parts = asdict(study) | {"base": _base_settings(study)}
    del parts["checkpoints"], parts["name"], parts["title"]
    for regime in parts["regimes"].values():
        regime["checkpoints"] = [hashes[path] for path in regime["checkpoints"]]
    found: dict[str, Any] = {name: hash_of(part) for name, part in parts.items()}
    found["checkpoints"] = list(hashes.values())
    trials = [Trial("compare", name, "grpo", study.seeds[0]) for name in study.regimes]
    data = [data_hashes(trial_settings(study, trial)) for trial in trials]
    return found | ({"data": data} if any(data) else {})


def data_hashes(config: TrainSettings) -> dict[str, str]:
    """Hashes of the files of questions and of the index that a run reads, where they are here.

    A world is made from its seed, and a server's documents cannot be seen.
    """
    e = config.environment
    found = {}
    for name, place in (
        ("questions", e.questions),
        ("eval_questions", e.eval_questions),
        ("retriever", e.retriever),
    ):
        path = Path(place)
        path = path / "manifest.json" if path.is_dir() else path
        if path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def hash_of(data: Any) -> str:
    """Hash of JSON-ready data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def evaluation_size(study: Study, trial: Trial, quarter: int) -> tuple[int, int]:
    """Questions of an evaluation, and how often each is asked."""
    if quarter == QUARTERS and trial.stage == "compare":
        return study.questions, study.samples
    return study.interim_questions, 1


def settings_record(config: TrainSettings) -> dict[str, Any]:
    """Settings as they are kept: without the checkpoint's path, which its hash stands for."""
    record = config.to_dict()
    del record["policy"]["path"]
    return record


def is_result_of(run: Mapping[str, Any], study: Study, trial: Trial) -> bool:
    """Whether a kept run is what the study asks for now; see :func:`differences`."""
    return not differences(run, study, trial)


def differences(run: Mapping[str, Any], study: Study, trial: Trial) -> list[str]:
    """In what a kept run is not what the study asks for now.

    A checkpoint, question files or an index that are not here cannot be compared, and count as the
    same: a report can be made of a record alone.

    Returns:
        Some of ``"settings"``, ``"checkpoint"``, ``"data"`` and ``"evaluations"``.
    """
    config = trial_settings(study, trial)
    sizes = [evaluation_size(study, trial, quarter) for quarter in range(QUARTERS + 1)]
    try:
        kept = settings_record(_as_fixed(run["config"]))
    except ValueError:  # it has settings that there are no more
        return ["settings"]
    same = {
        "settings": kept == settings_record(config),
        "checkpoint": checkpoint_hash(config.policy.path)
        in (run.get("checkpoint"), config.policy.path),
        "data": all(run.get("data", {}).get(k, v) == v for k, v in data_hashes(config).items()),
        "evaluations": [(one["questions"], one["samples"]) for one in run["evaluations"]] == sizes,
    }
    return [part for part, as_now in same.items() if not as_now]


def settings_hash(study: Study, regime: str) -> str:
    """Hash of what the verdict on a regime rests on: its runs' settings on development seeds."""
    trials = [
        Trial("develop", regime, arm, seed)
        for arm in ("grpo", "oracle")
        for seed in study.development_seeds
    ]
    rests: list[Any] = [study.interim_questions]
    for trial in trials:
        data = _settings_of(study, trial)  # as written: a setting added later changes no hash
        rests += [checkpoint_hash(data["policy"].pop("path")), data]
    data = data_hashes(trial_settings(study, trials[0]))
    return hash_of([*rests, data] if data else rests)


def shortened(study: Study) -> Study:
    """The same study at a size that shows that it works, and nothing else."""
    arms = {name: replace(arm, seeds=min(arm.seeds, 2)) for name, arm in study.arms.items()}
    tiny: Settings = {"optimization": {"steps": QUARTERS, "questions_per_step": 2, "group_size": 2}}
    regimes = {
        name: replace(regime, settings=merged(regime.settings, tiny), seeds={})
        for name, regime in study.regimes.items()
    }
    return replace(
        study,
        seeds=study.seeds[:2],
        development_seeds=study.development_seeds[:2],
        questions=6,
        samples=2,
        interim_questions=4,
        qualifying_groups=4,
        arms=arms,
        regimes=regimes,
    )


def trial_settings(study: Study, trial: Trial) -> TrainSettings:
    """The training settings of a run.

    Raises:
        ValueError: If they leave the precision to the machine.
    """
    config = _as_fixed(_settings_of(study, trial))
    if config.policy.precision == "auto":
        raise ValueError(
            "the runs of a study are compared across machines, and policy.precision = 'auto' is "
            "another precision on some; name one in the base, or in the settings of regime "
            f"{trial.regime!r}"
        )
    return config


def _as_fixed(data: dict[str, Any]) -> TrainSettings:
    """Settings that were written down when the study was fixed, as they were meant then."""
    data = {**data, "environment": {**FIXED_UNDER["environment"], **data.get("environment", {})}}
    if credit := data.get("credit"):
        method = credit["method"]
        data["credit"] = {**credit, "method": NAMED_THEN.get(method, method)}
    return from_dict(data)


def _settings_of(study: Study, trial: Trial) -> dict[str, Any]:
    """The settings that base, regime, arm and trial write down; defaults are not among them."""
    regime, arm = study.regimes[trial.regime], study.arms[trial.arm]
    checkpoints = regime.checkpoints or study.checkpoints
    checkpoint = checkpoints[trial.seed % len(checkpoints)]
    fixed: Settings = {
        "world": {"seed": trial.seed},
        "run": {"seed": trial.seed, "threads": 1},
        "policy": {"path": checkpoint},
    }
    parts = (regime.settings, arm.settings, regime.tuned.get(arm.family, {}), fixed)
    data = _base_settings(study)
    for part in parts:
        data = merged(data, part)
    if "credit" in arm.settings:  # an arm says all of it: nothing is left over from the base
        data["credit"] = dict(arm.settings["credit"])
    for change in trial.changes:
        section, rest = change.split(".", 1)
        key, value = rest.split("=", 1)
        data = merged(data, {section: {key: tomllib.loads(f"v = {value}")["v"]}})
    return data


def _base_settings(study: Study) -> dict[str, Any]:
    return read_toml(CHECKOUT / study.base)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two configurations of sections, the second one's values winning."""
    result = {section: dict(values) for section, values in base.items()}
    for section, values in over.items():
        result[section] = {**result.get(section, {}), **values}
    return result
