"""An index made in Search-R1's way is used as it is, and answers as Search-R1's server does."""

from __future__ import annotations

import gzip
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from igsearch_env.cli.index import main
from igsearch_env.data.corpus import load_corpus
from igsearch_env.data.world import default_world
from igsearch_env.retrieval import adopting
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.dense import DenseRetriever
from igsearch_env.retrieval.http import HTTPRetriever
from igsearch_env.retrieval.index_directory import CorruptIndexError
from igsearch_env.retrieval.open import damage, open_retriever
from igsearch_env.retrieval.server import RetrievalService, serve
from igsearch_env.retrieval.server_limits import ServerLimits
from igsearch_env.retrieval.vector_index import import_faiss
from tests.conftest import MadeOnce

QUERIES = ["Where was the poet born?", "Ångström 東京 \U0001f600", "capital of", "river", "x"]


@pytest.fixture(scope="session")
def e5(made_once: MadeOnce) -> Path:
    """A small BERT with random weights that vary enough, under a name that asks for E5's preset."""
    return made_once("e5-models", _make_e5) / "e5-small-local"


def _make_e5(folder: Path) -> None:
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    texts = [f"{document.title} {document.text}" for document in default_world().documents[:300]]
    made = BertWordPieceTokenizer()
    made.train_from_iterator([*texts, "query: passage:"], vocab_size=600, show_progress=False)
    special = {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    config = BertConfig(
        vocab_size=600,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.6,
    )
    place = folder / "e5-small-local"
    BertModel(config).save_pretrained(place)
    PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, model_max_length=512, **special
    ).save_pretrained(place)


