"""Silver evidence: hand-made corpora, a slow search over all chains, and the world's facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igsearch_env import Document, Question, World
from igsearch_env.data.silver import (
    SilverEvidence,
    TitleGraph,
    answer_distances,
    find_silver,
    with_answer_distances,
    with_silver,
)

DUNE = Document("dune", "Dune (film)", "Dune was directed by Denis Villeneuve.")
DENIS = Document("denis", "Denis Villeneuve", "He was born in Gentilly, in New York County.")
GENTILLY = Document("gentilly", "Gentilly", "A village of Quebec. It lies by a river.")
YORK = Document("york", "York", "A city of England, far from Quebec.")
NEW_YORK = Document("new-york", "New York", "A city of America.")
THE_WHO = Document("who", "The Who", "A band that plays in Quebec.")
CORPUS = (DUNE, DENIS, GENTILLY, YORK, NEW_YORK, THE_WHO)


def ask(text: str, *answers: str, hops: int | None = None) -> Question:
    return Question("q", text, answers, hops=hops)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (ask("Who directed Dune?", "Denis Villeneuve"), SilverEvidence(("dune",), 1, "chain")),
        (
            ask("In which province was the director of Dune born?", "Quebec"),
            SilverEvidence(("denis", "dune", "gentilly"), 3, "chain"),
        ),
        # York lies inside New York, which is what the text mentions: no chain goes through it.
        (ask("What lies near Denis Villeneuve's birthplace?", "England"), SilverEvidence()),
        # Too short a limit, by the question's own hops or the caller's.
        (ask("Province of the director of Dune?", "Quebec", hops=2), SilverEvidence()),
        # A title of stop words starts nothing.
        (ask("Where do the who play?", "Quebec"), SilverEvidence()),
        # Answers that the question holds, and yes or no: what it names is the evidence.
        (
            ask("Which is older, York or New York?", "York"),
            SilverEvidence(("new-york", "york"), 1, "comparison"),
        ),
        (
            ask("Is York larger than Gentilly?", "no"),
            SilverEvidence(("gentilly", "york"), 1, "comparison"),
        ),
        (ask("Is it so?", "yes"), SilverEvidence()),
        (ask("Nothing is named here?", "Quebec"), SilverEvidence()),
    ],
)
def test_hand_made_chains(question: Question, expected: SilverEvidence) -> None:
    assert find_silver(question, TitleGraph(CORPUS)) == expected


def test_all_shortest_chains_count_and_longer_ones_do_not() -> None:
    corpus = [
        Document("a", "Alpha", "Alpha knows Beta and Gamma and Delta."),
        Document("b", "Beta", "It leads to Lima."),
        Document("c", "Gamma", "It leads to Lima, too."),
        Document("d", "Delta", "It leads to Epsilon."),
        Document("e", "Epsilon", "It leads to Lima by a longer way."),
        Document("b2", "Beta", "Another part of the article, without the answer."),
    ]
    found = find_silver(ask("Where does Alpha lead?", "Lima"), TitleGraph(corpus))
    assert found == SilverEvidence(("a", "b", "c"), 2, "chain")


def test_a_chain_may_start_where_a_search_for_the_question_leads() -> None:
    question = ask("Province where the maker of the film with the sandworm was born?", "Quebec")
    graph = TitleGraph(CORPUS)
    assert find_silver(question, graph) == SilverEvidence()
    found = find_silver(question, graph, also_from=[YORK, DUNE])
    assert found == SilverEvidence(("york",), 1, "chain")  # it mentions Quebec itself
    found = find_silver(question, graph, also_from=[DUNE])
    assert found == SilverEvidence(("denis", "dune", "gentilly"), 3, "chain")
    assert find_silver(ask("Is it so?", "yes"), graph, also_from=[DUNE]) == SilverEvidence()


class Desert:
    """Finds one document for everything, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        self.asked.extend(queries)
        return [[DUNE]] * len(queries)


def test_only_questions_without_a_chain_are_searched_for() -> None:
    named, described = (
        ask("Who directed Dune?", "Denis Villeneuve"),
        ask("Sandworms?", "Villeneuve"),
    )
    retriever = Desert()
    found = with_silver([named, described], CORPUS, retriever)
    assert [question.silver_ids for question in found] == [("dune",), ("dune",)]
    assert retriever.asked == ["Sandworms?"]


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
        find_silver(ask("Dune?", "Lima"), TitleGraph(CORPUS), max_length=0)
    with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
        answer_distances(ask("Dune?", "Lima"), TitleGraph(CORPUS), max_length=0)


