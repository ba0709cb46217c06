"""Folders that hold an index: written whole or not at all, and checked when they are read.

The manifest holds the size, the SHA-256 and a CRC-32 for each MiB of every file, and a hash of
itself. Files of up to :data:`CHECKED_BYTES` are compared with their CRCs whenever an index is
opened; larger ones when all is read (``mmap=False``) and by ``igsearch check FOLDER``. While an
index is in use, its files are watched, since a file that is overwritten in place would give other
results, and one that is cut would kill the process that has it mapped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

from igsearch_env.files import check_writable, names_file, seal
from igsearch_env.text import read_json

MANIFEST = "manifest.json"
BLOCK = 1 << 20
"""Bytes that share a checksum."""
CHECKED_BYTES = 16 << 20
"""Size of the largest file whose content is checked whenever its index is opened."""
_SEAL = "manifest_sha256"


class CorruptIndexError(ValueError):
    """An index on disk that is incomplete, damaged or of another format; build it again."""


class NothingToIndexError(ValueError):
    """None of the documents of a corpus has anything to find it by."""


UNREADABLE = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, RecursionError),
    *(BadZipFile, zlib.error, TokenError),
)
"""What numpy, json, zipfile and those who read with them raise over damaged files."""


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
        PermissionError: If the folder that it lies in may not be written to.
        ValueError: If the path does not end with the folder's name.
    """
    if path.name in ("", ".."):  # it is put in its place under that name
        raise ValueError(f"an index needs a folder with a name, got {str(path)!r}; give its name")
    check_writable(place_of(path).parent)  # indexes are built beside their place
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
    files = {file.name: _sums(file) for file in sorted(folder.iterdir())}
    described = {"format": form, "version": version, **content, "files": files}
    manifest = seal(described, _SEAL)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


class IndexFiles:
    """The files of an index that is in use.

    Args:
        folder: The folder.
        form: Name of the format that is expected.
        version: Version of the format that is expected.
        check_hashes: See :func:`read_manifest`.

    Attributes:
        folder: The folder, without links.
        manifest: Its manifest.

    Raises:
        CorruptIndexError: If the manifest or a file is missing, damaged or not as expected.
    """

    def __init__(self, folder: Path, form: str, version: int, check_hashes: bool) -> None:
        self.folder = folder.resolve()
        self.manifest = read_manifest(folder, form, version, check_hashes)
        self._opened: dict[Path, int] = {}
        self.close = weakref.finalize(self, _close_all, self._opened)
        try:
            for name in self.manifest["files"]:
                self._opened[folder / name] = os.open(folder / name, os.O_RDONLY)
        except OSError as error:
            raise CorruptIndexError(f"cannot open {error.filename}: {error.strerror}") from error
        self._found = {file: _state(os.fstat(number)) for file, number in self._opened.items()}

    def check_same(self) -> None:
        """Make sure that the files in the folder are still these: what was read belongs together.

        Raises:
            CorruptIndexError: If another index has taken their place.
        """
        try:
            now = parse_manifest(self.folder)
            same = now == self.manifest and all(
                os.path.samestat(os.stat(file), os.fstat(number))
                for file, number in self._opened.items()
            )
        except (OSError, CorruptIndexError):
            same = False
        if not same:
            raise CorruptIndexError(
                f"the index in {self.folder} was replaced while it was being opened; open it again"
            )
        self.check()

    def check(self) -> None:
        """Make sure that nothing has written into the files; a replaced folder is no matter.

        Raises:
            CorruptIndexError: If something has.
        """
        for file, number in self._opened.items():
            if _state(os.fstat(number)) != self._found[file]:
                raise CorruptIndexError(
                    f"{file} was overwritten while its index is in use; build the index again with "
                    "igsearch index, which puts a new folder in its place, and start again"
                )


def _close_all(opened: dict[Path, int]) -> None:
    while opened:
        os.close(opened.popitem()[1])


