"""Train the embedded default model, from the corpus to the GGUF files, in one command.

    python -m models.train --corpus ../shared/corpus --out models/pretrained

stages (each is skipped if its result is in the work folder; a killed run goes on from its last checkpoint):
  tokenizer   byte-level BPE on the training stories                      tokenizer.json
  stable      float training at a constant rate, of --first-layers layers;
              ends too when a file `decay_now` is in the work folder      stable.pt
  cool        float, the rate falls to less than half; all the stories, in
              most of them other names for the characters                 cool.pt
  deep        float, all the --layers, the rate falls further; the stories,
              and as much of the tales that are written for the model     deep.pt
  float       float, the rate falls to zero, more of these tales          float.pt
  prefer      float, a little more of both, and pairs of tales that it
              told: the better one becomes likelier                       prefer.pt
  int4        from prefer.pt, with the forward pass that the engine
              computes (Q4_0 matrices, Q8_0 embedding, INT8 activations,
              float16 cache): learns to predict what prefer.pt predicts   int4.pt
  export      story.gguf, story-f16.gguf, loss.png in --out; story-rounded.gguf (the float model rounded plainly) and
              measured.json (bits per byte of the three) in the work folder

Progress goes to stderr and loss.csv. The seed is fixed. Needs the extra `train` (PyTorch).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

WRITTEN = Path(__file__).parent / "training" / "written"
PREFERENCES = Path(__file__).parent / "training" / "preferences.jsonl.gz"


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m models.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--corpus", type=Path, required=True, help="folder with train.txt, valid.txt, index.tsv")
    add("--tales", type=Path, default=WRITTEN, help="folder of tales for the model (default: those that come along)")
    add(
        "--preferences",
        type=Path,
        default=PREFERENCES,
        help="pairs of told tales, the better and the worse (default: those that come along)",
    )
    add("--out", type=Path, required=True, help="folder for the model files")
    add("--work", type=Path, default=Path("build/train"), help="folder for checkpoints (default: %(default)s)")
    add("--stable-tokens", type=float, default=25e6, help="tokens at a constant rate (default: %(default).0f)")
    add("--cool-tokens", type=float, default=12.7e6, help="tokens while it falls (default: %(default).0f)")
    add("--deep-tokens", type=float, default=17.2e6, help="tokens with all the layers (default: %(default).0f)")
    add("--decay-tokens", type=float, default=6e6, help="tokens of the stage float (default: %(default).0f)")
    add("--int4-tokens", type=float, default=0.82e6, help="tokens of the stage int4 (default: %(default).0f)")
    add("--vocab", type=int, default=4096, help="tokenizer entries (default: %(default)s)")
    add("--hidden", type=int, default=256, help="width (default: %(default)s)")
    add("--feed-forward", type=int, default=768, help="inner width (default: %(default)s)")
    add("--layers", type=int, default=8, help="(default: %(default)s)")
    add("--first-layers", type=int, default=5, help="layers before the stage deep (default: %(default)s)")
    add("--heads", type=int, default=8, help="(default: %(default)s)")
    add("--kv-heads", type=int, default=4, help="(default: %(default)s)")
    add("--context", type=int, default=512, help="tokens of a window (default: %(default)s)")
    add("--matrix-rate", type=float, default=0.012, help="learning rate of Muon (default: %(default)s)")
    add("--vector-rate", type=float, default=0.0035, help="learning rate of AdamW (default: %(default)s)")
    add("--seed", type=int, default=20, help="(default: %(default)s)")
    add("--workers", type=int, default=2, help="micro-batches computed at once (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 an error in one line, 130 Ctrl-C (the checkpoints remain)."""
    options = make_parser().parse_args(arguments)
    try:
        from models.training.model import Shape
        from models.training.pipeline import Plan, run_pipeline
    except ImportError as error:
        sys.stderr.write(
            f"models.train: package {error.name!r} is missing; install the extra: pip install '.[train]'\n"
        )
        return 1
    shape = Shape(
        options.vocab,
        options.hidden,
        options.feed_forward,
        options.layers,
        options.heads,
        options.kv_heads,
        options.context,
    )
    tokens = {
        "stable": int(options.stable_tokens),
        "cool": int(options.cool_tokens),
        "deep": int(options.deep_tokens),
        "float": int(options.decay_tokens),
        "int4": int(options.int4_tokens),
    }
    plan = Plan(
        corpus=options.corpus,
        tales=options.tales,
        preferences=options.preferences,
        out=options.out,
        work=options.work,
        shape=shape,
        first_layers=options.first_layers,
        seed=options.seed,
        tokens=tokens,
        matrix_rate=options.matrix_rate,
        vector_rate=options.vector_rate,
        workers=options.workers,
    )
    try:
        run_pipeline(plan)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"models.train: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("models.train: stopped; the same command goes on from the last checkpoint\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
