"""The arguments of the environments: built-ins by name, and what is refused at once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from igsearch_env import (
    PROTOCOLS,
    BM25Retriever,
    EvidencePool,
    InformationGain,
    SearchQAEnv,
    SearchQAVectorEnv,
    Shaping,
    UnigramScorer,
)
from igsearch_env.data.world import default_world
from igsearch_env.settings import QuestionSet, make_engine, world_retriever
from tests.igsearch_env.fakes import DOCUMENTS, QUESTIONS, FakeRetriever


class TestBuiltIns:
    def test_defaults(self) -> None:
        engine = make_engine()
        assert tuple(engine.questions) == default_world().train_questions
        assert engine.retriever is world_retriever("world")
        assert isinstance(engine.scorer, UnigramScorer)
        assert engine.rules.protocol is PROTOCOLS["refine"]
        assert (engine.rules.max_searches, engine.top_k, engine.num_counterfactuals) == (5, 3, 3)
        assert engine.information_gain == InformationGain()
        assert engine.shaping == Shaping()
        assert (engine.information_gain_weight, engine.outcome) == (0.0, "em")

    def test_every_engine_has_a_pool_of_its_own_unless_one_is_shared(self) -> None:
        assert make_engine().pool is not make_engine().pool
        pool = EvidencePool()
        assert len(pool) == 0  # and so it is falsy; it must be kept all the same
        assert make_engine(pool=pool).pool is pool

    def test_question_sets_by_name_and_file(self, tmp_path: Path) -> None:
        assert tuple(make_engine("world-test").questions) == default_world().test_questions
        file = tmp_path / "two.jsonl"
        file.write_text(
            '{"question": "Who?", "golden_answers": ["A"]}\n'
            '{"question": "What?", "golden_answers": ["B"]}\n'
        )
        assert [question.text for question in make_engine(str(file)).questions] == ["Who?", "What?"]

    def test_questions_of_another_world_are_searched_for_in_it(self) -> None:
        engine = make_engine("world-test:41:3")
        assert list(engine.retriever.documents) == list(default_world(41, 3).documents)  # type: ignore[attr-defined]

    def test_a_saved_index_by_its_folder(self, tmp_path: Path) -> None:
        BM25Retriever.build(DOCUMENTS.values()).save(tmp_path / "index")
        engine = make_engine(QUESTIONS, str(tmp_path / "index"))
        assert engine.retriever.search(["Peru"], 1)[0][0].id == "d-Peru"

    def test_no_scorer(self) -> None:
        assert make_engine(scorer=None).scorer is None

    def test_objects_are_taken_as_they_are(self) -> None:
        retriever, scorer, shaping = FakeRetriever(), UnigramScorer(7), Shaping(0.5)
        engine = make_engine(QUESTIONS, retriever, scorer, shaping=shaping)
        assert engine.retriever is retriever
        assert engine.scorer is scorer
        assert engine.shaping is shaping
        assert engine.questions == QUESTIONS

    def test_the_protocol_reaches_the_gain(self) -> None:
        engine = make_engine(protocol="search-r1", counterfactual="documents")
        assert engine.information_gain == InformationGain(PROTOCOLS["search-r1"], "documents")

    def test_a_gain_of_ones_own(self) -> None:
        gain = InformationGain.paper(PROTOCOLS["search-r1"])
        engine = make_engine(protocol="search-r1", information_gain=gain)
        assert engine.information_gain is gain


strange: Any = [{"question": "Who?"}]


@pytest.mark.parametrize("build", [make_engine, SearchQAEnv, lambda **k: SearchQAVectorEnv(2, **k)])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"num_counterfactuals": -1}, ValueError, "num_counterfactuals must be at least 0, got -1"),
        (
            {"information_gain_weight": -0.5},
            ValueError,
            "information_gain_weight must be at least 0, got -0.5",
        ),
        (
            {"information_gain_weight": 0.5, "scorer": None},
            ValueError,
            "information_gain_weight = 0.5 pays a gain that is never known: give a scorer",
        ),
        (
            {"information_gain_weight": 0.5, "num_counterfactuals": 0},
            ValueError,
            "pays a gain that is never known",
        ),
        ({"max_searches": 0}, ValueError, "max_searches must be at least 1, got 0"),
        ({"outcome": "rouge"}, ValueError, "outcome must be 'em', 'f1' or a callable, got 'rouge'"),
        ({"protocol": "react"}, ValueError, "unknown protocol 'react'; known are refine,"),
        ({"counterfactual": "queries"}, ValueError, "counterfactual must be .* got 'queries'"),
        ({"retriever": "http://"}, ValueError, "expected http://HOST:PORT/retrieve"),
        ({"retriever": "faiss"}, ValueError, "unknown retriever 'faiss': expected 'bm25'"),
        ({"scorer": "gpt"}, ValueError, "unknown scorer 'gpt': expected 'unigram', None, or an"),
        ({"questions": "trivia"}, ValueError, "unknown question set 'trivia'"),
        ({"questions": []}, ValueError, "the question set is empty; give at least one"),
        ({"questions": strange}, TypeError, "questions must be Question objects, got dict"),
        ({"questions": QUESTIONS[:1]}, ValueError, "only one question; give at least 2, or set"),
        (
            {"information_gain": InformationGain(PROTOCOLS["search-r1"])},
            ValueError,
            "information_gain is for the protocol 'search-r1', the environment for 'refine'",
        ),
        ({"render_mode": "human"}, (ValueError, TypeError), "render_mode"),
    ],
)
def test_a_bad_argument_raises_at_once(
    build: Any, arguments: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        build(**arguments)


def test_one_question_is_enough_without_counterfactuals() -> None:
    engine = make_engine(QUESTIONS[:1], num_counterfactuals=0)
    assert engine.questions == QUESTIONS[:1]


def test_a_question_set_is_shared_not_copied() -> None:
    asked = QuestionSet(QUESTIONS)
    assert copy.deepcopy([asked])[0] is asked
    assert asked == QUESTIONS


def test_more_documents_than_the_corpus_has_are_refused() -> None:
    with pytest.raises(ValueError, match="top_k must be at most"):
        make_engine(top_k=100_000)
