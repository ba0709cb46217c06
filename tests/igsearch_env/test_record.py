"""Records of episodes: JSON that reads back as the very same episode."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igsearch_env.baselines import make_scripted
from igsearch_env.completion import Completion
from igsearch_env.data.world import default_world
from igsearch_env.episode import Document, Episode, Evidence, Question, Segment, Step
from igsearch_env.gain.pool import EvidencePool
from igsearch_env.record import episode_from_record, episode_record, to_record
from igsearch_env.settings import make_engine
from igsearch_env.text import clean_text

text = st.text(st.characters(), max_size=8)  # lone surrogates included
words = text.filter(lambda value: bool(clean_text(value).strip()))
number = st.floats(allow_nan=False)
optional_number = st.none() | number


def tuples(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(of, max_size=3).map(tuple)


ids = tuples(st.integers(0, 200_000))
numbers = tuples(number)
spans = st.tuples(st.integers(0, 99), st.integers(0, 99))
slices = spans.map(lambda span: slice(*span))
documents = tuples(st.builds(Document, text, text, text, optional_number))
segments = st.builds(
    Segment, text, st.sampled_from(["policy", "document", "system"]), st.none() | ids
)
evidence = st.builds(Evidence, documents, segments, text, text)
questions = st.builds(
    Question,
    text,
    words,
    st.lists(words, min_size=1, max_size=3).map(tuple),
    text,
    st.none() | st.integers(1, 4),
    tuples(text),
    tuples(text),
)
steps = st.builds(
    Step,
    action=st.sampled_from(["search", "answer", "invalid"]),
    turn=segments,
    observation=st.none() | segments,
    policy_tokens=slices,
    query_tokens=slices,
    refinement=segments,
    log_probs=st.none() | numbers,
    search_step=st.none() | st.integers(0, 9),
    query=text,
    query_span=st.none() | spans,
    documents=documents,
    retrieval_failed=st.booleans(),
    counterfactuals=tuples(evidence),
    information_gain=optional_number,
    log_prob=optional_number,
    baseline_log_probs=st.none() | numbers,
    reward=number,
    attempt=st.integers(0, 3),
    reflection=st.none() | segments,
)
episodes = st.builds(
    Episode,
    question=questions,
    prompt=segments,
    steps=tuples(steps),
    group_id=text,
    outcome=optional_number,
    answer=st.none() | text,
    em=optional_number,
    f1=optional_number,
    attempt_outcomes=numbers,
    prior_log_prob=optional_number,
    terminated=st.booleans(),
    truncated=st.booleans(),
)


def through_json(data: Any) -> Any:
    return json.loads(json.dumps(data))


def played(turns: list[str], count: int = 4) -> list[Episode]:
    """Episodes of the embedded world, their gains settled, whose turns are one token a character.

    Turns beyond those given are the oracle's.
    """
    world = default_world()
    engine = make_engine(world.train_questions, max_searches=2)
    oracle = make_scripted("oracle", "refine", world.documents)
    every = [engine.rules.begin(question, "g") for question in world.train_questions[-count:]]
    for number in range(engine.rules.max_turns):
        running = [row for row, episode in enumerate(every) if not episode.finished]
        now = [every[row] for row in running]
        acts = [turns[number]] * len(now) if number < len(turns) else oracle.act(now)
        tokens = [
            Completion.from_tokens([ord(c) for c in act], [-0.1 * len(act)] * len(act), decode)
            for act in acts
        ]
        for row, (episode, _) in zip(running, engine.step(now, tokens), strict=True):
            every[row] = episode
    return every


def decode(token_ids: list[int]) -> str:
    return "".join(map(chr, token_ids))


@settings(max_examples=60, deadline=None)
@given(episodes)
def test_any_episode_comes_back_equal(episode: Episode) -> None:
    assert episode_from_record(through_json(episode_record(episode))) == episode


@pytest.mark.parametrize(
    "turns",
    [
        [],
        ["nothing to carry out", "<search> Zencorp é </search> dropped"],
        ["<search> Zencorp </search>", "<refine> It is in Lima. </refine><search> Lima </search>"],
        ["no"] * 5,
        ["<search> qqqqq </search>", "<answer> Lima </answer>"],
    ],
)
def test_real_episodes_come_back_equal(turns: list[str]) -> None:
    for episode in played(turns):
        assert episode.finished
        again = episode_from_record(through_json(episode_record(episode)))
        assert again == episode
        assert again.transcript == episode.transcript
        assert (
            again.policy_tokens
            == episode.policy_tokens
            == sum(len(step.turn.token_ids or ()) for step in episode.steps)
        )


def test_a_record_names_everything_that_an_episode_holds() -> None:
    (episode,) = played(["<search> Zencorp </search>"], count=1)
    record = through_json(episode_record(episode))
    assert set(record) == {field.name for field in fields(Episode)}
    assert record["question"]["golden_answers"] == list(episode.question.golden_answers)
    step = record["steps"][0]
    assert set(step) == {field.name for field in fields(Step)}
    assert (step["action"], step["query"], step["query_span"]) == ("search", "Zencorp", [8, 17])
    assert step["query_tokens"] == [8, 17]  # a token is a character here
    assert step["turn"]["token_ids"] == [ord(c) for c in "<search> Zencorp </search>"]
    assert set(step["documents"][0]) == {"id", "title", "text", "score", "whole"}
    assert len(step["counterfactuals"]) == len(step["baseline_log_probs"]) == 3
    expected = step["log_prob"] - sum(step["baseline_log_probs"]) / 3
    assert step["information_gain"] == pytest.approx(expected)


def test_what_was_looked_for_in_the_corpus_reads_back() -> None:
    question = Question(
        "q", "?", ("a",), silver_ids=("d",), answer_distances=(("d", 0), ("e\u2028", 2))
    )
    episode = Episode(question, Segment("?", "system"))
    again = episode_from_record(through_json(episode_record(episode)))
    assert again == episode
    assert hash(again.question) == hash(question)


@pytest.mark.parametrize(
    "wrong", ["d", ["d"], [["d"]], [["d", -1]], [["d", 0.5]], [[0, 0]], {"d": 0}]
)
def test_distances_that_are_none_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"question 'q': answer_distances must be pairs of a doc"):
        Question("q", "?", ("a",), answer_distances=wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, "TypeError"),
        ({"steps": [{"action": "search"}]}, "KeyError: 'turn'"),
        ({"color": "red"}, "unexpected keyword argument 'color'"),
        ({"question": {"id": "q"}}, "TypeError"),
    ],
)
def test_what_is_no_record_is_refused(change: dict[str, Any], message: str) -> None:
    record = episode_record(Episode(Question("q", "?", ("a",)), Segment("?", "system")))
    with pytest.raises(ValueError, match=f"expected the record of an episode.*{message}"):
        episode_from_record({**record, **change})
    missing = {name: value for name, value in record.items() if name != "prompt"}
    with pytest.raises(ValueError, match="KeyError: 'prompt'"):
        episode_from_record(missing)


def test_an_evidence_pool_goes_on_from_json() -> None:
    found = played(["<search> Zencorp </search>", "<refine> It is in Lima. </refine>no"])
    pool = EvidencePool(capacity=3, seed=5)
    for episode in found:
        first = episode.steps[0]
        refinement = episode.steps[1].refinement
        pool.add(Evidence(first.documents, refinement, episode.question.id, episode.question.text))
    state = through_json(pool.state_dict())
    other = EvidencePool(capacity=3, seed=99)
    other.load_state_dict(state)
    question = default_world().test_questions[0]
    assert other.draw(question, (), 2) == pool.draw(question, (), 2)
    assert to_record(other.state_dict()) == pool.state_dict()