class Reference:
    """Vectors and answers as Search-R1 makes them, written anew after its documented behaviour.

    The corpus has rows ``{"id", "contents"}``. Documents are encoded as ``passage: `` and their
    contents, queries as ``query: `` and the query; token vectors are averaged over the mask, and
    scaled to length 1. The answer holds each row as it is, with its score beside it.
    """

    def __init__(self, model: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model = AutoModel.from_pretrained(model).eval()

    def encode(self, texts: list[str]) -> Any:
        import torch

        inputs = self.tokenizer(
            texts, max_length=256, padding=True, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            states = self.model(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(2)
            mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
            return torch.nn.functional.normalize(mean, dim=1).numpy()

    def build(self, corpus: Path, out: Path, prefix: str = "passage: ") -> None:
        faiss = import_faiss()
        vectors = self.encode([prefix + row["contents"] for row in rows_of(corpus)])
        index = faiss.index_factory(vectors.shape[1], "Flat", faiss.METRIC_INNER_PRODUCT)
        index.add(vectors)
        faiss.write_index(index, str(out))

    def app(self, vectors: Path, corpus: Path) -> Any:
        """Its server, as a FastAPI application."""
        from fastapi import FastAPI

        index = import_faiss().read_index(str(vectors))
        rows = rows_of(corpus)
        app = FastAPI()

        @app.post("/retrieve")
        def retrieve(body: dict[str, Any]):  # type: ignore[no-untyped-def]
            result = []
            queries = [f"query: {query}" for query in body["queries"]]
            if queries:
                scores, numbers = index.search(self.encode(queries), body.get("topk") or 3)
                for some, found in zip(scores.tolist(), numbers.tolist(), strict=True):
                    hits = [rows[number] for number in found]
                    pairs = zip(hits, some, strict=True)
                    scored = [{"document": row, "score": score} for row, score in pairs]
                    result.append(scored if body.get("return_scores") else hits)
            return {"result": result}

        return app


def rows_of(corpus: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def reference(e5: Path) -> Reference:
    return Reference(e5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the layout of wiki-18.jsonl, with text that is not ASCII, and a title in quotes."""
    file = tmp_path_factory.mktemp("corpus") / "wiki.jsonl"
    found = default_world().documents[:60]
    rows = [{"id": str(n), "contents": f'"{d.title}"\n{d.text}'} for n, d in enumerate(found)]
    rows[7]["contents"] = (
        '""Héroes" (álbum)"\nLíneas 東京,\n\n two </search> \U0001f600 \\ / "end".'
    )
    rows[8]["contents"] = "no title at all"
    file.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return file


@pytest.fixture(scope="module")
def theirs(corpus: Path, reference: Reference) -> Path:
    file = corpus.with_name("e5_Flat.index")
    reference.build(corpus, file)
    return file


Adopt = Callable[..., Path]


@pytest.fixture
def adopt(theirs: Path, corpus: Path, e5: Path, tmp_path: Path) -> Adopt:
    """Adopts an index, theirs unless others are named; gives its folder."""

    def run(*more: str, vectors: Path = theirs, documents: Path = corpus, model: Path = e5) -> Path:
        out = tmp_path / "adopted"
        words = ["--from-faiss", vectors, "--corpus", documents, "--model", model, "--out", out]
        main([*map(str, words), "--quiet", "--device", "cpu", *more])
        return out

    return run


def test_it_is_used_where_it_lies(adopt: Adopt, theirs: Path, corpus: Path) -> None:
    folder = adopt()
    assert (folder / "vectors.faiss").readlink() == theirs
    assert (folder / "documents.jsonl").readlink() == corpus
    retriever = open_retriever(folder)
    assert isinstance(retriever, DenseRetriever)
    assert list(retriever.documents) == load_corpus(corpus)
    assert retriever.corpus_sha256 == BM25Retriever.build(load_corpus(corpus)).corpus_sha256
    assert retriever.parameters["query_prefix"] == "query: "
    assert str(theirs) in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert damage(folder) == []
    with pytest.raises(ValueError, match="the size of the corpus"):
        retriever.search(["a"], 61)


def test_adopting_again_replaces_it_and_leaves_the_files(
    adopt: Adopt, theirs: Path, corpus: Path
) -> None:
    before = theirs.read_bytes(), corpus.read_bytes()
    adopt()
    found = open_retriever(adopt("--max-length", "128")).search(QUERIES, 4)
    assert len(found) == len(QUERIES)
    assert (theirs.read_bytes(), corpus.read_bytes()) == before


def test_it_is_not_written_over_its_own_files(adopt: Adopt, theirs: Path) -> None:
    inside = adopt() / "vectors.faiss"
    inside.unlink()
    shutil.copy(theirs, inside)
    with pytest.raises(ValueError, match=r"lies in .* and would be lost; choose another folder"):
        adopt(vectors=inside)
    assert inside.read_bytes() == theirs.read_bytes()


@pytest.fixture
def served() -> Iterator[Callable[[Any], str]]:
    """Runs a FastAPI application, or our server of a retriever; gives its address."""
    import uvicorn

    ends: list[tuple[Callable[[], None], threading.Thread]] = []

    def start(what: Any) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        if hasattr(what, "search"):
            stop = threading.Event()
            service = RetrievalService(ServerLimits())
            arguments = (service, lambda: what, listener, stop)
            thread = threading.Thread(target=serve, args=arguments, daemon=True)
            end = stop.set
        else:
            server = uvicorn.Server(uvicorn.Config(what, log_level="warning"))
            thread = threading.Thread(target=server.run, args=([listener],), daemon=True)

            def end() -> None:
                server.should_exit = True

        thread.start()
        ends.append((end, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for end, thread in ends:
        end()
        thread.join(60)
        assert not thread.is_alive()


def test_answers_are_byte_for_byte_those_of_their_server(
    adopt: Adopt, served: Callable[[Any], str], reference: Reference, theirs: Path, corpus: Path
) -> None:
    ours, other = served(open_retriever(adopt())), served(reference.app(theirs, corpus))
    HTTPRetriever(ours).wait_until_ready(60)
    named = list(dict.fromkeys(document.title for document in default_world().documents))[:12]
    bodies: list[dict[str, Any]] = [
        {"queries": [query], "topk": topk, "return_scores": scores}
        for query in [*QUERIES, "", *named]
        for topk, scores in ((3, True), (None, False), (60, True))
    ]
    bodies += [{"queries": [], "topk": 3, "return_scores": True}, {"queries": ["river"]}]
    seen = set()
    for body in bodies:
        mine, right = (
            httpx2.post(f"{url}/retrieve", json=body, timeout=60, trust_env=False)
            for url in (ours, other)
        )
        assert (mine.status_code, right.status_code) == (200, 200)
        assert mine.content == right.content, body
        assert mine.headers["content-type"] == right.headers["content-type"]
        seen.add(mine.content)
    assert len(seen) > 40
    assert any("Héroes".encode() in content for content in seen)


def test_our_client_reads_them_as_documents(adopt: Adopt, served: Callable[[Any], str]) -> None:
    retriever = open_retriever(adopt())
    expected = [found for query in QUERIES for found in retriever.search([query], 60)]
    for dialect in ("search-r1", "skyrl", "rllm"):
        with HTTPRetriever(served(retriever), dialect, batch=1) as client:
            client.wait_until_ready(60)
            assert client.search(QUERIES, 60) == expected


@pytest.mark.parametrize("layout", ["psgs_w100.tsv", "beir", "wiki.jsonl.gz", "ours.jsonl"])
def test_corpora_of_other_layouts(
    adopt: Adopt, corpus: Path, reference: Reference, tmp_path: Path, layout: str
) -> None:
    documents = load_corpus(corpus)
    for document in documents:  # a table has one line for a document, and each has a title
        object.__setattr__(document, "text", document.text.replace("\n", " "))
        object.__setattr__(document, "title", document.title.replace('"', "") or "none")
    file, theirs = tmp_path / layout, tmp_path / "their.index"
    flat = [{"id": d.id, "title": d.title, "text": d.text} for d in documents]
    quoted = [{"id": d.id, "contents": f'"{d.title}"\n{d.text}'} for d in documents]
    lines = "".join(json.dumps(row) + "\n" for row in quoted)
    (tmp_path / "quoted.jsonl").write_text(lines)
    reference.build(tmp_path / "quoted.jsonl", theirs)
    if layout == "psgs_w100.tsv":
        cells = [f"{d.id}\t{d.text}\t{d.title}\n" for d in documents]
        file.write_text("id\ttext\ttitle\n" + "".join(cells), encoding="utf-8")
    elif layout == "beir":
        file.mkdir()
        beir = [{"_id": row["id"], "title": row["title"], "text": row["text"]} for row in flat]
        text = "\n\n".join(json.dumps(row) for row in beir)  # blank lines, none at the end
        (file / "corpus.jsonl").write_text("\ufeff" + text, encoding="utf-8")
    elif layout == "wiki.jsonl.gz":
        file.write_bytes(gzip.compress(lines.encode()))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in flat))
    folder = adopt(vectors=theirs, documents=file)
    retriever = open_retriever(folder)
    assert [(d.id, d.title, d.text) for d in retriever.documents] == [
        (d.id, d.title, d.text) for d in documents
    ]
    assert (folder / "documents.jsonl").is_symlink() == (layout in ("beir", "ours.jsonl"))
    (found,) = retriever.search([documents[3].text], 60)
    assert len(found) == 60


@pytest.fixture(scope="module")
def others(
    tmp_path_factory: pytest.TempPathFactory,
    theirs: Path,
    corpus: Path,
    e5: Path,
    reference: Reference,
    minilm: str,
) -> dict[str, Path]:
    """Files that do not belong together, by name."""
    faiss = import_faiss()
    folder = tmp_path_factory.mktemp("others")
    vectors = faiss.read_index(str(theirs)).reconstruct_n(0, 60)

    def written(name: str, index: Any, some: Any = vectors) -> Path:
        index.add(some)
        faiss.write_index(index, str(folder / name))
        return folder / name

    reference.build(corpus, folder / "no-prefix", prefix="")
    numbered = faiss.IndexIDMap(faiss.IndexFlatIP(32))
    numbered.add_with_ids(vectors, np.arange(60)[::-1].copy())
    faiss.write_index(numbered, str(folder / "ids"))
    short = folder / "short.jsonl"
    short.write_text("".join(corpus.read_text(encoding="utf-8").splitlines(True)[:59]), "utf-8")
    noise = np.random.default_rng(0).standard_normal((60, 32), dtype=np.float32)
    holed = vectors.copy()
    holed[0] = np.nan
    moved = np.concatenate([vectors[:45], np.roll(vectors[45:], 1, axis=0)])
    plain = folder / "some-bert"
    shutil.copytree(e5, plain)
    return {
        "L2": written("l2", faiss.IndexFlatL2(32)),
        "IDS": folder / "ids",
        "NOISE": written("noise", faiss.IndexFlatIP(32), noise),
        "NAN": written("nan", faiss.IndexFlatIP(32), holed),
        "MOVED": written("moved", faiss.IndexFlatIP(32), moved),
        "NO_PREFIX": folder / "no-prefix",
        "SHORT": short,
        "CORPUS": corpus,
        "PLAIN": plain,
        "MINILM": Path(minilm),
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"vectors": "CORPUS"}, "is no index that FAISS can read"),
        ({"vectors": "nowhere"}, "there is no file nowhere"),
        ({"vectors": "L2"}, "ranks by distance"),
        ({"vectors": "IDS"}, "does not give its vectors back"),
        ({"documents": "SHORT"}, "holds 60 vectors and .* 59 documents"),
        ({"model": "MINILM"}, "have 32 numbers, and those of .* 384"),
        ({"model": "PLAIN"}, r"preset 'plain' \(median cosine .*: --preset e5 fits: 1\.0000"),
        ({"vectors": "NO_PREFIX"}, r"--preset contriever fits: 1\.0000|--preset plain fits"),
        ({"vectors": "NAN"}, "vector of document 0, counted from 0, holds a number that is not"),
        ({"vectors": "MOVED"}, "15 of 60 documents have vectors of another .* is document 45, "),
        ({"vectors": "NOISE"}, "no preset fits .* name the model that they were made with"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    adopt: Adopt, others: dict[str, Path], tmp_path: Path, words: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        adopt(**{name: others.get(word, Path(word)) for name, word in words.items()})
    assert not any(tmp_path.iterdir())


def test_every_vector_of_a_flat_index_must_be_finite(
    adopt: Adopt, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopting, "SAMPLE", 2)  # the first and the last
    monkeypatch.setattr(adopting, "BLOCK", 16)
    faiss = import_faiss()
    vectors = faiss.read_index(str(theirs)).reconstruct_n(0, 60)
    vectors[37, 5] = np.inf
    index = faiss.IndexFlatIP(32)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "index"))
    with pytest.raises(ValueError, match="vector of document 37, counted from 0, holds a number"):
        adopt(vectors=tmp_path / "index")


def test_an_ivf_index_is_adopted_with_its_own_search(
    adopt: Adopt, theirs: Path, tmp_path: Path
) -> None:
    faiss = import_faiss()
    vectors = faiss.read_index(str(theirs)).reconstruct_n(0, 60)
    index = faiss.index_factory(32, "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "ivf"))
    few = open_retriever(adopt(vectors=tmp_path / "ivf")).search(QUERIES, 60)
    every = open_retriever(adopt("--search", "nprobe=4", vectors=tmp_path / "ivf"))
    assert len(few[0]) < len(every.search(QUERIES, 60)[0]) == 60


def test_files_that_change_or_go_are_noticed(
    adopt: Adopt, theirs: Path, corpus: Path, tmp_path: Path
) -> None:
    copies = [shutil.copy(file, tmp_path / file.name) for file in (theirs, corpus)]
    folder = adopt(vectors=Path(copies[0]), documents=Path(copies[1]))
    retriever = open_retriever(folder)
    data = bytearray(Path(copies[0]).read_bytes())
    data[-5] ^= 1
    with Path(copies[0]).open("r+b") as file:
        file.write(data)
    with pytest.raises(CorruptIndexError, match="overwritten while its index is in use"):
        retriever.search(["river"], 3)
    assert len(damage(folder)) == 1
    Path(copies[1]).unlink()
    with pytest.raises(CorruptIndexError, match=r"leads to .*wiki\.jsonl, and nothing is there"):
        open_retriever(folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--corpus", "world", "--from-faiss", "x"], "--from-faiss needs --corpus"),
        (["--fuse", "y", "--from-faiss", "x"], "--from-faiss needs --corpus"),
        (
            ["--corpus", "c", "--from-faiss", "x", "--model", "m", "--factory", "Flat", "--resume"],
            "an adopted index .* has no --factory, --resume",
        ),
    ],
)
def test_options_that_do_not_go_together(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        main([*words, "--out", str(tmp_path / "out")])
