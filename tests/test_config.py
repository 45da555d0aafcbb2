"""ModelConfig, the tensors that belong to it, and reading it from GGUF."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

from engine.errors import FileError
from engine.gguf import GGUFFile
from engine.gguf_config import NEUTRAL, read_config
from models.config import LIMITS, ModelConfig, expected_tensors

REAL = Path(__file__).parents[2] / "shared" / "models"
VALUES: dict[str, Any] = {
    "architecture": "llama",
    "layers": 3,
    "hidden_size": 64,
    "heads": 4,
    "kv_heads": 2,
    "head_size": 16,
    "feed_forward_size": 96,
    "vocab_size": 310,
    "context_length": 160,
    "rms_eps": 1e-5,
    "rope_base": 10000.0,
    "rope_dims": 16,
    "rope_style": "interleaved",
    "rope_divisors": False,
    "attention_bias": False,
    "tied_embeddings": False,
}


def read(path: Path) -> ModelConfig:
    with GGUFFile.open(path) as file:
        return read_config(file)


def test_every_field_must_be_given() -> None:
    assert {field.name for field in dataclasses.fields(ModelConfig)} == set(VALUES)
    for name in VALUES:
        with pytest.raises(TypeError, match=name):
            ModelConfig(**{key: value for key, value in VALUES.items() if key != name})


def test_frozen() -> None:
    config = ModelConfig(**VALUES)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.layers = 4  # type: ignore[misc]
    assert config.query_size == 64 and config.kv_size == 32


@pytest.mark.parametrize(
    "field, value, text",
    [
        *((name, low - 1, f"{name} is {low - 1}, expected {low} to") for name, (low, high) in LIMITS.items()),
        *((name, high + 1, f"{name} is {high + 1}, expected") for name, (low, high) in LIMITS.items()),
        ("layers", True, "layers is True, expected int"),
        ("layers", 3.0, "layers is 3.0, expected int"),
        ("rms_eps", 1, "rms_eps is 1, expected float"),
        ("rms_eps", 0.0, "rms_eps is 0.0, expected a small positive"),
        ("rms_eps", float("nan"), "rms_eps is nan, expected a small positive"),
        ("rope_base", 1.0, "rope_base is 1.0, expected a finite number above 1"),
        ("rope_base", float("inf"), "rope_base is inf, expected"),
        ("rope_dims", 7, "rope_dims is 7, expected even"),
        ("rope_dims", 18, "rope_dims is 18, expected even, at most head_size, 16"),
        ("kv_heads", 3, "kv_heads is 3, expected a divisor of heads, 4"),
        ("kv_heads", 8, "kv_heads is 8, expected a divisor of heads, 4"),
        ("rope_style", "neox", "rope_style is 'neox', expected 'interleaved' or 'halves'"),
        ("architecture", "gemma", "architecture 'gemma' is not supported; supported: llama, qwen2"),
        ("tied_embeddings", None, "tied_embeddings is None, expected bool"),
    ],
)
def test_refused(field: str, value: object, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        ModelConfig(**VALUES | {field: value})
    assert str(caught.value).startswith(text) and "\n" not in str(caught.value)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head_size", [16, 24])
def test_expected_tensors_are_those_of_a_whole_file(tmp_path: Path, arch: str, tied: bool, head_size: int) -> None:
    weights = tiny.write(tmp_path / "m.gguf", arch, tied=tied, head_size=head_size, rope_divisors=tied)
    config = read(tmp_path / "m.gguf")
    assert expected_tensors(config) == {name: values.shape for name, values in weights.items()}
    assert (config.tied_embeddings, config.rope_divisors) == (tied, tied)


def test_llama_from_gguf(tmp_path: Path) -> None:
    tiny.write(tmp_path / "m.gguf", eps=0.5, rope_base=50000.0)
    assert read(tmp_path / "m.gguf") == ModelConfig(**VALUES | {"rms_eps": 0.5, "rope_base": 50000.0})


def test_qwen2_from_gguf(tmp_path: Path) -> None:
    tiny.write(tmp_path / "m.gguf", "qwen2", eps=0.5, tied=True, layers=5, kv_heads=1)
    expected = {"architecture": "qwen2", "rms_eps": 0.5, "layers": 5, "kv_heads": 1, "vocab_size": 283,
                "rope_style": "halves", "attention_bias": True, "tied_embeddings": True}  # fmt: skip
    assert read(tmp_path / "m.gguf") == ModelConfig(**VALUES | expected)


def test_qwen2_without_its_biases_is_refused(tmp_path: Path) -> None:
    tiny.write(tmp_path / "m.gguf", "qwen2", without=("blk.0.attn_q.bias",))
    with pytest.raises(FileError, match=r"tensors: 1 missing: blk.0.attn_q.bias$"):
        read(tmp_path / "m.gguf")


def test_a_quantised_norm_is_refused_and_a_half_one_read(tmp_path: Path) -> None:
    types = {"output_norm.weight": "Q8_0", "blk.1.ffn_norm.weight": "F16"}
    tiny.write(tmp_path / "m.gguf", types=types)
    with pytest.raises(FileError, match=r"tensors: 1 quantised where F32 is expected: output_norm.weight Q8_0$"):
        read(tmp_path / "m.gguf")
    tiny.write(tmp_path / "m.gguf", types=types | {"output_norm.weight": "BF16"})
    read(tmp_path / "m.gguf")


def test_values_that_change_nothing_are_accepted(tmp_path: Path) -> None:
    plain = {"rope.scaling.type": "none", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 8192,
             "expert_count": 0, "expert_used_count": 0, "attention.causal": True, "final_logit_softcapping": 0.0,
             "attention.sliding_window": 160, "logit_scale": 1.0, "tensor_data_layout": "Meta AI original pth",
             "vocab_size": 310}  # fmt: skip
    tiny.write(tmp_path / "m.gguf", eps=0.5, metadata={f"llama.{key}": value for key, value in plain.items()})
    assert read(tmp_path / "m.gguf") == ModelConfig(**VALUES | {"rms_eps": 0.5})


@pytest.mark.parametrize("key", NEUTRAL)
def test_values_that_may_change_something_are_not(tmp_path: Path, key: str) -> None:
    if NEUTRAL[key]("anything"):
        return
    tiny.write(tmp_path / "m.gguf", metadata={f"llama.{key}": 3.5})
    with pytest.raises(FileError, match=rf"may change what the model says: llama\.{key} = 3.5"):
        read(tmp_path / "m.gguf")


@pytest.mark.parametrize("tokens", [309, 311])
def test_tokens_and_rows_must_agree(tmp_path: Path, tokens: int) -> None:
    tiny.write(tmp_path / "m.gguf")
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        metadata = dict(file.metadata) | {"tokenizer.ggml.tokens": [b"x"] * tokens}
        with pytest.raises(FileError, match=f"tokens': has {tokens} tokens, but token_embd.weight has 310 rows"):
            read_config(dataclasses.replace(file, metadata=metadata))


@pytest.mark.parametrize("name", ["F32", "Q8_0", "Q4_0"])
def test_real_files(name: str) -> None:
    path = REAL / f"stories260K-{name}.gguf"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    config = read(path)
    assert (config.layers, config.heads, config.kv_heads, config.head_size) == (5, 8, 4, 8)
    assert (config.hidden_size, config.feed_forward_size, config.rope_style) == (64, 172, "interleaved")
    assert (config.vocab_size, config.context_length, config.tied_embeddings) == (512, 512, False)


def test_models_config_imports_nothing_of_ours() -> None:
    code = "import sys, models.config; sys.exit(any(m in sys.modules for m in ('engine', 'kernels', 'numpy', 'numba')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
