import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcxr.config import Experiment, SyntheticConfig
from jaxcxr.config_files import dump, load, override, validate
from jaxcxr.data.sources.dicom import DicomSource
from jaxcxr.data.sources.mimic import MimicOptions
from jaxcxr.data.sources.published import Options
from jaxcxr.data.sources.table import TableSource
from jaxcxr.data.sources.uka import UkaOptions
from jaxcxr.data.sources.vindr import VindrOptions
from jaxcxr.errors import InputError
from jaxcxr.models.heads import HeadMapping
from jaxcxr.report.card.statement import Statement
from jaxcxr.workflows.recipes import Rule
from jaxcxr.workflows.study import Study
from jaxcxr.workflows.tuning import Grid

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
OTHER_KINDS: dict[str, type] = {
    "tuning": Grid,
    "ablations": Study,
    "choices": Study,
    "heads": Study,
    "demo_heads": Study,
    "correlated": Study,
    "correlated_choices": Study,
    "mimic_to_uka": HeadMapping,
    "prepare_chexpert": Options,
    "prepare_dicom": DicomSource,
    "prepare_example": TableSource,
    "prepare_mimic": MimicOptions,
    "prepare_nih": Options,
    "prepare_padchest": Options,
    "prepare_rsna": Options,
    "prepare_real_private": TableSource,
    "prepare_real_public": TableSource,
    "prepare_uka": UkaOptions,
    "prepare_vindr": VindrOptions,
    "recommended": Rule,
    "recommended_whole": Rule,
    "release": Statement,
}
"""What the configurations are that are no experiments."""
REMOVED = type("Removed", (), {"__repr__": lambda _: "removed"})()


def values_of(name: str = "demo.yaml") -> dict[str, Any]:
    return yaml.safe_load((ROOT / "configs" / name).read_text())


STEPS = values_of()["training"]["steps"]
SQUARES = {"training.optimizer": "least_squares", "training.scope": "head", "training.decay": "none"}


def write(tmp_path: Path, values: Any) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def with_changes(changes: dict[str, Any]) -> dict[str, Any]:
    """The demo's values with some `section.key`s replaced or removed."""
    values = copy.deepcopy(values_of())
    for place, value in changes.items():
        *sections, key = place.split(".")
        target = values
        for section in sections:
            target = target[section]
        if value is REMOVED:
            del target[key]
        else:
            target[key] = value
    return values


