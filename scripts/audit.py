"""Attack the private training with inserted canaries, and check every step against what the accountant assumes.

python scripts/audit.py --config configs/demo.yaml --out runs/demo      writes runs/demo/audit.json; the privacy card shows it

A logistic regression is trained on the cohort's films with the package's own sampler, clipping, noise and accounting; about
half of the canaries are in. Exit status 1 if the claim is refuted. What is written comes from private data: it stays in the
house, but for the figures that the privacy card prints.
"""

import dataclasses
import json
import sys
from pathlib import Path

import pandas as pd
import tyro

from jaxcxr.config import Experiment, load
from jaxcxr.console import run
from jaxcxr.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to audit, and how hard.

    Attributes:
        config: experiment whose cohort, clip norm and delta are used.
        out: folder for audit.json.
        canaries: films that are each inserted with a chance of one half.
        films: at most so many films of the training split.
        steps: length of the audited run.
        sample_rate: expected share of the films in a step.
        epsilon: claimed by the audited run; the smaller, the smaller the faults that refute it.
        seed: of the coins; the training's randomness comes from the operating system.
    """

    config: Path = Path("configs/demo.yaml")
    out: Path = Path("runs/audit")
    canaries: int = 500
    films: int = 2000
    steps: int = 60
    sample_rate: float = 0.1
    epsilon: float = 1.0
    seed: int = 0


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.canaries < 20 or arguments.steps < 2 or not 0 < arguments.sample_rate < 1:
        raise InputError("expected at least 20 --canaries and 2 --steps, and a --sample-rate between 0 and 1")
    import numpy as np

    from jaxcxr.audit.run import Films, audit, canary_films, subject_of, tiny_model
    from jaxcxr.experiment import store_of
    from jaxcxr.privacy import accounting
    from jaxcxr.privacy.mechanism import Mechanism
    from jaxcxr.privacy.noise import new_secret

    config = load(Experiment, arguments.config)
    if config.privacy is None:
        raise InputError(f"{arguments.config}: trains without privacy; there is no claim to audit")
    split = store_of(config).split("train", config.data.findings)
    chosen = np.arange(min(arguments.films, len(split)))
    cohort = Films(split.read(chosen), split.labels[chosen])
    rng = np.random.default_rng(arguments.seed)
    n = len(cohort) + arguments.canaries
    batch = max(1, round(arguments.sample_rate * n))
    delta = min(config.privacy.delta, 0.5 / n)
    try:
        noise = accounting.calibrated_noise(arguments.epsilon, delta, batch / n, arguments.steps)
    except ValueError as error:
        raise InputError(f"--epsilon {arguments.epsilon:g}: {error}") from error
    mechanism = Mechanism(n, batch, config.privacy.l2_clip_norm, noise, arguments.epsilon, delta)
    loss, params = tiny_model((split.size, split.size), len(config.data.findings))
    subject = subject_of(mechanism, loss, params, new_secret(None))
    found = audit(subject, cohort, canary_films(arguments.canaries, cohort, rng), arguments.steps, rng)
    described = found.describe()
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "audit.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    print(pd.DataFrame(described["attacks"]).to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    for check in found.checks:
        print(f"{'FAILED' if check.failed else 'passed'}: {check.name} (p = {check.p_value:.2g}; {check.found})")
    verdict = "THE CLAIM IS REFUTED" if found.accused else "nothing found against the claim"
    print(
        f"epsilon claimed {found.epsilon_claimed:.4g}, at least {found.epsilon_lower:.4g} with {found.confidence:.0%} "
        f"confidence (delta {delta:g}, {found.canaries} canaries): {verdict}"
    )
    if found.accused:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
