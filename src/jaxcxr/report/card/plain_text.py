"""Texts that are what they look like: no character that does not show, and no word of several alphabets.

Whoever writes a text of a release writes it to be read. Everything else that characters can carry (variation
selectors, fillers, blanks of other widths, a Cyrillic letter in a Latin word) could carry an identifier.
"""

import re
import unicodedata
from collections.abc import Iterator

_UNSEEN = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
    + "".join(map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
)
"""Characters that show nothing, though Unicode counts them among letters, marks and symbols."""
_ALIKE = frozenset(
    ("ARMENIAN", "CARIAN", "CHEROKEE", "COPTIC", "CYRILLIC", "DESERET", "GOTHIC", "LISU", "OLD")
)
"""First words of the names of letters of alphabets that have letters like Latin ones, but for Greek: µg and
β2 are ordinary words.
"""


def spaced_plainly(text: str) -> str:
    """The text with one ordinary space for any blanks within a line, and one empty line for several."""
    blanks = "".join({c for c in text if unicodedata.category(c) == "Zs"})
    lines = re.sub(f"[ \t{re.escape(blanks)}]+", " ", text).splitlines()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.strip() for line in lines)).strip()


def pretences(text: str) -> Iterator[str]:
    """What a text should be and is not, in words that follow 'expected'; nothing if it is as it looks."""
    for character in text:
        if character in _UNSEEN or (
            unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn") and character != "\n"
        ):
            yield f"a text without invisible characters such as U+{ord(character):04X}"
            return
    for word in re.findall(r"[^\W\d_]+", text):
        alphabets = {unicodedata.name(c, "").split(" ")[0] for c in word}
        if "LATIN" in alphabets and alphabets & _ALIKE:
            yield f"words of one alphabet each, unlike {word[:20]!r}"
            return
