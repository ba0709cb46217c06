"""Builds that are killed and resumed.

Every kind of index is killed with SIGKILL a few times; IGSEARCH_KILLS=20 says how often.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from igsearch_env.data.corpus import read_corpus
from igsearch_env.episode import Document
from igsearch_env.retrieval import building, word_table
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.building import IndexBuild, Recipe, swap_in
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.encoder import EncoderSettings, SentenceEncoder
from igsearch_env.retrieval.index_directory import CorruptIndexError
from igsearch_env.retrieval.open import open_retriever
from igsearch_env.retrieval.recipes import BM25Recipe, DenseRecipe
from tests.fork_server import fork_server
from tests.igsearch_env.retrieval.killed_build import NoBar, build

KILLS = int(os.environ.get("IGSEARCH_KILLS", "1"))


def write_corpus(path: Path, documents: Iterable[Document]) -> Path:
    rows = ({"id": d.id, "title": d.title, "text": d.text} for d in documents)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., tuple[BaseProcess, Connection]]]:
    """Starts a build in a fresh process; gives the process and what it tells of its progress."""
    with fork_server(["tests.igsearch_env.retrieval.killed_build"]) as context:

        def begin(*arguments: object) -> tuple[BaseProcess, Connection]:
            told, theirs = context.Pipe(duplex=False)
            process = context.Process(target=build, args=(*arguments, theirs))
            process.start()
            theirs.close()
            return process, told

        yield begin


def steps_to_the_end(process: BaseProcess, told: Connection) -> int:
    """How many steps a build tells of until it ends, which must be well."""
    steps = 0
    try:
        while True:
            told.recv()
            steps += 1
    except EOFError:
        process.join()
    assert process.exitcode == 0
    return steps


@pytest.mark.parametrize("kind", ["bm25", "flat", "ivf", "hnsw"])
def test_a_killed_build_is_resumed_to_the_same_bytes(
    kind: str,
    start: Callable[..., tuple[BaseProcess, Connection]],
    minilm: str,
    passages: list[Document],
    tmp_path: Path,
) -> None:
    documents = passages[:100]
    if kind == "bm25":
        documents = [Document(f"{n}-{d.id}", d.title, d.text) for n in range(15) for d in documents]
    corpus = write_corpus(tmp_path / "corpus.jsonl", documents)
    steps = steps_to_the_end(*start(kind, minilm, corpus, tmp_path / "whole"))
    expected = content(tmp_path / "whole")
    assert len(open_retriever(tmp_path / "whole", mmap=False)) == len(documents)

    out = tmp_path / "killed"
    rng = random.Random(kind)
    kills = 0
    while kills < KILLS:
        process, told = start(kind, minilm, corpus, out)
        try:
            for _ in range(rng.randint(1, steps)):
                told.recv()
        except EOFError:  # what was left after the last kill took fewer steps
            pass
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if out.exists():
            assert content(out) == expected  # whole or not there
            shutil.rmtree(out)
    steps_to_the_end(*start(kind, minilm, corpus, out))
    assert content(out) == expected
    assert not (tmp_path / "killed.partial").exists()


class Interrupted(Exception):
    pass


class StopAfter(NoBar):
    """Ends a build after so many calls, as a kill there would."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def advance(self, amount: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise Interrupted


def build_all(
    documents: list[Document], out: Path, recipe: Recipe, progress: NoBar | None = None
) -> IndexBuild:
    return IndexBuild(lambda: documents, out, recipe, progress or NoBar(), 32)


def interrupt(documents: list[Document], out: Path, recipe: Recipe, shards: int = 2) -> None:
    with pytest.raises(Interrupted):
        build_all(documents, out, recipe, StopAfter(shards)).run()


@pytest.fixture(params=["bm25", "dense"])
def recipe(request: pytest.FixtureRequest, encoder: SentenceEncoder) -> Recipe:
    return BM25Recipe() if request.param == "bm25" else DenseRecipe(encoder)


def test_an_index_is_as_one_built_in_memory(
    passages: list[Document], encoder: SentenceEncoder, dense: DenseRetriever, tmp_path: Path
) -> None:
    assert build_all(passages, tmp_path / "bm25", BM25Recipe(1.2, 0.5, 3)).run() == 160
    BM25Retriever.build(passages, 1.2, 0.5, 3).save(tmp_path / "in_memory")
    assert content(tmp_path / "bm25") == content(tmp_path / "in_memory")
    build_all(passages, tmp_path / "dense", DenseRecipe(encoder)).run()
    loaded = open_retriever(tmp_path / "dense")
    assert loaded.parameters == dense.parameters
    queries = ["Where was the poet born?"]
    found, expected = (one.search(queries, 5)[0] for one in (loaded, dense))
    assert [document.id for document in found] == [document.id for document in expected]
    assert [d.score for d in found] == pytest.approx([d.score for d in expected], abs=1e-5)