def refusal(path: Path, cls: type = Experiment) -> str:
    """What follows the file's name in the one line that refuses it."""
    with pytest.raises(InputError) as caught:
        load(cls, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "pydantic" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_we_ship_loads(path: Path) -> None:
    kind = OTHER_KINDS.get(path.stem, Experiment)
    config = load(kind, path)
    if not isinstance(config, Experiment):
        return
    config.check()
    assert isinstance(config.data.findings, tuple)
    if config.model.pretraining is not None:
        start = load(Experiment, ROOT / config.model.pretraining)
        assert (start.data.size, start.data.findings) == (config.data.size, config.data.findings)
        assert (start.model.width, start.model.activation) == (config.model.width, config.model.activation)
        assert start.privacy is None


def test_the_demo_is_read_as_it_is_written() -> None:
    config = load(Experiment, ROOT / "configs" / "demo.yaml")
    written = values_of()
    for section, fields in written.items():
        for key, value in fields.items():
            if key == "synthetic":
                assert config.data.synthetic == SyntheticConfig(**value)
            else:
                found = getattr(getattr(config, section), key)
                assert found == (tuple(value) if isinstance(value, list) else value), f"{section}.{key}"


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"surprise": 1}, "surprise: unknown key"),
        ({"privacy.epsilonn": 1.0}, "privacy.epsilonn: unknown key"),
        ({"data.synthetic.noise": 1.0}, "data.synthetic.noise: unknown key"),
        ({"data.store": REMOVED}, "data.store: missing"),
        ({"training": REMOVED}, "training: missing"),
        ({"training.learning_rate": "fast"}, "training.learning_rate: expected a valid number, found 'fast'"),
        ({"training.steps": 30.5}, "training.steps: expected a valid integer, found 30.5"),
        ({"training.steps": 30.0}, "training.steps: expected a valid integer, found 30.0"),
        ({"training.steps": True}, "training.steps: expected a valid integer, found True"),
        ({"training.steps": "30"}, "training.steps: expected a valid integer, found '30'"),
        ({"data.size": [64]}, "data.size: expected a valid integer, found [64]"),
        ({"data.store": 5}, "data.store: expected a valid string, found 5"),
        ({"data.findings": "cardiomegaly"}, "data.findings: expected a valid array, found 'cardiomegaly'"),
        ({"data.findings": ["cardiomegaly", 1]}, "data.findings.1: expected a valid string, found 1"),
        ({"privacy.allow_large_delta": 1}, "privacy.allow_large_delta: expected a valid boolean, found 1"),
        ({"privacy": [1]}, "privacy: expected an object, found [1]"),
        ({"model.activation": "gelu"}, "model.activation: expected 'mish' or 'relu', found 'gelu'"),
        ({"model.dtype": None}, "model.dtype: expected 'float32' or 'bfloat16', found None"),
        ({"model.width": 65}, "model.width: expected a multiple of 32, found 65"),
        ({"data.size": 15}, "data.size: expected greater than or equal to 16, found 15"),
        ({"privacy.epsilon": -1.0}, "privacy.epsilon: expected greater than 0, found -1.0"),
        ({"privacy.epsilon": 0}, "privacy.epsilon: expected greater than 0, found 0"),
        ({"privacy.epsilon": float("inf")}, "privacy.epsilon: expected a finite number, found inf"),
        ({"privacy.epsilon": float("nan")}, "privacy.epsilon: expected a finite number, found nan"),
        ({"privacy.delta": 1.0}, "privacy.delta: expected less than 1, found 1.0"),
        ({"privacy.noise_multiplier": 0.0}, "privacy.noise_multiplier: expected greater than 0, found 0.0"),
        (
            {"privacy.l2_clip_norm": 1e-18},
            "privacy.l2_clip_norm: expected greater than or equal to 0.000001, found 1e-18",
        ),
        (
            {"privacy.stability": 1e-12},
            "privacy.stability: expected greater than or equal to 0.000001, found 1e-12",
        ),
        (
            {"training.expected_batch_size": 0},
            "training.expected_batch_size: expected greater than 0, found 0",
        ),
        (
            {"training.warmup_steps": -1},
            "training.warmup_steps: expected greater than or equal to 0, found -1",
        ),
        (
            {"training.positive_rates": [0.1] * 7 + [1.0]},
            "training.positive_rates.7: expected less than 1, found 1.0",
        ),
    ],
    ids=str,
)
def test_a_wrong_field_is_named_with_what_was_found(
    tmp_path: Path, changes: dict[str, Any], start: str
) -> None:
    assert refusal(write(tmp_path, with_changes(changes))) == start or refusal(
        tmp_path / "experiment.yaml"
    ).startswith(f"{start} (")


@pytest.mark.parametrize(
    ("key", "text", "hint"),
    [
        ("privacy.delta", "1e-6", "1.0e-6"),
        ("privacy.delta", "2.5e-6", None),
        ("privacy.delta", "25E-7", "2.5e-6"),
        ("privacy.epsilon", "'8'", "8.0"),
        ("training.learning_rate", "5e2", "500.0"),
        ("training.learning_rate", "1e20", "1.0e+20"),
        ("training.steps", "3e2", "300"),
        ("training.steps", "'30'", "30"),
    ],
)
def test_a_number_that_yaml_reads_as_text_is_refused_with_the_way_to_write_it(
    tmp_path: Path, key: str, text: str, hint: str | None
) -> None:
    path = tmp_path / "experiment.yaml"
    section, field = key.split(".")

    def written(value: str) -> Path:
        values = with_changes({key: "PLACE"})
        path.write_text(yaml.safe_dump(values).replace(f"{field}: PLACE", f"{field}: {value}"))
        return path

    if hint is not None:
        message = refusal(written(text))
        assert message.startswith(f"{key}: expected a valid ")
        assert message.endswith(
            f" (YAML reads {text.strip(chr(39))} as text here; write {hint}, without quotes)"
        )
    config = load(
        Experiment, written(hint or text)
    )  # what the hint says is accepted, as the number that was meant
    assert getattr(getattr(config, section), field) == float(text.strip("'"))


