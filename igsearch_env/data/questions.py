"""Question sets: from a file, a Hugging Face data set or the embedded world."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from igsearch_env.data.benchmarks import BENCHMARKS, benchmark_source
from igsearch_env.data.containers import BrokenContainerError, opened, strings
from igsearch_env.data.rows import (
    HubUnreachableError,
    Row,
    file_in_folder,
    read_rows,
    source_stem,
    text_lines,
)
from igsearch_env.episode import Question
from igsearch_env.text import read_json


def _of_world(name: str) -> list[Question]:
    from igsearch_env.data.world import world_of_name

    world = world_of_name(name)
    return list(world.train_questions if name.startswith("world-train") else world.test_questions)


BUILTIN_QUESTIONS: dict[str, Callable[[str], list[Question]]] = {
    "world-train": _of_world,
    "world-test": _of_world,
}
"""Question sets that :func:`load_questions` knows by name; add an entry to register another.

Each is called with the whole name, of which what stands before the first colon is the key:
``"world-test:320"`` asks for the test questions of a world of 320 people.
"""


@dataclass(frozen=True)
class QuestionSet:
    """Questions, and where they are from.

    Args:
        name: The name that was asked for.
        source: What was read.
        questions: The questions.
        split: Their split, where it is known.
        whole: Number of questions of that split as published, where it is known.
        excluded_ids: For some questions, documents that may not be found for them: BRIGHT has
            questions whose own page is in the corpus.
    """

    name: str
    source: str
    questions: tuple[Question, ...]
    split: str | None = None
    whole: int | None = None
    excluded_ids: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        """What is asked, in a line: name, size, split, and the source if it has another name.

        >>> print(QuestionSet("nq", "nq/test.jsonl", (Question("q", "?", ("a",)),), "test", 3610))
        nq: 1 question of the test split (3,610 as published), nq/test.jsonl
        """
        plural = "" if len(self.questions) == 1 else "s"
        split = "" if self.split is None else f" of the {self.split} split"
        whole = "" if self.whole is None else f" ({self.whole:,} as published)"
        source = "" if self.source == self.name else f", {self.source}"
        return f"{self.name}: {len(self.questions):,} question{plural}{split}{whole}{source}"


def load_question_set(
    name_or_path: str | PathLike[str],
    limit: int | None = None,
    folder: str | PathLike[str] | None = None,
    split: str | None = None,
    answers_needed: bool = True,
) -> QuestionSet:
    """Load questions, and say where they are from; :func:`load_questions` gives them alone.

    A row has a question and its accepted answers, and may have ``id``, ``dataset``, ``hops``,
    ``gold_ids``, ``gold_titles`` and ``split``. These layouts are read:

    - plain: ``question`` or ``query``; ``golden_answers``, ``answers``, ``possible_answers``,
      ``answer`` (with ``answer_aliases``) or ``ground_truth``, each a text, a number or a list;
      gold titles from ``supporting_facts``, ``paragraphs``, ``positive_ctxs`` or ``s_wiki_title``,
      as HotpotQA, MuSiQue, DPR and PopQA have them;
    - FlashRAG: the same titles inside ``metadata``;
    - Search-R1, DeepResearcher, IGPO: answers from ``reward_model["ground_truth"]``, the question
      from ``extra_info["question"]`` or from what follows ``Question:`` in the user's ``prompt``;
      ids are unique only within a ``data_source``, so they become ``"{data_source}-{id}"``;
    - SkyRL: ``reward_spec`` in place of ``reward_model``;
    - KILT: ``input``, and ``output`` with answers and the titles of their provenance;
    - SQuAD: articles with ``paragraphs``, whose title is the gold title; questions that are
      marked as impossible are left out. TriviaQA: ``Question`` and ``Answer``;
    - BEIR: a folder with ``queries.jsonl`` and ``qrels/SPLIT.tsv``, or the former's path. Gold ids
      are the documents with a score above 0, and queries without a line in the qrels are left out;
    - BRIGHT: ``query``, ``gold_ids`` and ``excluded_ids``; folders of it and of BrowseComp-Plus in
      BEIR's layout are written by :mod:`igsearch_env.data.judged`.

    A text that is a list or an object (``'["a", "b"]'``) is read as one, see
    :mod:`igsearch_env.data.containers`. A row without an id gets ``"{name of the file}-{row}"``,
    rows counted from 0, and one without a data set the name of the file as its ``dataset``. The
    questions of a benchmark get its name as their ``dataset``, and in front of their ids, which are
    unique within one set only.

    Args:
        name_or_path: A name of :data:`BUILTIN_QUESTIONS` (``"world-test:PEOPLE:SEED"`` for a world
            of another size); a name of :data:`~igsearch_env.data.benchmarks.BENCHMARKS`, with
            ``:SPLIT`` for another split than the one that results are reported on; the path of a
            file that :func:`igsearch_env.data.rows.read_rows` reads (JSONL, JSON, CSV, TSV or
            Parquet); a folder in BEIR's layout; or ``hf:REPO[:CONFIG][:SPLIT]``.
        limit: Load only so many questions, the first ones; None for all.
        folder: Folder of the benchmarks' files, ``NAME/SPLIT.jsonl`` or ``.parquet``; None for the
            one that the variable ``IGSEARCH_BENCHMARKS`` names or, if it names none, the hub.
        split: Load only this split: of a file, the rows whose ``split`` is that.
        answers_needed: Whether a question without answers is an error. Retrieval can be measured
            without them.

    Raises:
        ValueError: If the name is unknown, the set is empty, a row cannot be read, a column is
            missing, a question has no answer, or two questions have the same id.
        ImportError: If the source needs the ``data`` extra and it is not installed.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, or None for all questions, got {limit}")
    name = str(name_or_path)
    key, _, named = name.partition(":")
    if key in BUILTIN_QUESTIONS:
        if split is not None:
            raise ValueError(f"{name!r} has no splits, got split={split!r}; leave it out")
        return QuestionSet(name, name, tuple(BUILTIN_QUESTIONS[key](name)[:limit]))
    if key not in BENCHMARKS:
        questions, excluded = _questions(name, limit, split, answers_needed)
        return QuestionSet(name, name, tuple(questions), split, excluded_ids=excluded)
    benchmark = BENCHMARKS[key]
    if named and split not in (None, named):
        raise ValueError(f"the name asks for split {named!r}, the argument for {split!r}")
    split = named or split or benchmark.split
    source = benchmark_source(key, split, folder)
    try:
        questions, _ = _questions(source, limit, None, answers_needed)
    except HubUnreachableError as error:
        raise ValueError(
            f"{error}; for a benchmark, name the folder of its files with --benchmarks FOLDER or "
            "in the variable IGSEARCH_BENCHMARKS"
        ) from error
    found = tuple(replace(one, id=f"{key}-{one.id}", dataset=name) for one in questions)
    whole = benchmark.size if split == benchmark.split else None
    return QuestionSet(name, source, found, split, whole)


