"""Regular files, opened or mapped: whatever a path names, the answer is the file, or one line that says why not."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from engine.errors import FileError
from engine.escape import escape

IRREGULAR = "is not a regular file"


@contextmanager
def regular_file(path: str, directory: str = IRREGULAR) -> Iterator[BinaryIO]:
    """A regular file, open for reading; `directory` is what to say of a folder. Raises FileError, one line."""
    name = escape(path, 300)
    try:
        mode = os.stat(path).st_mode  # before it is opened: opening a pipe waits for its other end
        if not stat.S_ISREG(mode):
            raise FileError(f"{name}: {directory if stat.S_ISDIR(mode) else IRREGULAR}")
        with open(path, "rb") as file:
            yield file
    except (OSError, ValueError, OverflowError) as error:
        text = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise FileError(f"{name}: can't be read: {escape(text)}") from None


def map_file(path: str, directory: str = IRREGULAR) -> mmap.mmap:
    """Maps a regular file that isn't empty; otherwise as `regular_file`."""
    with regular_file(path, directory) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise FileError(f"{escape(path, 300)}: is empty; download it again")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def release(mapped: mmap.mmap, offset: int, nbytes: int) -> None:
    """Lets the system take back the memory of these bytes, which are read again if used again (Linux)."""
    if nbytes and hasattr(mmap, "MADV_DONTNEED") and hasattr(mapped, "madvise"):
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, start, offset + nbytes - start)
