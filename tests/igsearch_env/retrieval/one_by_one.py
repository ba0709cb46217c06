"""What FAISS itself finds, which other ways to search are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from igsearch_env.retrieval.encoder import Vectors


def one_by_one(index: Any, queries: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
    """What FAISS finds for each query alone, equal scores in the order of the corpus."""
    scores, numbers = (
        np.concatenate(parts)
        for parts in zip(*(index.search(query[None], k) for query in queries), strict=True)
    )
    order = np.lexsort((numbers, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)
