"""Train a search policy with GRPO and information gain.

python -m scripts.train --out runs/mine --config trainers/configs/demo.toml --set run.seed=1
python -m scripts.train --out runs/mine --resume
python -m scripts.train --out runs/mine --resume --set optimization.steps=200   # for longer
python -m scripts.train --out runs/mine --config trainers/configs/paper.toml --plan   # does it fit?

Ctrl-C writes a checkpoint first. --import takes modules, or files, that register a credit method,
a retriever, a policy or an outcome of your own; a resumed run imports them again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

from igsearch_env.cli.program import on_interrupt, parse_early, quiet_transformers, run, run_parser


def _parser() -> argparse.ArgumentParser:
    parser = run_parser(__doc__)
    parser.add_argument("--config", type=Path, help="TOML file with settings")
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="FILE",
        help="import a .py file or a module first, one that registers something of your own; may "
        "be repeated",
    )
    parser.add_argument(
        "--plan", action="store_true", help="say how much memory the run takes, and do not start it"
    )
    parser.add_argument(
        "--memory", type=float, metavar="GIB", help="that --plan has (default: the device's)"
    )
    parser.add_argument(
        "--document-tokens", type=int, default=200, help="that --plan reckons with (default: 200)"
    )
    parser.add_argument("--smoke", action="store_true", help="two tiny steps, to see that it works")
    return parser


if __name__ == "__main__":
    parse_early(_parser)

from rich.progress import Progress
from rich.table import Table

from igsearch_env.cli.console import console, make_table, print_table, progress_bar
from igsearch_env.evaluation.metrics import METRICS
from igsearch_env.extras import extra
from igsearch_env.files import write_json
from igsearch_env.plugins import import_again, import_plugin, lasting_name
from trainers.config import (
    TrainSettings,
    from_dict,
    make_credit_from,
    override,
    read_settings,
    read_toml,
)

SMOKE = (
    "world.people=40",
    "optimization.steps=2",
    "optimization.questions_per_step=2",
    "optimization.group_size=2",
    "run.checkpoint_every=1",
    "run.eval_limit=4",
)
SHARES = {"rollouts": 0.6, "gains": 0.15, "update": 0.25}
"""Parts of a step's time, until a step has its own."""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the settings, train, and say where the results are.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    config = _config(arguments)
    make_credit_from(config.credit)  # a typo ends it before torch is loaded, which takes seconds
    if arguments.plan:
        _show_plan(config, arguments.memory, arguments.document_tokens)
        return
    with console.status(f"loading {config.policy.path}"):
        with extra("train"):
            from trainers.local.grpo import GRPOTrainer
        quiet_transformers()
        trainer = GRPOTrainer(config, arguments.out, resume=arguments.resume)
    if trainer.step:
        console.print(f"going on after step {trainer.step}")
    with progress_bar() as bar:
        shown = _Shown(bar, config, trainer.step)
        with on_interrupt("--resume goes on after the last whole step"):
            last = trainer.run(shown.report, shown.watch)
    write_json(arguments.out / "results.json", last)
    print_table(last_step(last))
    from igsearch_env.viewer.page import write_page

    page, _ = write_page(arguments.out)
    console.print(f"policy: {arguments.out / 'policy'}   log: {arguments.out / 'metrics.jsonl'}")
    console.print(f"page: {page}")


def _show_plan(config: TrainSettings, gib: float | None, document_tokens: int) -> None:
    """Print what the run takes; raise if that is more than there is."""
    with extra("train"):
        from trainers.plan import GIB, cheapest_changes, memory_of, plan
    quiet_transformers()
    if gib is not None and not 0 < gib < inf:
        raise ValueError(f"--memory must be a number of GiB above 0, got {gib}")
    memory = memory_of(config.policy.device) if gib is None else int(gib * GIB)
    found = plan(config, document_tokens)
    names = dict.fromkeys(name for parts in found.phases.values() for name in parts)
    sizes = {name: [parts.get(name, 0) for parts in found.phases.values()] for name in names}
    sizes["sum"] = [sum(parts.values()) for parts in found.phases.values()]
    rows = [[name, *(f"{s / GIB:.2f}" if s else "" for s in row)] for name, row in sizes.items()]
    title = f"memory in GiB, transcripts of up to {found.longest} tokens"
    print_table(make_table(title, ["", *found.phases], rows))
    said = f"{found.peak / GIB:.1f} GiB of {memory / GIB:.1f} GiB"
    if found.peak <= memory:
        console.print(f"it fits: {said}, the search index aside")
        return
    changes = cheapest_changes(config, memory, document_tokens)
    advice = "; ".join(f"--set {words} ({peak / GIB:.1f} GiB)" for words, peak in changes)
    raise ValueError(f"it does not fit: {said}; try, one on top of the other: {advice or 'less'}")


