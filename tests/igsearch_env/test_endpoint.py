"""The endpoint and its agent, against a real HTTP server on loopback that answers by script."""

from __future__ import annotations

import gc
import gzip
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from agents.tokenization import SegmentTokenizer
from igsearch_env.endpoint import client
from igsearch_env.endpoint.agent import OpenAIAgent, Refusals, messages, open_action
from igsearch_env.endpoint.client import Endpoint
from igsearch_env.endpoint.errors import (
    ContextTooLongError,
    EndpointError,
    RequestRefusedError,
    read_error,
)
from igsearch_env.episode import Document, Episode, Question
from igsearch_env.evaluation.metrics import episode_metrics
from igsearch_env.protocol.tags import PROTOCOLS, Search
from igsearch_env.protocol.tool_calls import ToolCallProtocol
from igsearch_env.settings import make_engine
from igsearch_env.testing import check_agent
from igsearch_env.turn import SearchResult, TurnRules
from tests.igsearch_env.retrieval.loopback import RawServer
from tests.scripted_server import ScriptedServer

PROTOCOL = PROTOCOLS["refine"]
ENGINE = make_engine(protocol=PROTOCOL, num_counterfactuals=0)
RULES = TurnRules(PROTOCOL, 2)
POLICY = Path(__file__).resolve().parents[2] / "agents" / "world-tiny"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    one = ScriptedServer()
    yield one
    one.close()


def endpoint(server: ScriptedServer, **options: Any) -> Endpoint:
    return Endpoint(server.url, **{"first_pause": 0.001, "longest_pause": 0.01, **options})


def begun(name: str = "q") -> Episode:
    return RULES.begin(Question(name, "What is the capital of Peru?", ("Lima",)))


def searched(name: str = "q") -> Episode:
    episode = begun(name)
    found = SearchResult((Document("d", "Peru", "Lima."),))
    return RULES.read(episode, "<search> Peru </search>").extend(episode, RULES, found)


def agent(server: ScriptedServer, **options: Any) -> OpenAIAgent:
    return OpenAIAgent(endpoint(server), "m", PROTOCOL, **options)


def test_it_keeps_the_promises_of_an_agent(server: ScriptedServer) -> None:
    server.says("<answer> Lima </answer>")
    check_agent(agent(server, concurrency=3))


def test_what_completions_are_asked(server: ScriptedServer) -> None:
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


def test_what_chat_is_asked(server: ScriptedServer) -> None:
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
    server: ScriptedServer, api: Any, text: str | None, reason: str, more: dict[str, Any], turn: str
) -> None:
    server.says(text, reason, **more)
    assert agent(server, api=api).act([begun()]) == [turn]


def test_the_action_that_is_open() -> None:
    assert open_action(PROTOCOL, "<search> a </search> <answer> b") == "</answer>"
    assert open_action(PROTOCOL, "<answer> a <search> b") == "</search>"
    assert open_action(PROTOCOL, "<answer> a </answer> so") == ""
    assert open_action(PROTOCOL, "") == ""


def test_with_a_tokenizer_tokens_go_both_ways(server: ScriptedServer) -> None:
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


@pytest.mark.parametrize("ids", ["abc", [1.5], [None], [-1], [2**31], [True], {"a": 1}])
def test_token_ids_that_are_none_fail_their_question(server: ScriptedServer, ids: Any) -> None:
    tokenizer = SegmentTokenizer(AutoTokenizer.from_pretrained(POLICY))
    server.says("<answer> Lima ", token_ids=ids)
    refusals = Refusals(most=1)
    assert agent(server, tokenizer=tokenizer, refusals=refusals).act([begun()]) == [""]
    assert "token_ids must be a list of token ids" in refusals.reasons["q", "q"]


def test_many_episodes_are_asked_at_once_and_answered_in_order(server: ScriptedServer) -> None:
    server.pause = 0.03
    server.answer = lambda number, body: (200, {"choices": [{"text": body["prompt"][-60:]}]})
    episodes = [
        RULES.begin(Question(f"q{i}", f"What is {i}?", ("a",)), group_id="g") for i in range(24)
    ]
    turns = agent(server, concurrency=8).act(episodes)
    assert turns == [episode.prompt.text[-60:] for episode in episodes]
    assert 2 <= server.most <= 8
    assert len({body["seed"] for body in server.asked}) == 24


