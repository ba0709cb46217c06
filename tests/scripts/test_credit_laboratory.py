"""The credit laboratory: statistics by hand and by brute force, the study, small real runs."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from agents.loading import CHECKOUT
from igsearch_env.credit import IGSearch
from igsearch_env.episode import Episode
from scripts.laboratory import compare_credit
from scripts.laboratory import store as store_module
from scripts.laboratory import trial as trial_module
from scripts.laboratory.compare_credit import STUDY, verdict_of
from scripts.laboratory.report import (
    collapsed,
    endpoint,
    endpoint_at,
    markdown,
    plot_differences,
    summarise,
    tables,
)
from scripts.laboratory.statistics import holm, share_interval, sign_flip_test, t_interval
from scripts.laboratory.store import ResultStore
from scripts.laboratory.study import (
    Span,
    Study,
    Trial,
    checkpoint_hash,
    data_hashes,
    evaluation_size,
    is_result_of,
    load_study,
    merged,
    rests_on,
    settings_hash,
    settings_record,
    shortened,
    trial_settings,
)
from scripts.laboratory.trial import held_out, look_at_start, run_and_keep, run_trial
from trainers.config import WorldSettings, make_credit_from
from trainers.local.grpo import GRPOTrainer
from trainers.setup import make_world

ENDLESS = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from scripts.laboratory.workers import end_with_parent

def work(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        pool.submit(work, sys.argv[1]).result()
"""
FLOATS = st.integers(-1_000, 1_000).map(lambda n: n / 1_000)  # ties are told from near ties


def is_running(pid: str) -> bool:
    found = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True)
    return found.stdout.strip()[:1] not in ("", "Z")  # a zombie has ended


def test_workers_do_not_outlive_a_killed_program(tmp_path: Path) -> None:
    program, note = tmp_path / "endless.py", tmp_path / "pid"
    program.write_text(ENDLESS)
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen([sys.executable, program, note], env=environment) as process:
        end = time.monotonic() + 120
        while not (note.is_file() and note.read_text()):
            assert process.poll() is None
            assert time.monotonic() < end, "the worker never began"
            time.sleep(0.05)
        assert is_running(note.read_text())
        process.kill()
    end = time.monotonic() + 60
    while is_running(note.read_text()):
        assert time.monotonic() < end, "the worker is still there"
        time.sleep(0.05)


def a_run(
    arm: str, seed: int, ems: list[float], cpu: float = 100.0, stage: str = "compare"
) -> dict[str, Any]:
    """A run of 8 steps whose EM is known."""
    evaluations = [
        {
            "step": 2 * number,
            "cpu_seconds": cpu * number / 4,
            "em": em,
            "em_by_hops": {"2": em},
            "pass_at": {"1": em},
            "hop_hits": [0.5, 0.25],
            "gold_by_search": [0.5],
            "searches": 2.0,
            "query_tokens": 4.0,
        }
        for number, em in enumerate(ems)
    ]
    trial = {"stage": stage, "regime": "no_second_try", "arm": arm, "seed": seed}
    training = [{"entropy": 1.0}] * 4
    return {"trial": trial, "changes": [], "evaluations": evaluations, "training": training}


def test_t_interval_by_hand() -> None:
    mean, low, high = t_interval([0.1, 0.3, 0.2, 0.4])
    half = 3.182446 * np.std([0.1, 0.3, 0.2, 0.4], ddof=1) / 2  # t of 3 degrees of freedom
    assert (mean, low, high) == pytest.approx((0.25, 0.25 - half, 0.25 + half), abs=1e-6)
    assert np.isnan(t_interval([0.5])[1])


def test_the_share_of_a_lead_is_that_of_the_sums() -> None:
    parts, wholes = [0.1, 0.3, 0.0, 0.2], [0.2, 0.2, 0.1, 0.3]
    share, low, high = share_interval(parts, wholes)
    assert share == pytest.approx(0.6 / 0.8)
    # Every way to draw four pairs is as likely as any other: the interval is that of all 256.
    every = sorted(
        sum(parts[i] for i in draw) / sum(wholes[i] for i in draw)
        for draw in itertools.product(range(4), repeat=4)
    )
    assert every[2] <= low <= every[10]
    assert every[245] <= high <= every[253]
    assert share_interval([0.1], [0.2])[0] == 0.5
    assert np.isnan(share_interval([0.1], [0.2])[1:]).all()
    assert np.isnan(share_interval([0.1, 0.1], [0.2, -0.3])).all()


@given(st.lists(FLOATS, min_size=1, max_size=7))
def test_sign_flips_are_all_counted(values: list[float]) -> None:
    observed = abs(sum(values) / len(values))
    flips = itertools.product((1, -1), repeat=len(values))
    means = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True)) / len(values)) for signs in flips
    ]
    expected = sum(mean >= observed - 1e-12 for mean in means) / len(means)
    assert sign_flip_test(values) == pytest.approx(expected)


def test_sign_flips_of_one_sign_are_the_smallest_p() -> None:
    assert sign_flip_test([0.1] * 8) == 2 / 2**8
    with pytest.raises(ValueError, match="40 pairs"):
        sign_flip_test([0.1] * 41)


def test_holm_never_falls_and_never_exceeds_one() -> None:
    assert holm({"a": 0.02, "b": 0.01, "c": 0.6}) == {"b": 0.03, "a": 0.04, "c": 0.6}
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert holm({"a": 0.01}, tests=3) == {"a": 0.03}


def test_the_endpoint_leaves_the_start_out() -> None:
    assert endpoint(a_run("grpo", 0, [0.9, 0.1, 0.2, 0.3, 0.4])) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("costs", "ems"),
    [
        ([0, 25, 50, 75, 100], [0.1, 0.2, 0.3, 0.4]),
        ([0, 50, 100, 150, 200], [0.5, 0.1, 0.15, 0.2]),  # twice as much all the time
        ([0, 10, 20, 30, 40], [0.25, 0.4, 0.4, 0.4]),
        ([0, 50, 75, 100, 125], [0.5, 0.1, 0.2, 0.3]),  # twice as much in the first quarter alone
    ],
)
def test_the_endpoint_at_equal_cpu(costs: list[float], ems: list[float]) -> None:
    run = a_run("ig", 0, [0.9, 0.1, 0.2, 0.3, 0.4])
    assert endpoint_at(run, costs, [25, 50, 75, 100]) == pytest.approx(np.mean(ems))


