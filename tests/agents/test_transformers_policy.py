from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from agents.grpo_agent import GRPOAgent
from agents.loading import load_policy
from agents.sampling import sampler
from agents.scoring.trie_scorer import TrieScorer
from agents.transformers_policy import TransformersPolicy
from igsearch_env.checkpoint_settings import RULES, CheckpointSettings
from igsearch_env.completion import Completion
from igsearch_env.credit import make_credit
from igsearch_env.episode import Document, Episode, Question, Segment, Step
from igsearch_env.protocol.tags import PROTOCOLS, TagProtocol
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.settings import make_engine
from igsearch_env.testing import check_agent
from trainers.local.token_batch import TokenBatch, policy_log_probs

MakeModel = Callable[..., PreTrainedModel]
PROTOCOL = TagProtocol(name="plain", prompt="{question}")
QUESTIONS = ["who", "who wrote the book of sand", "capital of peru", "the river", "lima dog cat"]


def episodes_of(questions: Sequence[str] = QUESTIONS) -> list[Episode]:
    return [
        Episode(Question(str(number), text, ("lima",)), PROTOCOL.render_prompt(text))
        for number, text in enumerate(questions)
    ]


def after(episode: Episode, turn: Completion, observation: str) -> Episode:
    """The episode once the environment has answered a turn."""
    step = Step(
        action="invalid",
        turn=Segment(str(turn), "policy", turn.token_ids),
        observation=Segment(observation, "document"),
        policy_tokens=slice(0, 0),
        query_tokens=slice(0, 0),
    )
    return replace(episode, steps=(*episode.steps, step))


def play(policy: TransformersPolicy, turns: int) -> list[list[Completion]]:
    episodes, played = episodes_of(), []
    for turn in range(turns):
        completions = policy.act(episodes)
        played.append(completions)
        documents = ["lima " * (3 * turn + number) for number in range(len(episodes))]
        triples = zip(episodes, completions, documents, strict=True)
        episodes = [after(*triple) for triple in triples]
    return played


def full_log_probs(
    policy: TransformersPolicy, episode: Episode, turn: Completion, temperature: float
) -> torch.Tensor:
    """Log-probabilities of a turn by one forward pass over everything."""
    assert turn.token_ids is not None
    context = policy.tokenizer.encode_context(episode.transcript)
    ids = torch.tensor([[*context, *turn.token_ids]])
    with torch.no_grad():
        logits = policy.model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 : -1]
    chosen = torch.tensor(turn.token_ids)[:, None]
    return torch.log_softmax(logits / temperature, dim=-1).gather(1, chosen)[:, 0]


