import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from jaxcxr.records import provenance
from jaxcxr.records.binding import Binding, altered, bound_secret, differences
from tests.test_imports import SOURCES, imports_of, loaded_with

SECRET = bytes(range(32))
BINDING = Binding(
    configuration={
        "privacy.l2_clip_norm": 1.5,
        "privacy.dataset_size": None,
        "training.microbatch_size": 4,
        "run.steps": 6,
    },
    starting_weights="aa",
    data="bb",
    code={"jaxcxr": "0.1.0", "sources": "cc"},
    libraries={"jax": "0.10.2", "numpy": "2.4.6"},
    platform={"device": "cpu", "jax_enable_x64": "False"},
)
OTHERS = {
    "configuration": ({**BINDING.configuration, "privacy.l2_clip_norm": 2.0}, r"configuration \(privacy\.l2_clip_norm: 1\.5 there, 2\.0 now\)"),
    "starting_weights": ("ab", "^the starting weights$"),
    "data": ("bc", "^the data$"),
    "code": ({"jaxcxr": "0.1.0", "sources": "cd"}, r"the code \(other sources\)"),
    "libraries": ({"jax": "0.11", "numpy": "2.4.6"}, r"library versions \(jax: 0\.10\.2 there, 0\.11 now\)"),
    "platform": ({"device": "gpu", "jax_enable_x64": "False"}, r"the platform \(device: cpu there, gpu now\)"),
}  # fmt: skip


def test_every_part_has_a_case() -> None:
    assert set(OTHERS) == {field.name for field in dataclasses.fields(Binding)}


@pytest.mark.parametrize("part", OTHERS)
def test_every_part_changes_the_digest_the_keys_and_is_named(part: str) -> None:
    value, phrase = OTHERS[part]
    other = dataclasses.replace(BINDING, **{part: value})
    assert bound_secret(SECRET, other.digest) != bound_secret(SECRET, BINDING.digest)
    (told,) = differences(BINDING.as_json(), other.as_json())
    import re

    assert re.search(phrase, told), told


def test_the_digest_does_not_depend_on_order_or_on_having_been_written() -> None:
    turned = dataclasses.replace(BINDING, configuration=dict(reversed([*BINDING.configuration.items()])))
    assert turned.digest == BINDING.digest
    written = json.loads(json.dumps(BINDING.as_json()))
    assert written.pop("digest") == BINDING.digest == Binding(**written).digest
    assert differences(BINDING.as_json(), turned.as_json()) == []
    assert differences(BINDING.as_json() | {"digest": "00"}, BINDING.as_json()) == [
        "the digest of its own record, which was edited"
    ]


def test_the_bound_secret_tells_no_secret_and_needs_a_digest() -> None:
    assert len(bound_secret(SECRET, "00")) == 32
    assert bound_secret(SECRET, "00") != bound_secret(bytes(32), "00")
    with pytest.raises(ValueError, match="a run without a binding must not draw anything"):
        bound_secret(SECRET, "")


def test_changes_of_a_run_folder_are_found() -> None:
    fields = {
        "privacy.l2_clip_norm": 1.5,
        "privacy.dataset_size": None,
        "training.microbatch_size": None,
        "evaluation.seed": 3,
    }
    fields["model.weights"] = "a folder"
    recorded = BINDING.as_json()
    facts = {"steps": 6, "store_fingerprint": "bb", "initial_weights_sha256": "aa", "made_with": {}}
    assert altered(None, "", fields, facts) == []  # a run of an earlier version
    assert altered(recorded, BINDING.digest, fields, facts) == []
    assert altered(recorded, BINDING.digest, fields | {"privacy.dataset_size": 8000}, facts) == [
        "privacy.dataset_size"
    ]
    assert altered(recorded, BINDING.digest, fields | {"training.microbatch_size": 8}, facts) == [
        "training.microbatch_size"
    ]
    for name, other in {"steps": 7, "store_fingerprint": "bc", "initial_weights_sha256": "ab"}.items():
        assert altered(recorded, BINDING.digest, fields, facts | {name: other}) == [f"run.{name}"]
    deleted = ["run.initial_weights_sha256", "run.steps", "run.store_fingerprint"]
    assert altered(recorded, BINDING.digest, fields, {}) == deleted
    assert altered(recorded, BINDING.digest, {"model.weights": None}, {"store_fingerprint": "bb"}) == [
        "run.steps"
    ]
    edited = recorded | {"configuration": recorded["configuration"] | {"privacy.dataset_size": 8000}}
    for record, in_ledger in (
        (edited, BINDING.digest),
        (recorded, ""),
        (recorded, "00"),
        (None, BINDING.digest),
        ({}, BINDING.digest),
        ({"digest": BINDING.digest}, BINDING.digest),
    ):
        assert altered(record, in_ledger, fields, facts) == ["binding"]


