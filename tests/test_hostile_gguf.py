"""GGUF files that lie, were cut short, or are something else: each is answered by one line, and by little memory.

After the catalogue of llama.cpp's tests/test-gguf.cpp and published holes of other readers. The bytes are made by hand.
"""

import os
import struct
import tracemalloc
from pathlib import Path

import pytest
import tiny

from engine.errors import FileError
from engine.gguf import GGUFFile
from engine.gguf_config import read_config

U8, U32, I32, F32, BOOL, STRING, ARRAY = 0, 4, 5, 6, 7, 8, 9


def u32(n: int) -> bytes:
    return struct.pack("<I", n)


def u64(n: int) -> bytes:
    return struct.pack("<Q", n)


def text(s: bytes, length: int | None = None) -> bytes:
    return u64(len(s) if length is None else length) + s


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + u32(kind) + value


def array(name: bytes, kind: int, count: int, values: bytes = b"") -> bytes:
    return key(name, ARRAY, u32(kind) + u64(count) + values)


def tensor(name: bytes = b"t", sizes: tuple[int, ...] = (8,), type: int = 0, offset: int = 0, axes: int = -1) -> bytes:
    count = len(sizes) if axes < 0 else axes
    return text(name) + u32(count) + b"".join(u64(n) for n in sizes) + u32(type) + u64(offset)


def gguf(
    keys: tuple[bytes, ...] = (), tensors: tuple[bytes, ...] = (), data: int = 64, alignment: int = 32, **counts: int
) -> bytes:
    """A whole file: version, tensors and keys may be claimed otherwise by `version=`, `n_tensors=`, `n_keys=`."""
    head = b"GGUF" + u32(counts.get("version", 3)) + u64(counts.get("n_tensors", len(tensors)))
    head += u64(counts.get("n_keys", len(keys))) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + bytes(data)


GOOD = gguf(
    (
        key(b"general.architecture", STRING, text(b"llama")),
        key(b"a.number", U32, u32(7)),
        key(b"a.flag", BOOL, b"\1"),
        array(b"a.words", STRING, 3, text(b"one") + text(b"") + text(b"three")),
        array(b"a.floats", F32, 2, bytes(8)),
    ),
    (tensor(b"first", (8, 3), 0, 0), tensor(b"second", (32, 2), 2, 96)),
    data=96 + 36,
)
FILLER = bytes(4096)
ALIGNMENT = b"general.alignment"

# what the file is -> its bytes, and what the answer says
HEADERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "bad magic": (b"GGUX" + GOOD[4:], "is not a GGUF file: it begins with 'GGUX"),
    "version 0": (gguf(version=0), "is GGUF version 0; versions 2 and 3 are read"),
    "version 1": (gguf(version=1), "is GGUF version 1; versions 2 and 3 are read"),
    "future version": (gguf(version=4), "is GGUF version 4"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(64), "is a big-endian GGUF file"),
    "magic reversed": (b"FUGG" + GOOD[4:], "bytes in reverse order"),
    "2^32 tensors": (gguf(n_tensors=2**32), "claims 4294967296 tensors"),
    "2^63 tensors": (gguf(n_tensors=2**63), "claims 9223372036854775808 tensors"),
    "2^32 keys": (gguf(n_keys=2**32), "claims 4294967296 keys"),
    "2^63 keys": (gguf(n_keys=2**63), "claims 9223372036854775808 keys"),
    "more tensors than bytes": (gguf(n_tensors=1000), "1000 tensors: have 96 of at least"),
    "more keys than bytes": (gguf(n_keys=1000), "1000 keys: have 96 of at least"),
    "one key too many": (gguf((key(b"k", U8, b"\1"),), n_keys=2), "key 2 of 2: has an empty name"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "web page": (b"\n <!DOCTYPE html><html>", "is a web page"),
    "web page, upper case": (b"<HTML><BODY>429</BODY></HTML>", "is a web page"),
    "zip": (b"PK\x03\x04" + FILLER, "is a zip file; if PyTorch wrote it, it holds a pickle"),
    "pickle": (b"\x80\x02}q\x00.", "holds a pickle"),
    "gzip": (b"\x1f\x8b\x08" + FILLER, "is a compressed file"),
    "safetensors": (u64(80) + b'{"a":{}}' + FILLER, "is a safetensors file"),
    "JSON": (b'{"architectures": []}', "is JSON"),
    "old GGML": (b"tjgg\3\0\0\0" + FILLER, "older format (GGJT"),
    "zeros": (FILLER, "begins with zeros"),
    "control characters": (b"\x1b[31m\n\n" + FILLER, r"begins with '\x1b[31m\n\n"),
}