@pytest.mark.parametrize(
    ("block", "shard_size"), [(300, 7), (50, 30), (1000, 1), (word_table.BLOCK, 100)]
)
def test_bm25_in_shards_is_bm25s_over_all_documents_byte_by_byte(
    passages: list[Document],
    block: int,
    shard_size: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Document frequencies and the mean length are those of the whole corpus, not of a shard."""
    monkeypatch.setattr(word_table, "BLOCK", block)
    odd = [
        Document("odd", "Ōsaka 東京 \U00020000 \uff5e\ufa10", "🦙 " + "the " * 300),
        Document("empty", "", "..."),
        Document("last", "", "zzz"),
    ]
    documents = [*odd[:2], *passages[:60], *odd[2:]]
    IndexBuild(lambda: documents, tmp_path / "shards", BM25Recipe(), NoBar(), shard_size).run()
    whole = BM25Retriever.build(documents)
    whole.save(tmp_path / "whole")
    assert content(tmp_path / "shards") == content(tmp_path / "whole")
    queries = [passages[7].text, "東京 Ōsaka", "\U00020000", "🦙", "zzz zzz", "unheard"]
    found = open_retriever(tmp_path / "shards").search(queries, 63)
    assert found == whole.search(queries, 63)
    assert [len(one) > 0 for one in found] == [True] * 5 + [False]


def test_finished_shards_are_kept(passages: list[Document], recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "index"
    interrupt(passages, out, recipe)
    shards = sorted((tmp_path / "index.partial" / "shards").glob("*.npz"))
    assert len(shards) == 3
    before = [shard.stat().st_mtime_ns for shard in shards]
    with pytest.raises(FileExistsError, match="unfinished build; pass --resume"):
        build_all(passages, out, recipe).run()
    interrupted_again = build_all(passages, out, recipe, StopAfter(0))
    with pytest.raises(Interrupted):
        interrupted_again.run(resume=True)
    assert [shard.stat().st_mtime_ns for shard in shards] == before
    assert build_all(passages, out, recipe).run(resume=True) == 160
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_resuming_refuses_another_corpus(
    passages: list[Document], recipe: Recipe, tmp_path: Path
) -> None:
    out = tmp_path / "index"
    interrupt(passages, out, recipe)
    changed = [*passages[:-1], Document(passages[-1].id, "changed", "text")]
    with pytest.raises(ValueError, match=r"index\.partial is of another corpus"):
        build_all(changed, out, recipe).run(resume=True)
    build_all(passages, out, recipe).run(resume=True)
    with pytest.raises(ValueError, match="index is of another corpus"):
        build_all(changed, out, recipe).run(resume=True)
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert build_all(passages, out, recipe).run(resume=True) == 160  # nothing to do
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before


def test_resuming_refuses_other_parameters(
    passages: list[Document], encoder: SentenceEncoder, other_model: str, tmp_path: Path
) -> None:
    other = SentenceEncoder(EncoderSettings(other_model), device="cpu")
    e5 = SentenceEncoder(EncoderSettings(encoder.config.model, "e5"), device="cpu")
    for number, (first, second, message) in enumerate(
        [
            (BM25Recipe(), BM25Recipe(k1=1.5), r"k1 0\.9, asked for 1\.5"),
            (BM25Recipe(), DenseRecipe(encoder), "format 'igsearch-env bm25', asked for"),
            (DenseRecipe(encoder), DenseRecipe(encoder, "HNSW8"), "factory 'Flat', asked for"),
            (DenseRecipe(encoder), DenseRecipe(e5), "query_prefix '', asked for 'query: '"),
            (DenseRecipe(encoder), DenseRecipe(other), "model_sha256 '.*', asked for"),
        ]
    ):
        out = tmp_path / f"index{number}"
        interrupt(passages[:64], out, first, shards=1)
        with pytest.raises(ValueError, match=message):
            build_all(passages[:64], out, second).run(resume=True)
        with pytest.raises(ValueError, match="shard_size 32, asked for 7"):
            IndexBuild(lambda: passages[:64], out, first, NoBar(), 7).run(resume=True)
        build_all(passages[:64], out, first).run(resume=True)
        with pytest.raises(ValueError, match=r"expected|asked for"):
            build_all(passages[:64], out, second).run(resume=True)


def test_resuming_allows_for_rounding_but_not_for_another_encoder(
    passages: list[Document], encoder: SentenceEncoder, tmp_path: Path
) -> None:
    recipe = DenseRecipe(encoder)
    interrupt(passages[:64], tmp_path / "index", recipe, shards=1)
    probe = recipe.parameters["probe"]
    recipe.parameters["probe"] = [1.05 * number for number in probe]
    with pytest.raises(ValueError, match=r"built with other parameters \(probe"):
        build_all(passages[:64], tmp_path / "index", recipe).run(resume=True)
    recipe.parameters["probe"] = [1.001 * number for number in probe]
    assert build_all(passages[:64], tmp_path / "index", recipe).run(resume=True) == 64


def test_an_index_that_is_there_is_replaced_in_the_end_only(
    passages: list[Document], tmp_path: Path
) -> None:
    out = tmp_path / "index"
    build_all(passages, out, BM25Recipe()).run()
    interrupt(passages[:70], out, BM25Recipe(k1=2.0))
    assert len(open_retriever(out)) == 160
    build_all(passages[:70], out, BM25Recipe(k1=2.0)).run(resume=True)
    assert len(open_retriever(out)) == 70


def test_what_cannot_be_built(encoder: SentenceEncoder, tmp_path: Path) -> None:
    silent = [Document("1", "", "..."), Document("2", "", "!")]
    with pytest.raises(ValueError, match="none of the 2 documents has a word"):
        build_all(silent, tmp_path / "index", BM25Recipe()).run()
    assert not (tmp_path / "index.partial").exists()
    with pytest.raises(ValueError, match="too few to train"):
        build_all(silent, tmp_path / "dense", DenseRecipe(encoder, "IVF4,Flat")).run()
    for recipe, arguments, message in (
        (BM25Recipe, (0.9, 2.0), "0 <= b <= 1"),
        (DenseRecipe, (encoder, "Round"), "cannot make an index 'Round'"),
        (DenseRecipe, (encoder, "Flat", "nprobe=2"), "cannot search with 'nprobe=2'"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe(*arguments)
    with pytest.raises(ValueError, match="shard_size must be at least 1"):
        IndexBuild(lambda: silent, tmp_path / "x", BM25Recipe(), NoBar(), 0)
    assert not (tmp_path / "index").exists()


def test_a_corpus_is_read_as_a_stream(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", [Document(str(n), "", "x") for n in range(9)])
    reading = read_corpus(corpus)
    assert next(reading).id == "0"
    corpus.unlink()
    assert [document.id for document in reading][-1] == "8"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux lists its maps there")
def test_no_file_is_mapped_when_the_folder_is_renamed(
    tmp_path: Path, passages: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows refuses to rename a folder of which a file is mapped."""
    maps = []

    def swap(fresh: Path, path: Path, old: Path) -> None:
        maps.append(Path("/proc/self/maps").read_text())
        swap_in(fresh, path, old)

    monkeypatch.setattr(building, "swap_in", swap)
    out = tmp_path / "index"
    IndexBuild(lambda: passages, out, BM25Recipe(), NoBar()).run()
    (held,) = maps
    assert str(tmp_path) not in held
    kept = open_retriever(out)
    assert str(out) in Path("/proc/self/maps").read_text()  # the test can see a map
    assert len(kept.search(["capital"], 1)) == 1


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_an_index_is_written_where_a_link_leads(passages: list[Document], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    link = tmp_path / "index"
    link.symlink_to(disk / "index")  # which is not there yet
    for documents in (passages[:4], passages[:6]):
        IndexBuild(lambda d=documents: d, link, BM25Recipe(), NoBar()).run()  # type: ignore[misc]
        assert len(open_retriever(link)) == len(documents)
        BM25Retriever.build(documents[1:]).save(link)
        assert len(open_retriever(link)) == len(documents) - 1
    assert link.is_symlink()
    assert [path.name for path in disk.iterdir()] == ["index"]
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "index"}


def test_a_shard_of_another_place_is_refused(tmp_path: Path) -> None:
    documents = [Document(str(i), "", f"word{i} lima") for i in range(6)]
    whole = IndexBuild(lambda: documents, tmp_path / "whole", BM25Recipe(), NoBar(), 2)
    whole.run()
    build = IndexBuild(lambda: documents, tmp_path / "index", Failing(), NoBar(), 2)
    with pytest.raises(RuntimeError, match="no room"):
        build.run()
    shards = tmp_path / "index.partial" / "shards"
    shutil.copy(shards / "000001.npz", shards / "000002.npz")
    again = IndexBuild(lambda: documents, tmp_path / "index", BM25Recipe(), NoBar(), 2)
    with pytest.raises(
        CorruptIndexError, match=r"000002\.npz is damaged .*belongs elsewhere.*remove"
    ):
        again.run(resume=True)
    (shards / "000002.npz").unlink()
    again.run(resume=True)
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "index" / file.name).read_bytes() == file.read_bytes()


class Failing(BM25Recipe):
    """Comes to its end once all shards are there."""

    def finish(self, *args: Any) -> None:
        raise RuntimeError("no room")
