"""The endpoint and its agent, against a real HTTP server on loopback that answers by script."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from agents.tokenization import SegmentTokenizer
from igsearch_env.endpoint.agent import OpenAIAgent, messages, open_action
from igsearch_env.endpoint.client import Endpoint
from igsearch_env.endpoint.errors import EndpointError, RequestRefusedError
from igsearch_env.episode import Document, Episode, Question
from igsearch_env.protocol.tags import PROTOCOLS
from igsearch_env.turn import SearchResult, TurnRules

PROTOCOL = PROTOCOLS["refine"]
RULES = TurnRules(PROTOCOL, 2)
POLICY = Path(__file__).resolve().parents[2] / "agents" / "world-tiny"


class Server:
    """Answers what ``answer`` returns for a body: a status with a body, or None to hang up."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answer: Callable[[int, dict[str, Any]], tuple[int, Any] | None]
        self.more: dict[str, str] = {}
        self.most = self.now = 0
        self.pause = 0.0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply({})

            def do_POST(self) -> None:
                self.reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def reply(self, body: dict[str, Any]) -> None:
                with outer._lock:
                    number = len(outer.asked)
                    outer.asked.append(body)
                    outer.paths.append(self.path)
                    outer.headers.append({k.lower(): v for k, v in self.headers.items()})
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                time.sleep(outer.pause)
                found = outer.answer(number, body)
                with outer._lock:
                    outer.now -= 1
                if found is None:
                    self.close_connection = True
                    return
                status, content = found
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in outer.more.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        class Http(ThreadingHTTPServer):
            def handle_error(self, *arguments: Any) -> None:
                """Say nothing of clients that no longer wait."""

        self._http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def says(self, text: str | None, reason: str = "stop", **more: Any) -> None:
        choice = {"text": text, "message": {"content": text}, "finish_reason": reason, **more}
        self.answer = lambda number, body: (200, {"choices": [choice]})

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


def endpoint(server: Server, **options: Any) -> Endpoint:
    return Endpoint(server.url, **{"first_pause": 0.001, "longest_pause": 0.01, **options})


def begun(name: str = "q") -> Episode:
    return RULES.begin(Question(name, "What is the capital of Peru?", ("Lima",)))


def searched(name: str = "q") -> Episode:
    episode = begun(name)
    found = SearchResult((Document("d", "Peru", "Lima."),))
    return RULES.read(episode, "<search> Peru </search>").extend(episode, RULES, found)


def agent(server: Server, **options: Any) -> OpenAIAgent:
    return OpenAIAgent(endpoint(server), "m", PROTOCOL, **options)


def test_what_completions_are_asked(server: Server) -> None:
    server.says("<answer> Lima ")
    (turn,) = agent(server, temperature=0.7, max_new_tokens=9).act([searched()])
    assert turn == "<answer> Lima </answer>"
    assert turn.token_ids is None
    assert server.paths == ["/v1/completions"]
    (body,) = server.asked
    assert body.pop("prompt") == "".join(s.text for s in searched().transcript)
    assert 0 <= body.pop("seed") < 2**31
    assert body == {
        "model": "m",
        "max_tokens": 9,
        "temperature": 0.7,
        "stop": ["</search>", "</answer>"],
    }


def test_what_chat_is_asked(server: Server) -> None:
    server.says("<search> Lima ")
    assert agent(server, api="chat").act([searched()]) == ["<search> Lima </search>"]
    assert server.paths == ["/v1/chat/completions"]
    (body,) = server.asked
    assert "prompt" not in body
    said = [(message["role"], message["content"]) for message in body["messages"]]
    assert [role for role, _ in said] == ["user", "assistant", "user"]
    assert said[1][1] == "<search> Peru </search>"
    assert "Lima." in said[2][1]
    assert messages(begun())[0]["content"] == begun().prompt.text
    again = TurnRules(PROTOCOL, 2, max_attempts=2)  # what opens an attempt joins the documents
    turn = again.read(searched(), "<answer> Lima </answer>")
    roles = [message["role"] for message in messages(turn.extend(searched(), again, None))]
    assert roles == ["user", "assistant", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("text", "reason", "more", "turn"),
    [
        ("<answer> Lima ", "stop", {}, "<answer> Lima </answer>"),
        (
            "<answer> Lima </answer>",
            "stop",
            {},
            "<answer> Lima </answer>",
        ),  # a server that keeps it
        ("<answer> Lima ", "length", {}, "<answer> Lima "),
        ("I do not know.", "stop", {}, "I do not know."),
        ("<search> a </search><answer> b ", "stop", {}, "<search> a </search><answer> b </answer>"),
        ("<answer> Lima ", "stop", {"stop_reason": "</answer>"}, "<answer> Lima </answer>"),
        ("<answer> Lima ", "stop", {"stop_reason": None}, "<answer> Lima "),  # it ended the text
        ("<answer> Lima ", "stop", {"stop_reason": 151643}, "<answer> Lima "),
        (None, "stop", {}, ""),
        ("<answer> Lima ", "stop", {"token_ids": [1, 2]}, "<answer> Lima </answer>"),
    ],
)
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_the_end_of_a_turn(
    server: Server, api: Any, text: str | None, reason: str, more: dict[str, Any], turn: str
) -> None:
    server.says(text, reason, **more)
    assert agent(server, api=api).act([begun()]) == [turn]


