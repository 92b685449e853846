"""Attack the private training with inserted canaries, and check every step against what the accountant
assumes.

Examples:
  jaxcxr audit --out runs/demo                             by the run's own configuration, for its card
  jaxcxr audit --config configs/demo.yaml --out runs/audit
  jaxcxr audit --model network --out runs/demo             the network itself, narrower; takes minutes

A logistic regression, or the network, is trained on the cohort's images with the package's own sampler,
clipping, compiled step, noise and accounting; about half of the canaries are in. Writes audit.json (the
finding), membership.csv and membership.png and .svg (what attacks that threshold a score, such as the loss,
achieve). Exit status 1 if the claim is refuted. What is written comes from private data: it stays in the
hospital, but for the figures that the privacy card prints.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from jaxcxr.cli.console import progress_bar, say
from jaxcxr.config import Experiment, load
from jaxcxr.errors import InputError
from jaxcxr.run_folder import AUDIT, CONFIG, has_facts, read_facts

if TYPE_CHECKING:
    from jaxcxr.audit.canaries import Audit, Images
    from jaxcxr.audit.targets import Model
    from jaxcxr.data.store import Store
    from jaxcxr.privacy.mechanism import Mechanism

WRITES = "audit.json, membership.csv, membership.png, membership.svg"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to audit, and how hard.

    Attributes:
        config: experiment whose cohort, clip norm and delta are used; that of the run in `out` unless given,
            and the demo's with neither.
        out: folder for what is written; runs/audit unless given.
        model: what is trained: `logistic` regression on the pixels, or the `network`.
        width: of the network, a multiple of 32.
        side: pixels to which images are shrunk for the network.
        canaries: images that are each inserted with a chance of one half; 500, or 200 for the network, unless
            given.
        films: at most so many images of the training split.
        steps: length of the audited run.
        sample_rate: expected share of the images in a step.
        epsilon: claimed by the audited run; the smaller, the smaller the faults that refute it.
        seed: of the coins; the training's randomness comes from the operating system.
    """

    config: Path | None = None
    out: Path | None = None
    model: Literal["logistic", "network"] = "logistic"
    width: int = 32
    side: int = 32
    canaries: int | None = None
    films: int = 2000
    steps: int = 60
    sample_rate: float = 0.1
    epsilon: float = 1.0
    seed: int = 0

    @property
    def inserted(self) -> int:
        """Number of canaries."""
        return self.canaries if self.canaries is not None else 500 if self.model == "logistic" else 200


def _refuse_impossible(arguments: Arguments) -> None:
    if (
        arguments.inserted < 20
        or arguments.steps < 2
        or arguments.films < 1
        or not 0 < arguments.sample_rate < 1
    ):
        raise InputError(
            "expected at least 20 --canaries, 2 --steps and 1 of the --films, and a --sample-rate between 0 "
            f"and 1; found {arguments.inserted}, {arguments.steps}, {arguments.films} and "
            f"{arguments.sample_rate:g}"
        )
    if not (arguments.epsilon > 0 and math.isfinite(arguments.epsilon)):
        raise InputError(f"--epsilon: expected a positive number, found {arguments.epsilon:g}")
    if arguments.side < 8:
        raise InputError(f"--side: expected at least 8 pixels, found {arguments.side}")
    if arguments.seed < 0:
        raise InputError(f"--seed: expected a number of at least 0, found {arguments.seed}")


def _config_of(arguments: Arguments) -> tuple[Path, Experiment]:
    path = arguments.config or Path("configs/demo.yaml")
    if arguments.config is None and arguments.out is not None:
        path = arguments.out / CONFIG
        if not path.is_file():
            raise InputError(
                f"{arguments.out}: holds no run (no config.yaml) to be audited; expected a run folder, "
                "or --config with the experiment"
            )
    config = load(Experiment, path)
    if config.privacy is None:
        raise InputError(f"{path}: trains without privacy; there is no claim to audit")
    return path, config


