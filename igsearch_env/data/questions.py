"""Question sets: from a file, a Hugging Face data set or the embedded world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from os import PathLike
from typing import Any

from igsearch_env.data.rows import Row, read_rows, source_stem
from igsearch_env.episode import Question


def _world_train(name: str) -> list[Question]:
    from igsearch_env.data.world import world_of_name

    return list(world_of_name(name).train_questions)


def _world_test(name: str) -> list[Question]:
    from igsearch_env.data.world import world_of_name

    return list(world_of_name(name).test_questions)


BUILTIN_QUESTIONS: dict[str, Callable[[str], list[Question]]] = {
    "world-train": _world_train,
    "world-test": _world_test,
}
"""Question sets that :func:`load_questions` knows by name; add an entry to register another.

Each is called with the whole name, of which what stands before the first colon is the key:
``"world-test:320"`` asks for the test questions of a world of 320 people.
"""


def load_questions(
    name_or_path: str | PathLike[str], limit: int | None = None, split: str | None = None
) -> list[Question]:
    """Load a question set.

    A row has a ``question`` and ``golden_answers`` (a list, or one string), and may have ``id``,
    ``dataset``, ``hops``, ``gold_ids``, ``gold_titles`` (or ``supporting_ids``,
    ``supporting_titles``) and ``split``. Two layouts of
    others are read as well:

    - FlashRAG: titles from ``metadata`` (``supporting_facts``, ``question_decomposition`` or
      ``s_wiki_title``);
    - Search-R1: answers from ``reward_model["ground_truth"]``; where there is no ``question``, what
      follows the last ``Question:`` of the user's ``prompt``, or all of it if that does not occur.
      Its ids are unique only within a ``data_source``, so they become ``"{data_source}-{id}"``.

    A row without an id gets ``"{name of the file}-{row}"``, rows counted from 0.

    Args:
        name_or_path: A name of :data:`BUILTIN_QUESTIONS` (``"world-test:PEOPLE:SEED"`` for a world
            of another size), the path of a JSONL (``.jsonl``,
            ``.jsonl.gz``) or Parquet file, or ``hf:REPO[:CONFIG][:SPLIT]``.
        limit: Load only so many questions, the first ones; None for all.
        split: Load only this split: of a file, the rows whose ``split`` is that.

    Returns:
        The questions in the order of the source.

    Raises:
        ValueError: If the name is unknown, the set is empty, a row cannot be read, a column is
            missing, a question has no answer, or two questions have the same id.
        ImportError: If the source needs the ``data`` extra and it is not installed.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, or None for all questions, got {limit}")
    source = str(name_or_path)
    builtin = BUILTIN_QUESTIONS.get(source.partition(":")[0])
    if builtin is not None:
        if split is not None:
            raise ValueError(f"{source!r} has no splits, got split={split!r}; leave it out")
        return builtin(source)[:limit]
    stem = source_stem(source)
    seen: dict[str, str] = {}
    questions = []
    for row in islice(read_rows(source, "question set", BUILTIN_QUESTIONS, split), limit):
        question = _question(row, stem)
        if question.id in seen:
            raise ValueError(
                f"{row.where}: the question id {question.id!r} was used before, "
                f"at {seen[question.id]}; ids must be unique"
            )
        seen[question.id] = row.where
        questions.append(question)
    return questions


def _question(row: Row, stem: str) -> Question:
    columns = row.columns
    hops = columns.get("hops")
    if hops is not None and (isinstance(hops, bool) or not isinstance(hops, int)):
        raise row.error(f"'hops' must be a whole number, got {hops!r}")
    dataset = columns.get("dataset") or columns.get("data_source") or ""
    id_, text, answers, titles = _id(row, stem), _text(row), _answers(row), _titles(row)
    ids = _strings(row, "gold_ids", _first(columns, "gold_ids", "supporting_ids"))
    try:
        found = columns.get("silver_ids")
        silver = None if found is None else _strings(row, "silver_ids", found)
        return Question(id_, text, answers, str(dataset), hops, ids, titles, silver)
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from error


def _first(columns: Mapping[str, Any], *names: str) -> Any:
    """The value of the first column of these names that is there and not null."""
    return next((columns[name] for name in names if columns.get(name) is not None), None)


def _id(row: Row, stem: str) -> str:
    value = row.columns.get("id")
    if value is None:
        return f"{stem}-{row.number}"
    if not isinstance(value, str | int):
        raise row.error(f"'id' must be a string or a whole number, got {value!r}")
    source = row.columns.get("data_source")
    return f"{source}-{value}" if source else str(value)


def _text(row: Row) -> str:
    text = row.columns.get("question")
    if text is None and row.columns.get("prompt") is not None:
        text = _prompted_question(row)
    if text is None:
        raise row.error("no column 'question' (nor 'prompt')")
    if not isinstance(text, str):
        raise row.error(f"'question' must be a string, got {text!r}")
    return text


def _prompted_question(row: Row) -> str:
    prompt = row.columns["prompt"]
    if isinstance(prompt, list):
        said = [m.get("content") for m in prompt if isinstance(m, dict) and m.get("role") == "user"]
        prompt = said[-1] if said else None
    if not isinstance(prompt, str):
        raise row.error("'prompt' must be a string or a list of messages, one of them the user's")
    return prompt.rpartition("Question:")[2].strip()


def _answers(row: Row) -> tuple[str, ...]:
    answers = row.columns.get("golden_answers")
    reward_model = row.columns.get("reward_model")
    if answers is None and isinstance(reward_model, dict):
        answers = reward_model.get("ground_truth")
        answers = answers.get("target") if isinstance(answers, dict) else answers
    if answers is None:
        raise row.error("no column 'golden_answers' (nor reward_model['ground_truth'])")
    return _strings(row, "golden_answers", answers)


def _titles(row: Row) -> tuple[str, ...]:
    titles = _first(row.columns, "gold_titles", "supporting_titles")
    metadata = row.columns.get("metadata")
    if titles is None and isinstance(metadata, dict):
        titles = _metadata_titles(metadata)
    return _strings(row, "gold_titles", titles)


def _metadata_titles(metadata: dict[str, Any]) -> list[Any]:
    """Titles of the gold pages, each once, though its facts may be several sentences."""
    facts = metadata.get("supporting_facts")
    if isinstance(facts, dict):  # {"title": [one per sentence], "sent_id": [...]}
        titles = facts.get("title") or []
    elif isinstance(facts, list):  # [[title, sentence number], ...]
        titles = [fact[0] for fact in facts if isinstance(fact, list) and fact]
    else:
        hops = metadata.get("question_decomposition") or []
        titles = [title for title in map(_paragraph_title, hops) if title is not None]
        if metadata.get("s_wiki_title"):  # the page of PopQA's subject
            titles.append(metadata["s_wiki_title"])
    return list(dict.fromkeys(titles))


def _paragraph_title(hop: Any) -> str | None:
    paragraph = hop.get("support_paragraph") if isinstance(hop, dict) else None
    return paragraph.get("title") if isinstance(paragraph, dict) else None


def _strings(row: Row, column: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(item, str) for item in strings):
        raise row.error(f"{column!r} must be a string or a list of strings, got {value!r}")
    return tuple(strings)
