"""config.json of a Hugging Face folder, as the keys that GGUF has for it, and the names that tensors have in such folders.

    model.layers.I.self_attn.q_proj.weight  ->  blk.I.attn_q.weight        `tensor_names`
    {"rope_type": "llama3", "factor": 32.0, ...}  ->  rope_freqs.weight    `rope_divisors`

A key that is missing has the default of the architecture's own class, and those classes ignore keys that they don't know, so
the same is done here; a value that changes the function in a way we can't compute is refused. Both spellings are read: that
of transformers up to version 4 (rope_theta, rope_scaling) and that since 5 (rope_parameters).

Sources: configuration_llama.py, configuration_mistral.py, configuration_qwen2.py and modeling_rope_utils.py of
huggingface/transformers; the names in GGUF: gguf-py/gguf/tensor_mapping.py of ggml-org/llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from engine.errors import FileError
from engine.escape import escape
from engine.gguf_writer import Key
from models.config import LIMITS

ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
MODEL_TYPES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
DEFAULTS: dict[str, dict[str, Any]] = {  # of the classes, where they differ; None: as many as there are heads
    "LlamaForCausalLM": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                         "num_attention_heads": 32, "num_key_value_heads": None, "max_position_embeddings": 2048},
    "MistralForCausalLM": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                           "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
                           "sliding_window": 4096},
    "Qwen2ForCausalLM": {"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
                         "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 32768,
                         "sliding_window": 4096, "max_window_layers": 28},
}  # fmt: skip
LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
OUTER_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


class HuggingFaceConfig:
    """What config.json says, checked as far as it goes without the tensors.

    Attributes:
        kind: The architecture's class; architecture: its name in GGUF.
        heads, kv_heads, head_size, layers, rows: H, G, D, L and the rows of the embedding.
        tied: Whether the output matrix is the embedding; None: where there is no other.
    """

    def __init__(self, found: Mapping[str, Any], path: str) -> None:
        """Reads it; raises FileError, one line, for what is wrong or not supported.

        Args:
            found: The JSON object.
            path: Of the file, for errors.
        """
        self._found, self._path = found, path
        self.kind = self._kind()
        self.architecture = ARCHITECTURES[self.kind]
        self._defaults = DEFAULTS[self.kind]
        self._check_function()
        self.layers = self._size("num_hidden_layers", "layers")
        self.heads = self._size("num_attention_heads", "heads")
        self.kv_heads = self._size("num_key_value_heads", "kv_heads", self.heads)
        hidden = self._size("hidden_size", "hidden_size")
        if found.get("head_dim") is None and hidden % self.heads:
            self._fail("num_attention_heads", f"is {self.heads}, expected a divisor of hidden_size, {hidden}")
        self.head_size = self._size("head_dim", "head_size", hidden // self.heads)
        if self.head_size % 2:
            self._fail("head_dim", f"is {self.head_size}, expected an even number")
        self.rows = self._size("vocab_size", "vocab_size")
        self.context = self._size("max_position_embeddings", "context_length")
        self._check_window()
        tied = found.get("tie_word_embeddings")
        if tied is not None and type(tied) is not bool:
            self._fail("tie_word_embeddings", f"is {escape(repr(tied))}, a bool is expected")
        self.tied: bool | None = tied
        self._hidden, self._feed_forward = hidden, self._size("intermediate_size", "feed_forward_size")
        self._rope = self._rope_parameters()

    def keys(self, name: str) -> dict[str, Key]:
        """The model's keys as GGUF has them; `name`: what the model is called."""
        arch = self.architecture
        eps = self._number("rms_norm_eps", 1e-6)
        base = self._number("rope_theta", 10000.0, self._rope)
        return {
            "general.architecture": ("string", arch),
            "general.type": ("string", "model"),
            "general.name": ("string", name),
            f"{arch}.vocab_size": ("u32", self.rows),
            f"{arch}.context_length": ("u32", self.context),
            f"{arch}.embedding_length": ("u32", self._hidden),
            f"{arch}.block_count": ("u32", self.layers),
            f"{arch}.feed_forward_length": ("u32", self._feed_forward),
            f"{arch}.attention.head_count": ("u32", self.heads),
            f"{arch}.attention.head_count_kv": ("u32", self.kv_heads),
            f"{arch}.attention.key_length": ("u32", self.head_size),
            f"{arch}.attention.value_length": ("u32", self.head_size),
            f"{arch}.attention.layer_norm_rms_epsilon": ("f32", float(np.float32(eps))),
            f"{arch}.rope.freq_base": ("f32", float(np.float32(base))),
            f"{arch}.rope.dimension_count": ("u32", self.head_size),
        }

    def rope_divisors(self) -> np.ndarray | None:
        """What each pair's frequency is divided by, (head_size / 2,) float32, for Llama 3's scaling; None without."""
        if self._rope.get("rope_type", self._rope.get("type", "default")) == "default":
            return None
        base = self._number("rope_theta", 10000.0, self._rope)
        factor = self._number("factor", None, self._rope)
        low, high = (self._number(f"{end}_freq_factor", None, self._rope) for end in ("low", "high"))
        trained = self._number("original_max_position_embeddings", None, self._rope)
        if factor < 1 or not 0 < low < high or trained < 1:
            self._fail(
                "rope_scaling", "has factors out of order; expected factor >= 1, low_freq_factor < high_freq_factor"
            )
        waves = 2 * math.pi * base ** (np.arange(0, self.head_size, 2) / self.head_size)
        smooth = np.clip((trained / waves - low) / (high - low), 0, 1)
        return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)

    def tensor_names(self) -> dict[str, str]:
        """Name in the folder -> name in GGUF, of all that such a model may have."""
        layers = {
            f"model.layers.{i}.{theirs}": f"blk.{i}.{ours}"
            for i in range(self.layers)
            for theirs, ours in LAYER_NAMES.items()
            if self.architecture == "qwen2" or not theirs.endswith(".bias")
        }
        return OUTER_NAMES | layers

    def _fail(self, key: str, text: str) -> NoReturn:
        raise FileError(f"{escape(self._path, 300)}: {key}: {text}")

    def _kind(self) -> str:
        """The class of the architecture, if it is one that we have."""
        names = self._found.get("architectures")
        if names is None:
            names = [MODEL_TYPES.get(str(self._found.get("model_type")), f"model_type {self._found.get('model_type')}")]
        if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
            self._fail("architectures", f"is {escape(repr(names), 60)}, expected a list with one name")
        if names[0] not in ARCHITECTURES:
            self._fail("architectures", f"'{escape(names[0])}' is not supported; supported: {', '.join(ARCHITECTURES)}")
        if self._found.get("auto_map"):
            self._fail("auto_map", "the model brings Python code of its own, which is never run; it is not supported")
        return names[0]

    def _check_function(self) -> None:
        """Values that change what is computed are those that we compute."""
        if self._found.get("quantization_config"):
            self._fail(
                "quantization_config", "the model is quantised already; use the float model that it was made from"
            )
        if self._found.get("hidden_act", "silu") not in ("silu", "swish"):
            self._fail("hidden_act", f"is {escape(repr(self._found['hidden_act']), 40)}, only 'silu' is supported")
        for key in ("attention_bias", "mlp_bias"):
            if self.architecture == "llama" and self._found.get(key) not in (None, False):
                self._fail(key, f"is {escape(repr(self._found[key]), 40)}, only false is supported")

    def _check_window(self) -> None:
        """A sliding window is refused unless it hides nothing."""
        found = self._defaults | dict(self._found)
        window = found.get("sliding_window")
        if self.kind == "LlamaForCausalLM" or window is None:
            return
        if self.kind == "Qwen2ForCausalLM":
            first = found["max_window_layers"]
            if not found.get("use_sliding_window") or (type(first) is int and first >= self.layers):
                return
        if type(window) is not int or window < self.context:
            self._fail(
                "sliding_window", f"is {escape(repr(window), 40)}, less than the context, {self.context}; not supported"
            )

    def _rope_parameters(self) -> Mapping[str, Any]:
        """rope_parameters or rope_scaling, of a kind that we compute; empty if there is none."""
        for key in ("rope_parameters", "rope_scaling"):
            rope = self._found.get(key)
            if rope is None:
                continue
            if not isinstance(rope, dict):
                self._fail(key, f"is {escape(repr(rope), 60)}, an object is expected")
            kind = rope.get("rope_type", rope.get("type", "default"))
            if kind not in ("default", "llama3"):
                self._fail(key, f"rope_type {escape(repr(kind), 40)} is not supported; supported: default, llama3")
            if rope.get("partial_rotary_factor", 1) != 1:
                self._fail(key, "partial_rotary_factor is not 1, which is not supported")
            return rope
        return {}

    def _size(self, key: str, field: str, absent: int | None = None) -> int:
        """A whole number within LIMITS[field]; `absent`: where neither the file nor the class has one."""
        value = self._found.get(key)
        if value is None:
            value = self._defaults.get(key)
        if value is None:
            value = absent
        if type(value) is float and value.is_integer():
            value = int(value)
        low, high = LIMITS[field]
        if type(value) is not int or not low <= value <= high:
            self._fail(key, f"is {escape(repr(value), 40)}, expected a whole number of {low} to {high}")
        return value

    def _number(self, key: str, default: float | None, inside: Mapping[str, Any] | None = None) -> float:
        """A finite number, from `inside` first; `default` None: it has to be there."""
        value = (inside or {}).get(key, self._found.get(key))
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:  # so NaN is refused
            self._fail(key, f"is {escape(repr(value), 40)}, a number is expected")
        return float(value)