def slow_silver(question: Question, documents: list[Document], limit: int) -> tuple[str, ...]:
    """Every sequence of documents is tried; names are single words, so mentions are plain."""

    def mentions(text: str, document: Document) -> bool:
        return document.title in text.split()

    for length in range(1, limit + 1):
        found: set[str] = set()
        for chain in product(documents, repeat=length):
            if (
                mentions(question.text, chain[0])
                and all(mentions(a.text, b) for a, b in pairwise(chain))
                and question.golden_answers[0] in chain[-1].text.split()
            ):
                found |= {document.id for document in chain}
        if found:
            return tuple(sorted(found))
    return ()


def test_ways_may_start_where_a_search_for_the_question_leads() -> None:
    named, described = ask("Who directed Dune?", "Villeneuve"), ask("Sandworms?", "Villeneuve")
    retriever = Desert()
    found = with_answer_distances([named, described], CORPUS, retriever)
    expected = (("denis", 0), ("dune", 0))  # the title holds the answer, too
    assert [question.answer_distances for question in found] == [expected] * 2
    assert retriever.asked == ["Sandworms?"]
    assert [question.silver_ids for question in found] == [None, None]
    short = with_answer_distances([ask("Province of Dune?", "Quebec")], CORPUS, max_length=2)
    assert short[0].answer_distances == ()


def slow_distances(question: Question, documents: list[Document], limit: int) -> dict[str, int]:
    """Every sequence of documents is tried; its nearest end on a way counts."""
    found: dict[str, int] = {}
    shortest = limit
    for length in range(1, limit + 1):
        if length > shortest + 1:
            break
        for way in product(documents, repeat=length):
            if (
                way[0].title in question.text.split()
                and all(b.title in a.text.split() for a, b in pairwise(way))
                and question.golden_answers[0] in way[-1].text.split()
            ):
                shortest = min(shortest, length)
                for place, document in enumerate(way):
                    distance = length - 1 - place
                    found[document.id] = min(found.get(document.id, limit), distance)
    return found


def test_distances_on_ways_of_one_document_more_than_the_shortest() -> None:
    corpus = [
        Document("a", "Alpha", "Alpha knows Beta and Delta and Zeta."),
        Document("b", "Beta", "It leads to Lima."),
        Document("d", "Delta", "It leads to Epsilon."),
        Document("e", "Epsilon", "It leads to Lima by a longer way."),
        Document("z", "Zeta", "It leads nowhere."),
        Document("o", "Omega", "It leads to Lima, but nothing leads here."),
    ]
    question, graph = ask("Where does Alpha lead?", "Lima"), TitleGraph(corpus)
    near = {"a": 1, "b": 0}
    assert answer_distances(question, graph, 2) == near
    assert answer_distances(question, graph, 3) == {**near, "d": 1, "e": 0}
    longer = [*corpus, Document("e", "Epsilon", "It leads to Eta."), Document("h", "Eta", "Lima.")]
    assert answer_distances(question, TitleGraph([*longer[:3], *longer[4:]]), 4) == near
    assert answer_distances(replace(question, hops=2), graph, 3) == near
    assert answer_distances(question, graph, 1) == {}
    assert answer_distances(question, graph, 1, also_from=corpus) == {"b": 0, "e": 0, "o": 0}
    both = ask("Which is older, Alpha or Zeta?", "Zeta")
    assert answer_distances(both, graph) == {"a": 0, "z": 0}
    assert answer_distances(ask("Is it so?", "yes"), graph) == {}


NAMES = ["Ava", "Bo", "Cy", "Di", "Ed"]


@given(
    texts=st.lists(st.lists(st.sampled_from([*NAMES, "Lima"]), max_size=3), min_size=5, max_size=5),
    asked=st.lists(st.sampled_from(NAMES), max_size=2),
    limit=st.integers(1, 4),
)
def test_the_same_as_trying_every_chain(
    texts: list[list[str]], asked: list[str], limit: int
) -> None:
    documents = [
        Document(f"d{number}", name, " ".join(text))
        for number, (name, text) in enumerate(zip(NAMES, texts, strict=True))
    ]
    question = ask(" ".join(["where", *asked]), "Lima")
    found = find_silver(question, TitleGraph(documents), limit)
    assert found.document_ids == slow_silver(question, documents, limit)
    distances = answer_distances(question, TitleGraph(documents), limit)
    assert distances == slow_distances(question, documents, limit)
    assert set(found.document_ids) <= set(distances)


def test_chains_of_the_world_hold_its_facts() -> None:
    world = World.generate(seed=3, people=40)
    questions = with_silver(world.train_questions[::25], world.documents)
    gold = [(set(q.gold_ids), set(q.silver_ids or ())) for q in questions]
    assert len(gold) > 30
    assert all(silver for _, silver in gold)
    recall = sum(len(a & b) for a, b in gold) / sum(len(a) for a, _ in gold)
    assert recall > 0.8
