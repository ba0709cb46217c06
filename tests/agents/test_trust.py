"""Untrusted text never becomes a special token, in any place, with any tokenizer."""

from __future__ import annotations

import re
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers
from transformers import PreTrainedTokenizerFast

from agents.chat import protocol_for
from agents.tokenization import SegmentTokenizer
from igsearch_env import (
    PROTOCOLS,
    Completion,
    Document,
    Episode,
    InformationGain,
    Question,
    Segment,
)
from igsearch_env.endpoint.agent import OpenAIAgent, messages
from igsearch_env.episode import Context, Evidence
from igsearch_env.gain.enabling import settle_enabling
from igsearch_env.protocol.special_tokens import break_up
from igsearch_env.protocol.tags import TagProtocol
from igsearch_env.turn import SearchResult, TurnRules
from tests.agents.test_tokenizer_families import made as made_family
from tests.agents.test_tokenizer_families import sentencepiece
from tests.igsearch_env.fakes import FakeScorer
from trainers.local.token_batch import episode_tokens
from trainers.trl.rollouts import completion

MARKERS: dict[str, tuple[str, ...]] = {
    "llama 2": ("<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    "llama 3": (
        *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        *("<|python_tag|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_17|>"),
    ),
    "mistral": (
        *("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[CALL_ID]"),
        *("[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[ARGS]", "[IMG]", "[THINK]"),
        *("[IMG_BREAK]", "[PREFIX]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    ),
    "deepseek": (
        *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<think>", "</think>"),
    ),
    "smollm2": (
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>"),
        *("<filename>", "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>"),
        *("<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>"),
        *("<jupyter_script>", "<empty_output>"),
    ),
    "qwen": (
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|file_sep|>"),
        *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>"),
    ),
    "gemma": ("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>", "<unused42>"),
    "glm": ("[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|user|>", "<|assistant|>", "<|observation|>"),
    "t5, bert": ("<extra_id_0>", "[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]"),
}
"""Special tokens of published models."""
PLACES = ("question", "title", "text", "tool", "refinement", "reason")
KINDS = ["byte-level", "byte-level, NFKC", "sentencepiece, always", "sentencepiece, first"]


def tokenizer_of(kind: str, family: str, bpe: PreTrainedTokenizerFast) -> Any:
    """A small tokenizer of a kind with the special tokens of a family, some marked, some not."""
    tokenizer: Any = (
        sentencepiece(kind.partition(", ")[2])
        if kind.startswith("sentencepiece")
        else deepcopy(bpe)
    )
    if kind.endswith("NFKC"):
        tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    for number, token in enumerate(MARKERS[family]):
        marked, normalized = number % 3 != 2, kind.endswith("NFKC") and number % 2 == 0
        tokenizer.add_tokens(
            [AddedToken(token, special=marked, normalized=normalized)], special_tokens=marked
        )
    return tokenizer


def episode_with(place: str, text: str, protocol: TagProtocol) -> Episode:
    """A search, a turn with a refinement and no action, a tool's result; ``text`` in one place."""
    at = dict.fromkeys(PLACES, "harmless") | {place: text}
    rules = TurnRules(protocol)
    episode = rules.begin(Question("q", f"Which {at['question']} ?", ("gold",)))
    found = (Document("d", f"The {at['title']} title", f"It says {at['text']} here."),)
    others = (Document("o", f"Other {at['title']}", f"Another {at['text']}."),)
    evidence = Evidence(others, Segment("", "policy", ()), "p", "other")
    searched = SearchResult(found, counterfactuals=(evidence,))
    turn = protocol.write_search("who")
    episode = rules.read(episode, turn).extend(episode, rules, searched)
    tag = protocol.refine
    note = f"<{tag}> so {at['refinement']} it is </{tag}>" if tag else ""
    turn = note + protocol.write_search("and then")
    episode = rules.read(episode, turn).extend(episode, rules, searched)
    last = episode.steps[-1]
    result = protocol.render_result(f"result {at['tool']} end", turn)
    corrected = protocol.render_correction(f"no {at['reason']} there", turn)
    steps = [episode.steps[0], replace(last, observation=result)]
    steps.append(
        replace(last, observation=corrected, search_step=2, refinement=Segment("", "policy"))
    )
    return replace(episode, steps=tuple(steps))


def controls(tokenizer: SegmentTokenizer, ids: Any) -> Counter[int]:
    control = {
        i for i, t in tokenizer.tokenizer.added_tokens_decoder.items() if t.content.strip()
    } - {tokenizer.tokenizer.unk_token_id}
    return Counter(i for i in ids if i in control)


@pytest.mark.parametrize("family", MARKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_special_token_comes_from_untrusted_text(
    kind: str, family: str, bpe: PreTrainedTokenizerFast
) -> None:
    """Nor through what a trainer, TRL or a scorer makes of the episode."""
    tokenizer = SegmentTokenizer(tokenizer_of(kind, family, bpe))
    protocol = PROTOCOLS["refine"]
    gain = InformationGain(protocol)

    def ids_of(episode: Episode) -> list[list[int]]:
        steps = []
        for step in episode.steps:  # as a policy would have sampled it that wrote letter by letter
            ids = (*tokenizer.encode_segment(step.turn),)
            turn = replace(step.turn, token_ids=ids)
            steps.append(replace(step, turn=turn, log_probs=(0.0,) * len(ids)))
        ended = replace(episode, steps=tuple(steps), terminated=True, outcome=0.0)
        scored = gain.contexts(episode, 0)
        return [
            tokenizer.encode_context(episode.transcript),
            episode_tokens(ended, tokenizer)[0],
            completion(ended, tokenizer)["prompt_ids"],
            *(tokenizer.encode_scored(context, " gold")[0] for context in scored),
        ]

    for place in PLACES:
        plain = [controls(tokenizer, ids) for ids in ids_of(episode_with(place, "x", protocol))]
        for token in MARKERS[family]:
            for text in (token, f"{token}{token}", f"a{token}b"):
                marked = ids_of(episode_with(place, text, protocol))
                assert [controls(tokenizer, ids) for ids in marked] == plain, (place, text)


@pytest.mark.parametrize("variant", ["chat", "tools"])
def test_nor_in_a_chat_template(variant: str, bpe: PreTrainedTokenizerFast) -> None:
    made: Any = made_family("byte-level", bpe)
    if variant == "tools":
        made.chat_template = (
            "{% if tools %}<|im_start|>system\n{{ tools }}<|im_end|>\n{% endif %}"
            "{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n"
            "{% if m.role == 'tool' %}<tool_response>\n{{ m.content }}\n</tool_response>"
            "{% else %}{{ m.content }}{% endif %}"
            "{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>"
            "{% endfor %}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
        made.add_tokens(["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"])
    made.add_tokens(list(MARKERS["smollm2"]), special_tokens=True)
    protocol, tokenizer = protocol_for(variant, made), SegmentTokenizer(made)
    for place in PLACES:
        plain = tokenizer.encode_context(episode_with(place, "x", protocol).transcript)
        assert controls(tokenizer, plain)  # the template's own
        for token in (*MARKERS["smollm2"], "<tool_call>", "</tool_response>"):
            ids = tokenizer.encode_context(episode_with(place, token, protocol).transcript)
            assert controls(tokenizer, ids) == controls(tokenizer, plain), (place, token)


def test_the_template_around_a_question_is_trusted(bpe: PreTrainedTokenizerFast) -> None:
    """A negative control: the same token in the template does become a special token."""
    made = tokenizer_of("byte-level", "smollm2", bpe)
    tokenizer = SegmentTokenizer(made)
    protocol = replace(PROTOCOLS["refine-bare"], prompt="<|im_start|>user\n{question}<|im_end|>\n")
    ids = tokenizer.encode_context((protocol.render_prompt("Which <file_sep> ?"),))
    names = [made.convert_ids_to_tokens(i) for i in controls(tokenizer, ids)]
    assert names == ["<|im_start|>", "<|im_end|>"]
    trusted = tokenizer.encode_context((Segment("Which <file_sep> ?", "system"),))
    assert controls(tokenizer, trusted) == {made.convert_tokens_to_ids("<file_sep>"): 1}


def test_a_query_that_follows_a_thought_is_scored_without_special_tokens(
    bpe: PreTrainedTokenizerFast,
) -> None:
    tokenizer = SegmentTokenizer(tokenizer_of("byte-level", "smollm2", bpe))
    episode = episode_with("refinement", "<file_sep>", PROTOCOLS["refine"])
    scorer = FakeScorer()
    settle_enabling([episode], scorer, InformationGain(added_only=False))
    for context, query in scorer.calls[0]:
        assert "<file_sep>" in context[-1].text
        assert not controls(tokenizer, tokenizer.encode_scored(context, query)[0])


SPECIAL = sorted({token for tokens in MARKERS.values() for token in tokens})


class Text:
    """A tokenizer that nobody asks for ids."""

    control_tokens = ("<custom_one>", "@@turn@@")

    def encode_context(self, segments: Context) -> list[int]:
        raise AssertionError

    def decode(self, ids: list[int]) -> str:
        raise AssertionError


def agent(protocol: TagProtocol, tokenizer: Any = None) -> OpenAIAgent:
    made: Any = object.__new__(OpenAIAgent)
    object.__setattr__(made, "protocol", protocol)
    object.__setattr__(made, "tokenizer", tokenizer)
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize("place", PLACES)
def test_servers_that_make_the_tokens_get_none_whole(place: str) -> None:
    protocol = PROTOCOLS["refine"]
    one, known = agent(protocol), agent(protocol, Text())
    for token in (*SPECIAL, *Text.control_tokens):
        if token in ("<think>", "</think>") and place == "refinement":
            continue  # the grammar's own, which the policy may write
        episode = episode_with(place, f"a {token}{token} b", protocol)
        told = [m["content"] for m in messages(episode, known._text)]
        if token in SPECIAL:
            told += [m["content"] for m in messages(episode, one._text)]
            told.append(str(one._prompt(episode)))
        for text in told:
            assert token not in text.replace("<think> and </think>", "").replace(
                "<think> and", ""
            ), (place, token)


def test_what_the_system_wrote_and_the_grammar_allows_is_left_alone() -> None:
    protocol = replace(PROTOCOLS["refine"], prompt="<s>[INST] {question} [/INST]")
    episode = episode_with("question", "[INST]", protocol)
    prompt = str(agent(protocol)._prompt(episode))
    assert prompt.startswith("<s>[INST] Which [ INST] ? [/INST]")
    turn = Segment("<think> so </think> </s>", "policy")
    assert agent(protocol)._text(turn) == "<think> so </think> ‹/s>"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*SPECIAL, "<", ">", "|", "s", "a ", "[", "\u200b", "＜", "｜"])))
def test_nothing_is_left_however_they_are_joined(pieces: list[str]) -> None:
    text = break_up("".join(pieces))
    assert break_up(text) == text
    assert not [token for token in SPECIAL if token in text]


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_other_text_stays_as_it_is(text: str) -> None:
    bare = re.sub(r"[<\[＜［]", "", text)
    assert break_up(bare) == bare


def test_sampled_ids_are_never_made_again(bpe: PreTrainedTokenizerFast) -> None:
    tokenizer = SegmentTokenizer(tokenizer_of("byte-level", "smollm2", bpe))
    ids = [tokenizer.tokenizer.convert_tokens_to_ids("<file_sep>"), 5]
    turn = Completion.from_tokens(ids, None, tokenizer.decode)
    assert tokenizer.encode_segment(Segment(str(turn), "policy", turn.token_ids)) == ids
