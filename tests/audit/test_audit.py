"""Six planted faults are caught, and the right implementation is not accused, on a model that trains in a second."""

import dataclasses
import functools
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr import accounting
from jaxcxr.audit.canaries import Audit, Images, Subject, audit, canary_images, subject_of
from jaxcxr.audit.targets import logistic_regression
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.records.provenance import training_code_fingerprint

SIDE, FINDINGS, COHORT, CANARIES, STEPS, BATCH = 16, 3, 300, 160, 40, 46
DELTA, EPSILON = 1e-4, 1.0
NOISE = accounting.calibrated_noise(EPSILON, DELTA, BATCH / (COHORT + CANARIES), STEPS)
MECHANISM = Mechanism(COHORT + CANARIES, BATCH, 0.5, NOISE, EPSILON, DELTA)


def audited(seed: int, fault: Callable[[Subject], Subject] = lambda subject: subject) -> Audit:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (COHORT, FINDINGS)).astype(np.float32)
    brightness = rng.normal(110 + 40 * labels[:, :1, None], 25, (COHORT, SIDE, SIDE))
    cohort = Images(np.clip(brightness, 0, 255).astype(np.uint8), labels)
    secret = seed.to_bytes(32, "little")
    subject = dataclasses.replace(
        right(),
        draw=lambda step, n: MECHANISM.draw(secret, step, n),
        key=lambda step: jnp.asarray(MECHANISM.noise_key(secret, step)),
    )
    return audit(fault(subject), cohort, canary_images(CANARIES, cohort, rng), STEPS, rng)


@functools.cache
def right() -> Subject:
    """The package's own implementation, compiled once for all tests."""
    return subject_of(MECHANISM, logistic_regression((SIDE, SIDE), FINDINGS), bytes(32))


def scaled_noise(factor: float) -> Callable[[Subject], Subject]:
    """Noise other than claimed, as a wrong constant would make it."""

    def fault(subject: Subject) -> Subject:
        m = dataclasses.replace(MECHANISM, noise_multiplier=factor * NOISE)
        return dataclasses.replace(subject, release=lambda total, key, _: m.release(total, key))

    return fault


def by_drawn_size(subject: Subject) -> Subject:
    """The noised sum divided by what was drawn instead of by what was declared."""
    return dataclasses.replace(
        subject,
        release=lambda total, key, drawn: jax.tree.map(
            lambda g: g * BATCH / max(drawn, 1), MECHANISM.release(total, key)
        ),
    )


def clipped_after_averaging(subject: Subject) -> Subject:
    """The batch's gradient clipped as one, so that one image may fill it."""

    def clipped_sum(params: object, examples: object, is_real: jax.Array) -> object:
        each = jax.vmap(jax.grad(subject.loss), in_axes=(None, 0))(params, examples)
        total = jax.tree.map(lambda g: jnp.tensordot(is_real.astype(jnp.float32), g, axes=(0, 0)), each)
        mean = jax.tree.map(lambda g: g / BATCH, total)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(mean)))
        short = jnp.minimum(1.0, MECHANISM.l2_clip_norm / jnp.maximum(norm, 1e-9))
        return MECHANISM.counted(jax.tree.map(lambda g: g * BATCH * short, mean), True)

    return dataclasses.replace(subject, clipped_sum=clipped_sum)


def one_key(subject: Subject) -> Subject:
    return dataclasses.replace(subject, key=lambda _: subject.key(0))


def one_image_always(subject: Subject) -> Subject:
    return dataclasses.replace(subject, draw=lambda step, n: np.union1d(subject.draw(step, n), [COHORT]))


def canaries_always(subject: Subject) -> Subject:
    """Images after the cohort's are the canaries that are in."""

    def draw(step: int, n: int) -> np.ndarray:
        drawn = subject.draw(step, n)
        return np.concatenate([drawn[drawn < COHORT], np.arange(COHORT, n)])

    return dataclasses.replace(subject, draw=draw)


def fixed_size(subject: Subject) -> Subject:
    """Batches of one size, as a shuffling loader makes them."""

    def draw(step: int, n: int) -> np.ndarray:
        return np.sort(np.random.default_rng(step).choice(n, round(MECHANISM.sample_rate * n), replace=False))

    return dataclasses.replace(subject, draw=draw)


SCALE, SUM, KEYS, RATE, DRAWS = (
    "noise has the claimed deviation in every step",
    "released sum is the clipped sum",
    "noise of one step tells nothing of another's",
    "every image is sampled with the claimed rate",
    "images are sampled independently",
)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (scaled_noise(1e-9), SCALE),
        (by_drawn_size, SCALE),
        (clipped_after_averaging, SUM),
        (scaled_noise(0.1), SCALE),
        (one_key, KEYS),
        (one_image_always, RATE),
        (canaries_always, RATE),
        (fixed_size, DRAWS),
    ],
    ids=[
        "no noise",
        "by drawn size",
        "clipped after averaging",
        "a tenth of the noise",
        "same key",
        "one always",
        "always in",
        "fixed size",
    ],
)
def test_a_planted_fault_is_caught(fault: Callable[[Subject], Subject], check: str) -> None:
    found = audited(1, fault)
    assert found.refuted
    assert check in {c.name for c in found.checks if c.failed}


@pytest.mark.parametrize(
    ("fault", "attack"),
    [
        (scaled_noise(1e-9), "white-box alignment"),
        (scaled_noise(0.1), "white-box alignment"),
        (one_key, "white-box variation"),
        (canaries_always, "white-box alignment"),
    ],
    ids=["no noise", "a tenth of the noise", "same key", "always in"],
)
def test_the_attack_alone_refutes_the_claim_where_a_fault_helps_it(
    fault: Callable[[Subject], Subject], attack: str
) -> None:
    found = audited(2, fault)
    assert found.attacks[attack] > found.epsilon_claimed
    assert found.curves[attack].auroc > 0.8


@pytest.mark.parametrize("seed", range(6))
def test_the_right_implementation_is_not_accused(seed: int) -> None:
    found = audited(seed)
    assert not found.refuted
    assert found.epsilon_lower <= found.epsilon_claimed <= EPSILON
    assert found.epsilon_claimed > 0.99 * EPSILON


def test_what_is_written_is_json_and_says_both_figures() -> None:
    described = audited(0).describe("logistic regression", "ab12" * 16, "c0de" * 16)
    again = json.loads(json.dumps(described))
    assert again["card"]["canaries"] == CANARIES
    assert again["card"]["accused"] is False
    assert (again["card"]["noise"], again["card"]["unit"], again["card"]["steps"]) == (
        "gaussian",
        "image",
        STEPS,
    )
    assert again["card"]["training_code"] == training_code_fingerprint()
    assert {row["attack"] for row in again["attacks"]} == {
        "white-box alignment",
        "white-box variation",
        "black-box loss",
    }
    assert len(again["checks"]) == 5
    assert again["data"] == "ab12" * 16
    # The exact figure follows from a sample rate and a delta that follow from the number of images there are.
    assert again["card"]["epsilon_claimed"] == EPSILON != audited(0).epsilon_claimed
