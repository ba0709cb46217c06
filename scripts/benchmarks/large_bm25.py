r"""Peak memory and time of BM25 over a corpus of millions of documents.

python -m scripts.benchmarks.large_bm25 --out runs/large_bm25 --corpus data/wiki.jsonl \
    --copies 46 --questions data/hotpotqa.questions.jsonl

The corpus is repeated with other ids. Copies alone would have no more words than the corpus; so
every document also gets words that are in no other one (--new-words). The index is built by
``igsearch index`` and searched, each in a process of its own. The scores of all documents for a few
questions are compared with the formula of BM25, computed from the words of the corpus alone.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from igsearch_env.cli.program import parse_early, positive, run, say
from igsearch_env.data.corpus import read_corpus
from igsearch_env.data.questions import load_question_set
from igsearch_env.files import write_json
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.open import open_retriever
from igsearch_env.retrieval.word_table import WORDS
from igsearch_env.words import query_words, search_terms
from scripts.benchmarks.kit import benchmark_parser, measure_apart, peak_bytes, print_rows

COLUMNS = {
    "what": ("what", "s"),
    "documents": ("documents", ",d"),
    "words": ("distinct words", ",d"),
    "peak_mib": ("peak MiB", ",.0f"),
    "seconds": ("s", ",.0f"),
    "ms_per_query": ("ms a query", ",.0f"),
}


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--corpus", required=True, help="what is repeated")
    parser.add_argument("--copies", type=positive, required=True, help="how often")
    parser.add_argument("--new-words", type=int, default=4, help="of each document (default: 4)")
    parser.add_argument("--questions", default="world-train", help="what is searched for")
    return parser


if __name__ == "__main__":
    parse_early(_parser)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the corpus, build, search, then print and save the table.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    args = _parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    large, index = args.out / "corpus.jsonl", args.out / "index"
    count = write_copies(args.corpus, args.copies, args.new_words, large)
    say(f"{large}: {count:,} documents, {large.stat().st_size >> 20:,} MiB")
    command = [sys.executable, "-m", "igsearch_env.cli", "index", "--corpus", str(large)]
    started = time.perf_counter()
    subprocess.run([*command, "--out", str(index)], check=True)
    build: dict[str, Any] = {
        "what": "build",
        "documents": count,
        "words": (index / WORDS).read_bytes().count(b"\n"),
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "seconds": time.perf_counter() - started,
        "ms_per_query": None,
    }
    ((_, found),) = measure_apart({"search": (index, args.questions)}, search)
    rows = [build, {**build, "what": "search", "seconds": None, **found}]
    error = largest_error(index, args.corpus, args.copies, args.new_words, args.questions)
    about = {"new_words": args.new_words, "largest_error": error, "rows": rows}
    write_json(args.out / "results.json", about)
    print_rows("BM25 of a large corpus", rows, COLUMNS)
    say(f"largest relative difference to the formula: {error:.1e}")


def write_copies(corpus: str, copies: int, new_words: int, out: Path) -> int:
    """Write a corpus several times over, and say how many documents that makes."""
    documents, number = list(read_corpus(corpus)), 0
    with out.open("w", encoding="utf-8") as file:
        for copy in range(copies):
            for doc in documents:
                new = "".join(f" {number:x}q{place}" for place in range(new_words))
                row = {"id": f"{copy}-{doc.id}", "title": doc.title, "text": doc.text + new}
                file.write(json.dumps(row) + "\n")
                number += 1
    return number


def search(case: tuple[Path, str]) -> dict[str, float]:
    """Search a mapped index for up to 200 questions, one by one, and look at the memory."""
    index, questions = case
    asked = load_question_set(questions, answers_needed=False).questions
    retriever = open_retriever(index)
    started = time.perf_counter()
    queries = [question.text for question in islice(asked, 200)]
    for query in queries:
        retriever.search([query], 3)
    seconds = time.perf_counter() - started
    return {"peak_mib": peak_bytes() / 2**20, "ms_per_query": 1000 * seconds / len(queries)}


def largest_error(index: Path, corpus: str, copies: int, new_words: int, questions: str) -> float:
    """Compare the scores of all documents for 20 questions with the formula in double precision.

    No question has a new word, so the copies of a document have the same score, and only the words
    of the corpus before it was repeated need to be counted.

    Returns:
        The largest difference, as a share of the largest score of its question.
    """
    retriever = BM25Retriever.load(index)
    weight, k1, b = retriever.title_weight, retriever.k1, retriever.b
    asked = load_question_set(questions, answers_needed=False).questions[:20]
    wanted = {word for question in asked for word in query_words(question.text)}
    counts, lengths = [], []
    for doc in read_corpus(corpus):
        words = search_terms(doc.title) * weight + search_terms(doc.text)
        counts.append({word: n for word, n in Counter(words).items() if word in wanted})
        lengths.append(len(words) + new_words)
    norm = k1 * (1 - b + b * np.array(lengths) / np.mean(lengths))
    worst = 0.0
    for question in asked:
        scores = np.zeros(len(counts))
        for word in query_words(question.text):
            times = np.array([each.get(word, 0) for each in counts])
            having = copies * np.count_nonzero(times)
            idf = math.log(1 + (copies * len(counts) - having + 0.5) / (having + 0.5))
            scores += idf * times / (times + norm)
        numbers = [retriever._words.get(word) for word in query_words(question.text)]
        ids = [number for number in numbers if number is not None]
        own = retriever._index.get_scores_from_ids(ids).reshape(copies, len(counts))
        worst = max(worst, float(np.abs(own - scores).max() / scores.max()))
    return worst


if __name__ == "__main__":
    run(main)
