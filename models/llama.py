"""Llama: the whole transformer, top to bottom. Touvron et al., "LLaMA", 2023; grouped queries: Ainslie et al., "GQA", 2023.

    x = embedding of the token
    for each layer:
        x += Wo attention(rope(Wq h), rope(Wk h), Wv h)      h = RMSNorm(x)
        x += Wdown (silu(Wgate h) * (Wup h))                  h = RMSNorm(x)
    logits = Wout RMSNorm(x)

This function runs once, when a model is loaded. Each line appends steps to a table, and the workers replay the table for
every run; so no Python runs between the steps. Names in quotes are rows of the scratch.
"""

from models.forward import LOGIT_ROWS, Forward


def forward(f: Forward) -> None:
    """Write the steps from the tokens of a run to the logits of those rows that want them."""
    w = f.weights
    x = f.embed(w.token_embd, out="x")
    for i, layer in enumerate(w.layers):
        h = f.rms_norm(x, layer.attn_norm, readers=[layer.q, layer.k, layer.v], out="h")
        with f.steps.together():
            q = f.linear(h, layer.q, out="q")
            k = f.linear(h, layer.k, out="k")
            v = f.linear(h, layer.v, out="v")
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
