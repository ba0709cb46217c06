"""The settings of a training run: typed, read from TOML, overridden on the command line."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import dacite

from igsearch_env.credit import CREDIT, CreditAssignment, make_credit
from igsearch_env.evaluation.settings import Precision
from igsearch_env.gain.shaping import Shaping
from igsearch_env.settings import EnvironmentSettings, check_worlds
from trainers.steady import FAILED_TRIES, MAX_FAILED_SEARCHES

OptimizerName = Literal["adamw", "adamw8bit", "paged-adamw8bit"]
"""See :func:`trainers.optimizer.make_optimizer`."""

T = TypeVar("T")


@dataclass(frozen=True)
class WorldSettings:
    """The embedded world, where questions or corpus name it.

    Args:
        seed: Its seed.
        people: Number of people; see :meth:`igsearch_env.World.generate`.
        informative_bridges: Whether names hint at facts.
        hops: Ask questions of these numbers of hops only.
        test_share: Share of the questions that is held out.
    """

    seed: int = 0
    people: int = 120
    informative_bridges: bool = True
    hops: tuple[int, ...] = (1, 2, 3)
    test_share: float = 0.25


@dataclass(frozen=True)
class TrainingEnvironment(EnvironmentSettings):
    """The environment of a run. ``world-train``, ``world-test`` and ``world`` are of its world.

    Args:
        eval_questions: Questions held out for evaluation.
    """

    eval_questions: str = "world-test"

    def __post_init__(self) -> None:
        super().__post_init__()
        for retriever in (self.retriever, self.searched):
            check_worlds(self.eval_questions, retriever)


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters, which are trained instead of the weights; see :mod:`agents.lora`.

    Gradients and optimizer states are those of the adapters alone, and a KL penalty needs no second
    model. They want a learning rate about ten times that of a full training.

    Args:
        rank: Their rank; 0 to train the weights themselves.
        alpha: Their scale is ``alpha / rank``.
        targets: Last parts of the names of the layers that get one; empty for all linear layers but
            the output embedding.
    """

    rank: int = 0
    alpha: float = 32.0
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class PolicySettings:
    """The policy that is trained.

    Args:
        path: A checkpoint folder, a GGUF file or the name of a model on the Hugging Face hub.
        max_new_tokens: Longest turn, in tokens; 0 for what the checkpoint says, or else 64, as in
            an evaluation.
        temperature: Of sampling.
        batch_size: Episodes that are sampled side by side.
        memory_tokens: Keys and values of at most so many tokens are kept from one turn to the next;
            what has no room is read again. 0 for no limit.
        device: Where it runs.
        precision: What sampling, scoring and the update multiply in: ``"float32"``;
            ``"bfloat16-autocast"``, two to three times as fast where the processor multiplies
            bfloat16, with float32 weights; or ``"bfloat16"``, whose weights are bfloat16 too, with
            an optimizer that keeps what rounding loses.
        lora: Adapters that are trained instead of the weights.
    """

    path: str = "agents/world-tiny"
    max_new_tokens: int = 0
    temperature: float = 1.0
    batch_size: int = 128
    memory_tokens: int = 0
    device: str = "cpu"
    precision: Precision = "float32"
    lora: LoraSettings = field(default_factory=LoraSettings)