@pytest.mark.parametrize(
    ("key", "text"),
    [("training.steps", "'30.5'"), ("privacy.delta", "'nan'"), ("privacy.allow_large_delta", "'1'")],
)
def test_a_text_that_is_no_number_of_the_kind_gets_no_hint(tmp_path: Path, key: str, text: str) -> None:
    message = refusal(write(tmp_path, with_changes({key: yaml.safe_load(text)})))
    assert message.startswith(f"{key}: expected a valid ")
    assert message.endswith(f"found {text}")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "data: 1\nprivacy: {a: 1}\n# again\nprivacy: {b: 2}\n",
            "line 4: key 'privacy' stands on line 2 already; expected it once",
        ),
        (
            "training:\n  steps: 1\n  'steps': 2\n",
            "line 3: key 'steps' stands on line 2 already; expected it once",
        ),
        ("data: {size: 64, size: 64}\n", "line 1: key 'size' stands on line 1 already; expected it once"),
        (
            "data:\n- {a: 1}\n- {a: 1, b: [{c: 1,\n   c: 2}]}\n",
            "line 4: key 'c' stands on line 3 already; expected it once",
        ),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    assert refusal(path) == complaint


def test_a_mapping_may_override_what_it_merges(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    values = values_of()
    del values["data"]["synthetic"]
    merged = "{<<: {domain: private, n_train: 5, n_valid: 1, n_test: 1}, n_train: 7}"
    path.write_text(yaml.safe_dump(values).replace("data:\n", f"data:\n  synthetic: {merged}\n"))
    config = load(Experiment, path)
    assert config.data.synthetic == SyntheticConfig("private", n_train=7, n_valid=1, n_test=1)


def test_every_wrong_field_is_named(tmp_path: Path) -> None:
    message = refusal(
        write(tmp_path, with_changes({"privacy.delta": 2.0, "model.widht": 64, "data.size": REMOVED}))
    )
    assert {part.split(":")[0] for part in message.split("; ")} == {
        "privacy.delta",
        "model.widht",
        "data.size",
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training.epochs": 2.0}, ("training:", f"exactly one of steps ({STEPS}) and epochs (2.0)")),
        ({"training.steps": REMOVED}, ("training:", "exactly one of steps (None) and epochs (None)")),
        ({"training.positive_rates": [0.1, 0.2]}, ("training.positive_rates:", "8", "found 2")),
        ({"training.positive_rates": None}, ("training:", "positive_rates", "'public'")),
        ({"training.class_weights": "paper"}, ("training:", "positive_rates", "'public'")),
        ({"training.class_weights": "none"}, ("training:", "positive_rates", "'public'")),
        ({"training.augmentation": "flip_rotate"}, ("training.augmentation:", "private", "'none'")),
        (
            {"training.augmentation_multiplicity": 2},
            ("training.augmentation_multiplicity:", "2 equal copies", "augmentation"),
        ),
        (
            {"privacy": None, "training.optimizer": "adam_bc"},
            ("training.optimizer:", "adam_bc", "privacy is null"),
        ),
        ({"training.optimizer": "least_squares"}, ("training.scope:", "'least_squares'", "'head'", "'all'")),
        (SQUARES | {"training.averaging": "tail"}, ("training.averaging:", "'least_squares'", "'tail'")),
        (SQUARES | {"training.decay": "cosine"}, ("training.decay:", "'least_squares'", "'cosine'")),
        (SQUARES | {"training.warmup_steps": 3}, ("training.warmup_steps:", "'least_squares'", "found 3")),
        (
            SQUARES | {"privacy.clipping": "per_layer"},
            ("privacy.clipping:", "'least_squares'", "'flat' or 'automatic'"),
        ),
        ({"data.findings": []}, ("data.findings:", "at least one", "[]")),
        ({"data.findings": ["a"] * 8}, ("data.findings:", "distinct")),
    ],
    ids=str,
)
def test_fields_at_odds_are_named(tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    message = refusal(write(tmp_path, with_changes(changes)))
    assert message.startswith(words[0])
    assert all(word in message for word in words)


@pytest.mark.parametrize(
    "changes",
    [
        {"training.steps": REMOVED, "training.epochs": 2.5},
        {"training.class_weights": "paper", "training.positive_rates": REMOVED},
        {"privacy": None, "training.augmentation": "flip_rotate"},
        {"privacy": REMOVED},
        {"training.augmentation": "flip_rotate", "training.augmentation_multiplicity": 4},
        {"privacy.epsilon": 8},
        {"data.synthetic": None},
        SQUARES,
        SQUARES | {"privacy": None},
    ],
    ids=str,
)
def test_what_fits_together_is_accepted(tmp_path: Path, changes: dict[str, Any]) -> None:
    load(Experiment, write(tmp_path, with_changes(changes)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.yaml") == "no such configuration file"
    assert refusal(tmp_path) == "no such configuration file"


@pytest.mark.parametrize(
    "content", [b"data: [1, 2", b"a: b: c", b"\xff\xfe\x00a", b"a: \x00", b"a: !!python/object:os.system x"]
)
def test_what_is_no_yaml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_bytes(content)
    assert refusal(path).startswith("not valid YAML (")


@pytest.mark.parametrize(
    ("content", "found"), [("", "NoneType"), ("- 1", "list"), ("7", "int"), ("text", "str")]
)
def test_what_is_no_mapping_is_refused(tmp_path: Path, content: str, found: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(content)
    assert refusal(path) == f"expected a mapping of keys to values, found {found}"


def test_flags_replace_fields_and_nothing_else() -> None:
    config = load(Experiment, ROOT / "configs" / "demo.yaml")
    assert override(config, [], prog="train.py") == config
    changed = override(
        config,
        ["--privacy.epsilon", "1.06", "--training.microbatch-size", "16", "--model.weights", "None"],
        prog="train.py",
    )
    expected = dataclasses.replace(
        config,
        privacy=dataclasses.replace(config.privacy, epsilon=1.06),  # type: ignore[type-var]
        training=dataclasses.replace(config.training, microbatch_size=16),
        model=dataclasses.replace(config.model, weights=None),
    )
    assert changed == expected


def test_flags_work_without_privacy() -> None:
    config = load(Experiment, ROOT / "configs" / "demo_nonprivate.yaml")
    changed = override(config, ["--training.seed", "3"], prog="train.py")
    assert changed == dataclasses.replace(config, training=dataclasses.replace(config.training, seed=3))
    assert changed.privacy is None


@pytest.mark.parametrize(
    ("flags", "start"),
    [
        (["--privacy.epsilon", "-1"], "command line: privacy.epsilon: expected greater than 0"),
        (["--privacy.epsilon", "inf"], "command line: privacy.epsilon: expected a finite number"),
        (["--model.width", "33"], "command line: model.width: expected a multiple of 32"),
        (
            ["--training.epochs", "2"],
            f"command line: training: set exactly one of steps ({STEPS}) and epochs (2.0)",
        ),
        (["--training.augmentation", "flip_rotate"], "command line: training.augmentation: "),
    ],
)
def test_flags_are_checked_as_a_file_is(flags: list[str], start: str) -> None:
    config = load(Experiment, ROOT / "configs" / "demo.yaml")
    with pytest.raises(InputError) as caught:
        override(config, flags, prog="train.py")
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize(
    "flags", [["--privacy.epsilonn", "1"], ["--training.steps", "many"], ["--model.activation", "gelu"]]
)
def test_a_flag_that_cannot_be_read_ends_with_code_2(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        override(load(Experiment, ROOT / "configs" / "demo.yaml"), flags, prog="train.py")
    assert caught.value.code == 2
    streams = capsys.readouterr()
    assert flags[0] in streams.out + streams.err


positive = st.floats(1e-12, 1e12)
rate = st.floats(1e-12, 0.999)
count = st.integers(1, 10**9)
name = st.text(min_size=1, max_size=8) | st.sampled_from(
    ["1e-6", "null", "yes", "0x10", "2020-01-01", "~", "a: b", "#", "'"]
)


@st.composite
def experiments(draw: st.DrawFn) -> dict[str, Any]:
    """Values of valid experiments; the dataclasses are built in the test, as the runtime type checks draw random numbers of their own."""
    findings = draw(st.lists(name, min_size=1, max_size=3, unique=True))
    rates = draw(st.none() | st.lists(rate, min_size=len(findings), max_size=len(findings)))
    seed = st.integers(-(2**40), 2**40)
    domain = st.sampled_from(["private", "public"])
    synthetic = st.fixed_dictionaries(
        {"domain": domain, "n_train": count, "n_valid": count, "n_test": count, "seed": seed}
    )
    private = st.fixed_dictionaries(
        {"epsilon": st.floats(1e-6, 500.0), "delta": rate, "l2_clip_norm": st.floats(1e-6, 1e12)},
        optional={"dataset_size": count, "noise_multiplier": positive, "allow_large_delta": st.booleans()},
    )
    training = st.fixed_dictionaries(
        {
            "expected_batch_size": count,
            "microbatch_size": count,
            "learning_rate": positive,
            "seed": st.none() | seed,
        }
    )
    length = st.fixed_dictionaries({"steps": count}) | st.fixed_dictionaries({"epochs": positive})
    weighing = {} if rates is None else {"class_weights": "public", "positive_rates": rates}
    return {
        "data": {
            "store": draw(name),
            "size": draw(st.integers(16, 4096)),
            "findings": findings,
            "synthetic": draw(st.none() | synthetic),
        },
        "model": {"activation": draw(st.sampled_from(["mish", "relu"])), "weights": draw(st.none() | name)},
        "training": draw(training) | draw(length) | weighing,
        "privacy": draw(st.none() | private),
        "evaluation": {"redraws": draw(count)},
    }


@settings(max_examples=30, deadline=None)
@given(values=experiments())
def test_what_is_dumped_loads_as_the_same(
    values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = validate(Experiment, values, source="drawn")
    assert list(config.data.findings) == values["data"]["findings"]
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    dump(config, path)
    assert load(Experiment, path) == config


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if p.stem not in OTHER_KINDS], ids=lambda path: path.stem
)
def test_a_dump_of_what_we_ship_loads_as_the_same_and_spells_out_defaults(path: Path, tmp_path: Path) -> None:
    config = load(Experiment, path)
    dump(config, tmp_path / "config.yaml")
    assert load(Experiment, tmp_path / "config.yaml") == config
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    for section in dataclasses.fields(config):
        value = getattr(config, section.name)
        assert (written[section.name] is None) == (value is None)
        if value is not None:
            assert set(written[section.name]) == {field.name for field in dataclasses.fields(value)}


def test_a_configuration_cannot_be_changed() -> None:
    config = load(Experiment, ROOT / "configs" / "demo.yaml")
    parts = [
        config,
        config.data,
        config.data.synthetic,
        config.model,
        config.training,
        config.privacy,
        config.evaluation,
    ]
    for part in parts:
        assert part is not None
        for field in dataclasses.fields(part):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(part, field.name, None)
    assert hash(config) == hash(load(Experiment, ROOT / "configs" / "demo.yaml")), (
        "something inside can be changed"
    )


def test_digest_fields_name_every_field_with_its_section() -> None:
    fields = load(Experiment, ROOT / "configs" / "demo.yaml").digest_fields()
    assert fields["privacy.epsilon"] == 7.89
    assert fields["training.steps"] == STEPS
    assert not [
        key
        for key in load(Experiment, ROOT / "configs" / "demo_nonprivate.yaml").digest_fields()
        if key.startswith("privacy.")
    ]


FORMER = {
    "training.views": ("training.augmentation_multiplicity", 2),
    "model.prediction_views": ("model.test_time_augmentation", "mirrored"),
    "privacy.films_per_patient": ("privacy.images_per_patient", 3),
}


@pytest.mark.parametrize("former", FORMER)
def test_former_names_of_fields_are_read_and_said(
    former: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, value = FORMER[former]
    (section, field), config = name.split("."), load(Experiment, "configs/paper_private.yaml")
    config = dataclasses.replace(
        config,
        training=dataclasses.replace(
            config.training, augmentation="flip_rotate", augmentation_multiplicity=4
        ),
    )
    values = dataclasses.asdict(config)
    values[section] = {former.split(".")[1] if key == field else key: v for key, v in values[section].items()}
    values[section][former.split(".")[1]] = value
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    capsys.readouterr()
    read = load(Experiment, tmp_path / "old.yaml")
    assert getattr(getattr(read, section), field) == value
    assert capsys.readouterr().err == f"{tmp_path / 'old.yaml'}: {former} is called {name} now\n"
    changed = override(config, [f"--{former.replace('_', '-')}", str(value)], "train")
    assert changed == override(config, [f"--{former}={value}"], "train") == read
    assert f"--{former} is called --{name} now" in capsys.readouterr().err
    load(Experiment, tmp_path / "old.yaml", say=None)
    assert capsys.readouterr().err == ""
    values[section][field] = value
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    with pytest.raises(InputError, match=rf"{former} is the former name of {name}; found both"):
        load(Experiment, tmp_path / "both.yaml")
