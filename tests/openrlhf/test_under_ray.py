"""Whole runs under Ray: two policy ranks with ZeRO-3, a retriever server, real episodes.

They are started by the command lines of the docs, with flags behind them for a small policy
and a CPU. The first run is synchronous, with a reference policy and an evaluation; the second goes
on from its checkpoint asynchronously, and loses the retriever on its way; the third is a job that a
Ray cluster of two nodes is given.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import httpx2
import pytest
import torch
from ray.job_submission import JobStatus, JobSubmissionClient
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer

from igsearch_env.retrieval.http import HTTPRetriever
from tests.doc_pages import read_blocks
from tests.ports import free_ports

from .conftest import POLICY, ROOT, STANDINS, TINY, as_words, write_questions

PLAIN, OTHER_CREDIT, JOB = (
    block.text.replace("\\\n", " ")
    for block in read_blocks(ROOT / "docs/guides/cluster.md")
    if block.runs_in == "tests/openrlhf/test_under_ray.py"
)
"""The command lines of the page: one node, another credit method, a job of a cluster."""
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
PROGRAM = "python -m scripts.train_openrlhf "
SMALL = {
    **TINY,
    "train.colocate_all": False,
    "vllm.enable_sleep": False,
    "ds.enable_sleep": False,
    "ds.packing_samples": False,
    "ref.num_gpus_per_node": 2,
}
"""What stands behind a command line: sizes for a CPU, and no part that only GPUs have."""
SECONDS = 1200  # more than a run takes on a busy machine, less than a hang
SERVING = re.compile(r"serving (\S+/retrieve)")


@pytest.fixture(scope="module")
def server(index: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A retriever server in a process of its own: its URL, and the process."""
    words = [
        sys.executable,
        "-m",
        "igsearch_env.cli",
        "serve",
        "--index",
        str(index),
        "--port",
        "0",
    ]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = SERVING.match(process.stdout.readline())
    assert found is not None
    with HTTPRetriever(found.group(1)) as client:
        client.wait_until_ready(120)
    yield found.group(1), process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    (folder / "recordings").mkdir()
    return folder


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def start(folder: Path, server: tuple[str, Any], question_file: Path, world: Any) -> Start:
    """Start a run in its own process, in the one folder; its output goes to a file."""
    held_out = [question for question in world.test_questions if question.hops == 2][:2]
    eval_file = write_questions(folder / "eval.jsonl", held_out)

    def run(line: str, name: str, *words: str, **changes: Any) -> subprocess.Popen[str]:
        _, shown = line.split(PROGRAM)
        flags = {
            "ig.questions": question_file,
            "ig.eval_questions": eval_file,
            "ig.retriever": server[0],
            "data.max_samples": 20,  # of which two batches of 8 are whole
            "eval.steps": 2,
            "eval.n_samples_per_prompt": 2,
            **SMALL,
            **changes,
        }
        program = [sys.executable, "-m", "train_on_cpu", *from_checkout(shown)]
        return subprocess.Popen(
            [*program, *as_words(flags), "--import", "recording", *words],
            cwd=folder,  # not the checkout: workers have to find it all the same
            env=variables(STANDINS, ROOT) | {"RECORDINGS": str(folder / "recordings")},
            stdout=(folder / f"{name}.log").open("w"),
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return run


def from_checkout(line: str) -> list[str]:
    """The words of a command line; configs are named by where the checkout lies."""
    return shlex.split(line.replace("trainers/configs/", f"{ROOT}/trainers/configs/"))


def variables(*paths: Path) -> dict[str, str]:
    """The environment of a process that starts Ray, and where it imports from."""
    words = [*map(str, paths), os.environ.get("PYTHONPATH", "")]
    return {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "PYTHONPATH": os.pathsep.join(filter(None, words)),
        "RAY_prestart_worker_first_driver": "0",
        "RAY_worker_niceness": "0",  # they give way to everything else if left alone
        "RAY_DEDUP_LOGS": "0",
        # By itself Ray gives its dashboard, which takes jobs, 30 and 60 seconds to start, and its
        # agents and workers 30 and 60: too few on a busy machine.
        "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": str(SECONDS),
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(SECONDS),
        "RAY_agent_register_timeout_ms": str(1000 * SECONDS),
        "RAY_worker_register_timeout_seconds": str(SECONDS),
        "RAY_health_check_timeout_ms": str(1000 * SECONDS),
    }


def finish(process: subprocess.Popen[str], log: Path, fails: bool = False) -> str:
    """Wait for a run, which is to fail or not; its process group is ended if it takes too long."""
    try:
        code = process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        code = -1
    text = log.read_text(encoding="utf-8")
    assert code > 0 if fails else code == 0, text[-4000:]
    return text


def scalars(folder: Path, name: str) -> dict[int, float]:
    """A metric in OpenRLHF's TensorBoard logs, by step."""
    found = {}
    for events in sorted((folder / "runs" / "3b" / "tensorboard").iterdir()):
        board = EventAccumulator(str(events)).Reload()
        if name in board.Tags()["scalars"]:
            found |= {event.step: event.value for event in board.Scalars(name)}
    return found


def check_columns(rows: list[dict[str, Any]]) -> int:
    """Check where gains were paid; the number of queries that got any."""
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    paid = 0
    for row in rows:
        mask, advantages = row["action_mask"].bool(), row["advantages"]
        ids = row["sequences"][1:]  # column c belongs to token c + 1
        assert not advantages[~mask].any()
        inside, query = False, torch.zeros_like(mask)
        for column in torch.where(mask)[0].tolist():
            written = tokenizer.decode(ids[max(0, column - 1) : column + 1])
            if "</search" in tokenizer.decode(ids[column : column + 2]):
                inside = False
            query[column] = inside
            if written.endswith("<search>"):
                inside = True
        outcome = advantages[mask & ~query]
        assert torch.allclose(outcome, outcome[:1].expand_as(outcome))
        paid += int(((advantages - outcome[0]).abs() > 1e-4)[mask & query].any())
    return paid


@pytest.fixture(scope="module")
def trained(folder: Path, start: Start) -> Path:
    """The folder after the synchronous run."""
    run = start(PLAIN, "sync", **{"algo.kl.init_coef": 0.001})
    finish(run, folder / "sync.log")
    return folder


@pytest.mark.timeout(2 * SECONDS)
def test_a_synchronous_run_trains_logs_and_saves(trained: Path) -> None:
    folder = trained
    steps = sorted((folder / "recordings").iterdir())
    assert len(steps) == 2
    assert sum(check_columns(torch.load(step)) for step in steps) > 10
    for name in ("ig/information_gain", "ig/information_gain_positive", "ig/time_share"):
        values = scalars(folder, f"train/{name}")
        assert set(values) == {1, 2}, name
    for name in ("pass1", "pass2"):
        values = scalars(folder, f"eval/eval_world-2hop_{name}")
        assert list(values) == [2], name
        assert 0 <= values[2] <= 1
    share = scalars(folder, "train/ig/time_share")
    assert all(0 < value < 1 for value in share.values())
    assert all(value > 0 for value in scalars(folder, "train/actor_grad_norm").values())
    assert (folder / "runs" / "3b" / "checkpoints" / "_actor" / "global_step2").is_dir()
    before = load_file(POLICY / "model.safetensors")
    after = load_file(folder / "runs" / "3b" / "policy" / "model.safetensors")
    changed = [n for n in before if not torch.equal(before[n].bfloat16(), after[n].bfloat16())]
    assert len(changed) > len(before) / 2


@pytest.mark.timeout(2 * SECONDS)
def test_an_asynchronous_run_goes_on_and_ends_when_it_has_lost_its_retriever(
    trained: Path,
    start: Start,
    server: tuple[str, subprocess.Popen[str]],
) -> None:
    folder = trained
    recordings = folder / "recordings"
    known = len(list(recordings.iterdir()))
    changes = {"train.num_episodes": 5, "eval.steps": 100}
    run = start(OTHER_CREDIT, "async", "--resume", "--train.async_enable", **changes)
    while len(list(recordings.iterdir())) == known and run.poll() is None:
        time.sleep(0.2)
    server[1].kill()
    text = finish(run, folder / "async.log", fails=True)
    assert "in each of 3 steps" in text
    assert "see to the retriever, and go on with --resume from the last checkpoint" in text
    failed = scalars(folder, "train/ig/failed_rollouts")
    assert {1, 2, 3} <= failed.keys()  # it went on after the two steps of the first run
    assert failed[3] < 0.5 < failed[max(failed)]  # who never searches cannot fail
    last = torch.load(sorted(recordings.iterdir())[-1])
    assert not any(row["advantages"].any() for row in last)  # nothing is learned from such a step
    after = load_file(folder / "runs" / "3b" / "policy" / "model.safetensors")
    assert all(values.isfinite().all() for values in after.values())


@contextmanager
def ray_cluster() -> Iterator[str]:
    """Two nodes with three GPUs each, as far as Ray knows; the address that takes jobs."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, ExitStack() as stack:
        port, dashboard, client, agent = free_ports(4)
        head = ["--head", "--port", str(port), "--dashboard-port", str(dashboard)]
        head += ["--temp-dir", scratch, "--ray-client-server-port", str(client)]
        # Ray's client server looks this port up if it is not told, and gives up after 30 seconds.
        head += ["--runtime-env-agent-port", str(agent)]
        nodes: list[subprocess.Popen[bytes]] = []
        log = stack.enter_context((Path(scratch) / "nodes.log").open("w+"))
        for words in (head, ["--address", f"127.0.0.1:{port}"]):
            words += ["--num-cpus", "4", "--num-gpus", "3", "--object-store-memory", "150000000"]
            node = subprocess.Popen(
                [*RAY, "start", "--block", "--disable-usage-stats", *words],
                env=variables(STANDINS),  # Ray carries the checkout
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            stack.callback(end_node, node)
            nodes.append(node)
            wait_for_nodes(f"http://127.0.0.1:{dashboard}", nodes, log)
        yield f"127.0.0.1:{dashboard}"


def end_node(node: subprocess.Popen[bytes]) -> None:
    """End all processes that ``ray start --block`` has started."""
    node.terminate()
    try:
        node.wait(30)
    finally:
        with suppress(ProcessLookupError):  # nobody is left
            os.killpg(node.pid, signal.SIGKILL)


def wait_for_nodes(url: str, nodes: Sequence[subprocess.Popen[bytes]], log: TextIO) -> None:
    """Wait until all nodes have joined and the cluster has run a job, or a node has ended.

    The job server listens before it can start jobs: it needs an agent on the head node first.
    """
    while True:
        for node in nodes:
            if node.poll() is not None:
                log.seek(0)
                pytest.fail(f"ray start ended with {node.returncode}: {log.read()[-4000:]}")
        try:
            client = JobSubmissionClient(url)
            job = client.submit_job(entrypoint="true", entrypoint_num_cpus=0)
            while not client.get_job_status(job).is_terminal():
                time.sleep(0.2)
            if client.get_job_status(job) is JobStatus.SUCCEEDED and joined(url) == len(nodes):
                return
        except (RuntimeError, OSError, httpx2.HTTPError):
            pass  # not there yet
        time.sleep(0.2)


def joined(url: str) -> int:
    """How many nodes of a cluster are alive."""
    answer = httpx2.get(f"{url}/nodes?view=summary", timeout=60, trust_env=False)
    summary = answer.raise_for_status().json()["data"]["summary"]
    return sum(node["raylet"]["state"] == "ALIVE" for node in summary)


@pytest.mark.timeout(2 * SECONDS)
def test_a_job_trains_on_two_nodes_that_ray_carries_the_checkout_to(
    tmp_path: Path, question_file: Path, index: Path
) -> None:
    flags = {
        "ig.questions": question_file,
        "ig.retriever": index,
        "data.max_samples": 16,  # two batches: the learning rate of the first is 0
        **SMALL,
        "actor.num_gpus_per_node": 1,
        "ref.num_gpus_per_node": 1,
        "algo.kl.init_coef": 0.001,  # so there is a reference policy: 5 GPUs, more than a node has
    }
    line = JOB
    assert "--actor.num_nodes 2 --ref.num_nodes 2" in line
    with ray_cluster() as address:
        line = line.replace("HEAD:8265", address).replace("/shared/", f"{tmp_path}/")
        submit, entry = line.split(PROGRAM)
        program = [*RAY, *shlex.split(submit)[1:], "python", "-m", "train_on_cpu"]
        log = tmp_path / "job.log"
        process = subprocess.Popen(
            [*program, *shlex.split(entry), *as_words(flags)],
            cwd=ROOT,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        finish(process, log)
    after = load_file(tmp_path / "runs" / "7b" / "policy" / "model.safetensors")
    before = load_file(POLICY / "model.safetensors")
    assert any(not torch.equal(before[n].bfloat16(), after[n].bfloat16()) for n in before)
