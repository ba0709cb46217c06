"""Who may import whom, and what the wheel holds."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("igsearch_env", "agents", "trainers", "scripts")  # each may import those before it only
HEAVY = ("torch", "transformers")  # not for igsearch_env
# The library loads a checkpoint with the checkout's own code, where there is one.
ALLOWED = {"igsearch_env/evaluation/setup.py": ["agents.loading"]}


def source_files() -> list[Path]:
    return [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def imported_modules(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every import, at whatever depth of the code it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from . import x` drops no part of the package, `from .. import x` drops one.
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = [*above, node.module] if node.module else above
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            target = node.args[0]
            if name in ("import_module", "__import__") and isinstance(target, ast.Constant):
                yield node.lineno, str(target.value)


def forbidden_imports(source: str, package: str) -> list[str]:
    """Imports of ``source``, a module of ``package``, that go backwards, as ``line: name``."""
    layer = package.partition(".")[0]
    forbidden = (*LAYERS[LAYERS.index(layer) + 1 :], "tests")
    if layer == "igsearch_env":
        forbidden += HEAVY
    return [
        f"{line}: {name}"
        for line, name in imported_modules(ast.parse(source), package)
        if name.partition(".")[0] in forbidden
    ]


def test_there_are_files_to_check() -> None:
    assert {"igsearch_env/episode.py", "igsearch_env/retrieval/base.py"} <= {
        path.relative_to(ROOT).as_posix() for path in source_files()
    }


def test_imports_never_go_backwards() -> None:
    backwards = {
        path.relative_to(ROOT).as_posix(): [line.partition(": ")[2] for line in found]
        for path in source_files()
        if (
            found := forbidden_imports(
                path.read_text(encoding="utf-8"), ".".join(path.relative_to(ROOT).parts[:-1])
            )
        )
    }
    assert backwards == ALLOWED


@pytest.mark.parametrize(
    ("package", "source", "found"),
    [
        ("igsearch_env", "import torch.nn as nn", "1: torch.nn"),
        (
            "igsearch_env",
            "def f():\n    from transformers import AutoModel",
            "2: transformers.AutoModel",
        ),
        ("igsearch_env.retrieval", "importlib.import_module('torch')", "1: torch"),
        ("igsearch_env", "__import__('agents.chat')", "1: agents.chat"),
        ("igsearch_env.retrieval", "from ... import trainers", "1: trainers"),
        ("igsearch_env", "import numpy, scripts", "1: scripts"),
        ("agents", "from trainers.local.update import clip", "1: trainers.local.update.clip"),
        ("agents", "import scripts.train", "1: scripts.train"),
        ("trainers", "if True:\n    import scripts", "2: scripts"),
        ("scripts", "from tests.fakes import Model", "1: tests.fakes.Model"),
    ],
)
def test_a_backward_import_is_caught(package: str, source: str, found: str) -> None:
    assert forbidden_imports(source, package) == [found]


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("igsearch_env", "import numpy\nfrom igsearch_env.episode import Step\nfrom . import env"),
        ("igsearch_env.retrieval", "from .base import Retriever\nfrom ..agents import x"),
        ("igsearch_env", "import torchlike\nimport agents_of_change"),
        ("agents", "import torch\nfrom igsearch_env import Episode"),
        ("trainers", "import torch\nimport agents.chat\nimport igsearch_env"),
        ("scripts", "import trainers, agents, igsearch_env, transformers"),
    ],
)
def test_a_forward_import_is_allowed(package: str, source: str) -> None:
    assert forbidden_imports(source, package) == []


def test_importing_the_library_loads_nothing_heavy() -> None:
    check = (
        "import igsearch_env, sys; "
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'faiss', 'sklearn'}; "
        "loaded = heavy & set(sys.modules); "
        "assert not loaded, loaded"
    )
    result = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_wheel_holds_the_library_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for layer in (*LAYERS, "tests"):
        shutil.copytree(
            ROOT / layer, source / layer, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
        (source / layer / "planted.py").touch()  # something to leave out (or in) in every folder
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir"]
    subprocess.run([*build, str(tmp_path / "dist"), str(source)], check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    library = {
        path.relative_to(source).as_posix()
        for path in (source / "igsearch_env").rglob("*")
        if path.is_file()
    }
    assert names - metadata == library
    assert {"igsearch_env/py.typed", "igsearch_env/planted.py"} <= library
    assert any(name.endswith("/LICENSE") for name in metadata)
