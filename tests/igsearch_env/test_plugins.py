"""Code of a user's own: imported by path or by name, once, and what fails says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from igsearch_env import SearchQAEnv, import_plugin, open_retriever
from igsearch_env.plugins import import_again
from igsearch_env.retrieval.open import RETRIEVERS

PLUGIN = """
from igsearch_env import BM25Retriever, Document, register_retriever

@register_retriever("{name}")
def open_mine(name):
    return BM25Retriever.build([Document("1", "", name + " Lima"), Document("2", "", "Rome")])
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plugin registers ends with its test."""
    monkeypatch.setattr("igsearch_env.retrieval.open.RETRIEVERS", RETRIEVERS.copy())
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    monkeypatch.setattr(sys, "path", sys.path.copy())


@pytest.mark.parametrize("by_path", [True, False])
def test_what_a_plugin_registers_can_be_named(
    by_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"mine_{by_path}".lower()
    file = tmp_path / f"{name}_plugin.py"
    file.write_text(PLUGIN.format(name=name))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # imported once: registering twice would raise
        import_plugin(file.name if by_path else file.stem)
    assert open_retriever(f"{name}:7").search(["Lima"], 1)[0][0].text == f"{name}:7 Lima"
    env = SearchQAEnv("world-train:40", name, top_k=1, num_counterfactuals=0)
    env.reset(seed=0)
    env.step("<search> Lima </search>")
    assert env.episode.steps[0].documents[0].text == f"{name} Lima"


def test_two_files_of_one_name_are_two(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "plugin.py").write_text(PLUGIN.format(name=f"of_{folder}"))
        import_plugin(str(tmp_path / folder / "plugin.py"))
    assert {"of_a", "of_b"} <= set(sys.modules["igsearch_env.retrieval.open"].RETRIEVERS)


@pytest.mark.parametrize("name", ["nowhere.py", "no_such_module", "no_such.module"])
def test_what_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=r"there is no (file|module) .* to import"):
        import_plugin(name)


def test_a_run_brings_no_code_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "inside.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "outside.py").write_text("x = 1")
    monkeypatch.chdir(tmp_path)
    for name in ("run/inside.py", f"{run}/inside.py", "link/inside.py", "run/../run/inside.py"):
        for folder in (run, Path("run"), Path("link")):
            with pytest.raises(ValueError, match=r"the run in .* which lies in it: read it"):
                import_again([name], folder)
    import_again([f"{tmp_path}/outside.py"], run)


def test_an_error_inside_passes_through(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("import no_such_module_inside")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_inside"):
        import_plugin(str(file))
    file.write_text("x = 1")  # mended, and imported again
    import_plugin(str(file))


def test_a_name_is_registered_once() -> None:
    from igsearch_env import register_retriever

    for name in ("bm25", "world", "a:b"):
        with pytest.raises(ValueError, match="needs a new name without a colon"):
            register_retriever(name)
