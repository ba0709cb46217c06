"""Tool calls as models write them, in each format."""

from __future__ import annotations

import pytest

from igsearch_env.protocol.tool_calls import CALL_FORMATS

TURNS = {
    "json": 'hm <tool_call>{"arguments":{"query":"a \\"b\\" c"},"name":"search"}</tool_call> x',
    "mistral": 'hm [TOOL_CALLS][{"name":"search","arguments":{"query":"a \\"b\\" c"}}] rest',
    "mistral-args": '[TOOL_CALLS]search[CALL_ID]Ab1[ARGS]{"query": "a \\"b\\" c"}</s>',
    "bare": '<|python_tag|>{"name": "search", "parameters": {"query": "a \\"b\\" c"}}<|eot_id|>',
    "xml": "<tool_call><function=search><parameter=query> a\nb </parameter></function></tool_call>",
    "glm": "<tool_call>search\n<arg_key>query</arg_key>\n<arg_value>a\nb</arg_value>\n</tool_call>",
    "python": '<|tool_call_start|>[search(query="it\'s")]<|tool_call_end|>',
}
QUERIES = {"xml": "a\nb", "glm": "a\nb", "python": "it's"}


@pytest.mark.parametrize("name", CALL_FORMATS)
def test_a_call_is_found_and_its_query_in_it(name: str) -> None:
    turn = TURNS[name]
    call = CALL_FORMATS[name].find(turn, "search", "query")
    assert call is not None
    assert not call.problem
    assert call.query == QUERIES.get(name, 'a "b" c')
    written = turn[slice(*call.span)]
    assert written == QUERIES.get(name, 'a \\"b\\" c')
    assert call.start <= call.span[0] <= call.span[1] <= call.end
    other = CALL_FORMATS[name].find(turn, "browse", "query")
    assert other is not None
    assert other.problem


@pytest.mark.parametrize("name", CALL_FORMATS)
@pytest.mark.parametrize("cut", [4, 9])
def test_a_call_that_is_cut_off_is_none(name: str, cut: int) -> None:
    turn = TURNS[name].partition(" rest")[0].removesuffix("</s>").removesuffix("<|eot_id|>")
    found = CALL_FORMATS[name].find(turn.removesuffix(" x")[:-cut], "search", "query")
    assert found is None


@pytest.mark.parametrize("name", CALL_FORMATS)
@pytest.mark.timeout(20)
def test_nonsense_is_read_in_bounded_time(name: str) -> None:
    for piece in ("[TOOL_CALLS]", "{", '{"name":', "<tool_call>", "<|tool_call_start|>[", "[ARGS]"):
        assert CALL_FORMATS[name].find(piece * 3000, "search", "query") is None
