"""The server: ``server --port 8000``, or ``uvicorn igsearch_openenv.server.app:app``.

Environment variables:

- ``IGSEARCH_SETTINGS``: JSON of fields of ``igsearch_env.EnvironmentSettings``, such as
  ``{"questions": "data/train.jsonl", "retriever": "http://127.0.0.1:8001", "top_k": 3}``;
- ``IGSEARCH_SCORER``: ``unigram`` (default), or ``none`` for no information gain;
- ``IGSEARCH_SESSIONS``: sessions at once (default: 64).

A scorer of your own takes a file of your own with ``app = make_app(scorer=...)``.
"""

from __future__ import annotations

import argparse
import json
import os

import uvicorn
from fastapi import FastAPI
from openenv.core.env_server.http_server import create_app

from igsearch_env import EnvironmentSettings, SearchQAEnv
from igsearch_env.gain.scorer import AnswerScorer
from igsearch_openenv.models import SearchQAAction, SearchQAObservation
from igsearch_openenv.server.environment import SearchQAEnvironment


def make_app(
    settings: EnvironmentSettings | None = None,
    scorer: AnswerScorer | str | None = "unigram",
    sessions: int = 64,
) -> FastAPI:
    """The web application.

    Questions, retriever and scorer are opened once, here. Each session has an environment of its
    own with its own random numbers and evidence pool, so that its episodes depend on nothing that
    other sessions do.

    Args:
        settings: The settings; None for the defaults.
        scorer: As for ``SearchQAEnv``. Threads share it.
        sessions: Sessions at once; further ones are refused.
    """
    settings = settings or EnvironmentSettings()
    shared = SearchQAEnv(scorer=scorer, settings=settings).engine

    def session() -> SearchQAEnvironment:
        parts = (shared.questions, shared.retriever, shared.scorer)
        return SearchQAEnvironment(SearchQAEnv(*parts, settings=settings))

    made: FastAPI = create_app(
        session,
        SearchQAAction,
        SearchQAObservation,
        env_name="igsearch_openenv",
        max_concurrent_envs=sessions,
    )
    return made


def app_of_variables() -> FastAPI:
    """The application that the environment variables describe.

    Raises:
        ValueError: If one of them cannot be read.
    """
    given = os.environ.get("IGSEARCH_SETTINGS", "{}")
    try:
        settings = EnvironmentSettings(**json.loads(given))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"IGSEARCH_SETTINGS must be JSON of environment settings ({error}), got {given[:200]!r}"
        ) from error
    scorer = os.environ.get("IGSEARCH_SCORER", "unigram")
    sessions = int(os.environ.get("IGSEARCH_SESSIONS", "64"))
    return make_app(settings, None if scorer == "none" else scorer, sessions)


def __getattr__(name: str) -> FastAPI:
    """``app``, made when it is first asked for: questions and index take a while."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = made = app_of_variables()
    return made


def main() -> None:
    """Serve until the process is asked to end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves other machines too")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    try:
        made = app_of_variables()
    except ValueError as error:
        parser.error(str(error))
    uvicorn.run(made, host=arguments.host, port=arguments.port)


if __name__ == "__main__":
    main()
