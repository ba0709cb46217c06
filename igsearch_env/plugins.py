"""Code of a user's own that registers retrievers, credit methods, question sets or corpora."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path


def import_plugin(name: str) -> None:
    """Import a Python file or a module, for what it registers.

    Args:
        name: Path of a ``.py`` file, or the full name of a module that can be imported from the
            working directory or from what is installed.

    Raises:
        ValueError: If there is no such file or module. What the code itself raises passes through.
    """
    if not name.endswith(".py"):
        _import_module(name)
        return
    path = Path(name).resolve()
    if not path.is_file():
        raise ValueError(f"there is no file {name} to import; give the path of a Python file")
    # Workers of a run may import the same file again, under the name that pickle knows it by.
    module = f"igsearch_plugin_{path.stem}"
    if getattr(sys.modules.get(module), "__file__", None) == str(path):
        return
    spec = importlib.util.spec_from_file_location(module, path)
    assert spec is not None  # the path of a .py file has a loader
    assert spec.loader is not None
    sys.modules[module] = loaded = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[module]
        raise


def lasting_name(name: str) -> str:
    """What a run remembers of a plugin: the whole path of a file, or the name of a module."""
    return str(Path(name).resolve()) if name.endswith(".py") else name


def import_again(names: Iterable[str], folder: Path) -> None:
    """Import what the run in a folder was made with.

    Raises:
        ValueError: If a file or module is gone, or a file lies in the folder, which may have come
            from somebody else; the message names it.
    """
    for name in names:
        path = Path(name).resolve()
        if name.endswith(".py") and path.is_relative_to(folder.resolve()):
            raise ValueError(
                f"the run in {folder} would have {path} imported, which lies in it: read it, and "
                f"if it may run give it by --import {name}"
            )
        try:
            import_plugin(name)
        except ValueError as error:
            raise ValueError(
                f"the run in {folder} was made with --import {name}: {error}; say where it is now "
                "with --import FILE"
            ) from error


def _import_module(name: str) -> None:
    here = os.getcwd()
    if here not in sys.path:  # a console script starts without it, python -m with it
        sys.path.append(here)
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ValueError(
                f"there is no module {name!r} to import; give its full name, or the path of a .py "
                "file"
            ) from error
        raise
