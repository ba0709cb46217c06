"""The seven question sets that search agents are compared on, by name.

They are those of the data set ``RUC-NLPIR/FlashRAG_datasets`` on the Hugging Face hub, which
Search-R1 and its successors report on: a configuration per set, ``NAME/SPLIT.jsonl`` in it, and
rows with ``id``, ``question``, ``golden_answers`` and ``metadata``. A folder of such files, JSONL
or Parquet, serves as well.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from igsearch_env.data.rows import file_in_folder

HUB = "RUC-NLPIR/FlashRAG_datasets"
FOLDER_VARIABLE = "IGSEARCH_BENCHMARKS"
"""Environment variable that names a folder of the files, used in place of the hub."""


@dataclass(frozen=True)
class Benchmark:
    """A question set and the split of it that results are reported on.

    Args:
        title: The name that papers write.
        split: The split: the test set where its answers are public, else the development set.
        size: Number of questions of that split on the hub.
    """

    title: str
    split: str
    size: int


BENCHMARKS: Mapping[str, Benchmark] = {
    "nq": Benchmark("NQ", "test", 3_610),
    "triviaqa": Benchmark("TriviaQA", "test", 11_313),
    "popqa": Benchmark("PopQA", "test", 14_267),
    "hotpotqa": Benchmark("HotpotQA", "dev", 7_405),
    "2wikimultihopqa": Benchmark("2WikiMultiHopQA", "dev", 12_576),
    "musique": Benchmark("MuSiQue", "dev", 2_417),
    "bamboogle": Benchmark("Bamboogle", "test", 125),
}
"""The benchmarks by name, sizes as the hub's own list states them."""


def benchmark_source(name: str, split: str, folder: str | PathLike[str] | None = None) -> str:
    """Where the rows of a benchmark are: a file, or a name of the hub.

    Args:
        name: A name of :data:`BENCHMARKS`.
        split: The split.
        folder: Folder of the benchmarks' files, ``NAME/SPLIT.jsonl`` or ``.parquet``; None for the
            one that :data:`FOLDER_VARIABLE` names or, if it names none, the hub.

    Raises:
        ValueError: If the folder does not hold one file for the benchmark.
    """
    folder = folder or os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return f"hf:{HUB}:{name}:{split}"
    place = Path(folder) / name
    found = file_in_folder(place, split)
    if found is None:
        raise ValueError(
            f"expected a file {split}.jsonl or {split}.parquet in {place}, which has none of them; "
            f"the layout is that of hf:{HUB}"
        )
    return str(found)
