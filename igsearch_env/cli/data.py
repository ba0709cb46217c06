"""Write the questions and a corpus of data sets whose rows carry paragraphs.

igsearch data hotpotqa 2wikimultihopqa musique --limit 2000 --out data
igsearch data my_musique.jsonl --out data

The folder gets NAME.SPLIT.questions.jsonl per set and split, corpus.jsonl with the paragraphs of
all of them, each once, and SOURCES.md with the licences. Sets known by name come from the Hugging
Face hub.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from igsearch_env.cli.program import Parser, folder, positive, say
from igsearch_env.data.paragraphs import PARAGRAPH_SETS, write_paragraph_sets


def main(argv: Sequence[str] | None = None) -> None:
    """Write the files.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    args = _parser().parse_args(argv)
    from igsearch_env.cli.console import progress_bar

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    started = time.perf_counter()
    tasks = {}
    with progress_bar() as bar:

        def show(name: str, questions: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=args.limit)
            bar.update(tasks[name], completed=questions)

        written = write_paragraph_sets(args.names, args.out, args.limit, args.split, show)
    for file, count in written.questions.items():
        say(f"{args.out / file}: {count:,} questions")
    if written.unanswerable:
        say(f"rows without an answer, left out: {written.unanswerable:,}")
    if written.without_gold:
        say(f"questions with a gold title that no paragraph has: {written.without_gold:,}")
    seconds = time.perf_counter() - started
    say(f"{args.out / 'corpus.jsonl'}: {written.documents:,} documents, {seconds:.1f} s")


def _parser() -> Parser:
    parser = Parser("igsearch data", __doc__)
    add = parser.add_argument
    add(
        "names",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(PARAGRAPH_SETS)}, a file in the layout of one of them, or "
        "hf:REPO[:CONFIG]",
    )
    add("--out", type=folder, required=True, help="folder of the files")
    add("--limit", type=positive, help="questions per set and split, the first ones (default: all)")
    add(
        "--split",
        nargs="+",
        help="splits to write (default: train and validation; of a file, all its rows)",
    )
    return parser
