import json
import subprocess
import sys
from pathlib import Path

import pytest

from igsearch_env.cli.index import main
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.fusion import FusionRetriever
from igsearch_env.retrieval.open import open_retriever


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "wiki.jsonl"
    rows = [{"id": str(n), "contents": f'"Page {n}"\nThe text of page {n}.'} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_index_is_built_and_replaced(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "index"
    for k1 in ("0.9", "1.2"):
        main(["--corpus", str(corpus), "--out", str(out), "--quiet", "--k1", k1])
        printed = capsys.readouterr()
        assert "20 documents" in printed.out
        assert printed.err == ""
    retriever = BM25Retriever.load(out)
    assert retriever.k1 == 1.2
    assert retriever.search(["page 7"], 1)[0][0].title == "Page 7"


def test_dense_and_fused(
    corpus: Path, minilm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bm25, dense, hybrid = (str(tmp_path / name) for name in ("bm25", "dense", "hybrid"))
    main(["--corpus", str(corpus), "--out", bm25])
    options = ["--model", minilm, "--preset", "e5", "--factory", "HNSW8", "--threads", "1"]
    main(["--corpus", str(corpus), "--out", dense, *options, "--max-length", "32", "--resume"])
    printed = capsys.readouterr().out
    assert "read corpus: under way" in printed
    assert "make shards: 0 of 20" in printed
    main(["--fuse", bm25, dense, "--out", hybrid])
    kinds = [type(open_retriever(path)) for path in (bm25, dense, hybrid)]
    assert kinds == [BM25Retriever, DenseRetriever, FusionRetriever]
    parameters = open_retriever(dense).parameters
    assert (parameters["preset"], parameters["max_length"]) == ("e5", 32)
    assert (parameters["factory"], parameters["search"]) == ("HNSW8", "efSearch=128")


def test_how_to_fuse_may_be_said(corpus: Path, tmp_path: Path) -> None:
    parts = [str(tmp_path / name) for name in ("one", "two")]
    for part, k1 in zip(parts, ("0.9", "2"), strict=True):
        main(["--corpus", str(corpus), "--out", part, "--k1", k1, "--quiet"])
    for flags, constant, depth in (([], 60, 100), (["--constant", "0", "--depth", "7"], 0, 7)):
        main(["--fuse", *parts, "--out", str(tmp_path / "hybrid"), *flags])
        parameters = open_retriever(tmp_path / "hybrid").parameters
        assert (parameters["constant"], parameters["depth"]) == (constant, depth)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "nowhere"], "unknown corpus 'nowhere'"),
        (["--corpus", "BAD"], "no column 'contents'"),
        (["--corpus", "CORPUS", "--b", "2"], "0 <= b <= 1"),
        (["--corpus", "CORPUS", "--factory", "Flat"], r"BM25 \(there is no --model\) has no"),
        (["--corpus", "CORPUS", "--model", "x", "--k1", "2"], r"a dense index .* has no --k1"),
        (["--corpus", "CORPUS", "--model", "nowhere/at-all"], "cannot load 'nowhere/at-all'"),
        (["--fuse", "FOLDER"], "is not an index"),
        (["--corpus", "CORPUS", "--threads", "1"], r"BM25 .* has no --threads"),
        (["--corpus", "CORPUS", "--depth", "9"], r"BM25 .* has no --depth"),
        (["--corpus", "CORPUS", "--model", "x", "--constant", "9"], "has no --constant"),
        (
            ["--fuse", "x", "--k1", "9", "--model", "y", "--factory", "Z", "--threads", "1"],
            r"a fusion \(--fuse\) has no --factory, --k1, --model, --threads",
        ),
        (["--fuse", "x", "--resume", "--shard-size", "7"], "has no --resume, --shard-size"),
        (["--fuse", "x", "--preset", "e5"], "has no --preset"),
    ],
)
def test_errors_say_what_to_mend(
    corpus: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": 1}\n')
    places = {"CORPUS": str(corpus), "BAD": str(bad), "FOLDER": str(tmp_path)}
    given = [places.get(argument, argument) for argument in arguments]
    with pytest.raises(ValueError, match=message):
        main([*given, "--out", str(tmp_path / "index")])
    assert not (tmp_path / "index").exists()


def test_the_same_command_builds_once_the_corpus_is_mended(corpus: Path, tmp_path: Path) -> None:
    good = corpus.read_text()
    command = ["--corpus", str(corpus), "--out", str(tmp_path / "index"), "--quiet"]
    for bad, message in (
        (good + '{"id": "20"}\n', "contents"),
        (good + good, "'0'"),
        (good[:-9], "not valid JSON|line 20"),
    ):
        corpus.write_text(bad)
        with pytest.raises(ValueError, match=message):
            main(command)
        assert [path.name for path in tmp_path.iterdir()] == [corpus.name]
    corpus.write_text(good)
    main(command)
    assert len(open_retriever(tmp_path / "index")) == 20


def test_nothing_but_an_index_is_replaced(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="is not an index"):
        main(["--corpus", str(corpus), "--out", str(tmp_path)])


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "igsearch_env.cli", "index", "--corpus", "nowhere", "--out"]
    failed = subprocess.run(
        [*command, str(tmp_path / "index")], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: unknown corpus 'nowhere'")
    assert failed.stderr.count("\n") == 1