@pytest.fixture
def chain(make_model: MakeModel, wordlevel: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A real model whose next token follows from the last one alone."""
    model = make_model("llama", len(wordlevel), tie_word_embeddings=False)
    chains = [
        "cat <search> lima </search> dog dog",
        "who <answer> peru </answer>",
        "book sand [EOS]",
        "river river",
    ]
    pairs = [pair for words in chains for pair in pairwise(words.split())]
    vocabulary = wordlevel.get_vocab()
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                weight.zero_()
        weights["model.embed_tokens.weight"].copy_(torch.eye(len(wordlevel), 32))
        for token, successor in pairs:
            weights["lm_head.weight"][vocabulary[successor], vocabulary[token]] = 20.0
    return model


@pytest.mark.parametrize("batch_size", [1, 3, 128])
def test_turns_end_at_stop_strings_end_tokens_and_the_limit(
    chain: PreTrainedModel, wordlevel: PreTrainedTokenizerFast, batch_size: int
) -> None:
    policy = TransformersPolicy(chain, wordlevel, PROTOCOL, max_new_tokens=6, batch_size=batch_size)
    turns = policy.act(episodes_of(["cat", "the dog river", "who", "of the book", "capital cat"]))
    assert turns == [
        "<search> lima </search>",
        "river river river river river river",
        "<answer> peru </answer>",
        "sand [EOS]",
        "<search> lima </search>",
    ]
    assert [turn.stop_reason for turn in turns] == ["stop", "length", "stop", "end", "stop"]
    assert all(turn.log_probs == pytest.approx([0.0] * 6, abs=1e-4) for turn in turns[1:2])
    assert wordlevel.convert_ids_to_tokens(list(turns[3].token_ids or ())) == ["sand", "[EOS]"]


def test_rows_keep_their_places_when_the_batch_shrinks_twice(
    chain: PreTrainedModel, wordlevel: PreTrainedTokenizerFast
) -> None:
    policy = TransformersPolicy(chain, wordlevel, PROTOCOL, max_new_tokens=6)
    # They end after 2, 3 and 6 tokens: most rows are over after 2, and most of the rest after 3.
    turns = policy.act(episodes_of([*["of the book"] * 5, "who", "the dog river", "who"]))
    answer = "<answer> peru </answer>"
    assert turns == [*["sand [EOS]"] * 5, answer, "river river river river river river", answer]


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_the_sampling_distribution(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast, family: str, temperature: float
) -> None:
    model = make_model(family, len(bpe))
    policy = TransformersPolicy(
        model, bpe, PROTOCOL, temperature=temperature, max_new_tokens=8, batch_size=4
    )
    episodes = episodes_of()
    for _ in range(3):  # from the second turn on, keys and values are continued
        turns = policy.act(episodes)
        for episode, turn in zip(episodes, turns, strict=True):
            assert turn.log_probs is not None
            expected = full_log_probs(policy, episode, turn, temperature)
            assert torch.tensor(turn.log_probs).sub(expected).abs().max() < 1e-4
        assert len(policy.memory) == len(episodes)
        episodes = [after(*pair, "lima 日本") for pair in zip(episodes, turns, strict=True)]


def test_greedy_log_probs_are_at_temperature_one(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast
) -> None:
    policy = TransformersPolicy(
        make_model("qwen2", len(bpe)), bpe, PROTOCOL, greedy=True, temperature=0.5
    )
    (episode,) = episodes_of(["who"])
    (turn,) = policy.act([episode])
    assert turn.log_probs is not None
    expected = full_log_probs(policy, episode, turn, 1.0)
    assert torch.tensor(turn.log_probs).sub(expected).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_neither_the_batch_nor_the_memory_changes_greedy_turns(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast, family: str
) -> None:
    model = make_model(family, len(bpe))
    played = []
    for batch_size in (1, 2, 128):
        policy = TransformersPolicy(
            model, bpe, PROTOCOL, greedy=True, max_new_tokens=12, batch_size=batch_size
        )
        played.append(play(policy, 3))
    episodes = episodes_of()
    alone = []
    for turn in range(3):  # a new policy, without memory, for every turn of every episode
        fresh = [
            TransformersPolicy(model, bpe, PROTOCOL, greedy=True, max_new_tokens=12).act([one])[0]
            for one in episodes
        ]
        alone.append(fresh)
        documents = ["lima " * (3 * turn + number) for number in range(len(episodes))]
        episodes = [after(*triple) for triple in zip(episodes, fresh, documents, strict=True)]
    assert played == [alone, alone, alone]


@pytest.mark.parametrize("padding", [0, 3, 1000])
@pytest.mark.parametrize("family", ["qwen3", "llama", "mistral"])
def test_long_contexts_are_read_in_parts(
    make_model: MakeModel,
    bpe: PreTrainedTokenizerFast,
    family: str,
    padding: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(family, len(bpe))

    def played() -> tuple[list[list[Completion]], int]:
        policy = TransformersPolicy(model, bpe, PROTOCOL, max_new_tokens=5, seed=3)
        sizes: list[int] = []
        handle = model.get_input_embeddings().register_forward_hook(
            lambda module, inputs, output: sizes.append(output.shape[:2].numel())
        )
        turns = play(policy, 3)
        handle.remove()
        return turns, max(sizes)

    whole, largest = played()
    monkeypatch.setattr(sampler, "READ_AT_ONCE", 10 * model.config.intermediate_size)
    monkeypatch.setattr(sampler, "PADDING", padding)
    parts, largest_part = played()
    assert (largest > 50, largest_part) == (True, 10)
    assert parts == whole
    for one, other in zip(parts, whole, strict=True):
        for few, many in zip(one, other, strict=True):
            assert few.log_probs == pytest.approx(many.log_probs, abs=1e-5)


def test_angles_that_depend_on_the_length_are_not_read_in_parts(
    bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LongRoPE turns all positions by other angles once a pass goes beyond the short length."""
    torch.manual_seed(0)
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 16.0]}
    config = Phi3Config(
        vocab_size=len(bpe),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        original_max_position_embeddings=16,
        initializer_range=0.3,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "partial_rotary_factor": 1.0,
            "original_max_position_embeddings": 16,
            **factors,
        },
        pad_token_id=0,
    )
    policy = TransformersPolicy(Phi3ForCausalLM(config).eval(), bpe, PROTOCOL, max_new_tokens=3)
    monkeypatch.setattr(sampler, "READ_AT_ONCE", 8 * 64)
    (episode,) = episodes_of(["lima dog cat " * 20])
    (turn,) = policy.act([episode])
    expected = full_log_probs(policy, episode, turn, 1.0).tolist()
    assert turn.log_probs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("new", "limit", "padding", "groups"),
    [
        ([5], 1, 0, [[0]]),
        ([5, 5, 5], 100, 0, [[0, 1, 2]]),
        ([1, 2, 9, 10], 100, 2, [[0, 1], [2, 3]]),
        ([1, 2, 9, 10], 100, 0, [[0], [1], [2], [3]]),
        ([1, 2, 9, 10], 100, 18, [[0, 1, 2, 3]]),
        ([1, 2, 9, 10], 100, 17, [[0, 1, 2], [3]]),
        ([4, 4, 4, 4], 8, 100, [[0, 1], [2, 3]]),
        ([9, 1, 2], 100, 7, [[1, 2], [0]]),
    ],
)
def test_rows_with_about_as_much_to_read_go_together(
    monkeypatch: pytest.MonkeyPatch,
    new: list[int],
    limit: int,
    padding: int,
    groups: list[list[int]],
) -> None:
    monkeypatch.setattr(sampler, "PADDING", padding)
    assert sampler._alike(new, limit) == groups


