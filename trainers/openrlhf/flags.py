"""The flags of a run: OpenRLHF's own, and those of this project under ``--ig.``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from igsearch_env.cli.program import Parser, output_folder
from igsearch_env.data.questions import BUILTIN_QUESTIONS
from igsearch_env.plugins import import_plugin, lasting_name
from trainers.rollout_settings import RolloutSettings

AGENT = Path(__file__).resolve().parent / "agent_function.py"
METHOD = "ig_search"
ROLLOUT = frozenset(field.name for field in fields(RolloutSettings))

CHOSEN = {
    "train.agent_func_path": "this project's agent plays the episodes",
    "data.prompt_dataset": "it is made of ig.questions",
    "data.input_key": "it is made of ig.questions",
    "data.label_key": "it is made of ig.questions",
    "data.apply_chat_template": "set ig.protocol to chat or tools",
    "data.input_template": "the prompt is that of ig.protocol",
    "eval.dataset": "it is made of ig.eval_questions",
    "rollout.max_new_tokens": "set ig.max_new_tokens, the length of a turn",
    "reward.remote_url": "the reward is ig.outcome",
    "algo.advantage.estimator": "set ig.credit",
    "ckpt.path": "it is OUT/checkpoints",
    "ckpt.output_dir": "it is OUT/policy",
    "ckpt.load_enable": "pass --resume",
    "logger.tensorboard_dir": "it is OUT/tensorboard",
}
"""Flags of OpenRLHF that are not for the user to set, and what to do instead."""


@dataclass(frozen=True)
class Flags:
    """What a run was asked for.

    Args:
        out: Folder of the run.
        resume: Go on from the last checkpoint in it.
        check: Check everything and start nothing.
        modules: Python files, by absolute path, and modules, by name, that are imported first.
        rollout: How episodes are played.
        credit: ``{"method": name, option: value, ...}``.
        arguments: The command line for OpenRLHF.
    """

    out: Path
    resume: bool
    check: bool
    modules: tuple[str, ...]
    rollout: RolloutSettings
    credit: dict[str, Any]
    arguments: tuple[str, ...]

    @property
    def train_data(self) -> Path:
        """Where the prompt data is written."""
        return self.out / "data" / "train.jsonl"

    @property
    def eval_data(self) -> Path:
        """Where the prompt data of evaluations is written."""
        return self.out / "data" / "eval.jsonl"


def read_flags(argv: Sequence[str], description: str | None = None) -> Flags:
    """Read a command line.

    A table of the TOML file of ``--config`` stands for flags: ``[actor.adam] lr = 1e-6`` is
    ``--actor.adam.lr 1e-6``. The command line wins; ``--NAME=false`` takes back a flag that the
    file sets to true. What begins with ``--ig.`` is a field of :class:`RolloutSettings`, or
    ``credit``, the name of a method, or else an option of that method. Files and folders among them
    become absolute paths, since workers have other working directories.

    Raises:
        ValueError: If a flag is unknown here, reserved, or has a value that does not fit.
    """
    # argparse knows the five flags of this program. OpenRLHF has about 200 of its own, which its
    # parser is left to check, and those under --ig. depend on the credit method that one of them
    # names: so both kinds are taken from what is left over.
    known, rest = _parser(description).parse_known_args(argv)
    from trainers.config import build, make_credit_from, read_toml  # --help needs none of it

    for module in known.modules:
        import_plugin(module)
    # Workers have other working directories: they get absolute paths.
    modules = tuple(map(lasting_name, known.modules))
    tables = {} if known.config is None else read_toml(known.config)
    ours, theirs = _split(rest)
    settings = _settings(tables.pop("ig", {}), ours)
    theirs = _without_taken_back([*_as_flags(tables)], theirs)
    _refuse_chosen(theirs)
    settings |= _absolute(settings)
    rollout = build(RolloutSettings, {k: v for k, v in settings.items() if k in ROLLOUT}, "ig.")
    credit = {k: v for k, v in settings.items() if k not in ROLLOUT and k != "credit"}
    credit["method"] = settings.get("credit", METHOD)
    method = make_credit_from(credit)
    if rollout.scorer == "vllm" and (method.uses_belief or method.uses_hindsight_shift):
        scored = (
            "belief in the gold answer"
            if method.uses_belief
            else "turns with the gold answer before them"
        )
        raise ValueError(
            f"the credit method {credit['method']!r} needs the policy to score its {scored}, which "
            "the rollout engine does not; set ig.scorer to policy"
        )
    if method.reads_corpus():
        raise ValueError(
            f"the credit method {credit['method']!r} reads silver evidence, which only "
            "scripts.train looks for; train with it"
        )
    if method.has_teacher():
        raise ValueError(
            f"the credit method {credit['method']!r} has a teacher, whose loss OpenRLHF does not "
            "have; train with scripts.train"
        )
    if not method.uses_information_gain:
        rollout = replace(rollout, num_counterfactuals=0)
    elif not rollout.num_counterfactuals:
        raise ValueError(
            f"the credit method {credit['method']!r} needs information gain; set "
            "ig.num_counterfactuals to at least 1"
        )
    out = known.out.resolve()
    flags = Flags(out, known.resume, known.check, modules, rollout, credit, ())
    return replace(flags, arguments=(*theirs, *_chosen(flags)))


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = Parser(None, description)
    parser.add_argument("--out", type=output_folder, required=True, help="folder of the results")
    parser.add_argument("--config", type=Path, help="TOML file whose tables stand for flags")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--check", action="store_true", help="check everything, start nothing")
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="FILE",
        help="import a .py file or a module first, one that registers a credit method, a "
        "retriever, questions or a corpus, in every worker too; may be repeated",
    )
    return parser


def _settings(table: dict[str, Any], ours: Sequence[str]) -> dict[str, Any]:
    """This project's settings: those of the file, changed by the command line."""
    from trainers.config import override

    given: dict[str, Any] = override({"ig": {}}, ours)["ig"]
    if given.get("credit", METHOD) != table.get("credit", METHOD) and "credit" in given:
        table = {name: value for name, value in table.items() if name in ROLLOUT}
    return {**table, **given}