def _state(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns


def damaged_files(folder: Path) -> list[str]:
    """What is wrong with the files of an index; every byte of them is read.

    Args:
        folder: The folder of an index of any format.

    Returns:
        A sentence for each file that is missing or damaged, with the bytes that are damaged.

    Raises:
        CorruptIndexError: If there is no manifest, or it is damaged.
    """
    found = []
    for name, expected in _described(folder, parse_manifest(folder)).items():
        try:
            _check_file(folder / name, expected, check_hash=True)
        except CorruptIndexError as error:
            found.append(str(error))
    return found


def read_manifest(folder: Path, form: str, version: int, check_hashes: bool) -> dict[str, Any]:
    """Read a manifest, and check that the folder holds what it says.

    Args:
        folder: The folder.
        form: Name of the format that is expected.
        version: Version of the format that is expected.
        check_hashes: Whether to read every file and compare its hash; otherwise sizes are compared,
            and the content of files of up to :data:`CHECKED_BYTES`.

    Raises:
        CorruptIndexError: If the manifest or a file is missing, damaged or not as expected.
    """
    manifest = parse_manifest(folder)
    if (manifest.get("format"), manifest.get("version")) != (form, version):
        raise CorruptIndexError(
            f"{folder} holds a {manifest.get('format')!r} index of version "
            f"{manifest.get('version')!r}, expected {form!r} of version {version}; build it again"
        )
    for name, expected in _described(folder, manifest).items():
        _check_file(folder / name, expected, check_hashes)
    return manifest


def _described(folder: Path, manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a manifest says of each file."""
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        raise CorruptIndexError(f"{folder / MANIFEST} lists no files; build the index again")
    for name, expected in files.items():
        if not isinstance(expected, dict) or Path(name).name != name:
            raise CorruptIndexError(f"{folder / MANIFEST} does not describe {name}; build it again")
    return files


def _check_file(file: Path, expected: dict[str, Any], check_hash: bool) -> None:
    if not file.is_file():
        if file.is_symlink():
            raise CorruptIndexError(
                f"{file} leads to {os.readlink(file)}, and nothing is there; put it back, or adopt "
                "it where it is now"
            )
        raise CorruptIndexError(f"{file} is missing; build the index again")
    size = file.stat().st_size
    if size != expected.get("bytes"):
        raise CorruptIndexError(
            f"{file} has {size} bytes, expected {expected.get('bytes')}; build the index again"
        )
    if not check_hash and size > CHECKED_BYTES:
        return
    found = _sums(file)
    crcs, wanted = found["crc32"], expected.get("crc32", found["crc32"])
    damaged = [place for place in range(0, len(crcs), 8) if crcs[place:][:8] != wanted[place:][:8]]
    if damaged or found["sha256"] != expected.get("sha256"):
        blocks = ", ".join(f"{place // 8 * BLOCK:,}" for place in damaged[:5])
        where = f"; damaged: the MiB from byte {blocks}" if damaged else ""
        raise CorruptIndexError(
            f"the content of {file} does not match its hash{where}; build the index again"
        )


def _sums(file: Path) -> dict[str, Any]:
    """Size and checksums of a file: ``crc32`` has 8 digits for each block."""
    size, digest, crcs = 0, hashlib.sha256(), []
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            size += len(block)
            digest.update(block)
            crcs.append(f"{zlib.crc32(block):08x}")
    return {"bytes": size, "sha256": digest.hexdigest(), "crc32": "".join(crcs)}


def parse_manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest as it stands, without a look at the files.

    Raises:
        CorruptIndexError: If there is none, it is no JSON object, or its content was changed.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise CorruptIndexError(f"{folder} is not an index: it has no {MANIFEST}")
    try:
        manifest = read_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptIndexError(
            f"{file} is not valid JSON ({error}); build the index again"
        ) from error
    if not isinstance(manifest, dict):
        raise CorruptIndexError(f"{file} does not hold a JSON object; build the index again")
    if manifest.get(_SEAL, wanted := seal(manifest, _SEAL)[_SEAL]) != wanted:
        raise CorruptIndexError(f"{file} was changed since it was written; build the index again")
    return manifest


def check_unreplaced(folder: Path, manifest: dict[str, Any]) -> None:
    """Make sure that a folder still holds the index of this manifest.

    Raises:
        CorruptIndexError: If it holds another one.
    """
    if parse_manifest(folder) != manifest:
        raise CorruptIndexError(
            f"another process uses the index that was in {folder} before it was replaced; start "
            "both again"
        )


def _claims_to_be_index(folder: Path) -> bool:
    try:
        manifest = parse_manifest(folder)
    except CorruptIndexError:
        return False
    return {"format", "version", "files"} <= set(manifest)