def load_questions(
    name_or_path: str | PathLike[str], limit: int | None = None, split: str | None = None
) -> list[Question]:
    """Load the questions of a set, in the order of the source.

    The layouts of FlashRAG, Search-R1, DeepResearcher, IGPO, SkyRL, KILT, BEIR, DPR, HotpotQA,
    MuSiQue and PopQA are read, and plain columns ``question`` and ``golden_answers``, ``answers``
    or ``answer``, in JSONL, JSON, CSV, TSV and Parquet;
    :func:`igsearch_env.data.questions.load_question_set` describes each.

    Args:
        name_or_path: What :func:`load_question_set` reads: a built-in name, a benchmark's name, a
            file, a folder or a data set of the hub.
        limit: Load only so many questions, the first ones; None for all.
        split: Load only this split.

    Raises:
        ValueError: If the questions cannot be read.
        ImportError: If the source needs the ``data`` extra and it is not installed.
    """
    return list(load_question_set(name_or_path, limit, split=split).questions)


def _questions(
    source: str, limit: int | None, split: str | None, answers_needed: bool
) -> tuple[list[Question], dict[str, tuple[str, ...]]]:
    """The questions of a source, and documents that may not be found for some of them."""
    stem = source_stem(source)
    source = str(file_in_folder(source, "queries") or source)
    qrels = _qrels(Path(source), split)
    stem = stem if qrels is None else Path(source).absolute().parent.name  # BEIR's folder
    split = None if qrels is not None else split
    seen: dict[str, str] = {}
    questions, excluded = [], {}
    for row in read_rows(source, "question set", {*BUILTIN_QUESTIONS, *BENCHMARKS}, split):
        if qrels is not None:
            gold = qrels.get(str(_first(row.columns, *_IDS)))
            if gold is None:
                continue
            row.columns["gold_ids"] = gold
        question = question_of_row(row, stem, answers_needed)
        if question.id in seen:
            raise ValueError(
                f"{row.where}: the question id {question.id!r} was used before, "
                f"at {seen[question.id]}; ids must be unique"
            )
        seen[question.id] = row.where
        questions.append(question)
        names = _strings(row, "excluded_ids", row.columns.get("excluded_ids"))
        if kept := tuple(name for name in names if name != "N/A"):
            excluded[question.id] = kept
        if len(questions) == limit:
            break
    if qrels is not None and not questions:
        raise ValueError(f"no query of {source} is in its qrels")
    return questions, excluded


