"""What is sent to a model is what its own tokenizer makes of the same conversation."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from agents.chat import protocol_for
from agents.tokenization import SegmentTokenizer
from igsearch_env import Completion, Document
from igsearch_env.endpoint.agent import OpenAIAgent
from igsearch_env.episode import Context, Question, Segment
from igsearch_env.protocol.tags import PROTOCOLS
from igsearch_env.turn import SearchResult, TurnRules
from tests.agents.conftest import CORPUS, FastTokenizer
from trainers.local.token_batch import episode_tokens

CONTROL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = ["byte-level", "byte-level with BOS", "sentencepiece, always", "sentencepiece, first"]
RULES_OF = {name: name.partition(", ")[2] for name in FAMILIES}
FOUND = SearchResult((Document("d", "Köbe", "Kōbe is 日本, Zürich is not. Né"),))


def sentencepiece(scheme: str) -> PreTrainedTokenizerFast:
    """BPE over words that begin with a blank, unknown characters as bytes, as Llama 2's is.

    ``"always"`` puts a blank before every piece of text between control tokens, as a normaliser;
    ``"first"`` before the text alone.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    learner.train_from_iterator(
        CORPUS[:2], trainers.BpeTrainer(vocab_size=120, special_tokens=CONTROL)
    )
    model = json.loads(learner.to_str())["model"]
    vocabulary = model["vocab"]
    for number in range(256):
        vocabulary[f"<0x{number:02X}>"] = len(vocabulary)
    merges = [tuple(pair) for pair in model["merges"]]
    backend = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if scheme == "always":
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROL])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    made: PreTrainedTokenizerFast = FastTokenizer(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    made.chat_template = MISTRAL
    return made


def made(family: str, bpe: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    if RULES_OF[family]:
        return sentencepiece(RULES_OF[family])
    tokenizer: Any = deepcopy(bpe)
    tokenizer.chat_template = QWEN
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    if family == "byte-level with BOS":
        words = ["<|start_header_id|>", "<|end_header_id|>"]
        names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
        tokenizer.add_special_tokens({**names, "additional_special_tokens": words})
        bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos[0]} $A", special_tokens=[bos]
        )
        tokenizer.chat_template = LLAMA
    return tokenizer


@pytest.fixture(params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest, bpe: PreTrainedTokenizerFast) -> Any:
    return made(str(request.param), bpe)


def played(tokenizer: Any, name: str) -> Any:
    """An episode with a search, its turn tokenised as the model would write it."""
    segments = SegmentTokenizer(tokenizer)
    rules = TurnRules(protocol_for(name, tokenizer))
    episode = rules.begin(Question("q", "who wrote the book of Zürich 日本?", ("Borges",)))
    ids = segments.encode_context(episode.transcript)
    text = rules.protocol.write_search("café in Kōbe")
    turn = segments.encode_answer("", text, ids)[1]
    action = Completion.from_tokens(turn, None, segments.decode)
    return rules.read(episode, action).extend(episode, rules, FOUND)


def test_a_conversation_in_the_template(tokenizer: Any) -> None:
    episode = played(tokenizer, "chat")
    protocol = protocol_for("chat", tokenizer)
    plain = PROTOCOLS["refine"]
    found = plain.render_documents(FOUND.documents).text.strip()
    messages = [
        {"role": "user", "content": plain.prompt.replace("{question}", episode.question.text)},
        {"role": "assistant", "content": protocol.write_search("café in Kōbe")},
        {"role": "user", "content": found},
    ]
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    segments = SegmentTokenizer(tokenizer)
    assert segments.encode_context(episode.transcript) == whole
    # What the update runs, up to the last token of the policy, and what an endpoint is sent.
    assert (
        episode_tokens(episode, segments)[0] == whole[: len(episode_tokens(episode, segments)[0])]
    )
    agent: Any = object.__new__(OpenAIAgent)
    object.__setattr__(agent, "tokenizer", segments)
    assert agent._prompt(episode) == whole


def test_a_transcript_without_a_template(tokenizer: Any) -> None:
    episode = played(tokenizer, "refine")
    text = "".join(segment.text for segment in episode.transcript)
    ids = SegmentTokenizer(tokenizer).encode_context(episode.transcript)
    assert ids == tokenizer(text)["input_ids"]


def test_an_answer_is_scored_in_place(tokenizer: Any) -> None:
    for name in ("refine", "chat"):
        episode = played(tokenizer, name)
        opening = protocol_for(name, tokenizer).answer_opening
        context: Context = (*episode.transcript, Segment(opening, "system"))
        segments = SegmentTokenizer(tokenizer)
        ids, count = segments.encode_scored(context, " Kōbe café")
        before = segments.encode_context(episode.transcript)
        assert ids[: len(before)] == before
        assert segments.decode(ids[-count:]).strip() == "Kōbe café"
        text = "".join(segment.text for segment in context)
        assert ids == tokenizer(f"{text} Kōbe café")["input_ids"]


def test_markers_in_documents_stay_text(tokenizer: Any) -> None:
    segments = SegmentTokenizer(tokenizer)
    text = "a </s> [/INST] <|im_end|> <|eot_id|> b"
    ids = segments.encode_segment(Segment(text, "document"), [1])
    control = set(tokenizer.get_added_vocab().values()) - {tokenizer.unk_token_id}
    assert control.isdisjoint(ids)
    assert segments.decode(ids).strip() == text
