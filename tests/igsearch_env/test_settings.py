"""The arguments of the environments: built-ins by name, and what is refused at once."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from igsearch_env import (
    PROTOCOLS,
    BM25Retriever,
    Document,
    EvidencePool,
    InformationGain,
    SearchQAEnv,
    SearchQAVectorEnv,
    Shaping,
    UnigramScorer,
)
from igsearch_env.data.world import default_world
from igsearch_env.retrieval.open import open_retriever
from igsearch_env.settings import EnvironmentSettings, QuestionSet, make_engine
from tests.igsearch_env.fakes import DOCUMENTS, QUESTIONS, FakeRetriever


class TestBuiltIns:
    def test_defaults(self) -> None:
        engine = make_engine()
        assert tuple(engine.questions) == default_world().train_questions
        assert engine.retriever is open_retriever("world")
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
        found = make_engine(str(file), "world").questions
        assert [question.text for question in found] == ["Who?", "What?"]

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
        ({"top_k": 0}, ValueError, "top_k must be a whole number of at least 1, got 0"),
        (
            {"num_counterfactuals": -1},
            ValueError,
            "num_counterfactuals must be a whole number of at least 0, got -1",
        ),
        (
            {"information_gain_weight": -0.5},
            ValueError,
            "information_gain_weight must be a finite number of at least 0, got -0.5",
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
        (
            {"max_searches": 0},
            ValueError,
            "max_searches must be a whole number of at least 1, got 0",
        ),
        ({"outcome": "rouge"}, ValueError, "outcome must be one of em, f1, .* got 'rouge'"),
        ({"protocol": "react"}, ValueError, "unknown protocol 'react'; known are browse, refine,"),
        ({"counterfactual": "queries"}, ValueError, "counterfactual must be .* got 'queries'"),
        ({"retriever": "http://"}, ValueError, "expected http://HOST:PORT/retrieve"),
        ({"retriever": "faiss"}, ValueError, "unknown retriever 'faiss': expected bm25, .*world"),
        ({"scorer": "gpt"}, ValueError, "unknown scorer 'gpt': expected 'unigram', None, or an"),
        ({"scorer": print}, ValueError, "unknown scorer <built-in .*>: expected 'unigram'"),
        ({"retriever": "a" * 5_000}, ValueError, "the name of a retriever, got 5,000 characters"),
        ({"retriever": "a\0b"}, ValueError, "the name of a retriever, got 3 characters"),
        ({"questions": "trivia"}, ValueError, "'trivia', but 'bm25' searches .* embedded world"),
        (
            {"questions": "trivia", "retriever": "world"},
            ValueError,
            "unknown question set 'trivia'",
        ),
        (
            {"floor": 0.5},
            ValueError,
            "floor must be 'uniform', 'none' or a finite number below 0, got 0.5",
        ),
        ({"aliases": "mean"}, ValueError, "aliases must be one of best_real, max, logmeanexp"),
        ({"top_p": 1}, TypeError, "top_p"),
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


@pytest.mark.parametrize("number", [1.5, "3", True, None])
def test_a_count_is_a_whole_number(number: Any) -> None:
    with pytest.raises(ValueError, match="top_k must be a whole number"):
        EnvironmentSettings(top_k=number)


def test_numpy_numbers_are_numbers() -> None:
    settings = EnvironmentSettings(top_k=np.int64(2), information_gain_weight=np.float32(0.5))
    assert (settings.top_k, settings.information_gain_weight) == (2, 0.5)


def test_a_record_and_keywords_make_the_same_engine() -> None:
    """A keyword changes the record; what it does not name stays as the record has it."""
    record = EnvironmentSettings(
        protocol="search-r1",
        max_searches=2,
        max_attempts=3,
        top_k=1,
        num_counterfactuals=2,
        counterfactual="documents",
        added_only=False,
        floor="none",
        aliases="logmeanexp",
        outcome="f1",
        information_gain_weight=0.25,
        shared_counterfactuals=True,
    )
    given = {name: value for name, value in asdict(record).items() if value != ""}
    engines = [make_engine(settings=record), make_engine(**given)]
    for engine in engines:
        gain = InformationGain(PROTOCOLS["search-r1"], "documents", None, aliases="logmeanexp")
        assert engine.information_gain == replace(gain, added_only=False)
        assert (engine.rules.max_searches, engine.rules.max_attempts, engine.top_k) == (2, 3, 1)
        assert (engine.num_counterfactuals, engine.outcome) == (2, "f1")
        assert (engine.information_gain_weight, engine.shared_counterfactuals) == (0.25, True)
    changed = make_engine(settings=record, top_k=2)
    assert (changed.top_k, changed.rules.max_searches) == (2, 2)


def test_settings_are_json() -> None:
    record = EnvironmentSettings("world-test", floor=-3.0)
    assert EnvironmentSettings(**json.loads(json.dumps(asdict(record)))) == record


class TestWorlds:
    """Questions about one world and the documents of another never meet, however they are named."""

    @pytest.mark.parametrize("build", [make_engine, SearchQAEnv, partial(SearchQAVectorEnv, 2)])
    @pytest.mark.parametrize(
        ("questions", "retriever"),
        [
            ("world-train:40", "world"),
            ("world-test", "world:40"),
            ("world-test:40:1", "world:40"),
            ("world-train:120:3", "world:120:0"),
        ],
    )
    def test_of_two_worlds_are_refused(self, build: Any, questions: str, retriever: str) -> None:
        with pytest.raises(ValueError, match="about another world than the documents of"):
            build(questions=questions, retriever=retriever)

    def test_the_default_searches_the_questions_own_world(self) -> None:
        env = gymnasium.make("igsearch/SearchQA-v0", questions="world-train:40:2")
        engine = env.unwrapped.engine  # type: ignore[attr-defined]
        documents = {document.id for document in engine.retriever.documents}
        assert all({*question.gold_ids} <= documents for question in engine.questions)
        assert documents == {document.id for document in default_world(40, 2).documents}

    def test_two_names_of_one_world_go_together(self) -> None:
        assert len(make_engine("world-test", "world:120:0").questions) > 1

    def test_an_object_says_nothing_of_its_world(self) -> None:
        retriever = open_retriever("world:40")
        assert make_engine("world-train:41", retriever).retriever is retriever
        assert make_engine(QUESTIONS, "world:40").retriever is retriever

    def test_questions_from_a_file_need_documents_of_their_own(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"'mine\.jsonl', but 'bm25' searches"):
            SearchQAEnv("mine.jsonl")


def test_outcome_zero_pays_nothing_and_scores_all_the_same() -> None:
    engine = make_engine(QUESTIONS, FakeRetriever(), outcome="zero")
    begun = engine.rules.begin(QUESTIONS[0])
    right = f"<answer>{QUESTIONS[0].golden_answers[0]}</answer>"
    ((episode, _),) = engine.step([begun], [right])
    assert (episode.outcome, episode.em, episode.steps[-1].reward) == (0.0, 1.0, 0.0)


def test_paths_are_files_and_folders_whatever_they_look_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    documents = [Document(str(n), "", f"word{n} Lima") for n in range(3)]
    rows = [{"question": f"word{n} ?", "answer": f"a{n}"} for n in range(2)]
    Path("http:.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("world", "http:", "a:b", "deep/er"):
        BM25Retriever.build(documents).save(name)
        env = SearchQAEnv(Path("http:.jsonl"), Path(name))
        env.reset(seed=0)
        assert len(env.step("<search> Lima </search>")[4]["documents"]) == 3
    with pytest.raises(TypeError, match="retriever of the settings must be text"):
        EnvironmentSettings(retriever=Path("world"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": 3}, "unknown protocol 3"),
        ({"outcome": 3}, "outcome must be the name of a component"),
        ({"information_gain_weight": math.inf}, "finite"),
        ({"floor": -math.inf}, "finite number below 0, got -inf"),
        ({"questions": QUESTIONS, "retriever": "bm25:x"}, "'bm25' stands alone"),
        ({"questions": QUESTIONS, "retriever": "http://host:port"}, "expected http://HOST:PORT"),
    ],
)
def test_values_of_another_kind_are_not_passed_over(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchQAEnv(**changes)
