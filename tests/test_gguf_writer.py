"""Our GGUF writer: read back by the `gguf` package and by our reader; nothing half-written stays, not even of a kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny

from engine import atomic_file as atomic_module
from engine.atomic_file import atomic_file
from engine.errors import FileError
from engine.gguf import GGUFFile
from engine.gguf_writer import GGUFWriter, NewTensor

KEYS = {
    "general.architecture": ("string", "llama"),
    "a.u8": ("u8", 250), "a.i8": ("i8", -3), "a.u16": ("u16", 65000), "a.i16": ("i16", -300), "a.u32": ("u32", 2**32 - 1),
    "a.i32": ("i32", -5), "a.f32": ("f32", 0.5), "a.bool": ("bool", True), "a.u64": ("u64", 2**63), "a.i64": ("i64", -9),
    "a.f64": ("f64", 0.1), "a.bytes": ("string", b"\xff\x00"), "a.words": ("array of string", [b"a", b"", b"\xfe"]),
    "a.numbers": ("array of f32", np.array([1.5, -2], np.float32)), "a.flags": ("array of bool", np.array([True, False])),
    "a.none": ("array of i32", np.array([], np.int32)),
}  # fmt: skip


def write(path: Path, keys: dict = KEYS) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    arrays = {
        "m": random.standard_normal((3, 64)).astype(np.float32),
        "v": random.standard_normal(5).astype(np.float32),
    }
    raw = gguf.quants.quantize(arrays["m"], gguf.GGMLQuantizationType.Q8_0)
    tensors = [NewTensor("q", "Q8_0", (3, 64)), NewTensor("v", "F32", (5,)), NewTensor("m", "F32", (3, 64))]
    with GGUFWriter(path, keys, tensors) as writer:
        writer.write("m", arrays["m"].view(np.uint8))
        writer.write("q", raw[:1])
        writer.write("v", arrays["v"].view(np.uint8))
        writer.write("q", raw[1:])
    return arrays | {"q": raw}


@pytest.mark.parametrize("alignment", [None, 32, 256])
def test_read_back_by_both_readers(tmp_path: Path, alignment: int | None) -> None:
    keys = KEYS if alignment is None else KEYS | {"general.alignment": ("u32", alignment)}
    arrays = write(tmp_path / "a.gguf", keys)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    for tensor in reader.tensors:
        np.testing.assert_array_equal(np.asarray(tensor.data).reshape(arrays[tensor.name].shape), arrays[tensor.name])
    for key in ("a.u8", "a.i64", "a.f64", "a.bool", "a.u64"):
        assert reader.get_field(key).contents() == keys[key][1]
    with GGUFFile.open(tmp_path / "a.gguf") as file:
        assert dict(file.kinds) == {key: kind for key, (kind, _) in keys.items()}
        for key, (_, value) in keys.items():
            np.testing.assert_array_equal(np.asarray(file.metadata[key]), np.asarray(value))
        assert [t.name for t in file.tensors.values()] == ["q", "v", "m"]
        assert file.size % file.alignment == 0


def test_a_whole_model_copied_is_the_same_file(tmp_path: Path) -> None:
    tiny.write(tmp_path / "a.gguf", type="Q4_0", vocab="bpe")
    with GGUFFile.open(tmp_path / "a.gguf") as file:
        keys = {key: (file.kinds[key], value) for key, value in file.metadata.items()}
        tensors = [NewTensor(t.name, t.type, t.shape) for t in file.tensors.values()]
        with GGUFWriter(tmp_path / "b.gguf", keys, tensors) as writer:
            for name in file.tensors:
                writer.write(name, file.data(name))
    a, b = (tmp_path / "a.gguf").read_bytes(), (tmp_path / "b.gguf").read_bytes()
    assert a == b[: len(a)] and not any(b[len(a) :])


@pytest.mark.parametrize("nameless", [True, False])
def test_an_error_leaves_nothing_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool
) -> None:
    if not nameless:
        monkeypatch.delattr(atomic_module.os, "O_TMPFILE", raising=False)
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")
    for error in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(error), GGUFWriter(path, KEYS, [NewTensor("v", "F32", (5,))]) as writer:
            writer.write("v", np.zeros(20, np.uint8))
            raise error
        assert os.listdir(tmp_path) == ["a.gguf"] and path.read_bytes() == b"old"
    with pytest.raises(ValueError, match="in full: v"), GGUFWriter(path, KEYS, [NewTensor("v", "F32", (5,))]):
        pass
    assert os.listdir(tmp_path) == ["a.gguf"] and path.read_bytes() == b"old"
    write(path)
    assert os.listdir(tmp_path) == ["a.gguf"] and path.read_bytes()[:4] == b"GGUF"
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="files without a name are Linux's")
def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal\nfrom engine.atomic_file import atomic_file\n"
        "with atomic_file(sys.argv[1]) as f:\n f.write(b'x' * 1000); f.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False)
    assert found.returncode == -signal.SIGKILL and os.listdir(tmp_path) == []


def test_what_cannot_be_written(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "a.gguf"):
        with pytest.raises(FileError) as caught, atomic_file(path):
            pass
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="same name"):
        GGUFWriter(tmp_path / "a", KEYS, [NewTensor("v", "F32", (5,))] * 2)
    with pytest.raises(ValueError, match="alignment"):
        GGUFWriter(tmp_path / "a", {"general.alignment": ("u32", 3)}, [])
    with (
        pytest.raises(ValueError, match="expected 20"),
        GGUFWriter(tmp_path / "a", KEYS, [NewTensor("v", "F32", (5,))]) as writer,
    ):
        writer.write("v", np.zeros(21, np.uint8))
    assert os.listdir(tmp_path) == []