def test_the_seed_follows_from_the_question_and_the_turn(server: ScriptedServer) -> None:
    server.says("x")
    for one, episode in ((0, begun()), (0, begun()), (1, begun()), (0, searched())):
        agent(server, seed=one).act([episode])
    seeds = [body["seed"] for body in server.asked]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 3


def test_one_that_nobody_closes_closes_its_connections(server: ScriptedServer) -> None:
    server.says("x")
    asked = endpoint(server)
    asked.post("/x", {})
    client = asked._client
    del asked
    gc.collect()
    assert client.is_closed


def failing(times: int, failure: tuple[int, Any] | None) -> Callable[..., tuple[int, Any] | None]:
    return lambda number, body: failure if number < times else (200, {"fine": number})


@pytest.mark.parametrize(
    "failure",
    [None, (500, b"oops"), (503, {}), (429, {}), (408, {}), (200, b"<html>"), (200, [1])],
)
def test_failures_that_pass_are_waited_for(
    server: ScriptedServer, failure: tuple[int, Any] | None
) -> None:
    server.answer = failing(3, failure)
    with endpoint(server, retries=3) as asked:
        assert asked.post("/x", {"a": 1}) == {"fine": 3}
    assert server.asked == [{"a": 1}] * 4


def test_it_gives_up_in_the_end(server: ScriptedServer) -> None:
    server.answer = failing(9, (503, error("the model is loading")))
    said = r"/v1/x gave no answer in 3 tries \(status 503: the model is loading\)"
    with pytest.raises(EndpointError, match=said):
        endpoint(server, retries=2).post("/x", {})
    assert len(server.asked) == 3
    server.close()
    with pytest.raises(EndpointError, match="no answer in 1 tries"):
        endpoint(server, retries=0).post("/x", {})


def test_a_slow_answer_is_asked_for_again(server: ScriptedServer) -> None:
    waited = threading.Event()
    server.answer = lambda number, body: (waited.wait(), (200, {"fine": number}))[1]
    asked = endpoint(server, retries=1, timeout=0.2)
    with pytest.raises(EndpointError, match="no answer in 2 tries"):
        asked.post("/x", {})
    waited.set()
    assert "fine" in endpoint(server, retries=0).post("/x", {})


def test_a_refusal_is_not_repeated(server: ScriptedServer) -> None:
    server.answer = failing(9, (400, {"error": {"message": "no such field"}}))
    with pytest.raises(RequestRefusedError, match=r"status 400: .*no such field"):
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


def error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


TOO_LONG = {
    "SGLang's input": (
        400,
        error("Input length (5000 tokens) exceeds the maximum allowed length (4096 tokens)."),
    ),
    "DashScope": (400, error("Range of input length should be [1, 30720]")),
    "Moonshot": (400, error("Invalid request: Your request exceeded model token limit: 8192")),
    "Groq": (400, error("Please reduce the length of the messages or completion.")),
    "OpenAI": (
        400,
        error("Reduce it.", type="x", param="messages", code="context_length_exceeded"),
    ),
    "vLLM": (
        400,
        error(
            "This model's maximum context length is 16 tokens. However, you requested 19", code=400
        ),
    ),
    "vLLM's engine": (
        500,
        {"detail": "The decoder prompt (length 21) is longer than the maximum model length of 16"},
    ),
    "vLLM's limit of a turn": (
        400,
        error("'max_tokens' is too large: 9. This model's maximum context length is 16 tokens"),
    ),
    "SGLang": (
        400,
        {
            "object": "error",
            "message": "The input (6 tokens) is longer than the model's context length (4 tokens).",
            "type": "BadRequestError",
            "code": 400,
        },
    ),
    "TGI": (
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 32. "
            "Given: 30 `inputs` tokens and 9 `max_new_tokens`",
            "error_type": "validation",
        },
    ),
    "TGI's inputs": (
        422,
        {
            "error": "Input validation error: `inputs` must have less than 10 tokens. Given: 18",
            "error_type": "validation",
        },
    ),
    "llama.cpp": (400, error("too much", type="exceed_context_size_error", code=400, n_ctx=8)),
    "llama.cpp's 500": (
        500,
        error("the request exceeds the available context size. try increasing it", code=500),
    ),
    "llama.cpp within a 200": (200, error("x", type="exceed_context_size_error", code=400)),
    "llama-cpp-python": (500, error("Requested tokens (28) exceed context window of 20")),
    "Ollama": (400, error("the input length exceeds the context length", type="api_error")),
    "Gemini": (
        400,
        [
            error(
                "The input token count (120) exceeds the maximum number of tokens allowed (104).",
                code=400,
                status="INVALID_ARGUMENT",
            )
        ],
    ),
    "Anthropic": (400, error("prompt is too long: 21 tokens > 20 maximum")),
    "a proxy": (413, b"<html>Request Entity Too Large</html>"),
}


