"""The vectors of a dense index on GPUs: exact search by torch, other kinds by FAISS's GPU build.

FAISS searches in main memory. :func:`on_devices` puts the vectors elsewhere. A flat index is
searched by torch (:class:`TorchFlat`), which gives the same documents; the same code runs on a CPU.
Any other kind of index needs the extra ``dense-gpu``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igsearch_env.extras import import_extra
from igsearch_env.retrieval.encoder import Vectors
from igsearch_env.retrieval.vector_index import import_faiss

Numbers = NDArray[np.int64]
Device = Any
"""A ``torch.device``; torch is imported where it is used."""
Tensor = Any
"""A ``torch.Tensor``."""

WORKING_BYTES = 1 << 30
"""What a search needs on a device beside the vectors, about."""
_GIB = 1 << 30
_COPIED = 65_536  # vectors that are copied to a device at a time
_GROUP = 64  # scores of which the largest is taken first
_ROUNDING = 2.0**-22
"""Relative error of adding two numbers in float32, with room for how GPUs add."""


def on_devices(index: Any, devices: str) -> Any:
    """Put the vectors of an index on devices.

    Args:
        index: A FAISS index that ranks by inner product; it must live on, since documents are
            scored from it.
        devices: Names as torch has them, separated by commas, such as ``"cuda"`` or
            ``"cuda:0,cuda:1"``. Several devices share the vectors.

    Returns:
        An object whose ``search(vectors, k)`` gives scores and numbers, as that of FAISS does.

    Raises:
        ValueError: If there is no such device, the vectors do not fit, or the kind of index cannot
            be searched there.
        ImportError: If torch, or the GPU build of FAISS where it is needed, is not installed.
    """
    names = [name.strip() for name in devices.split(",")]
    chosen = [_device(name) for name in names]
    if isinstance(index, import_faiss().IndexFlat):
        return TorchFlat(index, chosen)
    return faiss_on_gpus(index, chosen)


@dataclass(frozen=True)
class Part:
    """Vectors on one device: some rows of the index.

    Args:
        vectors: Shape (rows, dimension), perhaps in half precision.
        first: Number of the first row.
        norm: Length of the longest vector, as it is on the device.
        error: By how much a vector was changed there, at most, in length.
    """

    vectors: Tensor
    first: int
    norm: float
    error: float


class TorchFlat:
    """Exact search in the vectors of a flat index, on any of torch's devices.

    A search multiplies queries and vectors block by block and keeps the best candidates. FAISS
    then scores the candidates anew from the vectors in main memory. The error of the product has a
    bound, which follows from how far rounding moved each vector. Where a document that is no
    candidate might belong to the best by that bound, every document in reach is scored. So
    documents, order and scores are bit for bit those that FAISS gives on one thread for a query by
    itself, in batches of any size; where equal scores stand at the end of a list, FAISS decides
    which stay.

    Args:
        index: A flat index of FAISS by inner product.
        devices: Where the vectors go; each gets a share.
        dtype: Their precision there. None for float16, but on a CPU float32, which needs no copy.

    Attributes:
        parts: The share of each device.

    Raises:
        ValueError: If the vectors do not fit into the memory that is free, or one has a number
            that the precision cannot hold.
    """

    def __init__(self, index: Any, devices: Sequence[Device], dtype: Any = None) -> None:
        self._torch = _import_torch()
        self._index = index
        faiss = import_faiss()
        count, dimension = index.ntotal, index.d
        memory = faiss.rev_swig_ptr(self._index.get_xb(), count * dimension)
        vectors = memory.reshape(count, dimension)
        bounds = np.linspace(0, count, len(devices) + 1).astype(int)
        self.parts = []
        for device, start, end in zip(devices, bounds, bounds[1:], strict=False):
            kind = dtype or (self._torch.float32 if device.type == "cpu" else self._torch.float16)
            if device.type != "cpu" or kind != self._torch.float32:
                check_room(device, int(end - start) * dimension * kind.itemsize)
            self.parts.append(self._copy(vectors[start:end], int(start), device, kind))

    def _copy(self, vectors: Vectors, first: int, device: Device, dtype: Any) -> Part:
        torch = self._torch
        mapped = device.type == "cpu" and dtype == torch.float32
        kept = torch.from_numpy(vectors) if mapped else None
        if kept is None:
            kept = torch.empty(vectors.shape, dtype=dtype, device=device)
        norm = error = 0.0
        for start in range(0, len(vectors), _COPIED):
            exact = torch.from_numpy(vectors[start : start + _COPIED]).to(device)
            block = kept[start : start + _COPIED]
            if not mapped:
                block.copy_(exact)
            near = block.float()
            norm = max(norm, float(near.norm(dim=1).max()))
            error = max(error, float((near - exact).norm(dim=1).max()))
        if not np.isfinite(norm + error):
            raise ValueError(
                f"a vector of the index has a number that is not finite in {dtype}; search it in "
                "main memory, or build it of vectors of length 1"
            )
        return Part(kept, first, norm, error)

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Numbers]:
        """Find the nearest vectors.

        Args:
            queries: Shape (queries, dimension).
            k: How many for each, at most as many as there are.

        Returns:
            Scores and numbers of vectors, each of shape (queries, k), best first.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        wanted = min(max(32, 2 * k), self._index.ntotal)
        near, numbers = self._candidates(queries, wanted)
        scores = self._exact(queries, numbers)
        least = np.partition(scores, -k, axis=1)[:, -k]  # of the k best candidates
        errors = self._errors(queries)
        # What is no candidate scored near.min() at most, so it may score as much as this:
        others = near.min(axis=1) + errors if wanted < self._index.ntotal else -np.inf
        unsure = np.flatnonzero(others >= least)
        tied = np.flatnonzero((scores >= least[:, None]).sum(axis=1) > k)
        again = {int(row): numbers[row] for row in tied}
        reach = self._in_reach(queries[unsure], (least - errors)[unsure])
        again |= dict(zip(unsure.tolist(), reach, strict=True))
        found_scores, found = _best(scores, numbers, k)
        for row, candidates in again.items():
            found_scores[row], found[row] = self._alone(queries[row : row + 1], candidates, k)
        return found_scores, found

    def _alone(self, query: Vectors, numbers: Numbers, k: int) -> tuple[Vectors, Numbers]:
        """The k best of some vectors for one query, shape (1, dimension)."""
        scores = self._exact(query, numbers[None])[0]
        numbers = np.sort(numbers[scores >= np.partition(scores, -k)[-k]])
        if len(numbers) > k:
            # Equal scores stand at the end of the list. Which of them FAISS takes depends on what
            # came before them, so it is asked: vectors with lower scores make no difference to its
            # heap, but to what it uses for longer lists.
            faiss = import_faiss()
            if k < faiss.cvar.distance_compute_min_k_reservoir:
                some = faiss.IndexFlatIP(self._index.d)
                some.add(self._index.reconstruct_batch(numbers))
                numbers = numbers[some.search(query, k)[1][0]]
            else:
                numbers = self._index.search(query, k)[1][0]
        found, order = _best(self._exact(query, numbers[None]), numbers[None], k)
        return found[0], order[0]

    def _errors(self, queries: Vectors) -> NDArray[np.float64]:
        """By how much a product may differ from FAISS's score, for each query."""
        torch = self._torch
        errors = np.zeros(len(queries))
        exact = torch.from_numpy(queries)
        lengths = exact.double().norm(dim=1)
        for part in self.parts:
            rounded = exact.to(part.vectors.dtype)
            moved = (exact.double() - rounded.double()).norm(dim=1)
            adding = 2 * queries.shape[1] * _ROUNDING * (lengths + moved) * (part.norm + part.error)
            one = lengths * part.error + moved * part.norm + adding
            errors = np.maximum(errors, 1.001 * one.numpy())
        return errors

    def _products(self, queries: Vectors, part: Part) -> Any:
        """Yields the first row and the scores of each block of vectors."""
        torch = self._torch
        device = part.vectors.device
        rounded = torch.from_numpy(queries).to(device).to(part.vectors.dtype)
        numbers = 1 << (22 if device.type == "cpu" else 26)
        size = max(_GROUP, numbers // len(queries) // _GROUP * _GROUP)
        for start in range(0, len(part.vectors), size):
            block = part.vectors[start : start + size]
            if device.type == "cuda" and block.dtype != torch.float32:
                yield start, torch.mm(rounded, block.T, out_dtype=torch.float32)
            else:  # the products are exact in float32, and so are the sums but for rounding
                yield start, rounded.float() @ block.float().T

    def _candidates(self, queries: Vectors, count: int) -> tuple[Vectors, Numbers]:
        """The best by their products: values and numbers, each of shape (queries, count)."""
        torch = self._torch
        found = []
        for part in self.parts:  # GPUs work at once: nothing waits for them in here
            best: list[tuple[Any, Any]] = []
            for start, scores in self._products(queries, part):
                values, places = _largest(torch, scores, count)
                best.append((values, places + (start + part.first)))
                if len(best) > 1:
                    best = [_merged(torch, best, count)]
            found.append(best[0] if best else None)
        values, numbers = _merged(
            torch, [(v.cpu(), n.cpu()) for v, n in filter(None, found)], count
        )
        return values.numpy(), numbers.numpy()

    def _in_reach(self, queries: Vectors, least: NDArray[np.float64]) -> list[Numbers]:
        """For each query the numbers of all vectors whose product is at least so much."""
        torch = self._torch
        # Rounded down, so that no product is lost by it.
        limits = torch.from_numpy(np.nextafter(least.astype(np.float32), np.float32(-np.inf)))
        found: list[list[Numbers]] = [[] for _ in queries]
        for part in self.parts if len(queries) else ():
            limit = limits.to(part.vectors.device)[:, None]
            for start, scores in self._products(queries, part):
                rows, places = (one.cpu().numpy() for one in torch.where(scores >= limit))
                for row in np.unique(rows):
                    found[row].append(places[rows == row] + start + part.first)
        return [np.concatenate(one) for one in found]

    def _exact(self, queries: Vectors, numbers: Numbers) -> Vectors:
        """FAISS's own scores of some vectors, shape (queries, numbers per query)."""
        faiss = import_faiss()
        numbers = np.ascontiguousarray(numbers)
        scores = np.empty(numbers.shape, dtype=np.float32)
        pointers = [faiss.swig_ptr(one) for one in (queries, scores, numbers)]
        query, score, number = pointers
        self._index.compute_distance_subset(len(queries), query, numbers.shape[1], score, number)
        return scores


def _largest(torch: Any, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest scores of each row and their places.

    The largest of each group are compared first: the ``count`` best groups hold the ``count`` best
    scores, and sorting is what takes the time.
    """
    rows, width = scores.shape
    groups = width // _GROUP
    if groups <= 2 * count:
        values, places = scores.topk(min(count, width))
        return values, places
    whole = groups * _GROUP
    highest = scores[:, :whole].view(rows, groups, _GROUP).amax(2).topk(count).indices
    inside = torch.arange(_GROUP, device=scores.device)
    places = (highest[:, :, None] * _GROUP + inside).view(rows, -1)
    rest = torch.arange(whole, width, device=scores.device).expand(rows, -1)
    places = torch.cat([places, rest], 1)
    values, order = scores.gather(1, places).topk(count)
    return values, places.gather(1, order)


def _merged(torch: Any, found: list[tuple[Any, Any]], count: int) -> tuple[Any, Any]:
    values = torch.cat([values for values, _ in found], 1)
    places = torch.cat([places for _, places in found], 1)
    values, order = values.topk(min(count, values.shape[1]))
    return values, places.gather(1, order)


def _best(scores: Vectors, numbers: Numbers, k: int) -> tuple[Vectors, Numbers]:
    """The k best of each row, equal scores in the order of the numbers."""
    order = np.lexsort((numbers, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)


def check_room(device: Device, need: int) -> None:
    """Make sure that so many bytes of vectors, and a search, fit into a device.

    Raises:
        ValueError: If they do not.
    """
    free = free_bytes(device)
    if need + WORKING_BYTES > free:
        raise ValueError(
            f"the vectors need {need / _GIB:.1f} GiB on {device} and a search "
            f"{WORKING_BYTES / _GIB:.1f} GiB more, and {free / _GIB:.1f} GiB are free: name "
            "several devices (--vector-device cuda:0,cuda:1), or leave --vector-device out to "
            "search in main memory"
        )


def free_bytes(device: Device) -> int:
    """Memory of a device that is free; of a CPU, all that the machine has."""
    torch = _import_torch()
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _import_torch() -> Any:
    return import_extra("torch", "dense")


def _device(name: str) -> Device:
    library = _import_torch()
    try:
        device: Device = library.device(name)
        library.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch lacks CUDA
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot put vectors on {name!r}: {reason}") from error
    return device


def faiss_on_gpus(index: Any, devices: Sequence[Device]) -> Any:
    """A copy of an index on GPUs, in float16: a whole one on each if it fits, else in shards."""
    faiss = import_faiss()
    kind = type(index).__name__
    if not hasattr(faiss, "StandardGpuResources"):
        raise ValueError(
            f"an index of the kind {kind} is searched on a GPU by FAISS, and faiss-cpu is "
            'installed: pip uninstall faiss-cpu && pip install "igsearch-env[dense-gpu]", or '
            "build a Flat index, which needs torch alone"
        )
    if any(device.type != "cuda" for device in devices):
        raise ValueError(f"FAISS searches an index of the kind {kind} on cuda devices only")
    whole = index.ntotal * (index.sa_code_size() // (2 if "Flat" in kind else 1) + 8)
    shard = any(whole + WORKING_BYTES > free_bytes(device) for device in devices)
    for device in devices:
        check_room(device, whole // len(devices) if shard else whole)
    options = faiss.GpuMultipleClonerOptions()
    options.useFloat16, options.shard = True, shard
    resources = [faiss.StandardGpuResources() for _ in devices]
    numbers = [device.index or 0 for device in devices]
    try:
        return faiss.index_cpu_to_gpu_multiple_py(resources, index, options, numbers)
    except RuntimeError as error:
        raise ValueError(
            f"FAISS cannot search an index of the kind {kind} on a GPU: {error}; leave "
            "--vector-device out, or build a Flat or IVF index"
        ) from error
