"""How far sums in floating point can be moved by more than one unit's contribution, and that exact ones do not depend on devices.

python tests/privacy/rounding.py batches        released sums with and without one unit, data made for the purpose, batches up to 16,384
python tests/privacy/rounding.py search         two microbatches, one unit apart; films changed step by step to make it larger
python tests/privacy/rounding.py invariance     SHA-256 of both grades' sums on 1, 2, 4 and 8 devices, in two orders, and in two processes

One unit more moves later units to other places and microbatches, and changes how each microbatch is rounded. That change is given
in units of n 2^-24 clip norms for a microbatch of n units. If all microbatches of a batch of B units change alike, in one direction,
the batch does by as many units of B 2^-24, of which `privacy.rounding` keeps `FACTOR` free.
"""

import argparse
import dataclasses
import hashlib
import os
import subprocess
import sys
from functools import partial
from typing import Any

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={os.environ.get('DEVICES', '8')}"
)

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcxr.models.logistic import LogisticRegression
from jaxcxr.models.resnet9 import ResNet9
from jaxcxr.privacy import clipping, exact_sum
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.privacy.rounding import FACTOR
from jaxcxr.training import objective
from jaxcxr.training.step import Step, make_step

FINDINGS, SIDE = 4, 16
UNIT_ROUNDING = 2.0**-24


def logistic_regression(mechanism: Mechanism) -> tuple[objective.Gradients, Any]:
    """What a step of a logistic regression on the pixels sums, by its definition, and weights of zero."""
    model = LogisticRegression(FINDINGS)
    params = model.init(jax.random.key(0), jnp.zeros((SIDE, SIDE), jnp.uint8))
    loss = objective.unit_loss(model, np.ones(FINDINGS, np.float32))
    by_definition = dataclasses.replace(mechanism, method="vmap")
    return objective.Gradients(loss, by_definition), jax.tree.map(jnp.zeros_like, params)