def _require_cohort_of(out: Path, fingerprint: str) -> None:
    """A run's folder takes the audit of its own cohort only: the privacy card shows what lies there."""
    if has_facts(out) and read_facts(out).get("store_fingerprint") != fingerprint:
        raise InputError(f"{out}: holds a run on another cohort than the configuration's; name another --out")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    _refuse_impossible(arguments)
    path, config = _config_of(arguments)
    out = arguments.out or Path("runs/audit")
    say(f"auditing {path}: loading JAX")
    import numpy as np

    from jaxcxr.audit.canaries import audit, canary_images, subject_of
    from jaxcxr.privacy.noise import new_secret
    from jaxcxr.records.provenance import code_fingerprint
    from jaxcxr.training.cpu_allocator import keep_memory
    from jaxcxr.workflows.experiment import store_of

    keep_memory()
    store = store_of(config)
    _require_cohort_of(out, store.fingerprint)
    cohort, model = _subject(arguments, config, store)
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(arguments.seed)
    mechanism = _claimed(arguments, config, len(cohort) + arguments.inserted, model)
    subject = subject_of(mechanism, model, new_secret(None))
    canaries = canary_images(arguments.inserted, cohort, rng)
    with progress_bar(arguments.steps, "step", "compiling, then training") as bar:
        found = audit(subject, cohort, canaries, arguments.steps, rng, progress=bar.update)

    described = found.describe(model.name, store.fingerprint, code_fingerprint())
    _write(out, found, described, mechanism, arguments.steps)
    print(
        f"{path}: {model.name} of {model.coordinates} parameters, {len(cohort)} images, {found.canaries} "
        f"canaries, {arguments.steps} steps, noise multiplier {mechanism.noise_multiplier:.4g}"
    )
    _tell(found, described, mechanism)
    print(f"{out}: {WRITES}")
    if found.refuted:
        sys.exit(1)


def _subject(arguments: Arguments, config: Experiment, store: "Store") -> "tuple[Images, Model]":
    """The images and the model to be trained on them."""
    import numpy as np

    from jaxcxr.audit.canaries import Images
    from jaxcxr.audit.targets import logistic_regression, network

    split = store.split("train", config.data.findings)
    if len(split) == 0:
        raise InputError(f"{store.path}: has no training images; there is nothing to audit")
    cohort = Images(split.read(np.arange(min(arguments.films, len(split)))), split.labels[: arguments.films])
    if arguments.model == "logistic":
        return cohort, logistic_regression(cohort.images.shape[1:], len(config.data.findings))
    cohort = cohort.shrunk(arguments.side)
    return cohort, network(config, cohort.images.shape[1:], arguments.width, arguments.seed)


def _claimed(arguments: Arguments, config: Experiment, n: int, model: "Model") -> "Mechanism":
    """The mechanism that is audited: of n images, with the noise that the claimed epsilon asks for."""
    from jaxcxr import accounting
    from jaxcxr.privacy.mechanism import Mechanism

    privacy = config.privacy
    assert privacy is not None  # `_config_of`
    batch, delta = max(1, round(arguments.sample_rate * n)), min(privacy.delta, 0.5 / n)
    try:
        noise = accounting.calibrated_noise(arguments.epsilon, delta, batch / n, arguments.steps)
    except ValueError as error:
        raise InputError(f"--epsilon {arguments.epsilon:g}: {error}") from error
    coordinates = model.coordinates if privacy.noise == "discrete" else None
    return Mechanism(n, batch, privacy.l2_clip_norm, noise, arguments.epsilon, delta, coordinates)


def _write(out: Path, found: "Audit", described: Any, mechanism: "Mechanism", steps: int) -> None:
    """The finding, and the curves of the attacks beside the limit that the claim sets them."""
    import numpy as np
    import pandas as pd

    from jaxcxr import accounting
    from jaxcxr.accounting.attack_bounds import trade_off
    from jaxcxr.digests import write_json
    from jaxcxr.report.figures.attack_figures import trade_off_figure

    write_json(out / AUDIT, described)
    rates = np.concatenate([[0.0], np.geomspace(1 / mechanism.n_units, 1, 100)])
    spent = [accounting.Spending(mechanism.sample_rate, mechanism.noise_multiplier, steps)]
    limit = f"limit at epsilon {found.epsilon_claimed:.3g}"
    curves = {limit: (rates, trade_off(spent, mechanism.delta, rates))}
    curves |= {
        name: (curve.false_positive_rate, curve.true_positive_rate) for name, curve in found.curves.items()
    }
    bands = {name: curve.band() for name, curve in found.curves.items()}
    rows = [
        pd.DataFrame({"attack": name, "false_positive_rate": x, "true_positive_rate": y}).assign(
            **(dataclasses.asdict(bands[name]) if name in bands else {})
        )
        for name, (x, y) in curves.items()
    ]
    pd.concat(rows).to_csv(out / "membership.csv", index=False)
    edges = {
        name: ((band.false_high, band.true_low), (band.false_low, band.true_high))
        for name, band in bands.items()
    }
    trade_off_figure(curves, out, "membership", bands=edges)


def _tell(found: "Audit", described: Any, mechanism: "Mechanism") -> None:
    import pandas as pd

    attacks = pd.DataFrame(described["attacks"])
    print(attacks.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    for check in found.checks:
        verdict = "FAILED" if check.failed else "passed"
        print(f"{verdict}: {check.name} (p = {check.p_value:.2g}; {check.found})")
    verdict = "THE CLAIM IS REFUTED" if found.refuted else "nothing found against the claim"
    print(
        f"epsilon claimed {found.epsilon_claimed:.4g}, at least {found.epsilon_lower:.4g} with "
        f"{found.confidence:.0%} confidence (delta {mechanism.delta:g}): {verdict}"
    )
