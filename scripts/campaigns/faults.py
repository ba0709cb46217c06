r"""Kill, starve and disturb the programs, and compare what they leave with undisturbed runs.

python -m scripts.campaigns.faults --out runs/faults --report docs/results
python -m scripts.campaigns.faults --out runs/faults --kills 6 --others 2   # a short one

Training, evaluation and index building are killed at random moments and resumed; run under a limit
on the size of files, as on a full disk; and resumed after one of their files was cut, swapped or
had a bit flipped. Retriever and endpoint stop, garble and delay their answers. A server is killed
while clients search. A case is good if its result equals the undisturbed one, byte for byte, or if
it ends with a single line that names the file or the address at fault. Finished cases are kept in
OUT/cases.jsonl: the same command goes on where it was stopped. The exit status is 1 if a case was
not good.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from igsearch_env.cli.program import Parser, output_folder, parse_early, positive, run

PROXY_FAULTS = ("close", "reset", "garbage", "half", "status", "shape", "slow")
PROGRAMS = ("training", "evaluation", "index building", "serving")
PATIENCE = 600.0
"""Seconds after which an attempt counts as hung."""


def _parser() -> Parser:
    parser = Parser(None, __doc__)
    add = parser.add_argument
    add("--out", type=output_folder, required=True, help="folder of the campaign")
    add("--kills", type=positive, default=51, help="kills of each program (default: %(default)s)")
    add("--others", type=positive, default=12, help="cases of each other fault (default: 12)")
    add("--seed", type=int, default=0)
    add("--program", action="append", choices=PROGRAMS, help="only this one (may be repeated)")
    add("--report", type=output_folder, help="folder to write faults.json and faults.md into")
    return parser


if __name__ == "__main__":
    parse_early(_parser)

from igsearch_env.cli import evaluate, index, serve
from igsearch_env.cli.program import run as run_program
from igsearch_env.data.world import World
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.http import HTTPRetriever
from igsearch_env.retrieval.http_line import HTTPRetrievalError

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "agents" / "world-tiny"
Program = Callable[[Sequence[str]], None]


def train(argv: Sequence[str]) -> None:
    """scripts.train, imported late: it prints while it is imported."""
    from scripts.train import main

    main(argv)


@dataclass(frozen=True)
class Ended:
    """How an attempt ended.

    Args:
        status: Exit status; the negative number of a signal; None if it was killed here.
        words: What it printed on stderr.
        seconds: How long it took.
    """

    status: int | None
    words: str
    seconds: float


def attempt(
    program: Program, argv: Sequence[str], kill_after: float | None = None, largest: int = 0
) -> Ended:
    """Run a program in a fork of this process, whose imports are done.

    Args:
        program: Takes the arguments.
        argv: The arguments.
        kill_after: Seconds until it is killed; None for never.
        largest: Bytes that a file may have; 0 for no limit.
    """
    reads, writes = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if not child:
        status = 70
        try:
            os.close(reads)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(writes, 2)
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
            if largest:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
            run_program(lambda: program(argv))
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 70
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writes)
    words: list[bytes] = []
    reader = threading.Thread(target=_read_all, args=(reads, words))
    reader.start()
    handle = os.pidfd_open(child)
    limit = PATIENCE if kill_after is None else kill_after
    gone, _, _ = select.select([handle], [], [], limit)
    if not gone:
        os.kill(child, signal.SIGKILL)
    _, raw = os.waitpid(child, 0)
    os.close(handle)
    reader.join()
    code = None if not gone and kill_after is not None else os.waitstatus_to_exitcode(raw)
    return Ended(code, b"".join(words).decode(errors="replace"), time.monotonic() - started)


def _read_all(source: int, words: list[bytes]) -> None:
    with os.fdopen(source, "rb") as opened:
        words.append(opened.read())


class Job:
    """A program whose result does not depend on when it is killed.

    Args:
        name: Its name in the table.
        program: The program.
        options: Its options but for --out and --resume.
        result: Reads what must be equal from the folder.
    """

    def __init__(
        self,
        name: str,
        program: Program,
        options: Sequence[str],
        result: Callable[[Path], object],
    ) -> None:
        self.name, self.program, self.options = name, program, tuple(options)
        self._result = result

    def attempt(self, out: Path, *more: str, **faults: Any) -> Ended:
        """Run it, or go on with it."""
        argv = [*self.options, "--out", str(out), *more]
        if not out.exists() and not out.with_name(out.name + ".partial").exists():
            return attempt(self.program, argv, **faults)
        ended = attempt(self.program, [*argv, "--resume"], **faults)
        if re.search(r"no run to resume|leave out --resume", ended.words):  # nothing was begun
            return attempt(self.program, argv, **faults)
        return ended

    def result(self, out: Path) -> str:
        """A hash of what must be equal."""
        return hashlib.sha256(repr(self._result(out)).encode()).hexdigest()


def _training_result(out: Path) -> object:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("seconds")
    return (out / "policy" / "model.safetensors").read_bytes(), rows


def _evaluation_result(out: Path) -> object:
    return [(out / name).read_bytes() for name in ("results.json", "episodes.jsonl")]


def _index_result(out: Path) -> object:
    return [(file.name, file.read_bytes()) for file in sorted(out.iterdir())]


def make_jobs(folder: Path) -> dict[str, Job]:
    """The jobs, and the files that they need, which are made in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "corpus.jsonl"
    world = World.generate(seed=3, people=40)
    rows = [{"id": d.id, "title": d.title, "text": d.text} for d in world.documents]
    rows = [{**row, "id": f"{copy}-{row['id']}"} for copy in range(8) for row in rows]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = (
        "world.people=40",
        f"policy.path={json.dumps(str(TINY))}",
        "policy.max_new_tokens=24",
        "optimization.steps=3",
        "optimization.questions_per_step=2",
        "optimization.group_size=2",
        "run.checkpoint_every=1",
        "run.save_rollouts_every=1",
        "run.threads=1",
    )
    asked = ("--questions", "world-test", "--corpus", "world", "--limit", "12", "--batch-size", "2")
    played = (*asked, "--agent", str(TINY), "--threads", "1", "--samples", "1")
    return {
        job.name: job
        for job in (
            Job("training", train, [f"--set={one}" for one in settings], _training_result),
            Job("evaluation", evaluate.main, played, _evaluation_result),
            Job(
                "index building",
                index.main,
                ("--corpus", str(corpus), "--shard-size", "100", "--quiet"),
                _index_result,
            ),
        )
    }


