"""Which block type each tensor of a model gets, for a type that was asked for.

As llama.cpp's tool has it, so that files compare: norms and biases stay F32; the output matrix, or the embedding where it
serves as one, gets six bits or more; with Q4_K the first layers' attn_v is Q5_K; a type whose blocks don't fit into the rows
gives way to the next that do.
"""

from kernels.block_types import QUANTIZERS
from models.config import ModelConfig, expected_tensors

TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "TQ2_0", "TQ1_0")
FLOATS = ("F32", "F16", "BF16")
MORE_BITS = 4  # layers
GIVES_WAY = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0"}
FILE_TYPES = {  # general.file_type: a label, which no reader computes with
    "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18, "TQ1_0": 36, "TQ2_0": 37,
    "F32": 0, "F16": 1, "BF16": 32,
}  # fmt: skip


def fitting(type_: str, columns: int) -> str:
    """The type, or the first behind it whose blocks fit into rows of `columns`; at last F16."""
    while type_ not in FLOATS and columns % QUANTIZERS[type_].block_size:
        if type_ not in GIVES_WAY:
            return "F16"
        type_ = GIVES_WAY[type_]
    return type_


def choose_types(config: ModelConfig, asked: str, output: str | None = None) -> dict[str, str]:
    """The type of each tensor, by GGUF name, if its matrices are to have the type `asked`.

    output: the type of the output matrix, or of an embedding that serves as one (None: Q8_0 for Q8_0, a float type for
        itself, else Q6_K).
    """
    output = output or (asked if asked in ("Q8_0", *FLOATS) else "Q6_K")
    last = "token_embd.weight" if config.tied_embeddings else "output.weight"
    values = [f"blk.{i}.attn_v.weight" for i in range(MORE_BITS)]
    types = {}
    for name, shape in expected_tensors(config).items():
        if len(shape) == 1:
            types[name] = "F32"
        elif name == last:
            types[name] = fitting(output, shape[1])
        elif asked == "Q4_K" and name in values:
            types[name] = fitting("Q5_K", shape[1])
        elif name == "token_embd.weight" and asked.startswith("TQ"):
            types[name] = fitting(
                "Q4_K", shape[1]
            )  # an embedding is looked up, not multiplied: ternary would only harm
        else:
            types[name] = fitting(asked, shape[1])
    return types
