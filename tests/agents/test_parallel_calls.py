"""Turns of several calls, in the formats of real chat templates, as served models write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from agents.chat import _MORE_INSTRUCTIONS, _SEARCH_TOOL, protocol_for
from agents.tokenization import SegmentTokenizer
from igsearch_env import (
    PROTOCOLS,
    BM25Retriever,
    Document,
    InformationGain,
    Question,
    make_credit,
)
from igsearch_env.completion import Completion
from igsearch_env.endpoint.agent import OpenAIAgent
from igsearch_env.endpoint.client import Endpoint
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Episode
from igsearch_env.protocol.names import ProtocolError
from igsearch_env.protocol.tool_calls import ToolCallProtocol
from igsearch_env.record import episode_from_record, episode_record
from igsearch_env.settings import make_engine
from igsearch_env.tools import TOOLS
from tests.agents.test_templates import DOCUMENTS, OTHER, QUESTION, make_env, tokenizer_for
from tests.igsearch_env.fakes import CountingScorer
from tests.scripted_server import ScriptedServer

# What the models write, word for word, with the end of the turn.
TURNS = {
    "qwen2_5": """\
I look both up.
<tool_call>
{"name": "search", "arguments": {"query": "capital of Peru"}}
</tool_call>
<tool_call>
{"name": "search", "arguments": {"query": "Ecuador"}}
</tool_call>
<tool_call>
{"name": "calculator", "arguments": {"expression": "6 * 7"}}
</tool_call><|im_end|>""",
    "qwen3_5_nothink": """\
I look both up.