class Campaign:
    """Runs cases that are not done yet, and keeps what came of each.

    Args:
        out: Folder of the campaign.
        seed: Decides what happens when.
        programs: Which programs.
    """

    def __init__(self, out: Path, seed: int, programs: Sequence[str]) -> None:
        self.out, self.seed = out, seed
        out.mkdir(parents=True, exist_ok=True)
        self._file = out / "cases.jsonl"
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self.cases: list[dict[str, Any]] = [json.loads(line) for line in lines]
        jobs = make_jobs(out / "inputs")
        self.jobs = {name: job for name, job in jobs.items() if name in programs}
        self._whole: dict[str, tuple[str, float]] = {}

    def case(self, fault: str, job: str, number: int, play: Callable[..., dict[str, Any]]) -> None:
        """Play a case, unless it is done."""
        key = {"fault": fault, "job": job, "number": number}
        if any(key.items() <= one.items() for one in self.cases):
            return
        folder = self.out / "work"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        rng = random.Random(f"{self.seed} {fault} {job} {number}")
        row = key | play(rng, folder)
        self.cases.append(row)
        with self._file.open("a") as opened:
            opened.write(json.dumps(row) + "\n")
        print(json.dumps(row)[:300], flush=True)

    def whole(self, job: Job) -> tuple[str, float]:
        """The result of an undisturbed run, and how long it took."""
        if job.name not in self._whole:
            folder = self.out / "whole" / job.name.replace(" ", "-")
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(folder.with_name(folder.name + ".partial"), ignore_errors=True)
            ended = job.attempt(folder)
            if ended.status:
                raise ValueError(f"{job.name} fails undisturbed: {ended.words}")
            self._whole[job.name] = job.result(folder), ended.seconds
        return self._whole[job.name]

    def kill(self, job: Job, kills: int, rng: random.Random, folder: Path) -> dict[str, Any]:
        """Kill a job several times at random moments, then let it end."""
        expected, seconds = self.whole(job)
        done = fresh = 0
        while done < kills:
            out = folder / str(fresh)
            ended = job.attempt(out, kill_after=rng.uniform(0, seconds))
            if ended.status is None:
                done += 1
            elif ended.status == 0:
                fresh += 1  # it was faster: begin again
            else:
                return judge(job, ended, folder, "", expected) | {"kills": done}
        ended = job.attempt(out)
        return judge(job, ended, out, _result(job, ended, out), expected) | {"kills": done}

    def full(self, job: Job, rng: random.Random, folder: Path) -> dict[str, Any]:
        """Run a job with a limit on the size of its files, then without."""
        expected, _ = self.whole(job)
        whole = self.out / "whole" / job.name.replace(" ", "-")
        sizes = [file.stat().st_size for file in whole.rglob("*") if file.is_file()]
        largest = int(64 * (max(sizes) / 64) ** rng.random())
        out = folder / "out"
        starved = job.attempt(out, largest=largest)
        if starved.status and not named(starved.words, folder):
            return {"good": False, "came": "no sound error", "words": starved.words[-2000:]}
        ended = job.attempt(out)
        found = judge(job, ended, out, _result(job, ended, out), expected)
        return found | {"bytes": largest, "starved": starved.words[-300:]}

    def corrupt(self, job: Job, rng: random.Random, folder: Path) -> dict[str, Any]:
        """Kill a job, damage one of its files, and go on with it."""
        expected, seconds = self.whole(job)
        out = folder / "out"
        files: list[Path] = []
        while not files:
            ended = job.attempt(out, kill_after=rng.uniform(0.3, 1) * seconds)
            found = (file for file in folder.rglob("*") if file.is_file() and file.stat().st_size)
            files = sorted(file for file in found if file.name != ".lock")
        file, how = rng.choice(files), rng.choice(("flip", "cut", "swap", "zeros", "remove"))
        content = bytearray(file.read_bytes())
        if how == "flip":
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif how == "cut":
            del content[rng.randrange(len(content)) :]
        elif how == "swap":
            content = bytearray(rng.choice(files).read_bytes())
        elif how == "zeros":
            content = bytearray(len(content))
        file.write_bytes(content)
        if how == "remove":
            file.unlink()
        ended = job.attempt(out)
        found_row = judge(job, ended, folder, _result(job, ended, out), expected)
        return found_row | {"file": str(file.relative_to(folder)), "how": how}

    def disturbed(
        self, job: Job, option: str, upstream: str, rng: random.Random, folder: Path
    ) -> dict[str, Any]:
        """Run a job with a server that fails at random; go on until it ends or is stuck."""
        expected = self.undisturbed_at(job, option, upstream)
        out, tries, words = folder / "out", 0, ""
        with forked(lambda ready: disturb(upstream, rng.random(), ready)) as address:
            url = f"http://127.0.0.1:{address}"
            while tries < 8:
                tries += 1
                ended = job.attempt(out, *option.format(url=url).split(" "))
                words = ended.words
                if ended.status and not named(words, folder, url):
                    break
                if ended.status == 0 and (job.name == "training" or not _lost(out)):
                    break  # an evaluation plays again what it has lost
        row = judge(job, ended, folder, _result(job, ended, out), expected, url)
        if row["came"] == "different" and (lost := _lost(out)):
            row = {"good": True, "came": "counted", "lost": lost}
        return row | {"tries": tries, "said": words[-200:] if tries > 1 else ""}

    def undisturbed_at(self, job: Job, option: str, upstream: str) -> str:
        """The result of a job with a server that does not fail."""
        name = f"{job.name} at {option}"
        if name not in self._whole:
            folder = self.out / "whole" / hashlib.sha256(name.encode()).hexdigest()[:8]
            shutil.rmtree(folder, ignore_errors=True)
            ended = job.attempt(folder, *option.format(url=upstream).split(" "))
            if ended.status:
                raise ValueError(f"{name} fails undisturbed: {ended.words}")
            self._whole[name] = job.result(folder), ended.seconds
        return self._whole[name][0]

    def serving(self, kills: int, rng: random.Random, folder: Path) -> dict[str, Any]:
        """Kill a server while a client searches; every answer is right, or an error."""
        world = World.generate(seed=3, people=40)
        direct = BM25Retriever.build(world.documents)
        direct.save(folder / "index")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        argv = ["--index", str(folder / "index"), "--port", str(port)]
        queries = [question.text for question in world.train_questions]
        expected = dict(zip(queries, direct.search(queries, 3), strict=True))
        counts, stop = Counter[str](), threading.Event()

        def search() -> None:
            with HTTPRetriever(
                f"http://127.0.0.1:{port}", timeout=5, attempts=8, max_wait=0.1, cache_size=0
            ) as client:
                while not stop.is_set():
                    asked = rng.sample(queries, 8)
                    try:
                        found = client.search(asked, 3)
                    except HTTPRetrievalError as error:
                        known = str(port) in str(error)
                        counts["errors" if known else "errors without address"] += 1
                        continue
                    right = all(expected[q] == f for q, f in zip(asked, found, strict=True))
                    counts["right" if right else "wrong"] += len(asked)

        thread = threading.Thread(target=search)
        thread.start()
        try:
            for _ in range(kills):
                before, child = counts["right"], _serve(argv)
                deadline = time.monotonic() + PATIENCE
                while counts["right"] == before and time.monotonic() < deadline:
                    select.select([], [], [], 0.01)  # until it answers
                select.select([], [], [], rng.uniform(0, 0.2))
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        finally:
            stop.set()
            thread.join()
        good = counts["right"] > 0 and not counts["wrong"] and not counts["errors without address"]
        return {"good": good, "came": "equal" if good else "different", "kills": kills, **counts}


