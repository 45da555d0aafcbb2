"""The kernel cache: what it holds is loaded only if it is exactly what was put there; nothing in it is ever an error."""

import io
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_kernels import add_from_left, copy_scaled

import kernels
from engine import kernel_cache
from engine.errors import KernelError
from engine.kernel_cache import HEAD, MAGIC, KernelCache, folder_name, prepare
from kernels import compiler as compiler_module
from kernels import target
from kernels.compiler import Compiler, object_code

NAME = copy_scaled.name


@pytest.fixture
def cache(tmp_path: Path) -> KernelCache:
    """An empty cache in a folder of its own."""
    return KernelCache(tmp_path / "root")


@pytest.fixture(scope="module")
def code() -> bytes:
    """The object code of `copy_scaled`."""
    return object_code(copy_scaled)


def path_in(cache: KernelCache) -> Path:
    return cache.folder / f"{NAME}.o"


def works(using: Compiler) -> bool:
    """Whether `copy_scaled` of this compiler does what it should."""
    out, x = np.zeros(3, np.float32), np.array([1.0, 2.0, 3.0], np.float32)
    values = {"out": out, "x": x, "count": 3, "factor": 2.5}
    step = np.array([0, *compiler_module.operands(copy_scaled, values)], np.int64)
    compiler_module.ENTRY(using.addresses([copy_scaled])[NAME])(
        step.ctypes.data, 0, 1, np.zeros(8, np.int64).ctypes.data
    )
    return bool((out == np.float32(2.5) * x).all())


