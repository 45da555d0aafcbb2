"""What a GGUF file says of its model: `ModelConfig` from its keys, checked against the tensors that are there.

A key under the architecture's name that isn't understood is refused, unless its value is known to change nothing: going
on would give fluent text from another model than the one in the file. Keys: docs/gguf.md of ggml-org/ggml, and the
defaults of llama.cpp where a key may be missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.errors import FileError
from engine.escape import escape, listed
from engine.gguf import GGUFFile
from engine.gguf_types import SUPPORTED
from models.config import LIMITS, ROPE_STYLES, ModelConfig, expected_tensors

# key -> the field of ModelConfig that it becomes
SIZES = {
    "block_count": "layers",
    "context_length": "context_length",
    "embedding_length": "hidden_size",
    "feed_forward_length": "feed_forward_size",
    "attention.head_count": "heads",
    "attention.head_count_kv": "kv_heads",
    "attention.key_length": "head_size",
    "attention.value_length": "head_size",
    "rope.dimension_count": "rope_dims",
    "vocab_size": "vocab_size",
}
UNDERSTOOD = {*SIZES, "attention.layer_norm_rms_epsilon", "rope.freq_base"}


def _anything(value: Any) -> bool:
    return True


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, bool | int | float | str) and value in values


# key -> whether its value changes nothing; any other key has to be written and tested first
NEUTRAL: dict[str, Callable[[Any], bool]] = {
    "tensor_data_layout": _anything,  # a note of old converters
    "rope.scaling.finetuned": _anything,
    "rope.scaling.original_context_length": _anything,  # used by yarn and longrope alone
    "rope.scaling.type": _one_of("none", "linear"),
    "rope.scaling.factor": _one_of(0, 1),
    "rope.scale_linear": _one_of(0, 1),
    "rope.scaling.attn_factor": _one_of(1),
    "attention.causal": _one_of(True),
    "use_parallel_residual": _one_of(False),
    "attention.clamp_kqv": _one_of(0),
    "attention.max_alibi_bias": _one_of(0),
    "attention.scale": _one_of(0),
    "attn_logit_softcapping": _one_of(0),
    "final_logit_softcapping": _one_of(0),
    "embedding_scale": _one_of(0, 1),
    "residual_scale": _one_of(0, 1),
    "logit_scale": _one_of(0, 1),
    "expert_count": _one_of(0),
    "expert_used_count": _one_of(0),
}


def read_config(file: GGUFFile) -> ModelConfig:
    """Returns the model's sizes and constants; raises FileError, one line, for what we can't compute or don't know.

    Afterwards every tensor of `models.config.expected_tensors` is there, in its shape and of a type that can be read,
    and there is no other.
    """
    arch = _architecture(file)
    _check_keys(file, arch)

    def size(key: str, default: int | None = None) -> int:
        low, high = LIMITS[SIZES[key]]
        key = f"{arch}.{key}"
        return default if default is not None and key not in file.metadata else file.u32(key, low=low, high=high)

    hidden, heads = size("embedding_length"), size("attention.head_count")
    if hidden % heads and f"{arch}.attention.key_length" not in file.metadata:
        file.fail_key(f"{arch}.attention.head_count", f"is {heads}, expected a divisor of embedding_length, {hidden}")
    head_size = size("attention.key_length", max(hidden // heads, 2))
    if size("attention.value_length", head_size) != head_size:
        file.fail_key(f"{arch}.attention.value_length", f"differs from key_length, {head_size}; this is not supported")
    embedding = file.tensor("token_embd.weight").shape
    try:
        config = ModelConfig(
            architecture=arch,
            layers=size("block_count"),
            hidden_size=hidden,
            heads=heads,
            kv_heads=size("attention.head_count_kv", heads),
            head_size=head_size,
            feed_forward_size=size("feed_forward_length"),
            vocab_size=embedding[0],
            context_length=size("context_length"),
            rms_eps=file.f32(f"{arch}.attention.layer_norm_rms_epsilon"),
            rope_base=file.f32(f"{arch}.rope.freq_base", 10000.0),
            rope_dims=size("rope.dimension_count", head_size),
            rope_style=ROPE_STYLES[arch],
            rope_divisors="rope_freqs.weight" in file.tensors,
            attention_bias=arch == "qwen2" or "blk.0.attn_q.bias" in file.tensors,
            tied_embeddings="output.weight" not in file.tensors,
        )
    except ValueError as error:
        raise FileError(f"{escape(file.path, 300)}: model sizes: {error}") from None
    _check_vocabulary(file, config)
    check_tensors(file, config)
    return config


def check_tensors(file: GGUFFile, config: ModelConfig) -> None:
    """Raises FileError unless the file has the tensors that the model needs; one line names all that is wrong."""
    expected, found = expected_tensors(config), file.tensors
    missing = [name for name in expected if name not in found]
    beyond = [name for name in found if name not in expected]
    shapes = [
        f"{name} {found[name].shape}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    types = [f"{name} {info.type}" for name, info in found.items() if name in expected and info.type not in SUPPORTED]
    vectors = [
        f"{name} {found[name].type}"
        for name, shape in expected.items()
        if len(shape) == 1 and name in found and found[name].type in SUPPORTED and SUPPORTED[found[name].type].quantised
    ]
    wrong = [
        f"{len(names)} {text}: {listed(names, limit)}"
        for names, text, limit in (
            (missing, "missing", 50),
            (shapes, "of another shape than the keys say", 50),
            (types, f"of a type that is not supported (supported: {', '.join(SUPPORTED)})", 8),
            (vectors, "quantised where F32 is expected", 8),
            (beyond, f"that {config.architecture} has no use for", 50),
        )
        if names
    ]
    if wrong:
        raise FileError(f"{escape(file.path, 300)}: tensors: {'; '.join(wrong)}")


def _architecture(file: GGUFFile) -> str:
    """The architecture, if it is one that we have and the file is a whole model."""
    known = ", ".join(ROPE_STYLES)
    kind = file.string("general.type", "model")
    if kind != "model":
        file.fail_key("general.type", f"is '{escape(kind)}', expected 'model'; name the file of the model itself")
    arch = file.string("general.architecture")
    if arch not in ROPE_STYLES:
        hint = ", the image part of a model; name the file of the language model" if arch == "clip" else ""
        file.fail_key("general.architecture", f"'{escape(arch)}' is not supported{hint}; supported: {known}")
    if not file.tensors:
        raise FileError(f"{escape(file.path, 300)}: tensors: there are none; it holds a vocabulary, not a model")
    return arch


def _check_keys(file: GGUFFile, arch: str) -> None:
    """Every key of the architecture is understood, or has a value that changes nothing."""
    refused = []
    for key, value in file.metadata.items():
        name = key.removeprefix(f"{arch}.")
        if name == key or name in UNDERSTOOD:
            continue
        if name == "attention.sliding_window":
            # a window of at least the context hides nothing
            neutral = isinstance(value, int) and (value == 0 or value >= file.u32(f"{arch}.context_length"))
        elif name.startswith("rope.scaling.") and file.metadata.get(f"{arch}.rope.scaling.type") == "none":
            neutral = True
        else:
            neutral = name in NEUTRAL and NEUTRAL[name](value)
        if not neutral:
            shown = f"= {escape(str(value), 40)}" if isinstance(value, bool | int | float | str) else file.kinds[key]
            refused.append(f"{key} {shown}")
    if refused:
        raise FileError(
            f"{escape(file.path, 300)}: keys: not supported, and may change what the model says: {listed(refused)}"
        )


def _check_vocabulary(file: GGUFFile, config: ModelConfig) -> None:
    """The numbers of rows and of tokens agree."""
    rows = config.vocab_size
    key = f"{config.architecture}.vocab_size"
    if file.u32(key, rows) != rows:
        file.fail_key(key, f"is {file.u32(key)}, but token_embd.weight has {rows} rows")
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) != rows:
        file.fail_key("tokenizer.ggml.tokens", f"has {len(tokens)} tokens, but token_embd.weight has {rows} rows")