KEYS: dict[str, tuple[bytes, str]] = {
    "key of 2^64-1 bytes": (gguf((text(b"k", 2**64 - 1) + bytes(24),)), "key 1 of 1: have 128 of at least"),
    "key longer than the file": (gguf((text(b"k", 4000) + bytes(24),)), "key 1 of 1: have 128 of at least"),
    "key over 64 KiB": (gguf((key(b"k" * 70000, U8, b"\1"),)), "70000 bytes long, at most 65536"),
    "string of 2^64-1 bytes": (gguf((key(b"k", STRING, text(b"", 2**64 - 1)),)), "key 'k': have 128 of at least"),
    "2^61 numbers": (gguf((array(b"k", F32, 2**61),)), "key 'k', 2305843009213693952 elements: have"),
    "2^61 strings": (gguf((array(b"k", STRING, 2**61),)), "key 'k', 2305843009213693952 strings: have"),
    "2^64-1 bytes": (gguf((array(b"k", U8, 2**64 - 1),)), "key 'k', 18446744073709551615 elements: have"),
    "string in an array too long": (
        gguf((array(b"k", STRING, 2, text(b"a") + text(b"", 2**64 - 1)),)), "string 2 of 2: have 160 of at least",
    ),
    "array of arrays": (gguf((array(b"k", ARRAY, 1, u32(U8) + u64(1) + b"\1"),)), "is an array of arrays"),
    "unknown kind": (gguf((key(b"k", 13, FILLER),)), "is of the unknown kind 13"),
    "unknown kind in an array": (gguf((array(b"k", 2**32 - 1, 1, FILLER),)), "of the unknown kind 4294967295"),
    "empty key": (gguf((key(b"", U8, b"\1"),)), "key 1 of 1: has an empty name"),
    "duplicate key": (gguf((key(b"k", U8, b"\1"), key(b"k", U32, u32(1)))), "key 'k': is there twice"),
    "key that is not UTF-8": (gguf((key(b"\xff\x1b", U8, b"\1"),)), r"'\xff\x1b' is not UTF-8"),
    "bool of 2": (gguf((key(b"k", BOOL, b"\2"),)), "key 'k': a bool is stored as 2"),
    "bool of 2 in an array": (gguf((array(b"k", BOOL, 2, b"\1\2"),)), "key 'k': a bool is stored as 2"),
    "alignment 0": (gguf((key(ALIGNMENT, U32, u32(0)),)), "is 0, expected a power of two"),
    "alignment 3": (gguf((key(ALIGNMENT, U32, u32(3)),)), "is 3, expected a power of two"),
    "alignment 2^31": (gguf((key(ALIGNMENT, U32, u32(2**31)),)), "is 2147483648, expected a power of two up to"),
    "alignment of a string": (gguf((key(ALIGNMENT, STRING, text(b"32")),)), "is string, u32 is expected"),
    "alignment of another integer": (gguf((key(ALIGNMENT, I32, u32(32)),)), "is i32, u32 is expected"),
    "first of five files": (
        gguf((key(b"split.no", 2, b"\0\0"), key(b"split.count", 2, b"\5\0"))), "is part 1 of 5 of a model in several",
    ),
    "part of a split without number": (gguf((key(b"split.count", STRING, text(b"5")),)), "is one part of a model"),
}  # fmt: skip

