"""The evidence pool: what it refuses to draw, what it forgets, and that seeds decide everything."""

from __future__ import annotations

import copy
import json
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igsearch_env import Document, Evidence, EvidencePool, Question, Segment

PERU = Question("peru", "What is the capital of Peru?", ("Lima", "City of Kings"))
RETRIEVED = (Document("d-peru", "Peru", "A country of the Andes."),)


def pair(
    question: str,
    text: str = "Nothing of note.",
    refinement: str = "",
    title: str = "",
    document: str | None = None,
    question_text: str | None = None,
) -> Evidence:
    return Evidence(
        (Document(document or f"d-{question}", title, text),),
        Segment(refinement, "policy", (1, 2) if refinement else ()),
        question,
        question_text or f"What is the capital of {question}?",
    )


class TestAllows:
    @pytest.mark.parametrize(
        ("bad", "good"),
        [
            # The same question: by its id, or by its words under another id.
            (pair("peru"), pair("cuba")),
            (
                pair("p2", question_text="what is  THE capital of Peru"),
                pair("p2", question_text="what is the capital of Perugia"),
            ),
            # A passage that was really retrieved, whatever else stands beside it.
            (pair("cuba", document="d-peru"), pair("cuba", document="d-cuba")),
            (
                replace(pair("cuba"), documents=(*pair("cuba").documents, *RETRIEVED)),
                replace(pair("cuba"), documents=(*pair("cuba").documents, Document("e", "", "x"))),
            ),
            # A gold answer: in a text, a title, a refinement, any alias, however spelt.
            (pair("cuba", "They flew to LIMA, too."), pair("cuba", "They flew to Limassol, too.")),
            (pair("cuba", title="Lima"), pair("cuba", title="Limassol")),
            (pair("cuba", refinement="<refine>Lima</refine>"), pair("cuba", refinement="Oslo")),
            (pair("cuba", "The City of Kings"), pair("cuba", "The city of Kingston")),
            (
                replace(
                    pair("cuba"), documents=(Document("a", "", "x"), Document("b", "", "Lima"))
                ),
                replace(pair("cuba"), documents=(Document("a", "", "x"), Document("b", "", "y"))),
            ),
        ],
        ids=[
            *("id", "words", "document", "second-document", "text", "title", "refinement"),
            *("second-alias", "second-text"),
        ],
    )
    def test_rules_and_their_negative_controls(self, bad: Evidence, good: Evidence) -> None:
        pool = EvidencePool()
        assert not pool.allows(bad, PERU, RETRIEVED)
        assert pool.allows(good, PERU, RETRIEVED)

    def test_another_rollouts_document_is_no_obstacle(self) -> None:
        assert EvidencePool().allows(pair("cuba", document="d-peru"), PERU, ())

    @pytest.mark.parametrize(
        ("golds", "allowed"),
        [
            (("yes",), True),
            (("No",), True),
            (("Yes.", "no"), True),
            (("yes", "Lima"), False),
            (("Norway",), False),
        ],
    )
    def test_yes_and_no_may_stand_in_a_passage(self, golds: tuple[str, ...], allowed: bool) -> None:
        closed = Question("q", "Is it so?", golds)
        text = "Yes and no: there is no doubt of Norway."
        assert EvidencePool().allows(pair("cuba", text), closed, ()) is allowed
        # The other rules hold for them all the same.
        assert not EvidencePool().allows(pair("q", "x"), closed, ())
        assert not EvidencePool().allows(pair("cuba", "x", document="d-peru"), closed, RETRIEVED)


def filled(pairs: Sequence[Evidence], **options: int) -> EvidencePool:
    pool = EvidencePool(**options)
    for item in pairs:
        pool.add(item)
    return pool


OTHERS = tuple(pair(name) for name in ("cuba", "chad", "fiji", "oman", "mali"))


