"""The credit laboratory: every credit assignment method on the same questions and budget.

python -m scripts.laboratory.compare_credit develop --out runs/credit --arms grpo oracle ig
python -m scripts.laboratory.compare_credit qualify --out runs/credit
python -m scripts.laboratory.compare_credit compare --out runs/credit --report docs/results
python -m scripts.laboratory.compare_credit report --out runs/credit --report docs/results

`develop` runs arms on development seeds, with changed settings if --try says so. `qualify` decides
on development seeds which regimes can tell arms apart. `compare` runs the qualified regimes on
fresh seeds, and refuses to go on once the study has been changed. `report` makes tables, file
and plots of what the record has, and runs nothing. Runs are kept as they end, and none is repeated
while its settings are the same; credit_runs.jsonl, in the folder of --report, holds all that were
ever made, so that another machine can go on from it, with the same starting policy and data. A
study's files are called by its name: those of --study scripts/laboratory/study_real.toml are
credit_real_runs.jsonl, credit_real.json and so on. Give each study an --out of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from igsearch_env.cli.program import Parser, folder, output_folder, parse_early, positive, run

STUDY = Path(__file__).with_name("study.toml")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(None, __doc__)
    parser.add_argument("stage", choices=("develop", "qualify", "compare", "report"))
    parser.add_argument("--out", type=folder, required=True, help="folder of the runs")
    parser.add_argument(
        "--report", type=output_folder, help="folder of the tables' file and the plots"
    )
    parser.add_argument("--study", type=Path, default=STUDY, help="the study's file")
    parser.add_argument("--regimes", nargs="+", help="these regimes only")
    parser.add_argument("--arms", nargs="+", help="these arms only")
    parser.add_argument(
        "--try",
        dest="tries",
        action="append",
        default=[],
        metavar="SECTION.KEY=A,B",
        help="develop: settings to try, all combinations",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, help="develop: these seeds (default: the study's)"
    )
    parser.add_argument("--workers", type=positive, help="processes (default: free cores)")
    parser.add_argument("--resume", action="store_true", help="runs that are kept are never redone")
    parser.add_argument("--smoke", action="store_true", help="tiny runs, to see that it works")
    return parser


if __name__ == "__main__":
    parse_early(_parser)

import numpy as np

from igsearch_env.cli.console import console, make_table, print_table
from igsearch_env.files import check_writable, write_json, write_whole
from scripts.laboratory.report import endpoint, markdown, plot_differences, summarise, tables
from scripts.laboratory.store import ResultStore
from scripts.laboratory.study import (
    Study,
    Trial,
    is_result_of,
    load_study,
    rests_on,
    settings_hash,
    shortened,
)

LIMITS = {"all_fail": 0.5, "all_fail_supported": 0.3, "reads": 0.5}
FIRST_HOP_LIMIT = 0.8


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing of a stage, then print and save what came out.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    if arguments.stage != "report" or arguments.report is None:  # else --out is only read
        check_writable(arguments.out)
    study = load_study(arguments.study)
    if arguments.smoke:
        study = shortened(study)
        arguments.out /= "smoke"  # nothing of it is ever taken for the real thing
        arguments.report = arguments.report and arguments.report / "smoke"
    folder = arguments.report or arguments.out
    store = ResultStore(arguments.out, folder / f"{study.name}_runs.jsonl")
    unknown = set(arguments.regimes or ()) - study.regimes.keys()
    unknown |= set(arguments.arms or ()) - study.arms.keys()
    if unknown:
        raise ValueError(f"the study has no {', '.join(sorted(unknown))}")
    if arguments.stage in ("qualify", "compare"):
        store.check_same_start(study)
    stages = {"develop": develop, "qualify": qualify, "compare": compare, "report": report}
    stages[arguments.stage](study, store, arguments)


def develop(study: Study, store: ResultStore, arguments: argparse.Namespace) -> None:
    """Arms on development seeds, once for each value that --try lists."""
    regimes = arguments.regimes or list(study.regimes)
    arms = arguments.arms or ["grpo", "oracle"]
    trials = [
        Trial("develop", regime, arm, seed, changes)
        for regime in regimes
        for changes in _grid(arguments.tries)
        for seed in _development_seeds(study, arguments)
        for arm in arms
    ]
    runs = store.run(study, trials, arguments.workers)
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for one in runs:
        key = (one["trial"]["regime"], one["trial"]["arm"], " ".join(one["changes"]))
        groups.setdefault(key, []).append(one)
    rows = []
    for key, found in groups.items():
        values = [endpoint(one) for one in found]
        last = [f"{one['evaluations'][-1]['em']:.3f}" for one in found]
        half = np.mean([one["evaluations"][2]["hop_hits"][0] for one in found])
        each = " ".join(f"{value:.3f}" for value in values)
        rows.append((*key, f"{np.mean(values):.3f}", each, " ".join(last), f"{half:.2f}"))
    names = ("regime", "arm", "changed")
    headings = (*names, "mean", "by seed", "last EM", "first hop at half")
    title = "development seeds: mean EM over the budget, by seed"
    print_table(make_table(title, headings, rows, text=names))


def _development_seeds(study: Study, arguments: argparse.Namespace) -> Sequence[int]:
    if fresh := set(arguments.seeds or ()) & set(study.seeds):
        raise ValueError(f"--seeds: development must not see the fresh seeds {sorted(fresh)}")
    seeds: Sequence[int] = arguments.seeds or study.development_seeds
    return seeds


def qualify(study: Study, store: ResultStore, arguments: argparse.Namespace) -> None:
    """Decide which regimes can tell arms apart, on development seeds alone."""
    from scripts.laboratory.trial import held_out, look_at_start  # loads torch

    regimes = arguments.regimes or list(study.regimes)
    seeds = study.development_seeds
    for regime in regimes:
        held_out(study, Trial("qualify", regime, "grpo", seeds[0]))
        held_out(study, Trial("compare", regime, "grpo", study.seeds[0]))
    looks = {r: [look_at_start(study, r, seed) for seed in seeds] for r in regimes}
    trials: list[Trial] = []
    for regime in regimes:
        pair = [Trial("develop", regime, arm, seed) for seed in seeds for arm in ("grpo", "oracle")]
        # Training takes hours, and cannot change a verdict that has fallen before it.
        worth = verdict_of(looks[regime])["qualified"]
        if worth or arguments.smoke or all(store.has(study, trial) for trial in pair):
            trials += pair
    runs = store.run(study, trials, arguments.workers)
    path = _verdicts(arguments)
    verdicts = _read_if_there(path)
    for regime in regimes:
        trained = [one for one in runs if one["trial"]["regime"] == regime]
        verdicts[regime] = verdict_of(looks[regime], trained)
        verdicts[regime]["settings"] = settings_hash(study, regime)
        passes, figures = verdicts[regime]["passes"], verdicts[regime]["figures"]
        failed = ", ".join(name for name, passed in passes.items() if not passed)
        verdict = f"dropped: {failed}" if failed else "qualified"
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        console.print(f"{regime}: {verdict} ({numbers})")
    write_json(path, verdicts)


def verdict_of(
    looks: Sequence[Mapping[str, float]], runs: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Whether a regime qualifies: every figure against its limit.

    Args:
        looks: What it is like before training, by development seed.
        runs: Runs of ``grpo`` and ``oracle`` on these seeds, in the same order; without any, the
            verdict is that of the looks alone.
    """
    figures = {name: float(np.mean([look[name] for look in looks])) for name in LIMITS}
    passes = {name: figures[name] >= least for name, least in LIMITS.items()}
    grpo, oracle = ([o for o in runs if o["trial"]["arm"] == arm] for arm in ("grpo", "oracle"))
    gains = [endpoint(best) - endpoint(plain) for best, plain in zip(oracle, grpo, strict=True)]
    hits = [one["evaluations"][2]["hop_hits"][0] for one in grpo]
    if runs:
        figures["grpo_first_hop_at_half"] = float(np.mean(hits))
        passes["grpo_first_hop_at_half"] = figures["grpo_first_hop_at_half"] < FIRST_HOP_LIMIT
        figures["oracle_minus_grpo"] = float(np.mean(gains))
        passes["oracle_minus_grpo"] = figures["oracle_minus_grpo"] > 0
    return {
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "oracle_minus_grpo_by_seed": [round(gain, 4) for gain in gains],
        "passes": passes,
        "qualified": all(passes.values()),
    }


