"""Files that are there whole or not at all, and checksums of those that a run goes on from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from igsearch_env.extras import import_extra
from igsearch_env.text import read_json, without_logins

SEAL = "sha256"
"""Entry of a sealed file: the hash of all others."""


def write_whole(path: Path, text: str) -> None:
    """Write a text file in one piece: a kill leaves what was there before.

    Args:
        path: The file; its folder is made if need be.
        text: What it is to hold. Half a surrogate pair, which UTF-8 cannot hold, is written as its
            escape, as JSON reads it: a finished run is not lost for a strange file name.

    Raises:
        OSError: If it cannot be written; the message names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with names_file(path):
        try:
            unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)  # a full disk needs its room
            raise


def check_writable(folder: Path) -> None:
    """Make sure that files can be made in a folder, before a long run and not at its end.

    Args:
        folder: It need not exist; what it would lie in must then be writable.

    Raises:
        FileNotFoundError: If a part of the path is a link that leads nowhere.
        PermissionError: If files cannot be made there.
    """
    parts = (folder, *folder.parents)
    for part in parts:
        if part.is_symlink() and not part.exists():
            raise FileNotFoundError(
                f"cannot write to {folder}: the link {part} leads nowhere; give another path, or "
                "make the folder that it leads to"
            )
    there = next((part for part in parts if part.exists()), folder)
    # sudo and setuid programs have rights of their own; Windows does not know them.
    effective = os.access in os.supports_effective_ids
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=effective):
        raise PermissionError(
            f"cannot write to {folder}: no files can be made in {there}; give another path, or "
            "change its permissions"
        )


def sha256_of(path: Path) -> str:
    """The hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def names_file(path: Path) -> Iterator[None]:
    """Name a file in the errors of writing it: a full disk does not say which file it was."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise  # it is in words, or names its file
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_json(path: Path, data: Any) -> None:
    """Write JSON in one piece, as :func:`write_whole` does; addresses in it lose their login."""
    write_whole(path, json.dumps(without_logins(data), indent=2, ensure_ascii=False) + "\n")


def seal(data: dict[str, Any], name: str = SEAL) -> dict[str, Any]:
    """An object with the hash of what it holds, by which a change of it is noticed.

    Args:
        data: JSON-ready data; the hash that it may have already is left out.
        name: The entry of the hash.
    """
    content = {key: value for key, value in data.items() if key != name}
    text = json.dumps(content, sort_keys=True)
    return content | {name: hashlib.sha256(text.encode("ascii")).hexdigest()}


def write_sealed(path: Path, data: Any) -> None:
    """Write JSON as :func:`write_json` does, an object with its hash; see :func:`read_sealed`."""
    content = json.loads(json.dumps(without_logins(data)))  # as it is read again
    write_json(path, seal(content) if isinstance(content, dict) else content)


def read_sealed(path: Path) -> Any:
    """What a JSON file holds, without its hash; one that has none is not checked.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no JSON, or was changed since it was written.
    """
    data = read_json(path.read_text(encoding="utf-8"))
    if isinstance(data, dict) and SEAL in data:
        if seal(data) != data:
            raise ValueError(
                f"it was changed since it was written; if that was you, remove its entry {SEAL!r}"
            )
        del data[SEAL]
    return data


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make the folder of a run, and keep other processes out of it; a kill lets them in.

    Raises:
        ValueError: If another process is in it.
    """
    filelock = import_extra("filelock", "eval")
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise ValueError(
            f"another process is at work in {folder}; wait for its end, or choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()