@pytest.mark.parametrize(
    ("ems", "expected"),
    [([0.1, 0.2, 0.4, 0.3], False), ([0.1, 0.2, 0.5, 0.2], True), ([0.2, 0.3, 0.3, 0.19], True)],
)
def test_collapses(ems: list[float], expected: bool) -> None:
    assert collapsed(a_run("grpo", 0, ems)) is expected


def with_one_primary() -> Study:
    """The study, as if no_second_try had never had another primary arm."""
    study = load_study(STUDY)
    regime = replace(study.regimes["no_second_try"], primaries_before=())
    return replace(study, regimes={**study.regimes, "no_second_try": regime})


def test_the_summary_pairs_by_seed_and_tests_the_primary_arm_alone() -> None:
    study = with_one_primary()
    primary = study.regimes["no_second_try"].primary
    runs = []
    for seed in range(3):
        runs.append(a_run("grpo", seed, [0.0] + [0.1 * seed] * 4))
        runs.append(a_run(primary, seed, [0.0] + [0.1 * seed + 0.05 + 0.01 * seed] * 4, cpu=200.0))
    runs.append(a_run("oracle", 2, [0.0] + [0.9] * 4))
    verdicts = {name: {"qualified": name == "no_second_try"} for name in study.regimes}
    summary = summarise(study, [*runs, runs[0]], verdicts)  # one was run twice
    regime = summary["regimes"]["no_second_try"]
    ig, oracle = regime["arms"][primary], regime["arms"]["oracle"]
    assert ig["delta_em"][0] == pytest.approx(0.06)
    assert ig["deltas"] == pytest.approx([0.05, 0.06, 0.07])
    # Twice the CPU: at equal CPU it has half its steps, of which the first quarter starts at 0.
    finals = [0.05, 0.16, 0.27]
    equal = [np.mean([f / 2, f, f, f]) - 0.1 * seed for seed, f in enumerate(finals)]
    assert ig["delta_em_equal_cpu"][0] == pytest.approx(np.mean(equal))
    assert oracle["deltas"] == pytest.approx([0.7])
    assert ig["sign_flip_p_holm"] == ig["sign_flip_p"] == 0.25
    assert regime["verdict"]["win"] is True
    assert "sign_flip_p_holm" not in oracle
    assert "share_of_oracle" not in ig  # one seed says nothing
    runs.append(a_run("oracle", 1, [0.0] + [0.3] * 4))
    again = summarise(study, runs, verdicts)["regimes"]["no_second_try"]["arms"]
    assert again[primary]["share_of_oracle"][0] == pytest.approx(0.13 / 0.9, abs=1e-4)
    assert "share_of_oracle" not in again["oracle"]
    assert len(tables(summary)) == 1
    page = markdown(summary).splitlines()
    assert f"## no_second_try: {summary['endpoint']}" in page
    planned = sum(len(study.seeds_of("no_second_try", arm)) for arm in study.arms)
    assert f"7 of the study's {planned} runs on fresh seeds are done." in page
    (told,) = (line for line in page if line.startswith(f"| {primary} *"))
    assert f"| {ig['delta_em'][0]:+.3f} [" in told
    assert {line.count("|") for line in page if line.startswith("|")} == {10}
    assert summary["regimes"].keys() == {"no_second_try"}


def test_a_regime_that_is_not_run_yet_still_counts_as_a_test() -> None:
    study = with_one_primary()
    primary = study.regimes["no_second_try"].primary
    runs = [a_run(arm, seed, [0.1] * 4 + [0.2]) for arm in ("grpo", primary) for seed in range(3)]
    runs += [a_run(primary, seed, [0.1] * 4 + [0.3 + 0.01 * seed]) for seed in range(3)]
    verdicts = {
        name: {"qualified": name != "single_hop"} for name in ("no_second_try", "random_facts")
    }
    verdicts["single_hop"] = {"qualified": False}
    ig = summarise(study, runs, verdicts)["regimes"]["no_second_try"]["arms"][primary]
    assert (ig["sign_flip_p"], ig["sign_flip_p_holm"]) == (0.25, 0.75)  # of 4 regimes, 1 is dropped


def test_former_primary_arms_count_as_tests() -> None:
    study = with_one_primary()
    regime = replace(study.regimes["no_second_try"], primaries_before=("ig_new", "ig_lean"))
    study = replace(study, regimes={**study.regimes, "no_second_try": regime})
    runs = [a_run("grpo", seed, [0.1] * 5) for seed in range(10)]
    runs += [a_run(regime.primary, seed, [0.1] * 4 + [0.2]) for seed in range(10)]
    runs += [a_run("ig_new", seed, [0.1] * 4 + [0.3]) for seed in range(9)]
    verdicts = {name: {"qualified": name == "no_second_try"} for name in study.regimes}
    arms = summarise(study, runs, verdicts)["regimes"]["no_second_try"]["arms"]
    assert arms[regime.primary]["sign_flip_p"] == 2 / 2**10
    assert arms[regime.primary]["sign_flip_p_holm"] == 3 * 2 / 2**10
    assert arms["ig_new"]["sign_flip_p_holm"] == 2 * 2 / 2**9
    assert arms["ig_new"]["first_and_last_seed"] == [0, 8]


def test_the_summary_lists_every_setting_that_was_tried() -> None:
    study = load_study(STUDY)
    tried = []
    for seed, em, changes in (
        (100, 0.1, ()),
        (101, 0.2, ()),
        (100, 0.3, ("optimization.kl=0.01",)),
    ):
        trial = Trial("develop", "no_second_try", "ig", seed, changes)
        run = a_run("ig", seed, [0.0] + [em] * 4, stage="develop")
        config = settings_record(trial_settings(study, trial))
        tried.append({**run, "changes": list(changes), "config": config})
    other = json.loads(json.dumps(tried[0]))  # the regime itself was another one at first
    other["config"]["world"]["people"] = 100
    another_start = {**tried[0], **a_run("ig", 100, [0.0] + [0.4] * 4, stage="develop")}
    found = summarise(study, [], {}, [*tried, other, another_start])["settings_tried"]
    assert [(row["changes"], row["em_by_seed"]) for row in found] == [
        ([], {"100": [0.1, 0.4], "101": [0.2]}),
        (["optimization.kl=0.01"], {"100": [0.3]}),
        ([], {"100": [0.1]}),
    ]


