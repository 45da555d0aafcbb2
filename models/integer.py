"""The integer-only forward pass, top to bottom: Llama and Qwen2, whose biases are in the products' sums.

    x = embedding of the token                                                            int32
    for each layer:
        x += Wo attention(rope(Wq h), rope(Wk h), Wv h)      h = RMSNorm(x)               int8 into each product,
        x += Wdown (silu(Wgate h) * (Wup h))                  h = RMSNorm(x)              int32 out of it
    logits = Wout RMSNorm(x)                                                              int32, one scale

No step has a floating-point instruction. Scales are multipliers and shifts, found before: `integer_scales.py`.
"""

from kernels.run import LOGIT_ROWS, ROWS
from models.integer_forward import IntegerForward


def forward(f: IntegerForward) -> None:
    """Write the steps from the tokens of a run to the logits of those rows that want them."""
    w = f.weights
    f.embed()
    for i, layer in enumerate(w.layers):
        f.rms_norm(layer.attn_norm, ROWS)
        with f.steps.together():
            f.linear("h", layer.q, out="q")
            f.linear("h", layer.k, out="k")
            f.linear("h", layer.v, out="v")
        f.rope_and_store(layer, i)
        f.attention(layer, i, out="a")
        f.linear("a", layer.attn_output, out="sums")
        f.add("sums", layer.attn_add)

        f.rms_norm(layer.ffn_norm, ROWS)
        with f.steps.together():
            f.linear("h", layer.ffn_gate, out="gate")
            f.linear("h", layer.ffn_up, out="up")
        f.silu_gate(layer, out="product")
        f.linear("product", layer.ffn_down, out="sums")
        f.add("sums", layer.ffn_add)
    f.rms_norm(w.output_norm, LOGIT_ROWS)
    f.linear("h", w.output, out="logits", count=LOGIT_ROWS)
    f.logits()
