"""Several calls in one turn: spans, documents, counterfactuals, gains and credit of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import log
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from igsearch_env import (
    PROTOCOLS,
    Document,
    Question,
    SearchQAEnv,
    SearchQAVectorEnv,
    make_credit,
)
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import NO_REFINEMENT, Episode, Evidence
from igsearch_env.gain.belief import settle_belief
from igsearch_env.gain.enabling import settle_enabling
from igsearch_env.protocol.tags import Answer, Frame, Invalid, Search
from igsearch_env.protocol.tool_calls import ToolCallProtocol
from igsearch_env.record import episode_from_record, episode_record
from igsearch_env.render import render_text
from igsearch_env.settings import make_engine
from igsearch_env.wrappers import TranscriptObservation
from tests.igsearch_env.fakes import (
    DOCUMENTS,
    PERU,
    QUESTIONS,
    SWAP_PAIRS,
    CountingScorer,
    FakeRetriever,
    FakeScorer,
    fake_log_probs,
    sampled,
    text_of,
)

TAGS = replace(PROTOCOLS["refine"], name="several", max_calls=3)
CALLS = ToolCallProtocol(
    name="calls",
    prompt="{question}\n",
    max_calls=3,
    frame=Frame("<|end|>", "\n<user>\n", "<|end|>\n<assistant>\n"),
    reply=Frame("<|end|>", "\n<tool>\n", "<|end|>\n<assistant>\n"),
    between="\n</tool>\n<tool>\n",
)
TURN = "<search>Peru</search> and <search>Italy</search>"


def engine_of(protocol: Any = TAGS, **options: Any) -> SearchQAEngine:
    given = {"num_counterfactuals": 2, "protocol": protocol, **options}
    scorer = given.pop("scorer", FakeScorer())
    return make_engine(QUESTIONS, given.pop("retriever", FakeRetriever()), scorer, **given)


def play(engine: SearchQAEngine, *turns: str) -> Episode:
    episode = engine.rules.begin(PERU)
    for turn in turns:
        ((episode, _),) = engine.step([episode], [turn])
    return episode


class TestReading:
    def test_one_call_a_turn_stays_the_default(self) -> None:
        protocol = PROTOCOLS["refine"]
        assert protocol.parse_turn(TURN) == (Search("Peru", (8, 12), 21),)
        assert protocol.ended("<search>Peru</search>")

    def test_calls_up_to_the_most(self) -> None:
        four = " ".join(f"<search>{name}</search>" for name in "abcd")
        found = TAGS.parse_turn(four)
        assert [one.query for one in found if isinstance(one, Search)] == ["a", "b", "c"]
        assert not TAGS.ended(four[:44])
        assert TAGS.ended(four)
        assert TAGS.stop == ("</answer>",)

    def test_an_answer_stands_alone(self) -> None:
        assert len(TAGS.parse_turn("<answer>a</answer><search>b</search>")) == 1
        found = TAGS.parse_turn("<search>b</search><answer>a</answer>")
        assert found == (Search("b", (8, 9), 18),)  # it was written before the result was seen
        assert isinstance(TAGS.parse_turn("<answer>a</answer>")[0], Answer)

    def test_a_call_that_cannot_be_carried_out_leaves_the_others(self) -> None:
        found = TAGS.parse_turn("<search> </search><search>b</search>")
        assert found[0] == Invalid("empty query", 18)
        assert isinstance(found[1], Search)

    def test_what_ends_the_turn_is_kept(self) -> None:
        text = f"{CALLS.write_search('a')}\n{CALLS.write_search('b')}<|end|>\nuser"
        episode = play(engine_of(CALLS), text)
        assert "".join(step.turn.text for step in episode.steps) == text.removesuffix("\nuser")
        one = replace(CALLS, max_calls=1)
        assert play(engine_of(one), text).steps[0].turn.text == CALLS.write_search("a")

    @pytest.mark.parametrize("value", [0, -1, 2.0, True])
    def test_what_is_no_number_of_calls_is_refused(self, value: Any) -> None:
        with pytest.raises(ValueError, match="max_calls must be a whole number of at least 1"):
            replace(TAGS, max_calls=value)


class TestSteps:
    def test_each_call_has_its_own_span_documents_and_tokens(self) -> None:
        turn = sampled(f"so {TURN} dropped", size=2)
        first, second = play(engine_of(), turn).steps
        assert (first.query, second.query) == ("Peru", "Italy")
        assert (first.call, second.call) == (0, 1)
        assert (first.search_step, second.search_step) == (0, 1)
        assert first.documents == (DOCUMENTS["Peru"],)
        assert second.documents == (DOCUMENTS["Italy"],)
        assert first.turn.text + second.turn.text == f"so {TURN}"
        ids = [*(first.turn.token_ids or ()), *(second.turn.token_ids or ())]
        assert ids == list(turn.token_ids or ())[: len(ids)]
        pieces = dict(zip(turn.token_ids or (), _texts(turn), strict=True))
        for step in (first, second):
            assert step.query_span is not None
            assert step.turn.text[slice(*step.query_span)] == step.query
            assert "".join(pieces[i] for i in ids[step.query_tokens]) == step.query
            assert step.log_probs == turn.log_probs[step.policy_tokens]  # type: ignore[index]
        assert first.policy_tokens.stop == second.policy_tokens.start

    def test_a_turn_is_read_whole_before_it_is_answered(self) -> None:
        episode = play(engine_of(), TURN, "<answer>Lima</answer>")
        prompt, *said, answer = episode.transcript
        assert [segment.source for segment in said] == ["policy", "policy", "document", "document"]
        assert "Lima" in said[2].text
        assert "Rome" in said[3].text
        assert [list(episode.turn_of(i)) for i in range(3)] == [[0, 1], [0, 1], [2]]
        assert episode.context_before(1) == (prompt,)
        assert (*episode.context_before(2), answer) == episode.transcript

    def test_replies_share_one_frame(self) -> None:
        text = f"{CALLS.write_search('Peru')}\n{CALLS.write_search('Cuba')}<|end|>"
        episode = play(engine_of(CALLS), text)
        replies = text_of(episode.transcript[3:])
        assert replies == (
            '\n<tool>\nDoc 1 (Title: "Peru") The seat of Peru is Lima.'
            '\n</tool>\n<tool>\nDoc 1 (Title: "Cuba") The seat of Cuba is Havana.'
            "<|end|>\n<assistant>\n"
        )
        assert all(part.source == "system" for s in episode.transcript[3:] for part in s.parts[::2])

    def test_a_bad_call_among_good_ones_is_answered_in_its_place(self) -> None:
        text = f"{CALLS.write_search('Peru')}\n<tool_call>x</tool_call>{CALLS.write_search('Cuba')}"
        first, bad, third = play(engine_of(CALLS), text).steps
        assert [step.action for step in (first, bad, third)] == ["search", "invalid", "search"]
        assert bad.observation is not None
        assert bad.observation.text.startswith("\n</tool>\n<tool>\nThat turn could not be carried")
        assert third.search_step == 1

    def test_searches_beyond_the_last_one_are_refused_one_by_one(self) -> None:
        turn = "".join(f"<search>{name}</search>" for name in ("Peru", "Italy", "Cuba"))
        episode = play(engine_of(max_searches=2), turn)
        assert [step.action for step in episode.steps] == ["search", "search", "invalid"]
        assert not episode.finished
        assert play(engine_of(max_searches=1), TURN, "hm", "hm").ended_by == "turns"

    def test_one_search_call_serves_all_rows_and_calls(self) -> None:
        retriever = FakeRetriever()
        engine = engine_of(retriever=retriever, num_counterfactuals=0)
        begun = [engine.rules.begin(question) for question in QUESTIONS[:3]]
        engine.step(begun, [TURN, "<answer>x</answer>", "<search>Cuba</search>"])
        assert retriever.calls == [(("Peru", "Italy", "Cuba"), 3)]

    def test_a_search_that_fails_leaves_the_others(self) -> None:
        engine = engine_of(retriever=Partly())
        first, second = play(engine, TURN).steps
        assert (first.retrieval_failed, second.retrieval_failed) == (False, True)
        assert second.observation is not None
        assert "did not respond" in second.observation.text


class Partly(FakeRetriever):
    """Gives up on Italy alone."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        from igsearch_env import RetrievalError

        found = [None if q == "Italy" else super(Partly, self).search([q], k)[0] for q in queries]
        if None in found:
            raise RetrievalError("a part of it", found=found)
        return found  # type: ignore[return-value]


