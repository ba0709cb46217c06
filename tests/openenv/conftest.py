"""The tests with OpenEnv need an environment of their own: make test-openenv."""

from importlib.util import find_spec

if find_spec("openenv") is None:
    collect_ignore_glob = ["test_*.py"]
