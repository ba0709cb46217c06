"""A Sphinx extension that writes the reference pages from the code before Sphinx reads them.

It writes into ``docs/reference/generated``:

- one page for each module and package of ``igsearch_env`` and ``agents``, for autodoc to fill. A
  class or function stands there under the name by which users import it;
- ``settings.rst``, the settings of a training run, from the docstrings of their dataclasses;
- ``programs.rst``, what ``--help`` of each program prints.

The build warns (and ``make docs`` fails) if a setting has no description or a public name of
``igsearch_env`` is missing from the pages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import os
import pkgutil
import re
import runpy
import sys
import typing
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("igsearch_env", "agents")
NOT_SHOWN = ("igsearch_env.cli",)  # the page of programs shows these
PROGRAMS = (
    *(
        f"igsearch {name}"
        for name in ("evaluate", "compare", "view", "index", "serve", "check", "recall")
    ),
    *(f"python -m scripts.{name}" for name in ("train", "warm_start", "demo")),
    *(
        f"python -m scripts.{group}.{path.stem}"
        for group in ("examples", "laboratory", "benchmarks")
        for path in sorted((ROOT / "scripts" / group).glob("*.py"))
        if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
    ),
)

logger = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("builder-inited", write_pages)
    app.connect("env-check-consistency", check_public_names)
    app.connect("missing-reference", find_by_last_name)
    app.connect("autodoc-process-docstring", process_docstring)
    return {"parallel_read_safe": True}


def write_pages(app: Sphinx) -> None:
    """Write all pages; those that did not change keep their time, so Sphinx skips them."""
    folder = Path(app.srcdir) / "reference" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"settings": settings_page(), "programs": programs_page(), **api_pages()}
    for name, text in pages.items():
        file = folder / f"{name}.rst"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
    for file in folder.glob("*.rst"):
        if file.stem not in pages:
            file.unlink()


def heading(text: str, line: str = "=") -> str:
    """A heading in reStructuredText."""
    return f"{text}\n{line * len(text)}\n\n"


# Modules


def modules(package: str) -> Iterator[ModuleType]:
    """A package and all modules in it, each package before what is in it."""
    root = importlib.import_module(package)
    yield root
    for found in pkgutil.walk_packages(root.__path__, f"{package}."):
        private = any(part.startswith("_") for part in found.name.split("."))
        if not private and not found.name.startswith(NOT_SHOWN):
            yield importlib.import_module(found.name)


def public_names() -> dict[str, str]:
    """Where each class and function is defined, to the name by which users import it.

    That is its name in the highest package whose ``__all__`` has it, if any.
    """
    names: dict[str, str] = {}
    for package in PACKAGES:
        for module in modules(package):
            for name in getattr(module, "__all__", ()):
                value = getattr(module, name)
                if inspect.isclass(value) or inspect.isfunction(value):
                    home = f"{value.__module__}.{value.__qualname__}"
                    names.setdefault(home, f"{module.__name__}.{name}")
    return names


def api_pages() -> dict[str, str]:
    """A page for each package, with the modules in it, and each module of a top-level package."""
    public = public_names()
    pages: dict[str, str] = {}
    for package in PACKAGES:
        below: list[str] = []
        for module in modules(package):
            top = ".".join(module.__name__.split(".")[:2])
            if top not in pages:
                pages[top] = heading(top)
                below.append(top)
            elif module.__name__ != top:
                pages[top] += heading(module.__name__, "-")
            pages[top] += module_section(module, public)
        entries = "".join(f"   {name}\n" for name in below if name != package)
        pages[package] += public_table(package, public)
        pages[package] += f".. toctree::\n   :hidden:\n\n{entries}\n"
    return pages


def module_section(module: ModuleType, public: dict[str, str]) -> str:
    """The directives that document a module: first what has a shorter public name."""
    name = module.__name__
    moved = {
        attribute: public[f"{name}.{attribute}"]
        for attribute in vars(module)
        if f"{name}.{attribute}" in public
    }
    text = f".. automodule:: {name}\n"
    if not hasattr(module, "__path__"):
        text += "   :members:\n"
    if moved:
        text += f"   :exclude-members: {', '.join(moved)}\n"
    text += "\n"
    for attribute, path in moved.items():
        kind = "class" if inspect.isclass(getattr(module, attribute)) else "function"
        text += f".. auto{kind}:: {path}\n"
        text += "   :members:\n   :show-inheritance:\n\n" if kind == "class" else "\n"
    return text


def public_table(package: str, public: dict[str, str]) -> str:
    """The names that a package exports, each with the first line of its docstring."""
    module = importlib.import_module(package)
    names = sorted(getattr(module, "__all__", ()), key=str.lower)
    if not names:
        return ""
    text = heading("Public names", "-") + ".. list-table::\n   :widths: 30 70\n\n"
    for name in names:
        value = getattr(module, name)
        known = inspect.isclass(value) or inspect.isfunction(value)
        line = (inspect.getdoc(value) or "").partition("\n")[0] if known else ""
        text += f"   * - :py:obj:`{name} <{package}.{name}>`\n     - {line}\n"
    return text + "\n"


# Settings


def settings_page() -> str:
    """Every setting of a training run, and the options of every credit method."""
    from igsearch_env.credit import CREDIT
    from trainers.config import TrainSettings

    text = heading("Settings of training")
    text += (
        "``python -m scripts.train --config FILE.toml --set section.key=value`` reads these.\n"
        "``section.key`` stands in the TOML file as ``key`` below ``[section]``.\n\n"
    )
    text += section(TrainSettings, "")
    text += heading("Options of the credit methods", "-")
    text += "They stand beside ``credit.method``: ``--set credit.alpha=0.3``.\n\n"
    for name, method in CREDIT.items():
        text += heading(f"credit.method = {name}", "~") + first_paragraph(method)
        text += entries(method, "credit.", index=False)
    return escape_bars(text)


def section(settings: Any, prefix: str) -> str:
    """A dataclass of settings: its own fields, then a section for each dataclass inside."""
    hints = typing.get_type_hints(settings)
    inner = [f for f in dataclasses.fields(settings) if dataclasses.is_dataclass(hints[f.name])]
    names = {f.name for f in inner}
    text = entries(settings, prefix, skip=names)
    for field in inner:
        path = f"{prefix}{field.name}"
        text += heading(path, "-") + first_paragraph(hints[field.name])
        text += section(hints[field.name], f"{path}.")
    return text


def entries(
    settings: Any, prefix: str, *, skip: typing.Container[str] = (), index: bool = True
) -> str:
    """One ``confval`` for each field of a dataclass."""
    text = ""
    for field in dataclasses.fields(settings):
        if field.name in skip or field.name.startswith("_"):
            continue
        meaning = description(settings, field.name)
        if not meaning:
            logger.warning("%s.%s has no description in the docstring", settings, field.name)
        text += f".. confval:: {prefix}{field.name}\n"
        text += "" if index else "   :no-index:\n"
        kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
        text += f"\n   ``{kind}``, default ``{default(field)}``. {meaning}\n\n"
    return text


def default(field: dataclasses.Field[Any]) -> str:
    """The default of a field as Python writes it."""
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "none; it must be given"


def description(settings: Any, name: str) -> str:
    """What the ``Args`` of a dataclass, or of one that it derives from, say of a field."""
    for base in inspect.getmro(settings):
        _, _, arguments = (inspect.getdoc(base) or "").partition("Args:\n")
        found = re.search(rf"^    {name}: (.*(?:\n {{5,}}.*)*)", arguments, flags=re.MULTILINE)
        if found:
            return " ".join(found[1].split())
    return ""


def first_paragraph(value: Any) -> str:
    """The first paragraph of a docstring."""
    return (inspect.getdoc(value) or "").partition("\n\n")[0] + "\n\n"


# Programs


def programs_page() -> str:
    """What ``--help`` prints, for each program."""
    text = heading("Programs") + (
        "``pip install`` brings the ``igsearch`` command. The other programs run from a checkout.\n"
        "``python -m scripts.train_openrlhf`` takes the flags of OpenRLHF and those of\n"
        ":doc:`../../guides/cluster`.\n\n"
    )
    for program in PROGRAMS:
        block = "".join(f"   {line}".rstrip() + "\n" for line in help_of(program).splitlines())
        text += heading(program, "-") + f".. code-block:: text\n\n{block}\n"
    return text


def help_of(program: str) -> str:
    """What a program prints for ``--help``, 88 characters wide.

    Programs run in this process: one that starts afresh would import torch again.
    """
    module, *words = program.replace("igsearch", "python -m igsearch_env.cli").split()[2:]
    shown = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "88", "NO_COLOR": "1", "TERM": "dumb"}),
        mock.patch.object(sys, "argv", [module, *words, "--help"]),
        contextlib.redirect_stdout(shown),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # runpy's, about modules that are imported already
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as end:
            if end.code:
                logger.warning("%s --help ended with status %s", program, end.code)
    return shown.getvalue()


# References


def check_public_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn about public names of the library that no page documents."""
    documented = set(env.domains.python_domain.objects)
    last_names = {name.rpartition(".")[2] for name in documented}
    public = public_names()
    for module in modules("igsearch_env"):
        for name, value in vars(module).items():
            home = f"{module.__name__}.{name}"
            mine = getattr(value, "__module__", None) == module.__name__
            named = inspect.isclass(value) or inspect.isfunction(value)
            shown = public.get(home, home) in documented or name.startswith("_")
            if mine and named and not shown:
                logger.warning("%s is missing from the reference", home)
        for name in getattr(module, "__all__", ()):
            if name not in last_names and not inspect.ismodule(getattr(module, name)):
                logger.warning("%s.%s is missing from the reference", module.__name__, name)


def escape_bars(text: str) -> str:
    """``|Q|``, the length of a query, is no substitution of reStructuredText."""
    return re.sub(r"\|(\w+)\|", r"\\|\1\\|", text)


def process_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Escape the bars of a docstring in place."""
    lines[:] = [escape_bars(line) for line in lines]


def find_by_last_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Element | None:
    """Resolve a Python reference by the end of its name, if a single object ends so."""
    if node.get("refdomain") != "py" or app.builder is None:
        return None
    target = "." + node["reftarget"].removeprefix("igsearch_env.").lstrip(".")
    objects = env.domains.python_domain.objects
    found = {
        (entry.docname, entry.node_id): name
        for name, entry in objects.items()
        if name.endswith(target) and entry.objtype != "module"
    }
    if len(found) != 1:
        return None
    ((page, anchor),) = found
    return make_refnode(app.builder, node["refdoc"], page, anchor, [content], node["reftarget"])
