"""What is in a folder, to the bit: to see that a command changed nothing that it should not."""

import hashlib
import os
import stat
from pathlib import Path


def snapshot(folder: Path) -> dict[str, str]:
    """Every file, link and folder by its path: kind, mode, and content or target."""
    return {str(path): _what(path) for path in sorted(folder.rglob("*"))}


def contents(folder: Path) -> dict[str, str]:
    """The same by the path inside `folder`, to compare two of them."""
    return {path.relative_to(folder).as_posix(): _what(path) for path in folder.rglob("*")}


def _what(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"link to {os.readlink(path)}"
    if stat.S_ISREG(mode):
        return f"{mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    return f"{mode:o}"