TENSORS: dict[str, tuple[bytes, str]] = {
    "0 axes": (gguf((), (tensor(sizes=()),)), "tensor 't': has 0 axes, expected 1 to 4"),
    "5 axes": (gguf((), (tensor(sizes=(2, 2, 2, 2, 2)),)), "tensor 't': has 5 axes"),
    "2^32-1 axes": (gguf((), (tensor(axes=2**32 - 1),)), "tensor 't': has 4294967295 axes"),
    "an axis of 0": (gguf((), (tensor(sizes=(8, 0)),)), "its shape is (0, 8)"),
    "an axis of 2^64-1": (gguf((), (tensor(sizes=(8, 2**64 - 1)),)), "its shape is (18446744073709551615, 8)"),
    "a product of 2^64": (gguf((), (tensor(sizes=(2**32, 2**32)),)), "fewer than 2^63 elements"),
    "a product of 2^128 + 0": (gguf((), (tensor(sizes=(2**32,) * 4),)), "fewer than 2^63 elements"),
    "a size that wraps": (gguf((), (tensor(sizes=(2**62,)),)), "tensor 't': have 128 of 18446744073709551680 bytes"),
    "a size that wraps with its padding": (
        gguf((), (tensor(sizes=(2**62 - 1,)), tensor(b"u", offset=2**64 - 32))), "overlap those of tensor 't'",
    ),
    "an unknown type": (gguf((), (tensor(type=4242),)), "type 4242 (unknown) is not supported; supported: F32, F16"),
    "a removed type": (gguf((), (tensor(type=4),)), "type 4 (Q4_2) is not supported; supported: F32, F16"),
    "a removed type, 36": (gguf((), (tensor(type=36),)), "type 36 (IQ4_NL_4_4) is not supported"),
    "a row of half a block": (gguf((), (tensor(sizes=(48, 2), type=2),)), "rows of 48 elements; Q4_0 needs"),
    "an unaligned offset": (
        gguf((), (tensor(), tensor(b"u", offset=33))), "tensor 'u': its offset 33 is not a multiple of the alignment",
    ),
    "an offset that fits another alignment": (
        gguf((key(ALIGNMENT, U32, u32(64)),), (tensor(), tensor(b"u", offset=32)), alignment=64),
        "tensor 'u': its offset 32 is not a multiple of the alignment, 64",
    ),
    "an offset beyond the end": (gguf((), (tensor(offset=1024),)), "tensor 't': have 128 of 1120 bytes"),
    "an offset of 2^64-32": (gguf((), (tensor(offset=2**64 - 32),)), "tensor 't': have 128 of"),
    "the end one byte short": (gguf((), (tensor(),), data=31), "tensor 't': have 95 of 96 bytes"),
    "overlap": (
        gguf((), (tensor(sizes=(16,)), tensor(b"u", offset=32))),
        "tensor 'u': its bytes overlap those of tensor 't'",
    ),
    "the same bytes twice": (gguf((), (tensor(), tensor(b"u"))), "tensor 'u': its bytes overlap"),
    "duplicate name": (gguf((), (tensor(), tensor(offset=32))), "tensor 't': is there twice"),
    "empty name": (gguf((), (tensor(b""),)), "tensor 1 of 1: has an empty name"),
    "a name of 2^64-1 bytes": (
        gguf((), (text(b"t", 2**64 - 1) + bytes(24),)), "tensor 1 of 1: have 128 of at least",
    ),
    "a name of 300 bytes": (gguf((), (tensor(b"t" * 300),)), "tensor 1 of 1: 300 bytes long, at most 256"),
    "a name of control characters": (
        gguf((), (tensor(b"\x1b]0;x\x07\n", (8, 0)),)), r"tensor '\x1b]0;x\x07\n': its shape is",
    ),
}  # fmt: skip


