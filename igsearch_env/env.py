"""The environment: a question, a search engine, and a policy that writes turns of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from igsearch_env.engine import Outcome
from igsearch_env.episode import Episode, Question
from igsearch_env.gain.information_gain import Counterfactual, InformationGain
from igsearch_env.gain.pool import EvidencePool
from igsearch_env.gain.scorer import AnswerScorer
from igsearch_env.gain.shaping import Shaping
from igsearch_env.protocol.tags import TagProtocol
from igsearch_env.render import render_text
from igsearch_env.retrieval.base import Retriever
from igsearch_env.settings import make_engine
from igsearch_env.spaces import UnicodeText


class SearchQAEnv(gymnasium.Env[str, str]):
    """Multi-turn question answering with a search engine.

    An action is the text of one turn: a search or an answer inside its tags. An observation is the
    new text only: the prompt, then rendered documents or a correction; ``env.unwrapped.episode``
    holds everything so far. The reward is the outcome of the answer, and ``info`` carries the
    information gain of each search.

    Info keys, absent where a call has no value for them: ``action`` (``"search"``, ``"answer"`` or
    ``"invalid"``), ``search_step``, ``query``, ``query_span`` (characters of the turn between the
    tags), ``documents``, ``retrieval_failed``; ``information_gain`` (nats per answer token) of the
    search ``information_gain_step``, with ``log_prob`` and ``baseline_log_probs``; on a call that
    ends one of several attempts ``attempt`` (its number), ``attempt_outcome`` and ``answer``; and
    on the last call ``answer``, ``em``, ``f1`` and ``information_gains``, one per search.

    Args:
        questions: Questions, or the name or file of a set (see
            :func:`igsearch_env.load_questions`).
        retriever: Searches; ``"bm25"`` is BM25 over the embedded world, another string the folder
            of a saved index, or the http:// address of a server (Search-R1's dialect).
        scorer: Scores answers; ``"unigram"`` needs no weights. With None, information gain is left
            for :meth:`igsearch_env.InformationGain.settle`.
        protocol: The tag grammar or the name of a preset.
        max_searches: Searches per attempt. After ``2 * max_searches + 1`` turns without an answer
            it has ended, and the episode is truncated if it was the last.
        max_attempts: Attempts at the question. An answer (or the end of an attempt without one) is
            followed by the protocol's reflection, which asks for another attempt and does not say
            whether the answer was right. The reward is the outcome of the last attempt, paid at
            the end; ``episode.attempt_outcomes`` has all of them.
        top_k: Documents per search.
        num_counterfactuals: N, counterfactual contexts per search; 0 for no information gain.
        counterfactual: What they swap, ``"documents+refinement"`` or ``"documents"``.
        information_gain: All settings of the gain, in place of ``counterfactual``.
        information_gain_weight: Weight of the shaped gain in the reward of the call in which it
            settles, for algorithms that do not look at ``info``.
        shaping: How a gain is shaped for that.
        outcome: ``"em"``, ``"f1"``, or a function of the answer (None if there is none) and the
            question.
        pool: Where counterfactual evidence is kept; share one between environments to mix theirs.
        shared_counterfactuals: Whether rollouts of one group draw the same evidence for a search
            that they make in the same step of a vector environment.
        render_mode: ``"ansi"`` makes :meth:`render` return the episode as text: turns, documents,
            the gain of each search, and the outcome.

    Raises:
        ValueError: If an argument is out of range or names something unknown.

    >>> env = SearchQAEnv()
    >>> observation, info = env.reset(seed=1)
    >>> print(observation.splitlines()[-1])
    Question: what is the customer of the customer of the investment of Fatos Branson ?
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(
        self,
        questions: Sequence[Question] | str = "world-train",
        retriever: Retriever | str = "bm25",
        scorer: AnswerScorer | str | None = "unigram",
        *,
        protocol: TagProtocol | str = "refine",
        max_searches: int = 5,
        max_attempts: int = 1,
        top_k: int = 3,
        num_counterfactuals: int = 3,
        counterfactual: Counterfactual = "documents+refinement",
        information_gain: InformationGain | None = None,
        information_gain_weight: float = 0.0,
        shaping: Shaping | None = None,
        outcome: Outcome = "em",
        pool: EvidencePool | None = None,
        shared_counterfactuals: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode must be 'ansi' or None, got {render_mode!r}")
        self.engine = make_engine(
            questions,
            retriever,
            scorer,
            protocol=protocol,
            max_searches=max_searches,
            max_attempts=max_attempts,
            top_k=top_k,
            num_counterfactuals=num_counterfactuals,
            counterfactual=counterfactual,
            information_gain=information_gain,
            information_gain_weight=information_gain_weight,
            shaping=shaping,
            outcome=outcome,
            pool=pool,
            shared_counterfactuals=shared_counterfactuals,
        )
        self.render_mode = render_mode
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self._episode: Episode | None = None

    @property
    def episode(self) -> Episode:
        """The episode so far.

        Raises:
            RuntimeError: Before the first ``reset()``.
        """
        if self._episode is None:
            raise RuntimeError("there is no episode yet; call reset() first")
        return self._episode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Reseeds the choice of questions, and clears and reseeds the evidence pool.
            options: ``question`` (a :class:`Question`) to ask instead of a random one, and
                ``group_id``, which rollouts of one group share.

        Returns:
            The prompt, and an info with the ``question``.
        """
        super().reset(seed=seed)
        if seed is not None:
            self.engine.pool.seed(seed)
        question, group_id = read_options(options or {})
        if question is None:
            question = pick_question(self.engine.questions, self.np_random)
        self._episode = self.engine.rules.begin(question, group_id)
        return self._episode.prompt.text, {"question": question}

    def step(self, action: str) -> tuple[str, SupportsFloat, bool, bool, dict[str, Any]]:
        """Play one turn.

        Args:
            action: The text of the turn; a :class:`Completion` keeps its tokens.

        Returns:
            Observation, reward, terminated, truncated, info.

        Raises:
            TypeError: If the action is not a string.
            RuntimeError: If the episode has ended.
        """
        ((episode, info),) = self.engine.play([self.episode], [action])
        self._episode = episode
        step = episode.steps[-1]
        text = "".join(reply.text for reply in step.replies)
        return text, step.reward, episode.terminated, episode.truncated, info

    def render(self) -> str | None:
        """The episode as text (:func:`~igsearch_env.render.render_text`), in mode ``"ansi"``."""
        return None if self.render_mode is None else render_text(self.episode)


def read_options(options: dict[str, Any]) -> tuple[Question | None, str]:
    """The question and group id among the options of a reset, checked."""
    unknown = set(options) - {"question", "group_id"}
    if unknown:
        raise ValueError(
            f"unknown reset options {sorted(unknown)}; known are 'question' and 'group_id'"
        )
    question = options.get("question")
    if question is not None and not isinstance(question, Question):
        raise TypeError(f"options['question'] must be a Question, got {type(question).__name__}")
    return question, str(options.get("group_id", ""))


def pick_question(questions: Sequence[Question], rng: np.random.Generator) -> Question:
    """A random question."""
    return questions[int(rng.integers(len(questions)))]
