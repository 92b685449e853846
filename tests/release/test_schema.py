"""The gate accepts what may be there. Most plantings are an insider's, who rewrites all files so that they agree:
every SHA-256, every figure and every sentence follows, and only what was planted is wrong.
"""

import dataclasses
import datetime
import functools
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcxr.config import Experiment, SyntheticConfig
from jaxcxr.config_files import dump, load
from jaxcxr.release import released_weights, write
from jaxcxr.release.attributes import TIME, attributes_of, normalise, unusual
from jaxcxr.release.build import build_release
from jaxcxr.release.check import check_release
from jaxcxr.release.public_config import not_public, public_config
from jaxcxr.release.readme import readme_text
from jaxcxr.release.released_weights import untrained
from jaxcxr.report.card import card as cards
from jaxcxr.report.card.card import card_of
from jaxcxr.report.card.card_facts import CardFacts, facts_of_card
from jaxcxr.report.card.card_schema import AuditFinding, MechanismRow, SiblingRow, TuningRow, read_card
from jaxcxr.report.card.page import write_card
from jaxcxr.report.card.statement import Statement
from jaxcxr.training.weights import flat_weights, nested_weights
from tests.release.run_folder import CONFIG, MANIFEST, make_run
from tests.release.spellings import SPELLINGS

RNG = np.random.default_rng(5)
WEIGHTS = {
    "params/conv1/kernel": RNG.normal(0, 0.05, (3, 3, 16, 16)).astype(np.float32),
    "params/head/bias": np.ones(2, np.float32),
}
ID, NUMBER = "IMG-0003", 483920
THRESHOLDS = {"values": {"cardiomegaly": 0.483920, "congestion": 0.5}, "protection": "none"}
FILM = (np.add.outer(np.arange(48), np.arange(48)) * 255 // 94).astype(np.uint8).reshape(3, 3, 16, 16)
DIGEST = hashlib.sha256(b"something").hexdigest()


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """A tiny network; equal figures and equal arrays are computed and written once."""
    figures, write_orbax, known, folders = cards._figures, write._write_orbax, {}, {}

    def figures_once(facts: CardFacts) -> dict[str, Any]:
        parts = (facts.mechanisms, facts.delta, facts.unit, facts.adjacency, facts.budget, facts.siblings, facts.images_per_step, facts.reasons)  # fmt: skip
        if repr(parts) not in known:
            known[repr(parts)] = figures(facts)
        return known[repr(parts)]

    def orbax_once(folder: Path, params: Any) -> None:
        flat = flat_weights(params)
        key = hashlib.sha256(repr([(n, a.shape, a.tobytes()) for n, a in flat.items()]).encode()).hexdigest()
        if key not in folders:
            write_orbax(folder, params)
            folders[key] = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for name, content in folders[key].items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(released_weights, "network_shapes", lambda _: {k: v.shape for k, v in WEIGHTS.items()})
        patch.setattr(cards, "_figures", figures_once)
        patch.setattr(write, "_write_orbax", orbax_once)
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, quick: None) -> Path:
    run = make_run(tmp_path_factory.mktemp("schema") / "run", params=nested_weights(WEIGHTS))
    return build_release(run, MANIFEST).folder


@pytest.fixture
def release(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "release"))


def rewrite(
    folder: Path,
    *,
    weights: Mapping[str, np.ndarray] = WEIGHTS,
    facts: Callable[[CardFacts], CardFacts] = lambda found: found,
    config: Callable[[Experiment], Experiment] = lambda found: found,
) -> None:
    """Write a release of something else, of which all parts agree."""
    of_card, of_config = facts_of_card(read_card(folder / "privacy_card.json")), load(Experiment, folder / "config.yaml")  # fmt: skip
    changed = config(of_config)
    of_card = facts(dataclasses.replace(of_card, findings=changed.data.findings))
    shutil.rmtree(folder)
    folder.mkdir()
    write.write_release(folder, nested_weights(dict(weights)), changed, card_of(of_card))
    dump(changed, folder / "config.yaml")  # as it is: `write_release` keeps what is public
    card = card_of(dataclasses.replace(of_card, files=write.released_files(folder)))
    write_card(card, folder)
    (folder / "README.md").write_text(readme_text(card), encoding="utf-8")
    normalise(folder)


