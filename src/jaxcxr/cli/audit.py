"""Attack the private training, check every part of it against what the accountant assumes, or attack a
release.

Examples:
  jaxcxr audit --out runs/demo                             by the run's own configuration, for its card
  jaxcxr audit --config configs/demo.yaml --out runs/audit
  jaxcxr audit --model network --out runs/demo             the network itself, narrower; takes minutes
  jaxcxr audit --release runs/demo/release                 the released file, with the hospital's own images
  jaxcxr audit --sweep runs/sweep-demo --launcher local -j 2    every private run of a sweep, two at a time

A logistic regression, or the network, is trained on the cohort's images by the training's own loop, feed,
step, clipping, noise, optimiser and ledger, three times with secrets of their own; about half of the canaries
are in. Writes audit.json (the finding), membership.csv and membership.png and .svg (what attacks that
threshold a score achieve). With --release nothing is trained: trained and held-out patients are told apart by
the released weights, and release_attack.json is written beside the release. Exit status 1 if the claim is
refuted. What is written comes from private data: it stays in the hospital, but for the figures that the
privacy card prints.
"""

import dataclasses
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from jaxcxr.cli.console import progress_bar, say
from jaxcxr.cli.launching import Launch, as_part, launch, part_of
from jaxcxr.config import Experiment
from jaxcxr.config_files import load
from jaxcxr.errors import InputError
from jaxcxr.run_folder import (
    AUDIT,
    CONFIG,
    JOBS,
    evaluated_budgets,
    has_facts,
    is_evaluated,
    is_private,
    newest_checkpoint,
    read_facts,
)

if TYPE_CHECKING:
    from jaxcxr.audit.audit import Audit
    from jaxcxr.audit.subject import Size

WRITES = "audit.json, membership.csv, membership.png, membership.svg"


@dataclasses.dataclass(frozen=True)
class Arguments(Launch):
    """What to audit, and how hard.

    Attributes:
        config: experiment to audit; that of the run in `out` unless given, and the demo's with neither.
        out: folder for what is written; runs/audit unless given.
        release: release folder to attack instead of a training.
        sweep: sweep folder; audits each of its private runs by the run's own configuration.
        store: of the released model's cohort, if the release does not lie in its run folder.
        model: what is trained: `logistic` regression on the pixels, or the `network`.
        width: of the network, a multiple of 32.
        side: pixels to which images are shrunk.
        canaries: units that are each inserted with a chance of one half; 400, or 100 for the network, unless
            given.
        films: at most so many images of the training split; 600, or 200 for the network, unless given.
        steps: length of each audited run; 64, or 24 for the network, unless given.
        sample_rate: probability of a unit in a step; that of the run unless given, but at least 8 units.
        epsilon: claimed by the audited run; that of the run unless given.
        pairs: of patients, with `release`, at most.
        seed: of coins and pairs; the training's randomness comes from the operating system.
    """

    config: Path | None = None
    out: Path | None = None
    release: Path | None = None
    sweep: Path | None = None
    store: Path | None = None
    model: Literal["logistic", "network"] = "logistic"
    width: int = 32
    side: int = 32
    canaries: int | None = None
    films: int | None = None
    steps: int | None = None
    sample_rate: float | None = None
    epsilon: float | None = None
    pairs: int = 5000
    seed: int = 0

    def size(self) -> "Size":
        """How large the audit is."""
        from jaxcxr.audit.subject import Size

        small = self.model == "network"
        return Size(
            model=self.model,
            width=self.width,
            side=self.side,
            images=_given(self.films, 200 if small else 600),
            canaries=_given(self.canaries, 100 if small else 400),
            steps=_given(self.steps, 24 if small else 64),
            sample_rate=self.sample_rate,
            epsilon=self.epsilon,
        )


