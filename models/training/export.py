"""Write the trained model as GGUF files, and read one back.

    story.gguf       Q4_0 matrices, Q8_0 embedding (also the output matrix), float32 norms
    story-f16.gguf   the same names in float16, norms float32: for quantising in other ways

A Q4_0 block is 18 bytes: the float16 scale, then 16 bytes; byte i holds code i (low half) and code i + 16 (high half).
A Q8_0 block is 34 bytes: the float16 scale, then 32 int8 codes. Source: llama.cpp, ggml-common.h and gguf-py.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from tokenizers import Tokenizer

from models.training.data import END_OF_TEXT_ID
from models.training.model import Llama, Shape
from models.training.quantization import quantize_q4_0, quantize_q8_0

MIN_P, PENALTY = 0.3, 1.05
"""What the files recommend: the model is small, so what it finds much less likely than the best is mostly wrong. A tale
has to call things by the same words again, so the penalty is small."""


def pack_q4_0(codes: torch.Tensor, scales: torch.Tensor) -> np.ndarray:
    """Bytes (N, K/32 * 18) uint8 of codes (N, K/32, 32) uint8 and scales (N, K/32, 1) float16."""
    nibbles = codes[..., :16] | (codes[..., 16:] << 4)
    return np.concatenate([scales.numpy().view(np.uint8), nibbles.numpy()], axis=-1).reshape(len(codes), -1)


def pack_q8_0(codes: torch.Tensor, scales: torch.Tensor) -> np.ndarray:
    """Bytes (N, K/32 * 34) uint8 of codes (N, K/32, 32) int8 and scales (N, K/32, 1) float16."""
    parts = [scales.numpy().view(np.uint8), codes.numpy().view(np.uint8)]
    return np.concatenate(parts, axis=-1).reshape(len(codes), -1)


def _tensor_name(parameter: str) -> str:
    return f"{parameter}.weight"


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape, file_type: gguf.LlamaFileType, name: str) -> None:
    writer.add_name(name)
    writer.add_description("Tells tales for children. Trained by the IntEngine project on old books and its own tales.")
    writer.add_license("mit")
    writer.add_languages(["en"])
    writer.add_file_type(file_type)
    writer.add_sampling_temp(0.8)
    writer.add_sampling_top_p(0.95)
    writer.add_sampling_min_p(MIN_P)
    writer.add_sampling_penalty_repeat(PENALTY)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(shape.rope_base)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if i == END_OF_TEXT_ID else normal for i in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(END_OF_TEXT_ID)
    writer.add_eos_token_id(END_OF_TEXT_ID)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


def write_gguf(path: Path, model: Llama, tokenizer: Tokenizer, int4: bool) -> None:
    """Write `model` to `path`: INT4 by plain rounding of its weights, or float16."""
    kind = gguf.LlamaFileType.MOSTLY_Q4_0 if int4 else gguf.LlamaFileType.MOSTLY_F16
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    _add_metadata(writer, model.shape, kind, "Story")
    _add_tokenizer(writer, tokenizer)
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        if weight.ndim == 1:
            writer.add_tensor(_tensor_name(name), weight.numpy())
        elif not int4:
            writer.add_tensor(_tensor_name(name), weight.half().numpy())
        elif name == "token_embd":
            writer.add_tensor(_tensor_name(name), pack_q8_0(*quantize_q8_0(weight)), raw_dtype=Type.Q8_0)
        else:
            writer.add_tensor(_tensor_name(name), pack_q4_0(*quantize_q4_0(weight)), raw_dtype=Type.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)


def read_gguf(path: Path) -> Llama:
    """The model in a file of `write_gguf`, its weights dequantised to float32 by the `gguf` package."""
    reader = gguf.GGUFReader(path)

    def value(key: str) -> int | float:
        return reader.fields[f"llama.{key}"].contents()

    shape = Shape(
        vocab=int(value("vocab_size")),
        hidden=int(value("embedding_length")),
        feed_forward=int(value("feed_forward_length")),
        layers=int(value("block_count")),
        heads=int(value("attention.head_count")),
        kv_heads=int(value("attention.head_count_kv")),
        context=int(value("context_length")),
        rope_base=value("rope.freq_base"),
        norm_epsilon=value("attention.layer_norm_rms_epsilon"),
    )
    model = Llama(shape)
    parameters = {_tensor_name(name): parameter for name, parameter in model.named_parameters()}
    if set(parameters) != {tensor.name for tensor in reader.tensors}:
        raise ValueError(f"{path}: tensors other than those of a story model; expected {sorted(parameters)}")
    for tensor in reader.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        parameters[tensor.name].data = torch.from_numpy(np.array(weight, np.float32))
    return model
