from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igsearch_env.episode import Document
from igsearch_env.retrieval.wire import (
    DIALECTS,
    Dialect,
    WireError,
    make_answer,
    make_request,
    read_answer,
)
from igsearch_env.text import clean_text

LIMA = Document("1", "Lima", "Lima is the capital of Peru.\nIt lies on the coast.", 2.5)
CONTENTS = '"Lima"\nLima is the capital of Peru.\nIt lies on the coast.'

documents = st.builds(
    Document,
    id=st.text(min_size=1),
    title=st.text(),
    text=st.text(min_size=1).filter(lambda text: clean_text(text).strip()),
    score=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)


@given(st.sampled_from(DIALECTS), st.data())
def test_what_a_server_writes_is_read_back_equal(dialect: Dialect, data: st.DataObject) -> None:
    lists = st.lists(st.lists(documents, max_size=4), max_size=4)
    found = data.draw(lists if dialect == "search-r1" else lists.filter(lambda f: len(f) == 1))
    answer = json.loads(json.dumps(make_answer(dialect, found)))
    assert read_answer(dialect, answer, len(found)) == found


def test_requests_are_those_of_the_systems() -> None:
    assert make_request("search-r1", ["a", "b"], 3) == {
        "queries": ["a", "b"],
        "topk": 3,
        "return_scores": True,
    }
    assert make_request("skyrl", ["a"], 3) == {"query": "a", "topk": 3, "return_scores": True}
    assert make_request("rllm", ["a"], 3) == {"query": "a", "top_k": 3}


def test_answers_are_those_of_the_systems() -> None:
    fields = {"id": "1", "title": "Lima", "text": LIMA.text}
    scored = {"document": {**fields, "contents": CONTENTS}, "score": 2.5}
    assert make_answer("search-r1", [[LIMA], []]) == {"result": [[scored], []]}
    assert make_answer("skyrl", [[LIMA]]) == {"result": [[scored]]}
    bare = {"result": [[{**fields, "contents": CONTENTS}]]}
    assert make_answer("search-r1", [[LIMA]], return_scores=False) == bare
    assert make_answer("rllm", [[LIMA]]) == {"results": [{**fields, "content": CONTENTS, **scored}]}


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"document": {"id": 7, "contents": CONTENTS}, "score": 1}, ("7", "Lima", 1.0)),
        ({"document": {"id": "1", "contents": CONTENTS}}, ("1", "Lima", None)),
        ({"id": "1", "contents": CONTENTS}, ("1", "Lima", None)),
        ({"id": "1", "content": CONTENTS, "score": None}, ("1", "Lima", None)),
        ({"id": "1", "title": "Lima", "text": LIMA.text}, ("1", "Lima", None)),
        ({"document": {"id": "1", "contents": "Lima\n" + LIMA.text}}, ("1", "Lima", None)),
        ({"document": {"id": "1", "title": "Lima", "contents": LIMA.text}}, ("1", "Lima", None)),
        (
            {"document": {"id": "1", "contents": CONTENTS}, "score": float("nan")},
            ("1", "Lima", None),
        ),
        ({"document": {"id": "1", "contents": CONTENTS}, "score": "high"}, ("1", "Lima", None)),
    ],
)
def test_documents_are_read_leniently(item: object, expected: tuple[str, str, float]) -> None:
    ((doc,),) = read_answer("search-r1", {"result": [[item]]}, 1)
    assert (doc.id, doc.title, doc.score) == expected
    assert doc.text == LIMA.text


def test_a_document_without_an_id_gets_one_from_its_words() -> None:
    other = CONTENTS.replace("Peru", "Chile")
    answer = {"result": [[{"document": CONTENTS}, {"contents": CONTENTS}, other]]}
    (found,) = read_answer("search-r1", answer, 1)
    assert [doc.text for doc in found] == [LIMA.text, LIMA.text, other.partition("\n")[2]]
    assert found[0].id == found[1].id != found[2].id
    assert found[0].id


def test_text_alone_has_no_title() -> None:
    ((doc,),) = read_answer("skyrl", {"result": [[{"id": "1", "text": LIMA.text}]]}, 1)
    assert (doc.title, doc.text) == ("", LIMA.text)


@pytest.mark.parametrize(
    ("dialect", "answer", "message"),
    [
        ("search-r1", {"results": [{"id": "1", "content": CONTENTS}]}, "list 'result'.*results"),
        ("rllm", {"result": [[{"document": {"contents": CONTENTS}}]]}, "list 'results'.*result"),
        ("search-r1", [[]], "JSON object with a list 'result'"),
        ("search-r1", {"result": None}, "JSON object with a list 'result'"),
        ("search-r1", {"detail": "no"}, "keys \\['detail'\\]"),
        ("search-r1", {"result": []}, "one list per query, 1, got 0"),
        ("search-r1", {"result": [[], []]}, "one list per query, 1, got 2"),
        ("search-r1", {"result": [{"contents": CONTENTS}]}, "list of documents per query"),
        ("search-r1", {"result": [[7]]}, "object or a string, got 7"),
        ("search-r1", {"result": [[{"document": None}]]}, "object or a string, got None"),
        ("search-r1", {"result": [[{"document": {"id": "1", "body": "x"}}]]}, "'id'"),
        ("search-r1", {"result": [[{"document": {"id": "1", "contents": None}}]]}, "'contents'"),
        ("search-r1", {"result": [[{"id": "1", "contents": " "}] * 2]}, "all 2 .* blank"),
        ("search-r1", "x" * 99, "xxx\\.\\.\\."),
    ],
)
def test_another_shape_is_an_error_and_never_an_empty_document(
    dialect: Dialect, answer: Any, message: str
) -> None:
    with pytest.raises(WireError, match=message):
        read_answer(dialect, answer, 1)


def test_nothing_but_blank_passages_for_one_query_of_several_is_an_error() -> None:
    answer = {"result": [[{"contents": CONTENTS}], [], [{"contents": ""}, {"contents": '""\n '}]]}
    with pytest.raises(WireError, match="all 2 documents for a query are blank"):
        read_answer("search-r1", answer, 3)


def test_one_blank_passage_among_others_is_kept() -> None:
    answer = {"result": [[{"id": "0", "contents": ""}, {"id": "1", "contents": CONTENTS}]]}
    (found,) = read_answer("search-r1", answer, 1)
    assert [doc.text for doc in found] == ["", LIMA.text]