def _texts(turn: Any) -> list[str]:
    return [turn[a:b] for a, b in pairwise((0, *turn.token_ends))]


class Countries:
    """Finds a document by the first word of a query, and one that all share where it says so."""

    def __deepcopy__(self, memo: dict[int, object]) -> Countries:
        return self

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        found = []
        for query in queries:
            own = [Document(word, "", f"{word} fact") for word in query.split()]
            found.append(own[:k])
        return found


QUESTION = Question("q", "which ?", ("gold",))
OTHER = Evidence((Document("x", "", "x fact"),), NO_REFINEMENT, "o", "o")
BARE = replace(
    PROTOCOLS["refine-bare"], name="bare-several", prompt="{question}\n", max_calls=3, refine=None
)


def bare_engine(**options: Any) -> SearchQAEngine:
    given: dict[str, Any] = {
        "num_counterfactuals": 1,
        "protocol": BARE,
        "scorer": CountingScorer(),
        "added_only": False,
        "retriever": Countries(),
        **options,
    }
    scorer, retriever = given.pop("scorer"), given.pop("retriever")
    engine = make_engine([QUESTION, PERU], retriever, scorer, **given)
    engine.pool.add(OTHER)
    return engine


def bare_play(engine: SearchQAEngine, *turns: str) -> Episode:
    episode = engine.rules.begin(QUESTION)
    for turn in turns:
        ((episode, _),) = engine.step([episode], [turn])
    return episode