def _serve(argv: Sequence[str]) -> int:
    """A server in a fork; its process id."""
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        try:
            serve.main(argv)
        finally:
            os._exit(1)
    return child


def _result(job: Job, ended: Ended, out: Path) -> str:
    return job.result(out) if ended.status == 0 else ""


def _lost(out: Path) -> float:
    """What the results say of rollouts whose searches failed: they are left out and counted."""
    if (out / "metrics.jsonl").exists():
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return sum(float(row.get("failed_rollouts", 0)) for row in rows)
    return float(json.loads((out / "results.json").read_text())["micro"]["failed"])


def judge(
    job: Job, ended: Ended, folder: Path, found: str, expected: str, *names: str
) -> dict[str, Any]:
    """Whether a case is good: the result is equal, or one line names what was at fault."""
    if ended.status == 0:
        good = found == expected
        return {"good": good, "came": "equal" if good else "different"}
    if named(ended.words, folder, *names):
        return {"good": True, "came": "error", "words": ended.words[-400:]}
    return {"good": False, "came": f"status {ended.status}", "words": ended.words[-2000:]}


def named(words: str, folder: Path, *names: str) -> bool:
    """Whether words end in one line that names a file below a folder, or another name."""
    lines = [line for line in words.splitlines() if line.strip()]
    known = (str(folder.absolute()), str(folder), *names)
    return (
        bool(lines)
        and re.match(r"error: |interrupted", lines[-1]) is not None
        and any(name in lines[-1] for name in known)
        and "Traceback" not in words
    )