def _qrels(queries: Path, split: str | None) -> dict[str, list[str]] | None:
    """The gold ids of each query from ``qrels/SPLIT.tsv`` beside a file of queries.

    The lines are BEIR's (query, document, score) or TREC's (query, 0, document, score).
    """
    folder = queries.parent / "qrels"
    if not queries.name.startswith("queries.") or not folder.is_dir():
        return None
    files = {file.stem: file for file in sorted(folder.glob("*.tsv"))}
    chosen = split or ("test" if "test" in files or len(files) != 1 else next(iter(files)))
    if chosen not in files:
        raise ValueError(
            f"{folder} has no {chosen}.tsv; choose one of its splits: {', '.join(files) or 'none'}"
        )
    found: dict[str, list[tuple[float, str]]] = {}
    with text_lines(files[chosen]) as lines:
        for number, line in enumerate(lines, start=1):
            cells = line.split("\t") if "\t" in line else line.split()
            try:
                query, document, score = (cells[i].strip() for i in (0, -2, -1))
                value = float(score)
            except (ValueError, IndexError) as error:
                if number == 1 or not line.strip():  # the header
                    continue
                raise ValueError(
                    f"{files[chosen]}, line {number}: expected a query's id, a document's id and "
                    f"a score, got {line!r}"
                ) from error
            found.setdefault(query, []).append((value, document))
    return {
        query: [document for value, document in sorted(pairs, key=lambda p: -p[0]) if value > 0]
        for query, pairs in found.items()
    }


_IDS = ("id", "_id", "qid", "query_id", "question_id")
_TEXTS = ("question", "query")
_TALKS = ("conversations", "conversation", "messages")  # which reply holds the answer, and where?
_ANSWERS = ("golden_answers", "answers", "possible_answers", "answer", "ground_truth")
_REWARDS = ("reward_model", "reward_spec")
_OBJECTS = ("metadata", "extra_info", *_REWARDS)
_NUMBERS = re.compile(r"\s*\[\s*\d+(\s*,\s*\d+)*\s*\]\s*", re.ASCII)
_SHOT = re.compile(r"^[ \t]*Question:", re.MULTILINE)


def question_of_row(row: Row, stem: str, answers_needed: bool) -> Question:
    """The question of a row in any of the layouts of :func:`load_question_set`.

    Args:
        row: The row.
        stem: Opens the id of a row that has none, and is the data set of one that names none.
        answers_needed: Whether a question without answers is an error.

    Raises:
        ValueError: If the row cannot be read.
    """
    row = _opened(row)
    columns = row.columns
    hops = columns.get("hops")
    if hops is None:  # MuSiQue
        hops = len(_objects(columns, "question_decomposition")) or None
    hops = int(hops) if isinstance(hops, str) and hops.isdecimal() else hops  # of a CSV file
    if isinstance(hops, float):  # pandas writes whole numbers so where one of them is missing
        hops = int(hops) if hops.is_integer() else None if hops != hops else hops
    if hops is not None and (isinstance(hops, bool) or not isinstance(hops, int)):
        raise row.error(f"'hops' must be a whole number, got {hops!r}")
    dataset = str(_first(columns, "dataset", "data_source") or stem)
    text, answers = _text(row), _answers(row, answers_needed)
    ids = _gold_ids(row)
    titles = _strings(row, *_found(columns, "gold_titles", "supporting_titles"))
    try:
        titles = titles or tuple(_evidence_titles(columns))
    except ValueError as error:
        raise row.error(f"the titles of the gold documents: {error}") from error
    name = _id(row, stem)
    try:
        return Question(name, text, answers, dataset, hops, ids, titles)
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from error


def _gold_ids(row: Row) -> tuple[str, ...]:
    name, value = _found(row.columns, "gold_ids", "supporting_ids")
    if isinstance(value, str) and _NUMBERS.fullmatch(value):  # as an answer it could be plain text
        value = read_json(value)
    return _strings(row, name, value)


def _opened(row: Row) -> Row:
    """The row with the objects and messages that it holds as text."""
    columns = dict(row.columns)
    for name in {*_OBJECTS, "prompt", "output"} & set(columns):
        try:
            columns[name] = opened(columns[name])
        except BrokenContainerError as error:
            if name != "prompt" or str(columns[name]).lstrip().startswith("[{"):
                raise row.error(f"{name!r}: {error}") from error
    for name in _OBJECTS:
        if not isinstance(columns.get(name), dict):  # a remark in words
            columns.pop(name, None)
    return row._replace(columns=columns)


def _found(columns: Mapping[str, Any], *names: str) -> tuple[str, Any]:
    """Name and value of the first column of these names that is there and not null."""
    name = next((name for name in names if columns.get(name) is not None), names[0])
    return name, columns.get(name)


def _first(columns: Mapping[str, Any], *names: str) -> Any:
    """The value of the first column of these names that is there and not null."""
    return _found(columns, *names)[1]


