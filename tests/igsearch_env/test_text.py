"""Text that others wrote: half surrogates, NUL, line separators and other control characters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igsearch_env import Completion, Document, Question, SearchQAEnv
from igsearch_env.data.corpus import load_corpus
from igsearch_env.data.questions import load_questions
from igsearch_env.files import write_json
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.retrieval.wire import read_answer
from igsearch_env.text import DEEPEST, clean_text, read_json
from tests.igsearch_env.fakes import QUESTIONS

STRANGE = "a\x00b\ud800c\u2028d\u0085e\x1bf\u2029g\x0ch"
CLEAN = "a b\ufffdc\nd\ne f\ng\nh"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (STRANGE, CLEAN),
        ("\ud83d\ude00", "😀"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("kept:\t\r\n é 北 \u200f \ufeff", "kept:\t\r\n é 北 \u200f \ufeff"),
    ],
)
def test_what_becomes_of_strange_characters(text: str, clean: str) -> None:
    assert clean_text(text) == clean


@given(st.text(st.characters()))
def test_clean_text_can_be_written_and_stays(text: str) -> None:
    clean = clean_text(text)
    assert clean_text(clean) is clean
    assert clean.encode("utf-8").decode("utf-8") == clean
    assert clean.splitlines() == clean.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split(
        "\n"
    ) or not clean.strip("\r\n")


def test_documents_and_questions_are_clean_wherever_they_come_from(tmp_path: Path) -> None:
    assert Document(STRANGE, STRANGE, STRANGE) == Document(CLEAN, CLEAN, CLEAN)
    question = Question(STRANGE, STRANGE, (STRANGE,), STRANGE, None, (STRANGE,), (STRANGE,))
    assert question == Question(CLEAN, CLEAN, (CLEAN,), CLEAN, None, (CLEAN,), (CLEAN,))
    row = {"id": STRANGE, "title": "t", "text": STRANGE}
    asked = {"question": STRANGE, "answer": STRANGE, "dataset": STRANGE}
    for ascii_only in (True, False):
        for value, name in ((row, "corpus"), (asked, "set")):
            line = json.dumps(value, ensure_ascii=ascii_only) + "\n"
            data = line.encode("utf-8", "backslashreplace")  # U+2028 as it is
            (tmp_path / f"{name}.jsonl").write_bytes(data)
        assert load_corpus(tmp_path / "corpus.jsonl") == [Document(CLEAN, "t", CLEAN)]
        (found,) = load_questions(tmp_path / "set.jsonl")
        assert (found.text, found.golden_answers, found.dataset) == (CLEAN, (CLEAN,), CLEAN)
    answer = {"result": [[{"document": {"id": STRANGE, "contents": f'"t"\n{STRANGE}'}}]]}
    assert read_answer("search-r1", answer, 1) == [[Document(CLEAN, "t", CLEAN)]]


class Recording(BM25Retriever):
    """A retriever that writes down what it was asked."""

    asked: list[str]

    def search(self, queries, k):  # type: ignore[no-untyped-def]
        self.asked = list(queries)
        return super().search(queries, k)


def test_queries_and_turns_are_clean(tmp_path: Path) -> None:
    retriever = Recording.build([Document("1", "Peru", STRANGE)])
    env = SearchQAEnv(QUESTIONS, retriever, top_k=1, num_counterfactuals=0)
    env.reset(seed=0)
    observation, *_ = env.step(f"<search>Peru {STRANGE}</search>")
    assert retriever.asked == [f"Peru {CLEAN}"]
    assert CLEAN in observation
    assert env.unwrapped.episode.steps[0].turn.text == f"<search>Peru {CLEAN}</search>"
    env.step(f"<answer>{STRANGE}</answer>")
    assert env.unwrapped.episode.answer == CLEAN


def test_results_are_written_whatever_they_hold(tmp_path: Path) -> None:
    data = {"questions": "caf\udce9.jsonl", "text": STRANGE}
    write_json(tmp_path / "results.json", data)
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == data


def test_a_cleaned_turn_keeps_why_it_stopped() -> None:
    env = SearchQAEnv(QUESTIONS, BM25Retriever.build([Document("1", "", "x")]), top_k=1)
    env.reset(seed=0)
    turn = env.unwrapped.engine.rules.read(
        env.unwrapped.episode, Completion(STRANGE, stop_reason="length")
    )
    assert (turn.completion, turn.completion.stop_reason) == (CLEAN, "length")


def test_names_of_groups_are_clean() -> None:
    env = SearchQAEnv(shared_counterfactuals=True)
    env.reset(seed=1, options={"group_id": STRANGE})
    assert env.step("<search> Lima </search>")[4]["action"] == "search"
    assert env.episode.group_id == CLEAN


def nested(depth: int, opening: str, closing: str) -> str:
    return opening * depth + "1" + closing * depth


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"document": ', "}")])
def test_json_of_others_is_read_up_to_a_depth(opening: str, closing: str) -> None:
    text = nested(DEEPEST, opening, closing)
    assert json.dumps(read_json(text)) == text
    for depth in (DEEPEST + 1, 980, 990, 995, 100_000):  # Python itself gives up at about 1,000
        with pytest.raises(ValueError, match=f"nested deeper than {DEEPEST} levels"):
            read_json(nested(depth, opening, closing))
    with pytest.raises(ValueError, match="Expecting"):
        read_json(opening)


@pytest.mark.parametrize("score", [10**400, -(10**400), "1", None, [1], float("nan")])
def test_a_score_that_is_no_number_is_left_out(score: object) -> None:
    answer = {"result": [[{"contents": "Lima", "score": score}]]}
    assert read_answer("search-r1", answer, 1)[0][0].score is None