DECIDE_NOTHING = {
    *(
        "jaxcxr.config",
        "jaxcxr.config_files",
        "jaxcxr.errors",
        "jaxcxr.atomic",
        "jaxcxr.run_folder",
        "jaxcxr.yaml_files",
    ),  # a configuration acts through its values, which are bound
    *("jaxcxr.digests", "jaxcxr.signals"),  # refuse what is damaged, and end a run between two steps
    *(
        "jaxcxr.launch.__init__",
        "jaxcxr.launch.jobs",
        "jaxcxr.launch.board",
    ),  # say which process makes the features
    *(
        "jaxcxr.data.__init__",
        "jaxcxr.data.manifest",
        "jaxcxr.data.duplicates",
        "jaxcxr.data.close_pairs",
        "jaxcxr.data.csv_dialect",
    ),  # the data themselves are bound
    *(
        "jaxcxr.data.decoded",
        "jaxcxr.data.dicom",
        "jaxcxr.data.dicom_elements",
        "jaxcxr.data.dicom_tables",
        "jaxcxr.data.images",
        "jaxcxr.data.pictures",
        "jaxcxr.data.synthetic.__init__",
        "jaxcxr.data.synthetic.anatomy",
        "jaxcxr.data.synthetic.cohort",
        "jaxcxr.data.synthetic.pathology",
        "jaxcxr.data.synthetic.render",
    ),  # draw public images, which act through the directions that they choose, and these are bound
}


def test_the_fingerprint_covers_all_code_that_training_runs() -> None:
    """A module that training comes to import is bound, or named here with the reason why it decides nothing."""
    reached, waiting = set(), {module for module in SOURCES if module.startswith("jaxcxr.training")}
    while waiting:
        reached |= waiting
        waiting = {
            m for r in waiting for name in imports_of(r, SOURCES[r]) for m in loaded_with(name, SOURCES)
        } - reached
    bound = {name.removesuffix(".py").replace("/", ".") for name in provenance.TRAINS}
    outside = {m for m in reached if not any(f"{m}.".startswith(f"jaxcxr.{part}.") for part in bound)}
    assert outside - {"jaxcxr.__init__"} <= DECIDE_NOTHING


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("accounting/calibration.py", True),
        ("privacy/noise.py", True),
        ("records/binding.py", True),
        ("models/layers.py", True),
        ("training/step.py", True),
        ("data/augment.py", True),
        ("data/store.py", True),
        ("report/card/card.py", False),
        ("config.py", False),
    ],
)
def test_the_fingerprint_changes_with_the_code_that_trains_only(
    file: str, changes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(provenance.__file__).parents[1]
    copy = shutil.copytree(
        package, tmp_path / "jaxcxr", ignore=shutil.ignore_patterns("weights", "__pycache__")
    )
    monkeypatch.setattr(provenance, "_package", lambda: copy)
    before = provenance.training_code_fingerprint(), provenance.code_fingerprint()
    with (copy / file).open("a") as source:
        source.write("# changed\n")
    assert (provenance.training_code_fingerprint() != before[0]) is changes
    assert provenance.code_fingerprint() != before[1]