def test_the_action_that_is_open() -> None:
    assert open_action(PROTOCOL, "<search> a </search> <answer> b") == "</answer>"
    assert open_action(PROTOCOL, "<answer> a <search> b") == "</search>"
    assert open_action(PROTOCOL, "<answer> a </answer> so") == ""
    assert open_action(PROTOCOL, "") == ""


def test_with_a_tokenizer_tokens_go_both_ways(server: Server) -> None:
    tokenizer = SegmentTokenizer(AutoTokenizer.from_pretrained(POLICY))
    ids = tokenizer.tokenizer("<answer> Lima </answer>", add_special_tokens=False)["input_ids"]
    server.says("cut", token_ids=ids)
    told = agent(server, tokenizer=tokenizer)
    (turn,) = told.act([searched()])
    assert (turn.token_ids, turn) == (tuple(ids), tokenizer.decode(ids))
    (body,) = server.asked
    assert body["prompt"] == tokenizer.encode_context(searched().transcript)
    assert body["return_token_ids"] is True
    server.says("<answer> Lima ")  # a server that gives none
    (turn,) = told.act([searched()])
    assert (turn, turn.token_ids) == ("<answer> Lima </answer>", None)


def test_many_episodes_are_asked_at_once_and_answered_in_order(server: Server) -> None:
    server.pause = 0.03
    server.answer = lambda number, body: (200, {"choices": [{"text": body["prompt"][-60:]}]})
    episodes = [
        RULES.begin(Question(f"q{i}", f"What is {i}?", ("a",)), group_id="g") for i in range(24)
    ]
    turns = agent(server, concurrency=8).act(episodes)
    assert turns == [episode.prompt.text[-60:] for episode in episodes]
    assert 2 <= server.most <= 8
    assert len({body["seed"] for body in server.asked}) == 24


def test_the_seed_follows_from_the_question_and_the_turn(server: Server) -> None:
    server.says("x")
    for one, episode in ((0, begun()), (0, begun()), (1, begun()), (0, searched())):
        agent(server, seed=one).act([episode])
    seeds = [body["seed"] for body in server.asked]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 3


def failing(times: int, failure: tuple[int, Any] | None) -> Callable[..., tuple[int, Any] | None]:
    return lambda number, body: failure if number < times else (200, {"fine": number})


@pytest.mark.parametrize(
    "failure",
    [None, (500, b"oops"), (503, {}), (429, {}), (408, {}), (200, b"<html>"), (200, [1])],
)
def test_failures_that_pass_are_waited_for(server: Server, failure: tuple[int, Any] | None) -> None:
    server.answer = failing(3, failure)
    with endpoint(server, retries=3) as asked:
        assert asked.post("/x", {"a": 1}) == {"fine": 3}
    assert server.asked == [{"a": 1}] * 4


def test_it_gives_up_in_the_end(server: Server) -> None:
    server.answer = failing(9, (503, {}))
    with pytest.raises(EndpointError, match=r"/v1/x gave no answer in 3 tries \(status 503\)"):
        endpoint(server, retries=2).post("/x", {})
    assert len(server.asked) == 3
    server.close()
    with pytest.raises(EndpointError, match="no answer in 1 tries"):
        endpoint(server, retries=0).post("/x", {})