class _Shown:
    """The bar of a run; it moves within a step, so that the time left is known in the first one."""

    def __init__(self, bar: Progress, config: TrainSettings, done: int) -> None:
        self.bar, self.done, self.metrics = bar, done, ""
        self.shares = dict(SHARES)
        steps = config.optimization.steps
        self.task = bar.add_task(config.credit["method"], total=steps, completed=done, note="")

    def watch(self, part: str, done: int, total: int) -> None:
        """Show where a step is."""
        before = 0.0
        for name, share in self.shares.items():
            if name == part:
                before += share * done / max(1, total)
                break
            before += share
        note = f"{part} {done}/{total}  {self.metrics}"
        # An evaluation comes after its step, which is done by then.
        completed = self.done + (1.0 if part == "evaluation" else before)
        self.bar.update(self.task, completed=completed, note=note)

    def report(self, row: dict[str, Any]) -> None:
        """Show the metrics of a step, and learn from it how long its parts take."""
        self.done = row["step"]
        names = {"em": "em", "gold_documents": "gold"}
        self.metrics = "  ".join(
            f"{short} {row[name]:.3f}" for name, short in names.items() if name in row
        )
        took = row["seconds"]
        seconds = {
            "rollouts": took["rollout"] + took["retrieval"],
            "gains": took["information_gain"],
            "update": took["update"],
        }
        if total := sum(seconds.values()):
            self.shares = {part: value / total for part, value in seconds.items()}
        self.bar.update(self.task, completed=self.done, note=self.metrics)


def _config(arguments: argparse.Namespace) -> TrainSettings:
    """The settings asked for; those of the run itself if it is resumed without any."""
    written = arguments.out / "config.json"
    overrides = [*(SMOKE if arguments.smoke else ()), *arguments.set]
    if arguments.modules:
        for name in arguments.modules:
            import_plugin(name)
        files = [lasting_name(name) for name in arguments.modules]
        overrides.append(f"run.imports={json.dumps(files)}")
    data: dict[str, Any] = {}
    if arguments.resume and not arguments.config:
        if not written.is_file():
            raise ValueError(
                f"there is no run to resume in {arguments.out}: no config.json; if it was lost, "
                "resume with the --config and --set that the run began with"
            )
        data = read_settings(written)
    elif arguments.config:
        data = read_toml(arguments.config)
    override(data, overrides)
    imports = data.get("run", {}).get("imports", ())
    if isinstance(imports, list):  # before the settings are read, which may name what they register
        import_again(imports, arguments.out)
    try:
        return from_dict(data)
    except ValueError as error:
        if arguments.resume and not arguments.config:
            raise ValueError(f"{error} (the settings of {written}, and --set)") from error
        raise


def last_step(row: dict[str, Any]) -> Table:
    """The numbers of the last step."""
    rows = []
    flat = {**row, **{f"seconds {k}": v for k, v in row.get("seconds", {}).items()}}
    for name, value in flat.items():
        if isinstance(value, float):
            known = METRICS.get(name)
            # Settings such as a learning rate of 1e-6 need significant digits, not decimals.
            rows.append((name, f"{value:.4g}" if known is None else f"{value:.{known.digits}f}"))
    title = f"last step ({row['step']})" if row else "nothing was left to do"
    return make_table(title, ("metric", "value"), rows)


if __name__ == "__main__":
    run(main)