def _given(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _refuse_impossible(arguments: Arguments) -> None:
    size = arguments.size()
    rate = 0.5 if size.sample_rate is None else size.sample_rate
    if size.canaries < 20 or size.steps < 8 or size.images < 10 or not 0 < rate < 1:
        raise InputError(
            "expected at least 20 --canaries, 8 --steps and 10 of the --films, and a --sample-rate between 0 "
            f"and 1; found {size.canaries}, {size.steps}, {size.images} and {rate:g}"
        )
    if size.epsilon is not None and not (size.epsilon > 0 and math.isfinite(size.epsilon)):
        raise InputError(f"--epsilon: expected a positive number, found {size.epsilon:g}")
    if size.side < 16:
        raise InputError(f"--side: expected at least 16 pixels, found {size.side}")
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
    if arguments.config is None and arguments.out is not None:
        _require_finished(arguments.out)
    return path, config


def _require_finished(run: Path) -> None:
    """An audit stands on the card of a run, which is of a finished one."""
    if not has_facts(run):
        raise InputError(f"{run}: the run has not begun (no run.json); train it before it is audited")
    done, planned = newest_checkpoint(run), read_facts(run).get("steps")
    if done is None:
        raise InputError(
            f"{run}: has no checkpoint, so that there is no model that an audit could stand for; train it, "
            "or put checkpoints/ back"
        )
    if planned is None or (done < planned and not is_evaluated(run)):
        raise InputError(
            f"{run}: is unfinished ({done} of {planned} steps); finish it with train --resume before it is "
            "audited"
        )


def _require_cohort_of(out: Path, fingerprint: str) -> None:
    """A run's folder takes the audit of its own cohort only: the privacy card shows what lies there."""
    if has_facts(out) and read_facts(out).get("store_fingerprint") != fingerprint:
        raise InputError(f"{out}: holds a run on another cohort than the configuration's; name another --out")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    argv, part = part_of(argv)
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    arguments.check()
    _refuse_impossible(arguments)
    if arguments.release is not None:
        _attack_release(arguments.release, arguments)
        return
    refuted = _audit(arguments) if arguments.sweep is None else _audit_sweep(arguments, argv, part)
    if refuted:
        sys.exit(1)


def _audit_sweep(arguments: Arguments, argv: Sequence[str], part: str | None) -> bool:
    """Audit the private runs of a sweep, or the one that a launcher names; whether a claim is refuted."""
    assert arguments.sweep is not None
    if arguments.config is not None or arguments.out is not None:
        raise InputError("--sweep: audits every run by its own configuration; leave --config and --out away")
    runs = {run.name: run for run in evaluated_budgets(arguments.sweep) if is_private(run)}
    if not runs:
        raise InputError(f"{arguments.sweep}: holds no finished private run; expected the folder of a sweep")
    each = {name: dataclasses.replace(arguments, sweep=None, out=run) for name, run in runs.items()}
    if part is not None:
        with as_part():
            return _audit(each[part])
    if arguments.launcher == "none":
        refuted = [_audit(one) for one in each.values()]  # every one, whatever is found in the first
        return any(refuted)
    launch(arguments, ["audit", *argv], list(each), arguments.sweep / JOBS / "audit")
    return False


def _audit(arguments: Arguments) -> bool:
    """Audit one run or configuration; whether the claim is refuted."""
    path, config = _config_of(arguments)
    out = arguments.out or Path("runs/audit")
    say(f"auditing {path}: loading JAX")
    import numpy as np

    from jaxcxr.audit.audit import audit, steps_of
    from jaxcxr.audit.subject import subject_of
    from jaxcxr.records.provenance import code_fingerprint
    from jaxcxr.training.cpu_allocator import keep_memory
    from jaxcxr.workflows.experiment import store_of

    keep_memory()
    store = store_of(config)
    _require_cohort_of(out, store.fingerprint)
    split = store.split("train", config.data.findings)
    if len(split) == 0:
        raise InputError(f"{store.path}: has no training images; there is nothing to audit")
    rng = np.random.default_rng(arguments.seed)
    subject = subject_of(config, split, arguments.size(), rng)
    with (
        tempfile.TemporaryDirectory() as base,
        progress_bar(steps_of(subject), "step", "compiling, then training") as bar,
    ):
        found = audit(subject, Path(base), rng, progress=bar.update)
    out.mkdir(parents=True, exist_ok=True)
    described = found.describe(store.fingerprint, code_fingerprint())
    _write(out, found, described)
    print(f"{out}: {WRITES}")
    print(
        f"{path}: {subject.model}, {len(subject.cohort)} images, {found.runs} runs with secrets of their own "
        f"of {found.steps} steps each, {len(subject.canaries)} canaries, sample rate "
        f"{found.claim.sample_rate:.4g}, noise multiplier {found.claim.noise_multiplier:.4g}"
    )
    _tell(found)
    return found.refuted


def _write(out: Path, found: "Audit", described: Any) -> None:
    """The finding, and the curves of the attacks beside the limit that the claim sets them."""
    import numpy as np
    import pandas as pd

    from jaxcxr.accounting.attack_bounds import trade_off
    from jaxcxr.digests import write_json
    from jaxcxr.report.figures.attack_figures import trade_off_figure

    write_json(out / AUDIT, described)
    rates = np.concatenate([[0.0], np.geomspace(1 / found.subject.n_units, 1, 100)])
    limit = f"limit at epsilon {found.epsilon_claimed:.3g}"
    curves = {limit: (rates, trade_off([found.claim], found.delta, rates))}
    of_scores = {name: curve for name, curve in found.curves.items() if "order" not in name}
    curves |= {
        name: (curve.false_positive_rate, curve.true_positive_rate) for name, curve in of_scores.items()
    }
    bands = {name: curve.band() for name, curve in of_scores.items()}
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


def _tell(found: "Audit") -> None:
    from jaxcxr.audit.attacks import CONFIDENCE
    from jaxcxr.audit.checks import LEVEL

    for attack in found.attacks:
        proved = (
            f"epsilon is at least {attack.epsilon_lower:.4g}" if attack.epsilon_lower else "nothing proved"
        )
        curve = found.curves.get(attack.name)
        print(f"{attack.name}: {proved}{f', AUROC {curve.auroc:.3f}' if curve else ''}")
    for check in found.checks:
        verdict = "FAILED" if check.failed else "passed"
        print(f"{verdict}: {check.name} (p = {check.p_value:.2g}; {check.found})")
    verdict = "THE CLAIM IS REFUTED" if found.refuted else "nothing found against the claim"
    print(
        f"epsilon claimed {found.epsilon_claimed:.4g}, at least {found.epsilon_lower:.4g} with "
        f"{CONFIDENCE:.0%} confidence (delta {found.delta:g}); right code fails one of the "
        f"{len(found.checks)} checks with a probability of {LEVEL:.1%} at most: {verdict}"
    )


def _attack_release(folder: Path, arguments: Arguments) -> None:
    """Attack a release with the images of its cohort."""
    say(f"{folder}: loading the released model")
    import numpy as np

    from jaxcxr import accounting
    from jaxcxr.atomic import write_json
    from jaxcxr.audit.released import attack_release
    from jaxcxr.data.store import open_store
    from jaxcxr.inference import load_model
    from jaxcxr.release.check import check_registered, store_of_run
    from jaxcxr.release.contents import CARD_JSON
    from jaxcxr.report.card.card_schema import read_card

    if not (folder / CARD_JSON).is_file():
        raise InputError(f"{folder}: is no release ({CARD_JSON} is missing); expected what release built")
    card, path = read_card(folder / CARD_JSON), arguments.store or store_of_run(folder.resolve().parent)
    if path is None:
        raise InputError(f"{folder}: the store of its cohort is not known; name it by --store")
    if wrong := check_registered(folder, path).wrong:
        raise InputError(f"{folder}: is no release of the cohort in {path}: {'; '.join(wrong)}")
    store, model = open_store(path), load_model(folder)
    splits = store.split("train", model.findings), store.split("test", model.findings)
    delta, rng = card.claim.delta, np.random.default_rng(arguments.seed)
    found = attack_release(
        model.predict_prepared,
        splits,
        delta,
        rng,
        of_images=card.claim.unit == "image",
        most=arguments.pairs,
    )
    spent = [row.spending for row in card.mechanisms]
    claimed = accounting.epsilon_pld(spent, delta, "replace_one")
    written = dataclasses.asdict(found) | {
        "epsilon_claimed": claimed,
        "delta": delta,
        "split": card.split_origin,
    }
    out = folder.resolve().parent / "release_attack.json"
    write_json(out, written)
    proved = f"at least {found.epsilon_lower:.4g}" if found.epsilon_lower else "nothing proved"
    print(
        f"{folder}: of {found.pairs} pairs of a trained and a held-out patient the released weights tell "
        f"{found.right:.1%} apart (guessing: 50 %); epsilon of exchanging one "
        f"{_unit(card.claim.unit)}: {proved} with {found.confidence:.0%} confidence, {claimed:.4g} "
        f"claimed (delta {delta:g})"
    )
    if card.split_origin != "keyed_hash":
        print(f"the split of the cohort is {card.split_origin!r}: that it was random by patient is assumed")
    print(f"{out}: stays in the hospital")
    if found.epsilon_lower > claimed:
        sys.exit(1)


def _unit(unit: str) -> str:
    return "image" if unit == "image" else "patient"
