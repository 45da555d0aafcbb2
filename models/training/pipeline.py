"""From the corpus to the GGUF files: tokenizer, float training, INT4-aware training, export, measurements.

    stable   float, few layers, constant rate, the plainer two thirds of the stories
    cool     float, the rate falls to less than half, all stories, most of them renamed
    deep     float, all the layers, the rate falls further; tales written for the model beside the stories
    float    float, the rate falls to zero, more of these tales
    prefer   float, a little more of both, and pairs of tales that it told itself: the better one becomes likelier; this is
             the model that we keep (F16 file) and, rounded plainly, the INT4 file to compare with
    int4     quantised forward: learns to predict what the float model predicts; the model we ship

Every stage leaves its result in the work folder and is skipped when that is there, so a second start goes on where
the first ended.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from models.training import data, loop
from models.training.evaluate import bits_per_byte, bits_per_byte_quick
from models.training.export import read_gguf, write_gguf
from models.training.growth import deepen
from models.training.model import Llama, Shape
from models.training.optimizer import Optimizer
from models.training.plot import plot_losses
from models.training.preference import Pair, Preference, read_pairs
from models.training.written import Tale, read_written

QUICK_WINDOWS = 24
WARMUP_STEPS = 50
WEIGHT_DECAY = 0.05


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a stage trains."""

    after: str | None
    """The stage that it goes on from."""
    batch: int
    """Windows a step: small steps bring a young model on, larger ones an old one."""
    rates: tuple[float, float]
    """The learning rates at its beginning and its end, as shares of the full ones."""
    mix: data.Mix
    shallow: bool = False
    """Whether the model has the first, smaller number of layers."""
    prefer: bool = False
    """Whether it also learns from pairs of tales, each once: they decide how long it is."""
    int4: bool = False
    """Whether it trains the quantised forward pass: to predict what the model predicts that it goes on from."""