def compare(study: Study, store: ResultStore, arguments: argparse.Namespace) -> None:
    """Every arm of the qualified regimes on fresh seeds; tables, file and plots."""
    from scripts.laboratory.trial import held_out  # loads torch

    path = _verdicts(arguments)
    if not path.is_file():
        raise ValueError(f"there is no {path}: run `qualify` before fresh seeds are looked at")
    qualified = json.loads(path.read_text(encoding="utf-8"))
    regimes = [
        regime
        for regime in arguments.regimes or study.regimes
        if qualified.get(regime, {}).get("qualified")
    ]
    if not regimes:
        raise ValueError(f"no regime has qualified ({path}); there is nothing to compare")
    for regime in regimes:
        if qualified[regime].get("settings") != settings_hash(study, regime):
            raise ValueError(
                f"{regime} has qualified with other settings than it has now; run `qualify` again"
            )
        for seed in study.seeds:
            held_out(study, Trial("compare", regime, "grpo", seed))
    _fix_study(study, arguments)
    trials = [
        Trial("compare", regime, name, seed)
        for regime in regimes
        for seed in study.seeds
        for name in arguments.arms or study.arms
        if seed in study.seeds_of(regime, name)
    ]
    store.run(study, trials, arguments.workers)
    report(study, store, arguments)


