"""Compiled kernels on disk: compiled once for each user, processor and version of the kernels, then only loaded.

    ROOT/<hash>/<kernel>.o      MAGIC | SHA-256 of the object code | object code

ROOT is `$INTENGINE_CACHE`, or `intengine` in the user's cache folder; it and what is in it belong to the user alone (0700). The
folder's name is a hash of all files of `kernels/`, the versions of Numba and llvmlite, and the processor compiled for, so
an edit anywhere gives a new folder. A file that is cut short, altered, or not the user's own is removed and built again.
"""

import hashlib
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import kernels
from engine.errors import KernelError
from kernels.compiler import Compiler, compiler
from kernels.registry import Kernel
from kernels.target import host

MAGIC = b"intengine object 1\n"
FOLDERS_KEPT = 8
QUIET_SECONDS = 1.0


def default_root() -> Path:
    """Where compiled kernels are kept, unless an option says otherwise."""
    chosen = os.environ.get("INTENGINE_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "intengine"


def folder_name() -> str:
    """The hash of everything that decides the machine code of a kernel."""
    digest = hashlib.sha256()
    source = Path(kernels.__file__).parent
    for path in sorted(source.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    target = host()
    for part in (version("numba"), version("llvmlite"), target.triple, target.cpu, target.features, sys.platform):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:40]


class KernelCache:
    """A store for `kernels.compiler.Compiler`: object code by kernel name, in one folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.folder = (root or default_root()) / folder_name()
        self._usable: bool | None = None

    def get(self, name: str) -> bytes | None:
        """The object code of a kernel; None where there is none that can be trusted (that file is then removed)."""
        path = self.folder / f"{name}.o"
        try:
            if not self._is_safe():
                return None
            with open(path, "rb") as file:
                data = file.read()
                owned = _only_mine(os.fstat(file.fileno()))
        except OSError:
            return None
        head, code = data[: len(MAGIC) + 32], data[len(MAGIC) + 32 :]
        if owned and head == MAGIC + hashlib.sha256(code).digest():
            return code
        path.unlink(missing_ok=True)
        return None

    def put(self, name: str, code: bytes) -> None:
        """Keep the object code of a kernel; where the folder can't be written, do without."""
        temporary = None
        try:
            if not self._is_safe(create=True):
                return
            handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".part")
            with open(handle, "wb") as file:
                file.write(MAGIC + hashlib.sha256(code).digest() + code)
            os.replace(temporary, self.folder / f"{name}.o")
        except OSError:
            if temporary:
                Path(temporary).unlink(missing_ok=True)

    def _is_safe(self, create: bool = False) -> bool:
        """Whether the folder and its root are there and only the user's; they are made where `create` is set."""
        if self._usable is None:
            if not self.folder.is_dir():
                if not create:
                    return False
                self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.folder.mkdir(mode=0o700, exist_ok=True)
                _forget_old(self.folder)
            self._usable = all(_only_mine(os.stat(path)) for path in (self.folder, self.folder.parent))
            if self._usable:
                os.utime(self.folder)
        return self._usable


def _only_mine(status: os.stat_result) -> bool:
    mine = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    return mine and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _forget_old(folder: Path) -> None:
    """Remove the folders of earlier versions beyond the last few that were used."""
    others = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder and len(path.name) == 40]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[FOLDERS_KEPT - 1 :]:
        shutil.rmtree(path, ignore_errors=True)


def use(root: Path | None = None) -> KernelCache:
    """Let this process's compiler keep its code on disk, and return the store."""
    if root is not None or compiler.store is None:
        compiler.store = KernelCache(root)
    assert isinstance(compiler.store, KernelCache)
    return compiler.store


def prepare(needed: Iterable[Kernel], using: Compiler = compiler) -> float:
    """Have these kernels ready; compile what is missing, with one line on stderr when that takes over a second.

    Returns:
        The seconds that compiling took.

    Raises:
        KernelError: where Numba is told not to compile.
    """
    needed = list(needed)
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        raise KernelError("NUMBA_DISABLE_JIT: is set, but the engine runs compiled kernels only; unset it")
    missing = using.missing(needed)
    begin = time.perf_counter()
    said = False
    for done, kernel in enumerate(missing):
        if not said and time.perf_counter() - begin > QUIET_SECONDS / 2:
            said = True
            sys.stderr.write(f"compiling {len(missing) - done} kernels for {host().cpu}, once ... ")
            sys.stderr.flush()
        using.addresses([kernel])
    using.addresses(needed)
    seconds = time.perf_counter() - begin
    if said:
        sys.stderr.write(f"{seconds:.1f} s\n")
    return seconds if missing else 0.0
