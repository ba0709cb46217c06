"""Corpora: documents from a file, a Hugging Face data set or the embedded world."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from itertools import islice
from os import PathLike

import numpy as np

from igsearch_env.data.rows import Row, file_in_folder, read_rows
from igsearch_env.episode import Document


def _world(name: str) -> list[Document]:
    from igsearch_env.data.world import world_of_name

    return list(world_of_name(name).documents)


BUILTIN_CORPORA: dict[str, Callable[[str], list[Document]]] = {"world": _world}
"""Corpora that :func:`load_corpus` knows by name; add an entry to register another.

Each is called with the whole name, of which what stands before the first colon is the key:
``"world:320"`` is the corpus of a world of 320 people.
"""


def read_corpus(name_or_path: str | PathLike[str]) -> Iterator[Document]:
    r"""Read a corpus one document after another, which needs 8 bytes of memory for each.

    A row has an id (``id``, ``_id``, ``docid``, ``doc_id``, ``pid``, ``passage_id``) and one of

    - ``text`` (or ``passage``), with an optional ``title``: BEIR, DPR's ``psgs_w100.tsv``,
      MS MARCO; in KILT's knowledge source, ``text`` is a list of paragraphs and the title is
      ``wikipedia_title``;
    - ``contents`` (or ``content``), ``'"Title"\ntext'`` as in Search-R1, FlashRAG and Pyserini: the
      first of several lines is the title; where there is a ``title`` column too, that line is
      dropped only if it repeats it.

    Args:
        name_or_path: A name of :data:`BUILTIN_CORPORA` (``"world:PEOPLE:SEED"`` for a world of
            another size), the path of a file that :func:`igsearch_env.data.rows.read_rows` reads
            (JSONL, JSON, CSV, TSV or Parquet), a folder in BEIR's layout, which holds
            ``corpus.jsonl``, or ``hf:REPO[:CONFIG][:SPLIT]``.

    Yields:
        The documents in the order of the source.

    Raises:
        ValueError: If the name is unknown, the corpus is empty, a row cannot be read, a column is
            missing, or two documents have the same id (found at the end of the corpus at the
            latest).
        ImportError: If the source needs the ``data`` extra and it is not installed.
    """
    source = str(name_or_path)
    builtin = BUILTIN_CORPORA.get(source.partition(":")[0])
    if builtin is not None:
        yield from builtin(source)
        return
    source = str(file_in_folder(source, "corpus") or source)
    hashes = array("q")  # 8 bytes a document: the ids themselves would take 100 bytes and more
    check_at = 1024
    for row in read_rows(source, "corpus", BUILTIN_CORPORA):
        document = document_of(row)
        hashes.append(hash(document.id))
        yield document
        if len(hashes) == check_at:
            _check_ids(source, hashes)
            check_at *= 2
    _check_ids(source, hashes)


def _check_ids(source: str, hashes: array[int]) -> None:
    """Make sure that no two of the rows read so far have the same id.

    Args:
        source: Where they come from; it is read again where two hashes are equal.
        hashes: The hash of each row's id.
    """
    found, counts = np.unique(np.frombuffer(hashes, dtype=np.int64), return_counts=True)
    suspects = set(found[counts > 1].tolist())
    if not suspects:
        return
    seen: dict[str, str] = {}
    for row in islice(read_rows(source, "corpus", BUILTIN_CORPORA), len(hashes)):
        if hash(name := document_of(row).id) not in suspects:
            continue
        if name in seen:
            raise ValueError(
                f"{row.where}: the document id {name!r} was used before, at {seen[name]}; "
                "ids must be unique"
            )
        seen[name] = row.where


def load_corpus(name_or_path: str | PathLike[str]) -> list[Document]:
    """Load every document of a corpus; :func:`read_corpus` says what may be in it."""
    return list(read_corpus(name_or_path))


def split_contents(contents: str, title: str | None = None) -> tuple[str, str]:
    r"""Take ``'"Title"\ntext'`` apart.

    Args:
        contents: The document with its title.
        title: The title, where it is known from elsewhere.

    Returns:
        Title and text. Contents of a single line are all text.

    >>> split_contents('"Lima"\nLima is the capital of Peru.')
    ('Lima', 'Lima is the capital of Peru.')
    """
    first, newline, rest = contents.partition("\n")
    heading = first.strip()
    if len(heading) > 1 and heading[0] == heading[-1] == '"':
        heading = heading[1:-1]
    if not newline:
        return title or "", contents
    if title is None:
        return heading, rest
    return title, rest if heading == title else contents


_IDS = ("id", "_id", "docid", "doc_id", "pid", "passage_id")


def document_of(row: Row) -> Document:
    """The document that a row of a corpus holds; :func:`read_corpus` says how.

    Raises:
        ValueError: If it holds none.
    """
    columns = row.columns
    name = next((name for name in _IDS if columns.get(name) is not None), None)
    blank = next((name for name in _IDS if name in columns), None) if name is None else name
    if blank is None:
        raise row.error(f"no column 'id' (nor {', '.join(map(repr, _IDS[1:]))})")
    if name is None or str(columns[name]).strip() == "":
        raise row.error(f"{blank!r} is empty; give the document an id of its own")
    if not isinstance(columns[name], str | int) or isinstance(columns[name], bool):
        raise row.error(f"{name!r} must be a string or a whole number, got {columns[name]!r}")
    title = _text(row, "title", "wikipedia_title")
    text = _text(row, "text", "passage")
    if text is None:
        contents = _text(row, "contents", "content")
        if contents is None:
            empty = [name for name in ("text", "passage", "contents", "content") if name in columns]
            if empty:
                raise row.error(f"{empty[0]!r} is empty; give the document a text or leave it out")
            raise row.error("no column 'contents' (nor 'text')")
        title, text = split_contents(contents, title)
    return Document(id=str(columns[name]), title=title or "", text=text)


def _text(row: Row, *names: str) -> str | None:
    name = next((name for name in names if row.columns.get(name) is not None), names[0])
    value = row.columns.get(name)
    if isinstance(value, list) and name == "text" and all(isinstance(one, str) for one in value):
        return "\n".join(one.strip("\n") for one in value)  # KILT's paragraphs
    if value is None or isinstance(value, str):
        return value
    raise row.error(f"{name!r} must be a string, got {value!r}")
