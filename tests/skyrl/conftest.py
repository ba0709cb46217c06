"""The tests with SkyRL need an environment of their own: make test-skyrl."""

import sys
import typing
from importlib.util import find_spec

import typing_extensions

if find_spec("skyrl") is None:
    collect_ignore_glob = ["test_token_credit.py"]
elif sys.version_info < (3, 12):
    # SkyRL 0.4 asks for Python 3.12, for nothing but this: pydantic refuses typing's own before.
    typing.TypedDict = typing_extensions.TypedDict  # type: ignore[assignment]
