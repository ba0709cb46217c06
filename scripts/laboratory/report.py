"""From the runs of the credit laboratory to its tables, its file and its plots."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from rich.table import Table

from igsearch_env.cli.console import make_table
from scripts.laboratory.statistics import holm, share_interval, sign_flip_test, t_interval
from scripts.laboratory.study import Study

matplotlib.use("Agg")
from matplotlib import pyplot as plt

NOT_BEHIND = -0.02
Result = Mapping[str, Any]


def endpoint(run: Result, hops: str | None = None) -> float:
    """The primary endpoint: mean sampled EM over the evaluations at 25, 50, 75 and 100 %.

    Args:
        run: A run.
        hops: Of questions with so many hops alone; of all by default.
    """
    return float(np.mean(_ems(run, hops)[1:]))


def _ems(run: Result, hops: str | None) -> list[float]:
    """EM at each evaluation, shape (evaluations,)."""
    return [one["em"] if hops is None else one["em_by_hops"][hops] for one in run["evaluations"]]


def gold_documents(run: Result) -> float | None:
    """Mean gold-document rate over the same evaluations.

    None where an evaluation, that of the start too, did not keep it.
    """
    rates = [one.get("gold_documents") for one in run["evaluations"]]
    return None if None in rates else float(np.mean(rates[1:]))


def endpoint_at(
    run: Result, costs: Sequence[float], budget: Sequence[float], hops: str | None = None
) -> float:
    """The endpoint where training has cost what a budget allows.

    Args:
        run: A run.
        costs: What training has cost at each of its evaluations, shape (evaluations,), rising
            from 0. EM between them is linear in it.
        budget: What it may have cost at each but the first, shape (evaluations - 1,). Beyond the
            whole cost the last EM stands.
        hops: Of questions with so many hops alone; of all by default.
    """
    return float(np.mean(np.interp(budget, costs, _ems(run, hops))))


def collapsed(run: Result) -> bool:
    """Whether the last EM is below half of the best one, or below the first one."""
    ems = [one["em"] for one in run["evaluations"]]
    return bool(ems[-1] < 0.5 * max(ems) or ems[-1] < ems[0])


def summarise(
    study: Study,
    runs: Sequence[Result],
    qualified: Mapping[str, Mapping[str, Any]],
    tried: Sequence[Result] = (),
) -> dict[str, Any]:
    """Every regime's table, as JSON-ready data, where None stands for a number that there is not.

    Args:
        study: The study.
        runs: Runs on fresh seeds.
        qualified: What each regime qualified by.
        tried: Runs on development seeds.
    """
    regimes: dict[str, Any] = {}
    for name, regime in study.regimes.items():
        by_arm: defaultdict[str, dict[int, Result]] = defaultdict(dict)
        for run in runs:
            if run["trial"]["regime"] == name:
                by_arm[run["trial"]["arm"]][run["trial"]["seed"]] = run
        if by_arm:
            regimes[name] = {
                "why": regime.why,
                "primary": regime.primary,
                "primaries_before": list(regime.primaries_before),
                "qualified": qualified.get(name, {}),
                "arms": {arm: _arm(by_arm, arm) for arm in study.arms if arm in by_arm},
            }
    kept = {  # a regime without a verdict yet may still be one
        name: regime
        for name, regime in study.regimes.items()
        if qualified.get(name, {}).get("qualified", True)
    }
    _test_primaries(regimes, sum(1 + len(regime.primaries_before) for regime in kept.values()))
    planned = sum(len(study.seeds_of(name, arm)) for name in kept for arm in study.arms)
    shown = [row for name in kept.keys() & regimes.keys() for row in regimes[name]["arms"].values()]
    return {
        "caveat": study.title,
        "runs": {"done": sum(row["seeds"] for row in shown), "planned": planned},
        "endpoint": "mean sampled EM at 25, 50, 75 and 100 % of the budget",
        "settings_tried": _settings_tried(tried),
        "regimes": _without_nan(regimes),
    }


def _without_nan(data: Any) -> Any:
    """The same with None for NaN, which JSON does not know: the bounds of one seed, for example."""
    if isinstance(data, Mapping):
        return {name: _without_nan(value) for name, value in data.items()}
    if isinstance(data, list):
        return [_without_nan(value) for value in data]
    return None if isinstance(data, float) and np.isnan(data) else data


def _settings_tried(runs: Sequence[Result]) -> list[dict[str, Any]]:
    """What was run on development seeds: each setting with its endpoints by seed.

    A seed has several where the starting policy changed in between.
    """
    found: defaultdict[str, defaultdict[str, list[float]]]
    found = defaultdict(lambda: defaultdict(list))
    for run in runs:
        trial, config = run["trial"], dict(run["config"])
        config["world"] = {**config["world"], "seed": None}
        config["run"] = {**config["run"], "seed": None}
        setting = [trial["regime"], trial["arm"], list(run["changes"]), config]
        by_seed = found[json.dumps(setting, sort_keys=True)]
        by_seed[str(trial["seed"])].append(round(endpoint(run), 4))
    tried = [(*json.loads(setting)[:3], endpoints) for setting, endpoints in found.items()]
    return [
        {"regime": regime, "arm": arm, "changes": changes, "em_by_seed": endpoints}
        for regime, arm, changes, endpoints in tried
    ]


def _arm(by_arm: Mapping[str, Mapping[int, Result]], arm: str) -> dict[str, Any]:
    runs = by_arm[arm]
    baseline = by_arm.get("grpo", {}) if arm != "grpo" else {}
    paired = sorted(runs.keys() & baseline.keys())
    row: dict[str, Any] = {
        **_against(baseline, runs),
        "final_em": float(np.mean([run["evaluations"][-1]["em"] for run in runs.values()])),
        "collapses": sum(map(collapsed, runs.values())),
        "cpu_seconds": _cpu(list(runs.values()))[-1],
        **_details(list(runs.values())),
    }
    found = {seed: gold_documents(run) for seed, run in runs.items()}
    rates = [rate for rate in found.values() if rate is not None]
    if len(rates) == len(runs):
        row["gold_documents"] = list(t_interval(rates))
        row["gold_documents_curve"] = _mean_columns(
            [[one["gold_documents"] for one in run["evaluations"]] for run in runs.values()]
        )
    everything = [
        one for some in by_arm.values() for run in some.values() for one in run["evaluations"]
    ]
    groups = sorted({hops for one in everything for hops in one["em_by_hops"]}, key=int)
    if len(groups) > 1:
        by_hops = {hops: _against(baseline, runs, hops) for hops in groups}
        row["by_hops"] = {hops: compared for hops, compared in by_hops.items() if compared}
    if paired:
        row["sign_flip_p"] = sign_flip_test(
            [endpoint(runs[seed]) - endpoint(baseline[seed]) for seed in paired]
        )
        best = by_arm.get("oracle", {})
        shared = [seed for seed in paired if seed in best]
        if arm != "oracle" and len(shared) > 1:
            lead, whole = (
                [endpoint(one[seed]) - endpoint(baseline[seed]) for seed in shared]
                for one in (runs, best)
            )
            row["share_of_oracle"] = [round(value, 4) for value in share_interval(lead, whole)]
        pairs = [(found[seed], gold_documents(baseline[seed])) for seed in paired]
        more = [rate - other for rate, other in pairs if rate is not None and other is not None]
        if len(more) == len(pairs):
            row["delta_gold_documents"] = list(t_interval(more))
    return row


def _against(
    baseline: Mapping[int, Result], runs: Mapping[int, Result], hops: str | None = None
) -> dict[str, Any]:
    """EM over the budget and, over the seeds that a baseline shares, the differences to it.

    Each is its mean with an interval: at equal rollouts, and at equal CPU.

    Args:
        baseline: GRPO's runs by seed; none for GRPO itself.
        runs: An arm's runs by seed.
        hops: Questions with so many hops alone, in runs that had some at every evaluation; empty
            where none had.
    """
    runs, baseline = (
        {
            seed: run
            for seed, run in some.items()
            if hops is None or all(hops in one["em_by_hops"] for one in run["evaluations"])
        }
        for some in (runs, baseline)
    )
    if not runs:
        return {}
    row: dict[str, Any] = {
        "seeds": len(runs),
        "first_and_last_seed": [min(runs), max(runs)],
        "em": list(t_interval([endpoint(run, hops) for run in runs.values()])),
    }
    paired = sorted(runs.keys() & baseline.keys())
    if paired:
        costs = _cpu([runs[seed] for seed in paired])
        budget = _cpu([baseline[seed] for seed in paired])[1:]
        deltas, equal = [], []
        for seed in paired:
            other = endpoint(baseline[seed], hops)
            deltas.append(endpoint(runs[seed], hops) - other)
            equal.append(endpoint_at(runs[seed], costs, budget, hops) - other)
        row |= {
            "delta_em": list(t_interval(deltas)),
            "delta_em_equal_cpu": list(t_interval(equal)),
            "deltas": [round(delta, 4) for delta in deltas],
        }
    return row


def _cpu(runs: Sequence[Result]) -> list[float]:
    """Median CPU seconds that training has cost at each evaluation, shape (evaluations,)."""
    costs = [[one["cpu_seconds"] for one in run["evaluations"]] for run in runs]
    medians: list[float] = np.median(costs, axis=0).tolist()
    return medians


def _details(runs: Sequence[Result]) -> dict[str, Any]:
    """Means over runs of what the last evaluation and the training log have."""
    last = [run["evaluations"][-1] for run in runs]
    curves = [[one["em"] for one in run["evaluations"]] for run in runs]
    detail: dict[str, Any] = {
        "em_curve": _mean_columns(curves),
        "hop_hits": _mean_columns([one["hop_hits"] for one in last]),
        "gold_by_search": _mean_columns([one["gold_by_search"] for one in last]),
        "searches": float(np.mean([one["searches"] for one in last])),
        "query_tokens": float(np.mean([one["query_tokens"] for one in last])),
        "pass_at": {
            k: float(np.mean([one["pass_at"][k] for one in last])) for k in last[0]["pass_at"]
        },
    }
    names = {name for run in runs for quarter in run["training"] for name in quarter}
    detail["training"] = {
        name: _mean_columns([[q.get(name, np.nan) for q in run["training"]] for run in runs])
        for name in sorted(names)
    }
    return detail


def _mean_columns(rows: Sequence[Sequence[float]]) -> list[float | None]:
    """Mean of each column over the rows that have a value there; None where none has.

    A row may end early, and NaN stands for no value.
    """
    columns = [[v for v in column if v == v] for column in zip_longest(*rows, fillvalue=np.nan)]
    return [round(float(np.mean(column)), 4) if column else None for column in columns]


def _test_primaries(regimes: dict[str, Any], tests: int) -> None:
    """Holm's correction of the tests of all primary arms, former ones too, and the verdict.

    A regime that has qualified counts as a test whether or not it is among these.
    """
    rows = {
        (name, arm): regime["arms"][arm]
        for name, regime in regimes.items()
        for arm in (regime["primary"], *regime["primaries_before"])
        if "sign_flip_p" in regime["arms"].get(arm, {})
    }
    for place, p in holm({key: row["sign_flip_p"] for key, row in rows.items()}, tests).items():
        rows[place]["sign_flip_p_holm"] = p
    for name, regime in regimes.items():
        if (name, regime["primary"]) in rows:
            row = rows[name, regime["primary"]]
            low, high = row["delta_em"][1:]
            regime["verdict"] = {
                "win": bool(low > 0),
                "loss": bool(high < 0),
                "not_behind_at_equal_cpu": bool(row["delta_em_equal_cpu"][1] > NOT_BEHIND),
            }


NOTE = (
    "`*` marks the primary arm of a regime. Δ is paired, over the seeds that an arm shares with "
    "GRPO; EM is over the seeds in brackets, and compares arms with the same ones alone. The "
    "oracle's lead is its Δ to GRPO; an arm's share of it is over the seeds of all three. CPU s "
    "is the median of an arm's own seeds; at equal CPU, medians of the shared seeds count."
)
HEADINGS = (
    *("arm", "seeds", "EM", "Δ GRPO", "Δ equal CPU", "of the oracle's lead"),
    *("hops found", "CPU s", "collapses"),
    *("gold documents", "Δ gold documents"),
)
HOPS_HEADINGS = ("arm", "hops of the question", "seeds", "EM", "Δ GRPO", "Δ equal CPU")


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """One table per regime, and one by hops where its questions differ in these."""
    made = []
    for name, regime in summary["regimes"].items():
        rows = _rows(regime)
        made.append(make_table(_title(name, summary), HEADINGS[: len(rows[0])], rows))
        made[-1].caption = _caption(regime, summary)
        if by_hops := _rows_by_hops(regime):
            made.append(make_table(f"{name}: by hops of the question", HOPS_HEADINGS, by_hops))
    return made


def markdown(summary: Mapping[str, Any]) -> str:
    """The same tables as a page of Markdown."""
    parts = [f"# Results of the credit laboratory: {summary['caveat']}"]
    parts.append(
        "{done} of the study's {planned} runs on fresh seeds are done.".format(**summary["runs"])
    )
    parts.append(NOTE)
    for name, regime in summary["regimes"].items():
        rows = _rows(regime)
        parts.append(f"## {_title(name, summary)}")
        parts.append(f"{_caption(regime, summary)}.")
        parts.append(_markdown_table(HEADINGS[: len(rows[0])], rows))
        if by_hops := _rows_by_hops(regime):
            parts.append(f"### {name}: by hops of the question")
            parts.append(_markdown_table(HOPS_HEADINGS, by_hops))
    return "\n\n".join(parts) + "\n"


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _title(name: str, summary: Mapping[str, Any]) -> str:
    return f"{name}: {summary['endpoint']}"


def _caption(regime: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    return f"{regime['why']}; {summary['caveat']}"


def _rows(regime: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The cells of a regime's table, those of gold documents if its runs kept them."""
    kept = any("gold_documents" in row for row in regime["arms"].values())
    return [
        (
            arm + (" *" if arm == regime["primary"] else ""),
            *_compared(row),
            _interval(row.get("share_of_oracle")),
            " ".join(f"{hit:.2f}" for hit in row["hop_hits"]),
            f"{row['cpu_seconds']:.0f}",
            str(row["collapses"]),
            *(
                _interval(row.get(name), signed=name.startswith("delta"))
                for name in ("gold_documents", "delta_gold_documents")
                if kept
            ),
        )
        for arm, row in regime["arms"].items()
    ]


