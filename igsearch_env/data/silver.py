"""Silver evidence: documents that probably answer a question, found without any annotation.

In training the gold answer is known. A *silver chain* starts at a document whose title stands in
the question, goes on to documents whose titles the one before mentions, and ends at a document that
holds the gold answer. The documents of the shortest complete chains are the question's silver
evidence. It takes a question, its answers and a corpus with titles: no labels and no model.

Distant supervision of retrievers rests on the same idea for one hop; GDCR (arXiv 2605.29697) scores
entities by their distance to the answer in an entity graph. Here the graph is that of titles and
plain text, walked for one question at a time.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from igsearch_env.answers import contains_answer, normalize_answer
from igsearch_env.episode import Document, Question
from igsearch_env.retrieval.base import Retriever
from igsearch_env.words import STOP_WORDS, words

_BRACKETS = re.compile(r"\s*\([^()]*\)\s*$")
_CLOSED = frozenset({"yes", "no"})

SilverKind = Literal["chain", "comparison", "none"]
Found = TypeVar("Found")


@dataclass(frozen=True)
class SilverEvidence:
    """What was found for one question.

    Args:
        document_ids: The documents of all shortest complete chains, sorted.
        length: Number of documents in one chain; 0 if there is no chain.
        kind: ``"chain"``; ``"comparison"`` where the answer is yes, no or a name that the question
            holds, so that the documents about the names in the question are the evidence; or
            ``"none"``.
    """

    document_ids: tuple[str, ...] = ()
    length: int = 0
    kind: SilverKind = "none"


class TitleGraph:
    """Documents by title, and the titles that a text mentions.

    A title is mentioned where its words occur one after the other, case aside; what stands in
    brackets at its end ("Dune (film)") does not count. A title of stop words or digits alone is
    never mentioned, since nearly every text would mention it.

    Args:
        documents: The corpus. Those without a title can end a chain only by being alone in it.
    """

    def __init__(self, documents: Iterable[Document]) -> None:
        self._documents: dict[str, list[Document]] = defaultdict(list)
        self._size = longest = 0
        for document in documents:
            self._size += 1
            title = tuple(words(_BRACKETS.sub("", document.title)))
            if title and not all(word in STOP_WORDS or word.isdigit() for word in title):
                self._documents[" ".join(title)].append(document)
                longest = max(longest, len(title))
        self._longest = longest
        # Documents are reached again and again from different questions, texts are long.
        self._mentioned: dict[str, tuple[str, ...]] = {}

    def __len__(self) -> int:
        """Number of documents."""
        return self._size

    def titles_in(self, text: str) -> Iterator[str]:
        """The titles that a text mentions, as the words that they are known by, in order.

        Where one mention lies inside another ("York" in "New York") the longer one counts alone.
        """
        every = words(text)
        start = 0
        while start < len(every):
            for size in range(min(self._longest, len(every) - start), 0, -1):
                title = " ".join(every[start : start + size])
                if title in self._documents:
                    yield title
                    start += size
                    break
            else:
                start += 1

    def titled(self, title: str) -> Sequence[Document]:
        """The documents of a title as :meth:`titles_in` gives it."""
        return self._documents[title]

    def mentioned_by(self, document: Document) -> tuple[str, ...]:
        """The titles that a document's text mentions, each once."""
        known = self._mentioned.get(document.id)
        if known is None:
            known = tuple(dict.fromkeys(self.titles_in(document.text)))
            self._mentioned[document.id] = known
        return known


def find_silver(
    question: Question,
    graph: TitleGraph,
    max_length: int = 4,
    also_from: Sequence[Document] = (),
) -> SilverEvidence:
    """Find the silver evidence of a question.

    Args:
        question: Its text and golden answers are used, and ``hops``, if known, as a limit.
        graph: The corpus.
        max_length: Most documents in a chain.
        also_from: Where no chain starts at a title in the question, chains may start here: give
            what a retriever finds for the question, for questions that describe things without
            naming them.

    Raises:
        ValueError: If ``max_length`` is below 1.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    named = _named(question, graph)
    if _is_comparison(question):
        ids = tuple(sorted({document.id for document in named}))
        return SilverEvidence(ids, 1, "comparison") if ids else SilverEvidence()
    for start in (named, also_from):
        found = _shortest_chains(question, graph, max_length, start)
        if found.document_ids:
            return found
    return SilverEvidence()


def with_silver(
    questions: Sequence[Question],
    documents: Iterable[Document],
    retriever: Retriever | None = None,
    *,
    max_length: int = 4,
    top_k: int = 3,
) -> list[Question]:
    """The questions with their ``silver_ids`` filled in; see :func:`find_silver`.

    Args:
        questions: The questions; what they say of silver evidence already is replaced.
        documents: The corpus.
        retriever: Searches the corpus for each question in which no chain starts, so that one may
            start at the best documents; None to do without.
        max_length: Most documents in a chain.
        top_k: How many documents that search gives.
    """
    graph = TitleGraph(documents)

    def find(question: Question, start: Sequence[Document]) -> tuple[str, ...]:
        return find_silver(question, graph, max_length, start).document_ids

    found = _found(questions, find, retriever, min(top_k, len(graph)))
    return [replace(q, silver_ids=ids) for q, ids in zip(questions, found, strict=True)]


def answer_distances(
    question: Question,
    graph: TitleGraph,
    max_length: int = 4,
    also_from: Sequence[Document] = (),
) -> dict[str, int]:
    """How far each document near a question is from its answer, in mentions of titles.

    A document that holds the gold answer is at 0, one that mentions its title at 1, and so on. Only
    documents on a way from the question to the answer count. A way starts at a title in the
    question and has at most one document more than the shortest one; so all silver evidence is on
    one.

    Args:
        question: As for :func:`find_silver`.
        graph: The corpus.
        max_length: Most documents on a way.
        also_from: As for :func:`find_silver`.

    Returns:
        Distances by document id; empty if no way reaches the answer.

    Raises:
        ValueError: If ``max_length`` is below 1.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    named = _named(question, graph)
    if _is_comparison(question):
        return {document.id: 0 for document in named}
    limit = min(max_length, question.hops or max_length)
    for start in (named, also_from):
        found = _distances(question, graph, limit, start)
        if found:
            return found
    return {}


