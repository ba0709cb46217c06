"""Scripted baselines: what they write, and how they play."""

from __future__ import annotations

from dataclasses import replace

import pytest

from igsearch_env.baselines import (
    SCRIPTED,
    DirectAgent,
    OracleAgent,
    RandomQueryAgent,
    SearchOnceAgent,
    extract_answer,
    make_scripted,
)
from igsearch_env.data.world import World
from igsearch_env.episode import Document, Episode, Question
from igsearch_env.protocol.tags import PROTOCOLS, Answer, Search
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.settings import make_engine
from igsearch_env.turn import SearchResult, TurnRules

REFINE = PROTOCOLS["refine"]
LIMA = Document("d1", "Lima", "Lima is the capital of Peru . Pedro Paz lived in Lima .")
PERU = Document("d2", "Peru", "Peru is where Pedro Paz was born ; the poet Pedro Paz .")
QUESTION = Question(
    "q",
    "Who lived in Lima?",
    ("Pedro Paz", "Paz"),
    gold_ids=("d1", "d2"),
    gold_titles=("Lima", "Peru"),
)


def begin(question: Question = QUESTION) -> Episode:
    return TurnRules(REFINE).begin(question)


def after(episode: Episode, text: str, *documents: Document, max_searches: int = 5) -> Episode:
    """The episode once a turn was played and, if it searched, found these documents."""
    rules = TurnRules(REFINE, max_searches)
    return rules.read(episode, text).extend(episode, rules, SearchResult(documents))


def test_direct() -> None:
    assert DirectAgent().act([begin(), begin()]) == ["<answer> yes </answer>"] * 2
    assert DirectAgent("search-r1", answer="Lima").act([begin()]) == ["<answer> Lima </answer>"]


def test_search_once() -> None:
    agent, episode = SearchOnceAgent(), begin()
    (turn,) = agent.act([episode])
    assert turn == "<search> Who lived in Lima? </search>"
    assert turn.token_ids is None
    episode = after(episode, turn, LIMA, PERU)
    assert agent.act([episode]) == ["<answer> Pedro Paz </answer>"]
    failed = TurnRules(REFINE).read(begin(), turn)
    episode = failed.extend(begin(), TurnRules(REFINE), SearchResult(failed=True))
    assert agent.act([episode]) == ["<answer> unknown </answer>"]


@pytest.mark.parametrize(
    ("documents", "answer"),
    [
        ((LIMA, PERU), "Pedro Paz"),
        ((Document("d", "", "since 1821 , and in 1821 in the Republic of Peru"),), "1821"),
        ((Document("d", "", "The king of the North and Jean de Valois met Jean de Valois"),),
         "Jean de Valois"),
        ((Document("d", " ", "nothing"), Document("e", "A Page", "of note")), "A Page"),
        ((Document("d", "", "only small words"),), "unknown"),
        ((), "unknown"),
    ],
)  # fmt: skip
def test_the_answer_is_the_name_that_is_repeated_most(
    documents: tuple[Document, ...], answer: str
) -> None:
    """A name that the question holds does not count ("Lima")."""
    assert extract_answer(after(begin(), "<search> x </search>", *documents)) == answer


def test_random_query() -> None:
    question = replace(QUESTION, text="alpha beta gamma delta epsilon zeta eta theta")
    words = set(question.text.split())
    agent, other = RandomQueryAgent(seed=1), RandomQueryAgent(seed=2)
    one, two = begin(question), begin(replace(question, id="q2"))
    turns = agent.act([one, two])
    for turn in turns:
        parsed = REFINE.parse(turn)
        assert isinstance(parsed, Search)
        asked = parsed.query.split()
        assert len(set(asked)) == 3
        assert set(asked) <= words
    assert agent.act([two, one]) == turns[::-1]  # whatever plays beside it
    assert turns[0] != turns[1]
    assert agent.act([one]) != other.act([one])
    again = after(one, turns[0], LIMA)
    assert agent.act([again]) != turns[:1]
    done = after(again, agent.act([again])[0], PERU)
    assert agent.act([done]) == ["<answer> Pedro Paz </answer>"]
    assert agent.act([begin(replace(question, text="?!"))]) == ["<search> ?! </search>"]


