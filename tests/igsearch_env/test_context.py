"""Managed contexts: what the policy sees at each turn, is trained on and scored in."""

from __future__ import annotations

import json
from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest

from igsearch_env import PROTOCOLS, Completion, SearchQAEnv
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import Context, Episode, Segment
from igsearch_env.gain.enabling import settle_enabling
from igsearch_env.record import episode_from_record, episode_record
from igsearch_env.settings import make_engine
from igsearch_env.wrappers import TranscriptObservation
from tests.igsearch_env.fakes import (
    PERU,
    QUESTIONS,
    SWAP_PAIRS,
    FakeRetriever,
    FakeScorer,
    fake_log_probs,
    sampled,
    text_of,
)

REFINE = PROTOCOLS["refine"]
STUB = REFINE.render_removed()
TURNS = (
    "<think>first</think> <search>Peru</search>",
    "<refine>Lima</refine><think>then</think><search>Italy</search>",
    "<refine>Rome</refine><think>at last</think><search>Cuba</search>",
    "<refine>Havana</refine><answer>Lima</answer>",
)


def engine_of(**options: Any) -> SearchQAEngine:
    paper = {"counterfactual": "documents+refinement", "added_only": False}
    given = {"num_counterfactuals": 2, **paper, **options}
    scorer = given.pop("scorer", FakeScorer())
    engine = make_engine(QUESTIONS, FakeRetriever(), scorer, **given)
    for evidence in SWAP_PAIRS:
        engine.pool.add(evidence)
    return engine


def play(engine: SearchQAEngine, turns: Any = TURNS, make: Any = sampled) -> Episode:
    episode = engine.rules.begin(PERU)
    for turn in turns:
        ((episode, _),) = engine.step([episode], [make(turn)])
    return episode


def flat(context: Context) -> list[str]:
    return [segment.text for segment in context]


class TestContexts:
    def test_documents_leave_after_some_turns(self) -> None:
        episode = play(engine_of(keep_documents=1))
        prompt = episode.prompt.text
        turns = [step.turn.text for step in episode.steps]
        shown = [step.observation.text for step in episode.steps[:3] if step.observation]
        stub = STUB.text
        assert flat(episode.context_before(0)) == [prompt]
        assert flat(episode.context_before(1)) == [prompt, turns[0], shown[0]]
        assert flat(episode.context_before(2)) == [prompt, turns[0], stub, turns[1], shown[1]]
        assert flat(episode.context_before(3)) == [
            *(prompt, turns[0], stub, turns[1], stub, turns[2], shown[2])
        ]
        assert "Lima" not in stub
        two = play(engine_of(keep_documents=2))
        assert flat(two.context_before(3)) == [
            *(prompt, turns[0], stub, turns[1], shown[1], turns[2], shown[2])
        ]
        # The record of what was said keeps everything.
        assert text_of(episode.transcript) == text_of(play(engine_of()).transcript)

    def test_thoughts_leave_with_their_turn(self) -> None:
        episode = play(engine_of(drop_thoughts=True))
        assert [text_of(step.bare) if step.bare else None for step in episode.steps] == [
            "<search>Peru</search>",
            "<refine>Lima</refine><search>Italy</search>",
            "<refine>Rome</refine><search>Cuba</search>",
            None,
        ]
        first = episode.steps[0]
        assert first.bare is not None
        (bare,) = first.bare
        ids = list(first.turn.token_ids or ())
        assert bare.source == "policy"
        assert list(bare.token_ids or ()) == ids[ids.index((bare.token_ids or ())[0]) :]
        assert episode.context_before(1)[1] == bare
        assert episode.steps[1].turn.text in text_of(episode.transcript)

    def test_a_thought_that_the_template_opens_is_closed_empty(self) -> None:
        protocol = replace(REFINE, thought_end="\n</think>\n\n", refine=None)
        turn = "first\n</think>\n\n<search>Peru</search>"
        for make in (Completion, sampled):
            episode = play(engine_of(drop_thoughts=True, protocol=protocol), [turn], make)
            bare = episode.steps[0].bare
            assert bare is not None
            assert [segment.source for segment in bare] == ["system", "policy"]
            assert text_of(bare) == "\n</think>\n\n<search>Peru</search>"
        open_thought = play(engine_of(drop_thoughts=True, protocol=protocol), ["on and on"])
        assert open_thought.steps[0].bare is None

    def test_without_it_all_is_as_it_was(self) -> None:
        episode = play(engine_of())
        assert all(step.stub is None and step.bare is None for step in episode.steps)
        for index in range(5):
            assert episode.context_before(index) == episode.transcript[: 1 + 2 * index]
        plain, managed = (play(engine_of(keep_documents=k), make=str) for k in (None, 99))
        assert managed.information_gains == plain.information_gains
        assert managed.training_sequences == plain.training_sequences

    def test_what_searches_find_in_a_turn_of_several_calls_leaves_together(self) -> None:
        several = replace(REFINE, max_calls=3)
        turns = ["<search>Peru</search><search>Italy</search>", "<search>Cuba</search>", "hm"]
        episode = play(engine_of(protocol=several, keep_documents=1), turns)
        assert text_of(episode.context_before(3)).count(REFINE.removed) == 2
        assert "Havana" in text_of(episode.context_before(3))
        assert [sum(trained for _, trained in s) for s in episode.training_sequences] == [3, 1]

    def test_attempts_go_on(self) -> None:
        turns = ["<search>Peru</search>", "<answer>Rome</answer>", "<search>Cuba</search>", "hm"]
        episode = play(engine_of(keep_documents=1, max_attempts=2), turns)
        seen = text_of(episode.context)
        assert seen.count(REFINE.removed) == 2
        assert "Then try once more" in seen