def test_layers_may_differ_in_width() -> None:
    config = SimpleNamespace(get_text_config=lambda decoder: decoded)
    decoded = SimpleNamespace(intermediate_size=[1 << 18, 1 << 20, 1 << 19])
    model: Any = SimpleNamespace(config=config, device=torch.device("cpu"))
    assert sampler._tokens_at_once(model) == 8
    decoded.intermediate_size = None
    assert sampler._tokens_at_once(model) is None, "nothing is known"
    model.device = torch.device("cuda")
    decoded.intermediate_size = 1 << 20
    assert sampler._tokens_at_once(model) is None


def test_the_memory_keeps_no_more_than_it_is_allowed_and_changes_nothing(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast
) -> None:
    options = {"greedy": True, "max_new_tokens": 12, "batch_size": 2}
    free = TransformersPolicy(make_model("llama", len(bpe)), bpe, PROTOCOL, **options)
    expected = play(free, 3)
    assert len(free.memory) == len(QUESTIONS)

    def positions(policy: TransformersPolicy) -> int:
        buffers = [prefix.layers[0][0] for _, prefix in policy.memory.held()]
        sizes = {keys.data_ptr(): keys.shape[0] * keys.shape[2] for keys in buffers}
        return sum(sizes.values())

    for limit in (0, 1, positions(free) // 2, positions(free)):
        policy = TransformersPolicy(free.model, bpe, PROTOCOL, **options)
        policy.memory.max_tokens = limit
        assert policy.fresh(0).memory.max_tokens == limit
        assert play(policy, 3) == expected
        assert positions(policy) <= limit
        assert len(policy.memory) == {0: 0, 1: 0, positions(free): len(QUESTIONS)}.get(
            limit, len(policy.memory)
        )


def test_a_window_is_respected_when_rows_are_padded(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast
) -> None:
    model = make_model("mistral", len(bpe), sliding_window=6)
    policy = TransformersPolicy(model, bpe, PROTOCOL, max_new_tokens=8)
    episodes = episodes_of()
    for _ in range(2):
        turns = policy.act(episodes)
        for episode, turn in zip(episodes, turns, strict=True):
            expected = full_log_probs(policy, episode, turn, 1.0)
            assert torch.tensor(turn.log_probs).sub(expected).abs().max() < 1e-4
        assert len(policy.memory) == 0
        episodes = [after(*pair, "lima") for pair in zip(episodes, turns, strict=True)]


def test_the_seed_decides(make_model: MakeModel, bpe: PreTrainedTokenizerFast) -> None:
    model = make_model("qwen2", len(bpe))
    torch.manual_seed(1)
    first = play(TransformersPolicy(model, bpe, PROTOCOL, seed=3), 2)
    torch.manual_seed(2)  # torch's own generator plays no part
    state = torch.get_rng_state()
    assert play(TransformersPolicy(model, bpe, PROTOCOL, seed=3), 2) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert play(TransformersPolicy(model, bpe, PROTOCOL, seed=4), 2) != first


def test_a_saved_state_goes_on_alike(make_model: MakeModel, bpe: PreTrainedTokenizerFast) -> None:
    model = make_model("qwen2", len(bpe))
    policy = TransformersPolicy(model, bpe, PROTOCOL, seed=3)
    play(policy, 1)
    policy.overflows = 5
    state = policy.state_dict()
    expected = play(policy, 2)
    other = TransformersPolicy(model, bpe, PROTOCOL, seed=9)
    other.load_state_dict(state)
    assert play(other, 2) == expected
    assert other.overflows == 5


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW])
def test_new_weights_empty_the_memory(
    make_model: MakeModel,
    bpe: PreTrainedTokenizerFast,
    optimiser: type[torch.optim.SGD | torch.optim.AdamW],
) -> None:
    model = make_model("qwen2", len(bpe))
    policy = TransformersPolicy(model, bpe, PROTOCOL, greedy=True, max_new_tokens=8)
    episodes = episodes_of()
    turns = policy.act(episodes)
    episodes = [after(*pair, "lima") for pair in zip(episodes, turns, strict=True)]
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimiser(model.parameters(), lr=0.05).step()
    fresh = TransformersPolicy(model, bpe, PROTOCOL, greedy=True, max_new_tokens=8)
    for episode, turn in zip(episodes, policy.act(episodes), strict=True):
        expected = full_log_probs(fresh, episode, turn, 1.0)
        assert torch.tensor(turn.log_probs).sub(expected).abs().max() < 1e-4


