r"""Run environment, trainer and server for long, and see that memory, files and time stay flat.

python -m scripts.campaigns.soak --out runs/soak --report docs/results
python -m scripts.campaigns.soak --out runs/soak --scale 0.01     # a short one

At --scale 1: 1,024,000 steps of 64 environments, 3,000 training steps of the shipped policy, and
102,400 requests of 64 clients to a server. Each part runs in a process of its own, and is sampled a
hundred times. A slope is that of a straight line through the second half of the samples, when
caches are full, times two: what a whole run of that length adds, with its 95 % interval. Of the
memory of environment and trainer, the freed blocks that malloc keeps are given back first. Time is
that of the CPU. Other programs on the machine slow it down, so that something else is timed after
each sample, and the quotient of the two is reported as well: a fixed piece of work, steps of a
training run that has just begun, or the same requests to a server that has just been started.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from igsearch_env.cli.program import Parser, output_folder, parse_early, run

SAMPLES = 100
QUANTITIES = {
    "memory_mib": "memory, MiB",
    "files": "open files",
    "cpu_ms": "CPU ms a step",
    "relative": "the same, relative",
}
CLIENTS = 64
NAMES = ("environment", "training", "server")


def _parser() -> Parser:
    parser = Parser(None, __doc__)
    add = parser.add_argument
    add(
        "--out",
        type=output_folder,
        required=True,
        help="folder of samples, and of the training run",
    )
    add("--scale", type=float, default=1.0, help="length of all parts (default: %(default)s)")
    add("--part", action="append", choices=NAMES, help="only this one (may be repeated)")
    add("--report", type=output_folder, help="folder to write soak.json and soak.md into")
    return parser


if __name__ == "__main__":
    parse_early(_parser)

import numpy as np

from igsearch_env.baselines import RandomQueryAgent
from igsearch_env.data.world import World
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.http import HTTPRetriever
from igsearch_env.vector_env import SearchQAVectorEnv
from trainers.memory import give_back_freed_memory

ROOT = Path(__file__).resolve().parents[2]
Sample = dict[str, float]
Report = Callable[[int, float], None]


class Watch:
    """Samples a process.

    Args:
        samples: Where they go.
        total: Steps that the part has.
        process: Its id; None for this one.
        unit: Gives the CPU seconds that time is reported relative to.
    """

    def __init__(
        self,
        samples: list[Sample],
        total: int,
        process: int | None = None,
        unit: Callable[[], float] | None = None,
    ) -> None:
        self._samples, self._every = samples, max(1, total // SAMPLES)
        self._process, self._unit = process or os.getpid(), unit or _fixed_work
        self._at, self._cpu = 0, _cpu_seconds(self._process)

    def __call__(self, done: int) -> None:
        """Sample, if enough has been done since the last time."""
        if done - self._at < self._every:
            return
        per_step = (_cpu_seconds(self._process) - self._cpu) / (done - self._at)
        if self._process == os.getpid():  # what malloc keeps for later is not in use
            give_back_freed_memory(0)
        folder = Path(f"/proc/{self._process}")
        pages = int((folder / "statm").read_text().split()[1])
        self._samples.append(
            {
                "done": done,
                "memory_mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
                "files": float(len(list((folder / "fd").iterdir()))),
                "cpu_ms": per_step * 1000,
                "relative": per_step / self._unit(),
            }
        )
        self._at, self._cpu = done, _cpu_seconds(self._process)


def _cpu_seconds(process: int) -> float:
    """What a process has used, as clock_getcpuclockid(3) finds it on Linux."""
    return time.clock_gettime((~process << 3) | 2)


def _fixed_work() -> float:
    """CPU seconds of a piece of work that is always the same, about 10 ms."""
    begun = time.process_time()
    for _ in range(20):
        json.loads(json.dumps([{"text": str(number)} for number in range(300)]))
    return time.process_time() - begun


def environment(out: Path, scale: float) -> list[Sample]:
    """Steps of 64 environments with counterfactuals, played by the agent of random queries."""
    world = World.generate(seed=3, people=60)
    envs = SearchQAVectorEnv(
        64, questions=world.train_questions, retriever=BM25Retriever.build(world.documents)
    )
    agent, total = RandomQueryAgent(seed=0), max(100, int(16_000 * scale))
    samples: list[Sample] = []
    watch = Watch(samples, total * 64)
    envs.reset(seed=0)
    for number in range(1, total + 1):
        envs.step([str(turn) for turn in agent.act(envs.episodes)])
        watch(number * 64)
    return samples


def training(out: Path, scale: float) -> list[Sample]:
    """Steps of the shipped policy on three rollouts of a question each, with checkpoints."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainers.local.grpo"])
    total = max(20, int(3_000 * scale))

    def fresh() -> float:
        """What a step costs a run that has just begun; every time the same questions are asked."""
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_begin_training, args=(out / "fresh", theirs))
        process.start()
        theirs.close()
        seconds: float = ours.recv()
        process.join()
        return seconds

    samples: list[Sample] = []
    _train(out / "training", total, Watch(samples, total, unit=fresh))
    return samples