def test_a_quarter_without_a_value_does_not_shift_the_others() -> None:
    one, other = a_run("grpo", 0, [0.1] * 5), a_run("grpo", 1, [0.1] * 5)
    one["training"] = [{}, {"entropy": 2.0}, {"entropy": 3.0}, {}]
    other["training"] = [{}, {"entropy": 4.0}, {}, {}]
    summary = summarise(load_study(STUDY), [one, other], {})
    trained = summary["regimes"]["no_second_try"]["arms"]["grpo"]["training"]
    assert trained == {"entropy": [None, 3.0, 3.0, None]}


def test_a_regime_must_pass_every_limit() -> None:
    look = {"all_fail": 0.8, "all_fail_supported": 0.5, "reads": 0.6}
    runs = [a_run("grpo", 0, [0.1] * 5), a_run("oracle", 0, [0.1, 0.2, 0.2, 0.2, 0.2])]
    verdict = verdict_of([look], runs)
    assert verdict["qualified"] is True
    assert verdict["figures"]["oracle_minus_grpo"] == pytest.approx(0.1)
    assert verdict["figures"]["grpo_first_hop_at_half"] == 0.5
    for name, value in (("all_fail", 0.4), ("all_fail_supported", 0.2), ("reads", 0.4)):
        for trained in (runs, []):
            failed = verdict_of([{**look, name: value}], trained)
            assert failed["qualified"] is False
            assert [key for key, passed in failed["passes"].items() if not passed] == [name]
    assert verdict_of([look])["figures"] == look
    assert verdict_of([look], [runs[0], a_run("oracle", 0, [0.1] * 5)])["qualified"] is False


def test_settings_are_laid_over_one_another() -> None:
    study = load_study(STUDY)
    config = trial_settings(study, Trial("compare", "no_second_try", "ig_return", 3))
    assert config.world.seed == config.run.seed == 3
    assert config.world.people == 320
    assert config.credit == {"method": "ig_search", "alpha": 1.0, "gamma": 0.9}
    tuned = {"gain": {"optimization": {"learning_rate": 0.5}}}
    regime = replace(study.regimes["no_second_try"], tuned=tuned)
    other = replace(study, regimes={"no_second_try": regime})
    assert (
        trial_settings(other, Trial("compare", "no_second_try", "ig", 0)).optimization.learning_rate
        == 0.5
    )
    plain = trial_settings(other, Trial("compare", "no_second_try", "grpo", 0))
    assert plain.optimization.learning_rate != 0.5
    changed = Trial(
        "develop", "no_second_try", "ig", 0, ("credit.alpha=0.5", "optimization.kl=0.01")
    )
    assert trial_settings(study, changed).credit["alpha"] == 0.5
    assert trial_settings(study, changed).optimization.kl == 0.01
    assert changed.name == "no_second_try-ig-0-credit.alpha_0.5-optimization.kl_0.01"


def test_a_regime_may_have_starting_policies_of_its_own(tmp_path: Path) -> None:
    study = load_study(STUDY)
    own = tmp_path / "policy"
    own.mkdir()
    regime = replace(study.regimes["no_second_try"], checkpoints=(str(own),))
    other = replace(study, regimes={**study.regimes, "no_second_try": regime})
    for seed in (8, 9):
        for regime_name, expected in (("no_second_try", str(own)), ("single_hop", None)):
            trial = Trial("compare", regime_name, "grpo", seed)
            common = study.checkpoints[seed % len(study.checkpoints)]
            assert trial_settings(other, trial).policy.path == (expected or common)
    before = rests_on(other)
    (own / "config.json").write_text("{}")
    changed = {name for name, part in rests_on(other).items() if part != before[name]}
    assert changed == {"checkpoints", "regimes"}


def test_a_regime_may_say_on_which_seeds_an_arm_runs() -> None:
    study = load_study(STUDY)
    regime = replace(study.regimes["no_second_try"], seeds={"ig": Span(10, 12)})
    other = replace(study, regimes={**study.regimes, "no_second_try": regime})
    assert other.seeds_of("no_second_try", "ig") == [10, 11, 12]
    assert other.seeds_of("no_second_try", "rloo") == [8, 9, 10]
    assert other.seeds_of("single_hop", "ig") == [8, 9, 10]
    assert other.seeds_of("single_hop", "paper") == list(range(8, 16))
    for seeds in ({"ig": Span(7, 10)}, {"no_such_arm": Span(8, 9)}, {"ig": Span(12, 10)}):
        with pytest.raises(ValueError, match="gives Span"):
            replace(study, regimes={"no_second_try": replace(regime, seeds=seeds)})
    alone = replace(regime, seeds={"grpo": Span(8, 20), "ig": Span(20, 22)})
    with pytest.raises(ValueError, match=r"has 'ig' run on the seeds \[21, 22\]"):
        replace(study, regimes={"no_second_try": alone})


def test_every_arm_of_the_study_can_be_built() -> None:
    study = load_study(STUDY)
    for arm in study.arms:
        make_credit_from(trial_settings(study, Trial("compare", "no_second_try", arm, 0)).credit)
    paper = trial_settings(study, Trial("compare", "no_second_try", "paper", 0))
    assert isinstance(make_credit_from(paper.credit), IGSearch)
    assert paper.environment.floor == "none"
    assert paper.environment.counterfactual == "documents+refinement"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": (0, 100)}, "development seeds"),
        ({"arms": {}}, "needs an arm 'grpo'"),
        ({"seeds": (0,)}, "asks for 8 seeds"),
    ],
)
def test_a_study_that_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    study: Study = load_study(STUDY)
    with pytest.raises(ValueError, match=message):
        replace(study, **change)


