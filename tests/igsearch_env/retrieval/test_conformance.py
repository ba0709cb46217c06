from __future__ import annotations

import socket
from typing import Any

import pytest

from igsearch_env.episode import Document
from igsearch_env.retrieval.conformance import Finding, check_server, spoken_dialects
from igsearch_env.retrieval.wire import make_answer
from tests.igsearch_env.retrieval.loopback import trickle

FOUND = {
    "Peru": [Document("1", "Lima", "Capital.", 2.0), Document("2", "Cusco", "Old.", 1.0)],
    "other": [Document("3", "Rome", "Italy.", 3.0), Document("4", "Oslo", "Norway.", 0.5)],
}


def search(query: str, k: int | None) -> list[Document]:
    return FOUND.get(query, FOUND["other"])[: k or 3]


def search_r1(body: dict[str, Any]) -> tuple[int, Any]:
    """As Search-R1's server answers: many queries, and 422 for anything else."""
    if "queries" not in body:
        return 422, {"detail": "field required"}
    found = [search(query, body.get("topk")) for query in body["queries"]]
    return 200, make_answer("search-r1", found, body.get("return_scores", False))


def rllm(body: dict[str, Any]) -> tuple[int, Any]:
    if "query" not in body:
        return 400, {"error": "no query"}
    return 200, make_answer("rllm", [search(body["query"], body.get("top_k", 2))])


def verdicts(findings: list[Finding], subject: str) -> list[tuple[str, str]]:
    return [(found.verdict, found.text) for found in findings if found.subject == subject]


def test_a_search_r1_server_is_known_as_one(serve_answers: Any) -> None:
    findings = check_server(serve_answers(search_r1).url, "Peru")
    assert spoken_dialects(findings) == ["search-r1"]
    assert verdicts(findings, "search-r1") == [("good", "2 documents for 'Peru'")]
    ((verdict, text),) = verdicts(findings, "rllm")
    assert verdict == "not spoken"
    assert "answered 422" in text
    assert verdicts(findings, "/health") == [("note", "answers 404; rLLM asks for it")]


def test_an_rllm_server_is_known_as_one(serve_answers: Any) -> None:
    findings = check_server(serve_answers(rllm).url, "Peru")
    assert spoken_dialects(findings) == ["rllm"]
    ((verdict, text),) = verdicts(findings, "skyrl")
    assert verdict == "not spoken"
    assert "list 'result'" in text


def change(**fields: Any) -> Any:
    """A change of each document of an answer."""

    def apply(body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        for documents in answer["result"]:
            for item in documents:
                inner = item.get("document", item)
                inner.update(fields)
                for name in [name for name, value in fields.items() if value is None]:
                    del inner[name]
        return answer

    return apply


def backwards(body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    return {"result": answer["result"][::-1]}


def worst_first(body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    return {"result": [documents[::-1] for documents in answer["result"]]}


def stubborn(body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """Gives three documents, whatever is asked for."""
    more = [*FOUND["Peru"], Document("9", "Ica", "Desert.", 0.5)]
    return make_answer("search-r1", [more for _ in body["queries"]], body["return_scores"])


def strings(body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    lists = answer["result"]
    texts = [[item.get("document", item)["contents"] for item in items] for items in lists]
    return {"result": [[{"document": text} for text in items] for items in texts]}


def nothing(body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    return {"result": [[] for _ in answer["result"]]}


def no_empty_list(body: dict[str, Any], answer: dict[str, Any]) -> Any:
    return answer if body["queries"] else b"oops"


def needs_a_number(body: dict[str, Any], answer: dict[str, Any]) -> Any:
    return b"oops" if body["topk"] is None else answer


def needs_scores(body: dict[str, Any], answer: dict[str, Any]) -> Any:
    return answer if body["return_scores"] else b"oops"


@pytest.mark.parametrize(
    ("fault", "verdict", "message"),
    [
        (backwards, "wrong", "other documents beside another query"),
        (worst_first, "wrong", "not ordered by score: [1.0, 2.0]"),
        (stubborn, "wrong", "3 documents came where 2 were asked for"),
        (change(id="1"), "wrong", "have the same id"),
        (change(id=None), "note", "no id"),
        (change(title="", contents="text"), "note", "no title"),
        (strings, "note", "documents are strings"),
        (strings, "note", "documents have no score"),
        (nothing, "note", "try another --query"),
        (no_empty_list, "note", "0 queries in one request: answered no JSON"),
        (needs_a_number, "note", "with topk null: answered no JSON"),
        (needs_scores, "note", "with return_scores false: answered no JSON"),
    ],
)
def test_faults_are_found(serve_answers: Any, fault: Any, verdict: str, message: str) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        status, right = search_r1(body)
        return status, right if status != 200 else fault(body, right)

    findings = check_server(serve_answers(answer).url, "Peru")
    found = verdicts(findings, "search-r1")
    assert [text for kind, text in found if kind == verdict and message in text], found
    assert spoken_dialects(findings) == ([] if verdict == "wrong" else ["search-r1"])


def test_documents_without_text_are_not_a_dialect(serve_answers: Any) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"result": [[{"document": {"id": "1", "passage": "Lima"}}]]}

    findings = check_server(serve_answers(answer).url, "Peru")
    assert spoken_dialects(findings) == []
    assert "expected a document with 'contents'" in verdicts(findings, "search-r1")[0][1]


def test_a_server_that_is_not_there_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ValueError, match=f"cannot reach http://127.0.0.1:{port}/retrieve"):
        check_server(f"http://127.0.0.1:{port}", "Peru")


def test_a_server_that_trickles_is_not_waited_for(misbehave: Any) -> None:
    with pytest.raises(ValueError, match=r"did not answer within 0\.2 s"):
        check_server(misbehave(trickle).url, "Peru", timeout=0.2)
    ready = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    findings = check_server(misbehave(lambda c: c.sendall(ready), trickle).url, "Peru", 1.0)
    assert [finding.verdict for finding in findings] == ["note"] * 2 + ["not spoken"] * 3
    assert all("did not answer within 1.0 s" in finding.text for finding in findings)


def test_a_server_that_loads_its_index_is_said_or_waited_for(
    serve_answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve_answers(search_r1)
    server.status_of_get = 503
    with pytest.raises(ValueError, match="is not ready: it still loads its index"):
        check_server(server.url, "Peru")
    assert not server.bodies

    def load(seconds: float) -> None:
        server.status_of_get = 200

    monkeypatch.setattr("igsearch_env.retrieval.conformance.time.sleep", load)
    findings = check_server(server.url, "Peru", wait=60)
    assert spoken_dialects(findings) == ["search-r1"]
    assert verdicts(findings, "/ready") == [("good", "answers 200; whether the index is loaded")]
