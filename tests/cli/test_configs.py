"""Configurations as package data: found from any folder, listed, shown, copied; every field documented."""

import dataclasses
import fnmatch
import tomllib
from pathlib import Path

import pytest

from jaxcxr.cli import configs, configuration_reference
from jaxcxr.config import Experiment
from jaxcxr.config_files import PACKAGED, config_file, load
from jaxcxr.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml"))


def test_the_package_has_the_clones_configurations_and_a_wheel_takes_them_all() -> None:
    assert len(FILES) > 20
    for name in FILES:
        assert (PACKAGED / name).read_bytes() == (ROOT / "configs" / name).read_bytes()
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "jaxcxr"
    ]
    packed = [pattern for pattern in patterns if pattern.startswith("configs")]
    for name in FILES:  # setuptools' patterns do not cross a slash
        pattern = f"configs/{Path(name).parent}/*.yaml".replace("/./", "/")
        assert any(fnmatch.fnmatchcase(pattern, one) for one in packed), name


def test_a_packaged_configuration_is_found_anywhere_unless_there_is_an_own_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    demo = load(Experiment, "configs/demo.yaml")
    assert demo.privacy is not None
    assert config_file("configs/demo.yaml") == PACKAGED / "demo.yaml"
    (tmp_path / "configs").mkdir()
    own = (PACKAGED / "demo.yaml").read_text().replace("epsilon: 7.89", "epsilon: 1.5")
    (tmp_path / "configs" / "demo.yaml").write_text(own)
    found = load(Experiment, "configs/demo.yaml").privacy
    assert found is not None
    assert found.epsilon == 1.5
    with pytest.raises(InputError, match=r"configs/dmeo\.yaml: no such .*`jaxcxr configs` lists"):
        load(Experiment, "configs/dmeo.yaml")
    with pytest.raises(InputError, match=r"^demo\.yaml: no such configuration file$"):
        load(Experiment, "demo.yaml")


def test_configs_lists_shows_and_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    configs.main([])
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [f"configs/{name}" for name in FILES]
    assert all(len(line.split(maxsplit=1)[1]) > 10 for line in listed)
    configs.main(["demo.yaml"])
    assert capsys.readouterr().out == (PACKAGED / "demo.yaml").read_text()
    configs.main(["configs/your_data.yaml", "study/private.yaml", "--to", "mine"])
    assert (tmp_path / "mine" / "study" / "private.yaml").read_bytes() == (
        PACKAGED / "study/private.yaml"
    ).read_bytes()
    with pytest.raises(InputError, match=r"mine/your_data\.yaml: exists already; nothing was copied"):
        configs.main(["demo.yaml", "your_data.yaml", "--to", "mine"])
    assert not (tmp_path / "mine" / "demo.yaml").exists()
    with pytest.raises(InputError, match=r"nothing\.yaml: no configuration of the package"):
        configs.main(["nothing.yaml"])


def test_every_field_is_documented_with_type_range_default_and_meaning() -> None:
    documented = {
        field.name: field
        for section, cls, _ in configuration_reference.SECTIONS
        for field in configuration_reference.fields_of(section, cls)
    }
    for section, cls, _ in configuration_reference.SECTIONS:
        assert {f"{section}.{field.name}" for field in dataclasses.fields(cls)} <= documented.keys()
    assert all(len(field.meaning) > 5 for field in documented.values())
    assert documented["privacy.epsilon"].kind == "number > 0, <= 500"
    assert documented["model.width"].kind == "whole number >= 32, multiple of 32"
    assert documented["training.steps"].kind == "whole number > 0 or null"
    assert documented["evaluation.resample"].kind == "patient | image"
    assert documented["evaluation.fixed_thresholds"].kind == "list of number >= 0, <= 1 or null"
    assert documented["privacy.unit"].default == "image"
    assert documented["model.remat"].default == "false"
    assert documented["data.store"].default == "required"
    assert {name.split(".")[0] for name in documented} == {f.name for f in dataclasses.fields(Experiment)}


def test_the_page_of_all_fields_is_current() -> None:
    """`jaxcxr configs --reference docs/configuration.md` writes it anew."""
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == configuration_reference.as_markdown()


def test_help_config_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    from jaxcxr.cli import pretrain, sweep, train

    for command in (train, sweep, pretrain):
        with pytest.raises(SystemExit) as stop:
            command.main(["--help-config"])
        assert stop.value.code == 0
        assert "privacy.delta: number >= 1e-15, < 1 [required]" in capsys.readouterr().out