def _as_flags(table: dict[str, Any], prefix: str = "--") -> Iterator[str]:
    """The flags that nested tables stand for; ``true`` is a flag without a value."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _as_flags(value, f"{prefix}{name}.")
        elif value is not False:
            yield prefix + name
            if value is not True:
                yield from map(str, value if isinstance(value, list) else [value])


def _absolute(settings: dict[str, Any]) -> dict[str, str]:
    """The settings that name a file or a folder, by absolute paths; names of built-in ones stay."""
    found = {}
    for name in ("questions", "eval_questions", "retriever", "protocol", "judge_cache"):
        value = str(settings.get(name, ""))
        builtin = value.partition(":")[0] in {"", "bm25", *BUILTIN_QUESTIONS}
        if not builtin and Path(value).exists():
            found[name] = str(Path(value).absolute())
    return found


def _without_taken_back(file: list[str], given: list[str]) -> list[str]:
    """The flags of the file and of the command line, less those that the latter takes back."""
    # Only a flag without a value can be taken back: one is *bare* if another flag follows it, or
    # nothing. What is left over, OpenRLHF refuses in its own words.
    ends = [*(word.startswith("--") for word in file[1:]), True]
    bare = {word for word, end in zip(file, ends, strict=False) if word.startswith("--") and end}
    taken = {word for word in given if word.removesuffix("=false") in bare and "=" in word}
    kept = [word for word in file if f"{word}=false" not in taken]
    return [*kept, *(word for word in given if word not in taken)]


def _refuse_chosen(words: Sequence[str]) -> None:
    """Refuse what is not for the user to set, abbreviated or not: argparse takes both."""
    for word in words:
        name = word.removeprefix("--").partition("=")[0]
        if not word.startswith("--") or not name:
            continue
        for chosen, instead in CHOSEN.items():
            if chosen.startswith(name):
                raise ValueError(f"--{name} cannot be set: {instead}")


def _split(rest: Sequence[str]) -> tuple[list[str], list[str]]:
    """This project's flags as ``ig.name=value``, and OpenRLHF's as they are."""
    ours: list[str] = []
    theirs: list[str] = []
    words = list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--ig."):
            theirs.append(word)
        elif "=" in word:
            ours.append(word.removeprefix("--"))
        else:
            given = words.pop(0) if words and not words[0].startswith("--") else "true"
            ours.append(f"{word.removeprefix('--')}={given}")
    return ours, theirs


def _chosen(flags: Flags) -> list[str]:
    """The flags of :data:`CHOSEN` that have a value."""
    chosen: dict[str, Any] = {
        "train.agent_func_path": AGENT,
        "data.prompt_dataset": flags.train_data,
        "data.input_key": "input",
        "data.label_key": "label",
        "algo.advantage.estimator": "group_norm",
        "ckpt.path": flags.out / "checkpoints",
        "ckpt.output_dir": flags.out / "policy",
        "ckpt.load_enable": flags.resume,
        "logger.tensorboard_dir": flags.out / "tensorboard",
    }
    if flags.rollout.eval_questions:
        chosen["eval.dataset"] = flags.eval_data
    return list(_as_flags(chosen))
