"""The credit laboratory: statistics by hand and by brute force, the protocol, small real runs."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.loading import CHECKOUT
from igsearch_env.credit import IGSearch
from scripts.laboratory.compare_credit import PROTOCOL, verdict_of
from scripts.laboratory.hashes import checkpoint_hash
from scripts.laboratory.protocol import (
    Job,
    Protocol,
    Span,
    evaluation_size,
    is_run_of,
    job_config,
    load_protocol,
    rests_on,
    settings_hash,
    shortened,
)
from scripts.laboratory.report import collapsed, endpoint, endpoint_at, markdown, summarise, tables
from scripts.laboratory.runs import held_out, run_job
from scripts.laboratory.statistics import holm, sign_flip_test, t_interval
from scripts.laboratory.store import RunStore
from trainers.config import make_credit_from

ENDLESS = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from scripts.laboratory.store import end_with_parent

def work(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        pool.submit(work, sys.argv[1]).result()
"""
FLOATS = st.floats(-1, 1, allow_nan=False)


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


def a_run(arm: str, seed: int, ems: list[float], cpu: float = 100.0, **job: Any) -> dict[str, Any]:
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
    told = {"stage": "compare", "regime": "no_second_try", "arm": arm, "seed": seed, **job}
    training = [{"entropy": 1.0}] * 4
    return {"job": told, "changes": [], "evaluations": evaluations, "training": training}


def test_t_interval_by_hand() -> None:
    mean, low, high = t_interval([0.1, 0.3, 0.2, 0.4])
    half = 3.182446 * np.std([0.1, 0.3, 0.2, 0.4], ddof=1) / 2  # t of 3 degrees of freedom
    assert (mean, low, high) == pytest.approx((0.25, 0.25 - half, 0.25 + half), abs=1e-6)
    assert np.isnan(t_interval([0.5])[1])


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


def with_one_primary() -> Protocol:
    """The protocol, as if no_second_try had never had another primary arm."""
    protocol = load_protocol(PROTOCOL)
    regime = replace(protocol.regimes["no_second_try"], primaries_before=())
    return replace(protocol, regimes={**protocol.regimes, "no_second_try": regime})


def test_the_summary_pairs_by_seed_and_tests_the_primary_arm_alone() -> None:
    protocol = with_one_primary()
    primary = protocol.regimes["no_second_try"].primary
    runs = []
    for seed in range(3):
        runs.append(a_run("grpo", seed, [0.0] + [0.1 * seed] * 4))
        runs.append(a_run(primary, seed, [0.0] + [0.1 * seed + 0.05 + 0.01 * seed] * 4, cpu=200.0))
    runs.append(a_run("oracle", 2, [0.0] + [0.9] * 4))
    verdicts = {name: {"qualified": name == "no_second_try"} for name in protocol.regimes}
    summary = summarise(protocol, runs, verdicts)
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
    assert len(tables(summary)) == 1
    page = markdown(summary).splitlines()
    assert f"## no_second_try: {summary['endpoint']}" in page
    (told,) = (line for line in page if line.startswith(f"| {primary} *"))
    assert f"| {ig['delta_em'][0]:+.3f} [" in told
    assert {line.count("|") for line in page if line.startswith("|")} == {9}
    assert summary["regimes"].keys() == {"no_second_try"}


def test_a_regime_that_is_not_run_yet_still_counts_as_a_test() -> None:
    protocol = with_one_primary()
    primary = protocol.regimes["no_second_try"].primary
    runs = [a_run(arm, seed, [0.1] * 4 + [0.2]) for arm in ("grpo", primary) for seed in range(3)]
    runs += [a_run(primary, seed, [0.1] * 4 + [0.3 + 0.01 * seed]) for seed in range(3)]
    verdicts = {
        name: {"qualified": name != "single_hop"} for name in ("no_second_try", "random_facts")
    }
    verdicts["single_hop"] = {"qualified": False}
    ig = summarise(protocol, runs, verdicts)["regimes"]["no_second_try"]["arms"][primary]
    assert (ig["sign_flip_p"], ig["sign_flip_p_holm"]) == (0.25, 0.75)  # of 4 regimes, 1 is dropped