class TestDraw:
    def test_an_empty_pool_gives_nothing(self) -> None:
        pool = EvidencePool()
        assert pool.draw(PERU, RETRIEVED, 3) == []
        assert pool.counts == Counter()

    @pytest.mark.parametrize("seed", range(5))
    def test_draws_are_distinct(self, seed: int) -> None:
        drawn = filled(OTHERS, seed=seed, tries=200).draw(PERU, RETRIEVED, 5)
        assert sorted(item.question_id for item in drawn) == [
            "chad",
            "cuba",
            "fiji",
            "mali",
            "oman",
        ]

    @pytest.mark.parametrize("seed", range(5))
    def test_equal_pairs_count_as_one(self, seed: int) -> None:
        pool = filled([pair("cuba"), pair("cuba"), pair("chad")], seed=seed, tries=100)
        drawn = pool.draw(PERU, RETRIEVED, 3)
        assert sorted(item.question_id for item in drawn) == ["chad", "cuba"]

    def test_siblings_are_never_drawn(self) -> None:
        siblings = [pair("peru", f"t{n}", document=f"s{n}") for n in range(50)]
        pool = filled([*siblings, *OTHERS], tries=1000)
        for _ in range(200):
            drawn = pool.draw(PERU, RETRIEVED, 3)
            assert len(drawn) == 3
            assert all(item.question_id != "peru" for item in drawn)
        assert pool.draw(Question("cuba", "x?", ("y",)), (), 20) != []

    def test_every_pair_that_may_be_drawn_is_drawn(self) -> None:
        pool = filled([*OTHERS, pair("peru"), pair("bad", "Lima")], tries=100)
        seen = Counter(pool.draw(PERU, RETRIEVED, 1)[0].question_id for _ in range(500))
        assert set(seen) == {"cuba", "chad", "fiji", "oman", "mali"}
        assert min(seen.values()) > 60  # 100 each in the mean

    def test_gives_up_after_the_tries(self) -> None:
        pool = filled([pair("peru")], tries=7)
        assert pool.draw(PERU, RETRIEVED, 3) == []
        assert pool.counts == Counter(rejected=21)
        assert pool.draw(PERU, RETRIEVED, 0) == []

    def test_counts(self) -> None:
        pool = filled(OTHERS, tries=100)
        drawn = [pool.draw(PERU, RETRIEVED, 3) for _ in range(10)]
        assert pool.counts["drawn"] == sum(map(len, drawn)) == 30
        # The second and third of a draw hit one that is drawn already now and then.
        assert 0 < pool.counts["rejected"] < 60

    def test_a_pair_without_documents_is_left_out(self) -> None:
        pool = filled([replace(pair("cuba"), documents=())])
        assert len(pool) == 0

    def test_pairs_with_a_refinement_are_preferred(self) -> None:
        refined = [pair(name, refinement="<refine>r</refine>") for name in ("cuba", "chad")]
        pool = filled([*refined, *(pair(f"x{n}") for n in range(8))], tries=200)
        for _ in range(50):
            drawn = pool.draw(PERU, RETRIEVED, 2)
            assert sorted(item.question_id for item in drawn) == ["chad", "cuba"]
            assert len(pool.draw(PERU, RETRIEVED, 3)) == 3  # too few of them: all are drawn from
        plain = filled([pair(f"x{n}") for n in range(8)], tries=200)
        assert len(plain.draw(PERU, RETRIEVED, 3)) == 3

    @pytest.mark.parametrize("count", [3, 4, 5, 11, 12])
    def test_the_oldest_go_first(self, count: int) -> None:
        pool = EvidencePool(capacity=4, tries=300)
        for number in range(count):
            pool.add(pair(f"q{number:02}"))
        assert len(pool) == min(count, 4)
        kept = sorted(item.question_id for item in pool.draw(PERU, RETRIEVED, 4))
        assert kept == [f"q{number:02}" for number in range(max(0, count - 4), count)]


def draws(pool: EvidencePool, times: int = 20) -> list[list[str]]:
    return [[item.question_id for item in pool.draw(PERU, RETRIEVED, 2)] for _ in range(times)]


class TestSeeds:
    def test_the_same_seed_draws_alike(self) -> None:
        assert draws(filled(OTHERS, seed=3)) == draws(filled(OTHERS, seed=3))
        assert draws(filled(OTHERS, seed=3)) != draws(filled(OTHERS, seed=4))

    def test_seeding_forgets_everything(self) -> None:
        pool = filled(OTHERS, seed=3, capacity=3)
        expected = draws(filled(OTHERS, seed=9, capacity=3))
        draws(pool)
        pool.seed(9)
        assert len(pool) == 0
        assert pool.counts == Counter()
        for item in OTHERS:
            pool.add(item)
        assert draws(pool) == expected

    def test_the_stream_is_not_that_of_the_questions(self) -> None:
        # Gymnasium picks questions with default_rng(seed). With the same stream here, the first
        # fallback of an episode would look up the question that is being asked.
        for seed in range(5):
            pool = EvidencePool(seed=seed)
            mine = pool.rng.integers(1000, size=20).tolist()
            assert mine != np.random.default_rng(seed).integers(1000, size=20).tolist()

    def test_the_global_generators_are_left_alone(self) -> None:
        np.random.seed(1)
        before = np.random.get_state()[1].tolist()  # type: ignore[index]
        draws(filled(OTHERS))
        assert np.random.get_state()[1].tolist() == before  # type: ignore[index]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 12), st.integers(1, 8), st.integers(0, 5), st.integers(0, 2**32))
def test_the_state_goes_through_json(added: int, capacity: int, drawn: int, seed: int) -> None:
    pool = EvidencePool(capacity, seed=seed)
    for number in range(added):
        refinement = "<refine>é</refine>" if number % 2 else ""
        item = pair(f"q{number}", "Zürich ‹x›", refinement, title="T")
        if number % 3 == 0:
            item = replace(item, refinement=replace(item.refinement, token_ids=None))
        if number % 4 == 0:
            item = replace(item, documents=(*item.documents, Document("z", "", "y", 0.125)))
        pool.add(item)
    draws(pool, drawn)
    twin = EvidencePool(capacity, seed=seed + 1)
    twin.load_state_dict(json.loads(json.dumps(pool.state_dict())))

    assert twin.counts == pool.counts
    assert twin.state_dict() == pool.state_dict()
    one, other = [pool.draw(PERU, (), 3) for pool in (pool, twin)]
    assert one == other  # whole pairs, tuples and token ids included
    for both in (pool, twin):  # and the ring goes on at the same place
        for number in range(5):
            both.add(pair(f"later{number}"))
    assert draws(twin) == draws(pool)
    assert twin.counts == pool.counts


def test_a_state_is_a_copy() -> None:
    pool = filled(OTHERS)
    state = pool.state_dict()
    before = json.dumps(state)
    draws(pool)
    pool.add(pair("later"))
    assert json.dumps(state) == before


def test_a_deep_copy_is_the_pool_itself_and_a_pickle_draws_alike() -> None:
    pool = filled(OTHERS)
    assert copy.deepcopy({"pool": pool})["pool"] is pool
    twin = pickle.loads(pickle.dumps(pool))
    assert twin is not pool
    assert draws(twin) == draws(pool)


@pytest.mark.parametrize(("capacity", "tries"), [(0, 20), (-1, 20), (10, 0)])
def test_refuses_impossible_arguments(capacity: int, tries: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {capacity} and {tries}"):
        EvidencePool(capacity, tries)
