"""Command line programs; run each as ``python -m scripts.NAME``."""

import sys
from importlib.util import find_spec

# Every program imports this package first, so a plain installation is refused here for all of them.
_missing = [name for name in ("gymnasium", "rich", "dacite", "torch") if find_spec(name) is None]
if _missing:
    names = ", ".join(_missing)
    print(f'error: packages are missing ({names}): pip install -e ".[train]"', file=sys.stderr)
    sys.exit(2)
