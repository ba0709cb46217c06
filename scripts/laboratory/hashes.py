"""Hashes of what a comparison rests on, so that a later change is noticed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from agents.loading import checkpoint_folder


def sha256_of(path: Path) -> str:
    """Hash of a file, or of all files of a folder, so that a later change is noticed."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    parts = [
        f"{file.relative_to(path)} {hashlib.sha256(file.read_bytes()).hexdigest()}"
        for file in files
        if file.is_file()
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def checkpoint_hash(path: str) -> str:
    """Hash of a checkpoint's folder; the name itself of one on the hub."""
    folder = checkpoint_folder(path)
    return path if folder is None else sha256_of(folder)
