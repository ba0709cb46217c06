r"""Compare retrievers: what they find of the gold documents for the question itself.

igsearch recall --questions hotpotqa.questions.jsonl popqa.questions.jsonl \
    --index indexes/bm25 indexes/e5 indexes/hybrid --top-k 3 --out runs/recall

For each index and question set: recall@k, the share of a question's gold documents among the best
k; nDCG@k, which counts those further ahead for more; and how much of a context the k documents
fill for each gold one among them, in words, or in tokens where --tokenizer names one. All are
means over questions (the last a ratio of sums) with 95 % bootstrap intervals. In a folder in BEIR's
layout, --split names the judgements: qrels/SPLIT.tsv. Documents that a question excludes
(BRIGHT) are left out of what was found. The results so far are saved after each set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence, Sized
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from igsearch_env.answers import bootstrap_interval, bootstrap_means, percentile_interval
from igsearch_env.cli.program import Parser, add_import, output_folder, positive
from igsearch_env.data.questions import QuestionSet, load_question_set
from igsearch_env.data.rows import source_stem
from igsearch_env.episode import Question
from igsearch_env.extras import import_extra
from igsearch_env.files import write_json
from igsearch_env.hub import without_waiting
from igsearch_env.retrieval.base import IndexedRetriever, RetrievalError, Retriever
from igsearch_env.retrieval.open import open_retriever
from igsearch_env.text import without_logins
from igsearch_env.words import words

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
    import_extra("pytrec_eval", "eval")  # a missing one is told before an index is loaded
    sets: dict[str, QuestionSet] = {}
    for file in args.questions:
        if (name := source_stem(file)) in sets:
            raise ValueError(f"two question sets have the name {name!r}; give one another name")
        sets[name] = load_question_set(file, split=args.split, answers_needed=False)
    for name, asked in sets.items():
        if not any(map(_gold, asked.questions)):
            raise ValueError(
                f"none of the {len(asked.questions):,} questions of {name} names its gold "
                "documents; expected a column gold_ids or gold_titles"
            )
    unit, size = _sizer(args.tokenizer)
    rows: list[dict[str, Any]] = []
    with progress_bar() as bar:
        for index in args.index:
            shown = without_logins(index)
            loading = bar.add_task(f"load {shown}")
            retriever = open_retriever(index)
            bar.remove_task(loading)
            if isinstance(retriever, Sized) and args.top_k > len(retriever):
                raise ValueError(
                    f"{shown} has {len(retriever):,} documents; --top-k {args.top_k} is too many"
                )
            for name, asked in sets.items():
                task = bar.add_task(f"{shown}, {name}", total=len(asked.questions))
                try:
                    found = recall(retriever, asked, args.top_k, size, partial(bar.advance, task))
                except (ValueError, RetrievalError) as error:
                    raise ValueError(f"{shown}, {name}: {error}") from error
                rows.append({"index": shown, "questions": name, **found})
                write_json(
                    args.out / "results.json", {"top_k": args.top_k, "unit": unit, "rows": rows}
                )
    print_table(_table(rows, args.top_k, unit))


def recall(
    retriever: Retriever,
    asked: QuestionSet,
    top_k: int,
    size: Callable[[str], int],
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """What a retriever finds of the gold documents of questions.

    Args:
        retriever: What searches.
        asked: What it searches for; questions without known gold documents are left out, and one
            at least has some.
        top_k: How many documents count for each.
        size: How much of a context a text fills.
        progress: Called with the number of questions of each batch.

    Returns:
        ``n``, the number of questions; ``recall``, ``ndcg`` and ``size_per_gold`` (None if nothing
        was found), each with ``NAME_interval``, which is None for a single question.

    Raises:
        ValueError: If none of the gold documents is in the corpus.
    """
    pytrec_eval = import_extra("pytrec_eval", "eval")
    excluded = {name: set(ids) for name, ids in asked.excluded_ids.items()}
    more = max(map(len, excluded.values()), default=0)
    wanted = top_k + more
    wanted = min(wanted, len(retriever)) if isinstance(retriever, Sized) else wanted
    judged: dict[str, dict[str, int]] = {}
    ranked: dict[str, dict[str, float]] = {}
    sizes: list[tuple[float, float]] = []
    for start in range(0, len(asked.questions), BATCH):
        batch = asked.questions[start : start + BATCH]
        found = retriever.search([question.text for question in batch], max(wanted, top_k))
        for question, deep in zip(batch, found, strict=True):
            left_out = excluded.get(question.id, set())
            best = [one for one in deep if one.id not in left_out][:top_k]
            gold = set(_gold(question))
            if not gold:
                continue
            by_id = bool(question.gold_ids)
            seen = list(dict.fromkeys(one.id if by_id else one.title for one in best))
            judged[question.id] = dict.fromkeys(gold, 1)
            ranked[question.id] = {name: float(-place) for place, name in enumerate(seen)}
            filled = sum(size(f"{one.title}\n{one.text}") for one in best)
            sizes.append((filled, len(gold & set(seen))))
        if progress is not None:
            progress(len(batch))
    if not any(found for _, found in sizes):
        _check_names(retriever, asked.questions)
    measures = {f"recall.{top_k}", f"ndcg_cut.{top_k}"}
    scores = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(ranked)
    row: dict[str, Any] = {"n": len(judged)}
    for name, key in (("recall", f"recall_{top_k}"), ("ndcg", f"ndcg_cut_{top_k}")):
        values = [score[key] for score in scores.values()]
        row[name] = sum(values) / len(values)
        row[f"{name}_interval"] = list(bootstrap_interval(values)) if len(values) > 1 else None
    row["size_per_gold"], row["size_per_gold_interval"] = _ratio(sizes)
    return row


def _gold(question: Question) -> tuple[str, ...]:
    """Ids, or titles where a question has no ids, of its gold documents."""
    return question.gold_ids or question.gold_titles


def _check_names(retriever: Retriever, questions: Sequence[Question]) -> None:
    """Tell questions whose documents were not found from those of another corpus.

    Raises:
        ValueError: If the retriever can list its documents, and no gold one is among them.
    """
    if not isinstance(retriever, IndexedRetriever):
        return
    ids = {name for question in questions for name in question.gold_ids}
    titles = {name for one in questions if not one.gold_ids for name in one.gold_titles}
    last = None
    for last in retriever.documents:
        if last.id in ids or last.title in titles:
            return
    kind, example = ("gold_ids", min(ids)) if ids else ("gold_titles", min(titles))
    there = last and (last.id if ids else last.title)
    raise ValueError(
        f"none of the {len(ids or titles):,} {kind} is in the corpus: the questions name documents "
        f"such as {example!r}, and the corpus has {there!r}; give the corpus of these questions"
    )


def _ratio(pairs: Sequence[tuple[float, float]]) -> tuple[float | None, list[float] | None]:
    """The ratio of two sums over questions, and its interval over resamples of the questions."""
    both = np.array(pairs)
    top, bottom = (bootstrap_means(column) for column in both.T)  # the same questions in both
    if both[:, 1].sum() == 0:
        return None, None
    if len(pairs) == 1:
        return float(both[0, 0] / both[0, 1]), None
    known = bottom > 0
    low, high = percentile_interval(top[known] / bottom[known])
    return float(both[:, 0].sum() / both[:, 1].sum()), [low, high]


def _sizer(tokenizer: str | None) -> tuple[str, Callable[[str], int]]:
    """The unit of a context's size, and what measures it."""
    if tokenizer is None:
        return "words", lambda text: len(words(text))
    library = import_extra("transformers", "train")
    try:
        with without_waiting(tokenizer):
            loaded = library.AutoTokenizer.from_pretrained(tokenizer)
    except Exception as error:  # transformers and what it is built on raise whatever they like
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"cannot load the tokenizer of {tokenizer!r}: {reason}") from error
    return "tokens", lambda text: len(loaded(text, add_special_tokens=False)["input_ids"])