def test_former_primary_arms_count_as_tests() -> None:
    protocol = with_one_primary()
    regime = replace(protocol.regimes["no_second_try"], primaries_before=("ig_new", "ig_lean"))
    protocol = replace(protocol, regimes={**protocol.regimes, "no_second_try": regime})
    runs = [a_run("grpo", seed, [0.1] * 5) for seed in range(10)]
    runs += [a_run(regime.primary, seed, [0.1] * 4 + [0.2]) for seed in range(10)]
    runs += [a_run("ig_new", seed, [0.1] * 4 + [0.3]) for seed in range(9)]
    verdicts = {name: {"qualified": name == "no_second_try"} for name in protocol.regimes}
    arms = summarise(protocol, runs, verdicts)["regimes"]["no_second_try"]["arms"]
    assert arms[regime.primary]["sign_flip_p"] == 2 / 2**10
    assert arms[regime.primary]["sign_flip_p_holm"] == 3 * 2 / 2**10
    assert arms["ig_new"]["sign_flip_p_holm"] == 2 * 2 / 2**9
    assert arms["ig_new"]["first_and_last_seed"] == [0, 8]


def test_the_summary_lists_every_setting_that_was_tried() -> None:
    protocol = load_protocol(PROTOCOL)
    tried = []
    for seed, em, changes in (
        (100, 0.1, ()),
        (101, 0.2, ()),
        (100, 0.3, ("optimization.kl=0.01",)),
    ):
        job = Job("develop", "no_second_try", "ig", seed, changes)
        run = a_run("ig", seed, [0.0] + [em] * 4, stage="develop")
        config = job_config(protocol, job).to_dict()
        tried.append({**run, "changes": list(changes), "config": config})
    other = json.loads(json.dumps(tried[0]))  # the regime itself was another one at first
    other["config"]["world"]["people"] = 100
    found = summarise(protocol, [], {}, [*tried, other])["settings_tried"]
    assert [(row["changes"], row["em_by_seed"]) for row in found] == [
        ([], {"100": 0.1, "101": 0.2}),
        (["optimization.kl=0.01"], {"100": 0.3}),
        ([], {"100": 0.1}),
    ]


def test_a_quarter_without_a_value_does_not_shift_the_others() -> None:
    one, other = a_run("grpo", 0, [0.1] * 5), a_run("grpo", 1, [0.1] * 5)
    one["training"] = [{}, {"entropy": 2.0}, {"entropy": 3.0}, {}]
    other["training"] = [{}, {"entropy": 4.0}, {}, {}]
    summary = summarise(load_protocol(PROTOCOL), [one, other], {})
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
        failed = verdict_of([{**look, name: value}], runs)
        assert failed["qualified"] is False
        assert [key for key, passed in failed["passes"].items() if not passed] == [name]
    assert verdict_of([look], [runs[0], a_run("oracle", 0, [0.1] * 5)])["qualified"] is False


def test_settings_are_laid_over_one_another() -> None:
    protocol = load_protocol(PROTOCOL)
    config = job_config(protocol, Job("compare", "no_second_try", "ig_return", 3))
    assert config.world.seed == config.run.seed == 3
    assert config.world.people == 320
    assert config.credit == {"method": "ig_search", "alpha": 1.0, "gamma": 0.9}
    tuned = {"gain": {"optimization": {"learning_rate": 0.5}}}
    regime = replace(protocol.regimes["no_second_try"], tuned=tuned)
    other = replace(protocol, regimes={"no_second_try": regime})
    assert (
        job_config(other, Job("compare", "no_second_try", "ig", 0)).optimization.learning_rate
        == 0.5
    )
    plain = job_config(other, Job("compare", "no_second_try", "grpo", 0))
    assert plain.optimization.learning_rate != 0.5
    changed = Job("develop", "no_second_try", "ig", 0, ("credit.alpha=0.5", "optimization.kl=0.01"))
    assert job_config(protocol, changed).credit["alpha"] == 0.5
    assert job_config(protocol, changed).optimization.kl == 0.01
    assert changed.name == "no_second_try-ig-0-credit.alpha_0.5-optimization.kl_0.01"


def test_a_regime_may_have_starting_policies_of_its_own(tmp_path: Path) -> None:
    protocol = load_protocol(PROTOCOL)
    own = tmp_path / "policy"
    own.mkdir()
    regime = replace(protocol.regimes["no_second_try"], checkpoints=(str(own),))
    other = replace(protocol, regimes={**protocol.regimes, "no_second_try": regime})
    for seed in (8, 9):
        for regime_name, expected in (("no_second_try", str(own)), ("single_hop", None)):
            job = Job("compare", regime_name, "grpo", seed)
            common = protocol.checkpoints[seed % len(protocol.checkpoints)]
            assert job_config(other, job).policy.path == (expected or common)
    before = rests_on(other, PROTOCOL)
    (own / "config.json").write_text("{}")
    changed = {name for name, told in rests_on(other, PROTOCOL).items() if told != before[name]}
    assert changed == {str(own)}


