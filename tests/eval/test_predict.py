"""Predictions of held-out images from weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr.config import Experiment
from jaxcxr.data.findings import can_be_mirrored, mirror_permutation
from jaxcxr.data.store import Store
from jaxcxr.errors import InputError
from jaxcxr.eval.predict import predict_table
from jaxcxr.inference import Model
from jaxcxr.models.test_time_augmentation import predictor
from jaxcxr.training.plan import make_plan
from tests.conftest import changed
from tests.training.tiny import MAKE_NETWORK, tiny_network


@pytest.mark.parametrize("views", ["one", "mirrored"])
def test_a_row_a_held_out_image_with_its_own_labels_and_views(
    tiny_config: Experiment, tiny_store: Store, views: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcxr.eval.predict.PIECE", 3)  # the images are read in pieces, the last one smaller
    monkeypatch.setattr(MAKE_NETWORK, tiny_network)
    config = changed(tiny_config, "model", test_time_augmentation=views)
    network = tiny_network(config.data, config.model)
    params = network.init(jax.random.key(0), jnp.zeros((32, 32), jnp.uint8))
    table = predict_table(config, params, tiny_store)
    findings = config.data.findings
    assert can_be_mirrored(findings)
    held_out = tiny_store.manifest.query("split != 'train'")
    assert set(table["image_id"]) == set(held_out["image_id"])
    split = tiny_store.split("test", findings)
    rows = table.query("split == 'test'")
    np.testing.assert_array_equal(rows[[f"y_{finding}" for finding in findings]].to_numpy(), split.labels)
    expected = predictor(network, views, mirror_permutation(findings))(params, split.read_all())  # type: ignore[arg-type]
    found = rows[[f"p_{finding}" for finding in findings]].to_numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    alone = Model(findings, 32, network, params).predict_prepared(split.read_all())
    assert (np.abs(found - alone).max() < 1e-5) == (views == "one")


def test_a_side_without_the_other_is_refused_before_training(
    tiny_config: Experiment, tiny_store: Store
) -> None:
    config = changed(tiny_config, "model", test_time_augmentation="mirrored")
    config = changed(config, "data", findings=("atelectasis_left",))
    with pytest.raises(
        InputError, match=r"model\.test_time_augmentation 'mirrored': cannot flip images: 'atelectasis_left'"
    ):
        make_plan(config, tiny_store)
