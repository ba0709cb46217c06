"""Corpora: passages from a file, a Hugging Face data set or the embedded world."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from os import PathLike

from igsearch_env.data.rows import Row, read_rows
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
    r"""Read a corpus one passage after another, which needs no memory for the text.

    A row has an ``id`` and one of

    - ``contents``, ``'"Title"\ntext'`` as in Search-R1 and FlashRAG: the first of several lines is
      the title; where there is a ``title`` column too, that line is dropped only if it repeats it;
    - ``text``, with an optional ``title``.

    Args:
        name_or_path: A name of :data:`BUILTIN_CORPORA` (``"world:PEOPLE:SEED"`` for a world of
            another size), the path of a JSONL (``.jsonl``,
            ``.jsonl.gz``) or Parquet file, or ``hf:REPO[:CONFIG][:SPLIT]``.

    Yields:
        The passages in the order of the source.

    Raises:
        ValueError: If the name is unknown, the corpus is empty, a row cannot be read, a column is
            missing, or two passages have the same id.
        ImportError: If the source needs the ``data`` extra and it is not installed.
    """
    source = str(name_or_path)
    builtin = BUILTIN_CORPORA.get(source.partition(":")[0])
    if builtin is not None:
        yield from builtin(source)
        return
    seen: dict[str, str] = {}
    for row in read_rows(source, "corpus", BUILTIN_CORPORA):
        document = _document(row)
        if document.id in seen:
            raise ValueError(
                f"{row.where}: the passage id {document.id!r} was used before, "
                f"at {seen[document.id]}; ids must be unique"
            )
        seen[document.id] = row.where
        yield document


def load_corpus(name_or_path: str | PathLike[str]) -> list[Document]:
    """Load every passage of a corpus; :func:`read_corpus` says what may be in it."""
    return list(read_corpus(name_or_path))


def split_contents(contents: str, title: str | None = None) -> tuple[str, str]:
    r"""Take ``'"Title"\ntext'`` apart.

    Args:
        contents: The passage with its title.
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


def _document(row: Row) -> Document:
    columns = row.columns
    if columns.get("id") is None:
        raise row.error("no column 'id'")
    if not isinstance(columns["id"], str | int):
        raise row.error(f"'id' must be a string or a whole number, got {columns['id']!r}")
    title = _text(row, "title")
    text = _text(row, "text")
    if text is None:
        contents = _text(row, "contents")
        if contents is None:
            raise row.error("no column 'contents' (nor 'text')")
        title, text = split_contents(contents, title)
    return Document(id=str(columns["id"]), title=title or "", text=text)


def _text(row: Row, column: str) -> str | None:
    value = row.columns.get(column)
    if value is None or isinstance(value, str):
        return value
    raise row.error(f"{column!r} must be a string, got {value!r}")
