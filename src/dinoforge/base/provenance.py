"""Which state of this package a record was made with."""

from __future__ import annotations

import hashlib
from pathlib import Path


def source_mark() -> str:
    """16 hexadecimal digits of all Python files of this package."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()} ".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
