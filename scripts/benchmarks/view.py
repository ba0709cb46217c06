"""How long the page of many rollouts takes to open in headless Chromium.

python -m scripts.benchmarks.view --out runs/bench_view

Rollouts of the embedded world: three searches each, three passages of 100 words per search and
per counterfactual, three counterfactuals per search.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from igsearch_env.cli.console import console
from igsearch_env.cli.program import run
from igsearch_env.completion import Completion
from igsearch_env.data.world import World
from igsearch_env.episode import Document, Episode
from igsearch_env.files import write_json, write_whole
from igsearch_env.record import episode_record
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.rollout import collect
from igsearch_env.settings import make_engine
from igsearch_env.viewer.data import EPISODES
from igsearch_env.viewer.page import write_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SIZES, QUICK_SIZES = (500, 2000, 5000), (100,)
SEARCHES, WORDS = 3, 100
REPEATS = 5
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Measure each size, print the table and write results.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="one small size, to see that it works")
    arguments = parser.parse_args()
    sizes = QUICK_SIZES if arguments.quick else SIZES
    table = Table(title=f"opening the page, median of {REPEATS}")
    for name in ("rollouts", "MB", "seconds to write", "to open", "to open a rollout"):
        table.add_column(name, justify="right")
    with chromium() as browser:
        rows = [measure(browser, arguments.out, size) for size in sizes]
    write_json(arguments.out / "results.json", {"rows": rows})
    for row in rows:
        values = (row[name] for name in ("megabytes", "write", "open", "open_rollout"))
        table.add_row(f"{row['rollouts']:,}", *(f"{value:.2f}" for value in values))
    console.print(table)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium, as the system has it.

    Raises:
        ImportError: If there is no playwright to drive it.
        ValueError: If there is none.
    """
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    if path is None:
        raise ValueError(f"found no {', '.join(BROWSERS)}; install one (apt-get install chromium)")
    with sync_playwright() as playwright:
        # Its sandbox does not start for root, and nothing but our own file is opened.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def find_chromium() -> str | None:
    """Where Chromium lies on this machine, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def measure(browser: Browser, out: Path, size: int) -> dict[str, Any]:
    """Write the page of some rollouts and open it a few times; times in seconds."""
    folder = out / f"rollouts-{size}"
    write_whole(folder / EPISODES, "".join(json.dumps(record) + "\n" for record in records(size)))
    started = time.perf_counter()
    path, _ = write_page(folder)
    written = time.perf_counter() - started
    opened, rollout = [], []
    for _ in range(REPEATS):
        page = browser.new_page()
        started = time.perf_counter()
        page.goto(path.resolve().as_uri())
        page.wait_for_selector(".row")
        shown = time.perf_counter()
        page.click(".row")
        page.wait_for_selector(".rollout")
        opened.append(shown - started)
        rollout.append(time.perf_counter() - shown)
        page.close()
    return {
        "rollouts": size,
        "megabytes": path.stat().st_size / 1e6,
        "write": written,
        "open": statistics.median(opened),
        "open_each": opened,
        "open_rollout": statistics.median(rollout),
    }


class Wanderer:
    """Searches for passages picked at random, then answers."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._documents = documents
        self._rng = random.Random(0)

    def act(self, episodes: Sequence[Episode]) -> list[Completion]:
        """The next turn of each episode."""
        return [self._turn(len(episode.searches)) for episode in episodes]

    def _turn(self, searches: int) -> Completion:
        title = self._rng.choice(self._documents).title
        tag = "search" if searches < SEARCHES else "answer"
        return Completion(f"<think> Let me see. </think> <{tag}> {title} </{tag}>")


def records(size: int) -> list[dict[str, Any]]:
    """The records of rollouts as long as those over Wikipedia are."""
    world = World.generate(0, people=min(1200, max(40, size)))
    documents = lengthened(world.documents)
    questions = world.train_questions[:size]
    engine = make_engine(questions, BM25Retriever.build(documents))
    return [episode_record(one) for one in collect(engine, Wanderer(documents), questions)]


def lengthened(documents: Sequence[Document]) -> list[Document]:
    """Passages that go on, up to :data:`WORDS` words, with words of others that are no names."""
    rng = random.Random(0)
    words = [w for document in documents for w in document.text.split() if w.islower()]
    return [
        replace(d, text=" ".join([*d.text.split(), *rng.sample(words, WORDS)][:WORDS]))
        for d in documents
    ]


if __name__ == "__main__":
    run(main)