def _id(row: Row, stem: str) -> str:
    name, value = _found(row.columns, *_IDS)
    if value is None:
        return f"{stem}-{row.number}"
    if not isinstance(value, str | int):
        raise row.error(f"{name!r} must be a string or a whole number, got {value!r}")
    source = row.columns.get("data_source")
    return f"{source}-{value}" if source else str(value)


def _text(row: Row) -> str:
    columns = row.columns
    name, text = _found(columns, *_TEXTS)
    if isinstance(text, dict):
        text = text.get("text")
    if text is None:
        text = (columns.get("extra_info") or {}).get("question")
    if text is None and columns.get("prompt") is not None:
        text = _prompted_question(row)
    if text is None:
        name, text = _found(columns, "input", "text")  # KILT, BEIR
    if text is None and "question_text" in columns:
        raise row.error(
            "this is the original layout of Natural Questions, whose answers are places in a page; "
            "take NQ-open, with columns 'question' and 'answer', or --questions nq"
        )
    if text is None:
        talk = next((repr(name) for name in _TALKS if name in columns), "")
        hint = f"; of {talk}, write what is asked as 'question', and 'answer'" if talk else ""
        raise row.error(f"no column 'question' (nor 'query', 'prompt', 'input' or 'text'){hint}")
    if not isinstance(text, str):
        raise row.error(f"{name!r} must be a string, got {text!r}")
    return text


def _prompted_question(row: Row) -> str:
    """What a prompt asks: all that follows its own ``Question:``, not one inside the question.

    That is the last one that begins a line, since examples may stand above it, or else the first.
    """
    prompt = row.columns["prompt"]
    if isinstance(prompt, list):
        said = [m.get("content") for m in prompt if isinstance(m, dict) and m.get("role") == "user"]
        prompt = said[-1] if said else None
    if isinstance(prompt, list):  # parts of a message
        prompt = "".join(part.get("text") or "" for part in prompt if isinstance(part, dict))
    if not isinstance(prompt, str):
        raise row.error("'prompt' must be a string or a list of messages, one of them the user's")
    lines = list(_SHOT.finditer(prompt))
    if lines:
        return prompt[lines[-1].end() :].strip()
    _, mark, asked = prompt.partition("Question:")
    return (asked if mark else prompt).strip()


def _answers(row: Row, needed: bool) -> tuple[str, ...]:
    columns = row.columns
    name, value = _found(columns, *_ANSWERS)
    if value is not None:
        aliases = _first(columns, "answer_aliases", "aliases") if name == "answer" else None
        value = value if aliases is None else [value, aliases]
    for holder in (*_REWARDS, "extra_info", "metadata"):
        if value is None and columns.get(holder) is not None:
            inner, value = _found(columns[holder], *_ANSWERS)
            name = f"{holder}.{inner}"
    if value is None and isinstance(columns.get("output"), list):  # KILT
        name = "output"
        value = [item.get("answer") for item in columns["output"] if isinstance(item, dict)]
    if value is None and needed:
        raise row.error(
            f"no column 'golden_answers' (nor {', '.join(map(repr, _ANSWERS[1:]))}, "
            "reward_model['ground_truth'] or reward_spec['ground_truth'])"
        )
    answers = tuple(dict.fromkeys(_strings(row, name, value)))
    if needed and not answers:
        raise row.error(f"the question has no golden answers; {name!r} holds none")
    return answers


def _evidence_titles(columns: Mapping[str, Any]) -> list[Any]:
    """Titles of the gold pages, each once, though its facts may be several sentences."""
    for holder in (columns.get("metadata") or {}, columns):
        facts = opened(holder.get("supporting_facts"))
        titles: list[Any] = []
        if isinstance(facts, dict):  # {"title": [one per sentence], "sent_id": [...]}
            titles = [facts.get("title")]
        elif isinstance(facts, list):  # [[title, sentence number], ...]
            titles = [fact[0] for fact in map(opened, facts) if isinstance(fact, list) and fact]
        else:
            hops = _objects(holder, "question_decomposition")
            pages = [hop["support_paragraph"] for hop in hops if "support_paragraph" in hop]
            pages += [one for one in _objects(holder, "paragraphs") if one.get("is_supporting")]
            pages += _objects(holder, "positive_ctxs")  # DPR
            for item in _objects(holder, "output"):  # KILT
                pages += _objects(item, "provenance")
            titles = [page.get("title") for page in map(opened, pages) if isinstance(page, dict)]
            titles.append(holder.get("s_wiki_title"))  # the page of PopQA's subject
        if known := strings(titles):
            return list(dict.fromkeys(known))
    return []


def _objects(holder: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = opened(holder.get(name))
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _strings(row: Row, column: str, value: Any) -> tuple[str, ...]:
    try:
        return strings(value)
    except ValueError as error:
        raise row.error(f"{column!r}: {error}") from error
