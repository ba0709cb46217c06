"""The pool that counterfactual evidence is drawn from."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from igsearch_env.answers import contains_answer, normalize_answer
from igsearch_env.episode import Document, Evidence, Question
from igsearch_env.record import evidence_from_record, to_record


class EvidencePool:
    """Pairs of documents and refinement from recent searches, with a random generator of its own.

    A draw for a question never returns a pair of the same question, one whose passages hold a gold
    answer of it, or one that shares a passage with what was really retrieved. Questions whose gold
    is yes or no are exempt from the second rule: nearly every passage holds such a word.

    Args:
        capacity: How many pairs are kept; the oldest go first.
        tries: How many pairs are looked at for each one drawn.
        seed: Seed of the generator.

    Attributes:
        counts: What has happened: ``drawn``, ``rejected``, and, counted by the environment,
            ``fallback`` (passages found for another question's text instead) and ``short``
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
        return len(self._pairs)

    def seed(self, seed: int) -> None:
        """Forget every pair and start the generator and the counts anew.

        The stream is not that of ``default_rng(seed)``, from which the environment that shares the
        seed picks its questions: a fallback would look up the very question that was asked.
        """
        self._seed = int(seed)
        self.rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
        self.counts: Counter[str] = Counter()
        self._pairs: list[Evidence] = []
        self._refined: list[Evidence] | None = None  # those with a refinement, once asked for
        self._oldest = 0

    def add(self, evidence: Evidence) -> None:
        """Add a pair; one without documents is of no use and is left out."""
        if not evidence.documents:
            return
        self._refined = None
        if len(self._pairs) < self.capacity:
            self._pairs.append(evidence)
        else:
            self._pairs[self._oldest] = evidence
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
        """Draw up to ``count`` distinct pairs for a search of ``question``.

        Pairs with a refinement are preferred where the pool holds enough of them: whether the
        policy will refine what it just found is not known yet.

        Args:
            question: The question that was searched for.
            documents: What the search returned.
            count: How many pairs are wanted.
            rng: What to draw with; the pool's own generator by default.

        Returns:
            The pairs; fewer than ``count`` if ``tries`` looks for each did not find more.
        """
        rng = self.rng if rng is None else rng
        drawn: list[Evidence] = []
        if not self._pairs:
            return drawn
        if self._refined is None:
            self._refined = [pair for pair in self._pairs if pair.refinement.text]
        pairs = self._refined if len(self._refined) >= count else self._pairs
        allowed = _rule(question, documents)
        for _ in range(count):
            for _ in range(self.tries):
                pair = pairs[int(rng.integers(len(pairs)))]
                if pair not in drawn and allowed(pair):
                    drawn.append(pair)
                    self.counts["drawn"] += 1
                    break
                self.counts["rejected"] += 1
        return drawn

    def allows(self, pair: Evidence, question: Question, documents: Sequence[Document]) -> bool:
        """Whether a pair may stand in for ``documents``, retrieved for ``question``."""
        return _rule(question, documents)(pair)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here, as JSON-ready data."""
        return {
            "pairs": [to_record(pair) for pair in self._pairs],
            "oldest": self._oldest,
            "counts": dict(self.counts),
            "seed": self._seed,
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._pairs = [evidence_from_record(pair) for pair in state["pairs"]]
        self._refined = None
        self._oldest = state["oldest"]
        self.counts = Counter(state["counts"])
        self._seed = state["seed"]
        self.rng.bit_generator.state = state["rng"]


def _rule(question: Question, documents: Sequence[Document]) -> Callable[[Evidence], bool]:
    """What a pair has to fulfil to stand in for ``documents``, retrieved for ``question``."""
    asked = normalize_answer(question.text)
    retrieved = {document.id for document in documents}
    yes_or_no = {normalize_answer(gold) for gold in question.golden_answers} <= {"yes", "no"}

    def allowed(pair: Evidence) -> bool:
        if pair.question_id == question.id or normalize_answer(pair.question_text) == asked:
            return False
        if any(document.id in retrieved for document in pair.documents):
            return False
        if yes_or_no:
            return True
        texts = [f"{document.title} {document.text}" for document in pair.documents]
        if pair.refinement.text:
            texts.append(pair.refinement.text)
        return not any(contains_answer(text, question.golden_answers) for text in texts)

    return allowed
