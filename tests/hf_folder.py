"""Hugging Face folders for tests, written with `struct` and `json` alone from the model files of `tiny`."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tiny

NAMES = {
    "attn_norm.weight": "input_layernorm.weight", "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight", "attn_v.weight": "self_attn.v_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias", "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias", "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight", "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight", "ffn_down.weight": "mlp.down_proj.weight",
}  # fmt: skip
OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
         "output.weight": "lm_head.weight"}  # fmt: skip
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write(folder: Path, arch: str = "llama", dtype: str = "F32", shards: int = 1, **options: Any) -> Path:
    """Writes FOLDER, and FOLDER.gguf, the same model as GGUF, whose path is returned; options are those of `tiny.write`."""
    path = folder.with_suffix(".gguf")
    weights = tiny.write(path, arch, dtype, **options)
    folder.mkdir()
    head_size = options.get("head_size", 16)
    tensors = {}
    for name, values in weights.items():
        if name == "rope_freqs.weight":
            continue
        if arch == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            values = half_split(values, head_size)
        block = name.split(".")[:2]
        theirs = OUTER.get(name) or f"model.layers.{block[1]}.{NAMES[name.removeprefix('.'.join(block) + '.')]}"
        kind = "F32" if values.ndim == 1 else dtype  # as `tiny` has them
        tensors[theirs] = (kind, values.shape, stored(values, kind))
    names = list(tensors)
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors(tensors))
    else:
        files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
        for i, file in enumerate(files):
            (folder / file).write_bytes(safetensors({name: tensors[name] for name in names[i::shards]}))
        places = {name: files[i % shards] for i, name in enumerate(names)}
        put(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": places})
    put(folder / "config.json", config(arch, weights, head_size, options))
    put(folder / "tokenizer.json", tokenizer(arch))
    settings: dict[str, Any] = {"chat_template": "{{ messages[0].content }}"}
    settings |= (
        {"bos_token": {"content": "<s>"}, "eos_token": "</s>"} if arch == "llama" else {"eos_token": "<|im_end|>"}
    )
    put(folder / "tokenizer_config.json", settings)
    put(folder / "generation_config.json", {"eos_token_id": [2] if arch == "llama" else [282, 280]})
    return path


def config(arch: str, weights: tiny.Tensors, head_size: int, options: dict[str, Any]) -> dict[str, Any]:
    """config.json, in the spelling of transformers 4 for qwen2 and of 5 for llama."""
    vocab, hidden = weights["token_embd.weight"].shape
    found: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM" if arch == "llama" else "Qwen2ForCausalLM"],
        "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": options.get("layers", 3),
        "intermediate_size": weights["blk.0.ffn_up.weight"].shape[0], "num_attention_heads": options.get("heads", 4),
        "num_key_value_heads": options.get("kv_heads", 2), "max_position_embeddings": 160, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "tie_word_embeddings": bool(options.get("tied")), "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if arch == "llama":
        return found | {"head_dim": head_size, "rope_parameters": {"rope_type": "default", "rope_theta": 10000}}
    return found | {"rope_theta": 10000.0, "rope_scaling": None, "use_sliding_window": False, "sliding_window": 32}


def tokenizer(arch: str) -> dict[str, Any]:
    """tokenizer.json with tiny's vocabulary: byte fallback for llama, byte-level for qwen2."""
    tokens, _, types = tiny.vocabulary("spm" if arch == "llama" else "bpe")
    ids = {token: i for i, token in enumerate(tokens)}
    rest = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = [i for i, kind in enumerate(types) if kind in (2, 3)]
    added = [{"id": i, "content": tokens[i], "special": True} | rest for i in special]
    plain = {token: i for token, i in ids.items() if types[i] != 3 or arch == "llama"}
    pairs = [tuple(pair.split(" ")) for pair in tiny.MERGES]
    mark = tiny.SPM_SPACE if arch == "llama" else tiny.BPE_SPACE
    merges = [[part.replace("_", mark) for part in pair] for pair in pairs]
    if arch == "llama":  # as converters do: every cut of a token into tokens
        made = dict.fromkeys(a + b for a, b in merges)
        merges = [[t[:i], t[i:]] for t in made for i in range(1, len(t)) if t[:i] in ids and t[i:] in ids]
    model: dict[str, Any] = {"type": "BPE", "vocab": plain, "merges": merges}
    if arch == "llama":
        spaces = [
            {"type": "Prepend", "prepend": mark},
            {"type": "Replace", "pattern": {"String": " "}, "content": mark},
        ]
        pieces: list[dict[str, Any]] = [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ]
        start = {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": {
            "<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}  # fmt: skip
        return {
            "model": model | {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"},
            "added_tokens": added, "post_processor": start, "pre_tokenizer": None,
            "normalizer": {"type": "Sequence", "normalizers": spaces},
        }  # fmt: skip
    cut = [
        {"type": "Split", "pattern": {"Regex": QWEN2_WORDS}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]
    model["merges"] = [" ".join(pair) for pair in merges]  # the older spelling
    return {
        "model": model, "added_tokens": added, "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cut},
    }  # fmt: skip


def half_split(rows: np.ndarray, head_size: int) -> np.ndarray:
    """Rows of GGUF's llama in the order of such folders: row 2 j + half of a head comes from row half * D / 2 + j."""
    made = np.empty_like(rows)
    for row in range(len(rows)):
        head, inside = divmod(row, head_size)
        made[head * head_size + inside % 2 * (head_size // 2) + inside // 2] = rows[row]
    return made


def stored(values: np.ndarray, dtype: str) -> bytes:
    """Values that the type holds exactly, as its bytes."""
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def safetensors(tensors: dict[str, tuple[str, tuple[int, ...], bytes]], pad: int = 8) -> bytes:
    """A file of name -> dtype, shape, bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    return raw(json.dumps(header).encode(), b"".join(data for _, _, data in tensors.values()), pad)


def raw(header: bytes, data: bytes = b"", pad: int = 1) -> bytes:
    """A file with this header."""
    header += b" " * (-len(header) % pad)
    return struct.pack("<Q", len(header)) + header + data


def put(path: Path, value: Any) -> None:
    """Writes JSON."""
    path.write_text(json.dumps(value))


def read_gguf(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a GGUF file, by the `gguf` package."""
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