class TestGains:
    """By hand with a model that counts: p(gold) = (count + .01) / (words + 1).

    Real and counterfactual contexts are equally long, so that only the counts differ.
    """

    @pytest.mark.parametrize("added_only", [True, False])
    def test_two_queries_both_gains_by_hand(self, added_only: bool) -> None:
        # "gold" stands in its query, which all contexts hold, and in what the query found.
        turn = "<search>gold</search><search>silver</search>"
        first, second = bare_play(
            bare_engine(added_only=added_only), turn, "<answer>x</answer>"
        ).steps[:2]
        assert first.information_gain == pytest.approx(log(2.01 / 1.01))
        # The second is compared after the first reply, which stays; it adds nothing.
        assert second.information_gain == pytest.approx(0.0)
        turn = "<search>silver</search><search>gold</search>"
        first, second = bare_play(
            bare_engine(added_only=added_only), turn, "<answer>x</answer>"
        ).steps[:2]
        # The first is scored as if the turn had ended with it: "gold" has not been written yet.
        assert first.information_gain == pytest.approx(0.0)
        assert second.information_gain == pytest.approx(log(2.01 / 1.01))

    @pytest.mark.parametrize("added_only", [True, False])
    def test_what_two_queries_find_counts_once(self, added_only: bool) -> None:
        turn = "<search>gold</search><search>gold</search>"
        first, second = bare_play(
            bare_engine(added_only=added_only), turn, "<answer>x</answer>"
        ).steps[:2]
        assert first.information_gain == pytest.approx(log(2.01 / 1.01))
        assert second.documents == first.documents
        assert second.counterfactuals == ()
        assert second.information_gain is None
        both = make_credit("ig_search", alpha=1.0)
        turns = (sampled(turn), "<answer>x</answer>")
        episode = bare_play(bare_engine(added_only=added_only), *turns)
        (bonus,) = both.bonuses([episode])  # type: ignore[attr-defined]
        assert bonus[episode.steps[0].query_tokens].sum() > 0
        assert not bonus[episode.steps[1].query_tokens].any()

    def test_of_a_document_found_again_and_a_new_one_the_new_one_counts(self) -> None:
        turn = "<search>silver</search><search>silver gold</search>"
        first, second = bare_play(bare_engine(), turn, "<answer>x</answer>").steps[:2]
        assert first.information_gain == pytest.approx(0.0)
        real, swapped = bare_engine().information_gain.contexts(
            bare_play(bare_engine(), turn, "<answer>x</answer>"), 1
        )
        assert text_of(real).count("silver fact") == text_of(swapped).count("silver fact") == 2
        assert "x fact" in text_of(swapped)
        assert second.information_gain == pytest.approx(log(2.01 / 1.01))

    def test_all_settle_in_the_next_call(self) -> None:
        parts = (QUESTIONS, FakeRetriever(), FakeScorer())
        options = {"counterfactual": "documents+refinement", "added_only": False}
        env = SearchQAEnv(*parts, protocol=TAGS, num_counterfactuals=2, **options)
        env.reset(seed=0, options={"question": PERU})
        *_, info = env.step(TURN)
        assert info["query"] == ("Peru", "Italy")
        assert info["search_step"] == (0, 1)
        assert "information_gain" not in info
        *_, info = env.step("<answer>Lima</answer>")
        assert info["information_gain_step"] == (0, 1)
        assert info["information_gain"] == info["information_gains"]
        env.reset(options={"question": PERU})
        for _ in range(env.engine.rules.max_turns):
            *_, truncated, info = env.step(TURN)
        assert truncated
        assert None not in info["information_gains"]
        assert len(info["information_gains"]) == 5

    @pytest.mark.parametrize("counterfactual", ["documents", "documents+refinement"])
    @pytest.mark.parametrize("protocol", [TAGS, replace(CALLS, refine="refine")])
    def test_against_a_slow_implementation(self, counterfactual: Any, protocol: Any) -> None:
        """The contexts written out as text, turn by turn, and scored one by one."""
        engine = engine_of(
            protocol, counterfactual=counterfactual, max_searches=9, added_only=False
        )
        for evidence in SWAP_PAIRS:
            engine.pool.add(evidence)
        write = protocol.write_search
        turns = [
            f"hm {write('Peru')} {write('Italy Cuba')} {write('Cuba Fiji')}",
            f"<refine>Lima</refine>{write('Kenya')}",
            f"<refine>Nairobi</refine>{write('Japan')}{write('Japan')}",
            "<refine>Tokyo</refine><answer>Lima</answer>",
        ]
        episode = play(engine, *turns)
        assert episode.terminated
        expected: list[float | None] = []
        before = episode.prompt.text
        for first, size in ((0, 3), (3, 1), (4, 2)):  # the turns that search
            calls = episode.steps[first : first + size]
            following = episode.steps[first + size].refinement.text
            written = replies = ""
            known: set[str] = set()
            for place, step in enumerate(calls):
                written += step.turn.text
                last = place + 1 == size and counterfactual == "documents+refinement"
                evidence = [(list(step.documents), following)]
                for other in step.counterfactuals:
                    swapped, left = [], list(other.documents)
                    for document in step.documents:
                        if document.id in known:
                            swapped.append(document)
                        elif left:
                            swapped.append(left.pop(0))
                    repeats = any(document.id in known for document in step.documents)
                    documents = swapped if repeats else list(other.documents)
                    evidence.append((documents, other.refinement.text))
                shown = last and all(note for _, note in evidence)
                scores = []
                for documents, note in evidence:
                    reply = protocol.render_documents(documents, written, (place, place + 1)).text
                    context = before + written + replies + reply + (note if shown else "")
                    values = fake_log_probs(context + protocol.answer_opening, " Lima")
                    scores.append(np.mean(np.maximum(values, -log(1000))))
                new = not {document.id for document in step.documents} <= known
                expected.append(float(scores[0] - np.mean(scores[1:])) if new else None)
                replies += step.observation.text if step.observation else ""
                known |= {document.id for document in step.documents}
            before += written + replies
        assert None in expected
        for gain, slow in zip(episode.information_gains, expected, strict=True):
            assert gain == (None if slow is None else pytest.approx(slow))

    def test_beliefs_and_enabling_follow_the_calls(self) -> None:
        engine = bare_engine()
        turn = "<search>silver</search><search>gold</search>"
        episode = bare_play(engine, turn, "<search>gold</search>", "<answer>x</answer>")
        assert engine.scorer is not None
        clean = replace(episode, steps=tuple(replace(s, log_prob=None) for s in episode.steps))
        (believed,) = settle_belief([clean], engine.scorer, engine.information_gain)
        assert [s.log_prob for s in believed.searches] == [s.log_prob for s in episode.searches]
        (enabled,) = settle_enabling([episode], engine.scorer, engine.information_gain)
        # "gold" is the next query: the reply with it raises its probability, the other does not.
        first, second, third = enabled.searches
        assert first.enabling == pytest.approx(0.0)
        assert second.enabling == pytest.approx(log(2.01 / 1.01))
        assert third.enabling is None