def kept_run(study: Study, trial: Trial) -> dict[str, Any]:
    """What is kept of a run, without its figures."""
    config = trial_settings(study, trial)
    sizes = [evaluation_size(study, trial, quarter) for quarter in range(5)]
    run = {
        "config": settings_record(config),
        "checkpoint": checkpoint_hash(config.policy.path),
        "data": data_hashes(config),
        "evaluations": [{"questions": asked, "samples": samples} for asked, samples in sizes],
    }
    read: dict[str, Any] = json.loads(json.dumps(run))
    return read


def test_a_kept_run_counts_only_for_the_settings_that_it_was_made_with() -> None:
    study = load_study(STUDY)
    trials = [
        Trial("develop", "no_second_try", "ig", 100),
        Trial("compare", "no_second_try", "paper", 0),
    ]
    for trial in trials:
        run = kept_run(study, trial)
        assert is_result_of(run, study, trial)
        tuned = {"gain": {"optimization": {"kl": 0.01}}}
        regime = replace(study.regimes["no_second_try"], tuned=tuned)
        assert not is_result_of(run, replace(study, regimes={"no_second_try": regime}), trial)
        assert not is_result_of(run, study, replace(trial, changes=("optimization.kl=0.01",)))
        assert not is_result_of(run, study, replace(trial, arm="grpo"))
        assert not is_result_of(run, shortened(study), trial)
        assert not is_result_of({**run, "checkpoint": "other weights"}, study, trial)
        assert not is_result_of({**run, "config": {"no": "such settings"}}, study, trial)
    one, other = (replace(study, questions=n) for n in (1000, 900))
    assert is_result_of(kept_run(one, trials[0]), other, trials[0])  # development asks fewer anyway
    assert not is_result_of(kept_run(one, trials[1]), other, trials[1])


def test_what_a_comparison_rests_on_is_contents_not_places(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "weights").write_bytes(b"one")
    study = load_study(STUDY)
    regimes = {name: replace(r, checkpoints=()) for name, r in study.regimes.items()}
    study = replace(study, regimes=regimes, checkpoints=(str(folder),))
    before, hashed = rests_on(study), settings_hash(study, "no_second_try")
    trial = Trial("develop", "no_second_try", "ig", 100)
    run = kept_run(study, trial)
    moved = replace(study, checkpoints=(str(folder.rename(tmp_path / "elsewhere")),))
    assert rests_on(moved) == before
    assert settings_hash(moved, "no_second_try") == hashed != settings_hash(moved, "single_hop")
    assert is_result_of(run, moved, trial)
    (tmp_path / "elsewhere/weights").write_bytes(b"two")
    after = rests_on(moved)
    assert [name for name in before if before[name] != after[name]] == ["checkpoints"]
    assert settings_hash(moved, "no_second_try") != hashed
    assert not is_result_of(run, moved, trial)
    base = tmp_path / "base.toml"
    base.write_text((CHECKOUT / study.base).read_text().replace("group_size = 5", "group_size = 6"))
    after = rests_on(replace(moved, base=str(base)))
    assert [name for name in before if before[name] != after[name]] == ["base", "checkpoints"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tuned": {"ig": {"optimization": {"kl": 0.1}}}}, "tunes the families \\['ig'\\]"),
        ({"tuned": {"gain": {"credit": {"alpha": 0.1}}}}, "sets credit"),
        ({"settings": {"credit": {"alpha": 0.1}}}, "sets credit"),
    ],
)
def test_settings_that_would_not_reach_training_are_refused(
    change: dict[str, Any], message: str
) -> None:
    study = load_study(STUDY)
    regime = replace(study.regimes["no_second_try"], **change)
    with pytest.raises(ValueError, match=message):
        replace(study, regimes={"no_second_try": regime})


def test_a_world_must_have_the_questions_that_are_to_be_asked(tmp_path: Path) -> None:
    study = load_study(STUDY)
    for regime, seed in itertools.product(study.regimes, study.seeds[::24]):  # compare asks all
        asked = held_out(study, Trial("compare", regime, "grpo", seed))
        assert len(asked) >= study.questions == 1000
    greedy = replace(study, questions=100_000)
    with pytest.raises(ValueError, match="is to be asked 100000 held-out questions"):
        run_trial(greedy, Trial("compare", "no_second_try", "grpo", 0), tmp_path)


def test_questions_of_several_hops_and_their_gold_documents_are_told_apart(
    tmp_path: Path,
) -> None:
    study = shortened(load_study(STUDY))
    settings = merged(study.regimes["three_hops"].settings, {"world": {"hops": [1, 2, 3]}})
    regime = replace(study.regimes["three_hops"], settings=settings)
    study = replace(study, interim_questions=30, regimes={"three_hops": regime})
    look = look_at_start(study, "three_hops", 100)
    assert all(0 <= value <= 1 for value in look.values())
    run = run_trial(study, Trial("develop", "three_hops", "grpo", 100), tmp_path)
    asked = held_out(study, Trial("develop", "three_hops", "grpo", 100))[:30]
    for found in run["evaluations"]:
        assert set(found["em_by_hops"]) == {"1", "2", "3"}
        assert len(found["hop_hits"]) == 3  # of the questions that have so many
        shares = [sum(q.hops >= hop for q in asked) for hop in (1, 2, 3)]
        hits = [rate * share for rate, share in zip(found["hop_hits"], shares, strict=True)]
        assert hits == pytest.approx([round(hit) for hit in hits])
        assert 0 <= found["gold_documents"] <= 1


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def with_files(tmp_path: Path) -> Study:
    """The study on files of questions and documents, sorted by hops as such files often are."""
    world = make_world(WorldSettings(people=40, hops=(1, 2)))
    documents = ({"id": d.id, "title": d.title, "text": d.text} for d in world.documents)
    environment = {"retriever": str(write_rows(tmp_path / "corpus.jsonl", documents))}
    for name, asked in (
        ("questions", world.train_questions),
        ("eval_questions", world.test_questions),
    ):
        rows = [
            {
                "id": q.id,
                "question": q.text,
                "golden_answers": list(q.golden_answers),
                "supporting_ids": list(q.gold_ids),
                "hops": q.hops,
            }
            for hops in (1, 2)
            for q in [one for one in asked if one.hops == hops][:20]
        ]
        environment[name] = str(write_rows(tmp_path / f"{name}.jsonl", rows))
    study = shortened(load_study(STUDY))
    settings = merged(study.regimes["no_second_try"].settings, {"environment": environment})
    regime = replace(study.regimes["no_second_try"], settings=settings)
    return replace(study, regimes={"no_second_try": regime}, interim_questions=8)


