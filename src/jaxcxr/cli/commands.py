"""The console command `jaxcxr`: its subcommands, and how one is started.

Nothing else is imported before a subcommand is chosen, so that the list and every `--help` are there at once.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType, ModuleType

from jaxcxr import __version__
from jaxcxr.cli.console import run

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "configs": "list the configurations that come with the package, show or copy them",
        "init": "read a table of radiographs and propose a column map and a configuration",
        "prepare": "turn a table and its image files into a store that training reads",
        "describe": "describe the cohort of a store: tables, figures and a data card",
        "train": "train one private or non-private model, then predict and evaluate",
        "sweep": "train a model for each privacy budget and compare them",
        "pretrain": "train on public images and write weights to start from",
        "evaluate": "metrics, groups and fairness of a predictions file",
        "compare": "paired differences between two models on the same test images",
        "predict": "predictions of a trained model for a folder of images",
        "explain": "show over an image what moved the predictions",
        "account": "what a private run costs: noise, epsilon, steps, patients, sweeps",
        "audit": "attack the private training and check every step",
        "risk": "who is exposed by a model, and who pays for privacy",
        "check": "compare everything in a run, sweep, store, weights or release folder with its checksums",
        "release": "build and check the folder that may leave the hospital",
        "export": "write a trained model for use elsewhere (StableHLO, PyTorch)",
        "convert-weights": "weights from and to PyTorch, and heads for other findings",
        "ablate": "run a study of variations and say what each is worth",
        "benchmark": "time a private step beside other libraries",
        "contact-sheet": "draw a sheet of synthetic radiographs",
    }
)
"""Name and summary of each, in the order in which a project meets them."""
_TRAIN = ("train", "sweep", "pretrain")
_WITH_JAX = (
    *_TRAIN,
    "predict",
    "explain",
    "audit",
    "release",
    "export",
    "convert-weights",
    "ablate",
    "check",
)
"""Commands that load JAX."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the subcommand that the first argument names."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
    elif arguments[0] in ("-V", "--version"):
        print(f"jaxcxr {__version__}")
    elif arguments[0] in COMMANDS:
        sys.argv = [f"jaxcxr {arguments[0]}", *arguments[1:]]
        start(arguments[0])
    else:
        print(_unknown(arguments[0]), file=sys.stderr)
        sys.exit(2)


def start(name: str) -> None:
    """Run a subcommand on the arguments in `sys.argv[1:]`; `scripts/<name>.py` are this and no more."""
    run(lambda: _module(name).main(), repeatable=name in _TRAIN, with_jax=name in _WITH_JAX)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"jaxcxr.cli.{name.replace('-', '_')}")


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jaxcxr COMMAND ...",
            "",
            "Differentially private training and evaluation of chest-radiograph classifiers.",
            "",
            "commands:",
            *lines,
            "",
            "Examples:",
            "  jaxcxr sweep --eps 0.29                 the demonstration: one budget on a synthetic cohort",
            "  jaxcxr init TABLE.csv --images FOLDER   begin with images of your own",
            "  jaxcxr train --help                     options of a command",
            "  jaxcxr train --help-config              every field of a configuration",
        ]
    )


def _unknown(name: str) -> str:
    import difflib

    alike = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {alike[0]!r}?" if alike else "`jaxcxr --help` lists the commands"
    return f"error: jaxcxr has no command {name!r}; {hint}"
