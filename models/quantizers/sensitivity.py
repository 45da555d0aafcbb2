"""Mixed precision: each matrix gets the type that its sensitivity asks for, within a budget of bits.

Measured, on a few windows of the calibration text, for each matrix alone:

    divergence    mean KL of the float model's predictions against those with this matrix rounded to BASE
    error(type)   mean squared error of its products, trace (W - Q) H (W - Q)^T, H = X X^T, for each type

To second order the divergence grows with the squared error, so that of another type is estimated as

    divergence(type) = divergence(BASE) * error(type) / error(BASE)

and those of several matrices are added: `knapsack.choose` finds the types of the least sum. (Source for the estimate: Dong
et al., "HAWQ-V2", 2020, section 3.) An estimate isn't believed: the model is run on other windows with the types that were
found, and with single types that fit for all matrices alike, and the best is taken. So nothing is worse there than the best
single type that the budget allows. Ternary codes, whose errors are too large to be added, have a mixture of their own.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from kernels.block_types import QUANTIZERS
from models.config import expected_tensors
from models.quantizers.calibrate import ROWS_AT_ONCE, Model, encode
from models.quantizers.gptq import moments
from models.quantizers.knapsack import choose
from models.quantizers.transformer import Angles, Layer, Texts, rms_norm, run_layer

BASE, COARSE = "Q4_0", "TQ1_0"
CANDIDATES = ("TQ1_0", "Q4_0", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0", "F16")
SAMPLED = 512  # rows of a matrix from which its error is estimated
TOKENS_AT_ONCE = 128  # whose predictions are in memory together
UNIFORM_TRIED = 2  # single types that are compared with the mixture
Losses = Mapping[str, Mapping[str, float]]  # matrix -> type -> estimated divergence
Types = dict[str, str]  # matrix -> type


def type_bytes(type_: str, shape: tuple[int, ...]) -> int:
    """What a matrix takes in a type."""
    size, nbytes = (1, 2) if type_ == "F16" else (QUANTIZERS[type_].block_size, QUANTIZERS[type_].block_bytes)
    return shape[0] * (shape[1] // size * nbytes)


def possible(columns: int) -> list[str]:
    """The candidates whose blocks fit into rows of `columns`."""
    return [t for t in CANDIDATES if t == "F16" or columns % QUANTIZERS[t].block_size == 0]


def needs_ternary(shapes: Mapping[str, tuple[int, ...]], bits: float) -> bool:
    """Whether `bits` a weight can only be had with ternary codes; raises ValueError where not even with them."""
    least = {
        ternary: sum(min(type_bytes(t, s) for t in possible(s[1]) if ternary or t != COARSE) for s in shapes.values())
        for ternary in (True, False)
    }
    weights = sum(int(np.prod(shape)) for shape in shapes.values())
    if 8 * least[True] > bits * weights:
        needed = math.ceil(800 * least[True] / weights) / 100
        raise ValueError(f"{bits:g} bits a weight are too few for this model; at least {needed:.2f} are needed")
    return 8 * least[False] > bits * weights


def choices(losses: Losses, shapes: Mapping[str, tuple[int, ...]], bits: float) -> dict[str, Types]:
    """What may be the best for `bits` a weight on average, by a name for it: mixtures, and single types.

    bits: as many as `needs_ternary` allows.
    """
    room = int(bits * sum(int(np.prod(shapes[name])) for name in losses) / 8 + 1e-6)
    costs = {name: {t: type_bytes(t, shapes[name]) for t in of} for name, of in losses.items()}
    finer = {name: {t: loss for t, loss in of.items() if t != COARSE} for name, of in losses.items()}
    found: dict[str, Types] = {}
    for label, of in (("mixed", finer), ("mixed, with ternary", losses)):
        with contextlib.suppress(ValueError):  # too little room without ternary codes
            found[label] = choose(of, {name: {t: costs[name][t] for t in of[name]} for name in of}, room)
    single = []
    for type_ in CANDIDATES:
        alike = {name: type_ if type_ in of else min(of, key=costs[name].__getitem__) for name, of in finer.items()}
        if type_ in QUANTIZERS and type_ != COARSE and sum(costs[name][t] for name, t in alike.items()) <= room:
            single.append((sum(losses[name][t] for name, t in alike.items()), type_, alike))
    for _, type_, alike in sorted(single, key=lambda entry: entry[0])[:UNIFORM_TRIED]:
        found[f"{type_} throughout"] = alike
    return {label: types for i, (label, types) in enumerate(found.items()) if types not in list(found.values())[:i]}


@dataclass(frozen=True, slots=True)
class Judge:
    """How far predictions are from the float model's on some texts.

    Attributes:
        texts: Token ids.  embedded: the rows that belong to them.  reference: the float model's log-probabilities.
        head: The output matrix, some rows each.  head_moments: H of its inputs, (K, K).
    """

    model: Model
    texts: list[np.ndarray]
    angles: Angles
    embedded: Texts
    reference: Texts
    head: Texts
    head_moments: np.ndarray

    @classmethod
    def of(cls, model: Model, texts: list[np.ndarray]) -> "Judge":
        """Runs the float model."""
        angles = model.angles(max(map(len, texts)))
        embedded, head = model.embedded(texts), _head(model, None)
        xs = _through(model, embedded, 0, angles)
        reference = model.keep(_predictions(model, xs, head))
        return cls(model, texts, angles, embedded, reference, head, moments(_normed(model, xs)))

    def divergence(self, xs: Texts, first: int, head: Texts | None = None) -> float:
        """The mean KL if the residual stream before layer `first` is `xs`; head: the output matrix, some rows each."""
        through = _through(self.model, xs, first, self.angles)
        total, count = 0.0, 0
        for p, q in zip(self.reference, _predictions(self.model, through, head or self.head)):
            difference = p - q
            total += float(np.sum(np.exp(p) * (np.expm1(-difference) + difference), dtype=np.float64))  # sum q = sum p
            count += len(p)
        return total / count

    def of_types(self, types: Mapping[str, str]) -> float:
        """The mean KL with all matrices rounded to their types."""
        embedding, config = "token_embd.weight", self.model.config
        xs = self.model.keep(_coded(x, types[embedding]) for x in self.embedded)
        for i in range(config.layers):
            layer = self.model.layer(i)
            for short, values in layer.items():
                if values.ndim == 2:
                    layer[short] = _coded(values, types[f"blk.{i}.{short}.weight"])
            xs = run_layer(config, layer, xs, self.angles).finish()
        return self.divergence(xs, config.layers, _head(self.model, types[_head_name(self.model)]))


def measure(judge: Judge, ternary: bool) -> Iterator[tuple[str, dict[str, float]]]:
    """Each matrix's estimated divergence by type; the layers behind it are run once for each.

    ternary: whether that of COARSE is measured too, instead of estimated.
    """
    model = judge.model
    yield from _of_embedding(judge, ternary)
    xs = judge.embedded
    for i in range(model.config.layers):
        layer = model.layer(i)
        steps = run_layer(model.config, layer, xs, judge.angles)
        seen = [(group, moments(inputs())) for group, inputs in steps]
        for group, h in seen:
            for short in group:

                def alone(type_: str, i: int = i, short: str = short, layer: Layer = layer, xs: Texts = xs) -> float:
                    changed = {**layer, short: _coded(layer[short], type_)}
                    return judge.divergence(run_layer(model.config, changed, xs, judge.angles).finish(), i + 1)

                yield f"blk.{i}.{short}.weight", _losses(_errors(layer[short], h), alone, ternary)
        xs = steps.result


def _of_embedding(judge: Judge, ternary: bool) -> Iterator[tuple[str, dict[str, float]]]:
    """The embedding, and the output matrix; one that serves as both is rounded in both places."""
    model, last = judge.model, _head_name(judge.model)
    ids = np.unique(np.concatenate(judge.texts))
    for name in dict.fromkeys(("token_embd.weight", last)):
        rows = model.rows(name, ids)  # for the errors, the rows of the text's tokens stand for all
        errors = _errors(rows, judge.head_moments if name == last else None)

        def alone(type_: str, name: str = name) -> float:
            xs: Texts = judge.embedded
            if name == "token_embd.weight":
                xs = [_coded(x, type_) for x in xs]
            return judge.divergence(xs, 0, _head(model, type_) if name == last else None)

        yield name, _losses(errors, alone, ternary)


def _errors(weight: np.ndarray, h: np.ndarray | None) -> dict[str, float]:
    """The squared error of a matrix's products by type, from some of its rows; h None: that of its values."""
    rows = weight[:: -(-len(weight) // SAMPLED)]
    errors = {}
    for type_ in possible(weight.shape[1]):
        difference = _coded(rows, type_) - rows
        errors[type_] = float(np.sum((difference if h is None else difference @ h) * difference, dtype=np.float64))
    return errors


def _losses(errors: dict[str, float], alone: Callable[[str], float], ternary: bool) -> dict[str, float]:
    """The divergence of each type, from the errors of all and the measured divergence of some."""
    base = BASE if BASE in errors else min(errors, key=lambda t: -errors[t])
    unit = max(alone(base), 1e-12) / max(errors[base], 1e-30)
    found = {t: unit * error for t, error in errors.items()}
    return found | ({COARSE: alone(COARSE)} if ternary and COARSE in errors else {})


def _coded(x: np.ndarray, type_: str) -> np.ndarray:
    """The values of a matrix rounded to a type."""
    return encode(x, type_)[1].reshape(x.shape)


def _through(model: Model, xs: Texts, first: int, angles: Angles) -> Texts:
    """The residual stream behind the last layer, from that before layer `first`."""
    for i in range(first, model.config.layers):
        xs = run_layer(model.config, model.layer(i), xs, angles).finish()
    return xs


def _head_name(model: Model) -> str:
    return "token_embd.weight" if model.config.tied_embeddings else "output.weight"


def _head(model: Model, type_: str | None) -> Texts:
    """The output matrix, some rows at a time, rounded to a type (None: as it is)."""
    name = _head_name(model)
    vocab, columns = expected_tensors(model.config)[name]
    step = max(1, ROWS_AT_ONCE // columns)
    parts = (model.rows(name, np.arange(start, min(start + step, vocab))) for start in range(0, vocab, step))
    return model.keep(part if type_ is None else _coded(part, type_) for part in parts)


def _normed(model: Model, xs: Texts) -> Iterator[np.ndarray]:
    weight = model.read("output_norm.weight")
    return (rms_norm(x, weight, model.config.rms_eps) for x in xs)


def _predictions(model: Model, xs: Texts, head: Texts) -> Iterator[np.ndarray]:
    """Log-probabilities after each token, (tokens, V) float32, a few tokens at a time."""
    for x in _normed(model, xs):
        for start in range(0, len(x), TOKENS_AT_ONCE):
            rows = x[start : start + TOKENS_AT_ONCE]
            logits = np.concatenate([rows @ part.T for part in head], axis=1)
            logits -= logits.max(1, keepdims=True)
            logits -= np.log(np.exp(logits).sum(1, keepdims=True))
            yield logits