def test_keeps_and_gives_back(cache: KernelCache, code: bytes) -> None:
    assert cache.get(NAME) is None
    cache.put(NAME, code)
    assert cache.get(NAME) == code == KernelCache(cache.folder.parent).get(NAME)
    assert not cache.trouble and [path.name for path in cache.folder.iterdir()] == [f"{NAME}.o"]
    for folder in (cache.folder, cache.folder.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_compiles_once_and_then_loads(cache: KernelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    assert works(Compiler(cache))
    monkeypatch.setattr(compiler_module, "object_code", lambda kernel: pytest.fail("compiled again"))
    assert works(Compiler(KernelCache(cache.folder.parent)))


# ---- the folder's name ----


def test_the_name_holds_every_kernel_file_and_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "kernels"
    shutil.copytree(Path(kernels.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    first = folder_name()
    assert kernel_cache.FOLDER.fullmatch(first)
    monkeypatch.setattr(kernels, "__file__", str(copy / "__init__.py"))
    assert folder_name() == first
    files = sorted(copy.glob("*.py"))
    names = {first}
    for file in files:
        before = file.read_bytes()
        file.write_bytes(before + b"#")
        names.add(folder_name())
        file.write_bytes(before)
    assert len(files) > 10 and len(names) == 1 + len(files)
    files[-1].rename(copy / "zz.py")
    names.add(folder_name())
    (copy / "zz.py").rename(files[-1])
    assert folder_name() == first

    host = target.host()
    for other in (
        (host.triple, "other", host.features),
        (host.triple, host.cpu, "+other"),
        ("other", host.cpu, host.features),
    ):
        monkeypatch.setattr(kernel_cache, "host", lambda other=other: target.Target(*other))
        names.add(folder_name())
    monkeypatch.setattr(kernel_cache, "host", lambda: host)
    for package in ("numba", "llvmlite"):
        monkeypatch.setattr(kernel_cache, "version", lambda name, package=package: name + "1" * (name == package))
        names.add(folder_name())
    assert len(names) == 1 + len(files) + 1 + 3 + 2


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("INTENGINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kernel_cache.default_root() == tmp_path / "xdg" / "intengine"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert kernel_cache.default_root() == tmp_path / "home" / ".cache" / "intengine"
    monkeypatch.setenv("INTENGINE_CACHE", str(tmp_path / "own"))
    assert kernel_cache.default_root() == tmp_path / "own"


# ---- files that must not be loaded ----


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


ALTERED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "magic alone": lambda data: data[: len(MAGIC)],
    "head alone": lambda data: data[:HEAD],
    "cut by one byte": lambda data: data[:-1],
    "cut in half": lambda data: data[: len(data) // 2],
    "one byte more": lambda data: data + b"\0",
    "bit in the magic": flip(0),
    "bit in the checksum": flip(len(MAGIC) + 5),
    "first bit of the code": flip(HEAD),
    "bit in the code": flip(HEAD + 300),
    "last bit": lambda data: data[:-1] + bytes([data[-1] ^ 128]),
    "zeros": lambda data: bytes(len(data)),
    "object code alone": lambda data: data[HEAD:],
}


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_file_is_thrown_away(cache: KernelCache, code: bytes, how: str) -> None:
    cache.put(NAME, code)
    path = path_in(cache)
    path.write_bytes(ALTERED[how](path.read_bytes()))
    assert cache.get(NAME) is None and not path.exists()
    cache.put(NAME, code)
    assert cache.get(NAME) == code


def test_an_altered_file_is_built_again(cache: KernelCache) -> None:
    assert works(Compiler(cache))
    path = path_in(cache)
    right = path.read_bytes()
    path.write_bytes(flip(HEAD + 64)(right))
    assert works(Compiler(cache)) and path.read_bytes() == right


def test_a_file_under_another_name_or_in_another_folder_is_thrown_away(cache: KernelCache, code: bytes) -> None:
    cache.put(NAME, code)
    other = cache.folder / f"{add_from_left.name}.o"
    shutil.copy(path_in(cache), other)
    assert cache.get(add_from_left.name) is None and not other.exists()
    moved = KernelCache(cache.folder.parent)
    moved.folder = cache.folder.parent / ("kernels-" + "0" * 40)
    shutil.copytree(cache.folder, moved.folder)
    assert moved.get(NAME) is None


@pytest.mark.parametrize("mode", (0o666, 0o620, 0o602))
def test_a_file_that_others_can_write_is_thrown_away(cache: KernelCache, code: bytes, mode: int) -> None:
    cache.put(NAME, code)
    path_in(cache).chmod(mode)
    assert cache.get(NAME) is None and not path_in(cache).exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_what_belongs_to_another_user_is_not_used(cache: KernelCache, code: bytes) -> None:
    cache.put(NAME, code)
    os.chown(path_in(cache), 12345, -1)
    assert cache.get(NAME) is None and not path_in(cache).exists()
    for folder in (cache.folder, cache.folder.parent):
        cache.put(NAME, code)
        os.chown(folder, 12345, -1)
        assert cache.get(NAME) is None and "others can write" in cache.trouble
        os.chown(folder, os.geteuid(), -1)


@pytest.mark.parametrize("of", ("folder", "root"))
def test_a_folder_that_others_can_write_is_not_used(cache: KernelCache, code: bytes, of: str) -> None:
    cache.put(NAME, code)
    folder = cache.folder if of == "folder" else cache.folder.parent
    folder.chmod(0o777)
    assert cache.get(NAME) is None and path_in(cache).exists()
    cache.put(NAME, b"")
    assert cache.trouble == f"{folder}: others can write to it"
    assert works(Compiler(cache))


# ---- places where nothing can be kept ----


def test_a_file_in_place_of_a_folder(tmp_path: Path, code: bytes) -> None:
    (tmp_path / "root").write_text("not a folder")
    cache = KernelCache(tmp_path / "root")
    cache.put(NAME, code)
    assert cache.get(NAME) is None and cache.trouble and works(Compiler(cache))
    inner = KernelCache(tmp_path / "other")
    inner.folder.parent.mkdir(mode=0o700)
    inner.folder.write_text("not a folder")
    inner.put(NAME, code)
    assert inner.get(NAME) is None and inner.trouble


def test_a_folder_in_place_of_a_file(cache: KernelCache, code: bytes) -> None:
    path_in(cache).mkdir(parents=True, mode=0o700)
    cache.folder.parent.chmod(0o700)
    cache.folder.chmod(0o700)
    assert cache.get(NAME) is None
    cache.put(NAME, code)
    assert cache.get(NAME) is None and cache.trouble and list(cache.folder.iterdir()) == [path_in(cache)]


def test_a_root_that_cannot_be_written(tmp_path: Path, code: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.path.isdir("/proc/self"):
        cache = KernelCache(Path("/proc/self"))  # not even root writes here
        cache.put(NAME, code)
        assert cache.get(NAME) is None and cache.trouble

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    cache = KernelCache(tmp_path / "root")
    cache.put(NAME, code)
    path_in(cache).write_bytes(b"broken")
    for name in ("unlink", "replace", "utime", "mkdir"):
        monkeypatch.setattr(os, name, refuse)
    assert cache.get(NAME) is None
    cache.put(NAME, code)
    assert cache.get(NAME) is None and "Permission denied" in cache.trouble
    assert works(Compiler(cache))


# ---- several processes, many versions ----

FILL = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
from engine.kernel_cache import KernelCache
from test_kernel_cache import works, Compiler
sys.exit(0 if works(Compiler(KernelCache(Path({cache!r})))) else 1)
"""


def test_processes_that_fill_it_at_once(cache: KernelCache) -> None:
    tests = Path(__file__).parent
    script = FILL.format(tests=str(tests), root=str(tests.parent), cache=str(cache.folder.parent))
    running = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert [path.name for path in cache.folder.iterdir()] == [f"{NAME}.o"] and cache.get(NAME)


def test_old_versions_are_removed_and_nothing_else(cache: KernelCache, code: bytes) -> None:
    root = cache.folder.parent
    root.mkdir(mode=0o700)
    old = [root / f"kernels-{n:040x}" for n in range(12)]
    for age, folder in enumerate(old):
        folder.mkdir()
        (folder / "a.o").write_bytes(b"x")
        os.utime(folder, (1e9 - age, 1e9 - age))
    theirs = [root / "0123456789012345678901234567890123456789", root / "kernels-", root / "notes"]
    for folder in theirs:
        folder.mkdir()
    cache.put(NAME, code)
    left = set(root.iterdir())
    assert left == {cache.folder, *theirs, *old[: kernel_cache.FOLDERS_KEPT - 1]}


def test_a_folder_that_is_used_counts_as_new(cache: KernelCache, code: bytes) -> None:
    cache.put(NAME, code)
    os.utime(cache.folder, (1e9, 1e9))
    assert KernelCache(cache.folder.parent).get(NAME) and cache.folder.stat().st_mtime > 1e9 + 1


# ---- what the user sees ----


def test_numba_switched_off_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    with pytest.raises(KernelError, match=r"^NUMBA_DISABLE_JIT: .*unset it$"):
        prepare([copy_scaled], Compiler())
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "0")
    assert prepare([], Compiler()) == 0.0


@pytest.mark.parametrize("seconds", (0.0, 0.5))
def test_compiling_is_announced_only_when_slow(
    seconds: float, cache: KernelCache, code: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_slowly(kernel: object) -> bytes:
        time.sleep(seconds)
        return code

    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(kernel_cache, "QUIET_SECONDS", 0.25)
    monkeypatch.setattr(compiler_module, "object_code", compile_slowly)
    took = prepare([copy_scaled], Compiler(cache))
    said = stream.getvalue()
    assert took >= seconds
    line = rf"compiling 1 kernels for {re.escape(target.host().cpu)}, once \.\.\. \d+\.\d s\n"
    assert re.fullmatch(line, said) if seconds else not said
    stream.truncate(0)
    assert prepare([copy_scaled], Compiler(cache)) == 0.0 and not stream.getvalue()
    if seconds:
        cache.folder.chmod(0o777)
        prepare([copy_scaled], Compiler(cache))
        assert stream.getvalue().endswith(f"(not kept: {cache.folder}: others can write to it)\n")
