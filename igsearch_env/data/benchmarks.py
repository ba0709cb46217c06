"""The seven question sets that search agents are compared on, by name.

They are those of the data set ``RUC-NLPIR/FlashRAG_datasets`` on the Hugging Face hub, which
Search-R1 and its successors report on: a configuration per set, ``NAME/SPLIT.jsonl`` in it, and
rows with ``id``, ``question``, ``golden_answers`` and ``metadata``. A folder of such files, JSONL
or Parquet, serves as well.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from igsearch_env.data.questions import load_questions
from igsearch_env.episode import Question

HUB = "RUC-NLPIR/FlashRAG_datasets"
FOLDER_VARIABLE = "IGSEARCH_BENCHMARKS"
"""Environment variable that names a folder of the files, used in place of the hub."""
_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True)
class Benchmark:
    """A question set and the split of it that results are reported on.

    Args:
        title: The name that papers write.
        split: The split: the test set where its answers are public, else the development set.
        size: Number of questions of that split on the hub.
    """

    title: str
    split: str
    size: int


BENCHMARKS: Mapping[str, Benchmark] = {
    "nq": Benchmark("NQ", "test", 3_610),
    "triviaqa": Benchmark("TriviaQA", "test", 11_313),
    "popqa": Benchmark("PopQA", "test", 14_267),
    "hotpotqa": Benchmark("HotpotQA", "dev", 7_405),
    "2wikimultihopqa": Benchmark("2WikiMultiHopQA", "dev", 12_576),
    "musique": Benchmark("MuSiQue", "dev", 2_417),
    "bamboogle": Benchmark("Bamboogle", "test", 125),
}
"""The benchmarks by name, sizes as the hub's own list states them."""


@dataclass(frozen=True)
class QuestionSet:
    """Questions, and where they are from.

    Args:
        name: The name that was asked for.
        source: What was read.
        questions: The questions.
        split: Their split, where it is known.
        whole: Number of questions of that split as published, where it is known.
    """

    name: str
    source: str
    questions: tuple[Question, ...]
    split: str | None = None
    whole: int | None = None

    def __str__(self) -> str:
        """What is asked, in a line: name, split, size and source.

        >>> print(QuestionSet("nq", "nq/test.jsonl", (Question("q", "?", ("a",)),), "test", 3610))
        nq: 1 question of the test split (3,610 as published), nq/test.jsonl
        """
        plural = "" if len(self.questions) == 1 else "s"
        split = "" if self.split is None else f" of the {self.split} split"
        whole = "" if self.whole is None else f" ({self.whole:,} as published)"
        return f"{self.name}: {len(self.questions):,} question{plural}{split}{whole}, {self.source}"


def load_question_set(
    name: str, limit: int | None = None, folder: str | PathLike[str] | None = None
) -> QuestionSet:
    """Load a benchmark by name, or any set that :func:`load_questions` knows.

    The questions of a benchmark get ``name`` as their ``dataset``, and the benchmark's name in
    front of their ids, which are unique within one set only.

    Args:
        name: A name of :data:`BENCHMARKS`, with ``:SPLIT`` for another split than the one that
            results are reported on; or a name or path for :func:`load_questions`.
        limit: Load only so many questions, the first ones.
        folder: Folder of the benchmarks' files, ``NAME/SPLIT.jsonl`` or ``.parquet``; None for the
            one that :data:`FOLDER_VARIABLE` names or, if it names none, the hub.

    Raises:
        ValueError: If there is no such set, or it cannot be read.
        ImportError: If it needs the ``data`` extra and that is not installed.
    """
    key, _, split = name.partition(":")
    benchmark = BENCHMARKS.get(key)
    if benchmark is None:
        return QuestionSet(name, name, tuple(load_questions(name, limit)))
    split = split or benchmark.split
    folder = folder or os.environ.get(FOLDER_VARIABLE)
    source = _file(Path(folder), key, split) if folder else f"hf:{HUB}:{key}:{split}"
    questions = tuple(
        replace(question, id=f"{key}-{question.id}", dataset=name)
        for question in load_questions(source, limit)
    )
    whole = benchmark.size if split == benchmark.split else None
    return QuestionSet(name, source, questions, split, whole)


def _file(folder: Path, name: str, split: str) -> str:
    files = [folder / name / f"{split}{suffix}" for suffix in _SUFFIXES]
    found = [file for file in files if file.is_file()]
    if len(found) != 1:
        held = f"has {' and '.join(file.name for file in found)}" if found else "has none of them"
        raise ValueError(
            f"expected one of {', '.join(file.name for file in files)} in {folder / name}, which "
            f"{held}; the layout is that of hf:{HUB}"
        )
    return str(found[0])