class TestTraining:
    def test_the_sequences_by_hand(self) -> None:
        episode = play(engine_of(keep_documents=1))
        prompt, stub = episode.prompt, STUB
        one, two, three, four = (step.turn for step in episode.steps)
        seen = [step.observation for step in episode.steps[:3]]
        assert episode.training_sequences == (
            ((prompt, False), (one, True), (seen[0], False), (two, True)),
            tuple((part, part is three) for part in (prompt, one, stub, two, seen[1], three)),
            tuple(
                (part, part is four)
                for part in (prompt, one, stub, two, stub, three, seen[2], four)
            ),
        )

    @pytest.mark.parametrize("keep", [None, 1, 2, 3])
    @pytest.mark.parametrize("drop", [False, True])
    def test_each_turn_is_trained_on_once_after_what_the_policy_saw(
        self, keep: int | None, drop: bool
    ) -> None:
        """Slowly: a turn is looked for in all sequences, and what precedes it is compared."""
        episode = play(engine_of(keep_documents=keep, drop_thoughts=drop))
        found: list[Segment] = []
        for sequence in episode.training_sequences:
            assert sequence[-1][1]
            for place, (segment, trained) in enumerate(sequence):
                if trained:
                    index = len(found)
                    before = tuple(part for part, _ in sequence[:place])
                    assert before == episode.context_before(index)
                    found.append(segment)
        assert found == [step.turn for step in episode.steps]
        expected = 1 if keep is None and not drop else None
        assert expected is None or len(episode.training_sequences) == expected

    def test_an_episode_without_turns_has_its_prompt(self) -> None:
        episode = engine_of().rules.begin(PERU)
        assert episode.training_sequences == (((episode.prompt, False),),)


class TestGains:
    @pytest.mark.parametrize("keep", [1, 2])
    @pytest.mark.parametrize("drop", [False, True])
    def test_against_a_slow_implementation(self, keep: int, drop: bool) -> None:
        """The context of the turn that reads the documents, written out as text."""
        paper = {"counterfactual": "documents+refinement", "added_only": False}
        episode = play(engine_of(keep_documents=keep, drop_thoughts=drop, **paper))
        stub = STUB.text
        for t, search in enumerate(episode.searches):
            notes = episode.steps[t + 1].refinement.text
            scores = []
            pairs = [(search.documents, notes)]
            pairs += [(e.documents, e.refinement.text) for e in search.counterfactuals]
            for documents, note in pairs:
                context = episode.prompt.text
                for m in range(t + 1):
                    turn = TURNS[m]
                    if drop:
                        start, end = turn.index("<think>"), turn.index("</think>") + 8
                        turn = turn[:start] + turn[end:].lstrip()
                    context += turn
                    own = episode.steps[m].observation
                    assert own is not None
                    if m == t:
                        context += REFINE.render_documents(documents).text
                    else:
                        context += own.text if t + 1 - m <= keep else stub
                values = fake_log_probs(context + note + REFINE.answer_opening, " Lima")
                scores.append(np.mean(np.maximum(values, -log(1000))))
            assert search.information_gain == pytest.approx(scores[0] - np.mean(scores[1:]))

    def test_they_differ_from_those_without(self) -> None:
        plain, managed = play(engine_of()), play(engine_of(keep_documents=1))
        gains = list(zip(plain.information_gains, managed.information_gains, strict=True))
        assert gains[0][0] == gains[0][1]  # nothing has left yet
        assert all(a != b for a, b in gains[1:])

    def test_the_next_query_is_scored_in_the_context_of_its_turn(self) -> None:
        scorer = FakeScorer()
        engine = engine_of(keep_documents=1, scorer=None)
        episode = play(engine)
        settle_enabling([episode], scorer, engine.information_gain)
        real = next(text for text, answer in scorer.asked if answer == "Cuba")
        start = TURNS[2].index("Cuba")
        assert real == text_of(episode.context_before(2)) + TURNS[2][:start]


class TestAround:
    def test_agents_and_wrappers_see_the_managed_context(self) -> None:
        env = TranscriptObservation(
            SearchQAEnv(QUESTIONS, FakeRetriever(), num_counterfactuals=0, keep_documents=1)
        )
        env.reset(seed=0, options={"question": PERU})
        for turn in TURNS[:3]:
            seen, *_ = env.step(turn)
        assert "The seat of Cuba is Havana." in seen
        assert "The seat of Italy is Rome." not in seen
        assert seen == text_of(env.unwrapped.episode.context)  # type: ignore[attr-defined]

    def test_a_record_keeps_it(self) -> None:
        episode = play(engine_of(keep_documents=1, drop_thoughts=True))
        again = episode_from_record(json.loads(json.dumps(episode_record(episode))))
        assert again == episode
        assert again.training_sequences == episode.training_sequences
        old = episode_record(play(engine_of()))
        del old["keep_documents"]
        for step in old["steps"]:
            del step["stub"], step["bare"]
        assert episode_from_record(old) == play(engine_of())

    @pytest.mark.parametrize("value", [0, -1, 1.5, True])
    def test_what_is_no_number_of_turns_is_refused(self, value: Any) -> None:
        with pytest.raises(ValueError, match="keep_documents must be a whole number of at least 1"):
            engine_of(keep_documents=value)
