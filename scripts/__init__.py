"""Command line programs; run each as ``python -m scripts.NAME``."""

import ast
import sys
from importlib.util import find_spec
from pathlib import Path

IMPORT_LATE = ("scripts.train", "scripts.demo", "scripts.warm_start")
"""Programs that show their options without torch."""


def _check_installation() -> None:
    """Refuse a plain installation, but show what a program is for.

    Every program imports this package first, so that none ends in a traceback.
    """
    wanted = ("gymnasium", "rich", "dacite", "torch")
    missing = [name for name in wanted if find_spec(name) is None]
    words = sys.orig_argv
    program = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    asked = bool({"-h", "--help"} & set(words))
    if not missing or (asked and program in IMPORT_LATE and missing == ["torch"]):
        return
    needs = f'packages are missing ({", ".join(missing)}): pip install -e ".[train]"'
    file = Path(__file__).parent.parent / (program.replace(".", "/") + ".py")
    if asked and program.startswith("scripts.") and file.is_file():
        print(ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))))
        print(f"\nFor its options {needs}")
        sys.exit(0)
    print(f"error: {needs}", file=sys.stderr)
    sys.exit(2)


_check_installation()
