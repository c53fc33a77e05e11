"""The command line: `python -m fastib demo`, `train`, `decompose` and `bench`."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status of the process."""
    parser = argparse.ArgumentParser(prog="python -m fastib", description="Information-bottleneck losses for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="train a VAE on sprites with fused and with plain losses, side by side")
    demo.add_argument("--seconds", type=_seconds, default=60.0, help="time to train, for both together (default: 60)")
    demo.add_argument("--loss", choices=("beta-vae", "beta-tcvae"), default="beta-vae", help="default: beta-vae")
    demo.add_argument("--output", type=_folder, default=Path("fastib-demo"), help="folder for the picture")

    train = commands.add_parser("train", help="train a model on sprites; by torchrun, on several processes as on one")
    train.add_argument("model", choices=("beta-tcvae",))
    train.add_argument("--steps", type=_positive, default=300, help="of the optimiser (default: 300)")
    train.add_argument("--batch", type=_positive, default=64, help="images of a step, on all ranks (default: 64)")
    train.add_argument("--seed", type=int, default=0, help="of weights, images and noise (default: 0)")
    train.add_argument("--output", type=_folder, default=Path("fastib-train"), help="folder for the model")

    decompose = commands.add_parser("decompose", help="decompose the KL of a checkpoint exactly, over all of its data")
    decompose.add_argument(
        "checkpoint", type=Path, help="a file of the demo, or of torch.save: {'mu': ..., 'logvar': ...}"
    )
    decompose.add_argument("--rows", type=_positive, help="so many samples, drawn at random (default: all)")
    decompose.add_argument("--seed", type=int, default=0, help="of the samples and of the choice of rows (default: 0)")

    # Its options are its own: benches/run.py parses them.
    commands.add_parser("bench", help="measure the operators against plain PyTorch (from a checkout)", add_help=False)

    args, rest = parser.parse_known_args(argv)
    if args.command == "bench":
        return _bench(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if args.command == "decompose":
        return _decompose(args.checkpoint, args.rows, args.seed)
    if args.command == "train":
        return _train(args.steps, args.batch, args.output, args.seed)
    return _demo(args.seconds, args.loss, args.output)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number of at least 0, got {text}")
    return seconds


def _folder(text: str) -> Path:
    folder = Path(text)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise argparse.ArgumentTypeError(f"must be a folder, or the name of a new one: {path} is a file")
    return folder


def _demo(seconds: float, loss: str, output: Path) -> int:
    from fastib import demo

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"--output must be a folder that can be made, got {output}: {error.strerror}", file=sys.stderr)
        return 2
    result = demo.run(seconds, loss=loss, output=output)
    return 0 if result.agrees else 1


def _train(steps: int, batch: int, output: Path, seed: int) -> int:
    from fastib import train

    try:
        train.run(steps, batch=batch, output=output, seed=seed)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _decompose(checkpoint: Path, rows: int | None, seed: int) -> int:
    from fastib import decompose

    try:
        decompose.run(checkpoint, rows, seed)
    except (ValueError, TypeError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = decompose.partial_of(checkpoint).exists()
        print("Stopped: the same command " + ("goes on from here." if kept else "begins anew."), file=sys.stderr)
        return 130
    return 0


def _bench(argv: Sequence[str]) -> int:
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "benches" / "run.py").exists():
        print("python -m fastib bench needs a checkout of the repository: benches/ is not installed", file=sys.stderr)
        return 2
    sys.path.insert(0, str(checkout))
    return int(importlib.import_module("benches.run").main(argv))
