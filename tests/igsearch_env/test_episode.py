"""The typed data of an episode: what it refuses, and what it shows of its steps."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from igsearch_env.episode import Document, Episode, Question, Segment, Step, changed


class TestQuestion:
    def test_keeps_sequences_as_tuples(self) -> None:
        answers: Any = ["Lima", "City of Kings"]
        ids: Any = ["d1"]
        question = Question("q", "Capital of Peru?", answers, gold_ids=ids)
        assert question.golden_answers == ("Lima", "City of Kings")
        assert question.gold_ids == ("d1",)
        assert hash(question) == hash(
            Question("q", "Capital of Peru?", tuple(answers), "", None, ("d1",))
        )

    @pytest.mark.parametrize("text", ["", "   ", "\n\t"])
    def test_refuses_a_blank_text(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"question 'q7': text must not be blank"):
            Question("q7", text, ("Lima",))

    @pytest.mark.parametrize("bad", ["", " \n", None, 3])
    def test_refuses_an_answer_that_is_no_text(self, bad: Any) -> None:
        with pytest.raises(ValueError, match=re.escape(f"non-blank string, got {bad!r}")):
            Question("q7", "Capital of Peru?", ("Lima", bad))

    @pytest.mark.parametrize("name", ["golden_answers", "gold_ids", "gold_titles"])
    def test_refuses_a_single_string_in_place_of_several(self, name: str) -> None:
        fields: dict[str, Any] = {"golden_answers": ("Lima",), name: "Lima"}
        message = f"question 'q7': {name} must be .* got the string 'Lima'; wrap it in a tuple"
        with pytest.raises(ValueError, match=message):
            Question("q7", "Capital of Peru?", **fields)

    def test_is_frozen(self) -> None:
        question: Any = Question("q", "Capital of Peru?", ("Lima",))
        with pytest.raises(FrozenInstanceError):
            question.text = "Capital of Chile?"

    def test_a_set_of_questions_is_shared_not_copied(self) -> None:
        # Gymnasium copies an environment's arguments; a list becomes a list of the same objects.
        asked = [Question("q", "Capital of Peru?", ("Lima",), gold_ids=("d1",))]
        (twin,) = copy.deepcopy(asked)
        assert twin is asked[0]
        assert pickle.loads(pickle.dumps(twin)) == twin

    def test_replacing_an_answer_checks_again(self) -> None:
        with pytest.raises(ValueError, match="must be a non-blank string"):
            replace(Question("q", "Capital of Peru?", ("Lima",)), golden_answers=(" ",))


def step(action: Any, turn: str, observation: str | None, tokens: slice, **more: Any) -> Step:
    return Step(
        action=action,
        turn=Segment(turn, "policy"),
        observation=None if observation is None else Segment(observation, "document"),
        policy_tokens=tokens,
        query_tokens=slice(tokens.start, tokens.start),
        **more,
    )


class TestEpisode:
    QUESTION = Question("q", "Capital of Peru?", ("Lima",))
    PROMPT = Segment("Answer. Capital of Peru?", "system")
    STEPS = (
        step("search", "S0", "D0", slice(0, 4), search_step=0, information_gain=0.25),
        step("invalid", "oops", "C", slice(4, 6)),
        step("search", "S1", "D1", slice(6, 9), search_step=1),
        step("answer", "A", None, slice(9, 11)),
    )

    def test_before_the_first_step(self) -> None:
        episode = Episode(self.QUESTION, self.PROMPT)
        assert episode.transcript == (self.PROMPT,)
        assert episode.policy_tokens == 0
        assert episode.searches == ()
        assert episode.information_gains == ()
        assert not episode.finished
        assert not episode.retrieval_failed

    def test_views_of_its_steps(self) -> None:
        episode = Episode(self.QUESTION, self.PROMPT, self.STEPS)
        texts = ["Answer. Capital of Peru?", "S0", "D0", "oops", "C", "S1", "D1", "A"]
        assert [segment.text for segment in episode.transcript] == texts
        assert episode.policy_tokens == 11
        assert [search.search_step for search in episode.searches] == [0, 1]
        assert episode.information_gains == (0.25, None)
        assert [step.valid for step in self.STEPS] == [True, False, True, True]

    def test_one_failed_search_marks_the_episode(self) -> None:
        failed = replace(self.STEPS[2], retrieval_failed=True)
        episode = Episode(self.QUESTION, self.PROMPT, (self.STEPS[0], failed))
        assert episode.retrieval_failed
        assert not Episode(self.QUESTION, self.PROMPT, self.STEPS).retrieval_failed

    @pytest.mark.parametrize(
        ("terminated", "truncated", "finished"),
        [(False, False, False), (True, False, True), (False, True, True)],
    )
    def test_either_way_of_ending_finishes(
        self, terminated: bool, truncated: bool, finished: bool
    ) -> None:
        episode = Episode(self.QUESTION, self.PROMPT, terminated=terminated, truncated=truncated)
        assert episode.finished is finished

    def test_survives_pickling(self) -> None:
        episode = Episode(self.QUESTION, self.PROMPT, self.STEPS, group_id="g", outcome=1.0)
        assert pickle.loads(pickle.dumps(episode)) == episode
        assert copy.deepcopy(episode) == episode


class TestNewDocuments:
    LIMA = Document("lima", "Lima", "The capital of Peru.")

    def new(self, *searches: Sequence[Document], attempt: int = 0) -> list[list[str]]:
        """The ids of the new documents of each search."""
        steps = tuple(
            step("search", "S", "D", slice(n, n), search_step=n, documents=tuple(found))
            for n, found in enumerate(searches)
        )
        steps = (*steps[:-1], replace(steps[-1], attempt=attempt))
        episode = Episode(TestEpisode.QUESTION, TestEpisode.PROMPT, steps)
        return [[one.id for one in episode.new_documents(n)] for n in range(len(steps))]

    def test_what_no_earlier_step_found(self) -> None:
        cuba, kenya = Document("cuba", "Cuba", "An island."), Document("kenya", "Kenya", "Nairobi.")
        assert self.new([self.LIMA, cuba], [], [kenya, self.LIMA], [cuba]) == [
            ["lima", "cuba"],
            [],
            ["kenya"],
            [],
        ]
        assert self.new([self.LIMA], [self.LIMA], attempt=1) == [["lima"], []]

    @pytest.mark.parametrize(
        "copy",
        [
            Document("another", "Lima", "The capital of Peru."),
            Document("lima", "Lima", "Another text."),
            Document("another", "LIMA", "the capital\nof  Peru"),
            Document("another", "", "Lima. The capital of Peru"),
            Document("another", "", "\u201cLima\u201d\nThe capi\u00adtal of Peru"),
            Document("another", "Lima", "The capital", whole="The capital of Peru."),
        ],
    )
    def test_a_copy_is_known(self, copy: Document) -> None:
        assert self.new([self.LIMA], [copy]) == [["lima"], []]

    @pytest.mark.parametrize(
        "other",
        [
            Document("another", "Lima", "The capital of Peru since 1535."),
            Document("another", "Quito", "The capital of Ecuador."),
            Document("the capital of peru lima", "", "?"),
        ],
    )
    def test_other_words_are_new(self, other: Document) -> None:
        assert self.new([self.LIMA], [other]) == [["lima"], [other.id]]

    def test_signs_without_a_word_are_compared_as_they_are(self) -> None:
        signs = [Document("a", "", "?!"), Document("b", "", "?!"), Document("c", "", "...")]
        assert self.new(*([one] for one in signs)) == [["a"], [], ["c"]]

    def test_a_part_counts_once_more_when_it_is_shown_whole(self) -> None:
        part = Document("lima", "Lima", "The capital", whole=self.LIMA.text)
        copy = replace(self.LIMA, id="another")
        assert self.new([part], [part], [self.LIMA], [part]) == [["lima"], [], ["lima"], []]
        assert self.new([part], [copy], [self.LIMA]) == [["lima"], ["another"], []]


class TestChanged:
    def test_is_dataclasses_replace(self) -> None:
        episode = Episode(TestEpisode.QUESTION, TestEpisode.PROMPT, TestEpisode.STEPS)
        fields: dict[str, Any] = {"answer": "Lima", "terminated": True}
        assert changed(episode, **fields) == replace(episode, **fields)
        first = episode.steps[0]
        assert changed(first, reward=0.5) == replace(first, reward=0.5)
        assert (first.reward, episode.answer) == (0.0, None)

    def test_refuses_a_field_that_there_is_not(self) -> None:
        with pytest.raises(TypeError, match="Step has no field gain, prize"):
            changed(TestEpisode.STEPS[0], prize=1.0, gain=1.0, reward=1.0)


def test_documents_compare_by_value() -> None:
    assert Document("d", "Peru", "Lima is its capital.") == Document(
        "d", "Peru", "Lima is its capital."
    )
    assert Document("d", "Peru", "x", score=1.0) != Document("d", "Peru", "x")
