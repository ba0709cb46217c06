"""Indexes on disk of any kind, opened by what their manifest says."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from igsearch_env.retrieval import bm25, dense
from igsearch_env.retrieval.base import IndexedRetriever
from igsearch_env.retrieval.fusion import FusionRetriever
from igsearch_env.retrieval.index_directory import (
    MANIFEST,
    CorruptIndexError,
    parse_manifest,
    read_manifest,
    replacing_directory,
    write_manifest,
)

FUSION_FORMAT = "igsearch-env fusion"
FUSION_VERSION = 1
PARTS = "parts.json"


def load_retriever(path: str | Path, mmap: bool = True, **dense_options: Any) -> IndexedRetriever:
    """Open a saved index: BM25, dense, or a fusion of others.

    Args:
        path: The folder of the index.
        mmap: Map the files into memory, which makes loading fast; only their sizes are checked
            then. Otherwise read everything and check the hashes.
        **dense_options: ``model``, ``search``, ``device`` and ``precision`` of
            :meth:`DenseRetriever.load`, for an index that is dense or has a dense part.

    Returns:
        A :class:`BM25Retriever`, :class:`DenseRetriever` or :class:`FusionRetriever`.

    Raises:
        CorruptIndexError: If there is no index, or it is damaged or of an unknown format.
        ValueError: If the index was built with another encoder, or options are for a dense index
            and this one is not.
        ImportError: If the index is dense and the ``dense`` extra is not installed.
    """
    folder = Path(path)
    form = _format(folder)
    if form == dense.FORMAT:
        return dense.DenseRetriever.load(folder, mmap, **dense_options)
    if form == FUSION_FORMAT:
        return _load_fusion(folder, mmap, dense_options)
    if form != bm25.FORMAT:
        raise CorruptIndexError(
            f"{folder} holds an index of the unknown format {form!r}; build it again"
        )
    if dense_options:
        raise ValueError(f"{folder} is a BM25 index, which has no {', '.join(dense_options)}")
    return bm25.BM25Retriever.load(folder, mmap)


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
        **dense_options: See :func:`load_retriever`.

    Raises:
        FileExistsError: If something other than an index is at ``path``.
        ValueError: If a part is no index, or they are of different corpora.
    """
    folder = Path(path)
    recorded = [
        {"folder": os.path.relpath(part, folder), "manifest_sha256": _manifest_sha256(Path(part))}
        for part in parts
    ]
    FusionRetriever([load_retriever(part, **dense_options) for part in parts], constant, depth)
    with replacing_directory(folder) as fresh:
        (fresh / PARTS).write_text(json.dumps(recorded, indent=2) + "\n", encoding="utf-8")
        content = {"parameters": {"constant": constant, "depth": depth}}
        write_manifest(fresh, FUSION_FORMAT, FUSION_VERSION, content)


def _load_fusion(folder: Path, mmap: bool, dense_options: dict[str, Any]) -> FusionRetriever:
    manifest = read_manifest(folder, FUSION_FORMAT, FUSION_VERSION, check_hashes=True)
    try:
        recorded = json.loads((folder / PARTS).read_text(encoding="utf-8"))
        parts = [(folder / part["folder"], part["manifest_sha256"]) for part in recorded]
        constant, depth = (manifest["parameters"][name] for name in ("constant", "depth"))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptIndexError(
            f"the parts of {folder} are not described ({error!r}); build it again"
        ) from error
    for part, sha256 in parts:
        if _manifest_sha256(part) != sha256:
            raise ValueError(
                f"{part} is another index than the one that {folder} was built from; "
                f"build {folder} again"
            )
    retrievers = [
        load_retriever(
            part, mmap, **(dense_options if _format(part) in (dense.FORMAT, FUSION_FORMAT) else {})
        )
        for part, _ in parts
    ]
    return FusionRetriever(retrievers, constant, depth)


def _format(folder: Path) -> Any:
    return parse_manifest(folder).get("format")


def _manifest_sha256(folder: Path) -> str:
    parse_manifest(folder)  # which says so if there is no index
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