def with_answer_distances(
    questions: Sequence[Question],
    documents: Iterable[Document],
    retriever: Retriever | None = None,
    *,
    max_length: int = 4,
    top_k: int = 3,
) -> list[Question]:
    """The questions with their ``answer_distances`` filled in; see :func:`answer_distances`.

    Args:
        questions: The questions; what they say of distances already is replaced.
        documents: The corpus.
        retriever: As for :func:`with_silver`.
        max_length: Most documents on a way.
        top_k: How many documents that search gives.
    """
    graph = TitleGraph(documents)

    def find(question: Question, start: Sequence[Document]) -> tuple[tuple[str, int], ...]:
        return tuple(sorted(answer_distances(question, graph, max_length, start).items()))

    found = _found(questions, find, retriever, min(top_k, len(graph)))
    return [replace(q, answer_distances=pairs) for q, pairs in zip(questions, found, strict=True)]


def _found(
    questions: Sequence[Question],
    find: Callable[[Question, Sequence[Document]], tuple[Found, ...]],
    retriever: Retriever | None,
    top_k: int,
) -> list[tuple[Found, ...]]:
    """What is found for each question; for nothing, from what the retriever finds for it."""
    found = [find(question, ()) for question in questions]
    left = [number for number, one in enumerate(found) if not one]
    if retriever is not None and left:
        texts = [questions[number].text for number in left]
        for number, start in zip(left, retriever.search(texts, top_k), strict=True):
            found[number] = find(questions[number], start)
    return found


def _shortest_chains(
    question: Question, graph: TitleGraph, max_length: int, start: Sequence[Document]
) -> SilverEvidence:
    limit = min(max_length, question.hops or max_length)
    # Breadth first: `parents` keeps every shortest way to a document, so that all chains of the
    # shortest complete length can be collected backwards from the documents that end them.
    level = {document.id: document for document in start}
    parents: dict[str, set[str]] = {id_: set() for id_ in level}
    for length in range(1, limit + 1):
        ends = [id_ for id_, document in level.items() if _holds_answer(document, question)]
        if ends:
            return SilverEvidence(_ancestors(ends, parents), length, "chain")
        if length == limit:
            break
        following: dict[str, Document] = {}
        for id_, document in level.items():
            for title in graph.mentioned_by(document):
                for target in graph.titled(title):
                    if target.id in following or target.id not in parents:
                        following[target.id] = target
                        parents.setdefault(target.id, set()).add(id_)
        level = following
    return SilverEvidence()


def _distances(
    question: Question, graph: TitleGraph, limit: int, start: Sequence[Document]
) -> dict[str, int]:
    # Forwards: how many documents it takes at least to come to each one, and what leads there.
    places = {document.id: 1 for document in start}
    parents: dict[str, set[str]] = {id_: set() for id_ in places}
    level = list({document.id: document for document in start}.values())
    ends = [document.id for document in level if _holds_answer(document, question)]
    longest = min(2, limit) if ends else limit  # one more than the shortest, once that is known
    length = 1
    while length < longest:
        length += 1
        following: list[Document] = []
        for document in level:
            for title in graph.mentioned_by(document):
                for target in graph.titled(title):
                    if target.id not in places:
                        places[target.id] = length
                        parents[target.id] = set()
                        following.append(target)
                    parents[target.id].add(document.id)
        found = [document.id for document in following if _holds_answer(document, question)]
        if found and not ends:
            longest = min(length + 1, limit)
        ends += found
        level = following
    # Backwards from the ends; a way counts if it is short enough with what leads to its beginning.
    distances = dict.fromkeys(ends, 0)
    nearest = ends
    for distance in range(1, longest):
        before = {parent for id_ in nearest for parent in parents[id_]}
        nearest = [
            id_ for id_ in before if id_ not in distances and places[id_] <= longest - distance
        ]
        distances.update(dict.fromkeys(nearest, distance))
    return distances


def _named(question: Question, graph: TitleGraph) -> list[Document]:
    """The documents whose titles stand in the question."""
    return [
        document
        for title in dict.fromkeys(graph.titles_in(question.text))
        for document in graph.titled(title)
    ]


def _is_comparison(question: Question) -> bool:
    answers = question.golden_answers
    closed = all(normalize_answer(answer) in _CLOSED for answer in answers)
    return closed or contains_answer(question.text, answers)


def _holds_answer(document: Document, question: Question) -> bool:
    return contains_answer(f"{document.title}\n{document.text}", question.golden_answers)


def _ancestors(ends: Sequence[str], parents: dict[str, set[str]]) -> tuple[str, ...]:
    found, left = set(ends), list(ends)
    while left:
        for parent in parents[left.pop()]:
            if parent not in found:
                found.add(parent)
                left.append(parent)
    return tuple(sorted(found))
