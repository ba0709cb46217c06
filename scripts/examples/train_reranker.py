r"""Train a cross-encoder that reranks what a first stage finds, on questions with gold documents.

python -m scripts.examples.train_reranker --questions hotpotqa_train.jsonl musique_train.jsonl \
    --index indexes/bm25 --model sentence-transformers/all-MiniLM-L6-v2 --out models/reranker

The gold documents of a question are examples of label 1; others among the best that the first stage
finds for it are examples of label 0. Then:

igsearch index --rerank indexes/bm25 --model models/reranker --out indexes/reranked
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from igsearch_env.cli.program import Parser, parse_early, positive, run, say


def _parser() -> argparse.ArgumentParser:
    parser = Parser(None, __doc__)
    add = parser.add_argument
    add("--questions", nargs="+", required=True, help="question sets with gold_ids")
    add("--index", type=Path, required=True, help="saved index: the first stage")
    add("--model", required=True, help="encoder or cross-encoder to begin with")
    add("--out", type=Path, required=True, help="folder of the trained model")
    add("--negatives", type=positive, default=5, help="of each question (default: 5)")
    add(
        "--depth",
        type=positive,
        default=20,
        help="negatives are among the best so many of the first stage (default: 20)",
    )
    add("--epochs", type=positive, default=2, help="(default: 2)")
    add("--learning-rate", type=float, default=1e-4, help="(default: 1e-4)")
    add("--max-length", type=positive, default=160, help="tokens of a pair (default: 160)")
    add("--seed", type=int, default=0, help="(default: 0)")
    return parser


if __name__ == "__main__":
    parse_early(_parser)

import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import (
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    losses,
)

from igsearch_env.data.questions import load_questions
from igsearch_env.episode import Document, Question
from igsearch_env.retrieval.base import IndexedRetriever
from igsearch_env.retrieval.open import open_retriever
from igsearch_env.retrieval.rerank import document_text


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and save the model.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    args = _parser().parse_args(argv)
    questions = [one for name in args.questions for one in load_questions(name)]
    retriever = open_retriever(args.index)
    pairs = list(examples(questions, retriever, args.depth, args.negatives, args.seed))
    random.Random(args.seed).shuffle(pairs)
    say(f"{len(pairs):,} examples of {len(questions):,} questions")
    torch.manual_seed(args.seed)
    model = CrossEncoder(args.model, num_labels=1, max_length=args.max_length)
    texts, labels = zip(*pairs, strict=True)
    queries, documents = zip(*texts, strict=True)
    trainer = CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(
            output_dir=str(args.out / "trainer"),
            num_train_epochs=args.epochs,
            learning_rate=args.learning_rate,
            per_device_train_batch_size=16,
            warmup_steps=0.1,  # a share of all steps
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            logging_steps=20,
            seed=args.seed,
        ),
        train_dataset=Dataset.from_dict(
            {"query": queries, "document": documents, "label": [float(one) for one in labels]}
        ),
        loss=losses.BinaryCrossEntropyLoss(model),
    )
    trainer.train()
    model.save_pretrained(str(args.out))


def examples(
    questions: Sequence[Question],
    retriever: IndexedRetriever,
    depth: int,
    negatives: int,
    seed: int,
) -> Iterator[tuple[tuple[str, str], bool]]:
    """Pairs of a question and a document, and whether the document is gold.

    Raises:
        ValueError: If a question has no gold ids that are in the corpus.
    """
    rng = random.Random(seed)
    wanted = {name for question in questions for name in question.gold_ids}
    gold: dict[str, Document] = {one.id: one for one in retriever.documents if one.id in wanted}
    found = retriever.search([question.text for question in questions], depth)
    for question, best in zip(questions, found, strict=True):
        right = [gold[name] for name in question.gold_ids if name in gold]
        if not right:
            raise ValueError(f"question {question.id} has no gold_ids that are in the corpus")
        others = [one for one in best if one.id not in question.gold_ids]
        wrong = rng.sample(others, min(negatives, len(others)))
        for document in (*right, *wrong):
            yield (question.text, document_text(document)), document in right


if __name__ == "__main__":
    run(main)
