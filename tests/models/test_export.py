from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxcxr.models.export import run_stablehlo, to_stablehlo


@jax.jit
def brightness(params: jax.Array, images: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(jnp.mean(images.astype(jnp.float32), (1, 2))[:, None] * params)


def test_an_exported_model_names_no_file_of_the_machine_that_exported_it(tmp_path: Path) -> None:
    """Not even where its function was traced before, with locations."""
    params, images = jnp.ones(2) / 255, np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8)
    expected = brightness(params, images)
    limit = jax.config.jax_traceback_in_locations_limit  # pyright: ignore[reportAttributeAccessIssue]
    content = to_stablehlo(brightness, params, 8)
    for place in (str(Path(__file__).parent), "test_export", ".py", "<module>"):
        assert place.encode() not in content
    assert jax.config.jax_traceback_in_locations_limit == limit  # pyright: ignore[reportAttributeAccessIssue]
    (tmp_path / "model.stablehlo").write_bytes(content)
    np.testing.assert_allclose(run_stablehlo(tmp_path / "model.stablehlo", images), expected, rtol=1e-6)
