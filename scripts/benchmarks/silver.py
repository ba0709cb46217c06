"""How much of the gold evidence silver chains find on real text, and how a larger corpus thins it.

python -m scripts.benchmarks.silver --out runs/bench_silver --corpus wiki_pool.corpus.jsonl \
    --questions hotpotqa.questions.jsonl musique.questions.jsonl --documents 43858 1000000

Sizes above that of the corpus are filled up with distractors made of the corpus's own sentences,
drawn at random. Half of them bear the title of a real document, as further chunks of an article do
in Wikipedia; the others a new title of two words of different titles. So answers and titles occur
in them as often as in real text, and none of it is evidence: what they complete is a wrong chain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from igsearch_env.cli.program import Parser, output_folder, parse_early, positive, run


def _parser() -> Parser:
    parser = Parser(None, __doc__)
    add = parser.add_argument
    add("--out", type=output_folder, required=True, help="folder of results.json")
    add("--questions", type=Path, nargs="+", required=True, help="files of questions")
    add("--corpus", type=Path, required=True, help="file of documents")
    add("--documents", type=positive, nargs="+", help="sizes of the corpus (default: as it is)")
    add("--max-length", type=positive, default=4, help="most documents in a chain (default: 4)")
    return parser


if __name__ == "__main__":
    parse_early(_parser)

import random
import re
import time
from itertools import islice
from statistics import median
from typing import Any

from igsearch_env.cli.console import progress_bar
from igsearch_env.data.corpus import load_corpus
from igsearch_env.data.questions import load_questions
from igsearch_env.data.silver import SilverEvidence, TitleGraph, find_silver
from igsearch_env.episode import Document, Question
from igsearch_env.files import write_json
from igsearch_env.words import words
from scripts.benchmarks.kit import print_rows
from scripts.laboratory.statistics import t_interval

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
COLUMNS = {
    "documents": ("documents", ",d"),
    "questions": ("questions", "s"),
    "asked": ("asked", "d"),
    "covered": ("covered", ".2f"),
    "silver": ("silver documents", ".1f"),
    "recall": ("recall of gold", ".2f"),
    "precision": ("precision", ".2f"),
    "milliseconds": ("ms a question", ".1f"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Look for silver evidence in corpora of each size; print the tables, write results.json.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    corpus = load_corpus(arguments.corpus)
    questions = [one for path in arguments.questions for one in load_questions(path)]
    rows: list[dict[str, Any]] = []
    builds: list[dict[str, Any]] = []
    for size in arguments.documents or [len(corpus)]:
        started = time.process_time()
        graph = TitleGraph([*corpus, *islice(distractors(corpus), max(0, size - len(corpus)))])
        builds.append({"documents": len(graph), "seconds": time.process_time() - started})
        found: list[tuple[Question, SilverEvidence, float]] = []
        with progress_bar() as bar:
            task = bar.add_task("silver evidence", total=len(questions), note="")
            for question in questions:
                started = time.process_time()
                evidence = find_silver(question, graph, arguments.max_length)
                found.append((question, evidence, 1e3 * (time.process_time() - started)))
                bar.update(task, advance=1)
        rows += _rows(found, len(graph))
        write_json(arguments.out / "results.json", {"rows": rows, "builds": builds})
    print_rows("silver evidence", rows, COLUMNS)
    print_rows("build", builds, {"documents": ("documents", ",d"), "seconds": ("CPU s", ".1f")})


def distractors(corpus: Sequence[Document], seed: int = 0) -> Iterator[Document]:
    """Documents that look like those of a corpus and are no evidence for anything; no end.

    Args:
        corpus: Real documents with titles.
        seed: Of the draws.
    """
    rng = random.Random(seed)
    parts = [_SENTENCE.split(document.text) for document in corpus]
    sentences = [sentence for part in parts for sentence in part if sentence.strip()]
    titles = [document.title for document in corpus if words(document.title)]
    number = 0
    while True:
        text = " ".join(rng.choice(sentences) for _ in rng.choice(parts))
        if number % 2:
            title = rng.choice(titles)
        else:
            title = " ".join(rng.choice(words(rng.choice(titles))).title() for _ in range(2))
        yield Document(f"distractor-{number}", title, text)
        number += 1


def _rows(
    found: Sequence[tuple[Question, SilverEvidence, float]], documents: int
) -> Iterator[dict[str, Any]]:
    """A row for each set, and for its hops and kinds where it has several."""
    names: dict[str, list[tuple[Question, SilverEvidence, float]]] = {}
    for one in found:
        question, evidence, _ = one
        hops = "?" if question.hops is None else question.hops
        for name in ("", f", {hops} hops", f", {evidence.kind}"):
            names.setdefault(question.dataset + name, []).append(one)
    for name, part in sorted(names.items()):
        asked = [question for question, _, _ in part]
        gold = [(set(q.gold_ids), set(s.document_ids)) for q, s, _ in part if q.gold_ids]
        both = [(g, s) for g, s in gold if s]
        row = {
            "documents": documents,
            "questions": name,
            "asked": len(asked),
            "covered": sum(bool(s.document_ids) for _, s, _ in part) / len(part),
            "silver": sum(len(s.document_ids) for _, s, _ in part) / len(part),
            "milliseconds": median(milliseconds for _, _, milliseconds in part),
        }
        for measure, values in (
            ("recall", [len(g & s) / len(g) for g, s in gold]),
            ("precision", [len(g & s) / len(s) for g, s in both]),
        ):
            mean = sum(values) / len(values) if values else None
            _, low, high = t_interval(values) if len(values) > 1 else (None, None, None)
            row |= {measure: mean, f"{measure}_low": low, f"{measure}_high": high}
        yield row


if __name__ == "__main__":
    run(main)
