r"""Weights from and to PyTorch, and heads for other findings.

Examples:
  jaxcxr convert-weights pretraining_resnet9_512.pth --out weights/mimic-512
  jaxcxr convert-weights weights/mimic-512 --to-torch --out mimic-512.pth
  jaxcxr convert-weights weights/mimic-512 --head map --mapping configs/mimic_to_uka.yaml --out weights/mapped
  jaxcxr convert-weights efficientnet-lite0.pth --network efficientnet_lite0 --size 224 --head zero \
    --findings pneumonia --out weights/lite0

Reads .pth and .pt (plain, of Opacus or DataParallel, or in a checkpoint), .safetensors, and run, weights and
release folders. Writes a weights folder for `model.weights`, or with --to-torch a .pth, .pt or .safetensors
file.

Weights that `jaxcxr release` refuses are refused here; --watermark converts them, marked in name and content.
Weights of a private run are registered in its store, as a release is.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from jaxcxr.cli.console import say
from jaxcxr.config import ModelConfig
from jaxcxr.config_files import load, validate
from jaxcxr.data.findings import UKA_FINDINGS
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to convert, and how.

    Attributes:
        weights: .pth, .pt, .safetensors, or a folder of this package.
        out: folder (or file, with --to-torch) to write; it must not exist.
        to_torch: write a file of torch weights.
        head: keep the last layer, replace it by a fresh one or by zeros, or map it by the names of the
            findings.
        findings: to predict, in order; the weights' own unless given (the paper's eight for a file).
        trained: of a file: the findings that its head predicts, in order; for --head map.
        mapping: of --head map: YAML with `findings` to predict and `mapping`, wanted finding -> trained
            finding, a list of them to average, `new` or `zero`.
        network: of a file: whose weights it holds, as in `model.network`.
        options: of a file: fields of the network as in `model.options`, beside those that it implies.
        activation: of a file of resnet9: of the network it was trained with.
        width: of a file of resnet9: channels of its first layer.
        size: of a file: side of the images that the network is to take, in pixels; 512 for resnet9 and 224
            for others unless given.
        key: of a checkpoint with several state dicts: the entry to read.
        seed: of a fresh head.
        watermark: convert weights that must not be released too, marked so.
        store: of a private run's cohort, if it is not where the run's configuration says.
    """

    weights: tyro.conf.Positional[Path]
    out: Path
    to_torch: bool = False
    head: Literal["keep", "replace", "zero", "map"] = "keep"
    findings: tuple[str, ...] | None = None
    trained: tuple[str, ...] | None = None
    mapping: Path | None = None
    network: str = "resnet9"
    options: tuple[str, ...] = ()
    activation: Literal["mish", "relu"] = "mish"
    width: int = 64
    size: int | None = None
    key: str | None = None
    seed: int = 0
    watermark: bool = False
    store: Path | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    if (arguments.mapping is not None) != (arguments.head == "map"):
        raise InputError("--mapping goes with --head map, and only with it")
    if arguments.mapping is not None and arguments.findings is not None:
        raise InputError("--findings: the mapping names the findings already")
    say(f"{arguments.weights}: loading JAX")
    from jaxcxr.models.heads import HeadMapping
    from jaxcxr.workflows.conversion import Weights, convert, with_head, with_zero_head

    size = arguments.size or (512 if arguments.network == "resnet9" else 224)
    given = Weights(None, arguments.trained or UKA_FINDINGS, _model(arguments), size)
    if arguments.head == "keep" and arguments.findings and not arguments.weights.is_dir():
        given = dataclasses.replace(given, findings=arguments.findings)

    def with_wanted_head(weights: Weights) -> Weights:
        if arguments.head == "map" and arguments.mapping is not None:
            asked = load(HeadMapping, arguments.mapping)
            return with_head(weights, asked.findings, asked.mapping, arguments.seed)
        if arguments.head == "replace":
            return with_head(weights, arguments.findings or weights.findings, None, arguments.seed)
        if arguments.head == "zero":
            return with_zero_head(weights, arguments.findings or weights.findings)
        if arguments.findings and arguments.findings != weights.findings:
            raise InputError(
                f"--findings: the weights predict {', '.join(weights.findings)}; use --head map, zero "
                "or replace"
            )
        return weights

    out, weights = convert(
        arguments.weights,
        arguments.out,
        given,
        with_wanted_head,
        key=arguments.key,
        torch_file=arguments.to_torch,
        head=arguments.head,
        watermark=arguments.watermark,
        store=arguments.store,
    )
    print(f"{out}: weights of {len(weights.findings)} findings: {', '.join(weights.findings)}")
    if not arguments.to_torch and weights.model.network != "resnet9":
        print(
            f"in a configuration: model: {{network: {weights.model.network}, options: "
            f"{json.dumps(list(weights.model.options))}, weights: {out}}}, and data: {{size: {weights.size}}}"
        )


def _model(arguments: Arguments) -> ModelConfig:
    """The network of a file; the fields are checked as those of a configuration are."""
    names = ("network", "options", "activation", "width")
    return validate(ModelConfig, {name: getattr(arguments, name) for name in names}, "command line")
