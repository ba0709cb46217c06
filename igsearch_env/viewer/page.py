"""The page itself: one HTML file that holds its data, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

from igsearch_env.files import write_whole
from igsearch_env.viewer.data import view_data

PARTS = Path(__file__).resolve().parent / "static"
SCRIPTS = ("dom", "data", "figures", "text", "list", "rollout", "group", "curves", "main")
LIMIT = 5000  # rollouts


def write_page(folder: Path, limit: int = LIMIT) -> tuple[Path, dict[str, Any]]:
    """Write the page of a folder.

    Args:
        folder: What ``igsearch evaluate`` or ``scripts.train`` wrote.
        limit: Most rollouts that are shown.

    Returns:
        The file and its data.

    Raises:
        ValueError: If it is no such folder, or holds a file that cannot be read.
    """
    data = view_data(folder, limit)
    path = folder / "view.html"
    write_whole(path, page(data))
    return path, data


def page(data: dict[str, Any]) -> str:
    """The page: one file that loads nothing else, and runs no script but its own.

    The data lies in a block of JSON without any ``<``, so nothing in it can end the block; the
    content security policy names the hashes of the page's style and script.
    """
    style = (PARTS / "style.css").read_text(encoding="utf-8")
    script = "\n".join((PARTS / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    parts = {
        "policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}",
        "title": html.escape(data["name"]),
        "style": style,
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "script": script,
    }
    template = (PARTS / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