def test_question_files_are_asked_in_a_random_order_that_stays(with_files: Study) -> None:
    trial = Trial("compare", "no_second_try", "grpo", 0)
    first, again = held_out(with_files, trial), held_out(with_files, replace(trial, seed=1))
    assert [q.id for q in first] == [q.id for q in again]
    hops = [q.hops for q in first]
    assert sorted(hops) != hops
    look = look_at_start(with_files, "no_second_try", 100)
    assert all(0 <= value <= 1 for value in look.values())


def test_a_kept_run_counts_only_for_the_files_that_it_read(
    with_files: Study, tmp_path: Path
) -> None:
    trial = Trial("develop", "no_second_try", "grpo", 100)
    run = json.loads(json.dumps(run_trial(with_files, trial, tmp_path / "run")))
    assert run["data"].keys() == {"questions", "eval_questions", "retriever"}
    before = (rests_on(with_files), settings_hash(with_files, "no_second_try"))
    assert is_result_of(run, with_files, trial)
    for name in ("questions.jsonl", "eval_questions.jsonl", "corpus.jsonl"):
        file = tmp_path / name
        rows = file.read_text()
        file.write_text(rows[: rows.rindex("\n", 0, -1) + 1])  # one row fewer
        assert not is_result_of(run, with_files, trial)
        assert rests_on(with_files) != before[0]
        assert settings_hash(with_files, "no_second_try") != before[1]
        file.unlink()
        assert is_result_of(run, with_files, trial)  # a record can be read where its files are not
        file.write_text(rows)
    assert (rests_on(with_files), settings_hash(with_files, "no_second_try")) == before


def test_a_run_that_was_cut_short_goes_on_from_its_last_quarter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = shortened(load_study(STUDY))
    trial = Trial("develop", "no_second_try", "ig", 100)

    def what_stays(run: dict[str, Any]) -> dict[str, Any]:
        for found in run["evaluations"]:
            del found["cpu_seconds"]
        return {key: value for key, value in run.items() if key != "wall_seconds"}

    whole = what_stays(run_trial(study, trial, tmp_path / "whole"))
    assert len(whole["evaluations"]) == 5
    steps: list[int] = []
    real = GRPOTrainer.train_step

    def step(trainer: GRPOTrainer) -> dict[str, Any]:
        steps.append(trainer.step)
        if steps == [0, 1, 2]:
            raise KeyboardInterrupt
        return real(trainer)

    monkeypatch.setattr(GRPOTrainer, "train_step", step)
    with pytest.raises(KeyboardInterrupt):
        run_trial(study, trial, tmp_path / "cut")
    assert what_stays(run_trial(study, trial, tmp_path / "cut")) == whole
    assert steps == [0, 1, 2, 2, 3]
    other = replace(study, interim_questions=3)  # another run
    assert what_stays(run_trial(other, trial, tmp_path / "cut")) != whole
    assert steps[5:] == [0, 1, 2, 3]


def test_a_run_that_was_cut_short_in_an_evaluation_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = shortened(load_study(STUDY))
    real, cut = trial_module.play_questions, iter([False] * 4 + [True])

    def play(*arguments: Any, **options: Any) -> list[Episode]:
        if next(cut, False):
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(trial_module, "play_questions", play)
    trial = Trial("develop", "no_second_try", "grpo", 100)
    with pytest.raises(KeyboardInterrupt):  # in the evaluation after the last step
        run_trial(study, trial, tmp_path)
    monkeypatch.setattr(GRPOTrainer, "train_step", None)  # no step is missing
    run = run_trial(study, trial, tmp_path)
    assert [found["step"] for found in run["evaluations"]] == [0, 1, 2, 3, 4]


def test_a_run_that_has_ended_leaves_its_result_alone(tmp_path: Path) -> None:
    study = shortened(load_study(STUDY))
    trial = Trial("develop", "no_second_try", "grpo", 100)
    store = ResultStore(tmp_path, tmp_path / "record.jsonl")
    (first,) = store.run(study, [trial], 1)
    folder = tmp_path / "runs" / "develop"
    kept = folder / f"{trial.name}.json"
    assert [one.name for one in folder.iterdir()] == [kept.name]
    run_and_keep(study, trial, kept)  # as by a process that was told to before it had ended
    assert json.loads(kept.read_text()) == first  # the seconds, too
    (folder / f"{trial.name}.unfinished" / "checkpoints").mkdir(parents=True)
    assert store.run(study, [trial], 1) == [first]
    assert [one.name for one in folder.iterdir()] == [kept.name]


@dataclass(frozen=True)
class Noted(Trial):
    """A run whose process notes its number when it receives it."""

    note: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        plain = Trial(self.stage, self.regime, self.arm, self.seed)
        return note_process, (self.note, plain)


def note_process(note: str, plain: Trial) -> Trial:
    with open(note, "a") as file:
        print(os.getpid(), file=file)
    return plain


