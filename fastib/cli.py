"""The command line: `python -m fastib demo`, `train`, `evaluate`, `plot`, `decompose` and `bench`."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path

STOPPED = 130  # the exit status of a process that Ctrl-C has ended
_DATA = "folder of the data set's files, where it is no longer that of the training"
_KEYS = """Every key of a configuration is a flag, too, and overrides the rest: --steps 1000 --seed 1 --beta 4.
An unknown one is answered with the list of them; fastib.configs.Config and the model's class say what they are.
The same command, given again, goes on with a run that was stopped. By torchrun, a beta-tcvae trains on several
processes as on one.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status of the process."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if args.command == "bench":
        return _bench(rest)
    if rest and args.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return _COMMANDS[args.command](args, rest)
    except (ValueError, TypeError, ImportError, FloatingPointError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename or args.command}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastib", description="Information-bottleneck losses for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True)
    _arguments_of_demo(
        commands.add_parser("demo", help="train a VAE on sprites with fused and with plain losses, side by side")
    )
    _arguments_of_train(
        commands.add_parser(
            "train",
            help="train a model, or go on with a training",
            usage="%(prog)s MODEL [--preset PRESET] [--config FILE] [--output FOLDER] [--KEY VALUE ...]",
            epilog=_KEYS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    _arguments_of_evaluate(commands.add_parser("evaluate", help="measure a trained model by the metrics of its kind"))
    _arguments_of_plot(commands.add_parser("plot", help="draw a picture of trained models"))
    _arguments_of_decompose(
        commands.add_parser("decompose", help="decompose the KL of a checkpoint exactly, over all of its data")
    )
    # Its options are its own: benches/run.py parses them.
    commands.add_parser("bench", help="measure the operators against plain PyTorch (from a checkout)", add_help=False)
    return parser


def _arguments_of_demo(demo: argparse.ArgumentParser) -> None:
    demo.add_argument("--seconds", type=_seconds, default=60.0, help="time to train, for both together (default: 60)")
    demo.add_argument("--loss", choices=("beta-vae", "beta-tcvae"), default="beta-vae", help="default: beta-vae")
    demo.add_argument("--output", type=_folder, default=Path("fastib-demo"), help="folder for the picture")


def _arguments_of_train(train: argparse.ArgumentParser) -> None:
    train.add_argument(
        "model",
        help="beta-vae, annealed-vae, beta-tcvae, vib, information-dropout, information-in-weights, catch, air or "
        "multi-entity-vae",
    )
    train.add_argument("--preset", help="quick, or paper (see fastib/presets.toml)")
    train.add_argument("--config", type=Path, help="a TOML file of keys, which override the preset's")
    train.add_argument("--output", type=_folder, help="folder of the run (default: fastib-train/MODEL)")


def _arguments_of_evaluate(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("checkpoint", type=Path, help="a file of train, or of the demo")
    evaluate.add_argument("--images", type=_positive, help="so many images, drawn at random (default: all)")
    evaluate.add_argument("--seed", type=_seed, default=0, help="of whatever is drawn (default: 0)")
    evaluate.add_argument("--data", help=_DATA)


def _arguments_of_plot(plot: argparse.ArgumentParser) -> None:
    plot.add_argument("kind", choices=("traversals", "dimensions", "rate-distortion", "information", "entities"))
    plot.add_argument("runs", type=Path, nargs="+", help="folders of train; rate-distortion takes several, evaluated")
    plot.add_argument("--output", type=Path, help="the PNG file (default: in the folder of the first run)")
    plot.add_argument("--seed", type=_seed, default=0, help="of the choice of the images (default: 0)")
    plot.add_argument("--data", help=_DATA)


def _arguments_of_decompose(decompose: argparse.ArgumentParser) -> None:
    decompose.add_argument(
        "checkpoint", type=Path, help="a file of train, of the demo, or of torch.save: {'mu': ..., 'logvar': ...}"
    )
    decompose.add_argument("--rows", type=_positive, help="so many samples, drawn at random (default: all)")
    decompose.add_argument(
        "--seed", type=_seed, default=0, help="of the samples and of the choice of rows (default: 0)"
    )
    decompose.add_argument("--data", help=_DATA)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 2**63 - 1, got {text!r}")
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
    try:
        for path in (folder, *folder.parents):
            if path.exists() and not path.is_dir():
                raise argparse.ArgumentTypeError(f"must be a folder, or the name of a new one: {path} is a file")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"must be the name of a folder, got {text}: {error.strerror}") from None
    return folder


def _demo(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from fastib import demo

    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output must be a folder that can be made, got {args.output}: {error.strerror}") from None
    return 0 if demo.run(args.seconds, loss=args.loss, output=args.output).agrees else 1


def _train(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from fastib import configs, train

    config = configs.of_command(args.model, args.preset, args.config, rest)
    trained = train.run(config, args.output or Path("fastib-train", args.model))
    return 0 if trained.steps == config.steps else STOPPED


def _evaluate(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from fastib import evaluate

    evaluate.run(args.checkpoint, images=args.images, seed=args.seed, data=args.data)
    return 0


def _plot(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from fastib import plots

    plots.run(args.kind, args.runs, args.output, args.seed, args.data)
    return 0


def _decompose(args: argparse.Namespace, rest: Sequence[str]) -> int:
    from fastib import decompose

    try:
        decompose.run(args.checkpoint, args.rows, args.seed, args.data)
    except KeyboardInterrupt:
        kept = decompose.partial_of(args.checkpoint).exists()
        print("Stopped: the same command " + ("goes on from here." if kept else "begins anew."), file=sys.stderr)
        return STOPPED
    return 0


_COMMANDS = {"demo": _demo, "train": _train, "evaluate": _evaluate, "plot": _plot, "decompose": _decompose}


def _bench(argv: Sequence[str]) -> int:
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "benches" / "run.py").exists():
        print("python -m fastib bench needs a checkout of the repository: benches/ is not installed", file=sys.stderr)
        return 2
    sys.path.insert(0, str(checkout))
    return int(importlib.import_module("benches.run").main(argv))
