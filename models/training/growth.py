"""A deeper model from a trained one, which at first computes the same.

Fewer layers train faster, and what they have learned carries over: a new layer is a copy of the one before it, except that
the two matrices that write to the residual stream are zero, so it adds nothing until it has learned to. Copying layers is
from Gong et al. 2019 (Efficient Training of BERT by Progressively Stacking), the zeros are from Goyal et al. 2017 (Accurate,
Large Minibatch SGD, section 5.1: a residual block that begins as the identity).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from models.training.model import Llama, Shape

WRITING = ("attn_output", "ffn_down")
"""The matrices of a layer that write to the residual stream."""


def sources(before: int, after: int) -> list[int]:
    """Which of `before` layers each of `after` layers comes from, in order; the copies are spread evenly."""
    return [round(i * (before - 1) / max(1, after - 1)) for i in range(after)]


@torch.no_grad()
def deepen(model: Llama, shape: Shape) -> Llama:
    """`model` with the layers of `shape`, no fewer than it has; both compute the same logits.

    Raises ValueError if the shapes differ in more than the number of layers, or there would be fewer.
    """
    before, after = len(model.blk), shape.layers
    if replace(model.shape, layers=after) != shape or after < before:
        raise ValueError(f"a model of {model.shape} cannot become one of {shape}; only layers can be added")
    deeper = Llama(shape)
    deeper.token_embd.copy_(model.token_embd)
    deeper.output_norm.copy_(model.output_norm)
    previous = None
    for layer, source in zip(deeper.blk, sources(before, after)):
        layer.load_state_dict(model.blk[source].state_dict())
        if source == previous:
            for name in WRITING:
                getattr(layer, name).zero_()
        previous = source
    return deeper
