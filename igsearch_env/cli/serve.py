"""Serve a retriever over HTTP, or check a server that somebody else wrote.

igsearch serve --index indexes/wiki
igsearch serve --index indexes/e5 --device cuda --search nprobe=64
igsearch serve --corpus data/wiki.jsonl --port 8001
igsearch serve --check http://127.0.0.1:8000/retrieve --wait 60

One port speaks the dialects of Search-R1 and verl, of SkyRL and verl-agent, and of rLLM and RAGEN.
A bare corpus is indexed with BM25 in memory. /health answers at once, /ready when the index is
loaded, /metrics in Prometheus' text format.
"""

from __future__ import annotations

import argparse
import errno
import logging
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from igsearch_env.cli.console import console, positive, run
from igsearch_env.data.corpus import load_corpus
from igsearch_env.retrieval.base import IndexedRetriever
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.conformance import check_server, spoken_dialects
from igsearch_env.retrieval.encoder import PRECISIONS
from igsearch_env.retrieval.saved_index import load_retriever
from igsearch_env.retrieval.server import RetrievalService, ServerLimits, serve
from igsearch_env.retrieval.wire import DEFAULT_TOP_K

DENSE_OPTIONS = ("model", "search", "device", "precision")  # of load_retriever
COLOURS = {"good": "green", "note": "yellow", "wrong": "red", "not spoken": "dim"}


def main() -> None:
    """Serve, or check."""
    arguments = _parser().parse_args()
    if arguments.check:
        sys.exit(_check(arguments.check, arguments.query, arguments.wait))
    if arguments.index and not Path(arguments.index).is_dir():
        raise ValueError(f"there is no index {arguments.index}; build it with igsearch index")
    dense = {name: getattr(arguments, name) for name in DENSE_OPTIONS}
    dense = {name: value for name, value in dense.items() if value is not None}
    if dense and not arguments.index:
        flags = ", ".join(f"--{name}" for name in dense)
        raise ValueError(f"{flags}: for a dense --index; a bare --corpus is indexed with BM25")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    limits = ServerLimits(
        queries=arguments.max_queries,
        characters=arguments.max_characters,
        k=arguments.max_k,
        body_bytes=arguments.max_bytes,
        batch=arguments.batch,
    )
    service = RetrievalService(limits, arguments.top_k)
    # The thread that searches wants the interpreter back after each of many short calls; while the
    # answers of the batch before are written, it would wait up to 5 ms for it each time.
    sys.setswitchinterval(0.0005)
    listener = _listen(arguments.host, arguments.port)
    host, port = listener.getsockname()[:2]
    print(f"serving http://{host}:{port}/retrieve; /ready tells when the index is loaded")
    sys.stdout.flush()
    load = partial(_load, arguments.index, arguments.corpus, dense)
    serve(service, load, listener)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise ValueError(f"port {port} of {host} is taken; --port 0 picks a free one") from error


def _load(index: str | None, corpus: str, dense: dict[str, Any]) -> IndexedRetriever:
    start = time.perf_counter()
    retriever: IndexedRetriever = (
        load_retriever(index, **dense) if index else BM25Retriever.build(load_corpus(corpus))
    )
    seconds = time.perf_counter() - start
    print(f"ready: {len(retriever):,} passages after {seconds:.1f} s", flush=True)
    return retriever


def _check(url: str, query: str, wait: float) -> int:
    findings = check_server(url, query, wait=wait)
    table = Table(title=url)
    for heading in ("", "verdict", "what was found"):
        table.add_column(heading)
    for finding in findings:
        verdict = Text(finding.verdict, COLOURS[finding.verdict])
        table.add_row(finding.subject, verdict, Text(finding.text))
    console.print(table)
    spoken = spoken_dialects(findings)
    if not spoken:
        console.print("no dialect is spoken without an error")
        return 1
    console.print(f"HTTPRetriever({url!r}, dialect={spoken[0]!r}) searches with it", markup=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--index", help="folder of a saved index")
    what.add_argument("--corpus", help="file or name of a corpus, as igsearch index takes it")
    what.add_argument("--check", metavar="URL", help="tell which dialects a server speaks, and end")
    parser.add_argument("--query", default="capital of Peru", help="what --check searches for")
    parser.add_argument(
        "--wait", type=float, default=0.0, help="seconds that --check waits for it to get ready"
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves other machines too")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one")
    parser.add_argument("--model", help="where the encoder of a dense --index is now")
    parser.add_argument(
        "--search", help="how thoroughly a dense --index is searched, such as nprobe=64"
    )
    parser.add_argument("--device", help="where its encoder runs, such as cuda (default: cpu)")
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="its encoder's for queries (default: float32)"
    )
    default = ServerLimits()
    for flag, value, text in (
        ("--top-k", DEFAULT_TOP_K, "documents for a request that does not tell"),
        ("--batch", default.batch, "queries of a micro-batch; 1 for none"),
        ("--max-queries", default.queries, "queries per request"),
        ("--max-characters", default.characters, "characters per query"),
        ("--max-k", default.k, "documents per query"),
        ("--max-bytes", default.body_bytes, "size of a request"),
    ):
        parser.add_argument(flag, type=positive, default=value, help=f"{text} (default: {value})")
    return parser


if __name__ == "__main__":
    run(main)
