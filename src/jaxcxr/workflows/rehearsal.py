"""A dry run: what an experiment would train on whom and what it would cost, and what is odd about it; nothing
is trained.
"""

import dataclasses
from collections.abc import Callable

from jaxcxr.config import Experiment
from jaxcxr.data.store import Store
from jaxcxr.records.declarations import AGAINST_RELEASE, COUNTED_RATES
from jaxcxr.training.plan import RunPlan, make_plan
from jaxcxr.training.step_time import StepTime, measure_step
from jaxcxr.training.weights import weights_folder
from jaxcxr.workflows.experiment import headline, of_patients, store_of
from jaxcxr.workflows.recipes import SMALL_BATCH


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """What a run would be.

    Attributes:
        facts: what is trained, on whom, at which cost: (name, sentence).
        warnings: what is likely to be a mistake, a sentence each.
    """

    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """For the screen, one fact or warning per line."""
        return [f"{name + ':':<11}{said}" for name, said in self.facts] + [
            f"{'WARNING:':<11}{said}" for said in self.warnings
        ]


def rehearse(config: Experiment, say: Callable[[str], None]) -> Rehearsal:
    """Plan the run and time a step of it; neither a run folder nor a private statistic is written.

    An embedded synthetic cohort is drawn into its store, if it is not there yet: the run would begin with it.

    Args:
        config: what would be run.
        say: told what is being done.

    Raises:
        InputError: whatever the run would refuse before its first step.
    """
    store = store_of(config, say)
    plan = make_plan(config, store)
    warnings = [*plan.remarks(), *_of_the_batch(plan), *_of_the_release(plan)]
    start, odd = _start(plan)
    say("compiling a step and timing it on blank images")
    time = measure_step(plan)
    facts = [
        ("trains", f"{_network(plan)}, {start}"),
        ("on", _cohort(plan, store)),
        ("steps", _steps(plan)),
        ("privacy", headline(plan)),
        *[("patients", said) for said in _patients(plan)],
        ("memory", _memory(plan, time)),
        ("time", _time(plan, time)),
    ]
    return Rehearsal(tuple(facts), (*warnings, *odd))


def _network(plan: RunPlan) -> str:
    model, scope = plan.config.model, plan.config.training.scope
    parts = "all parameters" if scope == "all" else f"{scope.replace('_', ' ')}"
    if model.network != "resnet9":
        further = "".join(f", {option}" for option in model.options)
        return f"{parts} of {model.network} ({model.dtype}{further})"
    return f"{parts} of the network of width {model.width} ({model.activation}, {model.dtype})"


def _start(plan: RunPlan) -> tuple[str, list[str]]:
    """What the run starts from, and what is odd about that."""
    model = plan.config.model
    if model.weights is None:
        odd = "model.weights is null: a private run from random weights learns little; start from public ones"
        return "from random weights", [odd] if plan.mechanism is not None else []
    if not weights_folder(model.weights).exists():
        made = model.pretraining or "nothing: model.pretraining is null, and the run would be refused"
        return f"from {model.weights}, which is not there and would first be made by {made}", []
    _ = plan.start  # refuses what the run would refuse
    return f"from {model.weights}", []


def _cohort(plan: RunPlan, store: Store) -> str:
    frame = plan.split.frame
    held_out = [
        f"{len(store.split(name)):,} {said}" for name, said in (("valid", "validation"), ("test", "test"))
    ]
    return (
        f"{len(frame):,} training images of {frame['patient_id'].nunique():,} patients in {store.path}, "
        f"{store.size} x {store.size} pixels; held out: {' and '.join(held_out)} images"
    )


def _steps(plan: RunPlan) -> str:
    training = plan.config.training
    drawn, units = plan.sample_rate * len(plan.units), "images" if _by_image(plan) else "patients"
    passes = plan.steps * plan.sample_rate
    return (
        f"{plan.steps:,} of {drawn:.4g} {units} each on average (sample rate {plan.sample_rate:.4g}, "
        f"{passes:.3g} passes over the cohort){_turns(plan)}; {training.optimizer}, "
        f"learning rate {training.learning_rate:.3g}"
    )


def _turns(plan: RunPlan) -> str:
    """Over how many steps noise is correlated."""
    bands = 1 if plan.mechanism is None else plan.mechanism.bands
    if bands == 1:
        return ""
    return f", from {bands} groups in turn; noise correlated over {bands} steps"


def _by_image(plan: RunPlan) -> bool:
    return plan.config.privacy is None or plan.config.privacy.unit == "image"


def _patients(plan: RunPlan) -> list[str]:
    """What the run costs patients with several images, for the operator."""
    told: list[str] = []
    of_patients(plan, told.append)
    return told


def _memory(plan: RunPlan, time: StepTime) -> str:
    units = "images" if _by_image(plan) else "patients"
    resident = f"{_bytes(time.resident_bytes)} for parameters, optimiser and sums"
    if time.microbatch_bytes is None:
        return f"{resident}; the device does not say what a step needs"
    return f"{_bytes(time.microbatch_bytes)} for a microbatch of {time.units} {units}, {resident}"


def _time(plan: RunPlan, time: StepTime) -> str:
    return (
        f"about {_seconds(plan.steps * time.step)} for {plan.steps:,} steps of {time.step:.2g} s "
        f"({time.microbatches} microbatches of {time.microbatch:.2g} s, noise and update "
        f"{time.update:.2g} s), after {time.compiling:.0f} s to compile or load; reading images, prediction "
        "and evaluation come on top"
    )


def _of_the_batch(plan: RunPlan) -> list[str]:
    m = plan.mechanism
    if m is None or m.expected_batch_size >= SMALL_BATCH:
        return []
    noise = m.noise_multiplier / m.expected_batch_size
    return [
        f"training.expected_batch_size {m.expected_batch_size}: in each step every weight's mean gradient "
        f"gets noise of {noise:.2g} times the clip norm; private training seldom learns from batches this "
        "small. More epochs (image passes) allow a larger batch at the same number of steps"
    ]


def _of_the_release(plan: RunPlan) -> list[str]:
    """Why a private run would not be for release, but for what the remarks on N say already."""
    training = plan.config.training
    if plan.mechanism is None:
        return []
    told = []
    if training.seed is not None:
        told.append("training.seed is set: whoever knows it can compute the noise; not for release")
    if training.class_weights == "paper":
        told.append(
            "training.class_weights 'paper' are exact statistics of the training labels; not for release"
        )
    if COUNTED_RATES in plan.counted:
        told.append(AGAINST_RELEASE[COUNTED_RATES])
    return told


def _bytes(number: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"


def _seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
