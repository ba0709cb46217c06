"""What information gain tells apart, at the policy that a training starts from.

python -m scripts.laboratory.gain_signal --config trainers/configs/demo.toml --out runs/gain_signal

Plays rollouts as training would, settles their gains, and sorts the searches by what they found: a
gold document or none, and a document that no earlier search of the rollout had found, or nothing
new. Where gold documents do not gain clearly more than the others, IG-Search has little to teach.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from igsearch_env.cli.program import Parser, parse_early, positive, run


def _parser() -> argparse.ArgumentParser:
    parser = Parser(None, __doc__)
    parser.add_argument("--config", help="file of training settings; the defaults without one")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--questions", type=positive, default=150, help="G rollouts of each")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.json")
    return parser


if __name__ == "__main__":
    parse_early(_parser)

import numpy as np
from rich.table import Table

from igsearch_env import Episode, Shaping
from igsearch_env.cli.console import print_table
from igsearch_env.credit.ig_search import found_anew
from igsearch_env.files import write_json
from igsearch_env.render import is_gold
from igsearch_env.rollout import collect
from igsearch_env.threads import set_threads
from trainers.config import TrainSettings, load_config

NOTICEABLE = Shaping().dead_zone  # nats


def main(argv: Sequence[str] | None = None) -> None:
    """Play, print the table and write results.json.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    config = load_config(arguments.config, arguments.set)
    episodes = rollouts(config, arguments.questions)
    rows = signal(episodes)
    table = Table(title=f"information gain by what was found; {len(episodes)} rollouts")
    numbers = ("searches", "mean", "SD", f"above {NOTICEABLE}")
    for heading in ("search", "gold document", "document", *numbers):
        table.add_column(heading, justify="right" if heading in numbers else "left")
    for row in rows:
        table.add_row(
            row["search"],
            "yes" if row["gold"] else "no",
            "new" if row["new"] else "known",
            str(row["searches"]),
            f"{row['mean']:+.2f}",
            f"{row['sd']:.2f}",
            f"{row['noticeable']:.0%}",
        )
    print_table(table)
    write_json(arguments.out / "results.json", {"config": config.to_dict(), "rows": rows})


def rollouts(config: TrainSettings, questions: int) -> list[Episode]:
    """Settled rollouts of the first questions, G of each, in the batches of training."""
    from trainers.setup import group_ids, make_agent, make_training_engine  # loads torch

    set_threads(config.run.threads)
    o, engine = config.optimization, make_training_engine(config, config.run.seed)
    agent = make_agent(config, engine)
    if len(engine.questions) < questions:
        raise ValueError(
            f"--questions asks for {questions}, but there are {len(engine.questions)} of them"
        )
    asked = engine.questions[:questions]
    episodes: list[Episode] = []
    for step, start in enumerate(range(0, len(asked), o.questions_per_step)):
        batch = asked[start : start + o.questions_per_step]
        groups = group_ids(batch, step, o.group_size)
        repeated = [question for question in batch for _ in range(o.group_size)]
        played = collect(engine, agent, repeated, groups)
        episodes += engine.information_gain.settle(played, agent.policy.scorer())
        agent.policy.memory.clear()
    if all(gain is None for episode in episodes for gain in episode.information_gains):
        raise ValueError(
            "no search has a gain; set environment.num_counterfactuals to at least 1, and "
            "credit.method to one that needs gains, such as ig_search"
        )
    return episodes


def signal(episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """Number, mean, deviation and noticeable share of the gains of each kind of search."""
    gains: defaultdict[tuple[str, bool, bool], list[float]] = defaultdict(list)
    for episode in episodes:
        for step, new in zip(episode.searches, found_anew(episode), strict=True):
            if step.information_gain is not None:
                gold = any(is_gold(document, episode.question) for document in step.documents)
                number = "later" if step.search_step else "first"
                # negated, so that gold and new sort first
                gains[number, not gold, not new].append(step.information_gain)
    return [
        {
            "search": number,
            "gold": not missed,
            "new": not known,
            "searches": len(values),
            "mean": float(np.mean(values)),
            "sd": float(np.std(values)),
            "noticeable": float(np.mean(np.array(values) > NOTICEABLE)),
        }
        for (number, missed, known), values in sorted(gains.items())
    ]


if __name__ == "__main__":
    run(main)
