"""The paper's findings, their sides under a flip, and the grades that count as positive.

Source: Tayebi Arasteh, Ziller et al., 'Private, fair and accurate', Patient Cohort and Data Pre-processing.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

UKA_FINDINGS: tuple[str, ...] = (
    "cardiomegaly",
    "congestion",
    "pleural_effusion_right",
    "pleural_effusion_left",
    "pneumonic_infiltrates_right",
    "pneumonic_infiltrates_left",
    "atelectasis_right",
    "atelectasis_left",
)
"""The eight findings of UKA-CXR, in the order of the paper's tables."""

PAPER_GRADES: Mapping[str, int] = MappingProxyType(
    {
        "negative": 0,
        "normal": 0,
        "uncertain": 0,
        "mild": 1,
        "moderate": 1,
        "severe": 1,
        "borderline": 1,
        "enlarged": 1,
        "massively enlarged": 1,
    }
)
"""Label of each of the paper's grades: uncertain is negative; mild (heart: borderline) and above positive."""

_SIDES = {"right": "left", "left": "right"}


def mirrored(finding: str) -> str:
    """Name of the finding after a left-right flip of the image (itself if it has no side)."""
    stem, _, side = finding.rpartition("_")
    return f"{stem}_{_SIDES[side]}" if side in _SIDES and stem else finding


def has_sides(findings: Sequence[str]) -> bool:
    """Whether a flipped image may have other findings than the image."""
    return any(mirrored(finding) != finding for finding in findings)


def can_be_mirrored(findings: Sequence[str]) -> bool:
    """Whether every sided finding has its counterpart, so that a flipped image has the same findings."""
    return all(mirrored(finding) in findings for finding in findings)


def mirror_permutation(findings: Sequence[str]) -> tuple[int, ...]:
    """Indices `p` such that `labels[..., p]` are the labels of the flipped image.

    Raises:
        ValueError: a sided finding lacks its counterpart, so that a flipped image could not be labelled.
    """
    position = {finding: index for index, finding in enumerate(findings)}
    missing = [f for f in findings if mirrored(f) not in position]
    if missing:
        raise ValueError(
            f"cannot flip images: {missing[0]!r} is in the findings, {mirrored(missing[0])!r} is not"
        )
    return tuple(position[mirrored(finding)] for finding in findings)
