"""From the name of a retriever to the retriever: worlds, saved indexes, servers, corpora."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast, overload
from urllib.parse import parse_qsl
from weakref import WeakValueDictionary

from igsearch_env.data.corpus import BUILTIN_CORPORA, load_corpus
from igsearch_env.data.rows import file_in_folder
from igsearch_env.retrieval import bm25, dense
from igsearch_env.retrieval.base import IndexedRetriever, Retriever
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.fusion import FusionRetriever
from igsearch_env.retrieval.index_directory import (
    MANIFEST,
    CorruptIndexError,
    damaged_files,
    parse_manifest,
    read_manifest,
    replacing_directory,
    write_manifest,
)
from igsearch_env.retrieval.lucene import LuceneRetriever, is_lucene
from igsearch_env.retrieval.rerank import (
    TITLES,
    RerankingRetriever,
    TitleReranker,
    open_reranker,
)
from igsearch_env.text import read_json, without_logins

FUSION_FORMAT = "igsearch-env fusion"
FUSION_VERSION = 1
RERANKING_FORMAT = "igsearch-env reranking"
RERANKING_VERSION = 1
LONGEST_NAME = 2_000
PARTS = "parts.json"
DENSE_OPTIONS = ("model", "search", "device", "precision", "vector_device")
"""Options of :func:`open_retriever` for what searches vectors."""


RETRIEVERS: dict[str, Callable[[str], Retriever]] = {}
"""Retrievers that :func:`open_retriever` knows by name; :func:`register_retriever` adds to it."""

_servers: WeakValueDictionary[str, Retriever] = WeakValueDictionary()
_Opener = TypeVar("_Opener", bound=Callable[[str], Retriever])


def register_retriever(name: str) -> Callable[[_Opener], _Opener]:
    """Decorator that makes a retriever known by ``name``.

    The decorated function is called with the whole name that was asked for, of which ``name`` is
    what stands before the first colon, and returns the retriever.

    Raises:
        ValueError: If the name is taken, or holds a colon.

    >>> from igsearch_env import Document
    >>> @register_retriever("echo")
    ... def open_echo(name: str) -> Retriever:
    ...     return BM25Retriever.build([Document("1", "", name)])
    >>> open_retriever("echo:Lima").search(["Lima"], 1)[0][0].text
    'echo:Lima'
    """
    if name in RETRIEVERS or ":" in name:
        taken = ", ".join(sorted(RETRIEVERS))
        raise ValueError(f"a retriever needs a new name without a colon, got {name!r} ({taken})")

    def register(opener: _Opener) -> _Opener:
        RETRIEVERS[name] = opener
        return opener

    return register


@overload
def open_retriever(name: Path, mmap: bool = True, **dense_options: Any) -> IndexedRetriever: ...


@overload
def open_retriever(name: str, mmap: bool = True, **dense_options: Any) -> Retriever: ...


def open_retriever(name: str | Path, mmap: bool = True, **dense_options: Any) -> Retriever:
    """Open what searches, by its name: the one way in for every program.

    Args:
        name: The first of these that it is. A :class:`~pathlib.Path` is one of the last two.

            - a name in :data:`RETRIEVERS`, ``"world"`` among them: BM25 over the embedded world, or
              over that of ``"world:PEOPLE:SEED"`` (``"bm25"`` means the first of them);
            - ``"web:TEMPLATE"``: a live service of the web, see :mod:`igsearch_env.retrieval.web`;
            - the ``http://`` or ``https://`` address of a server in Search-R1's dialect;
            - the folder of a saved index: BM25, dense, a fusion of others, one with a reranker, or
              one that Pyserini has built (:class:`~igsearch_env.retrieval.lucene.LuceneRetriever`);
              a string may end in options, ``"indexes/e5?vector_device=cuda&precision=bfloat16"``;
            - a corpus (:func:`igsearch_env.load_corpus`), which is indexed with BM25 in memory.
        mmap: Of a saved index: map the files into memory, which makes loading fast; of files
            above 16 MiB only the sizes are checked then. Otherwise read everything and check the
            hashes.
        **dense_options: ``model``, ``search``, ``device``, ``precision`` and ``vector_device`` of
            :meth:`DenseRetriever.load`, for an index that is dense or has a dense part. One with a
            reranker takes ``model``, ``device`` and ``precision`` for that, the last two for a
            dense first stage too.

    Returns:
        The retriever. An address that is opened again while it is in use gives the same client.

    Raises:
        CorruptIndexError: If an index is damaged or of an unknown format.
        ValueError: If nothing has that name, the index was built with another encoder, or options
            are for a dense index and this is none.
        ImportError: If an extra is needed that is not installed; the message names it.
    """
    text, place = str(name), Path(name)
    if len(text) > LONGEST_NAME or "\0" in text:  # which the system would refuse to look up
        raise ValueError(
            f"expected the name of a retriever, got {len(text):,} characters that begin with "
            f"{text[:40]!r}"
        )
    kind = text.partition(":")[0]
    named = isinstance(name, str)
    if named and index_folder(text) != text:
        options = parse_qsl(text.partition("?")[2], keep_blank_values=True, strict_parsing=True)
        return open_retriever(Path(index_folder(text)), mmap, **{**dict(options), **dense_options})
    registered, is_address = named and kind in RETRIEVERS, named and kind in ("http", "https")
    is_beir = named and place.is_dir() and file_in_folder(place, "corpus") is not None
    is_corpus = place.is_file() or is_beir or (named and (kind == "hf" or kind in BUILTIN_CORPORA))
    is_index = not named or (text != "" and place.is_dir())
    if is_index and not (registered or is_address or is_corpus):
        return _load_index(place, mmap, dense_options)
    if dense_options:
        raise ValueError(
            f"{without_logins(text)} is no dense index, which {', '.join(dense_options)} are for"
        )
    if registered:
        return RETRIEVERS[kind](text)
    if is_address:
        return _server(text)
    if is_corpus:
        return BM25Retriever.build(load_corpus(text))
    raise ValueError(
        f"unknown retriever {without_logins(text)!r}: expected {', '.join(sorted(RETRIEVERS))}, "
        "the http:// address of a server, the folder of a saved index, or the file of a corpus, "
        "and nothing was found at that path; names of your own need --import FILE"
    )


def index_folder(name: str) -> str:
    """The name of a retriever without the options of a saved index, where it has some.

    >>> index_folder("http://127.0.0.1:8000/retrieve?x=1")
    'http://127.0.0.1:8000/retrieve?x=1'
    """
    folder, mark, _ = name.partition("?")
    if not mark or Path(name).exists() or not Path(folder, MANIFEST).is_file():
        return name
    return folder


def _server(url: str) -> Retriever:
    """The client of a server: one for all who use it now, not a pool of connections for each."""
    from igsearch_env.retrieval.http import HTTPRetriever

    found = _servers.get(url)
    if found is None:
        found = _servers[url] = HTTPRetriever(url)
    return found


@register_retriever("bm25")
def _bm25(name: str) -> Retriever:
    if name != "bm25":
        raise ValueError(f"'bm25' stands alone, got {name!r}; give the world: world:PEOPLE:SEED")
    return _world("world")


@register_retriever("world")
@lru_cache(maxsize=4)
def _world(name: str) -> Retriever:
    return BM25Retriever.build(load_corpus(name))


@register_retriever("web")
@lru_cache(maxsize=4)  # one pace and one file of answers for all who use it now
def _web(name: str) -> Retriever:
    from igsearch_env.retrieval.web import WebRetriever, WebSettings

    return WebRetriever(WebSettings.read(name.partition(":")[2]))


def _load_index(folder: Path, mmap: bool, dense_options: dict[str, Any]) -> IndexedRetriever:
    if unknown := sorted(dense_options.keys() - set(DENSE_OPTIONS)):
        raise ValueError(
            f"{folder} has no option {unknown[0]!r}; the options are {', '.join(DENSE_OPTIONS)}"
        )
    if is_lucene(folder):
        if dense_options:
            raise ValueError(f"{folder} is a BM25 index, which has no {', '.join(dense_options)}")
        lucene: Any = LuceneRetriever(folder)  # it holds its documents, but is slow to list them
        return cast(IndexedRetriever, lucene)
    form = _format(folder)
    if form == dense.FORMAT:
        return dense.DenseRetriever.load(folder, mmap, **dense_options)
    if form == FUSION_FORMAT:
        return _load_fusion(folder, mmap, dense_options)
    if form == RERANKING_FORMAT:
        return _load_reranking(folder, mmap, **dense_options)
    if form != bm25.FORMAT:
        raise CorruptIndexError(
            f"{folder} holds an index of the unknown format {form!r}; build it again"
        )
    if dense_options:
        raise ValueError(f"{folder} is a BM25 index, which has no {', '.join(dense_options)}")
    return BM25Retriever.load(folder, mmap)


def save_fusion(
    path: str | Path,
    parts: Sequence[str | Path],
    constant: int = 60,
    depth: int = 100,
    **dense_options: Any,
) -> None:
    """Write a folder that stands for the fusion of saved indexes, which stay where they are.

    Args:
        path: The folder; an index that is there already is replaced.
        parts: Folders of the indexes.
        constant: See :class:`FusionRetriever`.
        depth: See :class:`FusionRetriever`.
        **dense_options: See :func:`open_retriever`.

    Raises:
        FileExistsError: If something other than an index is at ``path``.
        ValueError: If a part is no index, is at ``path`` or is named twice, or they are of
            different corpora.
    """
    folder = Path(path)
    _check_apart(folder, parts)
    if len({Path(part).resolve() for part in parts}) < len(parts):
        raise ValueError(
            f"an index is named twice among {', '.join(map(str, parts))}, and would count twice; "
            "name each once"
        )
    opened = [open_retriever(Path(part), **dense_options) for part in parts]
    FusionRetriever(opened, constant, depth)  # refuses parts of different corpora
    content = {"parameters": {"constant": constant, "depth": depth}}
    _save_parts(folder, parts, FUSION_FORMAT, FUSION_VERSION, content)


def save_reranking(
    path: str | Path,
    part: str | Path,
    model: str,
    max_length: int = 256,
    depth: int = 20,
    *,
    add: bool = False,
) -> None:
    """Write a folder that stands for a saved index and a model that ranks anew.

    Both stay where they are.

    Args:
        path: The folder; an index that is there already is replaced.
        part: Folder of the index.
        model: See :func:`~igsearch_env.retrieval.rerank.open_reranker`.
        max_length: See :func:`~igsearch_env.retrieval.rerank.open_reranker`.
        depth: See :class:`RerankingRetriever`.
        add: See :class:`RerankingRetriever`.

    Raises:
        FileExistsError: If something other than an index is at ``path``.
        ValueError: If the part is no index or is at ``path``, or the model is no reranker.
    """
    _check_apart(Path(path), [part])
    reranker = open_reranker(model, max_length)
    RerankingRetriever(open_retriever(Path(part)), reranker, depth)  # refuses a depth below 1
    content = {"parameters": {"depth": depth, "add": add, **reranker.parameters}}
    _save_parts(Path(path), [part], RERANKING_FORMAT, RERANKING_VERSION, content)


def _check_apart(folder: Path, parts: Sequence[str | Path]) -> None:
    """Refuse to write over an index that the new one is to be made of."""
    for part in map(Path, parts):
        if _holds(part, folder):
            raise ValueError(
                f"{folder} is {part}, or a part of it, and would be lost; choose another folder "
                "for what is made of it"
            )


def _holds(part: Path, folder: Path) -> bool:
    """Whether a saved index is at a folder, or has parts that are."""
    if part.resolve() == folder.resolve():
        return True
    return (part / PARTS).is_file() and any(_holds(one, folder) for one, _ in _parts(part))


def _save_parts(
    folder: Path, parts: Sequence[str | Path], form: str, version: int, content: dict[str, Any]
) -> None:
    recorded = [
        {"folder": os.path.relpath(part, folder), "manifest_sha256": _manifest_sha256(Path(part))}
        for part in parts
    ]
    with replacing_directory(folder) as fresh:
        (fresh / PARTS).write_text(json.dumps(recorded, indent=2) + "\n", encoding="utf-8")
        write_manifest(fresh, form, version, content)


def _load_fusion(folder: Path, mmap: bool, dense_options: dict[str, Any]) -> FusionRetriever:
    manifest = read_manifest(folder, FUSION_FORMAT, FUSION_VERSION, check_hashes=True)
    parts = _parts(folder)
    try:
        constant, depth = (manifest["parameters"][name] for name in ("constant", "depth"))
    except (KeyError, TypeError) as error:
        raise CorruptIndexError(
            f"the manifest in {folder} has no sound parameters ({error!r}); build it again"
        ) from error
    return FusionRetriever(_open_parts(folder, parts, mmap, dense_options), constant, depth)


def _load_reranking(
    folder: Path, mmap: bool, model: str | None = None, **options: Any
) -> RerankingRetriever:
    manifest = read_manifest(folder, RERANKING_FORMAT, RERANKING_VERSION, check_hashes=True)
    parts = _parts(folder)
    try:
        parameters = manifest["parameters"]
        by_titles, add = parameters["model"] == TITLES, bool(parameters.get("add"))
        names = ("depth", "weight") if by_titles else ("depth", "model", "max_length")
        depth, *kept = (parameters[name] for name in names)
        sha256 = None if by_titles else parameters["model_sha256"]
    except (KeyError, TypeError) as error:
        raise CorruptIndexError(
            f"the manifest in {folder} has no sound parameters ({error!r}); build it again"
        ) from error
    (retriever,) = _open_parts(folder, parts, mmap, options)
    if by_titles:
        if model is not None:
            raise ValueError(f"{folder} ranks by titles and has no model, got {model!r}")
        return RerankingRetriever(retriever, TitleReranker(*kept), depth, add=add)
    kept_model, max_length = kept
    own = {name: options[name] for name in ("device", "precision") if name in options}
    reranker = open_reranker(model or kept_model, max_length, **own)
    if reranker.parameters["model_sha256"] != sha256:
        raise ValueError(
            f"{model or kept_model} is another model than the one that {folder} was made with; "
            f"name that one, or make {folder} again"
        )
    return RerankingRetriever(retriever, reranker, depth, add=add)


def _open_parts(
    folder: Path, parts: Sequence[tuple[Path, str]], mmap: bool, options: dict[str, Any]
) -> list[IndexedRetriever]:
    """Open the indexes that another one is made of; those with a model get the options.

    Raises:
        ValueError: If one has been built anew since.
    """
    for part, sha256 in parts:
        if _manifest_sha256(part) != sha256:
            raise ValueError(
                f"{part} is another index than the one that {folder} was built from; "
                f"build {folder} again"
            )
    return [
        open_retriever(part, mmap, **({} if _format(part) == bm25.FORMAT else options))
        for part, _ in parts
    ]


def _parts(folder: Path) -> list[tuple[Path, str]]:
    """The indexes that another one is made of, each with the hash of its manifest."""
    try:
        recorded = read_json((folder / PARTS).read_text(encoding="utf-8"))
        return [(folder / part["folder"], part["manifest_sha256"]) for part in recorded]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptIndexError(
            f"the parts of {folder} are not described ({error!r}); build it again"
        ) from error


def damage(folder: Path) -> list[str]:
    """What is wrong with a saved index, and with its parts if it is a fusion; reads every byte.

    Returns:
        A sentence for each file that is missing or damaged.

    Raises:
        CorruptIndexError: If a manifest is missing or damaged.
    """
    found = damaged_files(folder)
    if _format(folder) in (FUSION_FORMAT, RERANKING_FORMAT) and not found:
        for part, sha256 in _parts(folder):
            found += damage(part)
            if _manifest_sha256(part) != sha256:
                found.append(f"{part} is another index than the one that {folder} was built from")
    return found


def _format(folder: Path) -> Any:
    return parse_manifest(folder).get("format")


def _manifest_sha256(folder: Path) -> str:
    parse_manifest(folder)  # which says so if there is no index
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