class Deadly(Trial):
    """A run that kills the process that receives it, as a machine without memory would."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def test_a_process_that_is_killed_is_told_and_the_run_beside_it_is_kept(tmp_path: Path) -> None:
    study = shortened(load_study(STUDY))
    grpo = Deadly("develop", "no_second_try", "grpo", 100)
    oracle = Trial("develop", "no_second_try", "oracle", 100)
    never = [Noted("develop", "no_second_try", "ig", 100, note=str(tmp_path / "begun"))]
    store = ResultStore(tmp_path, tmp_path / "record.jsonl")
    with pytest.raises(ValueError, match=rf"{grpo.name} was killed.*again, with fewer --workers"):
        store.run(study, [grpo, oracle, *never], 2)
    assert not store.has(study, grpo)
    assert store.has(study, oracle)
    (row,) = (tmp_path / "record.jsonl").read_text().splitlines()
    assert json.loads(row)["trial"]["arm"] == "oracle"
    assert not (tmp_path / "begun").exists()


def test_each_run_has_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = shortened(load_study(STUDY))
    note = tmp_path / "processes"
    trials = [
        Noted("develop", "no_second_try", arm, 100, note=str(note)) for arm in ("grpo", "oracle")
    ]
    free = iter([1])  # asked again, it would count the cores that runs keep busy
    monkeypatch.setattr(store_module, "free_cores", lambda: next(free))
    ResultStore(tmp_path, tmp_path / "record.jsonl").run(study, trials, None)
    assert len(set(note.read_text().split())) == 2


def test_a_run_joins_the_record_as_it_ends(tmp_path: Path) -> None:
    study = shortened(load_study(STUDY))
    first, last = (Trial("develop", "no_second_try", arm, 100) for arm in ("grpo", "oracle"))
    found: list[str] = []

    class Watched(ResultStore):
        def record(self) -> list[dict[str, Any]]:
            found.append(" ".join(run["trial"]["arm"] for run in super().record()))
            return []

    Watched(tmp_path, tmp_path / "record.jsonl").run(study, [first, last], 1)
    assert found == ["", "grpo", "grpo oracle"]


def test_runs_that_another_program_adds_to_the_record_stay_there(tmp_path: Path) -> None:
    ours = ResultStore(tmp_path / "ours", tmp_path / "record.jsonl")
    theirs = json.dumps(a_run("grpo", 1, [0.1] * 5), sort_keys=True)
    (tmp_path / "record.jsonl").write_text(theirs + "\n")
    mine = a_run("grpo", 0, [0.1] * 5)
    (tmp_path / "ours/runs/compare").mkdir(parents=True)
    (tmp_path / "ours/runs/compare/grpo.json").write_text(json.dumps(mine))
    assert len(ours.record()) == 2
    assert (tmp_path / "record.jsonl").read_text().startswith(theirs)


def test_questions_without_gold_documents_are_refused_before_anything_runs(
    with_files: Study, tmp_path: Path
) -> None:
    file = tmp_path / "eval_questions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    del rows[3]["supporting_ids"]
    write_rows(file, rows)
    with pytest.raises(ValueError, match=f"{rows[3]['id']}.* has no gold_ids"):
        held_out(with_files, Trial("develop", "no_second_try", "grpo", 100))


def test_a_study_has_files_by_its_name(tmp_path: Path) -> None:
    study = tmp_path / "mine.toml"
    study.write_text(f'name = "mine"\n{STUDY.read_text()}')
    call = ["report", "--study", study, "--out", tmp_path / "a", "--report", tmp_path]
    with pytest.raises(ValueError, match="nothing to report"):
        compare_credit.main([*map(str, call)])
    assert (tmp_path / "mine_runs.jsonl").exists()
    assert not (tmp_path / "credit_runs.jsonl").exists()


def test_gold_documents_have_columns_and_a_plot_where_they_were_kept(tmp_path: Path) -> None:
    study = load_study(STUDY)
    plain = [a_run("grpo", 0, [0.1] * 5), a_run("oracle", 0, [0.2] * 5)]
    assert "gold documents" not in markdown(summarise(study, plain, {}))
    plot_differences(summarise(study, plain, {}), tmp_path / "without.png")
    for run, rate in zip(plain, (0.25, 0.5), strict=True):
        for number, evaluation in enumerate(run["evaluations"]):
            evaluation["gold_documents"] = rate * (number > 0)
    summary = summarise(study, plain, {})
    arms = summary["regimes"]["no_second_try"]["arms"]
    assert arms["oracle"]["gold_documents"][0] == 0.5
    assert arms["oracle"]["gold_documents_curve"] == [0, 0.5, 0.5, 0.5, 0.5]
    assert arms["oracle"]["delta_gold_documents"][0] == 0.25
    assert "| 0.500 | +0.250 |" in markdown(summary)
    assert len(tables(summary)[0].columns) == 11
    plot_differences(summary, tmp_path / "with.png")
    without, with_them = (imread(tmp_path / f"{name}.png") for name in ("without", "with"))
    assert with_them.shape[1] > without.shape[1]
    plain[1]["evaluations"][0]["gold_documents"] = None
    arms = summarise(study, plain, {})["regimes"]["no_second_try"]["arms"]
    assert "gold_documents" in arms["grpo"]
    assert "gold_documents" not in arms["oracle"]


def test_an_arm_with_one_seed_has_no_interval_and_its_report_is_json(tmp_path: Path) -> None:
    study = load_study(STUDY)
    seeds = [0, 1]
    runs = [a_run("grpo", seed, [0.1] * 5) for seed in seeds] + [a_run("oracle", 0, [0.2] * 5)]
    # The oracle is behind on the second seed, so no share of its lead can be told.
    runs += [a_run("oracle", 1, [0.0] * 5), a_run("ig", 0, [0.3] * 5), a_run("ig", 1, [0.3] * 5)]
    for kept in (runs[:3], runs):
        summary = summarise(study, kept, {})
        json.dumps(summary, allow_nan=False)
        plot_differences(summary, tmp_path / "plot.png")
    one = summarise(study, runs[:3], {})
    arms = one["regimes"]["no_second_try"]["arms"]
    assert arms["oracle"]["delta_em"] == [pytest.approx(0.1), None, None]
    assert "| oracle | 1 (0-0) | 0.200 | +0.100 | +0.100 |" in markdown(one)
    arms = summary["regimes"]["no_second_try"]["arms"]
    assert arms["ig"]["share_of_oracle"] == [None, None, None]
    assert [table.row_count for table in tables(summary)] == [3]


def test_questions_of_several_hops_have_a_table_by_hops() -> None:
    study = with_one_primary()
    primary = study.regimes["no_second_try"].primary
    runs = []
    for seed in range(2):
        runs.append(a_run("grpo", seed, [0.0] + [0.2] * 4))
        runs.append(a_run(primary, seed, [0.0, 0.1, 0.2, 0.3, 0.4], cpu=200.0))
    assert "by hops" not in markdown(summarise(study, runs, {}))  # all of two hops
    for run in runs:
        for evaluation in run["evaluations"]:
            evaluation["em_by_hops"] = {"2": 2 * evaluation["em"], "10": 0.0, "0": 0.0}
    runs[0]["evaluations"][2]["em_by_hops"]["3"] = 0.5  # asked once, compared with nothing
    del runs[2]["evaluations"][0]["em_by_hops"]["10"]  # GRPO's second seed
    summary = summarise(study, runs, {})
    arms = summary["regimes"]["no_second_try"]["arms"]
    by_hops = arms[primary]["by_hops"]
    assert by_hops["2"]["em"] == pytest.approx([0.5, 0.5, 0.5])
    assert by_hops["2"]["delta_em"] == pytest.approx([0.1, 0.1, 0.1])
    # Twice the CPU: where GRPO has spent its quarters, this arm is at an eighth, a quarter, ...
    equal = np.mean([0.1, 0.2, 0.3, 0.4]) - 0.4
    assert by_hops["2"]["delta_em_equal_cpu"] == pytest.approx([equal] * 3)
    assert by_hops["0"]["delta_em_equal_cpu"] == [0.0, 0.0, 0.0]
    assert (by_hops["10"]["seeds"], by_hops["10"]["deltas"]) == (2, [0.0])
    assert arms["grpo"]["by_hops"]["10"]["first_and_last_seed"] == [0, 0]
    page = markdown(summary)
    rows = page[page.index("by hops of the question") :].splitlines()[4:]
    assert rows[2] == "| grpo | 2 | 2 (0-1) | 0.400 [0.400, 0.400] |  |  |"
    assert rows[3] == (
        f"| {primary} | 2 | 2 (0-1) | 0.500 [0.500, 0.500] | +0.100 [+0.100, +0.100] "
        "| -0.150 [-0.150, -0.150] |"
    )
    hops = [row.split(" | ")[1] for row in rows]
    assert hops == ["not told", "not told", "2", "2", "10", "10"]
    assert [table.row_count for table in tables(summary)] == [2, 6]


def test_the_study_of_real_questions_can_be_read() -> None:
    study = load_study(STUDY.with_name("study_real.toml"))
    for arm in study.arms:
        config = trial_settings(study, Trial("compare", "recipe", arm, 0))
        credit = make_credit_from(config.credit)
        assert getattr(credit, "new_only", True)
        assert not config.environment.added_only
        assert config.policy.path == "runs/smollm2-warm/policy"


def test_a_study_on_another_machine_is_not_begun_anew_unasked(
    with_files: Study, tmp_path: Path
) -> None:
    trial = Trial("compare", "no_second_try", "grpo", 0)
    run = {**a_run("grpo", 0, [0.1] * 5), **kept_run(with_files, trial)}
    lost = {**run, "checkpoint": "lost weights"}
    record = tmp_path / "record"

    def check(*known: dict[str, Any]) -> None:
        record.write_text("".join(json.dumps(one) + "\n" for one in known))
        ResultStore(tmp_path / "out", record).check_same_start(with_files)

    with pytest.raises(ValueError, match=r"on seed 0 with other checkpoint, .* put back"):
        check(lost)
    data = {**run["data"], "questions": "other questions"}
    with pytest.raises(ValueError, match="with other checkpoint and data, "):
        check({**lost, "data": data})
    other_seed = Trial("compare", "no_second_try", "grpo", 1)
    with pytest.raises(ValueError, match="on seed 0 with other checkpoint, "):
        check(a_run("grpo", 1, [0.1] * 5) | kept_run(with_files, other_seed), lost)
    check(lost, run)  # both were made, and the study's own count
    check({**lost, "config": {**run["config"], "run": {}}})  # of another study
    check({**lost, "trial": {**run["trial"], "arm": "of another study"}})
    develop = Trial("develop", "no_second_try", "grpo", 100)
    tried = a_run("grpo", 100, [0.1] * 5, stage="develop") | kept_run(with_files, develop)
    check({**tried, "checkpoint": "lost weights"})


@pytest.mark.parametrize("stage", ["qualify", "compare"])
def test_a_record_with_another_start_is_refused_before_anything_is_written(
    stage: str, tmp_path: Path
) -> None:
    study = load_study(STUDY)
    seed = study.seeds_of("no_second_try", "grpo")[0]
    trial = Trial("compare", "no_second_try", "grpo", seed)
    lost = a_run("grpo", seed, [0.1] * 5) | kept_run(study, trial) | {"checkpoint": "lost weights"}
    (tmp_path / "credit_runs.jsonl").write_text(json.dumps(lost) + "\n")
    folders = ["--out", str(tmp_path / "out"), "--report", str(tmp_path)]
    with pytest.raises(ValueError, match="put back what they were made with"):
        compare_credit.main([stage, *folders, "--arms", "ig"])
    assert [path.name for path in tmp_path.rglob("*")] == ["credit_runs.jsonl"]


def test_a_study_names_its_precision() -> None:
    study = load_study(STUDY)
    trial = Trial("compare", "no_second_try", "grpo", 0)
    regime = study.regimes["no_second_try"]
    settings = merged(regime.settings, {"policy": {"precision": "auto"}})
    study = replace(study, regimes={"no_second_try": replace(regime, settings=settings)})
    with pytest.raises(ValueError, match=r"another precision on some; .* regime 'no_second_try'"):
        trial_settings(study, trial)


def test_a_setting_that_was_tried_is_not_run_again_once_it_is_the_protocols(
    tmp_path: Path,
) -> None:
    study = shortened(load_study(STUDY))
    tried = Trial("develop", "no_second_try", "grpo", 100, ("optimization.learning_rate=0.5",))
    run = {**a_run("grpo", 100, [0.1] * 5, stage="develop"), **kept_run(study, tried)}
    run["changes"] = list(tried.changes)
    (tmp_path / "record").write_text(json.dumps(run) + "\n")
    tuned = {"outcome": {"optimization": {"learning_rate": 0.5}}}
    regime = replace(study.regimes["no_second_try"], tuned=tuned)
    study = replace(study, regimes={"no_second_try": regime})
    store = ResultStore(tmp_path / "out", tmp_path / "record")
    assert store.run(study, [replace(tried, changes=())], workers=1) == [run]
    assert store.record() == [run]


@pytest.mark.parametrize("file", ["study.toml", "study_real.toml"])
def test_the_shipped_report_is_what_the_shipped_record_gives(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: no kept run is lost, wherever checkpoints lie and whatever settings are called."""
    shipped = CHECKOUT / "docs/results"
    study = load_study(STUDY.with_name(file))
    names = [f"{study.name}{end}" for end in (".json", "_runs.jsonl", ".md")]
    for name in names[:2]:
        (tmp_path / name).write_bytes((shipped / name).read_bytes())
    monkeypatch.chdir(tmp_path)  # where no question files, index or policy lie
    folders = ["--out", str(tmp_path / "none"), "--report", str(tmp_path)]
    compare_credit.main(["report", "--study", str(STUDY.with_name(file)), *folders])
    for name in names[1:]:
        assert (tmp_path / name).read_text() == (shipped / name).read_text(), name
    made, kept = (json.loads((folder / names[0]).read_text()) for folder in (tmp_path, shipped))
    rests = [report.pop("rests_on") for report in (made, kept)]
    assert made == kept
    if file == "study.toml":  # the other rests on files that are not here
        assert rests[0] == rests[1]
        assert {name: verdict["settings"] for name, verdict in made["verdicts"].items()} == {
            name: settings_hash(study, name) for name in study.regimes
        }


