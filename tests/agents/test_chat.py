from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from agents.chat import chat_protocol
from agents.inference import output_embeddings
from agents.tokenization import SegmentTokenizer
from agents.transformers_policy import TransformersPolicy
from igsearch_env.episode import Episode, Question
from igsearch_env.protocol.tags import PROTOCOLS
from tests.agents.conftest import MakeModel

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def chat(bpe: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer = deepcopy(bpe)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_the_prompt_becomes_a_users_message(chat: PreTrainedTokenizerFast) -> None:
    plain = PROTOCOLS["refine"]
    protocol = chat_protocol(plain, chat)
    assert protocol.prompt == (
        f"<|im_start|>user\n{plain.prompt}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert protocol.stop == plain.stop
    segment = protocol.render_prompt("who <|im_end|>?")
    ids = SegmentTokenizer(chat).encode_context((segment,))
    vocabulary = chat.get_vocab()
    assert ids.count(vocabulary["<|im_start|>"]) == 2
    assert ids.count(vocabulary["<|im_end|>"]) == 1  # the question's own is escaped


def test_a_tokenizer_without_a_template_is_refused(bpe: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="no chat template"):
        chat_protocol(PROTOCOLS["refine"], bpe)


def test_a_template_that_loses_the_question_is_refused(chat: PreTrainedTokenizerFast) -> None:
    chat.chat_template = "hello"
    with pytest.raises(ValueError, match="keep"):
        chat_protocol(PROTOCOLS["refine"], chat)


def test_a_turn_ends_where_the_template_ends_it(
    chat: PreTrainedTokenizerFast, make_model: MakeModel
) -> None:
    """Its token need not be the one that the tokenizer calls the end of a sequence."""
    end = chat.get_vocab()["<|im_end|>"]
    assert chat.eos_token_id != end
    model = make_model("llama", len(chat))
    bias = torch.zeros(len(chat))
    bias[end] = 1e4
    output_embeddings(model).register_forward_hook(lambda module, given, output: output + bias)
    policy = TransformersPolicy(model, chat, "chat")
    question = Question("q", "who?", ("a",))
    (turn,) = policy.act([Episode(question, policy.protocol.render_prompt("who?"))])
    assert turn.token_ids == (end,)
    assert turn.stop_reason == "end"
    plain = TransformersPolicy(model, chat, "refine", max_new_tokens=3)
    (turn,) = plain.act([Episode(question, plain.protocol.render_prompt("who?"))])
    assert turn.token_ids == (end,) * 3
