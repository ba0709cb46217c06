"""The pool that counterfactual evidence is drawn from."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from igsearch_env.answers import answer_finder, normalize_answer
from igsearch_env.episode import Document, Evidence, Question
from igsearch_env.record import evidence_from_record, to_record


class EvidencePool:
    """Evidence of recent searches, with a random generator of its own.

    A draw for a question never returns evidence of the same question, nor evidence that holds a
    gold answer of it or shares a document with what was really retrieved. Questions whose gold is
    yes or no are exempt from the second rule: nearly every document holds such a word.

    Args:
        capacity: How much evidence is kept, in searches; the oldest goes first.
        tries: How many candidates are looked at for each one drawn.
        seed: Seed of the generator.

    Attributes:
        counts: What has happened: ``drawn``, ``rejected``, and, counted by the environment,
            ``fallback`` (documents found for another question's text instead) and ``short``
            (counterfactuals that could not be had at all).
    """

    def __init__(self, capacity: int = 1024, tries: int = 20, seed: int = 0) -> None:
        if capacity < 1 or tries < 1:
            raise ValueError(f"capacity and tries must be at least 1, got {capacity} and {tries}")
        self.capacity = capacity
        self.tries = tries
        self.seed(seed)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __len__(self) -> int:
        return len(self._evidence)

    def seed(self, seed: int) -> None:
        """Forget all evidence and start the generator and the counts anew.

        The stream is not that of ``default_rng(seed)``, from which the environment that shares the
        seed picks its questions: a fallback would look up the very question that was asked.
        """
        self._seed = int(seed)
        self.rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
        self.counts: Counter[str] = Counter()
        self._evidence: list[Evidence] = []
        self._refined: list[Evidence] | None = None  # those with a refinement, once asked for
        self._oldest = 0

    def add(self, evidence: Evidence) -> None:
        """Add evidence, unless it has no documents."""
        if not evidence.documents:
            return
        self._refined = None
        if len(self._evidence) < self.capacity:
            self._evidence.append(evidence)
        else:
            self._evidence[self._oldest] = evidence
            self._oldest = (self._oldest + 1) % self.capacity

    def shared_rng(self, group_id: str, number: int) -> np.random.Generator:
        """A generator that every rollout of a group gets alike for its search ``number``."""
        key = (2, zlib.crc32(group_id.encode()), number)
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=key))

    def draw(
        self,
        question: Question,
        documents: Sequence[Document],
        count: int,
        rng: np.random.Generator | None = None,
    ) -> list[Evidence]:
        """Draw evidence of up to ``count`` distinct searches for a search of ``question``.

        Evidence with a refinement is preferred where the pool holds enough of it: whether the
        policy will refine what it just found is not known yet.

        Args:
            question: The question that was searched for.
            documents: What the search returned.
            count: How many are wanted.
            rng: What to draw with; the pool's own generator by default.

        Returns:
            The evidence; fewer than ``count`` if ``tries`` looks for each did not find more.
        """
        return self.draw_each([(question, documents)], count, rng)[0]

    def draw_each(
        self,
        searches: Sequence[tuple[Question, Sequence[Document]]],
        count: int,
        rng: np.random.Generator | None = None,
    ) -> list[list[Evidence]]:
        """:meth:`draw` for several searches, one after the other.

        Args:
            searches: The question of each search, and what it returned.
            count: How many are wanted for each.
            rng: What to draw with; the pool's own generator by default.
        """
        rng = self.rng if rng is None else rng
        if not self._evidence:
            return [[] for _ in searches]
        if self._refined is None:
            self._refined = [one for one in self._evidence if one.refinement.text]
        candidates = self._refined if len(self._refined) >= count else self._evidence
        # As many as are looked at in any case. Drawn at once they cost a tenth, if they are many,
        # and the same numbers come out.
        least = len(searches) * count
        places = iter(rng.integers(len(candidates), size=least).tolist() if least > 8 else ())
        every: list[list[Evidence]] = []
        for question, documents in searches:
            allowed = _rule(question, documents)
            drawn: list[Evidence] = []
            for _ in range(count):
                for _ in range(self.tries):
                    place = next(places, None)
                    evidence = candidates[rng.integers(len(candidates)) if place is None else place]
                    if evidence not in drawn and allowed(evidence):
                        drawn.append(evidence)
                        self.counts["drawn"] += 1
                        break
                    self.counts["rejected"] += 1
            every.append(drawn)
        return every

    def allows(self, evidence: Evidence, question: Question, documents: Sequence[Document]) -> bool:
        """Whether evidence may stand in for ``documents``, retrieved for ``question``."""
        return _rule(question, documents)(evidence)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here, as JSON-ready data."""
        return {
            "pairs": [to_record(one) for one in self._evidence],
            "oldest": self._oldest,
            "counts": dict(self.counts),
            "seed": self._seed,
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._evidence = [evidence_from_record(one) for one in state["pairs"]]
        self._refined = None
        self._oldest = state["oldest"]
        self.counts = Counter(state["counts"])
        self._seed = state["seed"]
        self.rng.bit_generator.state = state["rng"]


def _rule(question: Question, documents: Sequence[Document]) -> Callable[[Evidence], bool]:
    """What evidence has to fulfil to stand in for ``documents``, retrieved for ``question``."""
    asked = normalize_answer(question.text)
    retrieved = {document.id for document in documents}
    holds_answer = answer_finder(question.golden_answers)
    yes_or_no = {normalize_answer(gold) for gold in question.golden_answers} <= {"yes", "no"}

    def allowed(evidence: Evidence) -> bool:
        if evidence.question_id == question.id or normalize_answer(evidence.question_text) == asked:
            return False
        for document in evidence.documents:  # loops: this runs for every candidate of every search
            if document.id in retrieved:
                return False
        if yes_or_no:
            return True
        for document in evidence.documents:
            if holds_answer(f"{document.title} {document.text}"):
                return False
        said = evidence.refinement.text
        return not said or not holds_answer(said)

    return allowed