@pytest.mark.parametrize("name", TOO_LONG)
def test_a_transcript_that_is_too_long_ends_a_turn_and_nothing_else(
    server: ScriptedServer, name: str
) -> None:
    server.answer = lambda number, body: TOO_LONG[name]
    with pytest.raises(ContextTooLongError):
        endpoint(server).post("/x", {})
    assert len(server.asked) == 1
    assert agent(server).act([begun()]) == [""]


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (400, error("Unknown field: foo")),
        (400, error("The tokens per minute are limited")),
        (422, {"detail": [{"loc": ["body", "stop"], "msg": "Field required"}]}),
        (400, error("blocked by the content filter", code="content_filter")),
        (200, error("The model produced no output", code=400)),
        (200, error("no such thing", type="invalid_request_error")),
        (500, error("list index out of range")),  # however often: it stumbles over this request
        (200, {"choices": [{"error": {"message": "upstream"}}]}),
        (200, {}),
        (200, {"choices": []}),
        (200, {"choices": [{"text": 3}]}),
        (200, {"choices": ["so"]}),
        (200, {"choices": [None]}),
        (200, [1]),  # what follows is no answer at all, however often it is asked
        (200, b"null"),
        (200, b'data: {"choices": []}\n\n'),
        (200, b"[" * 100_000),
        (302, b""),
    ],
)
def test_another_refusal_fails_its_question_alone(
    server: ScriptedServer, status: int, answer: Any
) -> None:
    """Until more questions are refused than may be; by default that is the first."""
    fine = (200, {"choices": [{"text": "so"}]})
    server.answer = lambda number, body: (status, answer) if "What is 1" in body["prompt"] else fine
    refusals = Refusals(most=1)
    asking = OpenAIAgent(endpoint(server, retries=1), "m", PROTOCOL, refusals=refusals)
    episodes = [RULES.begin(Question(f"q{i}", f"What is {i}?", ("a",))) for i in range(3)]
    assert asking.act(episodes) == ["so", "", "so"]
    ((question, group), reason) = next(iter(refusals.reasons.items()))
    assert (question, group) == ("q1", episodes[1].group_id)
    assert f"the endpoint {asking.endpoint.url} refuses the request with status" in reason
    asked = len(server.asked)
    assert asking.act([episodes[1]]) == [""]  # it is not asked for the same again
    assert len(server.asked) == asked
    server.answer = lambda number, body: (status, answer)
    with pytest.raises(RequestRefusedError, match="2 questions so far"):
        asking.act([episodes[2]])
    with pytest.raises(RequestRefusedError):
        OpenAIAgent(endpoint(server, retries=0), "m", PROTOCOL).act([episodes[0]])


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("status", [401, 402, 403, 404, 405])
def test_a_server_that_refuses_everything_ends_the_run_at_once(
    server: ScriptedServer, status: int, api: Any
) -> None:
    """It is asked for something harmless, to tell it from one that refuses a question."""
    server.answer = lambda number, body: (status, error("no such model"))
    with pytest.raises(RequestRefusedError, match=f"status {status}: no such model"):
        agent(server, api=api, refusals=Refusals(most=99)).act([begun()])
    asked = [str(body.get("prompt") or body["messages"]) for body in server.asked]
    assert ["Peru" in text for text in asked] == [True, False]


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405])
def test_a_question_that_something_before_the_server_blocks_fails_alone(
    server: ScriptedServer, status: int
) -> None:
    """Whether it is the first question or a later one."""
    fine = (200, {"choices": [{"text": "so"}]})
    blocked = (status, b"<html>Forbidden by policy</html>")
    server.answer = lambda n, body: blocked if "What is 1" in str(body["prompt"]) else fine
    refusals = Refusals(most=1)
    asking = agent(server, refusals=refusals)
    one, two = (RULES.begin(Question(f"q{i}", f"What is {i}?", ("a",))) for i in (1, 2))
    (turn,) = asking.act([one])
    assert (turn, turn.stop_reason) == ("", "refused")
    assert asking.act([two]) == ["so"]
    assert "Forbidden by policy" in refusals.reasons["q1", one.group_id]
    server.answer = lambda n, body: blocked  # from now on it refuses everything
    with pytest.raises(RequestRefusedError, match=f"status {status}"):
        agent(server, refusals=Refusals(most=9)).act([two])


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_turn_that_a_content_filter_ended_fails_its_question(
    server: ScriptedServer, api: Any
) -> None:
    server.says("<search> how to", "content_filter")
    refusals = Refusals(most=1)
    (turn,) = agent(server, api=api, refusals=refusals).act([begun()])
    assert (turn, turn.stop_reason) == ("", "refused")
    assert "content filter ended the turn" in refusals.reasons["q", "q"]
    ((episode, _),) = ENGINE.step([begun()], [turn])
    assert "invalid_turns" not in episode_metrics(episode)  # it is not the policy's mistake
    assert "cut_turns" not in episode_metrics(episode)


