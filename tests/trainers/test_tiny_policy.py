"""The shipped policy's vocabulary and shape."""

from __future__ import annotations

import re

import pytest
import torch

from agents.loading import CHECKOUT
from agents.tokenization import SegmentTokenizer
from igsearch_env.data.world import World
from trainers.warm_start.tiny_policy import END, PROTOCOL, build_model, build_tokenizer, vocabulary

SHIPPED = CHECKOUT / "agents/world-tiny"


def pieces(tokenizer: SegmentTokenizer, text: str) -> list[str]:
    ids = tokenizer.encode_answer("", text)[1]
    found = [tokenizer.decode([token]) for token in ids]
    assert "".join(found) == text
    return found


def test_every_entry_is_one_token(tokenizer: SegmentTokenizer) -> None:
    entries = vocabulary()
    assert len(entries) == len(set(entries)) > 300
    assert [entry for entry in entries if pieces(tokenizer, entry) != [entry]] == []


@pytest.mark.parametrize(("seed", "people"), [(0, 40), (11, 60)])
def test_no_word_of_a_world_is_split(tokenizer: SegmentTokenizer, seed: int, people: int) -> None:
    """Passages, questions and what is written about them; a world of its own seed and size."""
    world = World.generate(seed=seed, people=people)
    for start in range(0, len(world.documents), 50):
        text = PROTOCOL.render_documents(world.documents[start : start + 50]).text
        body = re.sub(r"^\n<documents>\n|\n</documents>\n$", "", text)
        assert "<" not in body
        found = pieces(tokenizer, body)
        assert [piece.strip() for piece in found if piece != "\n"] == body.split()
    for question in (*world.train_questions[::5], *world.test_questions[::5]):
        prompt = PROTOCOL.render_prompt(question.text).text
        assert [p.strip() for p in pieces(tokenizer, prompt)[:-1]] == prompt.split()
        chain = world.chains[question.id]
        answer = f"<answer> {question.golden_answers[0]} </answer>"
        query = f"<search> {chain[0].subject.name} {chain[0].relation.keyword} </search>"
        for turn, inside in ((answer, question.golden_answers[0]), (query, query[9:-10])):
            assert [p.strip() for p in pieces(tokenizer, turn)[2:-3]] == inside.split()


def test_a_big_world_has_names_of_the_same_words(tokenizer: SegmentTokenizer) -> None:
    world = World.generate(seed=1, people=6000, questions_per_hop=10)
    names = [entity.name for group in world.entities.values() for entity in group]
    assert any(len(name.split()) == 3 for name in names)
    every = " " + " ".join(names)
    assert [piece.strip() for piece in pieces(tokenizer, every)] == every.split()


def test_what_the_environment_says_is_short_too(tokenizer: SegmentTokenizer) -> None:
    said = [PROTOCOL.failure, PROTOCOL.render_documents(()).text]
    for reason in ("no complete action", "no searches left", "empty query", "empty answer"):
        said.append(PROTOCOL.render_correction(reason).text)
    for text in said:
        words = [piece.strip() for piece in pieces(tokenizer, text) if piece.strip()]
        assert set(words) <= {entry.strip() for entry in vocabulary()}


def test_the_tags_do_not_swallow_the_query(tokenizer: SegmentTokenizer) -> None:
    """A token that straddled a tag would belong to it, and its part of the query get no gain."""
    assert pieces(tokenizer, "<search> Ashby home </search>") == [
        "<search", ">", " Ashby", " home", " </", "search", ">"
    ]  # fmt: skip
    assert PROTOCOL.name == "refine-bare"


def test_any_text_can_be_written(tokenizer: SegmentTokenizer) -> None:
    text = "Zürich 日本 \t <x> 🙂"
    assert tokenizer.decode(tokenizer.encode_answer("", text)[1]) == text
    assert tokenizer.tokenizer.eos_token == tokenizer.tokenizer.pad_token == END


def test_the_seed_decides_the_weights() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, same, other = build_model(3, layers=1), build_model(3, layers=1), build_model(4, layers=1)
    assert torch.equal(torch.get_rng_state(), state)
    names = [name for name, _ in one.named_parameters()]
    left, right, third = (dict(model.named_parameters()) for model in (one, same, other))
    assert all(torch.equal(left[name], right[name]) for name in names)
    assert not torch.equal(left[names[0]], third[names[0]])


def test_the_model_fits_the_tokenizer(tokenizer: SegmentTokenizer) -> None:
    model = build_model(0, layers=2, hidden=64)
    tokenizer.check_fits(model)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.num_hidden_layers == 2
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="agents/world-tiny is not there yet")
def test_the_shipped_policy_is_small_and_of_this_vocabulary() -> None:
    from agents.transformers_policy import TransformersPolicy

    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    policy = TransformersPolicy.from_pretrained(SHIPPED, PROTOCOL)
    assert policy.tokenizer.tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert all(torch.isfinite(value).all() for value in policy.model.state_dict().values())