def _begin_training(out: Path, sender: Any) -> None:
    """Send the CPU seconds of a step of a new run, over 20 of them, with two checkpoints."""
    at: dict[int, float] = {}
    _train(out, 30, lambda step: at.update({step: time.process_time()}))
    sender.send((at[30] - at[10]) / 20)


def _train(out: Path, steps: int, report: Callable[[int], None]) -> None:
    import torch

    from trainers.config import load_config
    from trainers.local.grpo import GRPOTrainer

    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)
    settings = (
        "world.people=40",
        f"policy.path={json.dumps(str(ROOT / 'agents' / 'world-tiny'))}",
        "policy.max_new_tokens=24",
        f"optimization.steps={steps}",
        "optimization.questions_per_step=1",
        "optimization.group_size=3",
        "optimization.learning_rate=1e-7",  # the policy, and with it the work, stays what it is
        "run.checkpoint_every=10",  # as many in each sample
        "run.save_rollouts_every=10",
        "run.max_wasted_steps=0",
        "run.threads=1",
    )
    trainer = GRPOTrainer(load_config(None, settings), out)
    trainer.run(lambda row: report(row["step"]))


def _serve(ready: Any) -> None:
    from igsearch_env.retrieval.server import RetrievalService, serve
    from igsearch_env.retrieval.server_limits import ServerLimits

    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    retriever = BM25Retriever.build(World.generate(seed=3, people=60).documents)
    ready.send(listener.getsockname()[1])
    serve(RetrievalService(ServerLimits()), lambda: retriever, listener)


class Server:
    """A server in a process of its own, and 64 clients of it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        url = f"http://127.0.0.1:{ours.recv()}"
        self._client = HTTPRetriever(url, "skyrl", connections=CLIENTS, cache_size=0)
        self._client.wait_until_ready(60)
        self._asked = [
            question.text for question in World.generate(seed=3, people=60).train_questions
        ]

    def search(self, first: int, count: int) -> float:
        """Make requests, numbered from ``first`` on; the server's CPU seconds for each."""
        assert self.process.pid is not None
        before = _cpu_seconds(self.process.pid)
        for start in range(first, first + count, 2 * CLIENTS):
            numbers = range(start, start + 2 * CLIENTS)
            self._client.search([f"{self._asked[n % len(self._asked)]} {n}" for n in numbers], 3)
        return (_cpu_seconds(self.process.pid) - before) / count

    def close(self) -> None:
        """End both."""
        self._client.close()
        self.process.terminate()
        self.process.join()