<tool_call>
<function=search>
<parameter=query>
capital of Peru
</parameter>
</function>
</tool_call>
<tool_call>
<function=search>
<parameter=query>
Ecuador
</parameter>
</function>
</tool_call>
<tool_call>
<function=calculator>
<parameter=expression>
6 * 7
</parameter>
</function>
</tool_call><|im_end|>""",
    "llama3_1": """\
{"name": "search", "parameters": {"query": "capital of Peru"}}; \
{"name": "search", "parameters": {"query": "Ecuador"}}; \
{"name": "calculator", "parameters": {"expression": "6 * 7"}}<|eot_id|>""",
}
FAMILIES = {"qwen2_5": "qwen", "qwen3_5_nothink": "qwen", "llama3_1": "llama"}
CALLS = [
    {"name": "search", "arguments": {"query": "capital of Peru"}},
    {"name": "search", "arguments": {"query": "Ecuador"}},
    {"name": "calculator", "arguments": {"expression": "6 * 7"}},
]


MORE = [
    Document("d2", "Chile", "The sights of Chile are many."),
    Document("d3", "Sights", "Others see the sights."),
]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    one = ScriptedServer()
    yield one
    one.close()


@pytest.fixture(params=TURNS)
def family(
    request: pytest.FixtureRequest, bpe: PreTrainedTokenizerFast, tmp_path: Any
) -> tuple[str, Any, ToolCallProtocol]:
    name = str(request.param)
    tokenizer = tokenizer_for(bpe, name, FAMILIES[name])
    grammar = tmp_path / "grammar.toml"
    grammar.write_text('base = "refine"\ntools = ["calculator"]\n')
    protocol = protocol_for(f"parallel:{grammar}", tokenizer)
    assert isinstance(protocol, ToolCallProtocol)
    return name, tokenizer, protocol


def played(
    server: ScriptedServer, tokenizer: Any, protocol: ToolCallProtocol, *turns: str
) -> tuple[SearchQAEngine, Episode]:
    """An episode in which a served model writes these turns, with token ids."""
    segments = SegmentTokenizer(tokenizer)

    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        ids = tokenizer(turns[number], add_special_tokens=False)["input_ids"]
        choice = {"text": turns[number], "finish_reason": "stop", "stop_reason": None}
        return 200, {"choices": [{**choice, "token_ids": ids}]}

    server.answer = answer
    agent = OpenAIAgent(Endpoint(server.url), "m", protocol, tokenizer=segments)
    engine = make_engine(
        [QUESTION, OTHER, Question("q2", "sights of Chile ?", ("none",))],
        BM25Retriever.build([*DOCUMENTS, *MORE]),
        CountingScorer(),
        protocol=protocol,
        top_k=1,
        num_counterfactuals=1,
        max_searches=2,
    )
    episode = engine.rules.begin(QUESTION)
    while not episode.finished:
        ((episode, _),) = engine.step([episode], agent.act([episode]))
    return engine, episode


ANSWER = dict.fromkeys(TURNS, "<answer> Lima </answer>")


def test_a_served_models_turn_of_three_calls(
    server: ScriptedServer, family: tuple[str, Any, ToolCallProtocol]
) -> None:
    name, tokenizer, protocol = family
    _, episode = played(server, tokenizer, protocol, TURNS[name], ANSWER[name])
    first, second, third, answer = episode.steps
    assert [step.query for step in (first, second)] == ["capital of Peru", "Ecuador"]
    assert [step.documents[0].id for step in (first, second)] == ["d0", "d1"]
    assert (third.action, third.tool) == ("tool", "calculator")
    assert third.observation is not None
    assert "42" in third.observation.text
    assert answer.action == "answer"
    assert episode.em == 1.0
    assert "".join(step.turn.text for step in episode.steps[:3]) == TURNS[name]
    decode = SegmentTokenizer(tokenizer).decode
    ids = [i for step in episode.steps for i in step.turn.token_ids or ()]
    for step in (first, second):
        asked = decode(ids[step.query_tokens])
        assert asked.strip() in step.query
        assert len(asked) > len(step.query) // 2
    # The server was asked to go on through the calls, and then got all replies at once.
    assert server.asked[0]["stop"] == ["</answer>"]
    assert server.asked[1]["prompt"] == SegmentTokenizer(tokenizer).encode_context(
        episode.context_before(3)
    )
    assert episode_from_record(json.loads(json.dumps(episode_record(episode)))) == episode


def test_gains_are_those_of_a_scorer_that_comes_later(
    server: ScriptedServer, family: tuple[str, Any, ToolCallProtocol]
) -> None:
    name, tokenizer, protocol = family
    engine, episode = played(server, tokenizer, protocol, TURNS[name], ANSWER[name])
    online = episode.information_gains
    assert len(online) == 2
    assert None not in online
    bare = episode_from_record(
        {
            **episode_record(episode),
            "steps": [
                {**step, "information_gain": None} for step in episode_record(episode)["steps"]
            ],
        }
    )
    (later,) = InformationGain(protocol).settle([bare], CountingScorer())
    assert later.information_gains == online
    shaped, plain = (make_credit(m)([episode])[0] for m in ("ig_search", "outcome"))
    paid = {int(i) for i in (shaped - plain).nonzero()[0]}
    spans = [set(range(*s.query_tokens.indices(999))) for s in episode.searches]
    assert paid <= spans[0] | spans[1]
    assert paid
    contexts = engine.information_gain.contexts(episode, 0)
    closing = protocol.reply.after + protocol.answer_opening
    assert all("".join(s.text for s in context).endswith(closing) for context in contexts)


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_5_nothink"])
def test_an_episode_is_what_the_template_renders(
    server: ScriptedServer, bpe: PreTrainedTokenizerFast, name: str, tmp_path: Any
) -> None:
    tokenizer = tokenizer_for(bpe, name, "qwen")
    grammar = tmp_path / "grammar.toml"
    grammar.write_text('base = "refine"\ntools = ["calculator"]\n')
    protocol: Any = protocol_for(f"parallel:{grammar}", tokenizer)
    _, episode = played(server, tokenizer, protocol, TURNS[name], ANSWER[name])
    shown = [protocol.escape(f'Doc 1 (Title: "{d.title}") {d.text}').strip() for d in DOCUMENTS] + [
        "42"
    ]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": _MORE_INSTRUCTIONS.replace("{question}", QUESTION.text)},
        {
            "role": "assistant",
            "content": "I look both up.",
            "tool_calls": [{"type": "function", "function": call} for call in CALLS],
        },
        *({"role": "tool", "content": text} for text in shown),
    ]
    tools = [_SEARCH_TOOL, TOOLS["calculator"].schema]
    given = {"tools": tools, "add_generation_prompt": True}
    expected = tokenizer.apply_chat_template(messages, tokenize=False, **given)
    assert "".join(s.text for s in episode.context_before(3)) == expected
    ids = tokenizer.apply_chat_template(messages, **given)["input_ids"]
    assert SegmentTokenizer(tokenizer).encode_context(episode.context_before(3)) == list(ids)


def test_llama_gets_a_message_for_each_reply(
    server: ScriptedServer, bpe: PreTrainedTokenizerFast
) -> None:
    tokenizer = tokenizer_for(bpe, "llama3_1", "llama")
    protocol: Any = protocol_for("parallel", tokenizer)
    turn = TURNS["llama3_1"]
    _, episode = played(server, tokenizer, protocol, turn, ANSWER["llama3_1"])
    replies = "".join(s.text for s in episode.context_before(3)).partition(turn)[2]
    assert replies.count("<|start_header_id|>ipython<|end_header_id|>") == 3
    assert replies.count("<|eot_id|>") == 3
    assert replies.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    # The calculator is no tool of this grammar: its call is answered in its place.
    assert [step.action for step in episode.steps[:3]] == ["search", "search", "invalid"]


def test_calls_that_a_server_has_taken_out_of_the_text(
    server: ScriptedServer, family: tuple[str, Any, ToolCallProtocol]
) -> None:
    _, _, protocol = family
    calls = [
        {
            "id": str(number),
            "type": "function",
            "function": {**call, "arguments": json.dumps(call["arguments"])},
        }
        for number, call in enumerate([*CALLS, {"name": "browse", "arguments": {}}])
    ]
    message = {"content": "Both.", "tool_calls": calls}
    server.answer = lambda n, body: (200, {"choices": [{"message": message}]})
    agent = OpenAIAgent(Endpoint(server.url), "m", protocol, api="chat")
    env = make_env(protocol)
    env.step(agent.act([env.episode])[0])
    actions = [(step.action, step.tool, step.query) for step in env.episode.steps]
    assert [action for action, *_ in actions] == ["search", "search", "tool", "invalid"]
    assert actions[0][2] == "capital of Peru"
    assert env.episode.steps[0].turn.text.startswith("Both.")


@pytest.mark.parametrize(
    ("name", "control", "ok"),
    [
        ("qwen3", "qwen", True),
        ("glm4moe", "glm", True),
        ("mistral_args", "mistral", True),
        ("llama3_2", "llama", True),
        ("mistral_list", "mistral", False),
        ("lfm2_v2", "lfm", False),
    ],
)
def test_which_templates_know_several_calls(
    bpe: PreTrainedTokenizerFast, name: str, control: str, ok: bool
) -> None:
    tokenizer = tokenizer_for(bpe, name, control)
    if not ok:
        with pytest.raises((ValueError, ProtocolError), match="one list, which is not read"):
            protocol_for("parallel", tokenizer)
        return
    protocol: Any = protocol_for("parallel", tokenizer)
    assert (protocol.name, protocol.max_calls) == ("parallel:refine", 4)
    calls = [protocol.write_search(query) for query in ("capital of Peru", "Ecuador")]
    turn = "\n".join([calls[0], calls[1].removeprefix(protocol.thought_end)])
    env = make_env(protocol)
    ids = tokenizer(turn, add_special_tokens=False)["input_ids"]
    env.step(Completion.from_tokens(ids, None, SegmentTokenizer(tokenizer).decode))
    assert [step.query for step in env.episode.steps] == ["capital of Peru", "Ecuador"]
    assert OTHER.id not in {e.question_id for e in env.episode.steps[1].counterfactuals}


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_nothink"])
def test_a_context_without_thoughts_is_what_the_template_renders(
    bpe: PreTrainedTokenizerFast, name: str
) -> None:
    """These templates drop the thoughts of turns that a message of the user follows."""
    tokenizer = tokenizer_for(bpe, name, "qwen")
    protocol = protocol_for("chat:search-r1", tokenizer)
    env = make_env(protocol, drop_thoughts=True)
    thought = "<think>\nWhat of Ecuador?\n</think>\n\n"
    written = "<search> Ecuador </search><|im_end|>"
    ids = tokenizer(thought + written, add_special_tokens=False)["input_ids"]
    env.step(Completion.from_tokens(ids, None, SegmentTokenizer(tokenizer).decode))
    asked = PROTOCOLS["search-r1"].prompt.replace("{question}", QUESTION.text)
    found = "<information>Doc 1(Title: Quito) Quito is the capital of Ecuador. </information>"
    messages = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": f"{thought}<search> Ecuador </search>"},
        {"role": "user", "content": found},
    ]
    # Where the template opens turns with an empty thought, it does so for the newest one alone.
    opened = protocol.prompt.partition("<|im_start|>assistant\n")[2]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert "What of Ecuador" not in rendered
    said = "".join(segment.text for segment in env.episode.context)
    assert said.replace(opened or "\0", "") == rendered.replace(opened or "\0", "")
    assert "What of Ecuador" in "".join(segment.text for segment in env.episode.transcript)