class TestAround:
    def test_credit_lies_on_the_tokens_of_each_query(self) -> None:
        engine = engine_of()
        episodes = [
            play(engine, sampled(TURN), sampled(f"<answer>{answer}</answer>"))
            for answer in ("Lima", "Rome")
        ]
        for name in ("ig_search", "igpo_code", "gigpo", "outcome"):
            credit = make_credit(name)
            settled = settle_belief(episodes, FakeScorer(), engine.information_gain)
            for episode, row in zip(settled, credit(settled), strict=True):
                assert row.shape == (episode.policy_tokens,)
        plain, shaped = make_credit("outcome")(episodes), make_credit("ig_search")(episodes)
        for episode, a, b in zip(episodes, plain, shaped, strict=True):
            for step in episode.searches:
                bonus = (b - a)[step.query_tokens]
                assert np.allclose(bonus, bonus[0])
            outside = np.ones(episode.policy_tokens, bool)
            for step in episode.searches:
                outside[step.query_tokens] = False
            assert not (b - a)[outside].any()

    def test_records_text_and_wrappers(self) -> None:
        episode = play(engine_of(), sampled(TURN), "<answer>Lima</answer>")
        assert episode_from_record(json.loads(json.dumps(episode_record(episode)))) == episode
        shown = render_text(episode)
        assert shown.index("search 0") < shown.index("search 1") < shown.index("right: Lima")
        env = TranscriptObservation(
            SearchQAEnv(QUESTIONS, FakeRetriever(), protocol=TAGS, num_counterfactuals=0)
        )
        prompt, _ = env.reset(seed=0)
        text, *_ = env.step(TURN)
        assert text.startswith(prompt + TURN)
        assert text.index("Lima") < text.index("Rome")

    def test_the_vector_environment_plays_alike(self) -> None:
        arguments: dict[str, Any] = {
            "questions": QUESTIONS,
            "retriever": FakeRetriever(),
            "scorer": FakeScorer(),
            "protocol": TAGS,
            "num_counterfactuals": 1,
            "counterfactual": "documents+refinement",
        }
        rows = SearchQAVectorEnv(2, **arguments)
        rows.reset(seed=3, options={"questions": [PERU, QUESTIONS[1]]})
        rows.step([TURN, "<search>Fiji</search>"])
        *_, infos = rows.step(["<answer>Lima</answer>"] * 2)
        assert [len(gains) for gains in infos["information_gain"]] == [2, 1]
        one = SearchQAEnv(**arguments)
        one.reset(seed=3, options={"question": PERU})
        one.step(TURN)
        *_, info = one.step("<answer>Lima</answer>")
        assert len(info["information_gain"]) == 2

    def test_the_checks_of_gymnasium(self) -> None:
        env = SearchQAEnv(QUESTIONS, FakeRetriever(), FakeScorer(), protocol=TAGS)
        check_env(env, skip_render_check=True)


def test_every_reply_of_a_turn_is_observed() -> None:
    protocol = replace(PROTOCOLS["refine"], max_calls=2)
    action = "<search> Calia Branson </search><search> Altos Larkson </search>"
    env = SearchQAEnv(protocol=protocol)
    env.reset(seed=1)
    observation, *_ = env.step(action)
    assert observation == "".join(r.text for step in env.episode.steps for r in step.replies)
    assert "Calia" in observation
    assert "Altos" in observation
    rows = SearchQAVectorEnv(2, protocol=protocol)
    rows.reset(seed=1)
    texts, *_ = rows.step([action, action])
    assert all("Calia" in text and "Altos" in text for text in texts)
