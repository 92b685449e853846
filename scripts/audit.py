"""Attack the private training with inserted canaries, and check every step against what the accountant
assumes.

python scripts/audit.py --out runs/demo       audits by the run's own configuration; its privacy card then
shows the finding python scripts/audit.py --config configs/demo.yaml --out runs/audit python scripts/audit.py
--model network --out runs/demo       the network itself, narrower; takes minutes

A logistic regression, or the network, is trained on the cohort's films with the package's own sampler,
clipping, compiled step, noise and accounting; about half of the canaries are in. Writes audit.json (the
finding), membership.csv and membership.png and .svg (what attacks that threshold a score, such as the loss,
achieve). Exit status 1 if the claim is refuted. What is written
comes from private data: it stays in the house, but for the figures that the privacy card prints.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import tyro

from jaxcxr.cli.console import run
from jaxcxr.config import Experiment, load
from jaxcxr.errors import InputError
from jaxcxr.run_folder import AUDIT, CONFIG, has_facts, read_facts


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to audit, and how hard.

    Attributes:
        config: experiment whose cohort, clip norm and delta are used; that of the run in `out` unless given.
        out: folder for what is written.
        model: what is trained: `logistic` regression on the pixels, or the `network`.
        width: of the network, a multiple of 32.
        side: pixels to which films are shrunk for the network.
        canaries: films that are each inserted with a chance of one half; 500, or 200 for the network, unless
            given.
        films: at most so many films of the training split.
        steps: length of the audited run.
        sample_rate: expected share of the films in a step.
        epsilon: claimed by the audited run; the smaller, the smaller the faults that refute it.
        seed: of the coins; the training's randomness comes from the operating system.
    """

    config: Path | None = None
    out: Path = Path("runs/audit")
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
            "and 1; found "
            f"{arguments.inserted}, {arguments.steps}, {arguments.films} and {arguments.sample_rate:g}"
        )
    if not (arguments.epsilon > 0 and math.isfinite(arguments.epsilon)):
        raise InputError(f"--epsilon: expected a positive number, found {arguments.epsilon:g}")
    if arguments.side < 8:
        raise InputError(f"--side: expected at least 8 pixels, found {arguments.side}")
    if arguments.seed < 0:
        raise InputError(f"--seed: expected a number of at least 0, found {arguments.seed}")


def _config_of(arguments: Arguments) -> tuple[Path, Experiment]:
    own = arguments.out / CONFIG
    path = arguments.config or (own if own.is_file() else Path("configs/demo.yaml"))
    config = load(Experiment, path)
    if config.privacy is None:
        raise InputError(f"{path}: trains without privacy; there is no claim to audit")
    return path, config


def _require_cohort_of(out: Path, fingerprint: str) -> None:
    """A run's folder takes the audit of its own cohort only: the privacy card shows what lies there."""
    if has_facts(out) and read_facts(out).get("store_fingerprint") != fingerprint:
        raise InputError(f"{out}: holds a run on another cohort than the configuration's; name another --out")


def main(argv: Sequence[str] | None = None) -> None:
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    _refuse_impossible(arguments)
    path, config = _config_of(arguments)
    assert config.privacy is not None
    import numpy as np

    from jaxcxr import accounting
    from jaxcxr.accounting.attack_bounds import trade_off
    from jaxcxr.atomic import write_json
    from jaxcxr.audit.canaries import Images, audit, canary_images, subject_of
    from jaxcxr.audit.targets import logistic_regression, network
    from jaxcxr.privacy.mechanism import Mechanism
    from jaxcxr.privacy.noise import new_secret
    from jaxcxr.records.provenance import code_fingerprint
    from jaxcxr.report.figures.attack_figures import trade_off_figure
    from jaxcxr.training.cpu_allocator import keep_memory
    from jaxcxr.workflows.experiment import store_of

    keep_memory()
    store = store_of(config)
    _require_cohort_of(arguments.out, store.fingerprint)
    split = store.split("train", config.data.findings)
    if len(split) == 0:
        raise InputError(f"{store.path}: has no training films; there is nothing to audit")
    cohort = Images(split.read(np.arange(min(arguments.films, len(split)))), split.labels[: arguments.films])
    if arguments.model == "network":
        cohort = cohort.shrunk(arguments.side)
        model = network(config, cohort.images.shape[1:], arguments.width, arguments.seed)
    else:
        model = logistic_regression(cohort.images.shape[1:], len(config.data.findings))
    arguments.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(arguments.seed)
    n = len(cohort) + arguments.inserted
    batch = max(1, round(arguments.sample_rate * n))
    delta = min(config.privacy.delta, 0.5 / n)
    try:
        noise = accounting.calibrated_noise(arguments.epsilon, delta, batch / n, arguments.steps)
    except ValueError as error:
        raise InputError(f"--epsilon {arguments.epsilon:g}: {error}") from error
    coordinates = model.coordinates if config.privacy.noise == "discrete" else None
    mechanism = Mechanism(n, batch, config.privacy.l2_clip_norm, noise, arguments.epsilon, delta, coordinates)
    subject = subject_of(mechanism, model, new_secret(None))
    found = audit(subject, cohort, canary_images(arguments.inserted, cohort, rng), arguments.steps, rng)

    described = found.describe(model.name, store.fingerprint, code_fingerprint())
    write_json(arguments.out / AUDIT, described)
    rates = np.concatenate([[0.0], np.geomspace(1 / n, 1, 100)])
    spent = [accounting.Spending(mechanism.sample_rate, noise, arguments.steps)]
    limit = f"limit at epsilon {found.epsilon_claimed:.3g}"
    curves = {limit: (rates, trade_off(spent, delta, rates))}
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
    pd.concat(rows).to_csv(arguments.out / "membership.csv", index=False)
    edges = {
        name: ((band.false_high, band.true_low), (band.false_low, band.true_high))
        for name, band in bands.items()
    }
    trade_off_figure(curves, arguments.out, "membership", bands=edges)

    print(
        f"{path}: {model.name} of {model.coordinates} parameters, {len(cohort)} films, {found.canaries} "
        "canaries, "
        f"{arguments.steps} steps, noise multiplier {noise:.4g}"
    )
    print(
        pd.DataFrame(described["attacks"]).to_string(index=False, float_format=lambda value: f"{value:.4g}")
    )
    for check in found.checks:
        print(
            f"{'FAILED' if check.failed else 'passed'}: {check.name} (p = {check.p_value:.2g}; {check.found})"
        )
    verdict = "THE CLAIM IS REFUTED" if found.refuted else "nothing found against the claim"
    print(
        f"epsilon claimed {found.epsilon_claimed:.4g}, at least {found.epsilon_lower:.4g} with "
        f"{found.confidence:.0%} "
        f"confidence (delta {delta:g}): {verdict}"
    )
    print(f"{arguments.out}: audit.json, membership.csv, membership.png, membership.svg")
    if found.refuted:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