def called(name: str, arguments: Any) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"content": None, "tool_calls": [call]}


CALLS = {
    "as OpenAI has it": (called("search", '{"query": "capital of Peru"}'), "capital of Peru"),
    "as an object": (called("search", {"query": "Peru"}), "Peru"),
    "with what was said": ({**called("search", {"query": "Peru"}), "content": "Hm. "}, "Peru"),
    "another function": (called("browse", {"query": "Peru"}), None),
    "another argument": (called("search", {"q": "Peru"}), None),
    "no text": (called("search", {"query": 3}), None),
    "broken": (called("search", '{"query": "Pe'), None),
    "no function": ({"content": None, "tool_calls": [{"type": "function"}]}, None),
    "no list": ({"content": "", "tool_calls": {"name": "search"}}, None),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_stands_apart_from_the_text(server: ScriptedServer, name: str) -> None:
    message, query = CALLS[name]
    choice = {"message": message, "finish_reason": "tool_calls"}
    server.answer = lambda number, body: (200, {"choices": [choice]})
    tools = ToolCallProtocol(name="tools", prompt="{question}")
    asking = OpenAIAgent(endpoint(server), "m", tools, api="chat")
    (turn,) = asking.act([begun()])
    parsed = tools.parse(turn)
    assert (parsed.query if isinstance(parsed, Search) else None) == query
    assert turn.startswith(message["content"] or "")
    refusals = Refusals(most=1)  # tags cannot say it
    (turn,) = agent(server, api="chat", refusals=refusals).act([begun()])
    assert (turn, turn.stop_reason) == ("", "refused")
    assert "without its parser of tool calls" in refusals.reasons["q", "q"]


def test_a_turn_of_tags_counts_though_a_call_stands_beside_it(server: ScriptedServer) -> None:
    message = {**called("search", {"query": "x"}), "content": "<answer> Lima </answer>"}
    server.answer = lambda n, body: (200, {"choices": [{"message": message}]})
    assert agent(server, api="chat").act([begun()]) == ["<answer> Lima </answer>"]


def test_an_error_that_passes_within_a_200_is_waited_for(server: ScriptedServer) -> None:
    server.answer = failing(2, (200, error("overloaded", code=503)))
    assert endpoint(server, retries=2).post("/x", {}) == {"fine": 2}


@pytest.mark.parametrize("garbled", [{}, {"choices": []}, {"result": "nothing"}, []])
def test_an_answer_without_what_was_asked_for_is_asked_for_again(
    server: ScriptedServer, garbled: Any
) -> None:
    server.answer = lambda number, body: (
        (200, garbled) if number == 0 else (200, {"choices": [{"text": "so"}]})
    )
    asking = OpenAIAgent(endpoint(server, retries=1), "m", PROTOCOL)
    assert asking.act([RULES.begin(Question("q", "What?", ("a",)))]) == ["so"]
    assert len(server.asked) == 2


def test_the_errors_of_an_answer() -> None:
    assert read_error({"choices": [], "error": None}) is None
    assert read_error(None) is None
    assert read_error({"data": []}) is None
    found = read_error(None, "  <html>\n Bad  </html>")
    assert found is not None
    assert found.message == "<html> Bad </html>"


@pytest.mark.parametrize(
    ("message", "turn"),
    [
        ({"content": [{"type": "text", "text": "<answer> a "}, {"type": "x"}]}, "<answer> a "),
        ({"content": ["<answer>", " a "]}, "<answer> a "),
        ({"content": "", "reasoning_content": "<answer> a "}, "<think><answer> a </think>"),
        ({"content": None, "reasoning": "<answer> a "}, "<think><answer> a </think>"),
        ({"content": "<answer> a ", "reasoning_content": "hm"}, "<answer> a "),
        ({"content": None, "refusal": "I may not"}, "I may not"),
        ({"content": []}, ""),
        ({"content": None, "tool_calls": []}, ""),
    ],
)
def test_where_the_text_of_a_message_may_be(
    server: ScriptedServer, message: dict[str, Any], turn: str
) -> None:
    choice = {"message": message, "finish_reason": "length"}
    server.answer = lambda number, body: (200, {"choices": [choice]})
    assert agent(server, api="chat").act([begun()]) == [turn]


@pytest.mark.parametrize("with_ids", [True, False])
def test_a_tag_quoted_in_a_thought_does_not_end_the_turn(
    server: ScriptedServer, with_ids: bool
) -> None:
    loaded: Any = AutoTokenizer.from_pretrained(POLICY)
    tokenizer = SegmentTokenizer(loaded) if with_ids else None
    parts = ["<think> I may write </answer>", " </think> <search> lima </search>"]
    protocol = PROTOCOLS["refine-bare"]

    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        text = parts[number]
        choice: dict[str, Any] = {"text": text, "finish_reason": "stop"}
        if tokenizer is not None:
            choice["token_ids"] = list(tokenizer.encode_answer("", text)[1])
        return 200, {"choices": [choice]}

    server.answer = answer
    asked = OpenAIAgent(endpoint(server), "m", protocol, tokenizer=tokenizer, max_new_tokens=40)
    (turn,) = asked.act([begun()])
    assert turn.stop_reason == "stop"
    parsed = protocol.parse(turn)
    assert isinstance(parsed, Search)
    assert parsed.query == "lima"
    first, second = server.asked
    assert second["prompt"][: len(first["prompt"])] == first["prompt"]
    assert len(second["prompt"]) > len(first["prompt"])
    assert 0 < second["max_tokens"] < first["max_tokens"] == 40


@pytest.mark.parametrize("turn", ["", " \n"])
def test_a_blank_turn_is_not_sent_back(turn: str) -> None:
    episode = RULES.read(begun(), turn).extend(begun(), RULES, None)
    ((role, content),) = [(m["role"], m["content"]) for m in messages(episode)]
    assert role == "user"
    assert content.startswith(begun().prompt.text)
    assert len(content) > len(begun().prompt.text)  # the correction has joined it


def test_fields_that_a_server_does_not_accept(server: ScriptedServer) -> None:
    server.says("x")
    agent(server, leave_out=("stop", "seed", "max_tokens", "temperature")).act([begun()])
    assert set(server.asked[0]) == {"model", "prompt"}
    refused = error("Unsupported: 'stop'", param="stop", code="unsupported_parameter")
    server.answer = lambda number, body: (400, refused)
    with pytest.raises(ValueError, match=r"does not accept 'stop' .*--leave-out stop"):
        agent(server, refusals=Refusals(most=9)).act([begun()])
    with pytest.raises(ValueError, match="leave_out may hold max_tokens, stop, seed"):
        agent(server, leave_out=("top_p",))


def test_a_model_that_knows_max_completion_tokens_only(server: ScriptedServer) -> None:
    refused = error(
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead.",
        param="max_tokens",
        code="unsupported_parameter",
    )
    fine = {"choices": [{"text": "so"}]}
    server.answer = lambda number, body: (400, refused) if "max_tokens" in body else (200, fine)
    asking = agent(server, max_new_tokens=7)
    assert asking.act([begun()]) == asking.act([searched()]) == ["so"]
    limits = [body.get("max_completion_tokens") for body in server.asked]
    assert limits == [None, 7, 7]  # refused once


@pytest.mark.parametrize(
    ("asked", "pause"),
    [("7", 7.0), ("300", 30.0), ("0", 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0)],
)
def test_a_pause_that_the_server_asks_for(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, asked: str, pause: float
) -> None:
    server.more = {"retry-after": asked}
    server.answer = failing(1, (429, {}))
    waiting = endpoint(server, first_pause=1e-9, longest_pause=30.0)
    pauses: list[float] = []
    monkeypatch.setattr(waiting._closed, "wait", pauses.append)
    assert waiting.post("/x", {}) == {"fine": 1}
    assert pauses == [pytest.approx(pause, abs=1e-6)]


def test_the_key_and_the_models(server: ScriptedServer) -> None:
    server.answer = lambda number, body: (200, {"data": [{"id": "a"}, {"id": "b"}]})
    with endpoint(server, api_key="secret") as asked:
        assert asked.models() == ["a", "b"]
    assert server.headers[0]["authorization"] == "Bearer secret"
    for data in (5, "ab", {"id": "a"}, [5, {"id": 5}, None]):
        server.answer = lambda number, body, data=data: (200, {"data": data})
        assert endpoint(server).models() == []
    server.headers.clear()
    endpoint(server).models()
    assert "authorization" not in server.headers[0]


def test_closing_ends_what_waits(server: ScriptedServer) -> None:
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
    for seconds in (math.nan, math.inf, 0.0):
        with pytest.raises(ValueError, match="finite times above 0"):
            Endpoint("http://localhost", timeout=seconds)
    asked = Endpoint("http://localhost")
    with pytest.raises(ValueError, match="api must be completions or chat"):
        OpenAIAgent(asked, "m", PROTOCOL, api="legacy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="concurrency >= 1"):
        OpenAIAgent(asked, "m", PROTOCOL, concurrency=0)


@pytest.mark.parametrize(
    ("text", "finish", "more", "expected"),
    [
        ("<answer> Lima ", "stop", {}, "stop"),
        ("<answer> Lima ", "stop", {"stop_reason": "</answer>"}, "stop"),
        ("I do not know.", "stop", {"stop_reason": None}, "end"),
        ("I do not know.", "stop", {}, "end"),
        ("<search> capital of", "length", {}, "length"),
        ("anything", None, {}, None),
    ],
)
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_turns_say_why_they_end(
    server: ScriptedServer,
    api: Any,
    text: str,
    finish: Any,
    more: dict[str, Any],
    expected: str | None,
) -> None:
    server.says(text, finish, **more)
    (turn,) = agent(server, api=api).act([begun()])
    assert turn.stop_reason == expected
    ((episode, _),) = ENGINE.step([begun()], [turn])
    assert episode.steps[0].stop_reason == expected


@pytest.mark.parametrize(
    ("begins", "goes_on"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nx: ", b"y"),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
)
def test_an_answer_that_trickles_has_a_limited_time_as_a_whole(
    begins: bytes, goes_on: bytes
) -> None:
    def trickle(connection: socket.socket) -> None:
        connection.sendall(begins)
        while True:  # until the client has gone
            connection.sendall(goes_on)
            time.sleep(0.02)

    raw = RawServer((trickle,))
    try:
        with (
            Endpoint(f"{raw.url}/v1", retries=0, timeout=0.3) as asked,
            pytest.raises(EndpointError, match=r"no whole answer within 0\.3 s"),
        ):
            asked.post("/completions", {})
    finally:
        raw.close()


@pytest.mark.parametrize("encoding", ["gzip, gzip", "deflate", "br", "zstd", "x"])
def test_an_answer_that_is_packed_in_another_way_is_not_unpacked(
    server: ScriptedServer, encoding: str
) -> None:
    bomb = gzip.compress(gzip.compress(b" " * 10_000_000 + b"{}"))
    server.answer = lambda number, body: (200, bomb)
    server.more = {"content-encoding": encoding}
    with (
        endpoint(server, retries=1) as asked,
        pytest.raises(RequestRefusedError, match=f"packed as '{encoding}', which was not asked"),
    ):
        asked.post("/completions", {})


def test_what_a_server_says_is_shown_in_one_line_without_control_characters(
    server: ScriptedServer,
) -> None:
    said = "\x1b[31mno\x1b]0;title\x07\nerror: all is well\r\ud800"
    server.answer = lambda number, body: (403, {"error": {"message": said}})
    with endpoint(server, retries=0) as asked, pytest.raises(RequestRefusedError) as raised:
        asked.post("/completions", {})
    assert str(raised.value).endswith("403: [31mno ]0;title error: all is well \ufffd")


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_has_a_limited_size_once_it_is_unpacked(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    monkeypatch.setattr(client, "MAX_BYTES", 10_000)
    long = b" " * 1_000_000 + b"{}"
    server.answer = lambda number, body: (200, gzip.compress(long) if packed else long)
    server.more = {"content-encoding": "gzip"} if packed else {}
    with (
        endpoint(server, retries=1) as asked,
        pytest.raises(RequestRefusedError, match="longer than 10,000 bytes"),
    ):
        asked.post("/completions", {})
    assert len(server.asked) == 2
