"""Dense retrieval: search by meaning, with an encoder and an index of vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from igsearch_env.episode import Document
from igsearch_env.retrieval.base import check_search
from igsearch_env.retrieval.document_file import DocumentFile, HoldsDocuments
from igsearch_env.retrieval.encoder import EncoderSettings, SentenceEncoder, Vectors, same_probe
from igsearch_env.retrieval.index_directory import (
    CorruptIndexError,
    IndexFiles,
    check_unreplaced,
    replacing_directory,
    write_manifest,
)
from igsearch_env.retrieval.vector_device import on_devices
from igsearch_env.retrieval.vector_index import (
    build_vector_index,
    default_search,
    read_vector_index,
    set_search,
    write_vector_index,
)
from igsearch_env.retrieval.wire import RowDocument

FORMAT = "igsearch-env dense"
VERSION = 2


class DenseRetriever(HoldsDocuments):
    """Ranks documents by the inner product of their vectors with that of the query.

    Use :meth:`build` or :meth:`load`, or ``igsearch index`` for a large corpus.
    """

    def __init__(
        self,
        index: Any,
        documents: tuple[Document, ...] | DocumentFile,
        encoder: SentenceEncoder,
        parameters: dict[str, Any],
        files: IndexFiles | None = None,
        vector_device: str | None = None,
    ) -> None:
        """Put the parts together; use :meth:`build` or :meth:`load` instead."""
        set_search(index, parameters["search"])
        super().__init__(documents, files)
        self.index = index
        self._searched = index if vector_device is None else on_devices(index, vector_device)
        self.encoder = encoder
        self.parameters = parameters

    @classmethod
    def build(
        cls,
        documents: Iterable[Document],
        encoder: SentenceEncoder,
        factory: str = "Flat",
        search: str | None = None,
    ) -> Self:
        """Encode and index documents in memory.

        Args:
            documents: The documents; their ids must be unique.
            encoder: Makes the vectors of documents, and later of queries.
            factory: Kind of index; see :func:`build_vector_index`.
            search: How thoroughly it is searched; see :func:`set_search`. None for
                :func:`default_search`.

        Raises:
            ValueError: If there are no documents, two have the same id, or an argument is wrong.
        """
        kept = tuple(documents)
        if not kept or len({document.id for document in kept}) < len(kept):
            raise ValueError(
                f"expected documents with unique ids, at least one, got {len(kept)} documents with "
                f"{len({document.id for document in kept})} ids"
            )
        vectors = encoder.encode_documents(kept)
        index = build_vector_index(lambda: [vectors], len(vectors), factory)
        return cls(index, kept, encoder, dense_parameters(encoder, factory, search))

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Find the best documents for each query.

        Args:
            queries: The queries, encoded and searched together; may be empty.
            k: How many documents to return for each, from 1 to the size of the corpus. An index
                that looks into a part of the corpus (IVF) may find fewer.

        Returns:
            One list per query, best first, ties in the order of the corpus, with inner products as
            scores.

        Raises:
            ValueError: If ``k`` is out of range, or ``queries`` is a single string.
            CorruptIndexError: If a document on disk is damaged, or a file was overwritten.
        """
        return self._search(queries, k, self._document)

    def search_rows(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Search for a server: as :meth:`search`, with the rows of an adopted corpus.

        Whoever has made that corpus is used to getting its rows as they are.
        """
        adopted = self._files is not None and self._files.manifest.get("rows") is True
        return self._search(queries, k, self._row if adopted else self._document)

    def _search(
        self, queries: Sequence[str], k: int, document: Callable[[int, float], Document]
    ) -> list[list[Document]]:
        check_search(queries, k, len(self))
        if not queries:
            return []
        vectors = self.encoder.encode_queries(queries)
        with self._unchanged_files():
            found = zip(*self._searched.search(vectors, k), strict=True)
            return [
                [
                    document(int(numbers[place]), float(scores[place]))
                    for place in np.lexsort((numbers, -scores))
                    if numbers[place] >= 0  # FAISS fills up with -1
                ]
                for scores, numbers in found
            ]

    def _document(self, number: int, score: float) -> Document:
        doc = self._documents[number]
        return Document(doc.id, doc.title, doc.text, score)

    def _row(self, number: int, score: float) -> RowDocument:
        assert isinstance(self._documents, DocumentFile)
        return RowDocument(self._documents[number], score, self._documents.row(number))

    def vectors(self) -> Vectors:
        """The vectors of all documents, shape (documents, dimension); approximate if compressed."""
        vectors: Vectors = self.index.reconstruct_n(0, len(self))
        return vectors

    def save(self, path: str | Path) -> None:
        """Write the index to a folder, whole or not at all; the model stays where it is.

        Args:
            path: The folder; an index that is there already is replaced.

        Raises:
            FileExistsError: If something other than an index is there.
        """
        with replacing_directory(Path(path)) as folder:
            write_vector_index(self.index, folder)
            DocumentFile.write(self._documents, folder)
            kept = {k: v for k, v in self.parameters.items() if k != "query_precision"}
            content = {"passages": len(self), "parameters": kept}
            write_manifest(folder, FORMAT, VERSION, content)

    @classmethod
    def load(
        cls,
        path: str | Path,
        mmap: bool = True,
        *,
        model: str | None = None,
        search: str | None = None,
        device: str | None = "cpu",
        precision: str = "float32",
        vector_device: str | None = None,
    ) -> Self:
        """Read an index that :meth:`save` wrote; it answers as the saved one did.

        Args:
            path: The folder.
            mmap: Map vectors and documents into memory, which makes loading fast; of files above
                16 MiB only the sizes are checked then. Otherwise read everything and check the
                hashes.
            model: Where the encoder is now, if it has moved since.
            search: How thoroughly to search, if otherwise than when it was built.
            device: Where the encoder runs; None for a GPU if there is one.
            precision: That of the encoder for queries, whatever that of the documents was. Below
                float32 it is faster where the processor has it, and documents at nearly the same
                distance can change places.
            vector_device: Where the vectors are searched: torch's names of devices, separated by
                commas, such as ``"cuda"`` or ``"cuda:0,cuda:1"``. None for FAISS in main memory.
                A flat index finds the same documents anywhere.

        Raises:
            CorruptIndexError: If a file is missing, damaged, or does not fit the others.
            ValueError: If the encoder is not the one that the index was built with, or the vectors
                cannot be searched on those devices.
        """
        folder = Path(path)
        files = IndexFiles(folder, FORMAT, VERSION, check_hashes=not mmap)
        manifest = files.manifest
        parameters = manifest.get("parameters", {})
        try:
            config = EncoderSettings(*(parameters[n] for n in ("model", "preset", "max_length")))
            parameters = {**parameters, "search": search or parameters["search"]}
            if precision != "float32":
                parameters["query_precision"] = precision
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptIndexError(
                f"the manifest in {folder} has no sound parameters ({error!r}); build it again"
            ) from error
        documents = DocumentFile(folder)
        index = read_vector_index(folder, mmap)
        if not index.ntotal == len(documents) == manifest.get("passages"):
            raise CorruptIndexError(f"the files in {folder} do not fit together; build it again")
        config = replace(config, model=model or config.model)
        encoder = SentenceEncoder(config, device, precision=precision)
        _check_encoder(encoder, parameters, index.d, folder)
        in_memory = not mmap and manifest.get("rows") is not True  # rows are read from the file
        kept = tuple(documents) if in_memory else documents
        files.check_same()
        if in_memory:
            files.close()  # all is read: what is written into them no longer matters
        return cls(index, kept, encoder, parameters, files, vector_device)

    def __reduce__(self) -> tuple[object, ...]:
        if self._files is None:
            raise TypeError("only a dense retriever that was loaded can be pickled; save it first")
        encoder, search = self.encoder, self.parameters["search"]
        place = self._files.folder, self._files.manifest
        return _reload, (type(self), *place, encoder.config.model, search, encoder.precision)


def dense_parameters(encoder: SentenceEncoder, factory: str, search: str | None) -> dict[str, Any]:
    """What the results of a dense retriever depend on, as JSON-ready data."""
    searched = default_search(factory) if search is None else search
    return {**encoder.parameters, "factory": factory, "search": searched}


def _reload(
    kind: type[DenseRetriever],
    folder: Path,
    manifest: dict[str, Any],
    model: str,
    search: str,
    precision: str,
) -> DenseRetriever:
    check_unreplaced(folder, manifest)
    return kind.load(folder, model=model, search=search, precision=precision)


def _check_encoder(
    encoder: SentenceEncoder, parameters: dict[str, Any], dimension: int, folder: Path
) -> None:
    """Refuse a model that would put queries elsewhere than the documents are."""
    if dimension != encoder.dimension or encoder.sha256 != parameters.get("model_sha256"):
        raise ValueError(
            f"the index in {folder} was built with another model than {encoder.config.model!r} "
            f"(weights {str(parameters.get('model_sha256'))[:12]} with {dimension} dimensions, got "
            f"{encoder.sha256[:12]} with {encoder.dimension}); name the one it was built with, or "
            "build it again"
        )
    ours = encoder.parameters
    differing = [
        name
        for name in ("query_prefix", "passage_prefix", "pooling", "normalize", "max_length")
        if ours[name] != parameters.get(name)
    ]
    if differing:
        raise ValueError(
            f"the index in {folder} was built with another {' and '.join(differing)} than "
            f"{encoder.config.model!r} with the preset {encoder.config.preset!r} has now; "
            "build it again"
        )
    if not same_probe(parameters.get("probe"), ours["probe"]):
        raise ValueError(
            f"{encoder.config.model!r} has the weights that the index in {folder} was built with, "
            "but gives other vectors now: its configuration or its tokenizer's has changed; "
            "undo that, or build the index again"
        )
