"""Train a search policy with GRPO and information gain.

python -m scripts.train --out runs/mine --config trainers/configs/demo.toml --set run.seed=1
python -m scripts.train --out runs/mine --resume
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from igsearch_env.cli.console import console, progress_bar
from igsearch_env.cli.program import run, run_parser
from igsearch_env.evaluation.metrics import METRICS
from igsearch_env.files import write_json
from igsearch_env.plugins import import_plugin
from igsearch_env.viewer.page import write_page
from trainers.config import TrainSettings, from_dict, load_config, override
from trainers.local.grpo import GRPOTrainer

SMOKE = (
    "environment.protocol=refine-bare",
    "world.people=40",
    "optimization.steps=2",
    "optimization.questions_per_step=2",
    "optimization.group_size=2",
    "run.checkpoint_every=1",
    "run.eval_limit=4",
)


def main() -> None:
    """Read the settings, train, and say where the results are."""
    arguments = _parser().parse_args()
    for name in arguments.modules:
        import_plugin(name)
    config = _config(arguments)
    trainer = GRPOTrainer(config, arguments.out, resume=arguments.resume)
    if trainer.step:
        console.print(f"going on after step {trainer.step}")
    with progress_bar() as bar:
        task = bar.add_task(
            config.credit["method"],
            total=config.optimization.steps,
            completed=trainer.step,
            note="",
        )

        def report(row: dict[str, Any]) -> None:
            em, gold = (row.get(name, float("nan")) for name in ("em", "gold_documents"))
            note = f"em {em:.3f}  gold {gold:.3f}"
            bar.update(task, completed=row["step"], note=note)
            if not console.is_terminal and row["step"] % 10 == 0:
                console.print(f"step {row['step']}: {note}")

        last = trainer.run(report)
    write_json(arguments.out / "results.json", last)
    console.print(last_step(last))
    page, _ = write_page(arguments.out)
    console.print(f"policy: {arguments.out / 'policy'}   log: {arguments.out / 'metrics.jsonl'}")
    console.print(f"page: {page}")


def _parser() -> argparse.ArgumentParser:
    parser = run_parser(__doc__)
    parser.add_argument("--config", type=Path, help="TOML file with settings")
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="FILE",
        help="import a .py file or a module first, one that registers a credit method, a "
        "retriever, questions or a corpus; may be repeated",
    )
    parser.add_argument("--smoke", action="store_true", help="two tiny steps, to see that it works")
    return parser


def _config(arguments: argparse.Namespace) -> TrainSettings:
    """The settings asked for; those of the run itself if it is resumed without any."""
    written = arguments.out / "config.json"
    overrides = [*(SMOKE if arguments.smoke else ()), *arguments.set]
    if arguments.resume and not arguments.config:
        if not written.is_file():
            raise ValueError(f"there is no run to resume in {arguments.out}: no config.json")
        return from_dict(override(json.loads(written.read_text(encoding="utf-8")), overrides))
    return load_config(arguments.config, overrides)


def last_step(row: dict[str, Any]) -> Table:
    """The numbers of the last step."""
    table = Table(title=f"last step ({row['step']})" if row else "nothing was left to do")
    table.add_column("metric")
    table.add_column("value", justify="right")
    flat = {**row, **{f"seconds {k}": v for k, v in row.get("seconds", {}).items()}}
    for name, value in flat.items():
        if isinstance(value, float):
            known = METRICS.get(name)
            # Settings such as a learning rate of 1e-6 need significant digits, not decimals.
            table.add_row(name, f"{value:.4g}" if known is None else f"{value:.{known.digits}f}")
    return table


if __name__ == "__main__":
    run(main)
