"""Budgets: what is cut, where, and when an episode ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf, log
from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env

from igsearch_env import BM25Retriever, Document, SearchQAEnv
from igsearch_env.budgets import CUT, Budgets, Room, WordCounter, room_for
from igsearch_env.engine import SearchQAEngine
from igsearch_env.episode import NO_REFINEMENT, Episode, Evidence, Question
from igsearch_env.evaluation.metrics import batch_metrics
from igsearch_env.gain.scorer import UnigramScorer
from igsearch_env.record import episode_from_record, episode_record
from igsearch_env.render import render_text
from igsearch_env.settings import make_engine
from tests.igsearch_env.fakes import PERU, QUESTIONS, SWAP_PAIRS, sampled

LONG = [
    Document("a", "Peru", "Lima is big. It is the seat of Peru."),
    Document("b", "Peru too", "Cusco was the seat of the Inca."),
    Document("c", "Peru again", "Trujillo lies in the north of Peru."),
]


class Found:
    """Finds the same documents for every query."""

    def __init__(self, documents: Sequence[Document] = LONG) -> None:
        self.documents = documents
        self.queries: list[str] = []

    def __deepcopy__(self, memo: dict[int, object]) -> Found:
        return self

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        self.queries += queries
        return [list(self.documents[:k]) for _ in queries]


def engine_of(retriever: Found | None = None, **budgets: Any) -> SearchQAEngine:
    options = {"num_counterfactuals": 0, **budgets}
    return make_engine(QUESTIONS, retriever or Found(), "unigram", **options)


def play(
    engine: SearchQAEngine, *turns: str, question: Question = PERU
) -> tuple[Episode, dict[str, Any]]:
    episode, info = engine.rules.begin(question), dict[str, Any]()
    for turn in turns:
        ((episode, info),) = engine.step([episode], [turn])
    return episode, info


SEARCH = "<search> Peru </search>"


class TestDocuments:
    def test_a_document_is_cut_at_a_token_and_marked(self) -> None:
        episode, info = play(engine_of(document_tokens=4), SEARCH)
        (step,) = episode.steps
        assert [d.text for d in step.documents] == [
            "Lima is big." + CUT,
            "Cusco was the seat" + CUT,
            "Trujillo lies in the" + CUT,
        ]
        assert [d.whole for d in step.documents] == [d.text for d in LONG]
        assert step.cut == info["cut"] == ("document",)
        assert step.observation is not None
        assert 'Doc 1 (Title: "Peru") Lima is big. [cut]\n' in step.observation.text

    def test_what_fits_is_left_alone(self) -> None:
        episode, info = play(engine_of(document_tokens=11, observation_tokens=200), SEARCH)
        assert episode.steps[0].documents == tuple(LONG)
        assert episode.steps[0].cut == ()
        assert "cut" not in info

    def test_an_observation_is_cut_where_its_tokens_end(self) -> None:
        # 11 tokens for the first document, 3 are left for the second, none for the third.
        (step,) = play(engine_of(observation_tokens=14), SEARCH)[0].steps
        assert [d.text for d in step.documents] == [LONG[0].text, "Cusco was the" + CUT]
        assert step.cut == ("observation",)
        (step,) = play(engine_of(observation_tokens=11), SEARCH)[0].steps
        assert [d.text for d in step.documents] == [LONG[0].text + CUT]
        assert step.documents[0].whole == LONG[0].text

    def test_the_tighter_budget_is_named(self) -> None:
        (step,) = play(engine_of(document_tokens=9, observation_tokens=14), SEARCH)[0].steps
        assert step.cut == ("document", "observation")
        (step,) = play(engine_of(snippet_tokens=2, document_tokens=9), SEARCH)[0].steps
        assert step.cut == ("snippet",)
        assert step.documents[2].text == "Trujillo lies" + CUT

    def test_calls_of_a_turn_share_an_observation(self) -> None:
        assert room_for(Budgets(observation_tokens=15), inf, 4).result == (3, "observation")
        assert room_for(Budgets(observation_tokens=3), inf, 4).result == (1, "observation")
        assert room_for(Budgets(observation_tokens=9), 8, 2).result == (4, "episode")

    @pytest.mark.parametrize("most", range(1, 30))
    def test_against_a_slow_count(self, most: int) -> None:
        """Word by word: a document goes on as long as the words of all of them do not run out."""
        counter = WordCounter()
        words = [(d.id, end) for d in LONG for end in counter.token_ends(d.text)]
        last = dict(words[:most])  # the end of the last word that fits, by document
        shown, hit = Room(result=(most, "observation")).fit(LONG, counter)
        assert [d.id for d in shown] == list(last)
        for document in shown:
            whole = next(d.text for d in LONG if d.id == document.id)
            kept = whole[: last[document.id]]
            complete = document.text in (whole, whole + CUT)
            assert complete if kept == whole else document.text == kept + CUT
        assert bool(hit) == (most < len(words))
        assert shown[-1].text.endswith(CUT) == (most < len(words))

    def test_counterfactuals_are_cut_alike(self) -> None:
        engine = engine_of(document_tokens=3, num_counterfactuals=2)
        for evidence in SWAP_PAIRS:
            engine.pool.add(evidence)
        (step,) = play(engine, SEARCH)[0].steps
        texts = {d.text for e in step.counterfactuals for d in e.documents}
        assert texts == {"Nairobi is in" + CUT, "So is Mombasa" + CUT, "Tokyo is in" + CUT}

    @pytest.mark.parametrize(("tokens", "shown"), [(1, 0), (2, 1), (None, 1)])
    def test_a_gain_is_that_of_what_was_shown(self, tokens: int | None, shown: int) -> None:
        """By hand: the document says "Lyon" if not after the cut.

        Both contexts are equally long, so that the lengths cancel.
        """
        other = Evidence((Document("x", "Peru", "Na nb nc nd."),), NO_REFINEMENT, "x", "x")
        engine = engine_of(
            Found([Document("a", "Peru", "Qa Lyon qb qc.")]),
            document_tokens=tokens,
            num_counterfactuals=1,
            floor="none",
        )
        engine.pool.add(other)
        lyon = replace(PERU, golden_answers=("Lyon",))
        step = play(engine, SEARCH, question=lyon)[0].steps[0]
        share = 1 / UnigramScorer().vocabulary_size
        assert step.information_gain == pytest.approx(log((shown + share) / share))


class TestEpisodes:
    PROMPT = len(WordCounter().token_ends(engine_of().rules.begin(PERU).prompt.text))

    def test_the_transcript_is_counted(self) -> None:
        episode, _ = play(engine_of(episode_tokens=10_000), SEARCH, "<answer>Lima</answer>")
        count = WordCounter().token_ends
        assert episode.tokens == sum(len(count(part.text)) for part in episode.transcript)
        sampled_one, _ = play(engine_of(episode_tokens=10_000), sampled(SEARCH, size=2))
        turn, observation = sampled_one.transcript[1:]
        assert turn.token_ids is not None
        expected = self.PROMPT + len(turn.token_ids) + len(count(observation.text))
        assert sampled_one.tokens == expected

    def test_an_observation_gets_what_is_left_and_one_turn_follows(self) -> None:
        written = len(WordCounter().token_ends(SEARCH))
        retriever = Found()
        engine = engine_of(retriever, episode_tokens=self.PROMPT + written + 4)
        first, info = play(engine, SEARCH)
        assert [d.text for d in first.steps[0].documents] == ["Lima is big." + CUT]
        assert info["cut"] == ("episode",)
        assert not first.finished
        ((right, _),) = engine.step([first], ["<answer>Lima</answer>"])
        assert (right.terminated, right.em, right.ended_by) == (True, 1.0, "")
        ((over, info),) = engine.step([first], [SEARCH])
        assert over.truncated
        assert over.ended_by == info["ended_by"] == "tokens"
        assert over.steps[-1].observation is not None
        assert "no tokens left" in over.steps[-1].observation.text
        assert retriever.queries == ["Peru"]  # the second search was not made
        assert "no answer before the tokens ran out" in render_text(over)

    def test_a_turn_that_leaves_no_room_searches_in_vain(self) -> None:
        retriever = Found()
        engine = engine_of(retriever, episode_tokens=self.PROMPT + 5)
        episode, _ = play(engine, f"{'word ' * 9}{SEARCH}")
        assert episode.steps[0].action == "invalid"
        assert not episode.finished
        assert retriever.queries == []
        assert engine.step([episode], ["hm"])[0][0].ended_by == "tokens"

    def test_no_attempt_follows_when_tokens_have_run_out(self) -> None:
        engine = engine_of(episode_tokens=self.PROMPT, max_attempts=3)
        episode, _ = play(engine, "<answer>Rome</answer>")
        assert episode.terminated
        engine = engine_of(episode_tokens=self.PROMPT + 1, max_attempts=3)
        episode, _ = play(engine, "<answer>Rome</answer>")
        assert episode.attempt == 1
        ((episode, _),) = engine.step([episode], ["<answer>Rome</answer>"])
        assert episode.terminated

    def test_turns(self) -> None:
        episode, _ = play(engine_of(max_turns=2), SEARCH, SEARCH)
        assert (episode.truncated, episode.ended_by) == (True, "turns")
        assert len(play(engine_of(max_searches=1), *["hm"] * 3)[0].steps) == 3

    def test_seconds(self) -> None:
        now = [100.0]
        engine = engine_of(max_seconds=5.0)
        engine = replace(engine, rules=replace(engine.rules, clock=lambda: now[0]))
        episode, _ = play(engine, SEARCH)
        assert not episode.finished
        now[0] = 104.9
        ((episode, _),) = engine.step([episode], [SEARCH])
        assert not episode.finished
        now[0] = 105.0
        ((late, info),) = engine.step([episode], [SEARCH])
        assert (late.truncated, late.ended_by) == (True, "seconds")
        assert info["ended_by"] == "seconds"
        assert late.steps[-1].action == "invalid"
        ((late, _),) = engine.step([episode], ["<answer>Lima</answer>"])
        assert (late.terminated, late.em) == (True, 1.0)

    def test_what_was_hit_stands_in_the_metrics_and_the_record(self) -> None:
        whole, _ = play(engine_of(), SEARCH, "<answer>Lima</answer>")
        assert not {"cut_observations", "out_of_budget"} & batch_metrics([whole]).keys()
        cut, _ = play(engine_of(document_tokens=4, episode_tokens=self.PROMPT + 9), SEARCH, SEARCH)
        found = batch_metrics([whole, cut])
        assert (found["cut_observations"], found["out_of_budget"]) == (0.5, 0.5)
        assert episode_from_record(episode_record(cut)) == cut


def test_a_record_of_before_there_were_budgets_still_opens() -> None:
    episode, _ = play(engine_of(), SEARCH, "<answer>Lima</answer>")
    record = episode_record(episode)
    for name in ("ended_by", "tokens", "began"):
        del record[name]
    for step in record["steps"]:
        for name in ("cut", "call", "tool"):
            del step[name]
        for document in step["documents"]:
            del document["whole"]
    assert episode_from_record(record) == episode


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("document_tokens", 0),
        ("observation_tokens", 2.5),
        ("episode_tokens", True),
        ("max_turns", -1),
        ("max_seconds", inf),
        ("snippet_tokens", "9"),
    ],
)
def test_what_is_no_limit_is_refused(name: str, value: Any) -> None:
    field = name.removeprefix("max_")
    with pytest.raises(ValueError, match=f"{field} must be a .* or None, got {value!r}"):
        engine_of(**{name: value})


def test_an_environment_passes_the_checks_of_gymnasium_with_budgets() -> None:
    env = SearchQAEnv(
        QUESTIONS,
        BM25Retriever.build(LONG),
        top_k=2,
        document_tokens=5,
        observation_tokens=8,
        episode_tokens=400,
        max_seconds=1000.0,
    )
    check_env(env, skip_render_check=True)


def test_the_tokenizer_that_is_given_counts() -> None:
    """Budgets of an environment count with the tokenizer that it is given."""

    class Letters:
        def token_ends(self, text: str) -> list[int]:
            return list(range(1, len(text) + 1))

    env = SearchQAEnv(
        QUESTIONS,
        Found(),
        tokenizer=Letters(),
        document_tokens=3,
        num_counterfactuals=0,
    )
    env.reset(options={"question": PERU})
    *_, info = env.step(SEARCH)
    assert [d.text for d in info["documents"]] == ["Lim" + CUT, "Cus" + CUT, "Tru" + CUT]