def answer(path: Path | str, work=GGUFFile.open) -> str:
    """The one line that refuses a file, without its name; the memory that it took is in proportion to the file."""
    size = os.path.getsize(path) if os.path.exists(path) else 0
    tracemalloc.start()
    try:
        with pytest.raises(FileError) as caught:
            work(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert peak < 300_000 + 8 * min(size, 1 << 20), f"{peak} bytes of memory for {size} of file"
    assert message.isprintable() and len(message) < 6000, message
    return message.removeprefix(f"{path}: ")


def config_of(path: Path | str) -> object:
    with GGUFFile.open(path) as file:
        return read_config(file)


def test_the_file_that_the_others_differ_from_is_good(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(GOOD)
    with GGUFFile.open(path) as file:
        assert [(t.name, t.type, t.shape, t.nbytes) for t in file.tensors.values()] == [
            ("first", "F32", (3, 8), 96), ("second", "Q4_0", (2, 32), 36)
        ]  # fmt: skip
        assert file.strings("a.words") == [b"one", b"", b"three"] and file.boolean("a.flag")
    path.write_bytes(gguf((key(ALIGNMENT, U32, u32(64)),), (tensor(), tensor(b"u", offset=64)), 96, alignment=64))
    GGUFFile.open(path).close()


@pytest.mark.parametrize("case", [*HEADERS, *KEYS, *TENSORS])
def test_refused(tmp_path: Path, case: str) -> None:
    content, expected = (HEADERS | KEYS | TENSORS)[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    assert expected in answer(path)


def test_cut_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for size in range(len(GOOD)):
        path.write_bytes(GOOD[:size])
        message = answer(path)
        assert message.startswith("is empty") if size == 0 else f"have {size} of " in message, message


def test_a_byte_changed_anywhere_is_refused_or_read_but_never_crashes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for at in range(len(GOOD) - 132):
        for value in (0, 0xFF):
            path.write_bytes(GOOD[:at] + bytes([value]) + GOOD[at + 1 :])
            try:
                with GGUFFile.open(path) as file:
                    for name in file.tensors:
                        assert len(file.data(name)) == file.tensors[name].nbytes
            except FileError as error:
                assert str(error).isprintable()


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    assert answer(tmp_path).startswith("is a directory; name the .gguf file in it")
    assert answer(tmp_path / "none.gguf") == "can't be read: No such file or directory"
    assert "can't be read" in answer("a\0b")
    os.mkfifo(tmp_path / "pipe")
    assert answer(tmp_path / "pipe") == "is not a regular file"


def test_name_with_control_characters_stays_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a\nb\x1b[2J.gguf"
    path.write_bytes(b"no")
    assert r"a\nb\x1b[2J.gguf: is not a GGUF file" in answer(path)


def test_claims_that_a_sparse_file_seems_to_bear_out(tmp_path: Path) -> None:
    """A file may say that it has terabytes without having them: the header has limits of its own."""
    path = tmp_path / "m.gguf"
    for claim, expected in (
        (array(b"k", STRING, 2**22 + 1), "arrays of more than 4194304 strings"),
        (array(b"k", STRING, 2**32), "the header goes beyond 256 MiB"),
        (array(b"k", U8, 2**40), "the header goes beyond 256 MiB"),
        (key(b"k", STRING, text(b"", 2**40)), "the header goes beyond 256 MiB"),
    ):
        path.write_bytes(b"GGUF" + u32(3) + u64(0) + u64(1) + claim)
        try:
            os.truncate(path, 2**42)
        except OSError:
            pytest.skip("this file system has no sparse files of 4 TiB")
        assert expected in answer(path)


SIZES: dict[str, tuple[dict[str, object], str]] = {
    "layers 0": ({"llama.block_count": 0}, "key 'llama.block_count': is 0, expected 1 to 512"),
    "layers 10^9": ({"llama.block_count": 10**9}, "is 1000000000, expected 1 to 512"),
    "layers as text": ({"llama.block_count": "3"}, "is string, a whole number is expected"),
    "layers 512 of 3": ({"llama.block_count": 512}, "tensors: 4581 missing: blk.3.attn_norm.weight, "),
    "layers 2 of 3": ({"llama.block_count": 2}, "9 that llama has no use for: blk.2.attn_norm.weight, "),
    "heads 0": ({"llama.attention.head_count": 0}, "head_count': is 0, expected 1 to"),
    "heads 7": ({"llama.attention.head_count": 7}, "is 7, expected a divisor of embedding_length, 64"),
    "heads per layer": ({"llama.attention.head_count": [4, 4, 4]}, "is array of i32, a whole number is expected"),
    "kv heads 0": ({"llama.attention.head_count_kv": 0}, "head_count_kv': is 0, expected 1 to"),
    "kv heads 3": ({"llama.attention.head_count_kv": 3}, "kv_heads is 3, expected a divisor of heads, 4"),
    "kv heads 4": ({"llama.attention.head_count_kv": 4}, "blk.0.attn_k.weight (32, 64), expected (64, 64)"),
    "context 0": ({"llama.context_length": 0}, "context_length': is 0, expected 1 to"),
    "context 2^31": ({"llama.context_length": 2**31}, "context_length': is 2147483648, expected 1 to"),
    "width 0": ({"llama.embedding_length": 0}, "embedding_length': is 0, expected 1 to"),
    "width 128": ({"llama.embedding_length": 128}, "of another shape than the keys say"),
    "feed-forward 2^32-1": ({"llama.feed_forward_length": 2**32 - 1}, "is 4294967295, expected 1 to"),
    "eps 0": ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "rms_eps is 0.0, expected"),
    "eps NaN": ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "is nan, a finite number is expected"),
    "rope base 0": ({"llama.rope.freq_base": 0.0}, "rope_base is 0.0, expected"),
    "rope base infinite": ({"llama.rope.freq_base": float("inf")}, "is inf, a finite number is expected"),
    "rope odd": ({"llama.rope.dimension_count": 7}, "rope_dims is 7, expected even, at most head_size, 16"),
    "rope beyond the head": ({"llama.rope.dimension_count": 18}, "rope_dims is 18, expected even, at most head_size"),
    "value length": ({"llama.attention.value_length": 8}, "differs from key_length, 16"),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, "not supported, and may change what the model says: llama.rope.scal"),
    "linear rope": ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, "scaling.factor = 4.0"),
    "experts": ({"llama.expert_count": 8, "llama.expert_used_count": 2}, "expert_count = 8, llama.expert_used_count"),
    "softcap": ({"llama.final_logit_softcapping": 30.0}, "llama.final_logit_softcapping = 30.0"),
    "window": ({"llama.attention.sliding_window": 100}, "llama.attention.sliding_window = 100"),
    "unknown key": ({"llama.\x1bnew": "a\nb"}, r"llama.\x1bnew = a\nb"),
    "rows unlike vocab_size": ({"llama.vocab_size": 311}, "is 311, but token_embd.weight has 310 rows"),
    "architecture": ({"general.architecture": "mamba\x07"}, r"'mamba\x07' is not supported; supported: llama, qwen2"),
    "adapter": ({"general.type": "adapter"}, "is 'adapter', expected 'model'"),
}


