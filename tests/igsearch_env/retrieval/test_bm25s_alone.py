"""JAX, if there is one, is left alone: with CUDA it would take most of the GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

JAX = "print('jax was imported')"
LAX = "top_k = lambda scores, k: print('jax took the GPU')"
USE = """
from igsearch_env import BM25Retriever, Document
found = BM25Retriever.build([Document("1", "Lima", "A city.")]).search(["lima"], 1)
print(found[0][0].id)
import jax.lax
"""


def printed(folder: Path, program: str) -> list[str]:
    """What a program prints in a process in which ``import jax`` finds the package made here."""
    (folder / "jax").mkdir(exist_ok=True)
    (folder / "jax/__init__.py").write_text(JAX, encoding="utf-8")
    (folder / "jax/lax.py").write_text(LAX, encoding="utf-8")
    path = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", path + program], capture_output=True, text=True, check=True
    )
    return done.stdout.split("\n")[:-1]


def test_search_starts_no_jax_and_hides_none(tmp_path: Path) -> None:
    assert printed(tmp_path, USE) == ["1", "jax was imported"]


def test_bm25s_by_itself_would_start_it(tmp_path: Path) -> None:
    assert printed(tmp_path, "import bm25s") == ["jax was imported", "jax took the GPU"]


def test_one_that_is_in_use_stays(tmp_path: Path) -> None:
    program = "import jax\n" + USE + "\nassert sys.modules['jax'] is jax"
    assert printed(tmp_path, program) == ["jax was imported", "1"]
