"""What an audit tried of the claim, part by part: the same as was released, something else, or nothing."""

from typing import Literal

from jaxcxr.report.card.card_facts import COUNTS
from jaxcxr.report.card.card_schema import AuditFinding, PrivacyCard, TriedRow
from jaxcxr.report.card.scope import bands_of
from jaxcxr.report.card.terms import has_promise, joined

Tried = Literal["tried", "not tried", "not recorded"]
OTHER_ATTACKS = (
    "attribute inference",
    "extraction of training images",
    "model inversion",
    "reconstruction of training images",
)
"""Attacks that EDPB Opinion 28/2024 names beside membership inference; no audit here makes them."""
_NETWORKS = {
    "logistic regression": "a logistic regression on the pixels",
    "network, narrower": "a narrower copy of the network, trained anew",
}


def same_code(card: PrivacyCard, audit: AuditFinding) -> bool:
    """Whether the audit ran the code that trained: the training's sources, or all of them."""
    code = card.fingerprints
    return bool(
        (audit.training_code and audit.training_code == code.training_code)
        or (audit.code and audit.code == code.code)
    )


def tried_rows(card: PrivacyCard) -> list[TriedRow]:
    """Every part of the claim, and what the audit tried of it; all of it 'not tried' without an audit."""
    audit = card.audit
    releases = [row.name for row in card.mechanisms if row.name != COUNTS]
    steps = joined(sorted(set(releases)) or ["nothing"])
    limits = "limited as above" if has_promise(card) else "not limited"
    counts = [TriedRow(part="class counts", released=COUNTS, tried="not tried", how="")]
    return [
        _compared("what each step releases", steps, audit and audit.released),
        *(counts if any(row.name == COUNTS for row in card.mechanisms) else []),
        _compared("protected unit", _words(card.claim.unit), audit and _words(audit.unit)),
        _compared("clipping", _words(card.clipping), audit and _words(audit.clipping)),
        _noise(card),
        _code(card),
        TriedRow(
            part="model",
            released="the released network",
            tried="not tried",
            how=_NETWORKS[audit.model] if audit else "",
        ),
        TriedRow(
            part="membership inference",
            released=limits,
            tried="tried" if audit else "not tried",
            how=f"on {audit.canaries} marked {'images' if audit.unit == 'image' else 'patients'}"
            if audit
            else "",
        ),
        *(TriedRow(part=attack, released=limits, tried="not tried", how="") for attack in OTHER_ATTACKS),
    ]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _compared(part: str, released: str, audited: str | None) -> TriedRow:
    tried: Tried = "tried" if audited == released else "not tried"
    return TriedRow(part=part, released=released, tried=tried, how=audited or "")


def _noise(card: PrivacyCard) -> TriedRow:
    if card.audit is not None and card.audit.noise is None:
        released = _correlated(card.noise, bands_of(card))
        return TriedRow(part="noise", released=released, tried="not recorded", how="")
    audited = card.audit and _correlated(str(card.audit.noise), card.audit.bands)
    return _compared("noise", _correlated(card.noise, bands_of(card)), audited)


def _correlated(noise: str, bands: int) -> str:
    return noise if bands == 1 else f"{noise}, correlated over {bands} steps"


def _code(card: PrivacyCard) -> TriedRow:
    if card.audit is None:
        return TriedRow(part="training code", released="that of this run", tried="not tried", how="")
    same = same_code(card, card.audit)
    return TriedRow(
        part="training code",
        released="that of this run",
        tried="tried" if same else "not tried",
        how="the same" if same else "another or an unrecorded version",
    )
