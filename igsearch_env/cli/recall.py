r"""Compare retrievers: the share of gold documents among the best few for the question itself.

igsearch recall --questions hotpotqa.questions.jsonl popqa.questions.jsonl \
    --index indexes/bm25 indexes/e5 indexes/hybrid --top-k 3 --out runs/recall
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from igsearch_env.answers import bootstrap_interval
from igsearch_env.cli.program import Parser, add_import, folder, positive
from igsearch_env.data.questions import load_question_set
from igsearch_env.data.rows import source_stem
from igsearch_env.episode import Question
from igsearch_env.files import write_json
from igsearch_env.outcome import gold_share
from igsearch_env.retrieval.base import Retriever
from igsearch_env.retrieval.open import open_retriever
from igsearch_env.text import without_logins

if TYPE_CHECKING:
    from rich.table import Table

BATCH = 64


def main(argv: Sequence[str] | None = None) -> None:
    """Search for every question in every index, then print and save the table.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    args = _parser().parse_args(argv)
    from igsearch_env.cli.console import print_table, progress_bar

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sets = {
        source_stem(name): load_question_set(name, split=args.split, answers_needed=False).questions
        for name in args.questions
    }
    rows = []
    with progress_bar() as bar:
        for index in args.index:
            shown = without_logins(index)
            loading = bar.add_task(f"load {shown}")
            retriever = open_retriever(index)
            bar.remove_task(loading)
            for name, questions in sets.items():
                task = bar.add_task(f"{shown}, {name}", total=len(questions))
                found = recall(retriever, questions, args.top_k, partial(bar.advance, task))
                rows.append({"index": shown, "questions": name, **found})
    write_json(args.out / "results.json", {"top_k": args.top_k, "rows": rows})
    print_table(_table(rows, args.top_k))


def recall(
    retriever: Retriever,
    questions: Sequence[Question],
    top_k: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Mean share of a question's gold documents among its ``top_k``, with a 95 % interval.

    Args:
        retriever: What searches.
        questions: What it searches for; those without known gold documents are left out.
        top_k: How many documents it may return for each.
        progress: Called with the number of questions of each batch.

    Raises:
        ValueError: If no question has known gold documents.
    """
    shares = []
    for start in range(0, len(questions), BATCH):
        batch = questions[start : start + BATCH]
        found = retriever.search([question.text for question in batch], top_k)
        shares += [gold_share(*pair) for pair in zip(batch, found, strict=True)]
        if progress is not None:
            progress(len(batch))
    known = [share for share in shares if share is not None]
    if not known:
        raise ValueError(
            f"none of {len(questions):,} questions names its gold documents; expected a column "
            "gold_ids or gold_titles"
        )
    interval = bootstrap_interval(known)
    return {"n": len(known), "recall": sum(known) / len(known), "interval": list(interval)}


def _table(rows: Sequence[dict[str, Any]], top_k: int) -> Table:
    from igsearch_env.cli.console import make_table

    sizes = {row["questions"]: row["n"] for row in rows}
    cells: dict[str, list[str]] = {}
    for row in rows:
        low, high = row["interval"]
        cell = f"{row['recall']:.3f} ± {(high - low) / 2:.3f}"
        cells.setdefault(row["index"], [row["index"]]).append(cell)
    headings = ["index", *(f"{name} ({size:,})" for name, size in sizes.items())]
    return make_table(f"recall@{top_k} of gold documents", headings, cells.values())


def _parser() -> Parser:
    parser = Parser("igsearch recall", __doc__)
    add = parser.add_argument
    add("--questions", nargs="+", required=True, help="names or files of question sets")
    add(
        "--index",
        nargs="+",
        required=True,
        help="folders of saved indexes, addresses of servers, or names of registered retrievers",
    )
    add_import(parser)
    add("--top-k", type=positive, default=3, help="documents per question (default: 3)")
    add("--split", help="ask only the questions of this split")
    add("--out", type=folder, required=True, help="folder of the results")
    return parser
