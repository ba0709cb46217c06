"""Data sets whose rows carry paragraphs, taken apart into question sets and one corpus.

HotpotQA, 2WikiMultihopQA and MuSiQue come with a few paragraphs per question, gold ones and
distractors. Together these make a corpus that is small enough for a laptop and has every gold
document in it, so one can train and evaluate without an index of Wikipedia.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from igsearch_env.data.containers import opened
from igsearch_env.data.questions import question_of_row
from igsearch_env.data.rows import Row, read_rows, source_stem
from igsearch_env.episode import Document, Question
from igsearch_env.files import names_file, write_whole


@dataclass(frozen=True)
class ParagraphSet:
    """A data set of the Hugging Face hub whose rows carry paragraphs.

    Args:
        hub: Its name, and its configuration if it has several.
        licence: Its licence, as its authors state it.
        splits: The splits with public answers.
    """

    hub: str
    licence: str
    splits: tuple[str, ...] = ("train", "validation")


PARAGRAPH_SETS: Mapping[str, ParagraphSet] = {
    "hotpotqa": ParagraphSet("hotpotqa/hotpot_qa:distractor", "CC BY-SA 4.0"),
    "2wikimultihopqa": ParagraphSet("framolfese/2WikiMultihopQA", "Apache-2.0"),
    "musique": ParagraphSet("dgslibisey/MuSiQue", "CC BY 4.0"),
}
"""The sets that :func:`write_paragraph_sets` knows by name."""

_PASSAGE_LISTS = ("positive_ctxs", "negative_ctxs", "hard_negative_ctxs")  # DPR


@dataclass
class Written:
    """What :func:`write_paragraph_sets` wrote.

    Args:
        questions: Number of questions of each file of questions.
        documents: Number of documents of the corpus.
        unanswerable: Number of rows left out because they say that they have no answer.
        without_gold: Number of questions with a gold title that none of their paragraphs has.
    """

    questions: dict[str, int] = field(default_factory=dict)
    documents: int = 0
    unanswerable: int = 0
    without_gold: int = 0


def write_paragraph_sets(
    names: Sequence[str],
    out: Path,
    limit: int | None = None,
    splits: Sequence[str] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Written:
    """Write the questions and the paragraphs of data sets.

    ``out`` then holds ``NAME.SPLIT.questions.jsonl`` per set and split, ``corpus.jsonl`` with the
    paragraphs of all of them, each once, and ``SOURCES.md`` with sources and licences. A document's
    id is a hash of its title and text, so the same paragraph has the same id wherever it comes
    from, and a question's ``gold_ids`` hold in any corpus that has it.

    Args:
        names: Names of :data:`PARAGRAPH_SETS`, or sources that
            :func:`~igsearch_env.data.rows.read_rows` reads: files, and ``hf:REPO[:CONFIG]``.
        out: The folder. All files appear in it at once when the work is done.
        limit: Questions per set and split, the first ones; None for all.
        splits: Splits of each set; None for those with public answers. A file without a column
            ``split`` has none: leave it out.
        progress: Called with a set's name and the number of its questions so far.

    Returns:
        What was written.

    Raises:
        ValueError: If the folder holds a corpus already, or a source cannot be read, or a row has
            no paragraphs.
    """
    out = out.resolve()  # "." has no name, which the folder of unfinished work takes
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder")
    taken = [f.name for kind in ("*.jsonl", "SOURCES.md") for f in sorted(out.glob(kind))]
    if taken:
        raise ValueError(
            f"{out} holds {', '.join(taken[:3])} already; give another folder, or delete it first"
        )
    sources = [source for name in dict.fromkeys(names) for source in _sources(name, splits)]
    stems = [source.stem for source in sources]
    if twice := [source for source in sources if stems.count(source.stem) > 1]:
        raise ValueError(
            f"{' and '.join(source.address for source in twice)} would both be written to "
            f"{twice[0].stem}.questions.jsonl; rename one, or write them to two folders"
        )
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    unfinished.mkdir(parents=True)
    written = Written()
    seen: set[str] = set()
    ids: dict[str, str] = {}
    with ExitStack() as files:
        files.callback(shutil.rmtree, unfinished, ignore_errors=True)
        files.enter_context(names_file(out))
        corpus = files.enter_context(_create(unfinished / "corpus.jsonl"))
        for source in sources:
            file = f"{source.stem}.questions.jsonl"
            questions = files.enter_context(_create(unfinished / file))
            count = 0
            for row in read_rows(source.address, "question set", PARAGRAPH_SETS, source.split):
                if str(row.columns.get("answerable")).lower() == "false":  # text, of a CSV file
                    written.unanswerable += 1
                    continue
                question, documents = question_and_documents(row, source.name)
                if question.id in ids:
                    raise row.error(
                        f"the id {question.id!r} was used before, at {ids[question.id]}; ids must "
                        "be unique over all sets of a folder"
                    )
                ids[question.id] = row.where
                for document in documents:
                    if document.id not in seen:
                        seen.add(document.id)
                        _line(corpus, id=document.id, title=document.title, text=document.text)
                held = {document.title for document in documents}
                written.without_gold += not held.issuperset(question.gold_titles)
                _line(questions, **_columns(question))
                count += 1
                if progress is not None:
                    progress(source.stem, count)
                if count == limit:
                    break
            if not count:
                raise ValueError(f"{source.address}: none of its rows has an answer")
            questions.close()
            written.questions[file] = count
        corpus.close()
        written.documents = len(seen)
        write_whole(unfinished / "SOURCES.md", _sources_page(sources, written))
        out.mkdir(parents=True, exist_ok=True)
        for path in unfinished.iterdir():
            path.replace(out / path.name)
    return written


def question_and_documents(row: Row, dataset: str) -> tuple[Question, list[Document]]:
    """The question of a row, and its paragraphs as documents.

    Paragraphs are read from ``context`` (HotpotQA and 2WikiMultihopQA, as lists of title and
    sentences or as an object of both lists), ``paragraphs`` (MuSiQue) or ``positive_ctxs`` and
    ``hard_negative_ctxs`` (DPR), in the row or in its ``metadata``. Where paragraphs are marked as
    gold, those are; otherwise the ones with a gold title.

    Args:
        row: The row.
        dataset: Name of its data set.

    Raises:
        ValueError: If it has no question, no answer or no paragraphs, or they cannot be read.
    """
    question = question_of_row(row, dataset, answers_needed=True)
    holders = (row.columns, opened(row.columns.get("metadata")))
    for holder in holders:
        if not isinstance(holder, dict):
            continue
        try:
            found = list(_paragraphs(holder))
        except ValueError as error:
            raise row.error(f"the paragraphs cannot be read: {error}") from error
        if found:
            break
    else:
        raise row.error("no paragraphs: expected 'context', 'paragraphs' or 'positive_ctxs'")
    documents = {one.document.id: one.document for one in found}
    marked = {one.document.id for one in found if one.gold}
    titles = {_tidy(title) for title in question.gold_titles}
    gold = marked or {one.id for one in documents.values() if one.title in titles}
    question = replace(
        question,
        dataset=question.dataset or dataset,
        gold_titles=tuple(dict.fromkeys(map(_tidy, question.gold_titles))),
        gold_ids=tuple(id_ for id_ in documents if id_ in gold),
    )
    return question, list(documents.values())


@dataclass(frozen=True)
class _Paragraph:
    document: Document
    gold: bool | None = None  # None: not marked


def _paragraphs(holder: Mapping[str, Any]) -> Iterator[_Paragraph]:
    context = opened(holder.get("context"))
    if isinstance(context, dict):
        titles = opened(context.get("title"))
        texts = opened(context.get("sentences", context.get("content")))
        if not isinstance(titles, list) or not isinstance(texts, list) or len(titles) != len(texts):
            raise ValueError("'context' needs a list 'title' and as long a list 'sentences'")
        context = list(zip(titles, texts, strict=True))
    if isinstance(context, list):
        for pair in context:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise ValueError(
                    f"'context' must hold pairs of a title and sentences, got {pair!r:.60}"
                )
            yield _Paragraph(_document(*pair))
    for one in _objects(holder, "paragraphs"):
        text = one.get("paragraph_text", one.get("text"))
        yield _Paragraph(_document(one.get("title"), text), one.get("is_supporting"))
    for name in _PASSAGE_LISTS:
        for one in _objects(holder, name):
            yield _Paragraph(_document(one.get("title"), one.get("text")), name == "positive_ctxs")


def _objects(holder: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = opened(holder.get(name))
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError(f"{name!r} must be a list of objects with 'title' and text")
    return value


def _document(title: Any, text: Any) -> Document:
    title = "" if title is None else str(title) if isinstance(title, int | float) else title
    if not isinstance(title, str):
        raise ValueError(f"a title must be text, got {title!r:.60}")
    sentences = [text] if isinstance(text, str) else opened(text)
    if not isinstance(sentences, list) or not all(isinstance(one, str) for one in sentences):
        raise ValueError(f"the text of {title!r:.60} must be text or sentences, got {text!r:.60}")
    document = Document("", _tidy(title), _tidy(" ".join(sentences)))
    digest = hashlib.sha256(f"{document.title}\n{document.text}".encode()).hexdigest()
    return replace(document, id=digest[:16])


def _tidy(text: str) -> str:
    """The text with single blanks and composed characters, so that copies of it are equal."""
    return " ".join(unicodedata.normalize("NFC", text).split())


@dataclass(frozen=True)
class _Source:
    name: str
    address: str
    split: str | None
    licence: str

    @property
    def stem(self) -> str:
        return self.name if self.split is None else f"{self.name}.{self.split}"


def _sources(name: str, splits: Sequence[str] | None) -> Iterator[_Source]:
    known = PARAGRAPH_SETS.get(name)
    if known is None:
        if not name.startswith("hf:") and not Path(name).exists():
            raise ValueError(
                f"unknown data set {name!r}: expected {', '.join(PARAGRAPH_SETS)}, the path of a "
                "file, or hf:REPO[:CONFIG], and no file was found at that path"
            )
        unknown = "not known to this program; the source states it"
        for split in splits or (None,):
            yield _Source(source_stem(name), name, split, unknown)
        return
    for split in splits or known.splits:
        yield _Source(name, f"hf:{known.hub}", split, known.licence)


def _create(path: Path) -> IO[str]:
    return path.open("w", encoding="utf-8", newline="\n")


def _line(file: IO[str], **columns: Any) -> None:
    file.write(json.dumps(columns, ensure_ascii=False) + "\n")


def _columns(question: Question) -> dict[str, Any]:
    optional = {"hops": question.hops} if question.hops is not None else {}
    return {
        "id": question.id,
        "question": question.text,
        "golden_answers": list(question.golden_answers),
        "dataset": question.dataset,
        **optional,
        "gold_titles": list(question.gold_titles),
        "gold_ids": list(question.gold_ids),
    }


def _sources_page(sources: Sequence[_Source], written: Written) -> str:
    rows = "".join(
        f"| {file} | {count:,} | {source.address} | {source.licence} |\n"
        for source, (file, count) in zip(sources, written.questions.items(), strict=True)
    )
    return (
        "# Sources and licences\n\n"
        "| file | questions | source | licence of the data set |\n|---|---|---|---|\n"
        f"{rows}\n"
        f"corpus.jsonl holds the {written.documents:,} different paragraphs of these questions. "
        "The text\nof HotpotQA, 2WikiMultihopQA and MuSiQue is from Wikipedia (CC BY-SA): name it "
        "as the\nsource, and share what you make of it under the same licence.\n"
    )
