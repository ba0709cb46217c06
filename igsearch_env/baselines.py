"""Scripted baselines: what a score means when no policy was trained."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from igsearch_env.agent import Agent
from igsearch_env.completion import Completion
from igsearch_env.episode import Document, Episode
from igsearch_env.protocol.names import get_protocol
from igsearch_env.protocol.tags import TagProtocol
from igsearch_env.words import runs

_NAME = re.compile(r"[A-Z0-9][\w'’-]*(?:\s+(?:of|the|de|von|van)?\s*[A-Z0-9][\w'’-]*)*")


class _Scripted:
    """Writes searches and answers in a protocol's tags."""

    def __init__(self, protocol: TagProtocol | str = "refine") -> None:
        self.protocol = get_protocol(protocol)

    def act(self, episodes: Sequence[Episode]) -> list[Completion]:
        """Write the next turn of each episode."""
        return [Completion(self._turn(episode)) for episode in episodes]

    def _turn(self, episode: Episode) -> str:
        raise AssertionError(f"{type(self).__name__} does not say what to write")

    def _search(self, query: str) -> str:
        return self.protocol.write_search(query)

    def _answer(self, text: str) -> str:
        return self.protocol.write_answer(text)


class DirectAgent(_Scripted):
    """Answers at once, without a search, always the same.

    Args:
        protocol: The tag grammar or the name of a preset.
        answer: What it answers; "yes" is the most frequent answer of HotpotQA.
    """

    def __init__(self, protocol: TagProtocol | str = "refine", answer: str = "yes") -> None:
        super().__init__(protocol)
        self.answer = answer

    def _turn(self, episode: Episode) -> str:
        return self._answer(self.answer)


class SearchOnceAgent(_Scripted):
    """Searches for the question itself, then answers the most frequent new name it finds."""

    def _turn(self, episode: Episode) -> str:
        if not episode.searches:
            return self._search(episode.question.text)
        return self._answer(extract_answer(episode))


class RandomQueryAgent(_Scripted):
    """Searches for random words of the question a few times, then answers like SearchOnceAgent.

    Args:
        protocol: The tag grammar or the name of a preset.
        searches: Searches before the answer.
        seed: Seed of its choices, which do not depend on the order of the episodes.
    """

    def __init__(
        self, protocol: TagProtocol | str = "refine", searches: int = 2, seed: int = 0
    ) -> None:
        super().__init__(protocol)
        self.searches = searches
        self.seed = seed

    def _turn(self, episode: Episode) -> str:
        done = len(episode.searches)
        refused = any(not step.valid for step in episode.steps)
        if done >= self.searches or refused:
            return self._answer(extract_answer(episode))
        rng = random.Random(f"{self.seed} {episode.question.id} {episode.group_id} {done}")
        words = runs(episode.question.text) or [episode.question.text]
        return self._search(" ".join(rng.sample(words, min(3, len(words)))))


class OracleAgent(_Scripted):
    """Searches for each gold document in turn, then gives the gold answer: the retriever's ceiling.

    Args:
        protocol: The tag grammar or the name of a preset.
        documents: The corpus; a gold document that is in it is searched for by its own text,
            another one by its title.
    """

    def __init__(
        self, protocol: TagProtocol | str = "refine", documents: Sequence[Document] = ()
    ) -> None:
        super().__init__(protocol)
        self._documents: Mapping[str, Document] = {d.id: d for d in documents}

    def _turn(self, episode: Episode) -> str:
        queries = self._queries(episode)
        done = len(episode.searches)
        refused = any(not step.valid for step in episode.steps)
        if done < len(queries) and not refused:
            return self._search(queries[done])
        return self._answer(episode.question.golden_answers[0])

    def _queries(self, episode: Episode) -> list[str]:
        question = episode.question
        known = [self._documents[i] for i in question.gold_ids if i in self._documents]
        found = {document.title for document in known}
        queries = [f"{d.title} {' '.join(d.text.split()[:24])}" for d in known]
        queries += [t for t in dict.fromkeys(question.gold_titles) if t not in found]
        return queries or [question.text]


def extract_answer(episode: Episode) -> str:
    """The name that the documents of an episode repeat most and its question does not hold.

    It is the title of the best document if there is no such name, and "unknown" if nothing was
    found.
    """
    documents = [document for step in episode.searches for document in step.documents]
    asked = episode.question.text.lower()
    names: Counter[str] = Counter(
        name
        for document in documents
        for name in _NAME.findall(document.text)
        if name.lower() not in asked
    )
    if names:
        return names.most_common(1)[0][0]
    titles = [document.title for document in documents if document.title.strip()]
    return titles[0] if titles else "unknown"


SCRIPTED: dict[str, type[_Scripted]] = {
    "direct": DirectAgent,
    "search_once": SearchOnceAgent,
    "random_query": RandomQueryAgent,
    "oracle": OracleAgent,
}
"""The scripted agents by name."""


def make_scripted(
    name: str, protocol: TagProtocol | str, documents: Sequence[Document] = (), seed: int = 0
) -> Agent:
    """Build a scripted agent by name: ``direct``, ``search_once``, ``random_query``, ``oracle``.

    Args:
        name: Its name.
        protocol: The tag grammar or the name of a preset.
        documents: The corpus, for the oracle.
        seed: Seed of random queries.

    Raises:
        ValueError: If the name is unknown.
    """
    if name == "oracle":
        return OracleAgent(protocol, documents)
    if name == "random_query":
        return RandomQueryAgent(protocol, seed=seed)
    if name not in SCRIPTED:
        raise ValueError(f"unknown scripted agent {name!r}; known are {', '.join(SCRIPTED)}")
    return SCRIPTED[name](protocol)
