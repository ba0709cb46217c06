r"""What reranking changes: recall of gold documents before and after, in pairs, and its cost.

python -m scripts.benchmarks.reranking --out runs/reranking --index indexes/bm25 \
    --model HuggingFaceTB/SmolLM2-135M-Instruct models/reranker \
    --questions hotpotqa.questions.jsonl musique.questions.jsonl popqa.questions.jsonl

Every model ranks the same documents anew: alone, fused with the first stage by ranks, with the
scores of both added, and that ranked by titles; titles without a model are the first row. What the
folder has already is not measured again, so a run that was ended goes on with the same command.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igsearch_env.answers import bootstrap_interval
from igsearch_env.cli.program import parse_early, positive, run, say
from igsearch_env.data.questions import load_question_set
from igsearch_env.data.rows import source_stem
from igsearch_env.episode import Document
from igsearch_env.files import write_json
from igsearch_env.outcome import gold_share
from igsearch_env.retrieval.encoder import PRECISIONS
from igsearch_env.retrieval.open import open_retriever
from igsearch_env.retrieval.rerank import (
    TITLES,
    RerankingRetriever,
    TitleReranker,
    added_scores,
    open_reranker,
)
from igsearch_env.text import read_json
from igsearch_env.threads import set_threads
from scripts.benchmarks.kit import benchmark_parser, print_rows

RANKS = 60  # the constant of reciprocal-rank fusion
COLUMNS = {
    "model": ("model", "s"),
    "questions": ("questions", "s"),
    "arm": ("ranked by", "s"),
    "n": ("n", ",d"),
    "before": ("before", ".3f"),
    "after": ("after", ".3f"),
    "change": ("change", "+.3f"),
    "low": ("from", "+.3f"),
    "high": ("to", "+.3f"),
    "within": ("gold within depth", ".3f"),
    "cpu_ms": ("CPU ms a query", ",.0f"),
}


def _parser() -> Any:
    parser = benchmark_parser(__doc__)
    add = parser.add_argument
    add("--index", type=Path, required=True, help="saved index: the first stage")
    add("--model", nargs="+", required=True, help="rerankers; titles is measured beside them")
    add("--questions", nargs="+", required=True, help="question sets with gold documents")
    add("--limit", type=positive, help="questions of each set (default: all)")
    add("--depth", type=positive, default=10, help="documents ranked anew (default: 10)")
    add("--top-k", type=positive, default=3, help="documents that count (default: 3)")
    add("--max-length", type=positive, default=256, help="tokens of a document (default: 256)")
    add("--precision", choices=PRECISIONS, default="float32", help="(default: float32)")
    add("--device", default="cpu", help="where the models run (default: cpu)")
    return parser


if __name__ == "__main__":
    parse_early(_parser)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, then print and save the table.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    args = _parser().parse_args(argv)
    set_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "results.json"
    settings = {name: getattr(args, name) for name in ("depth", "top_k", "max_length", "limit")}
    found: Any = (
        read_json(file.read_text()) if file.is_file() else {"settings": settings, "rows": []}
    )
    if found["settings"] != settings:
        raise ValueError(f"{file} was measured with {found['settings']}; give another --out")
    rows: list[dict[str, Any]] = found["rows"]
    done = {(row["model"], row["questions"]) for row in rows}
    first = open_retriever(args.index)
    for model in dict.fromkeys((TITLES, *args.model)):
        missing = [name for name in args.questions if (model, source_stem(name)) not in done]
        if not missing:
            continue
        ranked = open_reranker(model, args.max_length, device=args.device, precision=args.precision)
        second = RerankingRetriever(first, ranked, args.depth)
        for name in missing:
            say(f"{model}, {name}")
            for row in measure(first, second, name, args.limit, args.top_k):
                rows.append({"model": model, "questions": source_stem(name), **row})
            write_json(file, found)
    print_rows(f"recall@{args.top_k} of gold documents, 95 % paired intervals", rows, COLUMNS)


def measure(
    first: Any, second: RerankingRetriever, questions: str, limit: int | None, top_k: int
) -> list[dict[str, Any]]:
    """Recall before, and after by each arm.

    ``alone`` is what ``igsearch index --rerank`` gives, ``fused`` what ``--fuse`` of the first
    stage and the reranked one gives, ``added`` the former with ``--add``, and ``added, titles``
    ``--rerank`` of that by titles. Of titles there is ``alone``.
    """
    asked = load_question_set(questions, limit, answers_needed=False).questions
    before: list[float] = []
    within: list[float] = []
    arms: dict[str, list[float]] = {}
    seconds, titles = 0.0, isinstance(second.reranker, TitleReranker)
    for question in asked:
        deep = first.search([question.text], second.depth)[0]
        started = time.process_time()
        scores = second.reranker.scores([(question.text, one) for one in deep])
        seconds += time.process_time() - started
        share = gold_share(question, deep[:top_k])
        if share is None:
            continue
        before.append(share)
        within.append(gold_share(question, deep) or 0.0)
        for arm, ranked in _arms(question.text, deep, scores, titles).items():
            order = np.argsort(-ranked, kind="stable")
            best = [deep[place] for place in order[:top_k]]
            arms.setdefault(arm, []).append(gold_share(question, best) or 0.0)
    if not before:
        raise ValueError(f"no question of {questions} names its gold documents")
    rows = []
    for arm, after in arms.items():
        change = np.subtract(after, before)
        low, high = bootstrap_interval(change)
        means = {"before": before, "after": after, "change": change, "within": within}
        rows.append(
            {
                **{"arm": arm, "n": len(before)},
                **{name: float(np.mean(values)) for name, values in means.items()},
                **{"low": low, "high": high, "cpu_ms": 1000 * seconds / len(asked)},
            }
        )
    return rows


def _arms(
    query: str, documents: Sequence[Document], scores: NDArray[np.float32], titles: bool
) -> dict[str, NDArray[Any]]:
    """The scores that each arm ranks by."""
    if titles:
        return {"alone": scores}
    ranks = np.argsort(np.argsort(-scores, kind="stable"), kind="stable")
    both = added_scores(documents, scores)
    pairs = [
        (query, replace(document, score=score))
        for document, score in zip(documents, both.tolist(), strict=True)
    ]
    return {
        "alone": scores,
        "fused": 1 / (RANKS + 1 + ranks) + 1 / (RANKS + 1 + np.arange(len(documents))),
        "added": both,
        "added, titles": TitleReranker().scores(pairs),
    }


if __name__ == "__main__":
    run(main)
