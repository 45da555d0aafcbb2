"""Mixed precision: each matrix gets the type that its sensitivity asks for, within a budget of bits.

Measured, on a few windows of the calibration text, for each matrix alone:

    divergence    mean KL of the float model's predictions against those with this matrix rounded, to BASE and to TQ2_0
    error(type)   mean squared error of its products, trace (W - Q) H (W - Q)^T, H = X X^T, for each type

To second order the divergence grows with the squared error, so that of another type is estimated as

    divergence(type) = divergence(BASE) * error(type) / error(BASE)

(ternary codes are too coarse for that, so they are measured themselves),
and those of several matrices are added. From the cheapest type everywhere, the step that lowers the sum most for each bit
it costs is taken again and again, as long as the budget lasts. Ternary codes serve only where nothing else is small enough:
what several of them do together is more than the sum. Source for the estimate: Dong et al., "HAWQ-V2", 2020, section 3.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from kernels.block_types import QUANTIZERS
from models.config import expected_tensors
from models.quantizers.calibrate import ROWS_AT_ONCE, Model, encode
from models.quantizers.gptq import moments_and_drift
from models.quantizers.transformer import Angles, Layer, rms_norm, run_layer

BASE, COARSE = "Q4_0", "TQ2_0"
CANDIDATES = ("TQ2_0", "Q4_0", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0", "F16")
Losses = dict[str, dict[str, float]]  # matrix -> type -> estimated divergence


def bits_per_weight(type_: str) -> float:
    """What a weight takes in a type, scales included."""
    return 16.0 if type_ == "F16" else 8 * QUANTIZERS[type_].block_bytes / QUANTIZERS[type_].block_size


def possible(columns: int) -> list[str]:
    """The candidates whose blocks fit into rows of `columns`."""
    return [t for t in CANDIDATES if t == "F16" or columns % QUANTIZERS[t].block_size == 0]


def choose_mixed(losses: Losses, shapes: Mapping[str, tuple[int, ...]], bits: float) -> dict[str, str]:
    """The type of each matrix for `bits` a weight on average; raises ValueError, saying the least possible, for too few."""
    weights = {name: float(np.prod(shapes[name])) for name in losses}
    finer = {name: {t: loss for t, loss in of.items() if t != COARSE} for name, of in losses.items()}
    if sum(w * min(map(bits_per_weight, finer[n])) for n, w in weights.items()) <= bits * sum(weights.values()) + 1e-6:
        losses = finer

    def cheapest(name: str) -> str:
        return min(losses[name], key=lambda t: (bits_per_weight(t), losses[name][t]))

    chosen = {name: cheapest(name) for name in losses}
    left = sum(weights[n] * (bits - bits_per_weight(t)) for n, t in chosen.items()) + 1e-6
    if left < 0:
        least = bits - left / sum(weights.values())
        raise ValueError(f"{bits:g} bits a weight are too few for this model; at least {least:.2f} are needed")
    while True:
        best: tuple[float, float, str, str] | None = None
        for name, now in chosen.items():
            for type_, loss in losses[name].items():
                cost = weights[name] * (bits_per_weight(type_) - bits_per_weight(now))
                gain = losses[name][now] - loss
                if gain <= 0 or cost > left:
                    continue
                rate = gain / cost if cost > 0 else np.inf
                if best is None or rate > best[0]:
                    best = rate, cost, name, type_
        if best is None:
            return chosen
        _, cost, name, type_ = best
        chosen[name] = type_
        left -= cost


def measure(model: Model, texts: list[np.ndarray]) -> Iterator[tuple[str, dict[str, float]]]:
    """Each matrix's estimated divergence by type; two passes over the layers, the rest again for each matrix."""
    angles = model.angles(max(map(len, texts)))
    embedded = model.embedded(texts)
    reference, inputs = _predictions(model, _through(model, embedded, 0, angles))
    tied = model.config.tied_embeddings

    def divergence(xs: list[np.ndarray], first: int, output: Callable[[np.ndarray], np.ndarray] | None = None) -> float:
        return _divergence(reference, _predictions(model, _through(model, xs, first, angles), output)[0])

    yield from _of_embedding(model, texts, inputs, divergence, tied)
    xs = embedded
    for i in range(model.config.layers):
        layer = model.layer(i)
        steps = run_layer(model.config, layer, xs, angles)
        moments = {}
        for group, shown in steps:
            gathered = list(shown())
            moments[group] = moments_and_drift(gathered, gathered)[0]
        for group, h in moments.items():
            for short in group:
                weight = layer[short]
                errors = {t: _output_error(encode(weight, t)[1] - weight, h) for t in possible(weight.shape[1])}

                def alone(
                    type_: str, i: int = i, short: str = short, layer: Layer = layer, xs: list[np.ndarray] = xs
                ) -> float:
                    changed = {**layer, short: encode(layer[short], type_)[1]}
                    return divergence(run_layer(model.config, changed, xs, angles).finish(), i + 1)

                yield f"blk.{i}.{short}.weight", _losses(errors, alone)
        xs = steps.finish()