@pytest.mark.parametrize("case", SIZES)
def test_sizes_that_cannot_be(tmp_path: Path, case: str) -> None:
    metadata, expected = SIZES[case]
    path = tmp_path / "m.gguf"
    tiny.write(path, metadata=metadata)
    assert expected in answer(path, config_of)


def test_layers_of_minus_one(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tiny.write(path)
    name = b"llama.block_count"
    path.write_bytes(path.read_bytes().replace(name + u32(U32) + u32(3), name + u32(I32) + u32(2**32 - 1)))
    assert answer(path, config_of) == "key 'llama.block_count': is -1, expected 1 to 512"


def test_everything_missing_or_misshapen_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    gone = ("blk.0.attn_q.weight", "blk.2.ffn_norm.weight", "output_norm.weight")
    tiny.write(path, without=gone, metadata={"llama.feed_forward_length": 97})
    message = answer(path, config_of)
    assert "3 missing: blk.0.attn_q.weight, blk.2.ffn_norm.weight, output_norm.weight; 9 of another shape" in message
    assert "blk.2.ffn_down.weight (64, 96), expected (64, 97)" in message


def test_a_type_that_we_do_not_read_is_named_with_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tiny.write(path, type="Q3_K", types={"ffn_up.weight": "Q4_K"})
    message = answer(path, config_of)
    assert "20 of a type that is not supported (supported: F32, F16, " in message
    assert "token_embd.weight Q3_K" in message and message.endswith("and 12 more")


def test_a_vocabulary_alone_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf((key(b"general.architecture", STRING, text(b"llama")),)))
    assert answer(path, config_of).startswith("tensors: there are none; it holds a vocabulary")