def wrong(folder: Path) -> tuple[str, ...]:
    return check_release(folder, MANIFEST).wrong


def test_a_clean_release_passes_and_so_does_one_that_an_insider_did_not_change(release: Path) -> None:
    assert wrong(release) == ()
    before = {p.name: p.read_bytes() for p in release.iterdir() if p.is_file()}
    rewrite(release)
    assert wrong(release) == ()
    assert before == {p.name: p.read_bytes() for p in release.iterdir() if p.is_file()}


def replaced(**parts: Mapping[str, Any]) -> Callable[[Experiment], Experiment]:
    def change(config: Experiment) -> Experiment:
        for section, values in parts.items():
            config = dataclasses.replace(
                config, **{section: dataclasses.replace(getattr(config, section), **values)}
            )
        return config

    return change


def fingerprints(**values: Any) -> Callable[[CardFacts], CardFacts]:
    return lambda facts: dataclasses.replace(facts, fingerprints=facts.fingerprints.model_copy(update=values))


def of_facts(**values: Any) -> Callable[[CardFacts], CardFacts]:
    return lambda facts: dataclasses.replace(facts, **values)


def audited(**values: Any) -> Callable[[CardFacts], CardFacts]:
    finding = AuditFinding(
        method="one run; white-box gradient alignment and black-box loss; every step checked", model="logistic regression",
        canaries=200, confidence=0.95, epsilon_lower=0.5, epsilon_claimed=1.0, accused=False, code=DIGEST, training_code=DIGEST,
    )  # fmt: skip
    return lambda facts: dataclasses.replace(facts, audit=finding.model_copy(update=values))


def sibling(ledger: str, **changes: Any) -> SiblingRow:
    row = MechanismRow(
        name="noised gradient", noise_multiplier=1.0, sample_rate=0.05, steps=5, l2_clip_norm=1.5
    )
    return SiblingRow(ledger=ledger, unit="image", mechanisms=[row.model_copy(update=changes)])


def stated(**values: Any) -> Callable[[CardFacts], CardFacts]:
    return of_facts(statement=Statement(**values))


def tuning(noise: float | None = None, **values: Any) -> TuningRow:
    """The choice of a model whose own cost is that of the release."""
    costs = [[(1.0, 0.05, 5), (20.0, 1.0, 1)], *([[(noise, 0.05, 5)]] if noise else [])]
    keys = ("noise_multiplier", "sample_rate", "steps")
    row = {
        "repetitions": "geometric", "mean_runs": 4.0, "candidates": 2, "varied": ["training.learning_rate"],
        "costs": [[dict(zip(keys, cost, strict=True)) for cost in one] for one in costs], "score_noise_multiplier": 50.0,
    }  # fmt: skip
    return TuningRow.model_validate(row | values)


def kernel(values: Any) -> dict[str, np.ndarray]:
    return {**WEIGHTS, "params/conv1/kernel": np.asarray(values, np.float32).reshape(3, 3, 16, 16)}


def spoilt(value: float) -> dict[str, np.ndarray]:
    array = WEIGHTS["params/conv1/kernel"].copy()
    array[1, 2, 3, 4] = value
    return kernel(array)


