"""The runs of the credit laboratory: each is made once, kept, and never forgotten."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from igsearch_env.cli.console import console, progress_bar
from igsearch_env.files import write_json, write_whole
from igsearch_env.threads import free_cores
from scripts.laboratory.study import Study, Trial, differences, is_result_of
from scripts.laboratory.workers import end_with_parent

Result = dict[str, Any]


class ResultStore:
    """A folder of runs, one file each, and the record of all that were ever made.

    Args:
        folder: Where runs are kept, under ``runs/STAGE/NAME.json``.
        record: The record: a file with a JSON line for each run, which is only ever added to.
    """

    def __init__(self, folder: Path, record: Path) -> None:
        self.folder, self._record = folder, record
        self._known = self._read_record()

    def _read_record(self) -> list[Result]:
        text = self._record.read_text(encoding="utf-8") if self._record.is_file() else ""
        return [json.loads(line) for line in text.split("\n") if line]

    def run(self, study: Study, trials: Sequence[Trial], workers: int | None) -> list[Result]:
        """The results of trials, in their order; those that are missing are run.

        Each run has a process of its own, since one that made several would hold more memory with
        each, and joins the record as it ends. Where a run fails, those under way end and are kept,
        and no others begin.

        Args:
            study: The study.
            trials: What is to be run.
            workers: Runs at a time; None for as many as there are free cores.

        Raises:
            ValueError: If a run on a fresh seed was made with other settings, or a process was
                killed.
        """
        paths = {trial: self._path(trial) for trial in trials}
        from scripts.laboratory.trial import UNFINISHED, run_and_keep  # loads torch

        missing = [trial for trial in trials if not self.has(study, trial)]
        ended = set(paths.values()) - {paths[trial] for trial in missing}
        for rest in self.folder.glob(f"runs/*/*{UNFINISHED}"):  # of a kill just before its removal
            if rest.with_name(rest.name.removesuffix(UNFINISHED) + ".json") in ended:
                shutil.rmtree(rest, ignore_errors=True)  # another process may be removing it
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["scripts.laboratory.trial"])
        most = workers or free_cores()  # counted once: later the runs themselves keep cores busy
        waiting = missing[::-1]
        running: dict[Future[None], tuple[Trial, ProcessPoolExecutor]] = {}
        failed: dict[Trial, BaseException] = {}
        self.record()  # runs that a killed program has kept; a file that is closed is told now
        with progress_bar() as bar, ExitStack() as processes:
            done = len(trials) - len(missing)
            task = bar.add_task("runs", total=len(trials), completed=done, note="")
            while waiting or running:
                while waiting and len(running) < most:
                    trial = waiting.pop()
                    process = processes.enter_context(
                        ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent)
                    )
                    future = process.submit(run_and_keep, study, trial, paths[trial])
                    running[future] = trial, process
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    trial, process = running.pop(future)
                    process.shutdown()
                    if error := future.exception():
                        failed[trial] = error
                        waiting.clear()
                        then = "; those under way end first" if running else ""
                        console.print(f"{trial.name} failed{then}")
                        continue
                    bar.update(task, advance=1, note=trial.name)
                    self.record()
        for trial, error in failed.items():  # the first; the names of all have been printed
            if isinstance(error, BrokenProcessPool):
                raise ValueError(
                    f"the process of {trial.name} was killed: out of memory? What has ended is "
                    "kept; give the command again, with fewer --workers if memory was short, and "
                    "the rest goes on from its last quarter"
                ) from error
            raise error
        return [_read(path) for path in paths.values()]

    def record(self) -> list[Result]:
        """Every run that was ever made; those that are kept here join the record."""
        kept = [_read(path) for path in sorted(self.folder.glob("runs/*/*.json"))]
        self._known = self._read_record()  # another program may have added runs of its own
        lines = dict.fromkeys(json.dumps(run, sort_keys=True) for run in [*self._known, *kept])
        write_whole(self._record, "".join(line + "\n" for line in lines))
        return [json.loads(line) for line in lines]

    def _path(self, trial: Trial) -> Path:
        return self.folder / "runs" / trial.stage / f"{trial.name}.json"

    def has(self, study: Study, trial: Trial) -> bool:
        """Whether a trial has been run; a development run with other settings does not count.

        Raises:
            ValueError: If a run on a fresh seed was made with other settings.
        """
        path = self._path(trial)
        if path.is_file():
            if is_result_of(_read(path), study, trial):
                return True
            if trial.stage == "compare":
                raise ValueError(
                    f"{path} was run with other settings or another checkpoint; start again in "
                    "another folder"
                )
        for run in self._known:  # a setting that was tried may be the study's own by now
            same = replace(trial_of(run), changes=trial.changes) == trial
            if same and is_result_of(run, study, trial):
                write_json(path, run)
                return True
        return False

    def check_same_start(self, study: Study) -> None:
        """Refuse to go on with a record whose fresh seeds have another starting policy or data.

        Raises:
            ValueError: If, for a regime and a seed, it has such runs and none as the study is now.
        """
        found: defaultdict[tuple[str, int], list[list[str]]] = defaultdict(list)
        for run in self._known:
            trial = trial_of(run)
            known = trial.regime in study.regimes and trial.arm in study.arms
            if known and trial.stage == "compare":
                found[trial.regime, trial.seed].append(differences(run, study, trial))
        for (regime, seed), changes in found.items():
            others = [changed for changed in changes if {*changed} <= {"checkpoint", "data"}]
            if others and [] not in others:
                raise ValueError(
                    f"the record {self._record} has runs of {regime!r} on seed {seed} with other "
                    f"{' and '.join(others[0])}, and runs of both cannot be compared; put back "
                    "what they were made with, or begin a record of its own with another --report"
                )


def trial_of(run: Mapping[str, Any]) -> Trial:
    """What a run is of."""
    return Trial(**run["trial"], changes=tuple(run["changes"]))


def _read(path: Path) -> Result:
    run: Result = json.loads(path.read_text(encoding="utf-8"))
    return run