def test_a_regime_may_say_on_which_seeds_an_arm_runs() -> None:
    protocol = load_protocol(PROTOCOL)
    regime = replace(protocol.regimes["no_second_try"], seeds={"ig": Span(10, 12)})
    other = replace(protocol, regimes={**protocol.regimes, "no_second_try": regime})
    assert other.seeds_of("no_second_try", "ig") == [10, 11, 12]
    assert other.seeds_of("no_second_try", "rloo") == [8, 9, 10]
    assert other.seeds_of("single_hop", "ig") == [8, 9, 10]
    assert other.seeds_of("single_hop", "paper") == list(range(8, 16))
    for seeds in ({"ig": Span(7, 10)}, {"no_such_arm": Span(8, 9)}, {"ig": Span(12, 10)}):
        with pytest.raises(ValueError, match="gives Span"):
            replace(protocol, regimes={"no_second_try": replace(regime, seeds=seeds)})
    alone = replace(regime, seeds={"grpo": Span(8, 20), "ig": Span(20, 22)})
    with pytest.raises(ValueError, match=r"has 'ig' run on the seeds \[21, 22\]"):
        replace(protocol, regimes={"no_second_try": alone})


def test_every_arm_of_the_protocol_can_be_built() -> None:
    protocol = load_protocol(PROTOCOL)
    for arm in protocol.arms:
        make_credit_from(job_config(protocol, Job("compare", "no_second_try", arm, 0)).credit)
    paper = job_config(protocol, Job("compare", "no_second_try", "paper", 0))
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
def test_a_protocol_that_contradicts_itself_is_refused(
    change: dict[str, Any], message: str
) -> None:
    protocol: Protocol = load_protocol(PROTOCOL)
    with pytest.raises(ValueError, match=message):
        replace(protocol, **change)


def kept_run(protocol: Protocol, job: Job) -> dict[str, Any]:
    """What is kept of a run, without its figures."""
    config = job_config(protocol, job)
    sizes = [evaluation_size(protocol, job, quarter) for quarter in range(5)]
    run = {
        "config": config.to_dict(),
        "checkpoint": checkpoint_hash(config.policy.path),
        "evaluations": [{"questions": asked, "samples": samples} for asked, samples in sizes],
    }
    read: dict[str, Any] = json.loads(json.dumps(run))
    return read


def test_a_kept_run_counts_only_for_the_settings_that_it_was_made_with() -> None:
    protocol = load_protocol(PROTOCOL)
    jobs = [Job("develop", "no_second_try", "ig", 100), Job("compare", "no_second_try", "paper", 0)]
    for job in jobs:
        run = kept_run(protocol, job)
        assert is_run_of(run, protocol, job)
        tuned = {"gain": {"optimization": {"kl": 0.01}}}
        regime = replace(protocol.regimes["no_second_try"], tuned=tuned)
        assert not is_run_of(run, replace(protocol, regimes={"no_second_try": regime}), job)
        assert not is_run_of(run, protocol, replace(job, changes=("optimization.kl=0.01",)))
        assert not is_run_of(run, protocol, replace(job, arm="grpo"))
        assert not is_run_of(run, shortened(protocol), job)
        assert not is_run_of({**run, "checkpoint": "other weights"}, protocol, job)
        assert not is_run_of({**run, "config": {"no": "such settings"}}, protocol, job)
    one, other = (replace(protocol, questions=n) for n in (1000, 900))
    assert is_run_of(kept_run(one, jobs[0]), other, jobs[0])  # development asks fewer anyway
    assert not is_run_of(kept_run(one, jobs[1]), other, jobs[1])


def test_the_lock_holds_on_to_base_and_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "weights").write_bytes(b"one")
    protocol = load_protocol(PROTOCOL)
    regimes = {name: replace(r, checkpoints=()) for name, r in protocol.regimes.items()}
    protocol = replace(protocol, regimes=regimes, checkpoints=(str(folder),))
    before = rests_on(protocol, PROTOCOL)
    assert before.keys() == {"protocol", "trainers/configs/demo.toml", str(folder)}
    told = settings_hash(protocol, "no_second_try")
    (folder / "weights").write_bytes(b"two")
    after = rests_on(protocol, PROTOCOL)
    assert [name for name in before if before[name] != after[name]] == [str(folder)]
    assert settings_hash(protocol, "no_second_try") != told != settings_hash(protocol, "single_hop")


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
    protocol = load_protocol(PROTOCOL)
    regime = replace(protocol.regimes["no_second_try"], **change)
    with pytest.raises(ValueError, match=message):
        replace(protocol, regimes={"no_second_try": regime})


