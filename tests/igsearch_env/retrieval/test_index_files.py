"""Files of an index that are overwritten, cut, replaced or damaged while it is in use."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from igsearch_env.cli import check
from igsearch_env.data.world import World
from igsearch_env.episode import Document
from igsearch_env.retrieval import index_directory
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.index_directory import CorruptIndexError
from igsearch_env.retrieval.open import damage, open_retriever, save_fusion

ROOT = Path(__file__).resolve().parents[3]
FLIPS = 200
QUERIES = ["capital river", "born poet", "film director 1950", "lima"]


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate(5, people=40)


@pytest.fixture
def saved(world: World, tmp_path: Path) -> Path:
    BM25Retriever.build(world.documents).save(tmp_path / "index")
    return tmp_path / "index"


def flip(file: Path, place: int, bit: int) -> None:
    """Change a bit as a failing disk does: the file looks untouched."""
    before = file.stat()
    with file.open("r+b") as opened:
        opened.seek(place)
        (byte,) = opened.read(1)
        opened.seek(place)
        opened.write(bytes([byte ^ 1 << bit]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def flips(folder: Path, count: int) -> list[tuple[Path, int, int]]:
    """Random bits of the files of a folder; each file has some."""
    rng, files = random.Random(0), sorted(folder.iterdir())
    chosen = [files[i % len(files)] for i in range(count)]
    return [(file, rng.randrange(file.stat().st_size), rng.randrange(8)) for file in chosen]


def test_no_flipped_bit_gives_other_results_in_silence(saved: Path, capsys: Any) -> None:
    """Under the map of an open index; the check reads what the index reads."""
    expected = BM25Retriever.load(saved).search(QUERIES, 5)
    found = 0
    for file, place, bit in flips(saved, FLIPS):
        loaded = BM25Retriever.load(saved)
        flip(file, place, bit)
        try:
            whole = not damage(saved)
        except CorruptIndexError:
            whole = False
        if whole:  # such as in the name of the manifest's own hash
            assert loaded.search(QUERIES, 5) == expected, (file.name, place, bit)
        else:
            found += 1
            with pytest.raises(CorruptIndexError):  # these files are small: opening checks them
                BM25Retriever.load(saved)
        flip(file, place, bit)
    assert found > 0.9 * FLIPS
    assert damage(saved) == []


def test_a_large_file_is_checked_when_all_is_read(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved / "documents.jsonl"
    monkeypatch.setattr(index_directory, "CHECKED_BYTES", file.stat().st_size - 1)
    monkeypatch.setattr(index_directory, "BLOCK", 1000)
    BM25Retriever.build(World.generate(5, people=40).documents).save(saved)
    flip(file, 2345, 3)
    BM25Retriever.load(saved)
    with pytest.raises(CorruptIndexError, match="does not match its hash"):
        BM25Retriever.load(saved, mmap=False)
    assert damage(saved) == [
        f"the content of {file} does not match its hash; damaged: the MiB from byte 2,000; "
        "build the index again"
    ]


def test_the_command_names_each_damaged_file(saved: Path, tmp_path: Path, capsys: Any) -> None:
    save_fusion(tmp_path / "hybrid", [saved])
    for folder in (saved, tmp_path / "hybrid"):
        check.main([str(folder)])
        assert "every byte is as it was written" in capsys.readouterr().out
    flip(saved / "words.txt", 10, 0)
    (saved / "documents.offsets.npy").unlink()
    for folder in (saved, tmp_path / "hybrid"):
        with pytest.raises(SystemExit) as ended:
            check.main([str(folder)])
        assert ended.value.code == 1
        printed = capsys.readouterr().out.replace("\n", " ")
        assert re.search(r"words\.txt\s+does not match its hash", printed)
        assert re.search(r"documents\.offsets\.npy\s+is missing", printed)


@pytest.mark.parametrize("name", ["data.csc.index.npy", "documents.jsonl", "words.txt"])
def test_an_overwritten_file_ends_the_search_in_words(saved: Path, name: str) -> None:
    loaded = BM25Retriever.load(saved)
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: len(content) // 2])  # reading its map would be fatal
    for _ in range(2):
        with pytest.raises(CorruptIndexError, match=f"{re.escape(name)} was overwritten while"):
            loaded.search(QUERIES, 3)


def test_vectors_are_watched_too(dense: DenseRetriever, tmp_path: Path) -> None:
    dense.save(tmp_path / "dense")
    loaded, whole = (DenseRetriever.load(tmp_path / "dense", mmap=mmap) for mmap in (True, False))
    (tmp_path / "dense" / "vectors.faiss").write_bytes(b"")
    with pytest.raises(CorruptIndexError, match=r"vectors\.faiss was overwritten while"):
        loaded.search(["lima"], 1)
    assert whole.search(["lima"], 1) == dense.search(["lima"], 1)


def test_a_replaced_index_answers_as_before_until_it_is_opened_again(saved: Path) -> None:
    loaded = BM25Retriever.load(saved)
    expected, corpus = loaded.search(QUERIES, 5), loaded.corpus_sha256
    other = BM25Retriever.build([Document("1", "Lima", "capital river born poet film lima")])
    sent = pickle.dumps(loaded)
    other.save(saved)
    assert loaded.search(QUERIES, 5) == expected
    assert loaded.corpus_sha256 == corpus != other.corpus_sha256
    assert BM25Retriever.load(saved).search(QUERIES, 1) == other.search(QUERIES, 1)
    with pytest.raises(CorruptIndexError, match="before it was replaced; start both again"):
        pickle.loads(sent)  # another process would search another corpus


def test_an_index_that_is_replaced_while_it_is_opened_is_not_mixed(
    saved: Path, monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    """Both fit each other in size: only the scores differ."""
    other = BM25Retriever.build(world.documents, b=0.3)
    original = np.load

    def replace_first(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(np, "load", original)
        other.save(saved)
        return original(*args, **kwargs)

    monkeypatch.setattr(np, "load", replace_first)
    with pytest.raises(CorruptIndexError, match="was replaced while it was being opened"):
        BM25Retriever.load(saved)
    assert open_retriever(saved).search(QUERIES, 3) == other.search(QUERIES, 3)


def test_a_server_outlives_files_that_are_cut_and_swapped(saved: Path, tmp_path: Path) -> None:
    def serve() -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "igsearch_env.cli", "serve", "--port", "0"]
        process = subprocess.Popen(
            [*command, "--index", str(saved)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        url = process.stdout.readline().split()[1].rstrip(";")
        assert process.stdout.readline().startswith("ready: ")
        return process, url

    def ask(url: str, query: str) -> httpx2.Response:
        return httpx2.post(url, json={"query": query, "topk": 2}, timeout=60)

    expected = [[doc.id for doc in row] for row in BM25Retriever.load(saved).search(QUERIES, 2)]
    other = tmp_path / "other"
    BM25Retriever.build([Document("1", "Lima", "capital river born poet lima")]).save(other)
    process, url = serve()
    try:
        shutil.copytree(saved, tmp_path / "copy")
        BM25Retriever.load(other).save(saved)  # as igsearch index does: a new folder, renamed
        found = [[doc["id"] for doc in ask(url, q).json()["result"][0]] for q in QUERIES]
        assert found == expected
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
    process, url = serve()
    try:
        shutil.copy(tmp_path / "copy" / "documents.jsonl", saved / "documents.jsonl")
        os.truncate(saved / "data.csc.index.npy", 0)
        for query in QUERIES:
            answer = ask(url, query)
            assert answer.status_code == 500
            assert "was overwritten while its index is in use" in json.dumps(answer.json())
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
