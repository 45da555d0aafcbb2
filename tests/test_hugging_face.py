"""Hugging Face folders: the same model as its GGUF file, to the bit; tokens as `tokenizers` has them; what is refused."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import hf_folder
import numpy as np
import pytest
import tokenizers
import truth

import engine
from engine.errors import FileError
from engine.float_source import float_source
from engine.hf_config import HuggingFaceConfig
from engine.hf_folder import HuggingFaceFolder
from engine.inspect import main as inspect
from engine.quantize import main
from engine.safetensors_file import SafetensorsFile

TEXTS = ["the wind was in the trees", "  two  spaces\n\nher 12 it's IT'S ünd 中 🦙", "", " ", "hers and his"]


def change(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file; None takes one away."""
    found = json.loads(path.read_text()) | values
    hf_folder.put(path, {key: value for key, value in found.items() if value is not None})


@pytest.mark.parametrize(
    "arch, dtype, options",
    [
        ("llama", "F32", {"heads": 6, "head_size": 16, "tied": True}),
        ("llama", "BF16", {"shards": 3}),
        ("qwen2", "F16", {"vocab_size": 290}),
    ],
)
def test_the_model_of_a_folder(tmp_path: Path, arch: str, dtype: str, options: dict[str, Any]) -> None:
    folder = tmp_path / "model"
    path = hf_folder.write(folder, arch, dtype, **options)
    expected = hf_folder.read_gguf(path)
    out = tmp_path / "out.gguf"
    assert main([str(folder), str(out), "--type", dtype]) == 0
    found = hf_folder.read_gguf(out)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name].reshape(values.shape), values, name)
    ids = np.random.default_rng(0).integers(3, 280, 29)
    reference = truth.forward(path, ids)
    np.testing.assert_array_equal(truth.forward(out, ids), reference)
    logits = engine.load(folder, threads=1).logits(ids.tolist())
    assert truth.kl(reference, logits) < 1e-9
    assert logits.tobytes() == engine.load(out, threads=1).logits(ids.tolist()).tobytes()


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_the_tokens_of_a_folder(tmp_path: Path, arch: str) -> None:
    folder = tmp_path / "model"
    hf_folder.write(folder, arch)
    with float_source(folder) as source:
        ours, keys = source.tokenizer, source.keys
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        assert ours.encode(text, bos=False) == theirs.encode(text, add_special_tokens=False).ids
    assert keys["tokenizer.chat_template"][1] == "{{ messages[0].content }}"
    if arch == "llama":
        assert (ours.bos_id, ours.eos_id, ours.add_bos) == (1, 2, True)
    else:
        assert ours.eos_id == 282 and {280, 282} <= ours.end_ids and not ours.add_bos


def test_quantised_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    path = hf_folder.write(folder, "llama", "F32")
    for source, out in ((folder, "a.gguf"), (path, "b.gguf")):
        assert main([str(source), str(tmp_path / out), "--type", "Q4_0"]) == 0
    a, b = (hf_folder.read_gguf(tmp_path / name) for name in ("a.gguf", "b.gguf"))
    assert all(np.array_equal(a[name], b[name]) for name in b)
    assert inspect([str(folder)]) == 0
    assert "Hugging Face folder" in capsys.readouterr().out


def test_llama_3_divisors(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 64, "rope_theta": 1000.0}
    found = HuggingFaceConfig(
        {"architectures": ["LlamaForCausalLM"], "head_dim": 16, "rope_scaling": rope}, "config.json"
    )
    expected = []
    for i in range(8):
        wave = 2 * np.pi * 1000 ** (2 * i / 16)
        smooth = (64 / wave - 1) / (4 - 1)
        expected.append(1.0 if wave < 64 / 4 else 8.0 if wave > 64 / 1 else 1 / ((1 - smooth) / 8 + smooth))
    assert 1.0 in expected and 8.0 in expected and len(set(expected)) > 2
    divisors = found.rope_divisors()
    assert divisors is not None and divisors.dtype == np.float32
    np.testing.assert_allclose(divisors, expected, rtol=1e-6)