def report(study: Study, store: ResultStore, arguments: argparse.Namespace) -> None:
    """Tables, file and plots of all that has been run, whatever part of it was asked for now.

    Verdicts on regimes that this folder of runs has none of stay as the last report has them.
    """
    folder = arguments.report or arguments.out
    json_file, page, plot = (folder / f"{study.name}.{kind}" for kind in ("json", "md", "png"))
    last = _read_if_there(json_file).get("verdicts", {})
    qualified = last | _read_if_there(_verdicts(arguments))
    rows = store.record()
    fresh = [row for row in rows if row["trial"]["stage"] == "compare"]
    counted = [row for row in fresh if _counts(study, row)]
    if not counted:
        raise ValueError(
            f"there is nothing to report: neither {arguments.out} nor the record in {folder} has a "
            "run on fresh seeds with the settings of the study; run `compare` first"
        )
    tried = [row for row in rows if row["trial"]["stage"] == "develop"]
    summary = summarise(study, counted, qualified, tried)
    summary["rests_on"] = rests_on(study)
    summary["verdicts"] = qualified
    write_json(json_file, summary)
    write_whole(page, markdown(summary))
    plot_differences(summary, plot)
    for table in tables(summary):
        print_table(table)


def _verdicts(arguments: argparse.Namespace) -> Path:
    """Where ``qualify`` leaves its verdicts."""
    path: Path = arguments.out / "qualified.json"
    return path


def _read_if_there(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _counts(study: Study, row: Mapping[str, Any]) -> bool:
    """Whether a run on a fresh seed is one of the study as it is now."""
    trial = Trial(**row["trial"])
    known = trial.regime in study.regimes and trial.arm in study.arms
    return (
        known
        and trial.seed in study.seeds_of(trial.regime, trial.arm)
        and is_result_of(row, study, trial)
    )


def _fix_study(study: Study, arguments: argparse.Namespace) -> None:
    """Write down what the fresh seeds are run under, and hold on to it."""
    path, hashes = arguments.out / "study.json", rests_on(study)
    if path.is_file():
        fixed = json.loads(path.read_text(encoding="utf-8"))["sha256"]
        if fixed != hashes:
            changed = [name for name in hashes if fixed.get(name) != hashes[name]]
            raise ValueError(
                f"{', '.join(changed)} changed since fresh seeds were run in {arguments.out}; "
                "start again in another folder"
            )
    write_json(path, {"sha256": hashes})


def _grid(tries: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every combination of ``section.key=a,b,c``; one empty one without tries."""
    if not tries:
        yield ()
        return
    name, _, values = tries[0].partition("=")
    for value in values.split(","):
        for rest in _grid(tries[1:]):
            yield (f"{name}={value}", *rest)


if __name__ == "__main__":
    run(main)
