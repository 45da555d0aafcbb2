"""The reader against files that the `gguf` package wrote; damaged files are in test_hostile_gguf.py."""

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny

from engine import gguf_types
from engine.errors import FileError
from engine.gguf import GGUFFile

REAL = Path(__file__).parents[2] / "shared" / "models"


def write_keys(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for kind, value in (("uint8", 200), ("int8", -100), ("uint16", 60000), ("int16", -30000), ("uint32", 4 * 10**9),
                        ("int32", -(2**31)), ("uint64", 2**64 - 1), ("int64", -(2**63)), ("float32", 0.1),
                        ("float64", 0.1)):  # fmt: skip
        getattr(writer, f"add_{kind}")(kind, value)
    writer.add_bool("bool", True)
    writer.add_string("string", "naïve ▁")
    writer.add_float32("nan", float("nan"))
    writer.add_array("floats", [0.5, -1.0, 2.0])
    writer.add_array("ints", [1, -2, 3, 4])
    writer.add_array("bools", [True, False])
    writer.add_array("strings", [b"\xff\xfe", b"", "é".encode()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def keys(tmp_path: Path) -> GGUFFile:
    write_keys(tmp_path / "keys.gguf")
    return GGUFFile.open(tmp_path / "keys.gguf")


def test_values_of_every_kind(keys: GGUFFile) -> None:
    expected = {"uint8": 200, "int8": -100, "uint16": 60000, "int16": -30000, "uint32": 4 * 10**9, "int32": -(2**31),
                "uint64": 2**64 - 1, "int64": -(2**63), "float64": 0.1, "bool": True, "string": "naïve ▁",
                "strings": [b"\xff\xfe", b"", b"\xc3\xa9"]}  # fmt: skip
    assert {key: keys.metadata[key] for key in expected} == expected
    assert keys.metadata["float32"] == float(np.float32(0.1))
    assert keys.kinds["int16"] == "i16" and keys.kinds["strings"] == "array of string"
    for key, values in (("floats", [0.5, -1, 2]), ("ints", [1, -2, 3, 4]), ("bools", [True, False])):
        found = keys.array(key)
        assert found.tolist() == values and not found.flags.writeable
    assert keys.array("floats").dtype == np.float32 and keys.array("bools").dtype == np.bool_


def test_getters(keys: GGUFFile) -> None:
    assert keys.u32("uint8") == 200 and keys.u32("absent", 7) == 7 and keys.u32("int8", low=-128) == -100
    assert keys.f32("uint8") == 200.0 and type(keys.f32("uint8")) is float and keys.f32("float64") == 0.1
    assert keys.string("string") == "naïve ▁" and keys.boolean("bool") is True and keys.boolean("none", False) is False
    assert keys.strings("strings")[2] == "é".encode() and keys.strings("absent", []) == []


@pytest.mark.parametrize(
    "getter, key, text",
    [
        ("u32", "int8", "key 'int8': is -100, expected 0 to 4294967295"),
        ("u32", "uint64", "key 'uint64': is 18446744073709551615, expected"),
        ("u32", "bool", "key 'bool': is bool, a whole number is expected"),
        ("u32", "float64", "key 'float64': is f64, a whole number is expected"),
        ("u32", "ints", "key 'ints': is array of i32, a whole number is expected"),
        ("u32", "absent", "key 'absent': missing"),
        ("f32", "nan", "key 'nan': is nan, a finite number is expected"),
        ("f32", "string", "key 'string': is string, a number is expected"),
        ("string", "bool", "key 'bool': is bool, a string is expected"),
        ("boolean", "uint8", "key 'uint8': is u8, a bool is expected"),
        ("strings", "floats", "key 'floats': is array of f32, an array of strings is expected"),
        ("array", "strings", "key 'strings': is array of string, an array of numbers is expected"),
    ],
)
def test_getters_say_what_is_wrong(keys: GGUFFile, getter: str, key: str, text: str) -> None:
    with pytest.raises(FileError) as caught:
        getattr(keys, getter)(key)
    assert str(caught.value).startswith(f"{keys.path}: {text}")


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
@pytest.mark.parametrize("arch, type", [("llama", "F32"), ("qwen2", "Q4_0"), ("llama", "Q4_K_M")])
def test_tensors_are_what_was_written(tmp_path: Path, arch: str, type: str, alignment: int | None) -> None:
    path = tmp_path / "m.gguf"
    weights = tiny.write(path, arch, type, alignment=alignment)
    with GGUFFile.open(path) as file:
        assert list(file.tensors) == list(weights) and file.version == 3 and file.size == path.stat().st_size
        for name, values in weights.items():
            info = file.tensors[name]
            assert info.shape == values.shape and info.offset % (alignment or 32) == 0
            found = gguf_types.block_type(info.type).dequantize(file.data(name))
            assert np.array_equal(found.reshape(info.shape), values)


def test_views_are_read_only_and_outlive_the_file(tmp_path: Path) -> None:
    weights = tiny.write(tmp_path / "m.gguf")
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        data = file.data("output_norm.weight")
        assert not data.flags.writeable and data.base is not None
        with pytest.raises(FileError, match=r"m.gguf: tensor 'blk.9': missing"):
            file.data("blk.9")
    assert np.array_equal(data.view(np.float32), weights["output_norm.weight"])
    file.close()


def test_released_tensors_can_be_read_again(tmp_path: Path) -> None:
    weights = tiny.write(tmp_path / "m.gguf")
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        for _ in range(2):
            assert file.data("output.weight").view(np.float32).sum() == weights["output.weight"].sum()
            file.release("output.weight")


def test_nothing_stays_open(tmp_path: Path) -> None:
    tiny.write(tmp_path / "m.gguf")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        GGUFFile.open(tmp_path / "m.gguf").close()
        with pytest.raises(FileError):
            GGUFFile.open(tmp_path / "none.gguf")
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_version_2_is_read_as_3(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tiny.write(path)
    with GGUFFile.open(path) as file:
        names = list(file.tensors)
    path.write_bytes(b"GGUF\2\0\0\0" + path.read_bytes()[8:])
    with GGUFFile.open(path) as file:
        assert file.version == 2 and list(file.tensors) == names


def test_padding_after_the_last_tensor_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tiny.write(path, type="Q4_0", alignment=4096)
    with GGUFFile.open(path) as file:
        end = max(info.offset + info.nbytes for info in file.tensors.values())
        assert end < file.size
    path.write_bytes(path.read_bytes()[:end])
    GGUFFile.open(path).close()


@pytest.mark.parametrize("name", ["F32", "Q8_0", "Q4_0"])
def test_real_files_equal_the_gguf_package(name: str) -> None:
    path = REAL / f"stories260K-{name}.gguf"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    theirs = gguf.GGUFReader(path)
    with GGUFFile.open(path) as file:
        assert [t.name for t in theirs.tensors] == list(file.tensors)
        for tensor in theirs.tensors:
            info = file.tensors[tensor.name]
            assert (info.type, info.offset, info.nbytes, info.shape) == (
                tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes, tuple(tensor.shape.tolist()[::-1])
            )  # fmt: skip
            assert bytes(file.data(tensor.name)) == tensor.data.tobytes()
        assert {key: field.contents() for key, field in theirs.fields.items() if "." in key and "GGUF" not in key} == {
            key: [v.decode() for v in value] if isinstance(value, list) else
            value.tolist() if isinstance(value, np.ndarray) else value for key, value in file.metadata.items()
        }  # fmt: skip
