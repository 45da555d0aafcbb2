"""Qwen2: a Llama whose queries, keys and values have biases, and whose rotary pairs are halves of a head.

The pairing is a number in the configuration (`rope_style`), so all that differs here are the three biases.
Yang et al., "Qwen2 Technical Report", 2024, section 2.2.
"""

from models.forward import LOGIT_ROWS, Forward


def forward(f: Forward) -> None:
    """Write the steps from the tokens of a run to the logits of those rows that want them."""
    w = f.weights
    x = f.embed(w.token_embd, out="x")
    for i, layer in enumerate(w.layers):
        h = f.rms_norm(x, layer.attn_norm, readers=[layer.q, layer.k, layer.v], out="h")
        with f.steps.together():
            q = f.linear(h, layer.q, out="q", bias=layer.q_bias)
            k = f.linear(h, layer.k, out="k", bias=layer.k_bias)
            v = f.linear(h, layer.v, out="v", bias=layer.v_bias)
        f.rope_and_store(q, k, v, layer=i)
        a = f.attention(q, layer=i, readers=[layer.attn_output], out="a")
        x = f.linear(a, layer.attn_output, out="x", add_to=x)

        h = f.rms_norm(x, layer.ffn_norm, readers=[layer.ffn_gate, layer.ffn_up], out="h")
        with f.steps.together():
            gate = f.linear(h, layer.ffn_gate, out="gate")
            up = f.linear(h, layer.ffn_up, out="up")
        h = f.silu_gate(gate, up, readers=[layer.ffn_down], out="gate")
        x = f.linear(h, layer.ffn_down, out="x", add_to=x)
    h = f.rms_norm(x, w.output_norm, readers=[w.output], out="h", count=LOGIT_ROWS)
    f.linear(h, w.output, out="logits")