@contextmanager
def forked(serve_it: Callable[[Callable[[int], None]], None]) -> Iterator[int]:
    """A server in a process of its own; the port that it says it has."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.close(reads)
        try:
            serve_it(lambda port: _tell(writes, port))
        finally:
            os._exit(0)
    os.close(writes)
    (port,) = struct.unpack("i", os.read(reads, 4))
    os.close(reads)
    try:
        yield port
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _tell(writes: int, port: int) -> None:
    os.write(writes, struct.pack("i", port))


def disturb(upstream: str, seed: float, ready: Callable[[int], None]) -> None:
    """A proxy that hands requests on, but fails a third of the time, and is down now and then."""
    import httpx2

    rng, lock = random.Random(seed), threading.Lock()
    down = [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.hand_on("GET", None)

        def do_POST(self) -> None:
            self.hand_on("POST", self.rfile.read(int(self.headers["content-length"])))

        def hand_on(self, method: str, body: bytes | None) -> None:
            with lock:
                if not down[0] and rng.random() < 0.02:
                    down[0] = 12
                fails = down[0] > 0 or rng.random() < 0.3
                fault = "close" if down[0] else rng.choice(PROXY_FAULTS)
                down[0] = max(0, down[0] - 1)
            if fails and fault in ("close", "reset"):
                self.close_connection = True
                if fault == "reset":
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return
            kept = {"content-type": "application/json"}
            answer = httpx2.request(
                method, upstream + self.path, content=body, headers=kept, timeout=60
            )
            status, content = answer.status_code, answer.content
            if fails:
                status = {"status": rng.choice((500, 503, 429))}.get(fault, status)
                content = {
                    "garbage": rng.randbytes(100),
                    "half": content[: len(content) // 2],
                    "shape": b'{"result": "nothing"}',
                }.get(fault, content)
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            if fails and fault == "slow":
                for byte in content[:20]:
                    self.wfile.write(bytes([byte]))
                    select.select([], [], [], 0.005)
                content = content[20:]
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *arguments: Any) -> None:
            """Say nothing of clients that have gone."""

    server = Server(("127.0.0.1", 0), Handler)
    ready(server.server_address[1])
    server.serve_forever()


def retrieve(ready: Callable[[int], None]) -> None:
    """A sound retrieval server of the embedded world."""
    from igsearch_env.data.corpus import load_corpus
    from igsearch_env.retrieval.server import RetrievalService
    from igsearch_env.retrieval.server import serve as serve_http
    from igsearch_env.retrieval.server_limits import ServerLimits

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    listener = socket.create_server(("127.0.0.1", 0))
    retriever = BM25Retriever.build(load_corpus("world"))
    ready(listener.getsockname()[1])
    serve_http(RetrievalService(ServerLimits()), lambda: retriever, listener)


def complete(ready: Callable[[int], None]) -> None:
    """A sound endpoint: it searches for the question, and then answers with the first title."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply({"data": [{"id": "a-model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            prompt = body["prompt"]
            question = prompt.rpartition("uestion")[2].splitlines()[0].strip(": ")
            titles = re.findall(r'"([^"\n]+)"', prompt)
            searched = prompt.count("<information>") > 1 or len(titles) > 2
            text = f"<answer> {titles[-1]} " if searched and titles else f"<search> {question} "
            self.reply({"choices": [{"text": text, "finish_reason": "stop"}]})

        def reply(self, content: object) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ready(server.server_address[1])
    server.serve_forever()


