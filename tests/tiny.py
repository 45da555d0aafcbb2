"""Tiny valid model files for tests, written by the independent `gguf` package.

    weights = tiny.write(path, arch="llama", type="Q4_0")      # a whole model: some 100 to 400 KB, in milliseconds
    weights = tiny.write(path, arch="qwen2", type="Q8_0", vocab="bpe", tied=True)
    weights = tiny.write(path, type="Q4_K_M")                  # width 256: Q4_K, and Q6_K where llama.cpp puts it

Weights are random but seeded, scaled so that activations stay near 1. Every size differs from every other
(3 layers, 64 wide, 4 heads, 2 key/value heads of 16, feed-forward 96, 310 or 283 tokens), so that a swapped axis shows.
`write` returns what the file holds, dequantised by the `gguf` package: the truth to compare a loader with.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

# "_" stands for the space; the pairs are merged in this order. Every part is a letter, "_" or made by an earlier pair.
MERGES = [
    "_ t", "h e", "_ a", "_t he", "i n", "e r", "_ s", "o n", "_ w", "a n", "_a n", "_an d",
    "e d", "_w a", "_wa s", "_ h", "i t", "i s", "_ o", "_ f", "o u", "r e", "in g", "_ b",
]
SPM_SPACE, BPE_SPACE = "▁", "Ġ"
K_SCALES = {"Q2_K": (80, 82, 30), "Q3_K": (108, None, 80), "Q4_K": (0, 2, 300), "Q5_K": (0, 2, 600),
            "Q6_K": (208, None, 1400)}  # where d and dmin lie in the block, and the spread of d times the codes
Tensors = dict[str, np.ndarray]


def write(
    path: str | os.PathLike[str],
    arch: str = "llama",
    type: str = "F32",
    *,
    seed: int = 0,
    layers: int = 3,
    hidden: int | None = None,
    heads: int = 4,
    kv_heads: int = 2,
    head_size: int | None = None,
    ff: int | None = None,
    context: int = 160,
    vocab: str | None = None,
    vocab_size: int | None = None,
    tied: bool = False,
    rope_base: float = 10000.0,
    rope_divisors: bool = False,
    eps: float = 1e-5,
    alignment: int | None = None,
    types: Mapping[str, str] | None = None,
    without: tuple[str, ...] = (),
    metadata: Mapping[str, Any] | None = None,
) -> Tensors:
    """Writes a model file and returns its tensors, dequantised: name -> float32, NumPy order (outputs, inputs).

    type: of all matrices: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, or random blocks of Q2_K .. Q6_K; `Q4_K_M`
        is Q4_K with Q6_K for attn_v, ffn_down and output. Norms and biases are F32.
    hidden, ff: 64 and 96; 256 and 512 for the K types, whose blocks are 256 long.
    vocab: 'spm' (310 tokens, default for llama) or 'bpe' (283 tokens, byte-level, default for qwen2).
    vocab_size: if more than the vocabulary has, it is filled up with unused tokens `[PAD0]`, ...
    types: the type of single tensors, by name or its end: {"output.weight": "Q8_0", "ffn_down.weight": "F16"}.
    without: tensors to leave out, by name.  metadata: further or other keys (str, bool, int -> u32, float -> f32).
    """
    wide = type.startswith("Q") and "K" in type
    hidden = hidden or (256 if wide else 64)
    ff = ff or (512 if wide else 96)
    tokens, scores, token_types = vocabulary(vocab or ("bpe" if arch == "qwen2" else "spm"))
    for i in range((vocab_size or 0) - len(tokens)):
        tokens.append(f"[PAD{i}]")
        scores.append(-1e4)
        token_types.append(5)
    size = head_size or hidden // heads

    extra = dict(metadata or {})
    writer = gguf.GGUFWriter(os.fspath(path), extra.pop("general.architecture", arch))
    if alignment:
        writer.add_custom_alignment(alignment)
    values: dict[str, Any] = {
        "general.name": f"tiny {arch} {type}",
        f"{arch}.context_length": context,
        f"{arch}.embedding_length": hidden,
        f"{arch}.block_count": layers,
        f"{arch}.feed_forward_length": ff,
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": eps,
        f"{arch}.rope.freq_base": rope_base,
        f"{arch}.rope.dimension_count": size,
        "general.quantization_version": 2,
    }
    if head_size:
        values |= {f"{arch}.attention.key_length": size, f"{arch}.attention.value_length": size}
    for key, value in (values | extra).items():
        _add(writer, key, value)
    _add_vocabulary(writer, vocab or ("bpe" if arch == "qwen2" else "spm"), tokens, scores, token_types, extra)

    shapes = tensor_shapes(arch, layers, hidden, heads * size, kv_heads * size, ff, len(tokens), tied)
    if rope_divisors:
        shapes["rope_freqs.weight"] = (size // 2,)
    rng = np.random.default_rng(seed)
    weights: Tensors = {}
    for name, shape in shapes.items():
        vector = len(shape) == 1 and name not in (types or {})
        matrix_type = "F32" if vector else _matrix_type(name, type, types or {})
        raw = _encode(_random_tensor(name, shape, rng), matrix_type, rng)
        if name in without:
            continue
        kind = GGMLQuantizationType[matrix_type]
        writer.add_tensor(name, raw, raw_dtype=kind)
        weights[name] = np.asarray(gguf.quants.dequantize(raw, kind), np.float32).reshape(shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def tensor_shapes(
    arch: str, layers: int, hidden: int, q: int, kv: int, ff: int, vocab: int, tied: bool
) -> dict[str, tuple[int, ...]]:
    """The tensors of a llama or qwen2 file and their shapes, NumPy order; q and kv: heads x head size."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        shapes["output.weight"] = (vocab, hidden)
    for i in range(layers):
        block = f"blk.{i}."
        shapes |= {
            block + "attn_norm.weight": (hidden,),
            block + "attn_q.weight": (q, hidden),
            block + "attn_k.weight": (kv, hidden),
            block + "attn_v.weight": (kv, hidden),
            block + "attn_output.weight": (hidden, q),
            block + "ffn_norm.weight": (hidden,),
            block + "ffn_gate.weight": (ff, hidden),
            block + "ffn_up.weight": (ff, hidden),
            block + "ffn_down.weight": (hidden, ff),
        }
        if arch == "qwen2":
            shapes |= {block + "attn_q.bias": (q,), block + "attn_k.bias": (kv,), block + "attn_v.bias": (kv,)}
    return shapes