HEX = ID.encode().hex()
INSIDERS: dict[str, tuple[dict[str, Any], str]] = {
    # weights
    "weights: NaN": ({"weights": spoilt(np.nan)}, "not finite"),
    "weights: infinite": ({"weights": spoilt(np.inf)}, "not finite"),
    "weights: huge": ({"weights": spoilt(48_392_000.0)}, "no training gives"),
    "weights: tiny": ({"weights": spoilt(4.8392e-40)}, "no training gives"),
    "weights: an image": ({"weights": kernel(FILM)}, "as an image does"),
    "weights: an image between 0 and 1": ({"weights": kernel(FILM / 255)}, "as an image does"),
    "weights: an image, centred": ({"weights": kernel((FILM / 255 - 0.449) / 0.226)}, "as an image does"),
    "weights: an image of 16 bits": ({"weights": kernel(FILM.astype(float) * 257 // 3 + np.arange(16) % 5)}, "as an image does|no training"),
    "weights: the bytes of images": ({"weights": kernel(np.resize(FILM.reshape(-1), 2304 * 4).view(np.float32))}, "no training gives|not finite"),
    "weights: text as numbers": ({"weights": kernel(np.resize(np.frombuffer(b"Anna Muller " * 40, np.uint8), 2304))}, "as an image does"),
    "weights: text in the bytes": ({"weights": kernel(np.frombuffer(ID.encode() + WEIGHTS["params/conv1/kernel"].tobytes()[8:], np.float32))}, "img-0003|no training"),
    # configuration
    "configuration: log_every": ({"config": replaced(training={"log_every": NUMBER})}, "training.log_every"),
    "configuration: checkpoint_every": ({"config": replaced(training={"checkpoint_every": NUMBER})}, "training.checkpoint_every"),
    "configuration: microbatch_size": ({"config": replaced(training={"microbatch_size": NUMBER})}, "training.microbatch_size"),
    "configuration: unused momentum": ({"config": replaced(training={"momentum": 0.483920})}, "training.momentum"),
    "configuration: unused ema_decay": ({"config": replaced(training={"ema_decay": 0.483920})}, "training.ema_decay"),
    "configuration: unused tail_share": ({"config": replaced(training={"tail_share": 0.483920})}, "training.tail_share"),
    "configuration: unused stability": ({"config": replaced(privacy={"stability": 0.483920})}, "privacy.stability"),
    "configuration: unused clip_quantile": ({"config": replaced(privacy={"clip_quantile": 0.483920})}, "privacy.clip_quantile"),
    "configuration: unused images_per_patient": ({"config": replaced(privacy={"images_per_patient": NUMBER})}, "privacy.images_per_patient"),
    "configuration: learning_rate": ({"config": replaced(training={"learning_rate": 0.00483920})}, "training.learning_rate"),
    "configuration: learning_rate, huge": ({"config": replaced(training={"learning_rate": 48392e6})}, "training.learning_rate"),
    "configuration: warmup_steps": ({"config": replaced(training={"warmup_steps": NUMBER})}, "training.warmup_steps"),
    "configuration: views": ({"config": replaced(training={"augmentation_multiplicity": 4839, "augmentation": "flip_rotate"})}, "training.augmentation_multiplicity"),
    "configuration: size": ({"config": replaced(data={"size": NUMBER})}, "data.size"),
    "configuration: width": ({"config": replaced(model={"width": 15 * 32256})}, "model.width"),
    "configuration: network": ({"config": replaced(model={"network": f"ward.{NUMBER}:Net"})}, "model.network"),
    "configuration: options": ({"config": replaced(model={"options": (f"depth={NUMBER}",)})}, "model.options"),
    "configuration: options in lines": ({"config": replaced(model={"options": ("a=b\nMr. Miller",)})}, "model.options"),
    "configuration: head of another scope": ({"config": replaced(head={"directions": 483})}, "head.directions"),
    "configuration: seed of the images": ({"config": replaced(data={"synthetic": SyntheticConfig("private", 1, 1, 1, NUMBER)})}, "synthetic"),
    "configuration: seed of the bootstrap": ({"config": replaced(evaluation={"seed": NUMBER})}, "evaluation.seed"),
    "configuration: replicates": ({"config": replaced(evaluation={"redraws": NUMBER})}, "evaluation.redraws"),
    "configuration: thresholds": ({"config": replaced(evaluation={"fixed_thresholds": (0.483920,)})}, "evaluation.fixed_thresholds"),
    "configuration: groups": ({"config": replaced(evaluation={"groups": ("ward:3",)})}, "evaluation.groups"),
    "configuration: rates": ({"config": replaced(training={"class_weights": "public", "positive_rates": (0.48392, 0.1)})}, "positive_rates"),
    "configuration: epochs": ({"config": replaced(training={"steps": None, "epochs": 0.250483920})}, "training.epochs"),
    "configuration: budget": ({"config": replaced(privacy={"epsilon": 4.83920}), "facts": of_facts(budget=4.83920)}, "483920"),
    "configuration: store": ({"config": replaced(data={"store": f"/stores/{ID}"})}, "data.store"),
    "configuration: pretraining": ({"config": replaced(model={"pretraining": f"{ID}.yaml"})}, "model.pretraining"),
    "configuration: a long finding": ({"config": replaced(data={"findings": ("cardiomegaly", "x" * 81)})}, "plain name"),
    "configuration: a finding in lines": ({"config": replaced(data={"findings": ("cardiomegaly", "a\nb")})}, "plain name"),
    "configuration: a finding in another form": ({"config": replaced(data={"findings": ("cardiomegaly", "ｅｆｆｕｓｉｏｎ")})}, "plain name"),
    # card
    "card: a version": ({"facts": fingerprints(jaxcxr="4839.20")}, "483920"),
    "card: version of the accountant": ({"facts": fingerprints(dp_accounting="48.39.20")}, "483920"),
    "card: version of a library": ({"facts": fingerprints(libraries={"numpy": "4839.20"})}, "483920"),
    "card: a number as digest": ({"facts": fingerprints(code=f"{NUMBER:064d}")}, "no digest"),
    "card: letters as digest": ({"facts": fingerprints(code=f"{HEX:0<64}")}, "no digest"),
    "card: repeated letters as digest": ({"facts": fingerprints(code=(HEX * 4)[:64])}, "no digest"),
    "card: a short digest as digest": ({"facts": fingerprints(code=f"{'badc0ffee1deface52':0<64}")}, "no digest"),
    "card: a short digest, repeated": ({"facts": fingerprints(code="badc0ffee1deface" * 4)}, "no digest"),
    "card: letters in a digest": ({"facts": fingerprints(code=HEX + DIGEST[:48])}, "img-0003"),
    "card: MD5 of an identifier": ({"facts": fingerprints(code=hashlib.md5(ID.encode(), usedforsecurity=False).hexdigest())}, "img-0003"),
    "card: SHA-256 of an identifier": ({"facts": fingerprints(training_code=hashlib.sha256(ID.encode()).hexdigest())}, "img-0003"),
    "card: SHA-256 of a number, in the audit": ({"facts": audited(code=hashlib.sha256(b"483920").hexdigest())}, "483920"),
    "card: a date of birth": ({"facts": of_facts(released=datetime.date(1953, 4, 12))}, "released"),
    "card: a day to come": ({"facts": of_facts(released=datetime.date(4839, 2, 1))}, "released"),
    "card: the model as its own sibling": ({"facts": lambda f: dataclasses.replace(f, siblings=(sibling(f.fingerprints.ledger),))}, "lists the model itself"),
    "card: a sibling twice": ({"facts": of_facts(siblings=(sibling(DIGEST[:32]), sibling(DIGEST[:32])))}, "twice"),
    "card: more steps than planned": ({"facts": of_facts(steps_planned=4)}, "were planned|says 4"),
    "card: no register was read": ({"facts": of_facts(siblings=None)}, "not for release"),
    "card: a date of birth as publication": ({"facts": stated(publication_date=datetime.date(1953, 4, 12))}, "no day of a publication"),
    "card: a publication in a far year": ({"facts": stated(publication_date=datetime.date(4839, 2, 1))}, "no day of a publication"),
    "card: a threshold": ({"facts": stated(thresholds=THRESHOLDS)}, "483920"),
    "card: epsilon of the tests": ({"facts": stated(utility={"text": "AUROC 0.8", "protection": "noised", "epsilon": 4.83920, "delta": 1e-5})}, "483920"),
    "card: delta of the tests": ({"facts": stated(utility={"text": "AUROC 0.8", "protection": "noised", "epsilon": 1.0, "delta": 4.83920e-6})}, "483920"),
    "card: an author of the record": ({"facts": stated(registry_authors=(ID,))}, "img-0003"),
    "card: a source": ({"facts": stated(sources=("https://pacs.example/IMG%2D0003",))}, "img-0003"),
    "card: versions of libraries, in pieces": ({"facts": fingerprints(libraries={"numpy": "4.8", "jax": "3.9", "optax": "2.0"})}, "483920"),
    "card: noise of a sibling": ({"facts": of_facts(siblings=(sibling(DIGEST[:32], noise_multiplier=4.83920),))}, "483920"),
    "card: clip norm of a sibling": ({"facts": of_facts(siblings=(sibling(DIGEST[:32], l2_clip_norm=4.83920),))}, "483920"),
    "card: noise of the score": ({"facts": of_facts(tuning=tuning(score_noise_multiplier=48.3920))}, "483920"),
    "card: noise of a candidate": ({"facts": of_facts(tuning=tuning(noise=48.3920))}, "483920"),
    "card: a field that was varied": ({"facts": of_facts(tuning=tuning(varied=["training.img_0003"]))}, "no field of a configuration"),
    "configuration: findings, in pieces": ({"config": replaced(data={"findings": ("img", "0003")})}, "img-0003"),
    "configuration: a number in pieces": ({"config": replaced(data={"findings": ("8824", "1907")})}, "88241907"),
    "configuration: a network named so": ({"config": replaced(model={"network": "ward.IMG0003:Net"})}, "img-0003"),
    "configuration: an option named so": ({"config": replaced(model={"options": ("depth=4", "img_0003=1")})}, "img-0003"),
    "configuration: options, in pieces": ({"config": replaced(model={"options": ("a=48", "b=39", "c=20")})}, "483920"),
    "configuration: variation selectors": ({"config": replaced(data={"findings": ("cardiomegaly", "x" + "".join(chr(0xE0100 + b) for b in ID.encode()))})}, "plain name"),
    "configuration: blanks": ({"config": replaced(data={"findings": ("cardiomegaly", "a  finding of the  heart")})}, "plain name"),
    # audit
    "audit: epsilon proved": ({"facts": audited(epsilon_lower=0.483920)}, "483920"),
    "audit: epsilon claimed": ({"facts": audited(epsilon_claimed=4.83920)}, "483920"),
    "audit: canaries": ({"facts": audited(canaries=NUMBER)}, "483920"),
    "audit: steps": ({"facts": audited(steps=NUMBER)}, "483920"),
    "audit: runs": ({"facts": audited(runs=NUMBER)}, "483920"),
    "audit: level of its checks": ({"facts": audited(checks=25, checks_level=0.483920)}, "483920"),
    "audit: refutes the claim": ({"facts": audited(accused=True)}, "refutes the claim"),
    "audit: proves 50": ({"facts": audited(epsilon_lower=50.0, epsilon_claimed=None)}, "at most"),
    "audit: proves something with nothing": ({"facts": audited(canaries=0)}, "at most"),
    "audit: confidence 0": ({"facts": audited(confidence=0.0)}, "confidence"),
    "audit: certain": ({"facts": audited(confidence=1.0)}, "confidence"),
    "audit: of no steps": ({"facts": audited(steps=0)}, "without steps"),
}  # fmt: skip


@pytest.mark.parametrize("planted", INSIDERS)
def test_what_an_insider_plants_is_refused(release: Path, planted: str) -> None:
    changes, said = INSIDERS[planted]
    rewrite(release, **changes)
    found = wrong(release)
    assert any(re.search(said, sentence, re.I) for sentence in found), found


WRITTEN = [name for name in SPELLINGS if name not in ("quoted-printable",)]


@pytest.mark.parametrize("spelling", WRITTEN)
def test_an_identifier_in_a_finding_is_refused_however_it_is_written(release: Path, spelling: str) -> None:
    written = SPELLINGS[spelling](ID)
    rewrite(release, config=replaced(data={"findings": ("cardiomegaly", written)}))
    assert any("img-0003" in sentence or "plain name" in sentence for sentence in wrong(release))


@pytest.mark.parametrize(
    "spelling", ["as it is", "base 64 in a sentence", "full-width", "Cyrillic letters", "decimal codes"]
)
def test_an_identifier_in_the_hospitals_words_is_refused(release: Path, spelling: str) -> None:
    stated = Statement(name="Chest model", contact=f"see {SPELLINGS[spelling]('88241907')}")
    rewrite(release, facts=of_facts(statement=stated))
    assert any("88241907" in sentence for sentence in wrong(release))


def attribute(name: str) -> Callable[[Path], None]:
    return lambda folder: os.setxattr(folder / name, "user.id", ID.encode())


OUTSIDE: dict[str, tuple[Callable[[Path], object], str]] = {
    "attribute of a file": (attribute("privacy_card.html"), "privacy_card.html: has extended attributes"),
    "attribute of a folder": (attribute("orbax/params"), "orbax/params: has extended attributes"),
    "attribute of the release": (attribute("."), ".: has extended attributes"),
    "attribute that says nothing to us": (lambda f: os.setxattr(f / "README.md", "user.x", b"\x93\x01"), "README.md: has extended attributes"),
    "time of change": (lambda f: os.utime(f / "README.md", (88241907, 88241907)), "README.md: its time of change is the image_id '88241907'"),
    "nanoseconds": (lambda f: os.utime(f / "LICENCE", ns=(0, 1_800_000_000 * 10**9 + 88241907)), "its time of change in nanoseconds is the image_id '88241907'"),
    "time of change of a folder": (lambda f: os.utime(f / "orbax", (NUMBER, NUMBER)), "orbax: its time of change is the patient_id '483920'"),
    "a pipe": (lambda f: os.mkfifo(f / ID), "is not part of a release"),
    "an empty folder": (lambda f: (f / "orbax" / ID).mkdir(), "is not part of a release"),
    "a hidden file": (lambda f: (f / f".{ID}").touch(), "is not part of a release"),
    "a file more in orbax": (lambda f: (f / "orbax" / "params" / "9").touch(), "is not part of a release"),
    "a link": (lambda f: (f / "again").symlink_to("config.yaml"), "is a link"),
    "a link in place of a file": (lambda f: ((f / "LICENCE").unlink(), (f / "LICENCE").symlink_to("/etc/hostname")), "LICENCE: is"),
    "a folder in place of a file": (lambda f: ((f / "LICENCE").unlink(), (f / "LICENCE").mkdir()), "LICENCE: is missing"),
    "a file less": (lambda f: (f / "README.md").unlink(), "README.md: is missing"),
    "a byte more": (lambda f: (f / "README.md").write_bytes((f / "README.md").read_bytes() + b" "), "README.md: is not the file"),
}  # fmt: skip


@pytest.mark.parametrize("planted", OUTSIDE)
def test_what_is_planted_beside_the_contents_is_refused(release: Path, planted: str) -> None:
    plant, said = OUTSIDE[planted]
    plant(release)
    assert any(said in sentence for sentence in wrong(release)), wrong(release)


def test_an_audit_that_proves_more_than_was_claimed_and_accuses_nobody_is_refused(release: Path) -> None:
    rewrite(release, facts=audited(epsilon_lower=0.9))
    assert wrong(release) == ()
    path = release / "privacy_card.json"
    path.write_text(path.read_text().replace('"epsilon_lower": 0.9', '"epsilon_lower": 3.9'))
    normalise(release)
    assert any("more was proved than claimed" in sentence for sentence in wrong(release))


def test_a_folder_that_is_named_like_an_identifier_is_refused(release: Path) -> None:
    named = release.rename(release.with_name(f"model of {ID}"))
    assert any("own name" in sentence and "img-0003" in sentence for sentence in wrong(named))


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "LICENCE", "privacy_card.json"])
def test_a_file_of_another_release_is_refused(release: Path, tmp_path: Path, name: str) -> None:
    other = Path(shutil.copytree(release, tmp_path / "other"))
    rewrite(
        other,
        weights=spoilt(0.25),
        config=replaced(training={"learning_rate": 2e-3}),
        facts=of_facts(statement=Statement(licence="CC-BY-4.0")),
    )
    assert wrong(other) == ()
    shutil.copy(other / name, release / name)
    normalise(release)
    assert any(name in sentence or "model.safetensors" in sentence for sentence in wrong(release))


def test_what_a_copy_or_a_download_changes_is_remarked_and_refuses_nothing(
    release: Path, tmp_path: Path
) -> None:
    for change in (
        lambda path: os.utime(path, (1_800_000_000, 1_800_000_000)),
        lambda path: os.utime(path, ns=(0, TIME * 10**9 + 1)),
        lambda path: path.chmod(0o755 if path.is_dir() else 0o664),
    ):
        copy = Path(shutil.copytree(release, tmp_path / "copied"))
        normalise(copy)
        for path in (copy, copy / "orbax", copy / "config.yaml"):
            change(path)
        found = check_release(copy, MANIFEST)
        assert found.wrong == ()
        assert any("of its files and folders have a time of change" in remark for remark in found.unchecked)
        shutil.rmtree(copy)
    unpacked = Path(
        shutil.unpack_archive(shutil.make_archive(str(tmp_path / "sent"), "zip", release), tmp_path / "got")
        or tmp_path / "got"
    )
    assert wrong(unpacked) == ()


def test_attributes_are_normalised_and_a_clean_folder_has_no_unusual_ones(
    built: Path, tmp_path: Path
) -> None:
    assert unusual(built) == ()
    copy = Path(shutil.copytree(built, tmp_path / "release"))
    for path in (copy, copy / "orbax", copy / "config.yaml"):
        os.setxattr(path, "user.id", b"1")
        path.chmod(0o700)
        os.utime(path, (1, 1))
    assert unusual(copy)[0].startswith("3 of its files and folders")
    assert {sentence.split(":")[0] for sentence in attributes_of(copy)} == {".", "orbax", "config.yaml"}
    normalise(copy)
    assert unusual(copy) == ()
    assert list(attributes_of(copy)) == []


@functools.cache
def trained(bfloat16: bool = False) -> np.ndarray:
    values = np.random.default_rng(0).normal(0, 0.03, 200_000).astype(np.float32)
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) if bfloat16 else values


