"""Many episodes side by side, with one search and one scoring call per step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from igsearch_env.env import pick_question, read_options
from igsearch_env.episode import Episode, Question
from igsearch_env.render import render_text
from igsearch_env.settings import make_engine
from igsearch_env.spaces import UnicodeText

Flags = NDArray[np.bool_]


class SearchQAVectorEnv(VectorEnv[tuple[str, ...], Sequence[str], NDArray[Any]]):
    """Several :class:`SearchQAEnv` whose searches and scorings are batched.

    By default there is no autoreset: a row that has ended stays ended (its action is ignored; empty
    text, reward 0, both flags False, no info) until ``reset(options={"reset_mask": ...})`` starts
    it anew. The rows share one evidence pool. ``info`` marks which rows have a key with ``_key``.

    Loops that never call ``reset`` again, such as CleanRL's, need ``autoreset_mode="NextStep"``:
    the step after the one that ended a row begins a new episode there. It ignores the row's action
    and gives the prompt, reward 0, both flags False and ``question`` in the info. A trainer must
    leave such steps out, as with every Gymnasium environment in this mode.

    Loops after Stable-Baselines want ``autoreset_mode="SameStep"``: the call that ends a row gives
    its reward and flags, and already the prompt of the next episode with its ``question``. What
    the call itself brought stands in the info as ``final_obs`` and ``final_info``.

    Args:
        num_envs: Number of rows.
        autoreset_mode: A :class:`gymnasium.vector.AutoresetMode` or its value: ``"Disabled"``,
            ``"NextStep"`` or ``"SameStep"``.
        render_mode: ``"ansi"`` makes :meth:`render` return each row as text.
        **kwargs: As for :class:`SearchQAEnv`.

    Attributes:
        final_episodes: With ``"SameStep"``, the episodes that the last call ended, by row.
    """

    metadata = {  # noqa: RUF012 (Gymnasium's own convention)
        "render_modes": ["ansi"],
        "render_fps": 1,
        "autoreset_mode": AutoresetMode.DISABLED,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.DISABLED,
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode must be 'ansi' or None, got {render_mode!r}")
        mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": mode}
        self.engine = make_engine(**kwargs)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_observation_space = UnicodeText()
        self.single_action_space = UnicodeText()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators = [np.random.default_rng() for _ in range(num_envs)]
        self._episodes: list[Episode] = []
        self.final_episodes: dict[int, Episode] = {}

    @property
    def episodes(self) -> tuple[Episode, ...]:
        """The episode of each row so far.

        Raises:
            RuntimeError: Before the first ``reset()``.
        """
        if not self._episodes:
            raise RuntimeError("there are no episodes yet; call reset() first")
        return tuple(self._episodes)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Start episodes.

        Args:
            seed: One seed, from which row i gets ``seed + i``, or one per row; rows that are left
                alone keep theirs. The first one clears and reseeds the evidence pool.
            options: ``reset_mask``, shape (num_envs,), for the rows to start anew (all of them by
                default); ``questions`` and ``group_ids``, one per row.

        Returns:
            The prompts (empty text for rows that were left alone), and an info with ``question``.
        """
        options = dict(options or {})
        mask = self._mask(options.pop("reset_mask", None))
        questions = self._per_row(options.pop("questions", None), "questions")
        group_ids = self._per_row(options.pop("group_ids", None), "group_ids")
        if options:
            raise ValueError(
                f"unknown reset options {sorted(options)}; known are 'reset_mask', 'questions' "
                "and 'group_ids'"
            )
        if not self._episodes and not mask.all():
            raise RuntimeError("the first reset() must start every row; leave out reset_mask")
        self._seed(seed, mask)
        self._episodes = [
            self._begin(row, questions[row], group_ids[row]) if mask[row] else self._episodes[row]
            for row in range(self.num_envs)
        ]
        infos = self._stacked(
            (int(row), {"question": self._episodes[row].question}) for row in np.flatnonzero(mask)
        )
        texts = (e.prompt.text if new else "" for e, new in zip(self._episodes, mask, strict=True))
        return tuple(texts), infos

    def step(
        self, actions: Sequence[str]
    ) -> tuple[tuple[str, ...], NDArray[Any], Flags, Flags, dict[str, Any]]:
        """Play one turn of every row that has not ended.

        With ``autoreset_mode="NextStep"`` the others begin a new episode; with ``"SameStep"`` those
        begin one that end in this call.

        Args:
            actions: The text of one turn per row; those of ended rows are ignored.

        Returns:
            Observations (num_envs texts), rewards (num_envs,), terminated (num_envs,), truncated
            (num_envs,), and infos.

        Raises:
            ValueError: If there is not one action per row.
            TypeError: If an action of a running row is not a string.
        """
        if isinstance(actions, str) or len(actions) != self.num_envs:
            got = "a single str" if isinstance(actions, str) else str(len(actions))
            raise ValueError(f"expected {self.num_envs} actions, one per row, got {got}")
        over = [row for row, episode in enumerate(self.episodes) if episode.finished]
        rows = [row for row, episode in enumerate(self.episodes) if not episode.finished]
        texts = [""] * self.num_envs
        rewards = np.zeros(self.num_envs)
        terminated = np.zeros(self.num_envs, dtype=np.bool_)
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        played = self.engine.step([self._episodes[row] for row in rows], [actions[r] for r in rows])
        for row, (episode, _) in zip(rows, played, strict=True):
            texts[row] = episode.said_since(len(self.episodes[row].steps))
            self._episodes[row] = episode
            rewards[row] = episode.steps[-1].reward
            terminated[row], truncated[row] = episode.terminated, episode.truncated
        shown = {row: info for row, (_, info) in zip(rows, played, strict=True)}
        if self.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP:
            for row in over:
                texts[row], shown[row] = self._begin_anew(row)
        final: dict[str, Any] = {}
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            ended = [row for row in rows if self._episodes[row].finished]
            self.final_episodes = {row: self._episodes[row] for row in ended}
            if ended:
                final = self._stacked((row, {"final_obs": texts[row]}) for row in ended)
                final["final_info"] = self._stacked((row, shown[row]) for row in ended)
                final["_final_info"] = final["_final_obs"].copy()
            for row in ended:
                texts[row], shown[row] = self._begin_anew(row)
        infos = self._stacked(shown.items()) | final
        return tuple(texts), rewards, terminated, truncated, infos

    def render(self) -> tuple[str, ...] | None:
        """Each row as text (:func:`~igsearch_env.render.render_text`), in mode ``"ansi"``."""
        return None if self.render_mode is None else tuple(map(render_text, self.episodes))

    def _stacked(self, infos: Iterable[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
        """Infos of rows by key, one array at a time.

        The engine's values (numbers, text, tuples, records) come out as ``VectorEnv._add_info``
        has them.
        """
        columns: dict[str, dict[int, Any]] = {}
        for row, info in infos:
            for key, value in info.items():
                columns.setdefault(key, {})[row] = value
        stacked: dict[str, Any] = {}
        for key, column in columns.items():
            kind = type(next(iter(column.values())))
            known = kind in (int, float, bool)
            array = np.zeros(self.num_envs, kind) if known else np.full(self.num_envs, None, object)
            for row, value in column.items():
                array[row] = value
            present = np.zeros(self.num_envs, dtype=np.bool_)
            present[list(column)] = True
            stacked |= {key: array, f"_{key}": present}
        return stacked

    def _begin_anew(self, row: int) -> tuple[str, dict[str, Any]]:
        """Start an episode without being asked to; its prompt and info."""
        self._episodes[row] = episode = self._begin(row, None, None)
        return episode.prompt.text, {"question": episode.question}

    def _begin(self, row: int, question: Question | None, group_id: str | None) -> Episode:
        options = {"question": question, "group_id": group_id or ""}
        chosen, group = read_options(options)
        if chosen is None:
            chosen = pick_question(self.engine.questions, self._generators[row])
        return self.engine.rules.begin(chosen, group)

    def _seed(self, seed: int | Sequence[int | None] | None, mask: Flags) -> None:
        if seed is None:
            return
        if isinstance(seed, int | np.integer):
            seed = [int(seed) + row for row in range(self.num_envs)]
        seeds = self._per_row(seed, "seed")
        for row, value in enumerate(seeds):
            if value is not None and mask[row]:
                self._generators[row], _ = gymnasium.utils.seeding.np_random(index(value))
        if seeds[0] is not None and mask[0]:
            self.engine.pool.seed(seeds[0])

    def _mask(self, mask: Flags | None) -> Flags:
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        array = np.asarray(mask)
        if array.shape != (self.num_envs,) or array.dtype != np.bool_:
            raise ValueError(
                f"reset_mask must be a bool array of shape ({self.num_envs},), "
                f"got {array.dtype} of shape {array.shape}"
            )
        return array

    def _per_row(self, values: Sequence[Any] | None, name: str) -> list[Any]:
        if values is None:
            return [None] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(
                f"{name} must have one entry per row ({self.num_envs}), got {len(values)}"
            )
        return list(values)
