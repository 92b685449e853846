"""Predictions averaged over views of a film."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxcxr.models.test_time_augmentation import predictor

FILMS = np.random.default_rng(0).integers(0, 256, (3, 64, 64)).astype(np.uint8)


class Halves(nn.Module):
    """Logits that are means of the whole image, its left half (the patient's right) and its right half."""

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        gain = self.param("gain", nn.initializers.ones, ())
        grey, half = image.astype(jnp.float32) / 255.0 - 0.5, image.shape[1] // 2
        return gain * jnp.stack(
            [(grey * grey[0, 0]).mean(), grey[:, :half].mean() * 3, grey[:, half:].sum() / 100]
        )


def predicted(views: str, images: np.ndarray = FILMS) -> np.ndarray:
    network = Halves()
    params = network.init(jax.random.key(0), images[0])
    return np.asarray(jax.jit(predictor(network, views, (0, 2, 1)))(params, jnp.asarray(images)))  # type: ignore[arg-type]


def logits(images: np.ndarray) -> np.ndarray:
    network = Halves()
    params = network.init(jax.random.key(0), images[0])
    return np.stack([np.asarray(network.apply(params, jnp.asarray(image))) for image in images])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_one_view_is_the_network() -> None:
    np.testing.assert_allclose(predicted("one"), sigmoid(logits(FILMS)), rtol=1e-5)


def test_a_mirrored_image_has_its_sides_exchanged() -> None:
    expected = sigmoid((logits(FILMS) + logits(FILMS[:, :, ::-1])[:, [0, 2, 1]]) / 2)
    np.testing.assert_allclose(predicted("mirrored"), expected, rtol=1e-5)
    assert (
        np.abs(expected - sigmoid((logits(FILMS) + logits(FILMS[:, :, ::-1])) / 2)).max() > 1e-3
    )  # were they not


@pytest.mark.parametrize("views", ["mirrored", "mirrored_moved"])
def test_an_image_and_its_mirror_image_are_predicted_alike(views: str) -> None:
    np.testing.assert_allclose(
        predicted(views, FILMS[:, :, ::-1].copy()), predicted(views)[:, [0, 2, 1]], rtol=1e-4
    )


def test_moved_images_repeat_their_edge() -> None:
    images = np.zeros((1, 64, 64), np.uint8)
    images[0, 10, 20], images[0, 63, 40] = 255, 200
    wide = np.pad(images[0], 2, mode="edge")
    plain = [images[0], wide[:64, 2:66], wide[4:, 2:66], wide[2:66, :64], wide[2:66, 4:]]
    both = logits(np.stack(plain)), logits(np.stack([image[:, ::-1] for image in plain]))[:, [0, 2, 1]]
    np.testing.assert_allclose(
        predicted("mirrored_moved", images)[0], sigmoid(np.concatenate(both).mean(axis=0)), rtol=1e-5
    )


def test_sides_must_be_known() -> None:
    with pytest.raises(ValueError, match="other_side"):
        predictor(Halves(), "mirrored")
