"""Distance to the answer: GRPO, plus a bonus by how near the documents of a search are to it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from igsearch_env.credit.base import register_credit
from igsearch_env.credit.query_bonus import QueryBonus, Signals
from igsearch_env.data.silver import TitleGraph
from igsearch_env.episode import Document, Episode


@register_credit("gdcr")
@dataclass(frozen=True)
class GDCR(QueryBonus):
    """A document at distance d from the answer is worth ``decay`` to the power of d.

    After the graph-distance contribution reward of SAPO (arXiv 2605.29697), which pays for entities
    that are newly retrieved or newly cited. A search gets the worth of the best document that no
    earlier search of its rollout found, and ``cited`` times that of the best document of earlier
    searches whose title its query is the first to name, after the question. Naming a document that
    holds the answer itself is not paid: no search has to follow it.

    The paper builds a graph of entities for each question. Here it is that of the titles on ways
    from the question to the answer (:func:`igsearch_env.data.silver.answer_distances`), so nothing
    is annotated and no model scores anything. What a distance is worth and the weights are ours,
    and the bonus stands beside GRPO's advantage as that of the other methods does. A question
    without a way gives no bonus.

    Args:
        decay: What each mention between a document and the answer multiplies its worth by.
        cited: Weight of naming what was found.
    """

    uses_information_gain = False
    uses_answer_distances = True

    decay: float = 0.5
    cited: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.decay, int | float) and 0 < self.decay <= 1):
            raise ValueError(f"decay must lie above 0 and not above 1, got {self.decay!r}")
        if not (isinstance(self.cited, int | float) and 0 <= self.cited < math.inf):
            raise ValueError(f"cited must be a finite number of at least 0, got {self.cited!r}")

    def signals(self, episodes: Sequence[Episode]) -> Signals:
        """A number of at least 0 per search.

        Raises:
            ValueError: If distances were never looked for.
        """
        return [self._of_episode(episode) for episode in episodes]

    def _of_episode(self, episode: Episode) -> list[float]:
        distances = episode.question.answer_distances
        if distances is None:
            raise ValueError(
                f"question {episode.question.id!r} has no answer_distances; fill them in with "
                "igsearch_env.data.silver.with_answer_distances(questions, documents)"
            )
        worth = {name: self.decay**distance for name, distance in distances}
        leading = {name: worth[name] for name, distance in distances if distance}
        graph, found = TitleGraph(()), list[Document]()
        known, queries = set[object](), [episode.question.text]
        result = []
        for index, step in enumerate(episode.steps):
            if index == episode.turn_of(index).start:
                graph = TitleGraph(found)  # all that the policy had seen when it wrote the turn
            if step.action != "search":
                continue
            named = {title for query in queries for title in graph.titles_in(query)}
            names = set(graph.titles_in(step.query)) - named
            cited = [document for title in names for document in graph.titled(title)]
            new = [
                document
                for document in step.documents
                if document.id in worth and known.isdisjoint(document.known_by)
            ]
            result.append(_best(new, worth) + self.cited * _best(cited, leading))
            found += new
            known.update(name for document in new for name in document.known_by)
            if step.documents:  # a search that found nothing earns nothing, so it uses up nothing
                queries.append(step.query)
        return result


def _best(documents: Iterable[Document], worth: Mapping[str, float]) -> float:
    return max((worth.get(document.id, 0.0) for document in documents), default=0.0)
