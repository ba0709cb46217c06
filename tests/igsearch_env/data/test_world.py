"""The embedded world: it follows from its seed, its passages are true, and its questions hang."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest

from igsearch_env import BM25Retriever, Document, Question, World
from igsearch_env.answers import contains_answer
from igsearch_env.data.corpus import load_corpus
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
from igsearch_env.data.questions import load_questions
from igsearch_env.data.world import Fact, default_world, group_by_cluster, hinted_cluster

WORLD = World.generate(seed=0)
OTHER = World.generate(seed=1)
BLIND = World.generate(seed=0, informative_bridges=False)
BY_ID = {document.id: document for document in WORLD.documents}
QUESTIONS = (*WORLD.train_questions, *WORLD.test_questions)


class TestDeterminism:
    def test_everything_follows_from_the_seed(self) -> None:
        assert World.generate(seed=0) == WORLD
        assert default_world() == WORLD

    def test_another_seed_states_other_facts_about_the_same_words(self) -> None:
        assert OTHER.documents != WORLD.documents
        assert OTHER.entities["city"] == WORLD.entities["city"]
        shared = WORLD.facts.keys() & OTHER.facts.keys()
        same = sum(WORLD.facts[k].object.name == OTHER.facts[k].object.name for k in shared)
        assert len(shared) > 300
        assert same < len(shared) / 2

    def test_ids_of_two_seeds_do_not_clash(self) -> None:
        assert BY_ID.keys().isdisjoint(document.id for document in OTHER.documents)
        assert WORLD.chains.keys().isdisjoint(OTHER.chains)


class TestSize:
    def test_default(self) -> None:
        assert 950 <= len(WORLD.documents) <= 1150
        assert {kind: len(members) for kind, members in WORLD.entities.items()} == {
            "person": 120,
            "city": 48,
            "company": 48,
            "country": 20,
        }

    def test_a_hundred_thousand_passages(self) -> None:
        big = World.generate(seed=0, people=15_000, questions_per_hop=200)
        assert 95_000 <= len(big.documents) <= 110_000
        assert len({document.id for document in big.documents}) == len(big.documents)
        for members in big.entities.values():
            assert len({entity.name for entity in members}) == len(members)
        assert {len(entity.name.split()) for entity in big.entities["person"]} == {3}
        # Places with names of several words still hint by the first of them.
        obeyed = [fact for fact in big.facts.values() if fact.subject.kind != "person"]
        assert all(obeys(fact) for fact in obeyed)
        words = {word for d in big.documents for word in re.findall(r"\w+", d.text)}
        assert words <= {word for d in [*WORLD.documents, *BLIND.documents] for word in
                         re.findall(r"\w+", d.text)} | NAMES  # fmt: skip

    def test_the_smallest(self) -> None:
        tiny = World.generate(seed=0, people=2, questions_per_hop=5)
        assert len(tiny.entities["person"]) == 2
        assert tiny.train_questions

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"people": 1}, "people must lie between 2 and 500,000, got 1"),
            ({"people": 500_001}, "got 500001"),
            ({"distractors": 1.0}, r"distractors must lie in \[0, 1\)"),
            ({"distractors": -0.1}, "got -0.1 and 0.25"),
            ({"test_share": 0.0}, r"test_share in \(0, 1\)"),
            ({"test_share": 1.0}, "got 0.1 and 1.0"),
        ],
        ids=str,
    )
    def test_refuses_other_sizes(self, options: dict[str, float], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            World.generate(**options)  # type: ignore[arg-type]


NAMES = {*FIRST_NAMES, *(word for words in NAME_WORDS.values() for word in words)}


class TestLexicon:
    def test_names_are_few_and_unmistakable(self) -> None:
        listed = [*FIRST_NAMES, *(word for words in NAME_WORDS.values() for word in words)]
        assert len(listed) == len(set(listed)) <= 400
        assert len({word.lower() for word in listed}) == len(listed)
        common = {
            word
            for text in (*DISTRACTORS, *(w for r in RELATIONS for w in (*r.wordings, r.noun)))
            for word in re.findall(r"\w+", text.lower())
        }
        assert common.isdisjoint(word.lower() for word in listed)

    def test_a_cluster_holds_three_or_four_names(self) -> None:
        for kind, words in NAME_WORDS.items():
            sizes = Counter(index % CLUSTERS[kind] for index in range(len(words)))
            assert set(sizes.values()) <= {3, 4}, kind
            assert len(sizes) == CLUSTERS[kind]

    def test_every_wording_states_the_fact_with_its_keyword(self) -> None:
        for relation in RELATIONS:
            for wording in relation.wordings:
                assert wording.count("{s}") == wording.count("{o}") == 1
                assert relation.keyword in wording.split()
            assert "{s}" not in relation.noun
        for text in DISTRACTORS:
            assert "{s}" in text
            assert "{keyword}" in text
            assert "{o}" not in text

    def test_a_noun_means_one_relation_of_a_kind(self) -> None:
        asked = [(relation.subject, relation.noun) for relation in RELATIONS]
        assert len(asked) == len(set(asked))


class TestPassages:
    def test_there_is_one_for_every_fact(self) -> None:
        kinds: dict[Kind, int] = {kind: len(m) for kind, m in WORLD.entities.items()}
        assert len(WORLD.facts) == sum(kinds[relation.subject] for relation in RELATIONS)
        ids = [fact.document_id for fact in WORLD.facts.values()]
        assert len(ids) == len(set(ids))
        assert len(BY_ID) == len(WORLD.documents)

    def test_each_states_its_fact(self) -> None:
        for (name, relation), fact in WORLD.facts.items():
            assert (fact.subject.name, fact.relation.name) == (name, relation)
            assert fact.object.kind == fact.relation.object
            assert fact.object != fact.subject
            assert fact.object in WORLD.entities[fact.object.kind]
            passage = BY_ID[fact.document_id]
            assert passage.title == name
            assert passage.text in [
                wording.format(s=name, o=fact.object.name) for wording in fact.relation.wordings
            ]

    def test_all_wordings_occur(self) -> None:
        used = {
            (fact.relation.name, wording)
            for fact in WORLD.facts.values()
            for wording in fact.relation.wordings
            if BY_ID[fact.document_id].text
            == wording.format(s=fact.subject.name, o=fact.object.name)
        }
        assert len(used) == sum(len(relation.wordings) for relation in RELATIONS)

    def test_distractors_name_the_subject_but_not_the_object(self) -> None:
        distractors = distractors_of(WORLD)
        assert 0.05 < len(distractors) / len(WORLD.documents) < 0.15
        names = {entity.name for members in WORLD.entities.values() for entity in members}
        for document in distractors:
            assert document.title in document.text
            rest = document.text.replace(document.title, "")
            keywords = [r.keyword for r in RELATIONS if r.keyword in rest.split()]
            assert keywords
            assert not any(contains_answer(rest, [name]) for name in names)
            facts = [WORLD.facts.get((document.title, r.name)) for r in RELATIONS]
            golds = [fact.object.name for fact in facts if fact is not None]
            assert golds
            assert not contains_answer(document.text, golds)

    @pytest.mark.parametrize("share", [0.0, 0.5])
    def test_their_share(self, share: float) -> None:
        world = World.generate(seed=0, distractors=share, questions_per_hop=1)
        per_fact = len(distractors_of(world)) / len(world.facts)
        assert per_fact == pytest.approx(share, abs=0.06)


def distractors_of(world: World) -> list[Document]:
    gold = {fact.document_id for fact in world.facts.values()}
    return [document for document in world.documents if document.id not in gold]


class TestQuestions:
    def test_train_and_test_are_disjoint(self) -> None:
        train, test = (
            {getattr(question, name) for question in questions}
            for name in ("text",)
            for questions in (WORLD.train_questions, WORLD.test_questions)
        )
        assert train.isdisjoint(test)
        assert len({question.id for question in QUESTIONS}) == len(QUESTIONS)
        assert len({question.text for question in QUESTIONS}) == len(QUESTIONS)
        assert 0.2 < len(test) / len(QUESTIONS) < 0.3

    @pytest.mark.parametrize("hops", [1, 2, 3])
    def test_both_hold_every_number_of_hops(self, hops: int) -> None:
        for questions in (WORLD.train_questions, WORLD.test_questions):
            assert sum(question.hops == hops for question in questions) > 100
            assert {q.dataset for q in questions if q.hops == hops} == {f"world-{hops}hop"}

    def test_gold_passages_lead_from_the_question_to_the_answer(self) -> None:
        for question in QUESTIONS:
            chain = WORLD.chains[question.id]
            assert len(chain) == question.hops
            assert question.gold_ids == tuple(fact.document_id for fact in chain)
            assert question.gold_titles == tuple(fact.subject.name for fact in chain)
            for before, after in pairwise(chain):
                assert before.object == after.subject
            for fact in chain:
                text = BY_ID[fact.document_id].text
                assert fact.subject.name in text
                assert fact.object.name in text
            assert question.golden_answers == (chain[-1].object.name,)
            assert contains_answer(BY_ID[question.gold_ids[-1]].text, question.golden_answers)

    def test_the_text_asks_for_the_chain(self) -> None:
        for question in QUESTIONS:
            assert answer_by_hand(question) == question.golden_answers[0]

    def test_nothing_is_given_away(self) -> None:
        for question in QUESTIONS:
            chain = WORLD.chains[question.id]
            assert not contains_answer(question.text, question.golden_answers)
            for fact in chain[:-1]:
                assert fact.object.name not in question.text
                assert fact.object.kind != "person"
                assert not contains_answer(BY_ID[fact.document_id].text, question.golden_answers)
            if len(chain) > 1:
                assert chain[0].subject.kind == "person"

    def test_their_number_is_bounded(self) -> None:
        few = World.generate(seed=0, questions_per_hop=7)
        assert len(few.train_questions) + len(few.test_questions) == 21

    def test_bm25_finds_the_first_gold_passage(self) -> None:
        retriever = BM25Retriever.build(WORLD.documents)
        one_hop = [q for q in WORLD.test_questions if q.hops == 1][:100]
        facts = [WORLD.chains[question.id][0] for question in one_hop]
        queries = [f"{fact.subject.name} {fact.relation.keyword}" for fact in facts]
        found = retriever.search(queries, 3)
        hits = sum(
            fact.document_id in {document.id for document in documents}
            for fact, documents in zip(facts, found, strict=True)
        )
        assert hits >= 90


def answer_by_hand(question: Question) -> str:
    """Read a question from the inside out, as its wording says, and look every fact up."""
    opening, _, closing = QUESTION.partition("{}")
    phrase = question.text.removeprefix(opening).removesuffix(closing)
    nouns = []
    part = re.compile(QUESTION_PART.replace("{noun}", "([a-z]+)").replace("{}", "(.+)"))
    while match := part.fullmatch(phrase):
        nouns.append(match.group(1))
        phrase = match.group(2)
    for noun in reversed(nouns):
        (kind,) = (
            k for k, members in WORLD.entities.items() if phrase in {e.name for e in members}
        )
        (relation,) = (r for r in RELATIONS if (r.subject, r.noun) == (kind, noun))
        phrase = WORLD.facts[phrase, relation.name].object.name
    return phrase


def obeys(fact: Fact) -> bool:
    """Whether the object's name is in the cluster that goes with the subject's name."""
    return cluster_of(fact.object.word, fact.object.kind) == hinted_cluster(
        fact.subject, fact.relation
    )


def cluster_of(word: str, kind: Kind) -> int:
    return NAME_WORDS[kind].index(word) % CLUSTERS[kind]


def hints(world: World) -> dict[tuple[str, str], set[str]]:
    """For each relation of places and each word of a subject: the words its objects may have."""
    words = {
        key: {entity.word for entity in members}
        for key, members in group_by_cluster(world.entities).items()
    }
    return {
        (relation.name, subject.word): words[relation.object, hinted_cluster(subject, relation)]
        for relation in RELATIONS
        if relation.subject != "person"
        for subject in world.entities[relation.subject]
    }


def of_places(world: World, relation: Relation | None = None) -> list[Fact]:
    return [
        fact
        for fact in world.facts.values()
        if fact.subject.kind != "person" and relation in (None, fact.relation)
    ]


class TestInformativeBridges:
    def test_the_hints_are_the_same_in_every_world(self) -> None:
        one, other = hints(WORLD), hints(OTHER)
        assert one.keys() == other.keys()
        for key, words in one.items():
            if RELATION[key[0]].object == "person":  # not every surname occurs among 120 people
                assert words & other[key] or not other[key]
            else:
                assert words == other[key]
                assert 3 <= len(words) <= 4

    def test_facts_about_places_obey_them(self) -> None:
        for world in (WORLD, OTHER):
            assert all(obeys(fact) for fact in of_places(world))
        seen: dict[tuple[str, str], set[str]] = {}
        for seed in range(6):
            world = World.generate(seed=seed, questions_per_hop=1)
            groups = group_by_cluster(world.entities)
            for fact in of_places(world):
                # Of 100 surnames a few are missing, and now and then all four of a cluster.
                hinted = groups[fact.object.kind, hinted_cluster(fact.subject, fact.relation)]
                assert obeys(fact) or not hinted
                if hinted:
                    key = (fact.relation.name, fact.subject.name)
                    seen.setdefault(key, set()).add(fact.object.word)
        # Over the seeds a hint leaves several objects open, and no more than its cluster.
        assert max(map(len, seen.values())) <= 4
        assert sum(len(words) >= 2 for words in seen.values()) > 0.9 * len(seen)

    def test_facts_about_people_do_not(self) -> None:
        facts = [fact for fact in WORLD.facts.values() if fact.subject.kind == "person"]
        shares = Counter(obeys(fact) for fact in facts)
        assert shares[True] < 0.25 * len(facts)

    def test_without_them_no_fact_does(self) -> None:
        for relation in RELATIONS:
            if relation.subject == "person":
                continue
            facts = of_places(BLIND, relation)
            obeyed = sum(obeys(fact) for fact in facts)
            assert obeyed < 0.6 * len(facts), relation.name
            assert {fact.object.word for fact in facts} != set()
        assert sum(map(obeys, of_places(BLIND))) < 0.2 * len(of_places(BLIND))

    def test_the_hint_depends_on_the_relation_and_on_the_name(self) -> None:
        into_cities = [r for r in RELATIONS if r.object == "city" and r.subject != "person"]
        company, city = (WORLD.entities[kind] for kind in ("company", "city"))
        based_in, exports_to = RELATION["based_in"], RELATION["exports_to"]
        assert {based_in, exports_to} <= set(into_cities)
        # Names of the same number: the relation alone tells the two clusters apart.
        pairs = list(zip(company, city, strict=True))
        assert all(hinted_cluster(a, based_in) != hinted_cluster(b, exports_to) for a, b in pairs)
        for subjects, relation in ((company, based_in), (city, exports_to)):
            clusters = {hinted_cluster(subject, relation) for subject in subjects}
            assert clusters == set(range(CLUSTERS["city"]))


RELATION = {relation.name: relation for relation in RELATIONS}


def test_a_name_may_ask_for_a_world_of_another_size() -> None:
    world = World.generate(3, people=40)
    assert load_questions("world-test:40:3") == list(world.test_questions)
    assert load_questions("world-train:40:3", limit=5) == list(world.train_questions[:5])
    assert load_corpus("world:40:3") == list(world.documents)
    assert load_corpus("world:120:0") == load_corpus("world") == load_corpus("world:120")
    for name in ("world:", "world:many", "world:40:", "world:40:3:1"):
        with pytest.raises(ValueError, match="expected a name like world-test"):
            load_corpus(name)
    with pytest.raises(ValueError, match="people must lie between"):
        load_questions("world-test:1")
