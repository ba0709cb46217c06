"""A synthetic world: a corpus of short documents, and 1-, 2- and 3-hop questions about it.

Everything follows from a seed. The words are those of :mod:`igsearch_env.data.lexicon` in every
world; the facts differ, so a policy that was warm-started on other seeds knows how to read but
not what is true. With ``informative_bridges`` the object of a fact about a city, company or
country is one
of the 3-4 names that go with the subject's name (the same ones in every world), as a director's
name hints at a nationality in real text: the bridge document of a multi-hop question then already
moves the probability of its answer.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from igsearch_env.data.lexicon import (
    CLUSTERS,
    DISTRACTORS,
    FIRST_NAMES,
    NAME_WORDS,
    QUESTION,
    QUESTION_PART,
    RELATIONS,
    Kind,
    Relation,
)
from igsearch_env.episode import Document, Question

PEOPLE = 120
"""Number of people of the embedded world, where a name does not say another one."""


@dataclass(frozen=True, slots=True)
class Entity:
    """A named thing; ``word`` is the word of the name that decides its cluster."""

    name: str
    kind: Kind
    word: str


@dataclass(frozen=True, slots=True)
class Fact:
    """One true statement and the document that states it."""

    subject: Entity
    relation: Relation
    object: Entity
    document_id: str


@dataclass(frozen=True)
class World:
    """A corpus with questions.

    Args:
        seed: What everything was drawn from.
        documents: The documents: one per fact, and the distractors.
        facts: The facts by (subject name, relation name).
        chains: For each question id, the facts that lead from its subject to its answer.
        entities: The entities of each kind.
        train_questions: Questions for training.
        test_questions: Questions held out; none of them is asked in training, though the facts
            behind them may be. All questions are in random order.

    >>> world = World.generate(seed=0)
    >>> question = next(q for q in world.test_questions if q.hops == 2)
    >>> [fact.relation.keyword for fact in world.chains[question.id]]
    ['works', 'supplies']
    """

    seed: int
    documents: tuple[Document, ...]
    facts: dict[tuple[str, str], Fact]
    chains: dict[str, tuple[Fact, ...]]
    entities: dict[Kind, tuple[Entity, ...]]
    train_questions: tuple[Question, ...]
    test_questions: tuple[Question, ...]

    @classmethod
    def generate(
        cls,
        seed: int = 0,
        *,
        people: int = 120,
        informative_bridges: bool = True,
        distractors: float = 0.1,
        questions_per_hop: int = 4000,
        test_share: float = 0.25,
    ) -> World:
        """Draw a world.

        Args:
            seed: Seed of everything.
            people: Number of people. There are about 5 documents for each, and 376 or more about
                cities, companies and countries: 120 people make about 1,070 documents, 15,000
                make about 100,000.
            informative_bridges: Whether names of cities, companies and countries hint at the
                objects of their facts.
            distractors: Share of documents that name a subject and a keyword but state no fact.
            questions_per_hop: At most this many questions of each number of hops.
            test_share: Share of the questions that is held out.

        Raises:
            ValueError: If a number is out of range.
        """
        if not 2 <= people <= 500_000:
            raise ValueError(f"people must lie between 2 and 500,000, got {people}")
        if not 0 <= distractors < 1 or not 0 < test_share < 1:
            raise ValueError(
                "distractors must lie in [0, 1) and test_share in (0, 1), "
                f"got {distractors} and {test_share}"
            )
        rng = random.Random(f"igsearch world {seed}")
        entities: dict[Kind, tuple[Entity, ...]] = {
            "person": _people(people, rng),
            "city": _places("city", max(48, people // 6), rng),
            "company": _places("company", max(48, people // 6), rng),
            "country": _places("country", max(20, people // 60), rng),
        }
        facts, documents = _state(entities, informative_bridges, distractors, rng, f"w{seed}")
        chains: dict[str, tuple[Fact, ...]] = {}
        train: list[Question] = []
        test: list[Question] = []
        for hops in (1, 2, 3):
            found = _chains(facts, entities, hops, questions_per_hop, rng)
            for number, chain in enumerate(found):
                question = _question(f"w{seed}-{hops}hop-{number:05d}", chain)
                chains[question.id] = chain
                (test if rng.random() < test_share else train).append(question)
        rng.shuffle(train)
        rng.shuffle(test)
        return cls(seed, tuple(documents), facts, chains, entities, tuple(train), tuple(test))


@lru_cache(maxsize=4)
def default_world(people: int = PEOPLE, seed: int = 0) -> World:
    """The world that the environment runs on when nothing else is given, or one of another size."""
    return World.generate(seed, people=people)


def world_of_name(name: str) -> World:
    """The world that a name asks for: ``"world-test"``, ``"world-test:320"``, ``"world:320:7"``.

    Args:
        name: What is taken from the world, and, after colons, its number of people and its seed.

    Raises:
        ValueError: If what follows the first colon is not one or two numbers, or out of range.
    """
    return default_world(*_people_and_seed(name))


def world_of_questions(name: str) -> str | None:
    """The name of the documents that a question set of a world is about; None for other sets.

    >>> world_of_questions("world-train:320")
    'world:320'
    """
    kind, colon, numbers = name.partition(":")
    return f"world{colon}{numbers}" if kind in ("world-train", "world-test") else None


def same_world(world: str, other: str) -> bool:
    """Whether two names may mean the same documents: False only for two different worlds.

    >>> same_world("world", "world:120:0"), same_world("world", "world:320")
    (True, False)
    """
    if other.partition(":")[0] != "world":
        return True
    return _people_and_seed(world) == _people_and_seed(other)


def _people_and_seed(name: str) -> tuple[int, int]:
    found = re.fullmatch(r"[^:]*(?::(\d+)(?::(\d+))?)?", name)
    if found is None:
        raise ValueError(f"expected a name like world-test or world-test:PEOPLE:SEED, got {name!r}")
    people, seed = found.groups()
    return int(people or PEOPLE), int(seed or 0)


def group_by_cluster(
    entities: dict[Kind, tuple[Entity, ...]],
) -> dict[tuple[Kind, int], list[Entity]]:
    """The entities of each kind and name cluster."""
    groups: dict[tuple[Kind, int], list[Entity]] = defaultdict(list)
    for kind, members in entities.items():
        numbers = {word: i % CLUSTERS[kind] for i, word in enumerate(NAME_WORDS[kind])}
        for entity in members:
            groups[kind, numbers[entity.word]].append(entity)
    return groups


def hinted_cluster(subject: Entity, relation: Relation) -> int:
    """The cluster that a subject's name goes with under informative bridges.

    It depends on the word of the name alone, so it is the same in every world.
    """
    index = NAME_WORDS[subject.kind].index(subject.word)
    return (index + RELATIONS.index(relation)) % CLUSTERS[relation.object]


def _people(count: int, rng: random.Random) -> tuple[Entity, ...]:
    """People with two names, or three where two would soon run out; surnames are equally common."""
    surnames = NAME_WORDS["person"]
    givens = 1 if count <= len(FIRST_NAMES) * len(surnames) // 2 else 2
    names: dict[tuple[str, ...], None] = {}
    while len(names) < count:
        surname = surnames[len(names) % len(surnames)]
        names[(*(rng.choice(FIRST_NAMES) for _ in range(givens)), surname)] = None
    people = [Entity(" ".join(name), "person", name[-1]) for name in names]
    rng.shuffle(people)
    return tuple(people)


def _places(kind: Kind, count: int, rng: random.Random) -> tuple[Entity, ...]:
    """Names of one word, each in use; beyond them names of two words, or three in a big world."""
    words = NAME_WORDS[kind]
    names: dict[tuple[str, ...], None] = {(word,): None for word in words[:count]}
    length = 2 if count <= len(words) ** 2 // 2 else 3
    while len(names) < count:
        names[tuple(rng.choice(words) for _ in range(length))] = None
    return tuple(Entity(" ".join(name), kind, name[0]) for name in names)


def _state(
    entities: dict[Kind, tuple[Entity, ...]],
    informative: bool,
    distractors: float,
    rng: random.Random,
    prefix: str,
) -> tuple[dict[tuple[str, str], Fact], list[Document]]:
    """Draw every fact and write its document; mix in the distractors."""
    facts: dict[tuple[str, str], Fact] = {}
    documents: list[Document] = []
    groups = group_by_cluster(entities)
    for relation in RELATIONS:
        for subject in entities[relation.subject]:
            choices: Sequence[Entity] = entities[relation.object]
            if informative and relation.subject != "person":
                hinted = groups[relation.object, hinted_cluster(subject, relation)]
                choices = [entity for entity in hinted if entity != subject] or choices
            target = subject
            while target == subject:
                target = rng.choice(choices)
            identifier = f"{prefix}-{len(documents):06d}"
            text = rng.choice(relation.wordings).format(s=subject.name, o=target.name)
            facts[subject.name, relation.name] = Fact(subject, relation, target, identifier)
            documents.append(Document(identifier, subject.name, text))
            if rng.random() < distractors:
                text = rng.choice(DISTRACTORS).format(s=subject.name, keyword=relation.keyword)
                documents.append(Document(f"{prefix}-{len(documents):06d}", subject.name, text))
    return facts, documents


def _chains(
    facts: dict[tuple[str, str], Fact],
    entities: dict[Kind, tuple[Entity, ...]],
    hops: int,
    limit: int,
    rng: random.Random,
) -> list[tuple[Fact, ...]]:
    """Draw distinct chains of facts; those of several hops start at a person and bridge no person.

    A chain that comes back to an entity it has passed is left out: its answer stands in its own
    question or bridge.
    """
    by_kind: dict[Kind, list[Relation]] = {kind: [] for kind in entities}
    for relation in RELATIONS:
        by_kind[relation.subject].append(relation)
    every = [entity for group in entities.values() for entity in group]
    starts = list(entities["person"]) if hops > 1 else every
    chains: dict[tuple[str, ...], tuple[Fact, ...]] = {}
    for _ in range(4 * limit):
        entity = rng.choice(starts)
        seen = [entity.name]
        chain: list[Fact] = []
        for hop in range(hops):
            relations = by_kind[entity.kind]
            if hop < hops - 1:
                relations = [r for r in relations if r.object != "person"]
            fact = facts[entity.name, rng.choice(relations).name]
            chain.append(fact)
            entity = fact.object
            seen.append(entity.name)
        if len(set(seen)) == len(seen):
            chains.setdefault(tuple(fact.document_id for fact in chain), tuple(chain))
        if len(chains) == limit:
            break
    return list(chains.values())


def _question(identifier: str, chain: tuple[Fact, ...]) -> Question:
    phrase = chain[0].subject.name
    for fact in chain:
        phrase = QUESTION_PART.format(phrase, noun=fact.relation.noun)
    return Question(
        id=identifier,
        text=QUESTION.format(phrase),
        golden_answers=(chain[-1].object.name,),
        dataset=f"world-{len(chain)}hop",
        hops=len(chain),
        gold_ids=tuple(fact.document_id for fact in chain),
        gold_titles=tuple(fact.subject.name for fact in chain),
    )
