"""The settings of a training run: typed, read from TOML, overridden on the command line."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from igsearch_env.credit import CREDIT, CreditAssignment, make_credit
from igsearch_env.evaluation.settings import MIN_TEMPERATURE, Precision
from igsearch_env.files import read_sealed
from igsearch_env.gain.shaping import Shaping
from igsearch_env.settings import EnvironmentSettings, check_worlds
from igsearch_env.text import parse_toml
from igsearch_env.threads import MAX_THREADS
from trainers.steady import FAILED_TRIES, MAX_FAILED_SEARCHES

OptimizerName = Literal["adamw", "adamw8bit", "paged-adamw8bit"]
"""See :func:`trainers.optimizer.make_optimizer`."""

LOGITS_AT_ONCE = 1 << 24
"""Numbers of logits that exist at a time, if nothing else is set: 64 MiB in float32."""

Count = Annotated[int, Ge(1), Lt(2**63)]  # what torch and numpy can hold
Whole = Annotated[int, Ge(0), Lt(2**63)]
Amount = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
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

    rank: Whole = 0
    alpha: Positive = 32.0
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
            bfloat16 itself, and slower elsewhere, with float32 weights; ``"bfloat16"``, whose
            weights are bfloat16 too, with an optimizer that keeps what rounding loses; or
            ``"auto"``, the faster one of the first two.
        lora: Adapters that are trained instead of the weights.
    """

    path: str = "agents/world-tiny"
    max_new_tokens: Whole = 0
    temperature: Annotated[float, Ge(MIN_TEMPERATURE)] = 1.0
    batch_size: Count = 128
    memory_tokens: Whole = 0
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
        logits_at_once: Numbers of logits that are computed at a time in the update, at most, or
            those of one token. Where the policy wrote more tokens, they are computed in parts, and
            again in the backward pass. About four copies of them exist, of 4 bytes a number; twice
            as many with a teacher.
        gradient_checkpointing: Keep the input of each layer only and run the layer again in the
            backward pass: less memory for about a third more time.
        max_sampling_gap: Largest mean difference, in nats, between the log-probs that a micro-batch
            was sampled with and those that the update computes. Above it the update takes its own
            as those of the policy that sampled. ``"none"`` for always those that were sampled.
        dynamic_sampling: Leave groups in which every advantage is 0 (equal outcomes and no gain)
            out of the number of tokens that the loss is divided by, too, as if they had not been
            sampled (DAPO, arXiv 2503.14476); no others are sampled in their place.
    """

    steps: Count = 60
    questions_per_step: Count = 16
    group_size: Count = 5
    optimizer: OptimizerName = "adamw"
    learning_rate: Positive = 2e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Whole = 0
    weight_decay: Amount = 0.0
    max_grad_norm: Positive = 1.0
    clip: Annotated[float, Gt(0), Lt(1)] = 0.2
    clip_high: Positive | Literal["none"] = "none"
    kl: Amount = 0.0
    epochs: Count = 1
    minibatches: Count = 1
    micro_batch_size: Count = 16
    micro_batch_tokens: Whole = 0
    logits_at_once: Count = LOGITS_AT_ONCE
    gradient_checkpointing: bool = False
    max_sampling_gap: Amount | Literal["none"] = "none"
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

    seed: Whole = 0
    eval_every: Whole = 0
    eval_limit: Count = 200
    checkpoint_every: Count = 20
    keep_checkpoints: Count = 2
    save_rollouts_every: Whole = 20
    threads: Annotated[int, Ge(0), Le(MAX_THREADS)] = 0
    max_failed_searches: Amount = MAX_FAILED_SEARCHES
    failed_tries: Count = FAILED_TRIES
    max_wasted_steps: Whole = 5
    max_bad_steps: Whole = 3
    collapse: Annotated[float, Ge(0), Lt(1)] = 0.0
    collapse_window: Count = 10
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    imports: tuple[str, ...] = ()


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
        _check(self)
        o, policy = self.optimization, self.policy
        if not isinstance(o.max_sampling_gap, str) and o.minibatches > 1:
            raise ValueError(
                "optimization.max_sampling_gap compares log-probs under the weights that "
                f"sampled, and with minibatches = {o.minibatches} most are computed after an "
                "update; set minibatches to 1, or max_sampling_gap to 'none'"
            )
        if o.optimizer != "adamw" and policy.precision == "bfloat16" and not policy.lora.rank:
            raise ValueError(
                f"optimization.optimizer = {o.optimizer!r} would round nearly every update of a "
                "bfloat16 weight away; use 'adamw', which keeps what rounding loses, train "
                "adapters (policy.lora.rank), or set policy.precision to 'bfloat16-autocast'"
            )
        if policy.lora.rank and policy.precision in ("auto", "bfloat16-autocast"):
            raise ValueError(
                "the weights under adapters (policy.lora.rank) are not trained and need no float32 "
                "copy; set policy.precision to 'bfloat16', or to 'float32' where the processor "
                "does not multiply bfloat16"
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
        return parse_toml(path.read_text(encoding="utf-8-sig"))  # as Windows writes
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the settings of {path}: {error}") from error


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that a run wrote into its ``config.json``.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        settings: dict[str, dict[str, Any]] = read_sealed(path)
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
            f"its options are {', '.join(sorted(known)) or 'none'}. To drop what a file "
            f"of settings has for another method, set the section whole: credit={{method='{name}'}}"
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
        value = parse_toml(f"value = {text}")["value"]
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
        data: Its fields; those that are dataclasses themselves are dictionaries, too.
        prefix: What stands before the names of fields in messages.

    Raises:
        ValueError: If a key is missing, unknown or of the wrong type, or a number is not finite.
    """
    _check_names(kind, data, prefix)
    hints = get_type_hints(kind, include_extras=True)
    values = {}
    for one in fields(kind):  # type: ignore[arg-type]
        name = f"{prefix}{one.name}"
        if one.name in data:
            values[one.name] = _value(hints[one.name], data[one.name], name)
        elif one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"{name} is missing")
    return kind(**values)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")
    return TypeAdapter(kind, config=config | {"arbitrary_types_allowed": True})


def _value(kind: Any, given: Any, name: str) -> Any:
    """A value of a type, from a file or as it is already."""
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(given, dict):
            raise ValueError(f"{name} must be a section, got {given!r}")
        return build(kind, given, f"{name}.")
    try:  # JSON, whose lists may become tuples
        return _adapter(kind).validate_json(json.dumps(given, default=str))
    except ValidationError as error:
        wanted = " or ".join(one["msg"].removeprefix("Input should be ") for one in error.errors())
        raise ValueError(f"{name} must be {wanted}, got {given!r}") from error


def _check(settings: Any, prefix: str = "") -> None:
    """Refuse values out of range, of the wrong type, or not finite."""
    hints = get_type_hints(type(settings), include_extras=True)
    for one in fields(settings):
        name, value = f"{prefix}{one.name}", getattr(settings, one.name)
        if is_dataclass(value):
            _check(value, f"{name}.")
        else:
            _value(hints[one.name], value, name)


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
