"""Demonstrations for the warm start: a scripted agent that knows what is true.

It knows the chain of facts behind each question of a world, and looks at what its searches have
found. How good its queries are is a mix of kinds: a *competent* agent mostly asks well, a
*searcher* asks as badly as an untrained model. The warm start first makes a competent policy and
then spoils its queries, so that reinforcement learning has something to teach and can.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agents.tokenization import SegmentTokenizer
from igsearch_env.completion import Completion
from igsearch_env.data.lexicon import RELATIONS
from igsearch_env.data.world import Entity, Fact, World, group_by_cluster, hinted_cluster
from igsearch_env.episode import Episode

QueryMix = Mapping[str, float]

COMPETENT_QUERIES: QueryMix = {
    "good": 0.8,
    "partial": 0.05,
    "entity": 0.05,
    "wrong_relation": 0.05,
    "vague": 0.05,
}
SEARCHER_QUERIES: QueryMix = {
    "good": 0.05,
    "partial": 0.25,
    "entity": 0.2,
    "wrong_relation": 0.2,
    "vague": 0.2,
    "stale": 0.1,
}


@dataclass
class Demonstrator:
    """Plays the questions of one world from knowledge of its facts.

    Args:
        world: The world.
        tokenizer: Turns its words into the ids that the policy is to write.
        queries: How often each kind of query is asked; the shares sum to 1.
        max_searches: Searches per episode.
        rng: Source of its choices.
        early_answer: Chance, per turn, of guessing once a document of the chain is known but its
            end is not.
        blind_answer: Chance, per turn, of guessing before anything is known.
        hints: Whether the world's names hint at its facts, so that a guess can go by them.
    """

    world: World
    tokenizer: SegmentTokenizer
    queries: QueryMix
    max_searches: int
    rng: random.Random
    early_answer: float = 0.25
    blind_answer: float = 0.1
    hints: bool = True

    def __post_init__(self) -> None:
        self._clusters = group_by_cluster(self.world.entities)

    def act(self, episodes: Sequence[Episode]) -> list[Completion]:
        """Write the next turn of each episode."""
        return [self._write(self._turn(episode)) for episode in episodes]

    def _turn(self, episode: Episode) -> str:
        chain = self.world.chains[episode.question.id]
        known = _known_hops(episode, chain)
        if known == len(chain):
            return f"<answer> {chain[-1].object.name} </answer>"
        out_of_searches = len(episode.searches) >= self.max_searches
        guessing = self.early_answer if known else self.blind_answer
        if out_of_searches or (episode.searches and self.rng.random() < guessing):
            return f"<answer> {self._guess(chain, known).name} </answer>"
        return f"<search> {self._query(episode, chain[known])} </search>"

    def _query(self, episode: Episode, wanted: Fact) -> str:
        kind = self.rng.choices(list(self.queries), list(self.queries.values()))[0]
        name, keyword = wanted.subject.name, wanted.relation.keyword
        if kind == "good":
            return f"{name} {keyword}"
        if kind == "partial":
            return f"{self.rng.choice(name.split())} {keyword}"
        if kind == "entity":
            return name
        if kind == "wrong_relation":
            return f"{name} {self.rng.choice(RELATIONS).keyword}"
        if kind == "vague" or not episode.searches:
            return f"{wanted.relation.noun} {keyword}"
        return episode.searches[-1].query

    def _guess(self, chain: Sequence[Fact], known: int) -> Entity:
        """An answer of the right kind; one that the bridge hints at if it is all but known."""
        last = chain[-1]
        choices: Sequence[Entity] = self.world.entities[last.relation.object]
        if self.hints and known == len(chain) - 1 and last.subject.kind != "person":
            hint = hinted_cluster(last.subject, last.relation)
            choices = self._clusters[last.relation.object, hint] or choices
        return self.rng.choice(choices)

    def _write(self, text: str) -> Completion:
        ids = self.tokenizer.encode_answer("", text)[1]
        return Completion.from_tokens(ids, None, self.tokenizer.decode)


def _known_hops(episode: Episode, chain: Sequence[Fact]) -> int:
    """How many facts of the chain, from its start, stand in the documents found so far."""
    found = {document.id for step in episode.searches for document in step.documents}
    known = 0
    while known < len(chain) and chain[known].document_id in found:
        known += 1
    return known