def rows(images: np.ndarray, labels: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """A microbatch of `size` units, the last ones padding."""
    missing = size - len(images)
    real = np.arange(size) < len(images)
    return {
        "image": np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)])[:, None],
        "label": np.concatenate([labels, np.zeros((missing, labels.shape[1]), np.float32)])[:, None],
        "is_image": real[:, None],
        "is_real": real,
    }


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def total(
    step: Step, mechanism: Mechanism, params: Any, images: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """The exact sum of a batch, in float64."""
    sums, size = step.start(params), step.microbatch_size
    for first in range(0, len(images), size):
        piece = rows(images[first : first + size], labels[first : first + size], size)
        sums = step.accumulate(params, sums, step.place(piece))
    exact = step.collect(sums)[0]
    high, low = (flat(words) for words in (exact.high, exact.low))
    return (high * 2.0**exact_sum.LOW_BITS + low) * mechanism.step_size(exact.high)


def batches() -> None:
    """A logistic regression, whose gradients are all alike: the real compiled step with and without the first unit."""
    rng = np.random.default_rng(0)
    for n in (512, 4096, 16384):
        mechanism = Mechanism(10**6, n, 1.0, 1.0, 1.0, 1e-6)
        gradients, params = logistic_regression(mechanism)
        base = rng.integers(0, 256, (SIDE, SIDE))
        images = np.clip(base + rng.normal(0, 40, (n + 1, SIDE, SIDE)), 0, 255).astype(np.uint8)
        labels = (rng.random((n + 1, FINDINGS)) < 0.2).astype(np.float32)
        for size in (16, 256):
            step = make_step(gradients, optax.identity(), n, size, jax.devices()[:1])
            placed = step.replicate(params)

            whole, without, own = (
                total(step, mechanism, placed, images[some], labels[some])
                for some in (slice(0, n + 1), slice(1, n + 1), slice(0, 1))
            )
            rounding, moved = np.linalg.norm(whole - without - own), np.linalg.norm(whole - without)
            print(
                f"batch {n}, microbatch {size}: the unit moves the sum by {moved:.7f} of the clip norm (its own part "
                f"{np.linalg.norm(own):.7f}), rounding {rounding:.2e} = {rounding / (n * UNIT_ROUNDING):.3f} units; "
                f"kept free {mechanism.rounding_allowance:.2e} = {FACTOR:g}",
                flush=True,
            )


def search(width: int, side: int, units: int, trials: int) -> None:
    """The network: from films that are all alike, changed at random as long as the rounding grows."""
    model, clip = ResNet9(FINDINGS, width=width), 1.0
    params = model.init(jax.random.key(0), jnp.zeros((side, side), jnp.uint8))
    loss = objective.unit_loss(model, np.ones(FINDINGS, np.float32))

    @jax.jit
    def sums(batch: Any) -> Any:
        units = (batch["image"], batch["label"], batch["is_image"])
        return clipping.clipped_sum(loss, params, units, batch["is_real"], clip)[0]

    rng = np.random.default_rng(0)

    def alone(batch: dict[str, np.ndarray], unit: int) -> np.ndarray:
        return flat(sums(batch | {"is_real": np.arange(units) == unit}))

    def rounding(images: np.ndarray, labels: np.ndarray) -> float:
        """Of two microbatches of `units` among `units` + 1 images, the second moved on by one: their difference beyond that of the
        two units that only one of them holds.
        """
        one, other = rows(images[:-1], labels[:-1], units), rows(images[1:], labels[1:], units)
        changed = flat(sums(one)) - flat(sums(other)) - (alone(one, 0) - alone(other, units - 1))
        return float(np.linalg.norm(changed)) / (units * UNIT_ROUNDING * clip)

    def some(alike: int) -> tuple[np.ndarray, np.ndarray]:
        """Films of `alike` kinds in turn."""
        films, given = (
            rng.integers(0, 256, (alike, side, side)).astype(np.uint8),
            rng.integers(0, 2, (alike, FINDINGS)),
        )
        kind = np.arange(units + 1) % alike
        return films[kind], given[kind].astype(np.float32)

    print(f"width {width}, {side} px, microbatch of {units} units", flush=True)
    found = {}
    for alike in (1, 2, 4, units + 1):
        tried = [some(alike) for _ in range(4)]
        found[alike] = max(((rounding(*batch), batch) for batch in tried), key=lambda pair: pair[0])
        print(f"  {alike} kinds of films in turn: {found[alike][0]:.3f}", flush=True)
    best, (images, labels) = max(found.values(), key=lambda pair: pair[0])
    for _ in range(trials):
        changed, given = images.copy(), labels.copy()
        unit = rng.choice([0, units, int(rng.integers(units + 1))])
        if rng.random() < 0.3:
            given[unit] = rng.choice([0.0, 1.0, np.nan], FINDINGS)
        else:
            changed[unit] = np.clip(
                changed[unit] + rng.normal(0, 10.0 ** rng.uniform(-0.5, 2), (side, side)), 0, 255
            )
        now = rounding(changed, given)
        if now > best:
            best, images, labels = now, changed, given
    print(f"  after {trials} changes: {best:.3f} units; {FACTOR:g} are kept free", flush=True)


def digest_of_sums(hardened: bool, devices: list[Any], backwards: bool) -> str:
    """SHA-256 of the exact sum of a batch in microbatches of 4 units per device."""
    coordinates = (SIDE * SIDE + 1) * FINDINGS
    mechanism = Mechanism(10**4, 64, 1.0, 1.0, 1.0, 1e-6, coordinates if hardened else None)
    gradients, params = logistic_regression(mechanism)
    step = make_step(gradients, optax.identity(), 64, 4, devices)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, SIDE, SIDE)).astype(np.uint8)
    labels = rng.integers(0, 2, (64, FINDINGS)).astype(np.float32)
    placed = step.replicate(params)
    sums, size = step.start(placed), step.microbatch_size
    own = size // jax.process_count()
    starts = list(range(0, 64, size))
    for first in starts[::-1] if backwards else starts:
        mine = slice(first + jax.process_index() * own, first + (jax.process_index() + 1) * own)
        sums = step.accumulate(placed, sums, step.place(rows(images[mine], labels[mine], own)))
    exact = jax.tree.map(np.asarray, step.collect(sums)[0])
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(exact))).hexdigest()[:16]


def invariance() -> None:
    for hardened in (False, True):
        name = "hardened" if hardened else "exact"
        found = {
            (n, backwards): digest_of_sums(hardened, jax.devices()[:n], backwards)
            for n in (1, 2, 4, 8)
            for backwards in (False, True)
        }
        print(
            f"{name}: {len(set(found.values()))} different sums on 1, 2, 4, 8 devices in two orders: {set(found.values())}"
        )
    port = 20000 + os.getpid() % 20000
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "process"], env=os.environ | {"DEVICES": "1", "PLACE": f"{i} {port}"}
        )
        for i in (0, 1)
    ]
    if any(process.wait() for process in processes):
        raise SystemExit("a process failed")


def process() -> None:
    index, port = os.environ["PLACE"].split()
    jax.distributed.initialize(f"localhost:{port}", 2, int(index))
    for hardened in (False, True):
        found = digest_of_sums(hardened, jax.devices(), False)
        print(f"process {index} of 2, {'hardened' if hardened else 'exact'}: {found}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["batches", "search", "invariance", "process"])
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--units", type=int, default=16)
    a = parser.parse_args()
    searched = partial(search, a.width, a.side, a.units, a.trials)
    {"batches": batches, "search": searched, "invariance": invariance, "process": process}[a.what]()
