import math
import os
import re
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from igsearch_env.data.corpus import load_corpus
from igsearch_env.data.questions import load_questions
from igsearch_env.episode import Document
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.testing import check_retriever

needs_data = pytest.mark.skipif(
    "IGSEARCH_DATA" not in os.environ, reason="IGSEARCH_DATA names no data folder"
)
VOCABULARY = ["lima", "peru", "the", "river", "of", "kōbe", "1990", "film", "x"]


def random_documents(count: int, seed: int = 0) -> list[Document]:
    rng = np.random.default_rng(seed)

    def text(most: int) -> str:
        return " ".join(rng.choice(VOCABULARY, size=rng.integers(0, most)))

    return [Document(f"d{number}", text(3), text(12)) for number in range(count)]


def plain_bm25(
    documents: list[Document], query: list[str], k1: float, b: float, title_weight: int
) -> list[float]:
    """The textbook formula, one word and one passage at a time."""
    texts = [f"{(d.title + ' ') * title_weight} {d.text}".lower() for d in documents]
    bags = [re.findall(r"\w+", text) for text in texts]
    mean = sum(map(len, bags)) / len(bags)
    totals = [0.0] * len(bags)
    for word in query:
        df = sum(word in bag for bag in bags)
        idf = math.log(1 + (len(bags) - df + 0.5) / (df + 0.5))
        for number, bag in enumerate(bags):
            norm = k1 * (1 - b + b * len(bag) / mean)
            if word in bag:
                totals[number] += idf * bag.count(word) / (bag.count(word) + norm)
    return totals


@pytest.fixture
def documents() -> list[Document]:
    return random_documents(60)


@pytest.fixture
def retriever(documents: list[Document]) -> BM25Retriever:
    return BM25Retriever.build(documents)


@pytest.mark.parametrize(
    ("k1", "b", "title_weight"), [(0.9, 0.4, 2), (1.5, 0.75, 1), (0.0, 1.0, 3)]
)
@pytest.mark.parametrize("query", ["Lima", "lima film PERU", "Kōbe 1990 kōbe", "the of"])
def test_scores_match_the_plain_formula(
    documents: list[Document], query: str, k1: float, b: float, title_weight: int
) -> None:
    retriever = BM25Retriever.build(documents, k1, b, title_weight)
    expected = plain_bm25(documents, query.lower().split(), k1, b, title_weight)
    (found,) = retriever.search([query], len(documents))
    assert {d.id for d in found} == {d.id for d, s in zip(documents, expected, strict=True) if s}
    numbers = [int(document.id[1:]) for document in found]
    scores = [document.score or 0.0 for document in found]
    assert scores == pytest.approx([expected[number] for number in numbers], rel=1e-5)
    assert scores == sorted(scores, reverse=True)
    for k in (1, 7, len(found)):
        assert retriever.search([query], k)[0] == found[:k]


def test_ties_come_in_the_order_of_the_corpus() -> None:
    copies = [Document(f"d{number}", "", "lima") for number in range(50)]
    retriever = BM25Retriever.build([Document("best", "", "lima lima"), *copies])
    found = retriever.search(["lima"], 8)[0]
    assert [document.id for document in found] == ["best", *(f"d{n}" for n in range(7))]


def test_only_passages_with_a_word_of_the_query_are_found(retriever: BM25Retriever) -> None:
    assert retriever.search([], 3) == []
    assert retriever.search(["", "?!", "unheard", "the unheard"], 3) == [[], [], [], []]


def test_stop_words_are_left_out_of_a_query_unless_it_has_no_others() -> None:
    who = Document("1", "The Who", "An English rock band.")
    peru = Document("2", "Peru", "The country that Lima is the capital of; the sol is its money.")
    retriever = BM25Retriever.build([who, peru])
    assert [d.id for d in retriever.search(["the who"], 2)[0]] == ["1", "2"]
    assert [d.id for d in retriever.search(["Who is the band?"], 2)[0]] == ["1"]


def test_composed_and_decomposed_letters_are_the_same() -> None:
    retriever = BM25Retriever.build(
        [Document("1", "Ko\u0304be", "A city."), Document("2", "", "x")]
    )
    assert [d.id for d in retriever.search(["KŌBE"], 1)[0]] == ["1"]


def test_found_documents_carry_what_the_corpus_holds() -> None:
    source = Document("1", 'Say "hi"', "Zeilen\nund <answer> ‹ \ud800 ☃", score=9.0)
    (found,) = BM25Retriever.build([source]).search(["hi"], 1)
    assert (found[0].id, found[0].title, found[0].text) == (source.id, source.title, source.text)
    assert found[0].score == pytest.approx(plain_bm25([source], ["hi"], 0.9, 0.4, 2)[0])


def test_bad_arguments(retriever: BM25Retriever, documents: list[Document]) -> None:
    with pytest.raises(ValueError, match="got k = 0; set k to at least 1"):
        retriever.search(["lima"], 0)
    with pytest.raises(ValueError, match="set k to at most 60, the size of the corpus"):
        retriever.search(["lima"], 61)
    with pytest.raises(ValueError, match="sequence of strings"):
        retriever.search("lima", 1)
    with pytest.raises(ValueError, match="same id"):
        BM25Retriever.build([*documents, documents[0]])
    for empty in ([], [Document("1", "", "!")]):
        with pytest.raises(ValueError, match="nothing to index"):
            BM25Retriever.build(empty)
    for bad in ({"k1": -1.0}, {"k1": math.nan}, {"b": 1.5}, {"title_weight": 0}):
        with pytest.raises(ValueError, match="BM25 needs k1"):
            BM25Retriever.build(documents, **bad)


def test_it_keeps_the_promises_of_a_retriever(retriever: BM25Retriever) -> None:
    check_retriever(retriever, ["lima", "kōbe film"])


def test_no_progress_is_shown_unless_asked(
    documents: list[Document], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    retriever = BM25Retriever.build(documents)
    retriever.search(["lima"], 3)
    retriever.save(tmp_path / "index")
    BM25Retriever.load(tmp_path / "index")
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def wiki(tmp_path_factory: pytest.TempPathFactory) -> BM25Retriever:
    documents = load_corpus(Path(os.environ["IGSEARCH_DATA"]) / "wiki_pool.corpus.jsonl")
    folder = tmp_path_factory.mktemp("wiki") / "index"
    BM25Retriever.build(documents).save(folder)
    return BM25Retriever.load(folder)


@needs_data
@pytest.mark.parametrize(
    ("name", "least"), [("hotpotqa", 0.59), ("musique", 0.39), ("popqa", 0.65)]
)
def test_recall_of_gold_titles_on_real_questions(
    wiki: BM25Retriever, name: str, least: float
) -> None:
    questions = load_questions(Path(os.environ["IGSEARCH_DATA"]) / f"{name}.questions.jsonl")
    recalls = []
    for question, found in zip(questions, wiki.search([q.text for q in questions], 3), strict=True):
        titles = {document.title for document in found}
        recalls.append(fmean(title in titles for title in question.gold_titles))
    assert fmean(recalls) >= least