@pytest.mark.parametrize(
    "array",
    [
        trained(), trained(bfloat16=True), np.zeros(5000, np.float32), np.ones(5000, np.float32),
        np.where(np.arange(200_000) % 3 == 0, 0, trained()), np.array([0.1] * 300 + [0.2] * 200, np.float32),
    ],
    ids=["trained", "16 bits", "zeros", "ones", "a third pruned", "small"],
)  # fmt: skip
def test_weights_as_training_gives_them_pass(array: np.ndarray) -> None:
    assert list(untrained({"kernel": array.astype(np.float32)})) == []


def test_a_public_configuration_is_public_and_says_what_the_training_was() -> None:
    changed = replaced(
        training={"log_every": 7, "learning_rate": 0.001234567, "momentum": 0.91234, "optimizer": "sgd", "steps": None, "epochs": 0.2512345},
        privacy={"method": "vmap", "stability": 0.5},
    )(CONFIG)  # fmt: skip
    public = public_config(changed)
    assert public_config(public) == public
    assert list(not_public(public, 5)) == []
    assert public.training.learning_rate == 0.001235
    assert public.training.momentum == 0.9123
    assert public.training.epochs == 0.25  # the same five steps
    assert public.privacy is not None
    assert (public.training.log_every, public.privacy.method, public.privacy.stability) == (
        10,
        "layerwise",
        0.01,
    )
