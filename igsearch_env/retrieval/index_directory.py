"""Folders that hold an index: written whole or not at all, and checked when they are read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from igsearch_env.files import names_file

MANIFEST = "manifest.json"


class CorruptIndexError(ValueError):
    """An index on disk that is incomplete, damaged or of another format; build it again."""


@contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """Write a folder beside ``path``, and put it there once it is complete.

    Nothing changes at ``path`` if the block raises.

    Args:
        path: Where the folder shall be. What is there already must be an index, or empty.

    Yields:
        The folder to write into.

    Raises:
        FileExistsError: If something else is there.
    """
    path = place_of(path)
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
    fresh.mkdir()
    try:
        with names_file(path):
            yield fresh
        swap_in(fresh, path, fresh.with_suffix(".old"))
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def place_of(path: Path) -> Path:
    """Where an index really lies: what a link leads to, which may be on another disk."""
    return path.resolve() if path.is_symlink() else path


def swap_in(fresh: Path, path: Path, old: Path) -> None:
    """Put a complete index where it belongs.

    Args:
        fresh: The index.
        path: Where it shall be. What is there already must be an index, or empty.
        old: Where an index that is there goes meanwhile, since a folder cannot be renamed over one
            that holds files; it is removed in the end.

    Raises:
        FileExistsError: If something other than an index is there.
    """
    check_replaceable(path)
    if not path.exists():
        os.rename(fresh, path)
        return
    os.rename(path, old)
    try:
        os.rename(fresh, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old)


def check_replaceable(path: Path) -> None:
    """Make sure that an index may be written to ``path``.

    Raises:
        FileExistsError: If there is something other than an index or an empty folder.
        ValueError: If the path does not end with the folder's name.
    """
    if path.name in ("", ".."):  # it is put in its place under that name
        raise ValueError(f"an index needs a folder with a name, got {str(path)!r}; give its name")
    if path.is_dir():
        if not any(path.iterdir()) or _claims_to_be_index(path):
            return
        raise FileExistsError(f"{path} is a folder that is not an index; choose another one")
    if path.exists():
        raise FileExistsError(f"{path} is not a folder; choose another path for the index")


def write_manifest(folder: Path, form: str, version: int, content: dict[str, Any]) -> None:
    """Describe the files of a folder, their sizes and hashes included.

    Args:
        folder: A folder whose other files are complete.
        form: Name of the format.
        version: Version of the format.
        content: What else to write down, as JSON.
    """
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for file in sorted(folder.iterdir())
    }
    manifest = {"format": form, "version": version, **content, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path, form: str, version: int, check_hashes: bool) -> dict[str, Any]:
    """Read a manifest, and check that the folder holds what it says.

    Args:
        folder: The folder.
        form: Name of the format that is expected.
        version: Version of the format that is expected.
        check_hashes: Whether to read every file and compare its hash, not its size alone.

    Raises:
        CorruptIndexError: If the manifest or a file is missing, damaged or not as expected.
    """
    manifest = parse_manifest(folder)
    if (manifest.get("format"), manifest.get("version")) != (form, version):
        raise CorruptIndexError(
            f"{folder} holds a {manifest.get('format')!r} index of version "
            f"{manifest.get('version')!r}, expected {form!r} of version {version}; build it again"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        raise CorruptIndexError(f"{folder / MANIFEST} lists no files; build the index again")
    for name, expected in files.items():
        if not isinstance(expected, dict):
            raise CorruptIndexError(f"{folder / MANIFEST} does not describe {name}; build it again")
        _check_file(folder / name, expected, check_hashes)
    return manifest


def _check_file(file: Path, expected: dict[str, Any], check_hash: bool) -> None:
    if not file.is_file():
        raise CorruptIndexError(f"{file} is missing; build the index again")
    size = file.stat().st_size
    if size != expected.get("bytes"):
        raise CorruptIndexError(
            f"{file} has {size} bytes, expected {expected.get('bytes')}; build the index again"
        )
    if check_hash and file_sha256(file) != expected.get("sha256"):
        raise CorruptIndexError(
            f"the content of {file} does not match its hash; build the index again"
        )


def parse_manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest as it stands, without a look at the files.

    Raises:
        CorruptIndexError: If there is none, or it is no JSON object.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise CorruptIndexError(f"{folder} is not an index: it has no {MANIFEST}")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptIndexError(
            f"{file} is not valid JSON ({error}); build the index again"
        ) from error
    if not isinstance(manifest, dict):
        raise CorruptIndexError(f"{file} does not hold a JSON object; build the index again")
    return manifest


def _claims_to_be_index(folder: Path) -> bool:
    try:
        manifest = parse_manifest(folder)
    except CorruptIndexError:
        return False
    return {"format", "version", "files"} <= set(manifest)


def file_sha256(file: Path) -> str:
    """The hash of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
