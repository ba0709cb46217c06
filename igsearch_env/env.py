"""The environment: a question, a search engine, and a policy that writes turns of text."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from os import PathLike
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from igsearch_env.episode import Episode, Question
from igsearch_env.gain.scorer import AnswerScorer
from igsearch_env.render import render_text
from igsearch_env.retrieval.base import Retriever
from igsearch_env.settings import EnvironmentSettings, make_engine
from igsearch_env.spaces import UnicodeText
from igsearch_env.text import clean_text


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
    ends an attempt ``outcome_parts`` (where the outcome has components) and ``unscored`` (True
    where it could not be had); on one that ends one of several attempts ``attempt`` (its number),
    ``attempt_outcome`` and ``answer``; and on the last call ``answer``, ``em``, ``f1`` and
    ``information_gains``, one per search.

    Args:
        questions: Questions, or the name or file of a set (see
            :func:`igsearch_env.load_questions`).
        retriever: Searches, or the name of what searches (see
            :func:`igsearch_env.open_retriever`). The default is BM25 over the documents of the
            questions' own world.
        scorer: Scores answers; ``"unigram"`` needs no weights. With None, information gain is left
            for :meth:`igsearch_env.InformationGain.settle`.
        settings: The settings; None for the defaults of
            :class:`~igsearch_env.settings.EnvironmentSettings`.
        render_mode: ``"ansi"`` makes :meth:`render` return the episode as text: turns, documents,
            the gain of each search, and the outcome.
        **changes: Fields of :class:`~igsearch_env.settings.EnvironmentSettings`, such as ``top_k``
            and ``max_searches``, and the objects that :func:`~igsearch_env.settings.make_engine`
            takes beside them: ``protocol``, ``outcome``, ``information_gain``, ``shaping``,
            ``pool``.

    Raises:
        ValueError: If an argument is out of range or names something unknown.
        TypeError: If there is no such setting.

    >>> env = SearchQAEnv()
    >>> observation, info = env.reset(seed=1)
    >>> print(observation.splitlines()[-1])
    Question: what is the customer of the customer of the investment of Fatos Branson ?
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(
        self,
        questions: Sequence[Question] | str | PathLike[str] | None = None,
        retriever: Retriever | str | Path | None = None,
        scorer: AnswerScorer | str | None = "unigram",
        *,
        settings: EnvironmentSettings | None = None,
        render_mode: str | None = None,
        **changes: Any,
    ) -> None:
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode must be 'ansi' or None, got {render_mode!r}")
        self.engine = make_engine(questions, retriever, scorer, settings=settings, **changes)
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
        seed = None if seed is None else index(seed)  # Gymnasium refuses NumPy's integers
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
        before = len(self.episode.steps)
        ((episode, info),) = self.engine.step([self.episode], [action])
        self._episode = episode
        text, reward = episode.said_since(before), episode.steps[-1].reward
        return text, reward, episode.terminated, episode.truncated, info

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
    return question, clean_text(str(options.get("group_id", "")))


def pick_question(questions: Sequence[Question], rng: np.random.Generator) -> Question:
    """A random question."""
    return questions[int(rng.integers(len(questions)))]
