import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxcxr.privacy import noise

SECRET = bytes(range(32))


def draw(
    purpose: str = "noise", step: int = 0, stddev: float = 1.0, size: int = 200_001, secret: bytes = SECRET
) -> np.ndarray:
    tree = noise.gaussian_noise(
        jnp.asarray(noise.derive_key(secret, purpose, step)), {"a": jnp.zeros(size)}, stddev
    )
    return np.asarray(tree["a"])


def test_draws_are_normal_with_the_asked_deviation() -> None:
    z = draw(stddev=3.0)
    assert stats.kstest(z / 3.0, "norm").pvalue > 1e-4
    assert stats.chi2(len(z) - 1).cdf((z**2).sum() / 9.0) == pytest.approx(0.5, abs=0.4999)
    assert abs(z.mean()) < 5 * 3.0 / np.sqrt(len(z))


def test_neighbouring_coordinates_are_independent() -> None:
    z = draw()
    for lag in (
        1,
        2,
        len(z) // 2,
        len(z) // 2 + 1,
    ):  # the two draws of a Box-Muller pair lie half the array apart
        assert abs(np.corrcoef(z[:-lag], z[lag:])[0, 1]) * np.sqrt(len(z) - lag) < 5
        assert abs(np.corrcoef(z[:-lag] ** 2, z[lag:] ** 2)[0, 1]) * np.sqrt(len(z) - lag) < 5


def test_tails_are_complete() -> None:
    zero = jnp.zeros(1, jnp.uint32)
    farthest = float(noise.box_muller(zero, zero, zero)[0, 0])
    assert 9.3 < farthest < 9.7
    near = float(noise.box_muller(jnp.uint32(1)[None], zero, zero)[0, 0])
    assert near == pytest.approx(np.sqrt(2 * 32 * np.log(2)), rel=1e-3)
    most = jnp.full(1, 2**32 - 1, jnp.uint32)
    assert np.isfinite(np.asarray(noise.box_muller(most, most, most))).all()


def test_leaves_steps_purposes_and_secrets_are_independent() -> None:
    tree = noise.gaussian_noise(
        jnp.asarray(noise.derive_key(SECRET, "noise", 0)), {"a": jnp.zeros(5000), "b": jnp.zeros(5000)}, 1.0
    )
    others = [
        tree["b"],
        draw(step=1, size=5000),
        draw("augmentation", size=5000),
        draw(secret=bytes(32), size=5000),
    ]
    for other in others:
        assert abs(np.corrcoef(tree["a"], other)[0, 1]) * np.sqrt(5000) < 5


@pytest.mark.parametrize("word", range(4))
def test_every_word_of_the_key_matters(word: int) -> None:
    key = noise.derive_key(SECRET, "noise", 0)
    other = key.copy()
    other[word] ^= 1
    a, b = (np.asarray(noise.random_words(jnp.asarray(k), (1000,))) for k in (key, other))
    assert (a == b).mean() < 0.01


def test_the_same_step_draws_the_same_noise_again() -> None:
    assert np.array_equal(draw(step=3, size=100), draw(step=3, size=100))


def test_secrets_come_from_the_operating_system_unless_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({noise.new_secret(None) for _ in range(20)}) == 20
    assert noise.new_secret(5) == noise.new_secret(5) != noise.new_secret(6)
    asked = []
    monkeypatch.setattr(noise.secrets, "token_bytes", lambda n: asked.append(n) or bytes(n))
    noise.new_secret(None)
    assert asked == [32]


def test_leaves_share_one_stream_and_no_word_of_it() -> None:
    key = jnp.asarray(noise.derive_key(SECRET, "noise", 0))
    tree = noise.gaussian_noise(key, {"a": jnp.zeros(3), "b": jnp.zeros((2, 2)), "c": jnp.zeros(())}, 1.0)
    assert tree["b"].shape == (2, 2)
    assert tree["c"].shape == ()
    whole = np.concatenate([np.ravel(tree[name]) for name in "abc"])
    np.testing.assert_array_equal(whole, draw(size=8))
    assert len(set(whole.tolist())) == 8
