r"""Train a model that reranks what a first stage finds, on questions with gold documents.

python -m scripts.examples.train_reranker --questions hotpotqa_train.jsonl musique_train.jsonl \
    --index indexes/bm25 --model sentence-transformers/all-MiniLM-L6-v2 --out models/reranker

Beside its gold documents, a question has other ones among the best that the first stage finds for
it. A cross-encoder learns to tell the two kinds apart. A causal language model, which ranks by the
likelihood of the question after the document, learns to make it likelier after each gold document
than after the others (--train-layers: only its last layers are trained). Then:

igsearch index --rerank indexes/bm25 --model models/reranker --out indexes/reranked
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igsearch_env.cli.program import Parser, output_folder, parse_early, positive, run, say


def _parser() -> argparse.ArgumentParser:
    parser = Parser(None, __doc__)
    add = parser.add_argument
    add("--questions", nargs="+", required=True, help="question sets with gold_ids")
    add("--index", type=Path, required=True, help="saved index: the first stage")
    add("--model", required=True, help="encoder or cross-encoder to begin with")
    add("--out", type=output_folder, required=True, help="folder of the trained model")
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
    add(
        "--train-layers",
        type=positive,
        default=6,
        help="last layers of a language model that are trained (default: 6)",
    )
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
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from igsearch_env.data.questions import load_questions
from igsearch_env.episode import Document, Question
from igsearch_env.retrieval.base import IndexedRetriever
from igsearch_env.retrieval.open import open_retriever
from igsearch_env.retrieval.rerank import document_text, query_log_probs

QUESTIONS = 4  # of a step of a language model
SCALE = 4.0  # of log-probabilities per token, so that documents of a question differ by some nats


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and save the model.

    Args:
        argv: Command line arguments; None for those of the process.
    """
    args = _parser().parse_args(argv)
    questions = [one for name in args.questions for one in load_questions(name)]
    retriever = open_retriever(args.index)
    sets = list(examples(questions, retriever, args.depth, args.negatives, args.seed))
    random.Random(args.seed).shuffle(sets)
    count = sum(len(one.right) + len(one.wrong) for one in sets)
    say(f"{count:,} examples of {len(questions):,} questions")
    torch.manual_seed(args.seed)
    generates = AutoConfig.from_pretrained(args.model).architectures or []
    if any(name.endswith("ForCausalLM") for name in generates):
        train_language_model(sets, args)
    else:
        train_cross_encoder(sets, args)


def train_cross_encoder(sets: Sequence[Examples], args: argparse.Namespace) -> None:
    """Train on each pair by itself, and save."""
    pairs = [
        ((one.question, text), label)
        for one in sets
        for texts, label in ((one.right, True), (one.wrong, False))
        for text in texts
    ]
    random.Random(args.seed).shuffle(pairs)
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


def train_language_model(sets: Sequence[Examples], args: argparse.Namespace) -> None:
    """Train the last layers on each gold document against the other documents, and save."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32")
    model.to(device)
    model.requires_grad_(False)
    for layer in model.base_model.layers[-args.train_layers :]:
        layer.requires_grad_(True)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate)
    order = [one for _ in range(args.epochs) for one in sets]
    steps = range(0, len(order), QUESTIONS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=len(steps), pct_start=0.1
    )
    losses_so_far: list[float] = []
    for step, start in enumerate(steps, start=1):
        some = order[start : start + QUESTIONS]
        pairs = [(one.question, text) for one in some for text in (*one.right, *one.wrong)]
        with torch.autocast(device, dtype=torch.bfloat16):
            likely = SCALE * query_log_probs(model, tokenizer, pairs, args.max_length)
        loss, at = likely.new_zeros(()), 0
        for one in some:
            right = likely[at : at + len(one.right)]
            wrong = likely[at + len(one.right) : at + len(one.right) + len(one.wrong)]
            at += len(one.right) + len(one.wrong)
            against = torch.cat([right[:, None], wrong.expand(len(right), -1)], dim=1)
            loss = loss - torch.log_softmax(against, dim=1)[:, 0].mean() / len(some)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses_so_far.append(loss.item())
        if step % 10 == 0:
            say(f"step {step} of {len(steps)}: loss {sum(losses_so_far[-10:]) / 10:.3f}")
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


@dataclass(frozen=True)
class Examples:
    """A question, the texts of its gold documents, and those of others."""

    question: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]


def examples(
    questions: Sequence[Question],
    retriever: IndexedRetriever,
    depth: int,
    negatives: int,
    seed: int,
) -> Iterator[Examples]:
    """The examples of each question.

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
        texts = [tuple(map(document_text, some)) for some in (right, wrong)]
        yield Examples(question.text, *texts)


if __name__ == "__main__":
    run(main)
