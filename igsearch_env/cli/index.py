r"""Build a search index of a corpus: BM25, dense, or of indexes that are there.

igsearch index --corpus wiki.jsonl --out indexes/bm25
igsearch index --corpus wiki.jsonl --out indexes/e5 --model intfloat/e5-base-v2 \
    --factory IVF16384,Flat
igsearch index --fuse indexes/bm25 indexes/e5 --out indexes/hybrid
igsearch index --from-faiss e5_Flat.index --corpus wiki-18.jsonl --out indexes/e5 \
    --model intfloat/e5-base-v2
igsearch index --rerank indexes/bm25 --model cross-encoder/ms-marco-MiniLM-L6-v2 \
    --out indexes/reranked
igsearch index --rerank indexes/bm25 --model titles --depth 100 --out indexes/titles

The corpus is read and worked on in shards. After a kill, the same command with --resume goes on
with the shard that it was at, and the index comes out the same.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from igsearch_env.cli.program import Parser, add_import, add_settings, folder, on_interrupt, say
from igsearch_env.data.corpus import read_corpus
from igsearch_env.files import names_file
from igsearch_env.retrieval.adopting import adopt_index
from igsearch_env.retrieval.building import IndexBuild, Recipe
from igsearch_env.retrieval.encoder import EncoderSettings, SentenceEncoder
from igsearch_env.retrieval.index_directory import check_replaceable
from igsearch_env.retrieval.open import open_retriever, save_fusion, save_reranking
from igsearch_env.retrieval.recipes import BM25Recipe, DenseRecipe
from igsearch_env.retrieval.rerank import TITLES
from igsearch_env.retrieval.vector_index import import_faiss
from igsearch_env.threads import set_threads

if TYPE_CHECKING:
    from rich.progress import TaskID

    from igsearch_env.cli.console import Bars


@dataclass(frozen=True)
class DenseOptions:
    """How documents become vectors, and what index those are put into.

    Args:
        precision: Of the encoder's weights.
        batch_size: Texts per pass.
        device: Where the encoder runs (default: a GPU if there is one).
        factory: FAISS factory string; Flat is exact.
        search: Such as nprobe=64 or efSearch=256 (default: by the factory string).
        threads: Of the encoder and of FAISS (default: the free cores).
    """

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = 32
    device: str | None = None
    factory: str = "Flat"
    search: str | None = None
    threads: int | None = None


@dataclass(frozen=True)
class FusionOptions:
    """How rankings are fused, or ranked anew.

    Args:
        constant: How little the first ranks stand out in a fusion.
        depth: Documents of each index that are fused (default: 100), or that are ranked anew
            (default: 20).
    """

    constant: int = 60
    depth: int | None = None


KINDS = {
    "a dense index (--model)": {
        *(field.name for part in (EncoderSettings, DenseOptions) for field in fields(part)),
        *("resume", "shard_size"),
    },
    "BM25 (there is no --model)": {"k1", "b", "title_weight", "resume", "shard_size"},
    "an adopted index (--from-faiss)": {
        *(field.name for field in fields(EncoderSettings)),
        *("device", "search", "threads"),
    },
    "a fusion (--fuse)": {"constant", "depth"},
    "a reranking (--rerank)": {"model", "max_length", "depth", "add"},
}


class Stages:
    """Shows the stages of a build, one bar each.

    Args:
        bar: What is drawn.
    """

    def __init__(self, bar: Bars) -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """Begin a stage."""
        self._task = self._bar.add_task(name, total=total, completed=done)

    def advance(self, amount: int) -> None:
        """Go on by so much."""
        if self._task is not None:
            self._bar.advance(self._task, amount)


def main(argv: Sequence[str] | None = None) -> None:
    """Build the index.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    args = _parser().parse_args(argv)
    from igsearch_env.cli.console import progress_bar

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    started = time.perf_counter()
    chosen = _chosen(args)
    if args.fuse:
        save_fusion(args.out, args.fuse, **chosen)
        count = len(open_retriever(args.out))
    elif args.from_faiss:
        count = _adopt(args, chosen)
    elif args.rerank:
        if "model" not in chosen:
            raise ValueError(
                "--rerank needs a --model; give the name or folder of a cross-encoder "
                f"or of a causal language model, or {TITLES!r}, which needs none"
            )
        if chosen["model"] == TITLES and "max_length" in chosen:
            raise ValueError(f"--model {TITLES} reads no tokens, so it has no --max-length")
        if chosen["model"] == TITLES and "add" in chosen:
            raise ValueError(f"--model {TITLES} adds to the scores of the first stage anyway")
        save_reranking(args.out, args.rerank, **chosen)
        count = len(open_retriever(args.rerank))
    else:
        check_replaceable(args.out)  # before a model is loaded
        advice = "go on with the same command and --resume"
        with progress_bar(args.quiet) as bar, on_interrupt(advice):
            sharding = {"shard_size": chosen.pop("shard_size")} if "shard_size" in chosen else {}
            resume = chosen.pop("resume", False)
            documents = partial(read_corpus, args.corpus)
            build = IndexBuild(documents, args.out, _recipe(chosen), Stages(bar), **sharding)
            with names_file(build.out):
                count = build.run(resume)
    seconds = time.perf_counter() - started
    say(f"{args.out}: {count:,} documents, {seconds:.1f} s")


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given; all must be of use to the kind of index."""
    dense, bm25, adopted, fusion, reranking = KINDS
    if args.from_faiss and (not args.corpus or "model" not in args):
        raise ValueError(
            "--from-faiss needs --corpus, the documents of the vectors in order, and --model, "
            "which made them"
        )
    kind = dense if "model" in args else bm25
    kind = fusion if args.fuse else reranking if args.rerank else kind
    kind = adopted if args.from_faiss else kind
    known = set.union(*KINDS.values())
    chosen = {name: value for name, value in vars(args).items() if name in known}
    if strange := sorted(chosen.keys() - KINDS[kind]):
        options = ", ".join("--" + name.replace("_", "-") for name in strange)
        raise ValueError(f"{kind} has no {options}")
    return chosen


def _adopt(args: argparse.Namespace, chosen: dict[str, Any]) -> int:
    from igsearch_env.cli.console import progress_bar

    import_faiss().omp_set_num_threads(set_threads(chosen.pop("threads", 0)))
    others = {name: chosen.pop(name) for name in ("device", "search") if name in chosen}
    with progress_bar(args.quiet) as bar, names_file(args.out):
        return adopt_index(
            args.from_faiss,
            args.corpus,
            args.out,
            EncoderSettings(**chosen),
            Stages(bar),
            **others,
        )


def _recipe(chosen: dict[str, Any]) -> Recipe:
    if "model" not in chosen:
        return BM25Recipe(**chosen)
    import_faiss().omp_set_num_threads(set_threads(chosen.pop("threads", 0)))
    model = chosen.pop("model")
    config = {name: chosen.pop(name) for name in ("preset", "max_length") if name in chosen}
    search = {name: chosen.pop(name) for name in ("factory", "search") if name in chosen}
    return DenseRecipe(SentenceEncoder(EncoderSettings(model, **config), **chosen), **search)


def _parser() -> Parser:
    parser = Parser("igsearch index", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--corpus",
        help="a .jsonl, .jsonl.gz or .parquet file with id and contents (or title and text), "
        "hf:REPO[:CONFIG][:SPLIT], or a built-in name",
    )
    source.add_argument(
        "--fuse", type=folder, nargs="+", metavar="INDEX", help="indexes of one corpus to fuse"
    )
    source.add_argument(
        "--rerank",
        type=folder,
        metavar="INDEX",
        help="index whose best --model ranks anew; --model titles needs no model",
    )
    parser.add_argument(
        "--from-faiss",
        type=Path,
        metavar="FILE",
        help="an index that FAISS has written of the --corpus, with the --model; it stays where it "
        "is",
    )
    parser.add_argument(
        "--out", required=True, type=folder, help="folder to write; an index there is replaced"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_import(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        default=argparse.SUPPRESS,
        help="go on with an unfinished build",
    )
    add_settings(parser, IndexBuild, "shard_size")
    add_settings(parser.add_argument_group("BM25"), BM25Recipe)
    dense = parser.add_argument_group("dense")
    add_settings(dense, EncoderSettings)
    add_settings(dense, DenseOptions)
    both = parser.add_argument_group("fusion and reranking")
    add_settings(both, FusionOptions)
    both.add_argument(
        "--add",
        action="store_true",
        default=argparse.SUPPRESS,
        help="add the scores of the first stage to those of a reranker, both scaled to 0 to 1",
    )
    return parser