def _table(rows: Sequence[dict[str, Any]], top_k: int, unit: str) -> Table:
    from igsearch_env.cli.console import make_table

    def cell(row: dict[str, Any], name: str, digits: int) -> str:
        if row[name] is None:
            return "-"
        if row[f"{name}_interval"] is None:  # one question says nothing about others
            return f"{row[name]:,.{digits}f}"
        low, high = row[f"{name}_interval"]
        return f"{row[name]:,.{digits}f} ± {(high - low) / 2:,.{digits}f}"

    cells = [
        [
            *(row["index"], row["questions"], f"{row['n']:,}"),
            *(cell(row, "recall", 3), cell(row, "ndcg", 3), cell(row, "size_per_gold", 0)),
        ]
        for row in rows
    ]
    headings = ["index", "questions", "n", f"recall@{top_k}", f"nDCG@{top_k}", f"{unit} per gold"]
    title = f"gold documents among the best {top_k}, for the question itself"
    return make_table(title, headings, cells, text=("index", "questions"))


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
    add(
        "--split", help="ask only the questions of this split; in BEIR's layout, of qrels/SPLIT.tsv"
    )
    add("--tokenizer", help="folder or name of a model whose tokens fill the context")
    add("--out", type=output_folder, required=True, help="folder of the results")
    return parser
