"""Model files to measure with: random weights in the shape of real models and in the types that real files hold.

    python -m bench.models qwen2.5-0.5b Q4_0 --folder /tmp/models      # writes qwen2.5-0.5b-Q4_0.gguf and names it

Time depends on shapes and types, not on values, so nothing has to be downloaded. What llama.cpp's quantising tool does
with each type is followed here (`llama_tensor_get_type` of its source): a tied embedding, being the output too, becomes Q6_K
in a Q4 file; Q4_K_M has Q6_K for half of attn_v and ffn_down; and where a row is not a multiple of 256, Q4_K becomes
Q5_0 and Q6_K becomes Q8_0. The vocabulary has the real size and kind (byte-level, all its merges), with invented words.
Blocks are random bytes whose float16 scales keep activations near 1.
"""

from __future__ import annotations

import argparse
import itertools
import os
import string
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model; all of these have tied embeddings."""

    arch: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    ff: int
    merges: int  # the vocabulary: 256 bytes, a token for each merge, and special tokens up to `vocab`
    vocab: int
    context: int
    rope_base: float
    eps: float
    pre: str
    rope_divisors: bool = False


SHAPES = {
    "smollm2-135m": Shape(
        "llama", 30, 576, 9, 3, 64, 1536, 48879, 49152, 8192, 1e5, 1e-5, "smollm"
    ),
    "qwen2.5-0.5b": Shape(
        "qwen2", 24, 896, 14, 2, 64, 4864, 151387, 151936, 32768, 1e6, 1e-6, "qwen2"
    ),
    "llama-3.2-1b": Shape(
        "llama", 16, 2048, 32, 8, 64, 8192, 127744, 128256, 131072, 5e5, 1e-5, "llama-bpe", rope_divisors=True
    ),
}
TYPES = ("Q4_0", "Q8_0", "Q4_K_M")
FILE_TYPE = {"Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15}
# type -> where its float16 scale lies in a block, where its minimum lies, and how far weights of scale 1 spread
BLOCKS = {"Q4_0": (0, None, 4.6), "Q8_0": (0, None, 74.0), "Q5_0": (0, None, 9.2), "Q4_K": (0, 2, 300.0),
          "Q6_K": (208, None, 1400.0)}


def model_file(name: str, type: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Returns the path of such a file, made now unless it is there already.

    name: of SHAPES.  type: of TYPES.  folder: where it is kept; default: `intengine-bench` in the system's temporary folder.
    """
    place = Path(folder or Path(tempfile.gettempdir()) / "intengine-bench")
    path = place / f"{name}-{type}.gguf"
    if not path.exists():
        place.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            write(part, SHAPES[name], type)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The tensors of such a file and their shapes, (outputs, inputs)."""
    q, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (shape.vocab, shape.hidden),
        "output_norm.weight": (shape.hidden,),
    }
    if shape.rope_divisors:
        shapes["rope_freqs.weight"] = (shape.head_size // 2,)
    for i in range(shape.layers):
        block = f"blk.{i}."
        shapes |= {
            block + "attn_norm.weight": (shape.hidden,),
            block + "attn_q.weight": (q, shape.hidden),
            block + "attn_k.weight": (kv, shape.hidden),
            block + "attn_v.weight": (kv, shape.hidden),
            block + "attn_output.weight": (shape.hidden, q),
            block + "ffn_norm.weight": (shape.hidden,),
            block + "ffn_gate.weight": (shape.ff, shape.hidden),
            block + "ffn_up.weight": (shape.ff, shape.hidden),
            block + "ffn_down.weight": (shape.hidden, shape.ff),
        }
        if shape.arch == "qwen2":
            shapes |= {block + "attn_q.bias": (q,), block + "attn_k.bias": (kv,), block + "attn_v.bias": (kv,)}
    return shapes


def tensor_type(name: str, columns: int, type: str, layers: int) -> str:
    """The type that llama.cpp gives to a matrix of a file of `type`, tied embeddings assumed."""
    if name == "token_embd.weight":
        return "Q8_0" if type == "Q8_0" or columns % 256 else "Q6_K"
    if type != "Q4_K_M":
        return type
    _, layer, part, _ = name.split(".")
    i = int(layer)
    eighth = layers // 8
    more = i < eighth or i >= 7 * layers // 8 or (i - eighth) % 3 == 2
    wider = part in ("attn_v", "ffn_down") and more
    if columns % 256:
        return "Q8_0" if wider else "Q5_0"
    return "Q6_K" if wider else "Q4_K"


def write(path: str | os.PathLike[str], shape: Shape, type: str, seed: int = 0) -> None:
    """Writes such a file, tensor after tensor: little memory is needed."""
    writer = gguf.GGUFWriter(os.fspath(path), shape.arch)
    writer.add_name(f"random weights, {type}")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ff)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_quantization_version(2)
    writer.add_file_type(FILE_TYPE[type])
    _add_vocabulary(writer, shape)
    plan = []
    for name, dims in tensor_shapes(shape).items():
        kind = "F32" if len(dims) == 1 else tensor_type(name, dims[1], type, shape.layers)
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        nbytes = int(np.prod(dims)) // block * size
        raw_dims = (*dims[:-1], dims[-1] // block * size) if kind != "F32" else dims
        dtype = np.dtype(np.uint8 if kind != "F32" else np.float32)
        writer.add_tensor_info(name, raw_dims, dtype, nbytes, GGMLQuantizationType[kind])
        plan.append((name, dims, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    for name, dims, kind in plan:
        writer.write_tensor_data(_vector(name, dims, rng) if kind == "F32" else random_blocks(dims, kind, rng))
    writer.close()


def random_blocks(dims: tuple[int, ...], type: str, rng: np.random.Generator) -> np.ndarray:
    """Random blocks of a quantised type, uint8 (rows, bytes of a row), of weights of about 1 / sqrt(columns)."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[type]]
    place, minimum, spread = BLOCKS[type]
    count = int(np.prod(dims)) // block
    blocks = np.frombuffer(rng.bytes(count * size), np.uint8).reshape(count, size).copy()
    scale = (rng.uniform(0.7, 1.3, count) / spread / np.sqrt(dims[-1])).astype(np.float16)
    blocks[:, place : place + 2] = scale[:, None].view(np.uint8)
    if minimum is not None:  # the mean code times the mean sub-scale, so that weights have a mean near 0
        blocks[:, minimum : minimum + 2] = (scale * np.float16(7.5))[:, None].view(np.uint8)
    return blocks.reshape(dims[0], -1)