def test_keys_of_old_weights_would_be_noticed(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the test above."""
    model = make_model("qwen2", len(bpe))
    policy = TransformersPolicy(model, bpe, PROTOCOL, greedy=True, max_new_tokens=8)
    monkeypatch.setattr(policy.memory, "_version", lambda: ())
    episodes = episodes_of(["who wrote the book of sand"])
    episodes = [after(episodes[0], policy.act(episodes)[0], "lima")]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    (turn,) = policy.act(episodes)
    expected = full_log_probs(policy, episodes[0], turn, 1.0)
    assert torch.tensor(turn.log_probs).sub(expected).abs().max() > 0.01


def test_what_was_run_is_not_run_again(make_model: MakeModel, bpe: PreTrainedTokenizerFast) -> None:
    policy = TransformersPolicy(make_model("qwen2", len(bpe)), bpe, PROTOCOL, max_new_tokens=8)
    widths: list[int] = []
    policy.model.register_forward_pre_hook(
        lambda module, args, inputs: widths.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    episodes = episodes_of()
    turns = policy.act(episodes)
    episodes = [after(*pair, "lima") for pair in zip(episodes, turns, strict=True)]
    widths.clear()
    policy.act(episodes)
    assert widths[0] == 1 + len(bpe("lima")["input_ids"])  # the last sampled token was not run
    policy.memory.clear()
    widths.clear()
    policy.act(episodes)
    assert widths[0] == max(
        len(policy.tokenizer.encode_context(episode.transcript)) for episode in episodes
    )


def test_a_turn_that_was_cut_short_is_read_anew(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast
) -> None:
    policy = TransformersPolicy(make_model("llama", len(bpe)), bpe, PROTOCOL, max_new_tokens=8)
    episodes = episodes_of()
    heads = []
    for episode, turn in zip(episodes, policy.act(episodes), strict=True):
        assert turn.token_ids is not None
        kept = Completion.from_tokens(turn.token_ids[:3], None, policy.tokenizer.decode)
        heads.append(after(episode, kept, "lima"))
    for episode, turn in zip(heads, policy.act(heads), strict=True):
        expected = full_log_probs(policy, episode, turn, 1.0)
        assert torch.tensor(turn.log_probs).sub(expected).abs().max() < 1e-4


def test_what_does_not_fit_is_an_empty_turn(
    make_model: MakeModel, wordlevel: PreTrainedTokenizerFast
) -> None:
    model = make_model("llama", len(wordlevel), max_position_embeddings=10)
    policy = TransformersPolicy(model, wordlevel, PROTOCOL, max_new_tokens=6)
    lengths = (2, 7, 10, 12)
    turns = policy.act(episodes_of([" ".join(["river"] * length) for length in lengths]))
    sizes = [len(turn.token_ids or ()) for turn in turns]
    assert sizes[1] <= 3
    assert sizes[2:] == [0, 0]
    assert turns[2] == ""
    assert [turn.stop_reason for turn in turns[2:]] == ["no_room", "no_room"]
    assert policy.overflows == 2
    assert policy.act([]) == []


def test_dropout_is_off_and_the_mode_is_restored(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast
) -> None:
    model = make_model("qwen2", len(bpe), attention_dropout=0.5)
    expected = play(TransformersPolicy(model, bpe, PROTOCOL, greedy=True), 1)
    model.train()
    assert play(TransformersPolicy(model, bpe, PROTOCOL, greedy=True), 1) == expected
    assert all(module.training for module in model.modules())


def test_ids_beyond_the_tokenizer_are_never_sampled(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast
) -> None:
    model = make_model("llama", len(bpe) + 4_000)  # padded embeddings, likely to be drawn here
    policy = TransformersPolicy(model, bpe, PROTOCOL, max_new_tokens=10)
    episodes = episodes_of()
    batch: list[Episode] = []
    sampled: list[float] = []
    for episode, turn in zip(episodes, policy.act(episodes), strict=True):
        assert max(turn.token_ids or ()) < len(bpe)
        batch.append(after(episode, turn, "lima"))
        sampled += turn.log_probs or ()
    # The update has the same probabilities: those of the tokens that there are, which sum to 1.
    tokens = TokenBatch.from_episodes(batch, policy.tokenizer)
    known = policy.tokenizer.known_ids
    with torch.no_grad():
        again, _ = policy_log_probs(model, tokens, known_ids=known)
        everything, _ = policy_log_probs(model, tokens)
    torch.testing.assert_close(again, torch.tensor(sampled), atol=1e-4, rtol=1e-4)
    assert (everything < again - 0.1).all()


def test_checkpoints(make_model: MakeModel, bpe: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    policy = TransformersPolicy(make_model("qwen3", len(bpe)), bpe, PROTOCOL, greedy=True)
    policy.save_pretrained(tmp_path / "policy")
    loaded = TransformersPolicy.from_pretrained(tmp_path / "policy", PROTOCOL, greedy=True)
    assert play(loaded, 2) == play(policy, 2)
    policy.model.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="no tokenizer"):
        TransformersPolicy.from_pretrained(tmp_path / "bare", PROTOCOL)


@pytest.mark.parametrize("protocol", [PROTOCOL, PROTOCOLS["search-r1"]])
def test_a_checkpoint_knows_how_its_policy_writes(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast, tmp_path: Path, protocol: TagProtocol
) -> None:
    model = make_model("qwen3", len(bpe))
    TransformersPolicy(model, bpe, protocol, max_new_tokens=7).save_pretrained(tmp_path)
    loaded = TransformersPolicy.from_pretrained(tmp_path)
    assert (loaded.protocol, loaded.max_new_tokens) == (protocol, 7)
    told = TransformersPolicy.from_pretrained(tmp_path, "refine-bare", max_new_tokens=5)
    assert (told.protocol.name, told.max_new_tokens) == ("refine-bare", 5)
    (tmp_path / "igsearch.json").unlink()
    foreign = TransformersPolicy.from_pretrained(tmp_path)
    assert (foreign.protocol.name, foreign.max_new_tokens) == ("refine", 64)


def test_a_checkpoint_knows_the_environment_it_was_trained_in(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model, environment = (
        make_model("qwen3", len(bpe)),
        replace(RULES, top_k=1, max_attempts=2, floor=-4.0),
    )
    TransformersPolicy(model, bpe, "refine", trained_in=environment).save_pretrained(tmp_path)
    loaded = TransformersPolicy.from_pretrained(tmp_path)
    assert loaded.trained_in == environment
    loaded.save_pretrained(tmp_path / "again")
    assert CheckpointSettings.load(tmp_path / "again") == CheckpointSettings.load(tmp_path)
    told = TransformersPolicy.from_pretrained(tmp_path, trained_in=replace(RULES, top_k=2))
    assert told.trained_in == replace(RULES, top_k=2)
    part = {"protocol": "refine-bare", "trained_in": {"top_k": 1}}  # the rest has its defaults
    (tmp_path / "igsearch.json").write_text(json.dumps(part))
    assert CheckpointSettings.load(tmp_path).trained_in == replace(RULES, top_k=1)


@pytest.mark.parametrize(
    "content",
    [
        "not JSON",
        "[]",
        '{"protocol": "refined"}',
        '{"protocol": {"name": "x"}}',
        '{"protocol": 3}',
        '{"max_new_tokens": "many"}',
        '{"max_new_tokens": 0}',
        '{"temperature": 1.0}',
        '{"trained_in": {"top_k": 0}}',
        '{"trained_in": {"counterfactual": "nothing"}}',
        '{"trained_in": [3]}',
    ],
)
def test_damaged_settings_of_a_checkpoint(tmp_path: Path, content: str) -> None:
    (tmp_path / "igsearch.json").write_text(content)
    readable = content.startswith("{")
    said = (
        "cannot use .*igsearch.json.*import the file that registers"
        if readable
        else "correct it or remove it"
    )
    with pytest.raises(ValueError, match=said):
        CheckpointSettings.load(tmp_path)


def test_it_keeps_the_promises_of_an_agent(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast
) -> None:
    documents = [Document(f"d{i}", "Peru", f"Lima {i} .") for i in range(3)]
    asked = [Question(f"q{i}", f"what is {i} ?", ("lima",)) for i in range(3)]
    policy = TransformersPolicy(make_model("qwen3", len(bpe)), bpe, "refine", max_new_tokens=4)
    engine = make_engine(
        asked, BM25Retriever.build(documents), None, num_counterfactuals=0, max_searches=1
    )
    check_agent(policy, engine, episodes=3)
    check_agent(GRPOAgent(policy, engine.information_gain, make_credit("outcome")), engine)


def test_its_scorer_shares_weights_and_tokenizer(
    make_model: MakeModel, bpe: PreTrainedTokenizerFast
) -> None:
    policy = TransformersPolicy(make_model("qwen3", len(bpe)), bpe, "refine")
    scorer = policy.scorer()
    assert isinstance(scorer, TrieScorer)
    assert scorer.model is policy.model
    assert scorer.tokenizer is policy.tokenizer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_arguments_are_checked(
    make_model: MakeModel,
    bpe: PreTrainedTokenizerFast,
    options: dict[str, float],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        TransformersPolicy(make_model("llama", len(bpe)), bpe, PROTOCOL, **options)  # type: ignore[arg-type]


def test_a_turn_that_is_whole_at_its_limit_was_not_cut(
    chain: PreTrainedModel, wordlevel: PreTrainedTokenizerFast
) -> None:
    policy = TransformersPolicy(chain, wordlevel, PROTOCOL, max_new_tokens=2)
    turns = policy.act(episodes_of(["cat", "of the book"]))
    assert [turn.stop_reason for turn in turns] == ["length", "end"]
    policy = TransformersPolicy(chain, wordlevel, PROTOCOL, max_new_tokens=3)
    assert policy.act(episodes_of(["cat"]))[0].stop_reason == "stop"


def test_without_a_network_a_model_of_the_hub_is_not_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as free:  # an address where nobody listens
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(ValueError, match="the hub cannot be reached"),
    ):
        load_policy("nobody/nothing")
    assert "etry" not in caplog.text
