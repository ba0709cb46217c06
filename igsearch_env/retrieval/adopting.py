"""An index that another project has made, used as it is: a FAISS file and the corpus it is of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igsearch_env.data.corpus import read_corpus
from igsearch_env.data.rows import file_in_folder
from igsearch_env.episode import Document
from igsearch_env.retrieval.building import Progress
from igsearch_env.retrieval.dense import FORMAT, VERSION, dense_parameters
from igsearch_env.retrieval.document_file import DOCUMENTS, DocumentFile
from igsearch_env.retrieval.encoder import PRESETS, EncoderSettings, SentenceEncoder, Vectors
from igsearch_env.retrieval.index_directory import replacing_directory, write_manifest
from igsearch_env.retrieval.vector_index import VECTORS, import_faiss, set_search

SAMPLE = 64
"""Documents that are encoded again."""
STRAYS = 0.1
"""Share of them that may differ, such as long ones that were cut elsewhere."""
BLOCK = 1 << 16
"""Vectors that are looked at together."""
ALIKE = 0.999
"""Cosine from which two vectors are of one text and one encoder; float16 leaves 0.9999 and more."""
ALIKE_COMPRESSED = 0.7
"""The same where the index keeps its vectors in fewer bits."""


def adopt_index(
    vectors: Path,
    corpus: str,
    out: Path,
    settings: EncoderSettings,
    progress: Progress,
    *,
    search: str = "",
    device: str | None = None,
) -> int:
    """Make a folder that stands for a FAISS file and its corpus, which stay where they are.

    The folder links to both; a corpus other than JSON lines is written into it. The vectors of some
    documents are compared with those that the encoder gives, so that a wrong model, pooling or
    prefix does not go unnoticed.

    Args:
        vectors: A file of FAISS with one vector for each document, in the order of the corpus.
        corpus: What :func:`igsearch_env.load_corpus` reads.
        out: The folder; an index that is there already is replaced.
        settings: The encoder that the vectors were made with.
        progress: Shows how it gets on.
        search: How thoroughly the index is searched (``"nprobe=64"``); empty for what the file
            says.
        device: Where the encoder runs for the comparison; None for a GPU if there is one.

    Returns:
        How many documents there are.

    Raises:
        ValueError: If the files do not belong together or to the encoder; the message says what was
            found.
        FileExistsError: If something other than an index is at ``out``.
        ImportError: If the ``dense`` extra is not installed.
    """
    index = _open(vectors)
    encoder = SentenceEncoder(settings, device)
    if index.d != encoder.dimension:
        raise ValueError(
            f"the vectors of {vectors} have {index.d} numbers, and those of {settings.model!r} "
            f"{encoder.dimension}: name the model that they were made with"
        )
    set_search(index, search)
    kind = "Flat" if isinstance(index, import_faiss().IndexFlat) else type(index).__name__
    parameters = dense_parameters(encoder, kind, search)
    source = Path(file_in_folder(corpus, "corpus") or corpus)
    for file in (vectors, source):
        if out.resolve() in file.resolve().parents:
            raise ValueError(
                f"{file} lies in {out}, which would be replaced, and would be lost; choose another "
                "folder for what is made of it"
            )
    with replacing_directory(out) as folder:
        (folder / VECTORS).symlink_to(vectors.resolve())
        progress.stage("read corpus", index.ntotal)
        lines = _are_json_lines(source)
        if lines:
            (folder / DOCUMENTS).symlink_to(source.resolve())
            DocumentFile.write_offsets(folder)
            sha256 = DocumentFile.sha256(_counted(corpus, progress))
        else:
            DocumentFile.write(_counted(corpus, progress), folder)
        documents = DocumentFile(folder)
        try:
            _check_count(vectors, index.ntotal, corpus, len(documents))
            _check_finite(index, progress)
            progress.stage("encode a sample", None)
            _check_sample(index, documents, encoder, device)
        finally:
            documents.close()
        progress.stage("add up checksums", None)
        content: dict[str, Any] = {"passages": index.ntotal, "parameters": parameters}
        if lines:  # the hash of its documents, not of how that file writes them
            content |= {"corpus_sha256": sha256, "rows": True}
        write_manifest(folder, FORMAT, VERSION, content)
    return int(index.ntotal)


def _open(file: Path) -> Any:
    faiss = import_faiss()
    if not file.is_file():
        raise ValueError(f"there is no file {file}; give the index that FAISS has written")
    try:
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{file} is no index that FAISS can read: {reason}") from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ValueError(
            f"{file} ranks by distance, and dense retrieval here by inner product; for vectors of "
            "length 1 both give one order: build it again with METRIC_INNER_PRODUCT"
        )
    return index


def _are_json_lines(file: Path) -> bool:
    """Whether documents can be read from the file where they stand."""
    if file.suffix != ".jsonl" or not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(2) != b"\x1f\x8b"  # gzip, whatever the name says


def _counted(corpus: str, progress: Progress) -> Iterator[Document]:
    for number, document in enumerate(read_corpus(corpus), start=1):
        yield document
        if number % 1000 == 0:
            progress.advance(1000)


def _check_count(vectors: Path, ours: int, corpus: str, theirs: int) -> None:
    if ours != theirs:
        raise ValueError(
            f"{vectors} holds {ours:,} vectors and {corpus} {theirs:,} documents; give the corpus "
            "that the index was built from"
        )


def _check_finite(index: Any, progress: Progress) -> None:
    """Refuse NaN and infinity where vectors lie in a row, as they were given: in a Flat index.

    Raises:
        ValueError: If there is one.
    """
    if not isinstance(index, import_faiss().IndexFlat):
        return
    progress.stage("read vectors", index.ntotal)
    for start in range(0, index.ntotal, BLOCK):
        count = min(BLOCK, index.ntotal - start)
        _refuse_strange(index.reconstruct_n(start, count), np.arange(start, start + count))
        progress.advance(count)


def _refuse_strange(vectors: Vectors, places: NDArray[np.int64]) -> None:
    if (strange := ~np.isfinite(vectors).all(axis=1)).any():
        raise ValueError(
            f"the vector of document {places[strange][0]}, counted from 0, holds a number that is "
            "not finite; build the index again without it"
        )


def _check_sample(
    index: Any, documents: DocumentFile, encoder: SentenceEncoder, device: str | None
) -> None:
    """Encode some documents again, and compare their vectors with those of the index.

    Raises:
        ValueError: If they differ; it says which preset fits, if one does, or which documents do
            not.
    """
    places = np.unique(np.linspace(0, len(documents) - 1, SAMPLE).astype(np.int64))
    kept = _reconstructed(index, places)
    _refuse_strange(kept, places)
    kind = type(index).__name__
    needed = ALIKE if "Flat" in kind else ALIKE_COMPRESSED
    cosines = _cosines(kept, documents, places, encoder)
    likeness = float(np.median(cosines))
    if likeness >= needed:
        _check_strays(cosines, needed, places, documents)
        return
    others = {}
    for preset in PRESETS:
        other = SentenceEncoder(replace(encoder.config, preset=preset), device)
        others[preset] = float(np.median(_cosines(kept, documents, places, other)))
    best = max(others, key=lambda preset: others[preset])
    if others[best] >= needed:
        advice = f"--preset {best} fits: {others[best]:.4f}"
    else:
        listed = ", ".join(f"{preset} {cosine:.4f}" for preset, cosine in others.items())
        advice = f"no preset fits ({listed}); name the model that they were made with"
    raise ValueError(
        f"the vectors of {len(places)} documents differ from those that {encoder.config.model!r} "
        f"gives with the preset {encoder.config.preset!r} (median cosine {likeness:.4f}, expected "
        f"{needed} at least): {advice}"
    )


def _check_strays(
    cosines: Vectors, needed: float, places: NDArray[np.int64], documents: DocumentFile
) -> None:
    """Refuse a corpus of which a part has other vectors: moved, cut or encoded otherwise.

    Raises:
        ValueError: If more than :data:`STRAYS` of the sample differ.
    """
    strays = np.flatnonzero(cosines < needed)
    if len(strays) <= max(1, STRAYS * len(cosines)):
        return
    first = int(places[strays[0]])
    raise ValueError(
        f"{len(strays)} of {len(cosines)} documents have vectors of another text (cosine below "
        f"{needed}; the first is document {first}, counted from 0, with the id "
        f"{documents[first].id!r}); give the documents in the order of the vectors, and, where "
        "long ones differ, the --max-length that they were cut at; or build the index again"
    )


def _reconstructed(index: Any, places: NDArray[np.int64]) -> Vectors:
    try:
        if hasattr(index, "make_direct_map"):  # IVF knows a vector's place by this alone
            index.make_direct_map()
        kept: Vectors = index.reconstruct_batch(places)
    except RuntimeError as error:
        raise ValueError(
            f"an index of the kind {type(index).__name__} does not give its vectors back, so they "
            "cannot be compared with the encoder's; build it again with igsearch index"
        ) from error
    return kept


def _cosines(
    kept: Vectors, documents: DocumentFile, places: NDArray[np.int64], encoder: SentenceEncoder
) -> Vectors:
    """The cosine of each vector, with the texts in the form whose median is highest.

    Other projects encode the column ``contents`` of a corpus, or what it would be.
    """
    rows = [documents.row(int(place)) for place in places]
    read = [documents[int(place)] for place in places]
    own = [f"{document.title}\n{document.text}".rstrip() for document in read]
    quoted = [f'"{document.title}"\n{document.text}' for document in read]
    written = [
        str(row.get("contents") or row.get("content") or text)
        for row, text in zip(rows, quoted, strict=True)
    ]
    found = [_cosine(kept, encoder.encode_texts(texts)) for texts in (written, quoted, own)]
    return max(found, key=lambda cosines: float(np.median(cosines)))


def _cosine(one: Vectors, other: Vectors) -> Vectors:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines: Vectors = (one * other).sum(axis=1) / np.maximum(lengths, 1e-30)
    return cosines
