"""Compiled kernels on disk: compiled once for each user, processor and version of the kernels, then only loaded.

    ROOT/kernels-<hash>/<kernel>.o      MAGIC | SHA-256 of folder, kernel and object code | object code

ROOT is `$INTENGINE_CACHE`, or `intengine` in the user's cache folder; it and what is in it belong to the user alone (0700).
The folder's name is a hash of all files of `kernels/`, the versions of Numba and llvmlite, and the processor compiled for,
so an edit anywhere gives a new folder. A file that is cut short, altered, or that another user could have written is
removed and built again. Where nothing can be kept, the engine works without.
"""

import contextlib
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import kernels
from engine.errors import KernelError
from kernels.compiler import Compiler, compiler
from kernels.registry import Kernel
from kernels.target import host

MAGIC = b"intengine object 1\n"
HEAD = len(MAGIC) + hashlib.sha256().digest_size
FOLDER = re.compile(r"kernels-[0-9a-f]{40}")
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
    return f"kernels-{digest.hexdigest()[:40]}"


class KernelCache:
    """A store for `kernels.compiler.Compiler`: object code by kernel name, in one folder.

    `trouble` says why nothing could be kept, or is empty.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.folder = (root or default_root()) / folder_name()
        self.trouble = ""
        self._used = False

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
        head, code = data[:HEAD], data[HEAD:]
        if owned and head == self._head(name, code):
            return code
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def put(self, name: str, code: bytes) -> None:
        """Keep the object code of a kernel; where the folder can't be written, do without."""
        temporary = None
        try:
            self._create()
            if not self._is_safe():
                return
            handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".part")
            with open(handle, "wb") as file:
                file.write(self._head(name, code) + code)
            os.replace(temporary, self.folder / f"{name}.o")
        except OSError as error:
            self.trouble = str(error)
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def _head(self, name: str, code: bytes) -> bytes:
        return MAGIC + hashlib.sha256(f"{self.folder.name}/{name}\0".encode() + code).digest()

    def _create(self) -> None:
        """Make the folder where it isn't there, and forget old ones."""
        if not self.folder.is_dir():
            self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            _forget_old(self.folder)

    def _is_safe(self) -> bool:
        """Whether nobody else can write to the folder and its root; marks it as used today."""
        for path in (self.folder, self.folder.parent):
            if not _only_mine(os.stat(path)):
                self.trouble = f"{path}: others can write to it"
                return False
        if not self._used:
            self._used = True
            with contextlib.suppress(OSError):
                os.utime(self.folder)
        return True


def _only_mine(status: os.stat_result) -> bool:
    mine = not hasattr(os, "geteuid") or status.st_uid in (os.geteuid(), 0)  # root could write anywhere
    return mine and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _forget_old(folder: Path) -> None:
    """Remove the folders of earlier versions beyond the last few that were used."""
    others = [path for path in folder.parent.iterdir() if path != folder and FOLDER.fullmatch(path.name)]
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
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        raise KernelError("NUMBA_DISABLE_JIT: is set, but the engine runs compiled kernels only; unset it")
    needed = list({kernel.name: kernel for kernel in needed}.values())
    missing = using.missing(needed)
    begin = time.perf_counter()
    if missing:
        with _said_when_slow(f"compiling {len(missing)} kernels for {host().cpu}, once", using):
            using.addresses(missing)
    using.addresses(needed)
    return time.perf_counter() - begin if missing else 0.0


@contextlib.contextmanager
def _said_when_slow(what: str, using: Compiler) -> Iterator[None]:
    """A line on stderr if the work inside takes long: `what`, and when done how long, and why it will be again."""

    def say() -> None:
        said.set()
        sys.stderr.write(f"{what} ... ")
        sys.stderr.flush()

    said = threading.Event()
    begin = time.perf_counter()
    timer = threading.Timer(QUIET_SECONDS, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if said.is_set():
            trouble = using.store.trouble if isinstance(using.store, KernelCache) else ""
            sys.stderr.write(f"{time.perf_counter() - begin:.1f} s{trouble and f' (not kept: {trouble})'}\n")