def test_a_slow_answer_is_asked_for_again(server: Server) -> None:
    waited = threading.Event()
    server.answer = lambda number, body: (waited.wait(), (200, {"fine": number}))[1]
    asked = endpoint(server, retries=1, timeout=0.2)
    with pytest.raises(EndpointError, match="no answer in 2 tries"):
        asked.post("/x", {})
    waited.set()
    assert "fine" in endpoint(server, retries=0).post("/x", {})


def test_a_refusal_is_not_repeated(server: Server) -> None:
    server.answer = failing(9, (404, {"error": {"message": "no such model"}}))
    with pytest.raises(RequestRefusedError, match=r"status 404: .*no such model"):
        agent(server).act([begun()])
    assert len(server.asked) == 1
    reason = "This model's maximum context length is 1024 tokens"
    server.answer = lambda number, body: (400, {"error": {"message": reason}})
    (turn,) = agent(server).act([begun()])
    assert (turn, turn.token_ids) == ("", None)
    tokenizer = SegmentTokenizer(AutoTokenizer.from_pretrained(POLICY))
    (turn,) = agent(server, tokenizer=tokenizer).act([begun()])
    assert (turn, turn.token_ids) == ("", ())  # known to be none, so the episode's count is known
    (turn,) = agent(server, tokenizer=tokenizer, api="chat").act([begun()])
    assert (turn, turn.token_ids) == ("", None)


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{"text": 3}]}])
def test_an_answer_of_another_api_is_refused(server: Server, answer: dict[str, Any]) -> None:
    server.answer = lambda number, body: (200, answer)
    with pytest.raises(ValueError, match="expected an answer of the OpenAI API"):
        agent(server).act([begun()])


@pytest.mark.parametrize(
    ("asked", "pause"),
    [("7", 7.0), ("300", 30.0), ("0", 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0)],
)
def test_a_pause_that_the_server_asks_for(
    server: Server, monkeypatch: pytest.MonkeyPatch, asked: str, pause: float
) -> None:
    server.more = {"retry-after": asked}
    server.answer = failing(1, (429, {}))
    waiting = endpoint(server, first_pause=1e-9, longest_pause=30.0)
    pauses: list[float] = []
    monkeypatch.setattr(waiting._closed, "wait", pauses.append)
    assert waiting.post("/x", {}) == {"fine": 1}
    assert pauses == [pytest.approx(pause, abs=1e-6)]


def test_the_key_and_the_models(server: Server) -> None:
    server.answer = lambda number, body: (200, {"data": [{"id": "a"}, {"id": "b"}]})
    with endpoint(server, api_key="secret") as asked:
        assert asked.models() == ["a", "b"]
    assert server.headers[0]["authorization"] == "Bearer secret"
    endpoint(server).models()
    assert "authorization" not in server.headers[1]


def test_closing_ends_what_waits(server: Server) -> None:
    server.answer = failing(99, (503, {}))
    asked = endpoint(server, first_pause=60.0, longest_pause=60.0)
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            asked.post("/x", {})
        except EndpointError as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not server.asked:
        time.sleep(0.001)
    asked.close()
    thread.join(timeout=120)
    assert not thread.is_alive()
    assert "was closed" in str(failures[0])
    with pytest.raises(EndpointError, match="was closed"):
        asked.post("/x", {})


def test_closing_ends_what_a_silent_server_never_answers() -> None:
    """A thread that reads from a socket goes on waiting when another one closes it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asked = Endpoint(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", timeout=600)
        failures: list[BaseException] = []

        def ask() -> None:
            try:
                asked.post("/x", {})
            except EndpointError as error:
                failures.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        accepted, _ = silent.accept()
        with accepted:
            assert accepted.recv(10)  # the request is there, and gets no answer
            asked.close()
            thread.join(timeout=60)
            assert not thread.is_alive()
    assert "was closed" in str(failures[0])


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="is not an address"):
        Endpoint("http://[::1/v1")
    with pytest.raises(ValueError, match="expected an address like"):
        Endpoint("localhost:8000")
    with pytest.raises(ValueError, match="retries >= 0"):
        Endpoint("http://localhost", retries=-1)
    asked = Endpoint("http://localhost")
    with pytest.raises(ValueError, match="api must be completions or chat"):
        OpenAIAgent(asked, "m", PROTOCOL, api="legacy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="concurrency >= 1"):
        OpenAIAgent(asked, "m", PROTOCOL, concurrency=0)
