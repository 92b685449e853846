import random

import pandas as pd
import pytest

from jaxcxr.config import Experiment
from jaxcxr.config_files import PACKAGED, load
from jaxcxr.release.identifiers import Identifiers
from jaxcxr.release.readings import folded, readings, squeezed
from tests.release.run_folder import MANIFEST
from tests.release.spellings import SPELLINGS

FOUND = Identifiers(MANIFEST)
PAPER = [
    "cardiomegaly",
    "congestion",
    "pleural_effusion_right",
    "pneumonic_infiltrates_left",
    "atelectasis_right",
    "No",
    "Finding",
]
PROSE = """The model looks for cardiomegaly, congestion and effusions in frontal chest radiographs of adults (18 to 99
years). Contact: +49 241 80 12345, privacy@hospital.example, https://hospital.example/models?id=7. Not for children;
trained from 2010 to 2016, version 1.4.2, licence CC-BY-4.0. AUROC 0.812 [0.790, 0.834], sensitivity 73.4 %. Mean age
63.2; 43 % women. Das Modell ist kein Medizinprodukt. Le modèle n'est pas un dispositif médical. 模型仅供研究使用。"""


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("value", ["IMG-0003", "483920", "88241907", "Müller^Anna", "deadbeefcafe0123"])
def test_an_identifier_is_found_however_it_is_written(value: str, spelling: str) -> None:
    written = SPELLINGS[spelling](value)
    found = FOUND.in_words(written)
    assert any(repr(value.lower())[1:-1] in sentence for sentence in found), (written, found)


@pytest.mark.parametrize("text", [*PAPER, *PROSE.splitlines(), PROSE])
def test_ordinary_words_hold_none(text: str) -> None:
    assert FOUND.in_words(text) == []


def test_findings_of_every_packaged_configuration_hold_none_of_many_identifiers() -> None:
    """200 cohorts of 300 random ids of the usual forms: no finding is refused."""
    rng = random.Random(0)
    findings = {f for path in PACKAGED.glob("*.yaml") if "private" in path.name or "demo" in path.name for f in load(Experiment, path).data.findings}  # fmt: skip
    assert len(findings) >= 8
    for _ in range(200):
        ids = [rng.choice([f"{rng.randrange(10**6):06d}", f"P{rng.randrange(10**5):05d}", f"{rng.randrange(16**8):08x}"]) for _ in range(300)]  # fmt: skip
        found = Identifiers(pd.DataFrame({"image_id": ids, "patient_id": ids, "path": ids}))
        assert [it for finding in findings for it in found.in_words(finding)] == []


@pytest.mark.parametrize(
    ("value", "found"),
    [(0.00483920, True), (483920, True), (48392000, True), (4.8392e-7, True), (0.002, False), (483921, False), (1.5, False), (0.0042, False)],
)  # fmt: skip
def test_a_number_that_is_an_identifier_is_found(value: float, found: bool) -> None:
    assert bool(FOUND.in_number(value)) == found


def test_one_form_for_what_looks_the_same() -> None:
    assert folded("ＩＭＧ－０００３") == folded("img-0003") == folded("I\u00adM\u200bG-0003")
    assert squeezed("I M G . 0 0 0 3") == squeezed("img_00000003")
    assert readings("cardiomegaly") >= {"cardiomegaly", "ylagemoidrac"}