@dataclass(frozen=True)
class OptimizationSettings:
    """GRPO.

    Args:
        steps: Batches of rollouts.
        questions_per_step: Questions per batch.
        group_size: G, rollouts per question.
        optimizer: See :func:`trainers.optimizer.make_optimizer`.
        learning_rate: Peak learning rate.
        schedule: ``"constant"`` or ``"cosine"``, both with a linear warm-up.
        warmup_steps: Updates of warm-up.
        weight_decay: Decoupled weight decay.
        max_grad_norm: Gradients are scaled down to this norm.
        clip: PPO's clip range: how far the probability of a token may fall or rise, as a share,
            before it earns no more.
        clip_high: The bound of the rise, if it is another one. A larger one keeps rare tokens able
            to grow (DAPO's "clip higher", arXiv 2503.14476, takes 0.28 beside 0.2). ``"none"``
            takes ``clip``.
        kl: Weight of the k3 estimate of the KL divergence to the initial policy; 0 for none.
        epochs: Passes over a batch.
        minibatches: Updates per pass.
        micro_batch_size: Episodes per forward pass, at most; gradients are accumulated.
        micro_batch_tokens: Tokens per forward pass, padding included, at most, unless a single
            episode is longer; episodes of similar length go together. 0 for no limit.
        gradient_checkpointing: Keep the input of each layer only and run the layer again in the
            backward pass: less memory for about a third more time.
        max_sampling_gap: Largest mean difference, in nats, between the log-probs that a micro-batch
            was sampled with and those that the update computes. Above it the update takes its own
            as those of the policy that sampled. ``"none"`` for always those that were sampled.
        dynamic_sampling: Leave groups in which every advantage is 0 (equal outcomes and no gain)
            out of the number of tokens that the loss is divided by, too, as if they had not been
            sampled (DAPO, arXiv 2503.14476); no others are sampled in their place.
    """

    steps: int = 60
    questions_per_step: int = 16
    group_size: int = 5
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 2e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    clip: float = 0.2
    clip_high: float | Literal["none"] = "none"
    kl: float = 0.0
    epochs: int = 1
    minibatches: int = 1
    micro_batch_size: int = 16
    micro_batch_tokens: int = 0
    gradient_checkpointing: bool = False
    max_sampling_gap: float | Literal["none"] = "none"
    dynamic_sampling: bool = False


@dataclass(frozen=True)
class RunSettings:
    """How a run goes.

    Args:
        seed: Of questions, sampling and counterfactuals.
        eval_every: Steps between evaluations; 0 for none.
        eval_limit: Questions per evaluation.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: How many of them are kept.
        save_rollouts_every: Steps between the rollouts that are kept to be looked at, those of the
            first and the last step included; 0 for none.
        threads: Torch threads; 0 for as many as there are free cores. Sums round differently with
            another number: give one for a run that is to repeat, or resume, bit by bit.
        max_failed_searches: Largest share of a step's searches that may fail. With more, nothing is
            learned from the step, since rollouts that did not search would be most of what is left;
            it is tried again.
        failed_tries: Such tries in a row after which the run ends with a checkpoint.
        max_wasted_steps: Steps in a row without a valid turn, or without a rollout to learn from,
            after which the run ends with a checkpoint; 0 for no limit.
        max_bad_steps: Steps in a row with an update that was skipped, because the loss or the
            gradient was not finite, after which the run ends with a checkpoint; 0 for no limit.
        collapse: The run ends with a checkpoint once the mean exact match of the last steps, or
            their share of valid turns, falls below this share of its best; 0 for never. The
            checkpoint up to which exact match was best is kept besides the newest ones then.
        collapse_window: Number of these steps.
        trackers: Where the numbers of ``metrics.jsonl`` go besides: ``"tensorboard"`` (into the
            folder of the run), ``"wandb"``, ``"trackio"``; each must be installed.
        imports: Python modules, or files, that are imported first: they register credit methods,
            retrievers and policies.
    """

    seed: int = 0
    eval_every: int = 0
    eval_limit: int = 200
    checkpoint_every: int = 20
    keep_checkpoints: int = 2
    save_rollouts_every: int = 20
    threads: int = 0
    max_failed_searches: float = MAX_FAILED_SEARCHES
    failed_tries: int = FAILED_TRIES
    max_wasted_steps: int = 5
    max_bad_steps: int = 3
    collapse: float = 0.0
    collapse_window: int = 10
    trackers: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()


TRACKERS = ("tensorboard", "wandb", "trackio")