CONFIGS = {
    "architectures: 'GemmaForCausalLM'": {"architectures": ["GemmaForCausalLM"]},
    "architectures: is": {"architectures": "LlamaForCausalLM"},
    "auto_map": {"auto_map": {"AutoModel": "modeling.Model"}},
    "quantization_config": {"quantization_config": {"bits": 4}},
    "hidden_act": {"hidden_act": "gelu"},
    "mlp_bias": {"mlp_bias": True},
    "num_hidden_layers: is 1000000000": {"num_hidden_layers": 10**9},
    "num_attention_heads": {"num_attention_heads": 0},
    "vocab_size": {"vocab_size": True},
    "rope_type 'yarn'": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
    "rms_norm_eps": {"rms_norm_eps": "tiny"},
    "factor": {"rope_parameters": {"rope_type": "llama3", "factor": 4.0}},
    "sliding_window": {"architectures": ["MistralForCausalLM"], "sliding_window": 100},
    "missing: model.layers.3.": {"num_hidden_layers": 4},
    "no use for: model.layers.2.": {"num_hidden_layers": 2},
    "differs from the embedding": {"tie_word_embeddings": True},
    "the embedding has 299 rows": {"vocab_size": 299},
    "expected (64, 16) rows": {"num_key_value_heads": 1},
    "another shape": {"intermediate_size": 128},
}


@pytest.mark.parametrize("part", CONFIGS)
def test_configurations_that_are_refused(tmp_path: Path, part: str) -> None:
    folder = tmp_path / "model"
    hf_folder.write(folder)
    change(folder / "config.json", **CONFIGS[part])
    refused(folder, part)


def broken_tokenizers() -> dict[str, dict[str, Any]]:
    """Part of the message -> tokenizer.json."""
    spm, bpe = hf_folder.tokenizer("llama"), hf_folder.tokenizer("qwen2")
    merges = spm["model"]["merges"]
    cut = bpe["pre_tokenizer"]["pretokenizers"]
    return {
        "type 'Unigram'": spm | {"model": {"type": "Unigram", "vocab": []}},
        "dropout": spm | {"model": spm["model"] | {"dropout": 0.1}},
        "don't stand together": spm | {"model": spm["model"] | {"merges": [*merges, *merges[:1]]}},
        "is none, though": spm | {"model": spm["model"] | {"merges": [m for m in merges if m != ["▁a", "n"]]}},
        "4 tokens are made by none": spm | {"model": spm["model"] | {"merges": merges[4:]}},
        "is no token": spm | {"model": spm["model"] | {"merges": [["q", "q"]]}},
        "byte_fallback": spm | {"model": spm["model"] | {"byte_fallback": False}},
        "spaces": spm | {"normalizer": {"type": "Lowercase"}},
        "model: is None": {},
        "none of those": bpe | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut[0], *cut]}},
        "normalizer": bpe | {"normalizer": {"type": "NFKC"}},
        "both have the id 5": spm | {"added_tokens": [{"id": 5, "content": "<x>", "special": True}]},
        "added_tokens": spm | {"added_tokens": [{"id": -1, "content": "<x>", "special": True}]},
    }


def test_tokenizers_that_are_refused(tmp_path: Path) -> None:
    hf_folder.write(tmp_path / "model")
    for part, found in broken_tokenizers().items():
        hf_folder.put(tmp_path / "model" / "tokenizer.json", found)
        refused(tmp_path / "model", part)


