"""Command line programs; run each as ``python -m scripts.NAME``."""

import ast
import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("gymnasium", "rich", "pydantic", "torch")
TRL = ("scripts.examples.trl_grpo",)


def _check_installation() -> None:
    """Refuse an installation that lacks what all programs load, but let them show their options.

    Every program imports this package first, so that none ends in a traceback.
    """
    words = sys.orig_argv
    program = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    asked = bool({"-h", "--help"} & set(words))
    wanted = (*PACKAGES, "trl") if program in TRL else PACKAGES
    missing = [name for name in wanted if find_spec(name) is None]
    if not missing or (asked and "gymnasium" not in missing):
        return
    extras = "train,trl" if "trl" in missing else "train"
    needs = f'packages are missing ({", ".join(missing)}): pip install -e ".[{extras}]"'
    file = Path(__file__).parent.parent / (program.replace(".", "/") + ".py")
    if asked and program.startswith("scripts.") and file.is_file():
        print(ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))))
        print(f"\nFor its options {needs}")
        sys.exit(0)
    print(f"error: {needs}", file=sys.stderr)
    sys.exit(2)


_check_installation()
