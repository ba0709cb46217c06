"""The demonstrator: what it asks, and when it answers what."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest

from agents.tokenization import SegmentTokenizer
from igsearch_env.data.lexicon import RELATIONS
from igsearch_env.data.world import World, group_by_cluster, hinted_cluster
from igsearch_env.episode import Document, Episode, Question
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.rollout import collect
from igsearch_env.settings import make_engine
from igsearch_env.turn import SearchResult, TurnRules
from trainers.warm_start.demonstrations import COMPETENT_QUERIES, SEARCHER_QUERIES, Demonstrator
from trainers.warm_start.tiny_policy import PROTOCOL

RULES = TurnRules(PROTOCOL, max_searches=3)


def demonstrator(
    world: World,
    tokenizer: SegmentTokenizer,
    queries: Mapping[str, float],
    seed: int = 0,
    **chances: float,
) -> Demonstrator:
    return Demonstrator(world, tokenizer, queries, 3, random.Random(seed), **chances)


def question_of(world: World, hops: int, number: int = 0) -> Question:
    return [question for question in world.train_questions if question.hops == hops][number]


def after(episode: Episode, documents: Sequence[Document]) -> Episode:
    turn = RULES.read(episode, "<search> query </search>")
    return turn.extend(episode, RULES, SearchResult(tuple(documents)))


def passages(world: World, question: Question) -> list[Document]:
    """The gold passages in hop order."""
    by_id = {document.id: document for document in world.documents}
    return [by_id[fact.document_id] for fact in world.chains[question.id]]


def play(world: World, agent: Demonstrator, count: int = 150) -> list[Episode]:
    engine = make_engine(
        world.train_questions,
        BM25Retriever.build(world.documents),
        None,
        protocol=PROTOCOL,
        max_searches=3,
        top_k=1,
        num_counterfactuals=0,
    )
    return collect(engine, agent, random.Random(1).sample(world.train_questions, count))


def test_it_answers_the_gold_answer_once_it_has_found_the_chain(
    world: World, tokenizer: SegmentTokenizer
) -> None:
    agent = demonstrator(world, tokenizer, COMPETENT_QUERIES, early_answer=0.0, blind_answer=0.0)
    episodes = play(world, agent)
    found, lost = 0, 0
    for episode in episodes:
        seen = {d.id for step in episode.searches for d in step.documents}
        assert episode.terminated
        assert all(step.valid for step in episode.steps)
        if set(episode.question.gold_ids) <= seen:
            found += 1
            assert episode.em == 1.0
            # It answers at once: the last passage of the chain came with the last search.
            last = {d.id for d in episode.searches[-1].documents}
            assert last & set(episode.question.gold_ids)
        else:
            lost += 1
            assert len(episode.searches) == 3
    assert found > 30
    assert lost > 5


def test_it_guesses_now_and_then(world: World, tokenizer: SegmentTokenizer) -> None:
    agent = demonstrator(world, tokenizer, SEARCHER_QUERIES, early_answer=1.0, blind_answer=1.0)
    episodes = play(world, agent)
    assert {len(episode.searches) for episode in episodes} == {1}  # never before a search
    guessed = [e for e in episodes if e.em == 0.0]
    assert len(guessed) > 100
    for episode in guessed:
        kind = world.chains[episode.question.id][-1].relation.object
        assert episode.answer in {entity.name for entity in world.entities[kind]}


def test_a_guess_follows_the_hint_of_a_known_bridge(
    world: World, tokenizer: SegmentTokenizer
) -> None:
    question = next(
        q
        for q in world.train_questions
        if q.hops == 2 and world.chains[q.id][-1].subject.kind != "person"
    )
    last = world.chains[question.id][-1]
    hint = hinted_cluster(last.subject, last.relation)
    hinted = {e.name for e in group_by_cluster(world.entities)[last.relation.object, hint]}
    anything = {e.name for e in world.entities[last.relation.object]}
    agent = demonstrator(world, tokenizer, {"good": 1.0}, early_answer=1.0, blind_answer=1.0)
    bridge = after(RULES.begin(question), passages(world, question)[:1])
    blind = after(RULES.begin(question), ())
    for episode, allowed in ((bridge, hinted), (blind, anything)):
        guesses = {RULES.read(episode, t).parsed.text for t in agent.act([episode] * 60)}  # type: ignore[union-attr]
        assert guesses <= allowed
        assert len(guesses) > 1
    assert hinted < anything
    agent = demonstrator(
        world, tokenizer, {"good": 1.0}, early_answer=1.0, blind_answer=1.0, hints=False
    )
    guesses = {RULES.read(bridge, t).parsed.text for t in agent.act([bridge] * 60)}  # type: ignore[union-attr]
    assert not guesses <= hinted


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_it_asks_for_the_first_fact_that_is_missing(
    world: World, tokenizer: SegmentTokenizer, hops: int
) -> None:
    question = question_of(world, hops)
    chain, gold = world.chains[question.id], passages(world, question)
    agent = demonstrator(world, tokenizer, {"good": 1.0}, early_answer=0.0, blind_answer=0.0)
    episode = RULES.begin(question)
    if hops > 1:  # the end of a chain alone tells nothing: its start is still unknown
        episode = after(episode, gold[1:])
    for number, fact in enumerate(chain):
        wanted = f"<search> {fact.subject.name} {fact.relation.keyword} </search>"
        if len(episode.searches) < 3:
            assert agent.act([episode]) == [wanted]
        episode = RULES.begin(question)
        episode = after(episode, gold[: number + 1])
    assert agent.act([episode]) == [f"<answer> {question.golden_answers[0]} </answer>"]


def test_kinds_of_queries(world: World, tokenizer: SegmentTokenizer) -> None:
    question = question_of(world, 2)
    fact = world.chains[question.id][0]
    name, keyword, noun = fact.subject.name, fact.relation.keyword, fact.relation.noun
    start, later = RULES.begin(question), after(RULES.begin(question), ())
    words = {relation.keyword for relation in RELATIONS}
    expected = {
        "good": {f"{name} {keyword}"},
        "partial": {f"{word} {keyword}" for word in name.split()},
        "entity": {name},
        "wrong_relation": {f"{name} {word}" for word in words},
        "vague": {f"{noun} {keyword}"},
        "stale": {f"{noun} {keyword}"},  # there is nothing to repeat yet
    }
    assert expected.keys() == SEARCHER_QUERIES.keys() >= COMPETENT_QUERIES.keys()
    for kind, queries in expected.items():
        agent = demonstrator(world, tokenizer, {kind: 1.0}, blind_answer=0.0)
        found = set(agent.act([start] * 80))
        allowed = {f"<search> {query} </search>" for query in queries}
        assert found <= allowed
        assert len(found) > (kind == "wrong_relation") + (kind == "partial")
        if kind == "stale":
            assert agent.act([later]) == ["<search> query </search>"]


def test_the_mixes_are_shares(world: World, tokenizer: SegmentTokenizer) -> None:
    question = question_of(world, 2)  # of a person, who has two names
    fact = world.chains[question.id][0]
    good = f"<search> {fact.subject.name} {fact.relation.keyword} </search>"
    for mix, share in ((COMPETENT_QUERIES, 0.8), (SEARCHER_QUERIES, 0.05)):
        assert sum(mix.values()) == pytest.approx(1.0)
        turns = demonstrator(world, tokenizer, mix).act([RULES.begin(question)] * 800)
        asked = [str(turn) for turn in turns].count(good) / 800
        assert share - 0.04 < asked < share + 0.06  # by chance, a wrong relation is the right one


def test_turns_are_in_the_policys_own_tokens(world: World, tokenizer: SegmentTokenizer) -> None:
    agent = demonstrator(world, tokenizer, SEARCHER_QUERIES)
    for turn in agent.act([RULES.begin(question) for question in world.train_questions[:30]]):
        assert turn.token_ids is not None
        assert tokenizer.decode(turn.token_ids) == turn
        assert turn.log_probs is None


def test_the_generator_decides(world: World, tokenizer: SegmentTokenizer) -> None:
    episodes = [RULES.begin(question) for question in world.train_questions[:40]]
    one, same, other = (
        demonstrator(world, tokenizer, SEARCHER_QUERIES, seed).act(episodes) for seed in (1, 1, 2)
    )
    assert one == same != other