def _vector(name: str, dims: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if name == "rope_freqs.weight":  # as in Llama 3.2: high frequencies stay, low ones are slowed 32 times
        return np.clip(np.linspace(-40, 60, dims[0]), 1, 32).astype(np.float32)
    noise = np.float32(0.1) * rng.standard_normal(dims, np.float32)
    return noise if name.endswith(".bias") else 1 + noise


def _words() -> Iterator[tuple[str, str]]:
    """Merges, each of parts that are made before: two letters, then three, four ..., with and without a space."""
    letters = string.ascii_lowercase
    yield from (("Ġ", letter) for letter in letters)
    for length in itertools.count(1):
        for word in itertools.product(letters, repeat=length):
            for space in ("", "Ġ"):
                for letter in letters:
                    yield space + "".join(word), letter


def _add_vocabulary(writer: gguf.GGUFWriter, shape: Shape) -> None:
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = itertools.count(256)
    merges = list(itertools.islice(_words(), shape.merges))
    tokens = [chr(b) if b in printable else chr(next(others)) for b in range(256)]
    tokens += [first + second for first, second in merges]
    special = ["<|endoftext|>", *(f"<|special_{i}|>" for i in range(1, shape.vocab - len(tokens)))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(shape.pre)
    writer.add_token_list(tokens + special)
    writer.add_token_types([1] * len(tokens) + [3] * len(special))
    writer.add_token_merges([f"{first} {second}" for first, second in merges])
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens))
    writer.add_add_bos_token(shape.arch != "qwen2")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.models", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("type", choices=TYPES)
    parser.add_argument("--folder", help="where to keep it (default: intengine-bench in the temporary folder)")
    options = parser.parse_args()
    sys.stdout.write(f"{model_file(options.name, options.type, options.folder)}\n")


if __name__ == "__main__":
    main()
