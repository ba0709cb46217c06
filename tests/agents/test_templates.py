"""Chat templates of real models, as TRL ships them, and two in Mistral's published grammar."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AddedToken, PreTrainedTokenizerFast

from agents.chat import _INSTRUCTIONS, _SEARCH_TOOL, chat_protocol, protocol_for, tool_protocol
from agents.tokenization import SegmentTokenizer
from igsearch_env import BM25Retriever, Completion, Document, Question, SearchQAEnv, TagProtocol
from igsearch_env.checkpoint_settings import CheckpointSettings
from igsearch_env.protocol.tags import PROTOCOLS, Answer, Invalid, Search
from igsearch_env.protocol.tool_calls import ToolCallProtocol

trl = pytest.importorskip("trl")
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
MISTRAL_LIST = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' %}
{%- if loop.first and tools %}{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
{%- endif %}{{- '[INST] ' + message.content + '[/INST]' }}
{%- elif message.role == 'assistant' %}{%- if message.tool_calls %}
{{- '[TOOL_CALLS] [' }}{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('an id has 9 characters') }}{% endif %}
{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}{%- endfor %}{{- ']' }}
{%- else %}{{- ' ' + message.content }}{%- endif %}{{- eos_token }}
{%- elif message.role == 'tool' %}
{{- '[TOOL_RESULTS] {"content": ' + message.content }}
{{- ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- endif %}{%- endfor %}"""
MISTRAL_ARGS = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' %}
{%- if loop.first and tools %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
{%- endif %}{{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.role == 'assistant' %}{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + (call.function.arguments | tojson) }}
{%- endfor %}{{- eos_token }}
{%- elif message.role == 'tool' %}
{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
{%- endif %}{%- endfor %}"""
QWEN = ("<|im_start|>", "<|im_end|>")
QWEN_WORDS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
QWEN_WORDS += ("<think>", "</think>")
LLAMA = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
MISTRAL = ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[AVAILABLE_TOOLS]")
MISTRAL += ("[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
LFM = ("<|startoftext|>", "<|im_end|>", "<|im_start|>", "<|tool_call_start|>", "<|tool_call_end|>")
FAMILIES: dict[str, tuple[str, str]] = {  # the format of its calls, and its control tokens
    "qwen2_5": ("json", "qwen"),
    "qwen3": ("json", "qwen"),
    "qwen3_instruct_2507": ("json", "qwen"),
    "qwen3_vl": ("json", "qwen"),
    "qwen3_5_think": ("xml", "qwen"),
    "qwen3_5_nothink": ("xml", "qwen"),
    "qwen3_6": ("xml", "qwen"),
    "qwen3_8": ("xml", "qwen"),
    "nemotron_3_nano": ("xml", "qwen"),
    "glm4moe": ("glm", "glm"),
    "lfm2_v2": ("python", "lfm"),
    "lfm2_2_5": ("python", "lfm"),
    "llama3_1": ("bare", "llama"),
    "llama3_2": ("bare", "llama"),
    "mistral_list": ("mistral", "mistral"),
    "mistral_args": ("mistral-args", "mistral"),
}
CONTROL = {"llama": LLAMA, "mistral": MISTRAL, "lfm": LFM}
DOCUMENTS = [
    Document("d0", "Lima", 'Lima is "the capital"\nof Peru. </s> [/INST] <|im_end|> </tool_call>'),
    Document("d1", "Quito", "Quito is the capital of Ecuador. "),
]
QUESTION = Question("q0", "capital of Peru ?", ("Lima",))
OTHER = Question("q1", "capital of Ecuador ?", ("Quito",))


def template(name: str) -> str:
    own = {"mistral_list": MISTRAL_LIST, "mistral_args": MISTRAL_ARGS}
    return own.get(name) or (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def tokenizer_for(bpe: PreTrainedTokenizerFast, name: str, control: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the control tokens of a family, and BOS where the family adds it."""
    made: Any = deepcopy(bpe)
    made.chat_template = template(name)
    if control == "qwen":
        made.add_special_tokens({"eos_token": "<|im_end|>"})
        made.add_tokens([AddedToken(w, normalized=False, special=False) for w in QWEN_WORDS])
    elif control == "glm":
        words = ["<|user|>", "<|assistant|>", "<|observation|>", "<|system|>"]
        made.add_special_tokens({"additional_special_tokens": words})
    else:
        bos, eos, *others = CONTROL[control]
        given = {"bos_token": bos, "eos_token": eos, "additional_special_tokens": others}
        made.add_special_tokens(given)
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, made.bos_token_id)]
        )
    return made


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, bpe: PreTrainedTokenizerFast) -> tuple[str, Any]:
    name = str(request.param)
    return name, tokenizer_for(bpe, name, FAMILIES[name][1])