RESUMABLE = (
    "optimization.steps",
    "optimization.micro_batch_size",
    "policy.device",
    *(f"run.{name}" for name in ("eval_every", "eval_limit", "checkpoint_every", "imports")),
    *(f"run.{name}" for name in ("keep_checkpoints", "save_rollouts_every", "threads")),
    *(f"run.{name}" for name in ("max_failed_searches", "failed_tries", "max_wasted_steps")),
    *(f"run.{name}" for name in ("max_bad_steps", "collapse", "collapse_window", "trackers")),
    *("environment.judge", "environment.judge_cache"),
)
"""Settings that a resumed run may change: they leave the steps that were done as they are."""


@dataclass(frozen=True)
class TrainSettings:
    """Everything that a run is made of.

    Args:
        credit: ``method``, a name in :data:`igsearch_env.credit.CREDIT` (``ig_search`` if left
            out), and its options.
    """

    world: WorldSettings = field(default_factory=WorldSettings)
    environment: TrainingEnvironment = field(default_factory=TrainingEnvironment)
    policy: PolicySettings = field(default_factory=PolicySettings)
    optimization: OptimizationSettings = field(default_factory=OptimizationSettings)
    run: RunSettings = field(default_factory=RunSettings)
    credit: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        o, run = self.optimization, self.run
        counts = ("steps", "questions_per_step", "group_size", "epochs", "minibatches")
        check_range("optimization", o, (*counts, "micro_batch_size"), least=1)
        check_range(
            "optimization", o, ("warmup_steps", "weight_decay", "kl", "micro_batch_tokens"), least=0
        )
        check_range("optimization", o, ("learning_rate", "max_grad_norm", "clip"), above=0)
        if o.clip >= 1:
            raise ValueError(f"optimization.clip must be below 1, got {o.clip}")
        if not isinstance(o.clip_high, str):
            check_range("optimization", o, ("clip_high",), above=0)
        if not isinstance(o.max_sampling_gap, str):
            check_range("optimization", o, ("max_sampling_gap",), least=0)
            if o.minibatches > 1:
                raise ValueError(
                    "optimization.max_sampling_gap compares log-probs under the weights that "
                    f"sampled, and with minibatches = {o.minibatches} most are computed after an "
                    "update; set minibatches to 1, or max_sampling_gap to 'none'"
                )
        check_range("policy", self.policy, ("batch_size",), least=1)
        check_range("policy", self.policy, ("max_new_tokens", "memory_tokens"), least=0)
        if (
            o.optimizer != "adamw"
            and self.policy.precision == "bfloat16"
            and not self.policy.lora.rank
        ):
            raise ValueError(
                f"optimization.optimizer = {o.optimizer!r} would round nearly every update of a "
                "bfloat16 weight away; use 'adamw', which keeps what rounding loses, train "
                "adapters (policy.lora.rank), or set policy.precision to 'bfloat16-autocast'"
            )
        check_range("policy.lora", self.policy.lora, ("rank",), least=0)
        check_range("policy.lora", self.policy.lora, ("alpha",), above=0)
        if self.policy.lora.rank and self.policy.precision == "bfloat16-autocast":
            raise ValueError(
                "the weights under adapters (policy.lora.rank) are not trained and need no float32 "
                "copy; set policy.precision to 'bfloat16'"
            )
        check_range("policy", self.policy, ("temperature",), above=0)
        none = ("eval_every", "save_rollouts_every", "max_wasted_steps", "max_bad_steps")
        check_range("run", run, ("seed", "threads", *none), least=0)
        least_1 = ("eval_limit", "checkpoint_every", "keep_checkpoints", "failed_tries")
        check_range("run", run, (*least_1, "collapse_window"), least=1)
        check_range("run", run, ("max_failed_searches", "collapse"), least=0)
        if run.collapse >= 1:
            raise ValueError(f"run.collapse must be a share below 1, got {run.collapse}")
        if unknown := set(run.trackers) - set(TRACKERS):
            raise ValueError(
                f"run.trackers may hold {', '.join(TRACKERS)}, got {', '.join(sorted(unknown))}"
            )
        self._check_world()
        object.__setattr__(self, "credit", {"method": "ig_search", **self.credit})

    def _check_world(self) -> None:
        """Refuse to mix the world of the run, which bare names mean, with one named by its size."""
        e, bare = self.environment, {"world", "world-train", "world-test"}
        names = {e.questions, e.eval_questions, e.retriever}
        sized = {name for name in names - bare if name.partition(":")[0] in bare}
        if self.world != WorldSettings() and names & bare and sized:
            raise ValueError(
                f"{', '.join(sorted(sized))} is a world of its own, and "
                f"{', '.join(sorted(names & bare))} is that of the section [world]; leave out the "
                "numbers, or that section"
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-ready data."""
        return asdict(self)


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> TrainSettings:
    """Read settings.

    Args:
        path: A TOML file; None for the defaults.
        overrides: ``"section.key=value"``, the value in TOML, or a plain word.

    Raises:
        ValueError: If the file is not TOML, or a key is unknown or of the wrong type.

    >>> load_config(overrides=["optimization.steps=3", "policy.path=runs/x"]).optimization.steps
    3
    """
    data = {} if path is None else read_toml(Path(path))
    return from_dict(override(data, overrides))


def read_toml(path: Path) -> dict[str, Any]:
    """What stands in a TOML file.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # as Windows writes
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the settings of {path}: {error}") from error


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that a run wrote into its ``config.json``.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        settings: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        sections = list(settings.values()) if isinstance(settings, dict) else [None]
        if not all(isinstance(section, dict) for section in sections):
            raise ValueError("it holds no sections of settings")
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove it, and resume with the --config and --set that "
            "the run began with"
        ) from error
    return settings


