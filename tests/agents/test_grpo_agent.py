"""The agent: it acts, judges its own searches and assigns credit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agents.grpo_agent import GRPOAgent
from agents.scoring.one_by_one import OneByOneScorer
from agents.tokenization import SegmentTokenizer
from agents.transformers_policy import TransformersPolicy
from igsearch_env.completion import Completion
from igsearch_env.credit import GRPO, IGPO, PBSD, IGPOWithIGSearch, IGSearch
from igsearch_env.episode import Document, Episode, Evidence, Question, Segment
from igsearch_env.gain.information_gain import InformationGain
from igsearch_env.gain.shaping import Shaping
from igsearch_env.protocol.tags import TagProtocol
from igsearch_env.turn import SearchResult, TurnRules

MakeModel = Callable[..., PreTrainedModel]
PROTOCOL = TagProtocol(name="plain", prompt="{question}")
GAIN = InformationGain(PROTOCOL, "documents", floor=None)
LINEAR = Shaping(dead_zone=0.0, clip=None)


def episode_of(tokenizer: PreTrainedTokenizerFast, outcome: float, *queries: str) -> Episode:
    """Searches with two counterfactuals each, and an answer; tokens as a policy would have them."""
    rules = TurnRules(PROTOCOL)
    episode = rules.begin(Question("q", "who wrote the book of sand", ("Borges", "lima")))
    other = Evidence((Document("o", "", "cat dog river"),), Segment("", "policy", ()), "o", "o?")
    drawn = (other, replace(other, documents=(Document("p", "", "Zürich Kōbe"),)))
    found = SearchResult((Document("d", "", "sand Borges wrote"),), counterfactuals=drawn)
    searches = [f"<search> {query} </search>" for query in queries or ("capital of peru",)]
    for text in (*searches, "<answer> lima </answer>"):
        segments = SegmentTokenizer(tokenizer)
        ids = segments.encode_answer("", text)[1]
        turn = Completion.from_tokens(ids, [-1.0] * len(ids), segments.decode)
        episode = rules.read(episode, turn).extend(episode, rules, found)
    steps = (*episode.steps[:-1], replace(episode.steps[-1], reward=outcome))
    return replace(episode, steps=steps, outcome=outcome, em=outcome, f1=outcome)


@pytest.fixture
def policy(make_model: MakeModel, bpe: PreTrainedTokenizerFast) -> TransformersPolicy:
    return TransformersPolicy(make_model("qwen2", len(bpe)), bpe, PROTOCOL, max_new_tokens=6)


def test_it_acts_with_its_policy(policy: TransformersPolicy, bpe: PreTrainedTokenizerFast) -> None:
    agent = GRPOAgent(policy, GAIN, IGSearch())
    episodes = [replace(episode_of(bpe, 0.0), steps=(), terminated=False)]
    again = TransformersPolicy(policy.model, bpe, PROTOCOL, max_new_tokens=6)
    assert agent.act(episodes) == again.act(episodes)


def test_hindsight_is_that_of_whole_sequences_run_one_by_one(
    policy: TransformersPolicy, bpe: PreTrainedTokenizerFast
) -> None:
    tokenizer = SegmentTokenizer(bpe)
    episode = episode_of(bpe, 1.0, "river", "book of sand")
    (settled,) = GRPOAgent(policy, GAIN, PBSD()).settle([episode])
    told = Segment("The answer to the question below is: Borges\n\n", "document")
    for index, step in enumerate(settled.steps):
        turn = tokenizer.encode_answer("", step.turn.text)[1]
        means = []
        for before in ((told,), ()):
            context = tokenizer.encode_context((*before, *episode.context_before(index)))
            with torch.no_grad():
                logits = policy.model(torch.tensor([[*context, *turn]])).logits[0]
            rows = logits[len(context) - 1 : -1].log_softmax(-1)
            means.append(
                float(np.mean([float(row[id_]) for row, id_ in zip(rows, turn, strict=True)]))
            )
        assert step.hindsight_shift == pytest.approx(means[0] - means[1], abs=1e-4)
        assert abs(means[0] - means[1]) > 1e-3


def test_gains_are_those_of_its_present_weights(
    policy: TransformersPolicy, bpe: PreTrainedTokenizerFast
) -> None:
    agent = GRPOAgent(policy, GAIN, IGSearch())
    episodes = [episode_of(bpe, 1.0), episode_of(bpe, 0.0, "river")]
    gains = []
    for _ in range(2):
        expected = GAIN.settle(episodes, OneByOneScorer(policy.model, bpe))
        found = agent.settle(episodes)
        for one, other in zip(found, expected, strict=True):
            assert one.information_gains == pytest.approx(other.information_gains, abs=1e-4)
            assert len(one.steps[0].baseline_log_probs or ()) == 2
        gains.append(found[0].information_gains[0])
        assert [episode.information_gains for episode in episodes] == [(None,)] * 2
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.mul_(0.8)
    assert gains[0] is not None
    assert gains[1] is not None
    assert abs(gains[0] - gains[1]) > 1e-3
    assert all(parameter.grad is None for parameter in policy.model.parameters())


@pytest.mark.parametrize(("credit", "compared"), [(IGPO(), False), (IGPOWithIGSearch(), True)])
def test_beliefs_are_settled_for_methods_that_look_at_them(
    policy: TransformersPolicy, bpe: PreTrainedTokenizerFast, credit: IGPO, compared: bool
) -> None:
    agent = GRPOAgent(policy, GAIN, credit)
    assert policy.memory.finished_tokens > 0  # what was sampled need not be run again
    episodes = [episode_of(bpe, 1.0), episode_of(bpe, 0.0, "river")]
    for episode in agent.settle(episodes):
        assert episode.prior_log_prob is not None
        assert episode.searches[0].log_prob is not None
        assert (episode.information_gains[0] is not None) == compared
    assert all(e.prior_log_prob is None for e in GRPOAgent(policy, GAIN, GRPO()).settle(episodes))


def test_credit_lands_on_the_tokens_of_the_query(
    policy: TransformersPolicy, bpe: PreTrainedTokenizerFast
) -> None:
    agent = GRPOAgent(policy, GAIN, IGSearch(alpha=0.5, shaping=LINEAR))
    episodes = agent.settle([episode_of(bpe, 1.0), episode_of(bpe, 0.0, "river")])
    outcome = [1 / np.sqrt(2), -1 / np.sqrt(2)]
    for episode, advantage, base in zip(episodes, agent.advantages(episodes), outcome, strict=True):
        (gain,) = episode.information_gains
        assert gain is not None
        query = episode.searches[0].query_tokens
        text = policy.tokenizer.decode((episode.steps[0].turn.token_ids or ())[query])
        assert text.strip() == episode.searches[0].query
        expected = np.full(episode.policy_tokens, base)
        expected[query] += 0.5 * gain / (query.stop - query.start)
        assert advantage == pytest.approx(expected, rel=1e-5)


def test_groups_that_a_method_leaves_out_are_not_scored(
    policy: TransformersPolicy, bpe: PreTrainedTokenizerFast
) -> None:
    agent = GRPOAgent(policy, GAIN, IGSearch(groups="all_fail"))
    failed, right = episode_of(bpe, 0.0), replace(episode_of(bpe, 1.0, "river"), group_id="other")
    settled = agent.settle([right, failed])
    assert settled[0] == right
    assert settled[1].information_gains[0] is not None
    everything = GRPOAgent(policy, GAIN, IGSearch()).settle([right, failed])
    assert everything[0].information_gains[0] is not None
    for one, other in zip(agent.advantages(settled), agent.advantages(everything), strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_searches_that_a_method_leaves_out_are_not_scored(
    policy: TransformersPolicy, bpe: PreTrainedTokenizerFast
) -> None:
    agent = GRPOAgent(policy, GAIN, IGSearch(skip_last=True))
    episodes = [episode_of(bpe, 0.0, "river", "capital of peru"), episode_of(bpe, 1.0)]
    settled = agent.settle(episodes)
    assert [[gain is not None for gain in e.information_gains] for e in settled] == [
        [True, False],
        [False],
    ]
    everything = GRPOAgent(policy, GAIN, IGSearch()).settle(episodes)
    for one, other in zip(agent.advantages(settled), agent.advantages(everything), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_plain_function_is_refused(policy: TransformersPolicy) -> None:
    with pytest.raises(TypeError, match=r"credit must be a CreditAssignment, such as make_credit"):
        GRPOAgent(policy, GAIN, lambda episodes: [])  # type: ignore[arg-type]


def test_its_scorer_is_over_the_weights_of_the_policy(policy: TransformersPolicy) -> None:
    agent = GRPOAgent(policy, GAIN, IGSearch())
    assert agent.scorer.model is policy.model
    assert agent.scorer.tokenizer is policy.tokenizer
