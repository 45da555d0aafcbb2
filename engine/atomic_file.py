"""Files that are there whole or not at all, whatever ends the program while they are written.

    with atomic_file("out.gguf") as file:      # a binary file to write to, at first without a name
        file.write(...)
    # only now it is on the disk, under its name, in place of what was there

The file is made in the folder of its name. On Linux it has no name until it is complete, so that not even a killed process
leaves anything behind; elsewhere, and on file systems that can't do that, it has a name of its own that an error removes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import BinaryIO

from engine.errors import FileError
from engine.escape import escape

ACCESS = 0o666  # less the user's umask


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file, open for reading and writing, that takes its name when the block ends without an error.

    Raises FileError, one line, where it can't be made or written; errors of the block itself pass through.
    """
    name = os.fspath(path)
    folder = os.path.dirname(name) or "."
    if os.path.isdir(name):
        raise FileError(f"{escape(name, 300)}: is a directory; name the file to write")
    part = os.path.join(folder, f".{os.path.basename(name)[:200]}.{secrets.token_hex(4)}.part")
    try:
        number, nameless = _open(folder, part)
        try:
            with open(number, "w+b", closefd=True) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if nameless:
                    # a folder must be named, though the path is absolute: only then Python's call follows the link
                    os.link(f"/proc/self/fd/{number}", part, src_dir_fd=number, follow_symlinks=True)
            os.replace(part, name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
        _sync_folder(folder)
    except OSError as error:
        raise FileError(f"{escape(name, 300)}: can't be written: {escape(error.strerror or str(error))}") from None


def _open(folder: str, part: str) -> tuple[int, bool]:
    """An open file in `folder`, and whether it has no name yet (else it is `part`)."""
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            return os.open(folder, os.O_TMPFILE | os.O_RDWR, ACCESS), True
    return os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, ACCESS), False


def _sync_folder(folder: str) -> None:
    """The new name, too, is to outlast a power cut; not every file system can be asked for that."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
