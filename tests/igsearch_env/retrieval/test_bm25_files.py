import json
import os
import pickle
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from igsearch_env.data.corpus import load_corpus
from igsearch_env.episode import Document
from igsearch_env.files import seal
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.index_directory import CorruptIndexError, replacing_directory
from igsearch_env.words import WORD_RULE

VOCABULARY = ["lima", "peru", "the", "river", "of", "kōbe", "1990", "film", "x"]


def random_documents(count: int) -> list[Document]:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(VOCABULARY, size=12)) for _ in range(count)]
    return [Document(f"d{n}", text.split()[0], text) for n, text in enumerate(texts)]


@pytest.fixture
def documents() -> list[Document]:
    return random_documents(60)


@pytest.fixture
def retriever(documents: list[Document]) -> BM25Retriever:
    return BM25Retriever.build(documents)


@pytest.fixture
def saved(retriever: BM25Retriever, tmp_path: Path) -> Path:
    retriever.save(tmp_path / "index")
    return tmp_path / "index"


def test_pickles(retriever: BM25Retriever, saved: Path) -> None:
    expected = retriever.search(VOCABULARY, 5)
    for original in (retriever, BM25Retriever.load(saved), BM25Retriever.load(saved, mmap=False)):
        restored = pickle.loads(pickle.dumps(original))
        assert restored.search(VOCABULARY, 5) == expected


@pytest.mark.parametrize("mmap", [True, False])
def test_a_loaded_index_answers_exactly_as_the_saved_one(
    documents: list[Document], tmp_path: Path, mmap: bool
) -> None:
    odd = Document("odd", 'Say "hi"', "Zeilen\nund \ud800 ☃ kōbe")
    retriever = BM25Retriever.build([*documents, odd], k1=1.3, b=0.7, title_weight=3)
    retriever.save(tmp_path / "new" / "index")
    loaded = BM25Retriever.load(str(tmp_path / "new" / "index"), mmap=mmap)
    assert len(loaded) == 61
    assert (loaded.k1, loaded.b, loaded.title_weight) == (1.3, 0.7, 3)
    queries = [*VOCABULARY, "hi kōbe", "lima peru river", "unheard"]
    assert loaded.search(queries, 61) == retriever.search(queries, 61)
    loaded.save(tmp_path / "again")
    for file in (tmp_path / "new" / "index").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_threads_may_search_at_once(retriever: BM25Retriever, saved: Path) -> None:
    loaded = BM25Retriever.load(saved)
    queries = VOCABULARY * 20
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: loaded.search([query], 5)[0], queries))
    assert found == retriever.search(queries, 5)


def test_the_passages_of_an_index_are_a_corpus(documents: list[Document], saved: Path) -> None:
    assert load_corpus(saved / "documents.jsonl") == documents


def test_an_index_is_replaced_whole_or_not_at_all(saved: Path) -> None:
    BM25Retriever.load(saved).save(saved)  # onto the files that it reads
    BM25Retriever.build(random_documents(5)).save(saved)
    assert len(BM25Retriever.load(saved)) == 5

    def interrupted() -> None:
        with replacing_directory(saved) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(BM25Retriever.load(saved, mmap=False)) == 5
    assert [path.name for path in saved.parent.iterdir()] == ["index"]


