"""Write the questions and a corpus of data sets whose rows carry paragraphs, or hard benchmarks.

igsearch data hotpotqa 2wikimultihopqa musique --limit 2000 --out data
igsearch data my_musique.jsonl --out data

The folder gets NAME.SPLIT.questions.jsonl per set and split, corpus.jsonl with the paragraphs of
all of them, each once, and SOURCES.md with the licences. Sets known by name come from the Hugging
Face hub.

igsearch data --bright hf:xlangai/BRIGHT --split biology pony --out data/bright
igsearch data --browsecomp-plus browsecomp_plus_decrypted.jsonl --out data/browsecomp_plus

write folders in BEIR's layout, with judged documents: of BRIGHT one for each domain, of
BrowseComp-Plus one whose qrels/test.tsv has the evidence and qrels/gold.tsv the documents with the
answer itself (--split gold of igsearch recall).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from igsearch_env.cli.program import Parser, output_folder, positive, say
from igsearch_env.data.judged import BRIGHT_DOMAINS, write_bright, write_browsecomp_plus
from igsearch_env.data.paragraphs import PARAGRAPH_SETS, write_paragraph_sets


def main(argv: Sequence[str] | None = None) -> None:
    """Write the files.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if sum(map(bool, (args.names, args.bright, args.browsecomp_plus))) != 1:
        parser.error("give NAMEs, or --bright, or --browsecomp-plus")
    if args.bright or args.browsecomp_plus:
        if args.limit or (args.split and not args.bright):
            parser.error("the whole of a benchmark is written; --split chooses domains of BRIGHT")
        if args.bright:
            folders = write_bright(args.bright, args.out, args.split or BRIGHT_DOMAINS)
        else:
            folders = write_browsecomp_plus(args.browsecomp_plus, args.out, args.corpus)
        for name, (questions, documents) in folders.items():
            say(f"{name}: {questions:,} questions, {documents:,} documents")
        return
    if args.corpus:
        parser.error("--corpus goes with --browsecomp-plus")
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
        nargs="*",
        metavar="NAME",
        help=f"{', '.join(PARAGRAPH_SETS)}, a file in the layout of one of them, or "
        "hf:REPO[:CONFIG]",
    )
    add("--bright", metavar="SOURCE", help="hf:REPO, or a folder with the files of that data set")
    add("--browsecomp-plus", metavar="FILE", help="the decrypted rows")
    add("--corpus", help="corpus of BrowseComp-Plus (default: the documents that its rows hold)")
    add("--out", type=output_folder, required=True, help="folder of the files")
    add("--limit", type=positive, help="questions per set and split, the first ones (default: all)")
    add(
        "--split",
        nargs="+",
        help="splits to write (default: train and validation; of a file, all its rows), or domains "
        "of BRIGHT (default: all)",
    )
    return parser