def override(data: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Apply changes of the form ``"section.key=value"`` to nested dictionaries, in place."""
    for change in changes:
        _change(data, change)
    return data


def from_dict(data: dict[str, Any]) -> TrainSettings:
    """Build settings from nested dictionaries; unknown keys and wrong types are refused."""
    return build(TrainSettings, data)


def make_credit_from(settings: dict[str, Any]) -> CreditAssignment:
    """The credit method of a run: ``{"method": name, option: value, ...}``.

    The options of shaping stand beside the others; ``clip = "none"`` is None, which TOML lacks.

    Raises:
        ValueError: If the method or an option is unknown, or a value does not fit.
    """
    options = {key: value for key, value in settings.items() if key != "method"}
    if options.get("clip") == "none":
        options["clip"] = None
    name = str(settings["method"])
    if name not in CREDIT:
        make_credit(name)  # says which names are known
    method: Any = CREDIT[name]
    known = {f.name for f in fields(method)}
    shaping = {f.name for f in fields(Shaping)} if "shaping" in known else set[str]()
    known = known - {"shaping"} | shaping
    if unknown := set(options) - known:
        raise ValueError(
            f"the credit method {name!r} does not take {', '.join(sorted(unknown))}; "
            f"its options are {', '.join(sorted(known)) or 'none'}"
        )
    if chosen := shaping & set(options):
        options["shaping"] = {key: options.pop(key) for key in chosen}
    credit: CreditAssignment = build(method, options, "credit.")
    return credit


def _change(data: dict[str, Any], change: str) -> None:
    key, separator, text = change.partition("=")
    if not separator or not key.strip():
        raise ValueError(f"expected section.key=value, got {change!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, name = key.strip().split(".")
    place = data
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ValueError(f"{section!r} in {change!r} is a value, not a section")
    place[name] = value


def build(kind: type[T], data: dict[str, Any], prefix: str = "") -> T:
    """Build a dataclass from a dictionary.

    Args:
        kind: The dataclass.
        data: Its fields.
        prefix: What stands before the names of fields in messages.

    Raises:
        ValueError: If a key is missing, unknown or of the wrong type, or a number is not finite.
    """
    _check_names(kind, data, prefix)
    _check_finite(data, prefix)
    try:
        return dacite.from_dict(kind, data, _RULES)
    except dacite.WrongTypeError as error:
        raise ValueError(
            f"{prefix}{error.field_path} must be {_name(error.field_type)}, got {error.value!r}"
        ) from error
    except dacite.MissingValueError as error:
        raise ValueError(f"{prefix}{error.field_path} is missing") from error


def _check_names(kind: Any, data: dict[str, Any], prefix: str) -> None:
    """Refuse names that are no settings, with the nearest one that is."""
    known = [*_names(kind, prefix)]
    for name in _names_of(kind, data, prefix):
        if name not in known:
            nearest = max(known, key=lambda one: _likeness(one, name))
            close = _likeness(nearest, name)[0] > 0.6
            hint = f"did you mean {nearest}?" if close else f"known are {', '.join(known)}"
            if name == "ig":  # the section of this project beside OpenRLHF's own
                hint = "these are settings of python -m scripts.train_openrlhf"
            raise ValueError(f"unknown setting {name}; {hint}")


def _likeness(one: str, other: str) -> tuple[float, float]:
    """How alike two names are, their sections aside, and with them: 1 for the same."""
    pairs = ((one.rpartition(".")[2], other.rpartition(".")[2]), (one, other))
    last, whole = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
    return last, whole


def _names(kind: Any, prefix: str) -> Iterator[str]:
    """The names of all settings and sections."""
    hints = get_type_hints(kind)
    for one in fields(kind):
        yield prefix + one.name
        if is_dataclass(hints[one.name]):
            yield from _names(hints[one.name], f"{prefix}{one.name}.")


def _names_of(kind: Any, data: dict[str, Any], prefix: str) -> Iterator[str]:
    """The names that stand in nested dictionaries, as far down as there are sections."""
    hints = get_type_hints(kind)
    for name, value in data.items():
        yield prefix + name
        if is_dataclass(hints.get(name)) and isinstance(value, dict):
            yield from _names_of(hints[name], value, f"{prefix}{name}.")


def _check_finite(data: dict[str, Any], prefix: str) -> None:
    """Refuse infinity and NaN, which TOML knows: no setting has a use for them."""
    for name, value in data.items():
        if isinstance(value, dict):
            _check_finite(value, f"{prefix}{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{prefix}{name} must be a finite number, got {value}")


def check_range(
    section: str,
    settings: object,
    names: Sequence[str],
    *,
    least: float = -math.inf,
    above: float = -math.inf,
) -> None:
    """Refuse numbers out of range; NaN and infinity are out of every range.

    Args:
        section: What stands before the names in messages.
        settings: Where the numbers are.
        names: Names of attributes.
        least: The lowest number allowed.
        above: What a number must lie above.

    Raises:
        ValueError: If one is out of range.
    """
    for name in names:
        value = getattr(settings, name)
        if not -math.inf < value < math.inf:
            raise ValueError(f"{section}.{name} must be a finite number, got {value}")
        if not (value >= least and value > above):
            wanted = f"at least {least}" if above == -math.inf else f"above {above}"
            raise ValueError(f"{section}.{name} must be {wanted}, got {value}")


def _whole(value: Any) -> Any:
    if isinstance(value, bool):
        raise dacite.WrongTypeError(int, value)
    return value


def _float(value: Any) -> Any:
    if isinstance(value, bool):
        raise dacite.WrongTypeError(float, value)
    return float(value) if isinstance(value, int) else value


def _tuple(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise dacite.WrongTypeError(tuple[int, ...], value)
    return tuple(value)


def _table(value: Any) -> Any:
    if not isinstance(value, dict):
        raise dacite.WrongTypeError(dict, value)
    return value


_RULES = dacite.Config(
    strict=True,
    type_hooks={
        int: _whole,
        float: _float,
        tuple[int, ...]: _tuple,
        tuple[str, ...]: _tuple,
        tuple[float, ...]: _tuple,
        dict[str, Any]: _table,
    },
)


def _name(expected: Any) -> str:
    """How to speak of a type: ``int``, ``Literal['em', 'f1']``, ``a section``."""
    if expected is dict or is_dataclass(expected):
        return "a section"
    name = expected.__name__ if isinstance(expected, type) else str(expected)
    return name.replace("typing.", "")