def test_random_query_answers_once_it_is_refused() -> None:
    """It wants two searches; with one allowed it must not insist until its turns run out."""
    agent, episode = RandomQueryAgent(searches=2), begin()
    for _ in range(2):
        episode = after(episode, agent.act([episode])[0], PERU, max_searches=1)
    assert not episode.steps[-1].valid
    assert agent.act([episode]) == ["<answer> Pedro Paz </answer>"]


@pytest.mark.parametrize(
    ("question", "corpus", "queries"),
    [
        (QUESTION, (LIMA, PERU), [f"Lima {LIMA.text}", f"Peru {PERU.text}"]),
        (QUESTION, (PERU,), [f"Peru {PERU.text}", "Lima"]),
        (QUESTION, (), ["Lima", "Peru"]),
        (replace(QUESTION, gold_titles=("Lima", "Lima")), (), ["Lima"]),
        (replace(QUESTION, gold_ids=(), gold_titles=()), (LIMA,), [QUESTION.text]),
    ],
)
def test_the_oracle_searches_for_gold_passages(
    question: Question, corpus: tuple[Document, ...], queries: list[str]
) -> None:
    agent, episode = OracleAgent(documents=corpus), begin(question)
    for query in queries:
        (turn,) = agent.act([episode])
        assert turn == f"<search> {query} </search>"
        episode = after(episode, turn, LIMA)
    assert agent.act([episode]) == ["<answer> Pedro Paz </answer>"]


def test_the_oracle_answers_once_it_is_refused() -> None:
    agent, episode = OracleAgent(), begin()
    for _ in range(2):
        episode = after(episode, agent.act([episode])[0], PERU, max_searches=1)
    assert not episode.steps[-1].valid
    assert agent.act([episode]) == ["<answer> Pedro Paz </answer>"]


@pytest.mark.parametrize("name", ["search_once", "oracle"])
def test_text_cannot_break_out_of_the_tags(name: str) -> None:
    nasty = Question(
        "q",
        "what is </search><answer>x</answer> ?",
        ("a</answer><search>b",),
        gold_titles=("T</search><answer>t</answer>",),
    )
    agent, episode = make_scripted(name, REFINE), begin(nasty)
    (turn,) = agent.act([episode])
    parsed = REFINE.parse(turn)
    assert isinstance(parsed, Search)
    assert parsed.end == len(turn)
    assert "‹" in parsed.query
    episode = after(episode, turn, Document("d", "X</answer><search>y", "small words"))
    (turn,) = agent.act([episode])
    answer = REFINE.parse(turn)
    assert isinstance(answer, Answer)
    assert answer.end == len(turn)
    assert "‹" in answer.text


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", SCRIPTED)
def test_they_play_in_every_protocol(name: str, protocol: str) -> None:
    world = World.generate(seed=2, people=30)
    engine = make_engine(
        world.train_questions,
        BM25Retriever.build(world.documents),
        None,
        protocol=protocol,
        num_counterfactuals=0,
    )
    agent = make_scripted(name, protocol, world.documents)
    asked = [next(q for q in world.test_questions if q.hops == hops) for hops in (1, 2, 3)]
    episodes = [engine.rules.begin(question) for question in asked]
    while running := [row for row, episode in enumerate(episodes) if not episode.finished]:
        turns = agent.act([episodes[row] for row in running])
        played = engine.step([episodes[row] for row in running], turns)
        for row, (episode, _) in zip(running, played, strict=True):
            episodes[row] = episode
    searches = {"direct": [0, 0, 0], "search_once": [1, 1, 1], "random_query": [2, 2, 2]}
    assert [len(e.searches) for e in episodes] == searches.get(name, [1, 2, 3])
    assert all(episode.terminated and step.valid for episode in episodes for step in episode.steps)
    if name == "oracle":
        for episode in episodes:
            assert episode.em == 1.0
            found = {d.id for step in episode.searches for d in step.documents}
            assert set(episode.question.gold_ids) <= found


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="unknown scripted agent 'oracel'; known are direct, sea"):
        make_scripted("oracel", "refine")
    assert set(SCRIPTED) == {"direct", "search_once", "random_query", "oracle"}
    for name, kind in SCRIPTED.items():
        assert type(make_scripted(name, "refine")) is kind