def test_there_is_no_report_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing to report: .* run `compare` first"):
        compare_credit.main(["report", "--out", str(tmp_path / "a"), "--report", str(tmp_path)])
    assert not (tmp_path / "credit.json").exists()


def test_a_regime_that_fails_before_training_is_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = {"all_fail": 0.4, "all_fail_supported": 0.5, "reads": 0.6}
    monkeypatch.setattr(trial_module, "look_at_start", lambda *_: look)
    shipped = CHECKOUT / "docs/results"

    def verdict(out: Path, report: Path) -> dict[str, Any]:
        call = ["qualify", "--regimes", "single_hop", "--out", str(out), "--report", str(report)]
        compare_credit.main(call)
        found: dict[str, Any] = json.loads((out / "qualified.json").read_text())["single_hop"]
        return found

    alone = verdict(tmp_path / "alone", tmp_path / "alone")
    assert (alone["qualified"], alone["figures"]) == (False, look)
    assert not (tmp_path / "alone/runs").exists()
    (tmp_path / "report").mkdir()
    shutil.copy(shipped / "credit_runs.jsonl", tmp_path / "report")
    kept = verdict(tmp_path / "other", tmp_path / "report")
    known = json.loads((shipped / "credit.json").read_text())["verdicts"]["single_hop"]["figures"]
    assert kept["figures"] == known | look, "runs that are known cost nothing"


