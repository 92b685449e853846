"""Ages in years, from the ways in which DICOM headers and tables write them.

Source: DICOM PS3.5, 6.2 (AS, DA).
"""

import datetime
import re

MAX_AGE = 120.0
"""Largest plausible age in years (NIH ChestX-ray14 had 414, the RSNA challenge has 155)."""


def age_years(text: str) -> float:
    """Years of a DICOM age such as `058Y`, `58`, `18M`, `003W` or `010D`; NaN for an empty text.

    Raises:
        ValueError: anything else.
    """
    text = text.strip().upper()
    if not text:
        return float("nan")
    match = re.fullmatch(r"(\d{1,4}(?:\.\d+)?)([YMWD]?)", text, flags=re.ASCII)
    if match is None:
        raise ValueError("expected an age such as 058Y, 58, 18M, 003W or 010D")
    return float(match[1]) / {"Y": 1.0, "": 1.0, "M": 12.0, "W": 365.25 / 7, "D": 365.25}[match[2]]


def years_between(birth: str, examination: str) -> float:
    """Years between two DICOM dates (`19400305`, `1940.03.05`, `1940-03-05`); NaN if one is not a date."""
    first, last = _date(birth), _date(examination)
    if first is None or last is None or last < first:
        return float("nan")
    return (last - first).days / 365.25


def plausible_age(age: float) -> float:
    """The age itself, or NaN if it is negative or above `MAX_AGE`."""
    return age if 0 <= age <= MAX_AGE else float("nan")


def _date(text: str) -> datetime.date | None:
    digits = re.sub(r"[.\-/]", "", text.strip())[:8]
    try:
        return datetime.datetime.strptime(digits, "%Y%m%d").date() if len(digits) == 8 else None
    except ValueError:
        return None
