"""The tests with verl need an environment of their own: make test-verl."""

import os
from importlib.util import find_spec

if find_spec("verl") is None:
    collect_ignore_glob = ["*.py"]

# verl imports the module of token credit with itself, as the page says to.
os.environ["VERL_USE_EXTERNAL_MODULES"] = "trainers.verl.token_credit"
