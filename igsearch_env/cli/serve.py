"""Serve a retriever over HTTP.

igsearch serve --index indexes/wiki
igsearch serve --index indexes/e5 --device cuda --vector-device cuda
igsearch serve --index indexes/e5_ivf --search nprobe=64
igsearch serve --corpus data/wiki.jsonl --port 8001
igsearch serve --index indexes/wiki --workers 4
igsearch serve --index indexes/wiki --mcp
igsearch serve --index indexes/wiki --mcp stdio

One port speaks the dialects of Search-R1 and verl, of SkyRL and verl-agent, and of rLLM and RAGEN.
A bare corpus is indexed with BM25 in memory. /health answers at once, /ready when the index is
loaded, /metrics in Prometheus' text format. After kill -HUP the index is loaded anew; the old one
answers until the new one is there. --mcp adds /mcp, where agents find the tools search
and get_document by the Model Context Protocol; with stdio the process speaks it on its own input
and output.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence, Sized
from contextlib import redirect_stdout
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from igsearch_env.cli.program import Parser, add_import, add_settings, positive, say
from igsearch_env.plugins import import_plugin
from igsearch_env.retrieval.base import Retriever
from igsearch_env.retrieval.encoder import PRECISIONS
from igsearch_env.retrieval.open import DENSE_OPTIONS, RETRIEVERS, index_folder, open_retriever
from igsearch_env.retrieval.search_processes import SearchProcesses
from igsearch_env.retrieval.server_limits import ServerLimits
from igsearch_env.retrieval.wire import DEFAULT_TOP_K


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until the process is asked to end.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    from igsearch_env.retrieval.server import RetrievalService, serve

    index = arguments.index or ""
    if (
        index
        and index.partition(":")[0] not in RETRIEVERS
        and not Path(index_folder(index)).is_dir()
    ):
        raise ValueError(f"there is no index {index}; build it with igsearch index")
    dense = {name: getattr(arguments, name) for name in DENSE_OPTIONS}
    dense = {name: value for name, value in dense.items() if value is not None}
    if dense and not arguments.index:
        flags = ", ".join("--" + name.replace("_", "-") for name in dense)
        raise ValueError(f"{flags}: for a dense --index; a bare --corpus is indexed with BM25")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    names = (field.name for field in fields(ServerLimits))
    limits = ServerLimits(**{n: getattr(arguments, n) for n in names if hasattr(arguments, n)})
    service = RetrievalService(limits, arguments.top_k, mcp=arguments.mcp is not None)
    load = partial(_load, index or arguments.corpus, dense, getattr(arguments, "import", []))
    if arguments.workers > 1:
        if arguments.mcp:
            raise ValueError("--mcp reads documents in the server itself: leave --workers out")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = max(1, (cores or 1) // arguments.workers)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # of each process
    if arguments.mcp:
        # Here, so that a missing package is named before anything is loaded or served.
        from igsearch_env.retrieval.mcp_server import serve_stdio
    if arguments.mcp == "stdio":
        with redirect_stdout(sys.stderr):  # what agents read is the protocol alone
            service.open(_announced(load, workers=1))
        serve_stdio(service)
        return
    # The thread that searches wants the interpreter back after each of many short calls; while the
    # answers of the batch before are written, it would wait up to 5 ms for it each time.
    sys.setswitchinterval(0.0005)
    listener = _listen(arguments.host, arguments.port)
    host, port = listener.getsockname()[:2]
    say(f"serving http://{host}:{port}/retrieve; /ready answers 200 when the index is loaded")
    serve(service, partial(_announced, load, arguments.workers), listener)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise ValueError(f"port {port} of {host} is taken; --port 0 picks a free one") from error


def _load(name: str, dense: dict[str, Any], imports: Sequence[str]) -> Retriever:
    for plugin in imports:  # in a process of its own nothing is registered yet
        import_plugin(plugin)
    return open_retriever(name, **dense)


def _announced(load: Callable[[], Retriever], workers: int) -> Retriever | SearchProcesses:
    start = time.perf_counter()
    loaded = load() if workers == 1 else SearchProcesses(load, workers)
    size = len(loaded) if isinstance(loaded, Sized) else getattr(loaded, "size", None)
    what = "the retriever" if size is None else f"{size:,} documents"
    say(f"ready: {what} after {time.perf_counter() - start:.1f} s")
    return loaded


def _parser() -> Parser:
    parser = Parser("igsearch serve", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--index", help="folder of a saved index, or a registered retriever")
    what.add_argument("--corpus", help="file or name of a corpus, as igsearch index takes it")
    add_import(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="0.0.0.0 serves other machines too")
    add("--port", type=int, default=8000, help="0 picks a free one (default: %(default)s)")
    add(
        "--top-k",
        type=positive,
        default=DEFAULT_TOP_K,
        help="documents for a request that does not say how many (default: %(default)s)",
    )
    add(
        "--workers",
        type=positive,
        default=1,
        help="processes that search, each in the same mapped index (default: %(default)s)",
    )
    add(
        "--mcp",
        nargs="?",
        const="http",
        choices=("http", "stdio"),
        help="tools for agents: at /mcp beside the other addresses (http, the default), or on "
        "input and output, without a port (stdio)",
    )
    dense = parser.add_argument_group("a dense index")
    dense.add_argument("--model", help="where its encoder is now")
    dense.add_argument("--search", help="how thoroughly it is searched, such as nprobe=64")
    dense.add_argument("--device", help="where its encoder runs, such as cuda (default: cpu)")
    dense.add_argument(
        "--vector-device",
        help="where its vectors are searched, such as cuda or cuda:0,cuda:1 (default: in main "
        "memory)",
    )
    dense.add_argument("--precision", choices=PRECISIONS, help="its encoder's (default: float32)")
    add_settings(parser.add_argument_group("limits"), ServerLimits)
    return parser