def _rows_by_hops(regime: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The cells of a regime's table by hops; none where all questions have equally many."""
    arms = [(arm, row.get("by_hops", {})) for arm, row in regime["arms"].items()]
    groups = sorted({int(hops) for _, by_hops in arms for hops in by_hops})
    if len(groups) < 2:
        return []
    return [
        (arm, str(hops or "not told"), *_compared(by_hops[str(hops)]))
        for hops in groups
        for arm, by_hops in arms
        if str(hops) in by_hops
    ]


def _compared(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Seeds, EM and the differences to GRPO, as cells."""
    return (
        "{} ({}-{})".format(row["seeds"], *row["first_and_last_seed"]),
        _interval(row["em"]),
        _interval(row.get("delta_em"), signed=True),
        _interval(row.get("delta_em_equal_cpu"), signed=True),
    )


def _interval(values: Sequence[float | None] | None, *, signed: bool = False) -> str:
    if values is None or values[0] is None:
        return ""
    mean, low, high = values
    form = "{:+.3f}" if signed else "{:.3f}"
    if low is None:
        return form.format(mean)
    return f"{form} [{form}, {form}]".format(mean, low, high)


def plot_differences(summary: Mapping[str, Any], path: Path) -> None:
    """Per regime, each arm's difference to GRPO with its interval, and the curves over training.

    Curves are those of EM and, where the runs kept it, of the rate of gold documents.
    """
    regimes = summary["regimes"]
    curves = {"em_curve": "sampled EM", "gold_documents_curve": "gold documents found"}
    kept = [
        name
        for name in curves
        if any(name in row for regime in regimes.values() for row in regime["arms"].values())
    ]
    figure, axes = plt.subplots(
        len(regimes),
        1 + len(kept),
        figsize=(1 + 5 * (1 + len(kept)), 1.2 + 3.6 * len(regimes)),
        layout="constrained",
        squeeze=False,
    )
    for row_of_axes, (name, regime) in zip(axes, regimes.items(), strict=True):
        left, *rest = row_of_axes
        arms = {arm: row for arm, row in regime["arms"].items() if "delta_em" in row}
        for place, (arm, row) in enumerate(reversed(arms.items())):
            mean, low, high = row["delta_em"]
            color = "#1a73e8" if arm == regime["primary"] else "#5f6368"
            if low is not None:  # of one seed, it is the mean alone
                left.plot([low, high], [place, place], color=color, linewidth=2)
            left.plot(mean, place, "o", color=color, markersize=5)
        left.axvline(0, color="#202124", linewidth=0.8)
        left.set_yticks(range(len(arms)), list(reversed(arms)), fontsize=8)
        left.set_title(f"{name}: EM against GRPO at equal rollouts", fontsize=10, loc="left")
        shown = dict.fromkeys(("grpo", regime["primary"], "paper", "oracle", "placebo"))
        for axis, curve_name in zip(rest, kept, strict=True):
            for number, arm in enumerate(shown):
                row = regime["arms"].get(arm, {})
                if curve := row.get(curve_name):
                    label = f"{arm}, {row['seeds']} seed{'s' * (row['seeds'] > 1)}"
                    budget = np.linspace(0, 100, len(curve))
                    axis.plot(budget, curve, marker=".", color=f"C{number}", label=label)
            axis.set_title(f"{name}: {curves[curve_name]}", fontsize=10, loc="left")
            axis.set_xlabel("% of the budget", fontsize=8)
            axis.set_visible(bool(axis.lines))
            if axis.lines:
                axis.legend(frameon=False, fontsize=8)
        for axis in row_of_axes:
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.25)
    figure.suptitle(summary["caveat"], fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)
