"""An index that is built once and kept in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from igsearch_env.data.corpus import load_corpus
from igsearch_env.retrieval.base import IndexedRetriever
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.document_file import DocumentFile
from igsearch_env.retrieval.index_directory import check_replaceable
from igsearch_env.retrieval.saved_index import load_retriever


def open_retriever(
    corpus: str | None,
    index: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    show_progress: bool = False,
) -> IndexedRetriever:
    """A saved index of any kind, or BM25 over a corpus.

    Args:
        corpus: Name or file of the corpus.
        index: Folder of the index; if nothing is there, BM25 is built from the corpus and saved.
        say: Told, in a line, what is being done.
        show_progress: Whether to show bars while the index is built.

    Raises:
        ValueError: If the index is damaged or of another corpus, or there is neither.
        FileExistsError: If something other than an index is at ``index``.
    """
    folder = Path(index) if index else None
    if folder is not None and folder.exists() and not _is_empty(folder):
        saved = load_retriever(folder)
        if corpus and DocumentFile.sha256(load_corpus(corpus)) != saved.corpus_sha256:
            raise ValueError(
                f"the index in {folder} was built from another corpus than {corpus}; choose "
                "another folder, or leave out --corpus to search what the index holds"
            )
        return saved
    if not corpus:
        raise ValueError(f"there is no index in {index}; give --corpus to build it there")
    if folder is not None:
        check_replaceable(folder)  # before the work, not after it
    documents = load_corpus(corpus)
    say(f"indexing {len(documents):,} passages of {corpus}")
    retriever = BM25Retriever.build(documents, show_progress=show_progress)
    if folder is not None:
        retriever.save(folder)
        say(f"saved the index: {folder}")
    return retriever


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())
