"""The runs of the credit laboratory: each is made once, kept, and never forgotten."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from igsearch_env.cli.console import progress_bar
from igsearch_env.files import write_json, write_whole
from igsearch_env.threads import free_cores
from scripts.laboratory.protocol import Job, Protocol, is_run_of
from scripts.laboratory.runs import run_and_keep

Run = dict[str, Any]


class RunStore:
    """A folder of runs, one file each, and the record of all that were ever made.

    Args:
        folder: Where runs are kept, under ``runs/STAGE/NAME.json``.
        record: The record: a file with a JSON line for each run, which is only ever added to.
    """

    def __init__(self, folder: Path, record: Path) -> None:
        self.folder, self._record = folder, record
        lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
        self._known = [json.loads(line) for line in lines]

    def run(self, protocol: Protocol, jobs: Sequence[Job], workers: int | None) -> list[Run]:
        """The results of jobs, in their order; those that are missing are run.

        Args:
            protocol: The protocol.
            jobs: What is to be run.
            workers: Processes; None for as many as there are free cores.

        Raises:
            ValueError: If a run on a fresh seed was made with other settings.
        """
        paths = {job: self.folder / "runs" / job.stage / f"{job.name}.json" for job in jobs}
        missing = [job for job, path in paths.items() if not self._has(protocol, job, path)]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["scripts.laboratory.runs"])
        with (
            ProcessPoolExecutor(
                workers or free_cores(), mp_context=context, initializer=end_with_parent
            ) as pool,
            progress_bar() as bar,
        ):
            done = len(jobs) - len(missing)
            task = bar.add_task("runs", total=len(jobs), completed=done, note="")
            futures = {pool.submit(run_and_keep, protocol, job, paths[job]): job for job in missing}
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.update(task, advance=1, note=futures[future].name)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        return [_read(path) for path in paths.values()]

    def record(self) -> list[Run]:
        """Every run that was ever made; those that are kept here join the record."""
        kept = [_read(path) for path in sorted(self.folder.glob("runs/*/*.json"))]
        lines = dict.fromkeys(json.dumps(run, sort_keys=True) for run in [*self._known, *kept])
        write_whole(self._record, "".join(line + "\n" for line in lines))
        return [json.loads(line) for line in lines]

    def _has(self, protocol: Protocol, job: Job, path: Path) -> bool:
        """Whether the job has been run; a development run with other settings does not count."""
        if path.is_file():
            if is_run_of(_read(path), protocol, job):
                return True
            if job.stage == "compare":
                raise ValueError(
                    f"{path} was run with other settings or another checkpoint; start again in "
                    "another folder"
                )
        for run in self._known:  # a setting that was tried may be the protocol's own by now
            same = replace(job_of(run), changes=job.changes) == job
            if same and is_run_of(run, protocol, job):
                write_json(path, run)
                return True
        return False


def end_with_parent() -> None:
    """Let this process not outlive the one that asked for it, however that one ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # the main process has none, and nothing to wait for

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def job_of(run: Mapping[str, Any]) -> Job:
    """What a run is of."""
    return Job(**run["job"], changes=tuple(run["changes"]))


def _read(path: Path) -> Run:
    run: Run = json.loads(path.read_text(encoding="utf-8"))
    return run