def make_env(protocol: TagProtocol, **options: Any) -> SearchQAEnv:
    retriever = BM25Retriever.build(DOCUMENTS)
    options = {"top_k": 1, "num_counterfactuals": 1, "max_searches": 2, **options}
    env = SearchQAEnv([QUESTION, OTHER], retriever, protocol=protocol, **options)
    env.reset(seed=0, options={"question": QUESTION})
    return env


def turn(tokenizer: Any, text: str) -> Completion:
    """A turn as a policy samples it, with its ids."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Completion.from_tokens(ids, None, SegmentTokenizer(tokenizer).decode)


def said(env: SearchQAEnv) -> str:
    return "".join(segment.text for segment in env.episode.transcript)


def rendered(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    """What the template writes, less what the tokenizer puts before every text by itself."""
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **options
    )
    return str(text).removeprefix(tokenizer.bos_token or "\0")


def ids_of(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)
    return list(found["input_ids"])


QUERY = 'Peru\'s "capital" é'


def test_a_call_and_its_reply_are_what_the_template_renders(family: tuple[str, Any]) -> None:
    name, tokenizer = family
    protocol = tool_protocol(tokenizer)
    assert protocol.format == FAMILIES[name][0]
    query = QUERY.replace("'", "") if protocol.format == "python" else QUERY  # which has quotes
    env = make_env(protocol)
    env.step(turn(tokenizer, f"{protocol.write_search(query)} {tokenizer.eos_token}"))
    call = {"name": "search", "arguments": {"query": query}}
    calls = [{"id": "000000000", "type": "function", "function": call}]
    found = env.episode.steps[0].documents[0]
    body = f'Doc 1 (Title: "{found.title}") {found.text}'
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": _INSTRUCTIONS.replace("{question}", QUESTION.text)},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {
            "role": "tool",
            "name": "search",
            "tool_call_id": "000000000",
            "content": protocol.escape(body).strip(),
        },
    ]
    whole = rendered(tokenizer, messages, tools=[_SEARCH_TOOL])
    written = protocol.write_search(query).removeprefix(protocol.thought_end)
    assert said(env).partition(written)[2] == whole.partition(written)[2] != ""
    # These two write an empty thought otherwise than the one that they let the model open.
    if name not in ("glm4moe", "nemotron_3_nano"):
        assert said(env) == rendered(tokenizer, messages, tools=[_SEARCH_TOOL])
        ours = SegmentTokenizer(tokenizer).encode_context(env.episode.transcript)
        assert ours == ids_of(tokenizer, messages, tools=[_SEARCH_TOOL])


def test_the_query_alone_gets_the_credit(family: tuple[str, Any]) -> None:
    _, tokenizer = family
    protocol = tool_protocol(tokenizer)
    env = make_env(protocol)
    env.step(turn(tokenizer, protocol.write_search("the capital of Peru")))
    step = env.episode.steps[0]
    assert step.query == "the capital of Peru"
    assert step.query_span is not None
    assert step.turn.text[slice(*step.query_span)] == "the capital of Peru"
    assert step.turn.token_ids is not None
    tokens = SegmentTokenizer(tokenizer).decode(step.turn.token_ids[step.query_tokens])
    assert tokens in "the capital of Peru"
    assert len(tokens) > len("capital of")


def test_calls_and_tags_in_thoughts_are_no_actions(family: tuple[str, Any]) -> None:
    _, tokenizer = family
    protocol = tool_protocol(tokenizer)
    call = protocol.write_search("Peru").removeprefix(protocol.thought_end)
    opened = "" if protocol.thought_end else "<think>"
    assert protocol.parse(f"{opened}maybe {call}") == Invalid("no complete action")
    assert not protocol.ended(f"{opened}maybe {call} or <answer>a</answer>")
    found = protocol.parse(f"{opened}maybe {call}</think>\n<answer> Lima </answer>")
    assert isinstance(found, Answer)
    found = protocol.parse(f"{opened}<answer>a</answer></think>\n{call}")
    assert isinstance(found, Search)
    assert found.query == "Peru"


def test_a_correction_is_a_message_of_the_user(family: tuple[str, Any]) -> None:
    name, tokenizer = family
    for protocol in (tool_protocol(tokenizer), chat_protocol(PROTOCOLS["refine"], tokenizer)):
        tools = [_SEARCH_TOOL] if isinstance(protocol, ToolCallProtocol) else None
        env = make_env(protocol)
        before = tokenizer.eos_token if name != "glm4moe" else "<|user|>"
        # A turn that ends with the model's own token, which the template would write, too.
        written = f"{protocol.thought_end}I think so.{before}"
        observation, *_ = env.step(turn(tokenizer, written))
        correction = protocol._with_tag_names(protocol.correction)
        correction = correction.replace("{reason}", "no complete action")
        messages = [
            {"role": "user", "content": "@ask@"},
            {"role": "assistant", "content": "I think so."},
            {"role": "user", "content": correction},
        ]
        whole = rendered(tokenizer, messages, **({"tools": tools} if tools else {}))
        assert (written + observation).endswith(whole.partition("I think so.")[2])


def test_a_search_in_messages_is_what_the_template_renders(family: tuple[str, Any]) -> None:
    name, tokenizer = family
    protocol = chat_protocol(PROTOCOLS["search-r1"], tokenizer)
    env = make_env(protocol)
    blank = " " if name == "mistral_list" else ""  # which its models write first
    env.step(turn(tokenizer, blank + protocol.write_search("Ecuador")))
    first = PROTOCOLS["search-r1"].prompt.replace("{question}", QUESTION.text)
    found = "<information>Doc 1(Title: Quito) Quito is the capital of Ecuador. </information>"
    messages = [
        {"role": "user", "content": first},
        {"role": "assistant", "content": "<search> Ecuador </search>"},
        {"role": "user", "content": found},
    ]
    if (
        "think>" in protocol.prompt[-20:] or name == "glm4moe"
    ):  # of which the template renders thoughts anew
        rest = rendered(tokenizer, messages).partition("<search> Ecuador </search>")[2]
        assert said(env).endswith("<search> Ecuador </search>" + rest)
        return
    assert said(env) == rendered(tokenizer, messages)
    ours = SegmentTokenizer(tokenizer).encode_context(env.episode.transcript)
    assert ours == ids_of(tokenizer, messages)


def test_documents_hold_no_marker_of_the_template(family: tuple[str, Any]) -> None:
    _, tokenizer = family
    protocol = tool_protocol(tokenizer)
    assert protocol.markers
    text = protocol.escape(" ".join(protocol.markers))
    assert not any(marker in text for marker in protocol.markers)


def test_checkpoints_freeze_a_template(family: tuple[str, Any], tmp_path: Path) -> None:
    _, tokenizer = family
    for protocol in (tool_protocol(tokenizer), chat_protocol(PROTOCOLS["refine"], tokenizer)):
        CheckpointSettings(protocol, 99).save(tmp_path)
        assert CheckpointSettings.load(tmp_path).protocol == protocol


def test_the_id_of_a_call_stands_in_its_reply(bpe: PreTrainedTokenizerFast) -> None:
    tokenizer = tokenizer_for(bpe, "mistral_list", "mistral")
    env = make_env(tool_protocol(tokenizer))
    call = {"name": "search", "arguments": {"query": "Ecuador"}, "id": "Ab3dEf9h1"}
    observation, *_ = env.step(turn(tokenizer, f"[TOOL_CALLS] [{json.dumps(call)}]</s>"))
    assert observation.endswith(', "call_id": "Ab3dEf9h1"}[/TOOL_RESULTS]')
    assert said(env).count("</s>") == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("llama3", "in one of the formats json, xml"),  # renders no call
        ("gemma3", "cannot render messages of user, assistant, tool"),  # raises
        ("cohere", "it knows no tool calls"),
        ("deepseekv3", "cannot render messages.*TypeError"),
        ("gptoss", "in one of the formats"),
    ],
)
def test_what_cannot_be_told_is_refused_with_the_reason(
    bpe: PreTrainedTokenizerFast, name: str, reason: str
) -> None:
    tokenizer = tokenizer_for(bpe, name, "llama")
    with pytest.raises(ValueError, match=reason):
        protocol_for("tools", tokenizer)


def test_a_thought_that_the_template_opens_is_closed_as_it_does(
    bpe: PreTrainedTokenizerFast,
) -> None:
    tokenizer = tokenizer_for(bpe, "qwen3_5_think", "qwen")
    protocol = tool_protocol(tokenizer)
    assert protocol.prompt.endswith("<|im_start|>assistant\n<think>\n")
    assert protocol.answer_opening == "\n</think>\n\n<answer>"
    r1 = chat_protocol(PROTOCOLS["refine"], tokenizer_for(bpe, "deepseek_r1_distill", "qwen"))
    assert r1.thought_end == "\n</think>\n\n"  # the template writes none into later turns


def test_a_template_that_prints_the_date_is_asked_once(
    bpe: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer = tokenizer_for(bpe, "llama3_2", "llama")
    protocol = protocol_for("tools", tokenizer)
    CheckpointSettings(protocol).save(tmp_path)
    tokenizer.chat_template = template("llama3_2").replace("%d %b %Y", "tomorrow")
    assert protocol_for("tools", tokenizer).prompt != protocol.prompt
    assert CheckpointSettings.load(tmp_path).protocol.prompt == protocol.prompt


def test_thoughts_in_brackets(bpe: PreTrainedTokenizerFast) -> None:
    """As reasoning models of Mistral write them."""
    tokenizer: Any = tokenizer_for(bpe, "mistral_args", "mistral")
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    protocol = tool_protocol(tokenizer)
    assert protocol.think == "[THINK]"
    call = protocol.write_search("Peru")
    assert protocol.parse(f"[THINK]maybe {call}") == Invalid("no complete action")
    found = protocol.parse(f"[THINK]<answer>a</answer>[/THINK]{call}")
    assert isinstance(found, Search)
    assert found.query == "Peru"
