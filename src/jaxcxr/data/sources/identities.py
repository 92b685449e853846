"""Which ids are one patient: aliases that the user declares, and a warning of ids that look alike.

The patient is the unit of privacy: one person under two ids counts as two, and may stand on both sides of a
split. Nothing is joined that was not declared.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping

from jaxcxr.errors import InputError

_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")
_DECIMALS = re.compile(r"(\d)\.0+$")


def with_one_id(patients: Iterable[str], same_patient: Mapping[str, str]) -> list[str]:
    """Each image's patient id with aliases resolved: with `A: B` and `B: C`, images of A, B and C are C's.

    Args:
        patients: the patient id of each image.
        same_patient: alias -> id; blanks around either are ignored, as they are in a table.

    Raises:
        InputError: an alias leads back to itself, is empty, or is there twice but for blanks.
    """
    aliases: dict[str, str] = {}
    for alias, target in ((alias.strip(), target.strip()) for alias, target in same_patient.items()):
        if not alias or not target:
            raise InputError("same_patient: found an empty id, expected alias: id")
        if alias in aliases and aliases[alias] != target:
            raise InputError(f"same_patient: {alias!r} is there twice, expected one id for it")
        aliases[alias] = target
    final: dict[str, str] = {}
    for alias in aliases:
        chain = [alias]
        seen = {alias}
        while chain[-1] in aliases:
            following = aliases[chain[-1]]
            if following in seen:
                raise InputError(
                    f"same_patient: {' -> '.join([*chain, following])} leads back; expected one id at the end"
                )
            chain.append(following)
            seen.add(following)
        final[alias] = chain[-1]
    return [final.get(patient, patient) for patient in patients]


def remarks(patients: Iterable[str], same_patient: Mapping[str, str]) -> tuple[str, ...]:
    """What the user should know of the ids: aliases that name nobody, and ids that look like one person's.

    Args:
        patients: the patient id of each image, before aliases are resolved.
        same_patient: alias -> id.
    """
    there = set(patients)
    declared = {alias.strip() for alias in same_patient}
    found = []
    unused = sorted(alias for alias in declared if alias not in there and alias not in _targets(same_patient))
    if unused:
        found.append(
            f"same_patient: {len(unused)} of {len(declared)} aliases are the id of no image: {_some(unused)}"
        )
    unknown = sorted(_targets(same_patient) - there - declared)
    if unknown:
        found.append(
            f"same_patient: ids that no image had, so that aliases alone bear them: {_some(unknown)}"
        )
    groups: dict[str, set[str]] = {}
    for patient in set(with_one_id(there, same_patient)):
        groups.setdefault(folded(patient), set()).add(patient)
    alike = sorted(sorted(group) for group in groups.values() if len(group) > 1)
    if alike:
        some = "; ".join(" and ".join(map(repr, group[:3])) for group in alike[:5])
        found.append(
            f"{len(alike)} sets of patient ids look like one person's each: {some}"
            f"{'; ...' if len(alike) > 5 else ''}; if they are, name them in same_patient"
        )
    return tuple(found)


def folded(patient: str) -> str:
    """The id without what tables and programs change: case, blanks, leading zeros, `.0`, composed letters."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", patient).casefold())
    text = "".join(c for c in text if not c.isspace() and unicodedata.category(c) != "Cf")
    return _ZEROS.sub("", _DECIMALS.sub(r"\1", text.lstrip("'\"").rstrip("'\"")))


def _targets(same_patient: Mapping[str, str]) -> set[str]:
    return {target.strip() for target in same_patient.values()}


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