def main(argv: Sequence[str] | None = None) -> None:
    """Play all cases that are not done, and write the table.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    programs = arguments.program or PROGRAMS
    if {"training", "evaluation"} & set(programs):
        import torch

        import scripts.train  # noqa: F401  (forks have it)
        import trainers.local.grpo  # noqa: F401

        torch.set_num_threads(1)
    campaign = Campaign(arguments.out, arguments.seed, programs)
    each = min(3, arguments.kills)
    for number in range(-(-arguments.kills // each)):
        for job in campaign.jobs.values():
            campaign.case(
                "killed",
                job.name,
                number,
                lambda rng, to, job=job: campaign.kill(job, each, rng, to),
            )
    if "serving" in programs:
        campaign.case(
            "killed", "serving", 0, lambda rng, to: campaign.serving(arguments.kills, rng, to)
        )
    for number in range(arguments.others):
        for job in campaign.jobs.values():
            campaign.case(
                "full disk", job.name, number, lambda *at, job=job: campaign.full(job, *at)
            )
            campaign.case(
                "damaged file", job.name, number, lambda *at, job=job: campaign.corrupt(job, *at)
            )
    with forked(retrieve) as retriever, forked(complete) as endpoint:
        searches = f"http://127.0.0.1:{retriever}"
        completes = f"http://127.0.0.1:{endpoint}"
        for number in range(arguments.others):
            for name, option, upstream in (
                ("training", "--set=environment.retriever={url}", searches),
                ("evaluation", "--index {url}", searches),
                ("evaluation", "--agent {url}/v1", completes),
            ):
                if name not in campaign.jobs:
                    continue
                fault = "endpoint disturbed" if "agent" in option else "retriever disturbed"
                job = campaign.jobs[name]
                campaign.case(
                    fault,
                    name,
                    number,
                    lambda *at, job=job, option=option, upstream=upstream: campaign.disturbed(
                        job, option, upstream, *at
                    ),
                )
    rows = table(campaign.cases)
    text = markdown(rows)
    print(text)
    if arguments.report:
        (arguments.report / "faults.json").write_text(json.dumps(rows, indent=2) + "\n")
        (arguments.report / "faults.md").write_text(text)
    if any(row["not good"] for row in rows):
        sys.exit(1)


def table(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each fault and job."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for case in cases:
        row = rows.setdefault(
            (case["fault"], case["job"]),
            {"fault": case["fault"], "program": case["job"], "cases": 0, "kills": 0}
            | {"equal": 0, "counted": 0, "error": 0, "not good": 0},
        )
        row["cases"] += 1
        row["kills"] += case.get("kills", 0)
        row["not good" if not case["good"] else case["came"]] += 1
    return list(rows.values())


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The page of the table."""
    lines = [
        "# Faults",
        "",
        "`python -m scripts.campaigns.faults --out runs/faults --report docs/results` kills and",
        "disturbs the programs at random, goes on with `--resume`, and compares what is left with",
        "an undisturbed run: final weights and metrics of training, `results.json` and",
        "`episodes.jsonl` of an evaluation, every byte of an index, every answer of a server.",
        "",
        "A case is *equal*, byte for byte; or it ends with an *error*, one line that names the",
        "file or the address at fault. Where a search of training fails for good, its rollout is",
        "left out, and *counted* in `failed_rollouts`. Anything else is *not good*. The rows hold",
        "the cases that have been played; the same command plays those that are left.",
        "",
        "| fault | program | cases | kills | equal | counted | error | not good |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {row['fault']} | {row['program']} | {row['cases']} | {row['kills'] or ''} "
            f"| {row['equal']} | {row['counted']} | {row['error']} | {row['not good']} |"
            for row in rows
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