_ALL = float("inf")
_PLAINER = data.Mix(copies=((1.8, 3), (2.4, 2)))
_STORIES = data.Mix(copies=((1.8, 2), (_ALL, 1)))
_MOST_RENAMED = replace(_STORIES, renamed=0.8)
_HALF_TALES = replace(_STORIES, renamed=0.5, written=(6, 30))
_MORE_TALES = replace(_STORIES, written=(14, 70))
"""What is learned last shows most."""
RECIPES = {
    "stable": Recipe(None, batch=4, rates=(1.0, 1.0), mix=_PLAINER, shallow=True),
    "cool": Recipe("stable", batch=8, rates=(1.0, 0.45), mix=_MOST_RENAMED, shallow=True),
    "deep": Recipe("cool", batch=8, rates=(0.75, 0.25), mix=_HALF_TALES),
    "float": Recipe("deep", batch=8, rates=(0.3, 0.0), mix=_MORE_TALES),
    "prefer": Recipe("float", batch=8, rates=(0.07, 0.0), mix=_MORE_TALES, prefer=True),
    "int4": Recipe("prefer", batch=8, rates=(0.15, 0.0), mix=_MORE_TALES, int4=True),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides the result."""

    corpus: Path
    tales: Path
    preferences: Path
    out: Path
    work: Path
    shape: Shape
    """Of the finished model."""
    first_layers: int
    """Layers in the shallow stages."""
    seed: int
    tokens: dict[str, int]
    """Of each stage in RECIPES, but for that which learns from pairs."""
    matrix_rate: float
    vector_rate: float
    workers: int

    def shape_of(self, stage: str) -> Shape:
        """The shape of the model in a stage."""
        return replace(self.shape, layers=self.first_layers) if RECIPES[stage].shallow else self.shape


def _prepare_tokenizer(plan: Plan, stories: list[data.Story]) -> Tokenizer:
    path = plan.work / "tokenizer.json"
    if not path.exists():
        sys.stderr.write(f"tokenizer: {plan.shape.vocab} entries from {len(stories)} stories\n")
        data.train_tokenizer(stories, plan.shape.vocab).save(str(path))
    return Tokenizer.from_file(str(path))


@dataclass(frozen=True)
class Stages:
    """Runs the stages of a plan on its texts."""

    plan: Plan
    run: loop.Run
    tokenizer: Tokenizer
    stories: list[data.Story]
    tales: list[Tale]
    pairs: list[Pair]

    def finish(self, name: str) -> Path:
        """Bring a stage to its end, and those before it, unless that was done; return the path of its checkpoint."""
        plan, recipe, finished = self.plan, RECIPES[name], self.run.folder / f"{name}.pt"
        if finished.exists():
            return finished
        shape, before = plan.shape_of(name), recipe.after
        fresh = before is None or plan.shape_of(before) != shape or recipe.int4
        unfinished = self.run.folder / f"{name}.last.pt"
        if unfinished.exists():
            state = self._restore(shape, unfinished)
        elif before is None:
            torch.manual_seed(plan.seed)
            state = self._begin(Llama(shape))
        else:
            state = self.load(before)
            if fresh:
                state = self._begin(deepen(state.model, shape), state.tokens)
            state.step = 0
        sys.stderr.write(f"{name}: {state.model.count() / 1e6:.2f} M parameters, from step {state.step}\n")
        seed = plan.seed + list(RECIPES).index(name)  # not the same windows again
        windows = data.Windows(self.tokenizer, self.stories, self.tales, plan.shape.context, seed, recipe.mix)
        teacher = self.load(before).model.predictions if before and recipe.int4 else None
        preference = None
        if before and recipe.prefer:
            preference = Preference(self.tokenizer, self.pairs, self.load(before).model, seed)
        steps = preference.steps if preference else plan.tokens[name] // (recipe.batch * plan.shape.context)
        stage = loop.Stage(name, recipe.int4, steps, recipe.batch, recipe.rates, WARMUP_STEPS if fresh else 0)
        loop.train(self.run, stage, windows, state, teacher, preference)
        return finished

    def load(self, name: str) -> loop.State:
        """The state at the end of a stage."""
        return self._restore(self.plan.shape_of(name), self.finish(name))

    def _begin(self, model: Llama, tokens: int = 0) -> loop.State:
        """A model whose optimizer has no momentum yet."""
        optimizer = Optimizer(model, self.plan.matrix_rate, self.plan.vector_rate, WEIGHT_DECAY)
        return loop.State(model, optimizer, tokens=tokens)

    def _restore(self, shape: Shape, checkpoint: Path) -> loop.State:
        state = self._begin(Llama(shape))
        state.restore(checkpoint)
        return state


def check_file(path: Path, model: Llama) -> None:
    """Refuse an INT4 file whose values differ, in any bit, from those of the last training forward pass of `model`.

    The last step of `int4` has the rate zero, so that pass, the engine's own, used exactly the rounding of these weights.
    """
    expected = Llama(model.shape)
    model.round_weights(into=expected)
    for (name, wanted), found in zip(expected.named_parameters(), read_gguf(path).parameters()):
        if not torch.equal(wanted, found):
            raise ValueError(f"{path}: {name}: values differ from those of the last training forward pass")


def _measure(plan: Plan, validation: data.Validation, run: loop.Run, files: dict[str, Path], tokens: int) -> None:
    """Bits per byte of each file, as PyTorch computes it, into `measured.json`; on a few windows also as the engine does."""
    result: dict[str, dict[str, float] | int] = {"tokens": tokens, "valid_bytes": validation.text_bytes}
    with ThreadPoolExecutor(plan.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for name, path in files.items():
            model, mode = read_gguf(path), "float32" if name == "float" else "int8"
            bits = bits_per_byte(model, validation, mode, pool)
            result[name] = found = {"bits_per_byte": bits, "file_bytes": path.stat().st_size}
            for way in (mode,) if name == "float" else (mode, "engine"):
                quick = bits_per_byte_quick(model, run.quick, run.quick_bytes_per_token, way, pool)
                found[f"{way}, {len(run.quick)} windows"] = quick
            sys.stderr.write(f"{name}: {bits:.4f} bits per byte on valid, {path.stat().st_size / 1e6:.2f} MB\n")
    (plan.work / "measured.json").write_text(json.dumps(result, indent=1) + "\n")


def run_pipeline(plan: Plan) -> None:
    """Do everything that is not done yet.

    Raises OSError and ValueError for a corpus, tales or pairs that cannot be read, ValueError for more layers at first
    than in the end.
    """
    if plan.first_layers > plan.shape.layers:
        found = f"--first-layers {plan.first_layers}, but --layers {plan.shape.layers}"
        raise ValueError(f"{found}: layers can only be added; give no more of them at first than in the end")
    plan.work.mkdir(parents=True, exist_ok=True)
    plan.out.mkdir(parents=True, exist_ok=True)
    stories = data.read_stories(plan.corpus, "train")
    tales, pairs = read_written(plan.tales), read_pairs(plan.preferences)
    tokenizer = _prepare_tokenizer(plan, stories)
    validation = data.make_validation(tokenizer, data.read_stories(plan.corpus, "valid"))
    full = validation.windows(plan.shape.context)[:-1]
    quick = full[:: max(1, len(full) // QUICK_WINDOWS)]
    bytes_per_token = validation.text_bytes / (len(validation.stream) - 1)
    run = loop.Run(plan.work, quick, bytes_per_token, 100, 50, plan.workers)

    stages = Stages(plan, run, tokenizer, stories, tales, pairs)
    float_state, int4_model = stages.load("prefer"), stages.load("int4").model
    files = {
        "float": plan.out / "story-f16.gguf",
        "rounded": plan.work / "story-rounded.gguf",
        "int4": plan.out / "story.gguf",
    }
    write_gguf(files["float"], float_state.model, tokenizer, int4=False)
    write_gguf(files["rounded"], float_state.model, tokenizer, int4=True)
    write_gguf(files["int4"], int4_model, tokenizer, int4=True)
    check_file(files["int4"], int4_model)
    plot_losses(plan.work / "loss.csv", plan.out / "loss.png")
    _measure(plan, validation, run, files, float_state.tokens)
