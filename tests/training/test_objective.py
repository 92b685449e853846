import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from jaxcxr.training.objective import positive_rates, positive_weights, weighted_cross_entropy

LOGITS = np.asarray([0.0, 2.0, -1.0, 3.0], np.float32)
WEIGHTS = np.asarray([9.0, 1.0, 4.0, 0.5], np.float32)
NAN = np.nan


def loss(logits: np.ndarray, labels: list[float], weights: np.ndarray = WEIGHTS) -> float:
    return float(
        weighted_cross_entropy(jnp.asarray(logits), jnp.asarray(labels, jnp.float32), jnp.asarray(weights))
    )


def test_loss_by_hand() -> None:
    # the sigmoids of the logits are 1/2, 0.880797, 0.268941 and 0.952574
    terms = [-9 * np.log(0.5), -np.log(1 - 0.880797), -4 * np.log(0.268941), -np.log(1 - 0.952574)]
    assert loss(LOGITS, [1, 0, 1, 0]) == pytest.approx(sum(terms) / 4, rel=1e-5)


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1]])
def test_only_positives_are_weighted(labels: list[float]) -> None:
    p, y = expit(LOGITS.astype(float)), np.asarray(labels)
    expected = np.mean(np.where(y == 1, -WEIGHTS * np.log(p), -np.log(1 - p)))
    assert loss(LOGITS, labels) == pytest.approx(expected, rel=1e-5)


def test_unknown_labels_add_zero_and_keep_the_divisor() -> None:
    known = loss(LOGITS[:2], [1, 0], WEIGHTS[:2])
    assert loss(LOGITS, [1, 0, NAN, NAN]) == pytest.approx(known * 2 / 4, rel=1e-6)
    assert loss(LOGITS, [NAN] * 4) == 0.0


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_unknown_labels_have_no_gradient(scale: float) -> None:
    labels = jnp.asarray([1, NAN, 0, NAN], jnp.float32)
    gradient = jax.grad(weighted_cross_entropy)(jnp.asarray(LOGITS * scale), labels, jnp.asarray(WEIGHTS))
    p = expit(LOGITS.astype(float) * scale)
    np.testing.assert_allclose(gradient, [-9 * (1 - p[0]) / 4, 0, p[2] / 4, 0], rtol=1e-5, atol=1e-12)
    assert gradient[1] == gradient[3] == 0


def test_sure_and_wrong_stays_finite() -> None:
    assert loss(
        np.asarray([-200.0, 200.0], np.float32), [1, 0], np.asarray([3.0, 3.0], np.float32)
    ) == pytest.approx((600 + 200) / 2)
    assert loss(
        np.asarray([200.0, -200.0], np.float32), [1, 0], np.asarray([3.0, 3.0], np.float32)
    ) == pytest.approx(0, abs=1e-6)


def test_positive_weights_are_negatives_to_a_positive() -> None:
    weights = positive_weights(np.asarray([0.5, 0.1, 0.8]))
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, [1.0, 9.0, 0.25], rtol=1e-6)


def test_positive_rates_count_known_labels_only() -> None:
    labels = np.asarray([[1, 0, 1], [0, NAN, 0], [0, 1, NAN], [0, NAN, NAN]], np.float32)
    rates = positive_rates(labels, ("a", "b", "c"))
    assert rates.dtype == np.float32
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.5])


@pytest.mark.parametrize(
    "column",
    [[0, 0, 0], [1, 1, 1], [NAN, NAN, NAN], [0, NAN, 0]],
    ids=["negative", "positive", "unknown", "mixed"],
)
def test_a_finding_without_both_labels_is_named(column: list[float]) -> None:
    labels = np.asarray([[1, 0, 1], column, [0, 1, 1]], np.float32).T
    with pytest.raises(ValueError, match="congestion"):
        positive_rates(labels, ("cardiomegaly", "congestion", "effusion"))


def test_names_must_match_the_columns() -> None:
    with pytest.raises(ValueError, match=r"zip|shorter|longer"):
        positive_rates(np.asarray([[1, 0], [0, 1]], np.float32), ("cardiomegaly",))