def vocabulary(kind: str) -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and token types: 'spm' (3 special, 256 bytes, 27 letters, 24 merges) or 'bpe' (256, 24, 3)."""
    merged = [pair.replace(" ", "") for pair in MERGES]
    if kind == "spm":
        letters = ["_", *"abcdefghijklmnopqrstuvwxyz"]
        pieces = [piece.replace("_", SPM_SPACE) for piece in merged + letters]
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
        scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
        return tokens, scores, [2, 3, 3] + [6] * 256 + [1] * len(pieces)
    tokens = [*byte_alphabet(), *(piece.replace("_", BPE_SPACE) for piece in merged)]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return tokens + special, [], [1] * len(tokens) + [3] * len(special)


def byte_alphabet() -> list[str]:
    """GPT-2's letter for each byte: printable ones are themselves, the others 256 and up (space is U+0120)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)]


def _add_vocabulary(
    writer: gguf.GGUFWriter,
    kind: str,
    tokens: list[str],
    scores: list[float],
    token_types: list[int],
    extra: Mapping[str, Any],
) -> None:
    """Writes the tokenizer's keys, except those that the caller gave."""
    writer.add_tokenizer_model("llama" if kind == "spm" else "gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(token_types)
    if kind == "spm":
        writer.add_token_scores(scores)
        values: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
        values |= {"add_bos_token": True, "add_space_prefix": True}
    else:
        writer.add_token_merges([pair.replace("_", BPE_SPACE) for pair in MERGES])
        first = tokens.index("<|endoftext|>")
        values = {"pre": "qwen2", "bos_token_id": first, "eos_token_id": first + 2, "padding_token_id": first}
        values |= {"add_bos_token": False}
    for key, value in values.items():
        if "tokenizer.ggml." + key not in extra:
            _add(writer, "tokenizer.ggml." + key, value)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_uint32(key, value)


def _matrix_type(name: str, type: str, types: Mapping[str, str]) -> str:
    for end, single in types.items():
        if name == end or name.endswith("." + end):
            return single
    if type == "Q4_K_M":
        wider = name == "output.weight" or name.endswith((".attn_v.weight", ".ffn_down.weight"))
        return "Q6_K" if wider else "Q4_K"
    return type


def _random_tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Norms near 1, biases near 0, divisors from 1 up, matrices with columns of about unit length; float32."""
    if name == "rope_freqs.weight":
        return np.linspace(1, 8, shape[0], dtype=np.float32)
    noise = rng.standard_normal(shape, np.float32)
    if name.endswith("norm.weight"):
        return 1 + np.float32(0.1) * noise
    if name.endswith(".bias"):
        return np.float32(0.1) * noise
    return noise if name == "token_embd.weight" else noise / np.float32(np.sqrt(shape[1]))


def _encode(values: np.ndarray, type: str, rng: np.random.Generator) -> np.ndarray:
    """The array that GGUFWriter stores for `values`; for the K types random blocks of about the same spread."""
    kind = GGMLQuantizationType[type]
    block, size = GGML_QUANT_SIZES[kind]
    if values.shape[-1] % block:
        raise ValueError(f"rows of {values.shape[-1]} can't be cut into blocks of {block} ({type})")
    if type not in K_SCALES:
        return gguf.quants.quantize(values, kind)
    place, place_min, spread = K_SCALES[type]
    blocks = rng.integers(0, 256, (values.size // block, size), np.uint8)
    d = (values.std() / spread * rng.uniform(0.7, 1.3, (len(blocks), 1))).astype(np.float16)
    blocks[:, place : place + 2] = d.view(np.uint8)
    if place_min is not None:  # the mean code times the mean scale, so that the values' mean is near 0
        factor = {"Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}[type]
        blocks[:, place_min : place_min + 2] = (d * np.float16(factor)).view(np.uint8)
    return blocks.reshape(*values.shape[:-1], -1)