def test_nothing_but_an_index_is_overwritten(retriever: BM25Retriever, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    retriever.save(tmp_path / "empty")
    for manifest in ("not JSON", '{"name": "something else"}'):
        (tmp_path / "notes").mkdir(exist_ok=True)
        (tmp_path / "notes" / "manifest.json").write_text(manifest)
        with pytest.raises(FileExistsError, match="not an index"):
            retriever.save(tmp_path / "notes")
    with pytest.raises(FileExistsError, match="not a folder"):
        retriever.save(tmp_path / "notes" / "manifest.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "notes"]


@pytest.mark.parametrize("path", [".", "..", "some/.."])
def test_an_index_needs_a_folder_with_a_name(retriever: BM25Retriever, path: str) -> None:
    with pytest.raises(ValueError, match="needs a folder with a name"):
        retriever.save(Path(path))


FILES = [
    "data.csc.index.npy",
    "documents.jsonl",
    "documents.offsets.npy",
    "indices.csc.index.npy",
    "indptr.csc.index.npy",
    "params.index.json",
    "words.offsets.npy",
    "words.txt",
]


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_is_found(saved: Path, name: str, mmap: bool) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptIndexError, match=rf"{re.escape(name)} has \d+ bytes, expected \d+"):
        BM25Retriever.load(saved, mmap=mmap)
    (saved / name).unlink()
    with pytest.raises(CorruptIndexError, match=rf"{re.escape(name)} is missing"):
        BM25Retriever.load(saved, mmap=mmap)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_found_when_all_is_read(saved: Path, name: str) -> None:
    content = bytearray((saved / name).read_bytes())
    content[-3] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(CorruptIndexError, match=rf"{re.escape(name)} does not match its hash"):
        BM25Retriever.load(saved, mmap=False)


@pytest.mark.parametrize("name", FILES)
def test_files_of_another_index_do_not_fit(saved: Path, tmp_path: Path, name: str) -> None:
    BM25Retriever.build([Document("1", "Rome", "Italy")]).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / name, saved / name)
    manifest = json.loads((saved / "manifest.json").read_text())
    other = json.loads((tmp_path / "other" / "manifest.json").read_text())
    manifest["files"][name] = other["files"][name]
    (saved / "manifest.json").write_text(json.dumps(seal(manifest, "manifest_sha256")))
    with pytest.raises(CorruptIndexError, match=r"do(es)? not fit"):
        BM25Retriever.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "of version 99, expected 'igsearch-env bm25' of version 3"),
        ({"format": "faiss"}, "holds a 'faiss' index"),
        ({"passages": 59}, "do not fit together"),
        ({"parameters": {}}, "built by the word rule None, .* build it again"),
        ({"parameters": {"word_rule": WORD_RULE}}, "cannot read"),
        ({"version": 1}, "of version 1, expected .* build it again"),
        ({"files": {}}, "lists no files"),
        ({"files": {"documents.jsonl": 3}}, "does not describe"),
    ],
)
def test_a_manifest_that_says_otherwise(
    saved: Path, change: dict[str, object], message: str
) -> None:
    file = saved / "manifest.json"
    file.write_text(json.dumps(seal(json.loads(file.read_text()) | change, "manifest_sha256")))
    with pytest.raises(CorruptIndexError, match=message):
        BM25Retriever.load(saved)


def test_a_folder_without_a_sound_manifest(saved: Path, tmp_path: Path) -> None:
    for text, message in (("{", "not valid JSON"), ("[]", "does not hold a JSON object")):
        (saved / "manifest.json").write_text(text)
        with pytest.raises(CorruptIndexError, match=message):
            BM25Retriever.load(saved)
    with pytest.raises(CorruptIndexError, match=r"is not an index: it has no manifest\.json"):
        BM25Retriever.load(tmp_path / "nowhere")


def test_a_damaged_passage_is_an_error_when_it_is_read(saved: Path) -> None:
    loaded = BM25Retriever.load(saved)
    file = saved / "documents.jsonl"
    before = file.stat()
    file.write_bytes(b"[" * before.st_size)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a failing disk would
    with pytest.raises(CorruptIndexError, match=r"document \d+ of .* is damaged"):
        loaded.search(["lima"], 1)


def test_every_index_of_a_corpus_has_its_hash(
    documents: list[Document], retriever: BM25Retriever, saved: Path
) -> None:
    assert list(BM25Retriever.load(saved).documents) == list(retriever.documents) == documents
    indexes = [retriever, BM25Retriever.load(saved), BM25Retriever.load(saved, mmap=False)]
    indexes.append(BM25Retriever.build(load_corpus(saved / "documents.jsonl"), k1=1.2))
    assert len({index.corpus_sha256 for index in indexes}) == 1
    assert BM25Retriever.build(documents[::-1]).corpus_sha256 != retriever.corpus_sha256
    manifest = json.loads((saved / "manifest.json").read_text())
    del manifest["files"]["documents.jsonl"]
    (saved / "manifest.json").write_text(json.dumps(seal(manifest, "manifest_sha256")))
    loaded = BM25Retriever.load(saved)
    with pytest.raises(CorruptIndexError, match=r"no hash of documents\.jsonl"):
        _ = loaded.corpus_sha256