def test_a_world_must_have_the_questions_that_are_to_be_asked() -> None:
    protocol = load_protocol(PROTOCOL)
    for regime, seed in itertools.product(protocol.regimes, protocol.seeds):
        asked = held_out(protocol, Job("compare", regime, "grpo", seed))
        assert len(asked) >= protocol.questions == 1000
    greedy = replace(protocol, questions=100_000)
    with pytest.raises(ValueError, match="is to be asked 100000 held-out questions"):
        run_job(greedy, Job("compare", "no_second_try", "grpo", 0))


def test_a_setting_that_was_tried_is_not_run_again_once_it_is_the_protocols(
    tmp_path: Path,
) -> None:
    protocol = shortened(load_protocol(PROTOCOL))
    tried = Job("develop", "no_second_try", "grpo", 100, ("optimization.learning_rate=0.5",))
    run = {**a_run("grpo", 100, [0.1] * 5, stage="develop"), **kept_run(protocol, tried)}
    run["changes"] = list(tried.changes)
    (tmp_path / "record").write_text(json.dumps(run) + "\n")
    tuned = {"outcome": {"optimization": {"learning_rate": 0.5}}}
    regime = replace(protocol.regimes["no_second_try"], tuned=tuned)
    protocol = replace(protocol, regimes={"no_second_try": regime})
    store = RunStore(tmp_path / "out", tmp_path / "record")
    assert store.run(protocol, [replace(tried, changes=())], workers=1) == [run]
    assert store.record() == [run]


def test_the_report_that_is_shipped_is_of_the_protocol_that_is_shipped() -> None:
    told = json.loads((CHECKOUT / "docs/results/credit.json").read_text(encoding="utf-8"))
    protocol = load_protocol(PROTOCOL)
    assert told["rests_on"] == rests_on(protocol, PROTOCOL)
    assert told["verdicts"].keys() == protocol.regimes.keys()


def laboratory(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.laboratory.compare_credit", *map(str, arguments)]
    command += ["--smoke", "--workers", "1", "--regimes", "no_second_try"]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=900)


def test_development_does_not_see_fresh_seeds(tmp_path: Path) -> None:
    refused = laboratory("develop", "--out", tmp_path, "--seeds", "100", "8")
    assert refused.returncode == 2
    assert "development must not see the fresh seeds [8]" in refused.stderr


@pytest.mark.timeout(1200)
def test_stages_in_order_and_nothing_twice(tmp_path: Path) -> None:
    early = laboratory("compare", "--out", tmp_path)
    assert early.returncode == 2
    assert "run `qualify` before" in early.stderr
    assert laboratory("qualify", "--out", tmp_path).returncode == 0
    verdicts = json.loads((tmp_path / "smoke/qualified.json").read_text())
    assert not (tmp_path / "qualified.json").exists()  # a tiny run says nothing about a real one
    assert set(verdicts["no_second_try"]["passes"]) == set(verdicts["no_second_try"]["figures"])
    verdicts["no_second_try"]["qualified"] = True  # tiny runs qualify for nothing
    (tmp_path / "smoke/qualified.json").write_text(json.dumps(verdicts))
    protocol = tmp_path / "protocol.toml"
    protocol.write_text(PROTOCOL.read_text())
    call = ("compare", "--out", tmp_path, "--protocol", protocol, "--arms", "grpo", "ig")
    call = (*call, "--report", tmp_path / "report")
    report = tmp_path / "report/smoke"
    first = laboratory(*call)
    assert first.returncode == 0, first.stderr
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
    part = laboratory(*(word for word in call if word != "ig"))
    assert part.returncode == 0, part.stderr
    again = sorted((tmp_path / "smoke/runs/compare").iterdir())
    assert [path.name for path in again] == [name for name, _ in kept]
    assert [path.stat().st_mtime_ns for path in again[1:]] == [time for _, time in kept[1:]]
    assert record.read_text() == rows
    assert json.loads(runs[0].read_text()) in [json.loads(row) for row in rows.splitlines()]
    arms = json.loads((report / "credit.json").read_text())["regimes"]["no_second_try"]["arms"]
    assert arms.keys() == {"grpo", "ig"}  # what was not asked for again is still told
    told = json.loads((report / "credit.json").read_text())
    assert told["verdicts"] == verdicts
    elsewhere = ("--out", tmp_path / "other", "--report", tmp_path / "report")
    assert laboratory("report", *elsewhere, "--protocol", protocol).returncode == 0
    assert json.loads((report / "credit.json").read_text()) == told  # the record is enough
    protocol.write_text(PROTOCOL.read_text() + "\n# changed\n")
    late = laboratory(*call)
    assert late.returncode == 2
    assert "protocol has changed since fresh seeds were run" in late.stderr
    protocol.write_text(PROTOCOL.read_text().replace("people = 320", "people = 300"))
    other = laboratory(*call)
    assert other.returncode == 2
    assert "no_second_try has qualified with other settings" in other.stderr