def _of_embedding(
    model: Model, texts: list[np.ndarray], inputs: np.ndarray, divergence: Callable[..., float], tied: bool
) -> Iterator[tuple[str, dict[str, float]]]:
    """The embedding, and the output matrix; one that serves as both is rounded in both places."""
    ids = np.unique(np.concatenate(texts))
    embedding, last = "token_embd.weight", "token_embd.weight" if tied else "output.weight"
    for name in dict.fromkeys((embedding, last)):
        columns = expected_tensors(model.config)[name][1]
        rows = model.rows(name, ids)  # for the errors, the rows of the text's tokens stand for all
        h = inputs if name == last else np.eye(columns)
        errors = {t: _output_error(encode(rows, t)[1].reshape(rows.shape) - rows, h) for t in possible(columns)}

        def alone(type_: str, name: str = name) -> float:
            def coded(x: np.ndarray) -> np.ndarray:
                return encode(x, type_)[1].reshape(x.shape)

            xs = [coded(x) if name == embedding else x for x in model.embedded(texts)]
            return divergence(xs, 0, coded if name == last else None)

        yield name, _losses(errors, alone)


def _through(model: Model, xs: list[np.ndarray], first: int, angles: Angles) -> list[np.ndarray]:
    """The residual stream behind the last layer, from that before layer `first`."""
    for i in range(first, model.config.layers):
        xs = run_layer(model.config, model.layer(i), xs, angles).finish()
    return xs


def _predictions(
    model: Model, xs: list[np.ndarray], coded: Callable[[np.ndarray], np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities after each token, (tokens, V) float32, and H of the output matrix's inputs."""
    name = "token_embd.weight" if model.config.tied_embeddings else "output.weight"
    x = rms_norm(np.concatenate(xs), model.read("output_norm.weight"), model.config.rms_eps)
    vocab, columns = expected_tensors(model.config)[name]
    logits = np.empty((len(x), vocab), np.float32)
    step = max(1, ROWS_AT_ONCE // columns)
    for start in range(0, vocab, step):
        rows = model.rows(name, np.arange(start, min(start + step, vocab)))
        logits[:, start : start + len(rows)] = x @ (coded(rows) if coded else rows).T
    logits -= logits.max(1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    return logits, (x.T @ x).astype(np.float64)


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    """The mean KL divergence of two sets of log-probabilities."""
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=1, dtype=np.float64)))


def _output_error(difference: np.ndarray, moments: np.ndarray) -> float:
    return float(np.einsum("nk,kj,nj->", difference, moments, difference, optimize=True))


def _losses(errors: dict[str, float], alone: Callable[[str], float]) -> dict[str, float]:
    """The divergence of each type, from the errors of all and the measured divergence of some."""
    base = BASE if BASE in errors else min(errors, key=bits_per_weight)
    unit = max(alone(base), 1e-12) / max(errors[base], 1e-30)
    found = {t: unit * error for t, error in errors.items()}
    return found | ({COARSE: alone(COARSE)} if COARSE in errors else {})