def laboratory(*arguments: str | Path) -> None:
    size = ["--smoke", "--workers", "1", "--regimes", "no_second_try"]
    compare_credit.main([*map(str, arguments), *size])


def test_development_does_not_see_fresh_seeds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"development must not see the fresh seeds \[8\]"):
        laboratory("develop", "--out", tmp_path, "--seeds", "100", "8")


@pytest.mark.timeout(1200)
def test_stages_in_order_and_nothing_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `qualify` before"):
        laboratory("compare", "--out", tmp_path)
    laboratory("qualify", "--out", tmp_path)
    verdicts = json.loads((tmp_path / "smoke/qualified.json").read_text())
    assert not (tmp_path / "qualified.json").exists()  # a tiny run says nothing about a real one
    assert set(verdicts["no_second_try"]["passes"]) == set(verdicts["no_second_try"]["figures"])
    verdicts["no_second_try"]["qualified"] = True  # tiny runs qualify for nothing
    (tmp_path / "smoke/qualified.json").write_text(json.dumps(verdicts))
    study = tmp_path / "study.toml"
    study.write_text(STUDY.read_text())
    call = ("compare", "--out", tmp_path, "--study", study, "--arms", "grpo", "ig")
    call = (*call, "--report", tmp_path / "report")
    report = tmp_path / "report/smoke"
    laboratory(*call)
    arms = json.loads((report / "credit.json").read_text())["regimes"]["no_second_try"]["arms"]
    assert {arm: row["seeds"] for arm, row in arms.items()} == {"grpo": 2, "ig": 2}
    assert (report / "credit.png").stat().st_size > 10_000
    assert (report / "credit.md").read_text().startswith("# Results")
    runs = sorted((tmp_path / "smoke/runs/compare").iterdir())
    kept = [(path.name, path.stat().st_mtime_ns) for path in runs]
    assert len(kept) == 4
    record = report / "credit_runs.jsonl"
    rows = record.read_text()
    runs[0].unlink()  # as on another machine
    laboratory(*(word for word in call if word != "ig"))
    again = sorted((tmp_path / "smoke/runs/compare").iterdir())
    assert [path.name for path in again] == [name for name, _ in kept]
    assert [path.stat().st_mtime_ns for path in again[1:]] == [time for _, time in kept[1:]]
    assert record.read_text() == rows
    assert json.loads(runs[0].read_text()) in [json.loads(row) for row in rows.splitlines()]
    last = json.loads((report / "credit.json").read_text())
    arms = last["regimes"]["no_second_try"]["arms"]
    assert arms.keys() == {"grpo", "ig"}  # what was not asked for again is still reported
    assert last["verdicts"] == verdicts
    elsewhere = ("--out", tmp_path / "other", "--report", tmp_path / "report")
    laboratory("report", *elsewhere, "--study", study)
    assert json.loads((report / "credit.json").read_text()) == last  # the record is enough
    study.write_text(STUDY.read_text().replace('method = "rloo"', 'method = "reinforce"'))
    with pytest.raises(ValueError, match="arms changed since fresh seeds were run"):
        laboratory(*call)
    study.write_text(STUDY.read_text().replace("people = 320", "people = 300"))
    with pytest.raises(ValueError, match="no_second_try has qualified with other settings"):
        laboratory(*call)