def server(out: Path, scale: float) -> list[Sample]:
    """Requests of 64 clients at once; the process that is sampled is the server's."""
    total, burst = max(1_280, int(102_400 * scale)), 8 * CLIENTS
    samples: list[Sample] = []
    old, new, done = Server(), Server(), 0

    def fresh() -> float:
        """What a request costs a server that has answered only a few."""
        nonlocal new
        if len(samples) % 5 == 0:
            new.close()
            new = Server()
            new.search(done, burst)
        return new.search(done, burst)

    watch = Watch(samples, total, old.process.pid, fresh)
    while done < total:
        old.search(done, 2 * CLIENTS)
        done += 2 * CLIENTS
        watch(done)
    old.close()
    new.close()
    return samples


PARTS: dict[str, Callable[[Path, float], list[Sample]]] = dict(
    zip(NAMES, (environment, training, server), strict=True)
)
UNITS = dict(zip(NAMES, ("environment steps", "training steps", "server requests"), strict=True))


def _part(name: str, out: Path, scale: float, sender: Any) -> None:
    sender.send(PARTS[name](out, scale))


def slope(values: Sequence[float]) -> dict[str, float]:
    """Mean, change over the whole length of a straight line, and its 95 % interval.

    The second half of the values counts.
    """
    from scipy import stats

    kept = np.asarray(values[len(values) // 2 :], dtype=np.float64)
    places = np.linspace(0.5, 1.0, len(kept))
    line = stats.linregress(places, kept)
    spread = float(line.stderr) if np.ptp(kept) else 0.0  # scipy says NaN of a constant
    half = float(stats.t.ppf(0.975, len(kept) - 2)) * spread
    found = {"mean": float(kept.mean()), "change": float(line.slope)}
    return found | {"low": float(line.slope) - half, "high": float(line.slope) + half}


def table(samples: dict[str, list[Sample]]) -> list[dict[str, Any]]:
    """One row for each part and quantity."""
    return [
        {"part": UNITS[part], "done": int(rows[-1]["done"]), "quantity": name}
        | slope([row[name] for row in rows])
        for part, rows in samples.items()
        for name in QUANTITIES
    ]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The page of the table."""
    return "\n".join(
        [
            "# Endurance",
            "",
            "`python -m scripts.campaigns.soak --out runs/soak --report docs/results` runs",
            "environment, trainer and server for long. *Change* is what a run of this length",
            "adds, with its 95 % interval, by the straight line through the samples of the second",
            "half: until then caches fill. A part runs in a process of its own; of the last one",
            "the server is sampled. Freed blocks that malloc keeps are no memory in use. CPU time",
            "depends on what else the machine does: *relative* is",
            "in units of something that is timed along with each sample: a fixed piece of work, a",
            "step of a training run that has just begun, or a request to a server that has just",
            "been started.",
            "",
            "| part | length | quantity | mean | change | 95 % interval |",
            "|---|---|---|---|---|---|",
            *(
                f"| {row['part']} | {row['done']:,} | {QUANTITIES[row['quantity']]} | "
                f"{row['mean']:.3g} | {row['change']:+.3g} | "
                f"{row['low']:+.3g} to {row['high']:+.3g} |"
                for row in rows
            ),
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts that are not done, and write the table.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    samples: dict[str, list[Sample]] = {}
    for name in PARTS:
        file = arguments.out / f"{name}-{arguments.scale:g}.json"
        if not file.exists():
            if name not in (arguments.part or PARTS):
                continue
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_part, args=(name, arguments.out, arguments.scale, theirs)
            )
            started = time.monotonic()
            process.start()
            theirs.close()
            try:
                rows = ours.recv()
            except EOFError as error:
                raise ValueError(f"{name} failed; see above") from error
            process.join()
            print(f"{rows[-1]['done']:,.0f} {UNITS[name]} in {time.monotonic() - started:.0f} s")
            file.write_text(json.dumps(rows) + "\n")
        samples[name] = json.loads(file.read_text())
    rows = table(samples)
    text = markdown(rows)
    print(text)
    if arguments.report:
        (arguments.report / "soak.json").write_text(json.dumps(rows, indent=2) + "\n")
        (arguments.report / "soak.md").write_text(text)


if __name__ == "__main__":
    run(main)