def test_files_that_are_missing(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    hf_folder.write(folder, shards=2)
    index, shard = folder / "model.safetensors.index.json", folder / "model-00002-of-00002.safetensors"
    places = json.loads(index.read_text())["weight_map"]
    first = next(iter(places))
    for part, changed in {
        "expected names in this folder": places | {first: "../other.safetensors"},
        "expected names in": places | {first: "/etc/passwd"},
        "expected names": places | {first: "pytorch_model.bin"},
        "1 of 3 shards missing": places | {first: "model-00003.safetensors"},
        "not where it says": places | {first: shard.name},
        "not where": {name: place for name, place in places.items() if name != first},
        "weight_map": {},
    }.items():
        hf_folder.put(index, {"weight_map": changed})
        refused(folder, part)
    index.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    refused(folder, "pickles")
    (folder / "pytorch_model.bin").unlink()
    refused(folder, "neither")
    (folder / "tokenizer.json").unlink()
    (folder / "config.json").write_text('{"a": 1, "a": 2}')
    refused(folder, "is there twice")
    (folder / "config.json").write_bytes(b"[" * 100000)
    refused(folder, "not valid JSON")
    (folder / "config.json").unlink()
    refused(folder, "without config.json")


def entry(**values: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | values


HEADERS: dict[str, tuple[Any, bytes]] = {
    "takes 12 bytes": ({"a": entry(shape=[3])}, bytes(8)),
    "takes 4": ({"a": entry(shape=[2**40, 2**40])}, bytes(8)),
    "have": ({"a": entry(data_offsets=[0, 80], shape=[20])}, bytes(8)),
    "two whole": ({"a": entry(data_offsets=[0, 8.0])}, bytes(8)),
    "two whole numbers": ({"a": entry(data_offsets=[-8, 0])}, bytes(8)),
    "whole numbers": ({"a": entry(shape=[True, 2])}, bytes(8)),
    "at most 8": ({"a": entry(shape=[1] * 99)}, bytes(8)),
    "dtype": ({"a": entry(dtype="F4")}, bytes(8)),
    "nothing else": ({"a": entry(more=1)}, bytes(8)),
    "expected dtype": ({"a": None}, bytes(8)),
    "overlaps": ({"a": entry(), "b": entry()}, bytes(8)),
    "hole": ({"a": entry(data_offsets=[8, 16])}, bytes(16)),
    "follow the last": ({"a": entry()}, bytes(9)),
    "not valid JSON": (b'{"a": NaN}', b""),
    "valid JSON": (b'{"a": ' + b"[" * 200000, b""),
    "JSON": (b'{"a": "\xff"}', b""),
    "twice": (b'{"a": 1, "a": 2}', b""),
}


@pytest.mark.parametrize("part", HEADERS)
def test_headers_that_are_refused(tmp_path: Path, part: str) -> None:
    header, data = HEADERS[part]
    path = tmp_path / "a.safetensors"
    path.write_bytes(hf_folder.raw(header if isinstance(header, bytes) else json.dumps(header).encode(), data))
    refused_file(path, part)


def test_files_that_are_no_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    whole = hf_folder.safetensors({"a": ("F32", (2, 3), bytes(24)), "b": ("BF16", (0,), b"")})
    for part, data in {
        "empty": b"",
        "LFS": b"version https://git-lfs.github.com/spec/v1\n",
        "GGUF": b"GGUF" + bytes(100),
        "zip": b"PK\x03\x04" + bytes(100),
        "claims": b"\xff\xff\xff\xff\xff\xff\xff\xff{",
        "at most": (1 << 40).to_bytes(8, "little") + b"{",
        "cut short": (1 << 20).to_bytes(8, "little") + b"{}",
    }.items():
        path.write_bytes(data)
        refused_file(path, part)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        refused_file(path, "")
    path.write_bytes(whole)
    file = SafetensorsFile(str(path))
    assert [file.tensors["a"].shape, file.tensors["b"].shape] == [(2, 3), (0,)]
    file.release("b")
    file.close()
    os.mkfifo(tmp_path / "pipe")
    refused_file(tmp_path / "pipe", "not a regular file")


def test_tensors_that_are_not_aligned(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    path = hf_folder.write(folder)
    whole = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header = whole[8:start].rstrip(b" ")
    header += b" " * (3 - len(header) % 4)
    (folder / "model.safetensors").write_bytes(hf_folder.raw(header, whole[start:]))
    ids = [5, 9, 200, 31]
    assert truth.kl(truth.forward(path, ids), engine.load(folder, threads=1).logits(ids)) < 1e-9


def refused(folder: Path, part: str) -> None:
    began = time.monotonic()
    with pytest.raises(FileError) as caught, float_source(folder):
        pass
    assert part in str(caught.value) and "\n" not in str(caught.value), caught.value
    assert time.monotonic() - began < 10  # a second, on a machine that has nothing else to do
    assert not isinstance(caught.value.__cause__, MemoryError)


def refused_file(path: Path, part: str) -> None:
    with pytest.raises(FileError) as caught:
        SafetensorsFile(str(path))
    assert part in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_folders_are_let_go(tmp_path: Path) -> None:
    hf_folder.write(tmp_path / "model", shards=2)
    with HuggingFaceFolder.open(tmp_path / "model") as file:
        assert len(file.tensors) == len(file.sources) and file.size > 0
    with pytest.raises(ValueError):
        file.data("token_embd.weight")
