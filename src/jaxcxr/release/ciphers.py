"""Readings of a text that somebody wrote out or enciphered by hand: spelling alphabets, Morse, shifted and
mirrored letters, every second letter, the first letters of words and lines.

Each gives whole texts, which say nothing but by intention: they are searched for identifiers with a digit
or many letters only (`identifiers.TELLING`).
"""

import re
import string
from collections.abc import Iterator

_MORSE_SIGNS = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- "
    "--.. ----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----. -....- .-.-.-"
)
_MORSE: dict[str, str] = dict(
    zip(_MORSE_SIGNS.split(), f"{string.ascii_lowercase}{string.digits}-.", strict=True)
)
_ALPHABET = (
    "alfa bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa "
    "quebec romeo sierra tango uniform victor whiskey xray yankee zulu"
)
_DIGITS = (
    "zero one two three four five six seven eight nine",
    "null eins zwei drei vier fünf sechs sieben acht neun",
    "zéro un deux trois quatre cinq six sept huit neuf",
)
_WORDS: dict[str, str] = {
    **{name: name[0] for name in _ALPHABET.split()},
    "alpha": "a",
    "juliet": "j",
    "x-ray": "x",
    "dash": "-",
    "hyphen": "-",
    "minus": "-",
    "dot": ".",
    "point": ".",
    "oh": "0",
    "zwo": "2",
    **{name: str(digit) for names in _DIGITS for digit, name in enumerate(names.split())},
}
_LEAST = 4
"""Letters that a text written out has at least."""


def written_out(text: str) -> Iterator[str]:
    """What Morse signs, a spelling alphabet or names of digits say."""
    for signs in re.findall(rf"(?:[.\-·−–]{{1,6}}[\s/|]+){{{_LEAST - 1},}}[.\-·−–]{{1,6}}", text):
        plain = re.split(r"[\s/|]+", re.sub("[−–]", "-", signs.replace("·", ".")))
        yield "".join(_MORSE.get(sign, " ") for sign in plain)
    words: list[str] = re.findall(r"[^\W\d_]+(?:-(?=ray))?(?:(?<=x-)ray)?|\S", text.lower())
    if sum(word in _WORDS for word in words) >= _LEAST:
        yield "".join(_WORDS.get(word, word) for word in words)


def shifted(text: str) -> Iterator[str]:
    """Every shift of the alphabet, and its mirror image."""
    for alphabet in (
        *(_rotated(string.ascii_lowercase, by) for by in range(1, 26)),
        string.ascii_lowercase[::-1],
    ):
        yield text.translate(str.maketrans(string.ascii_letters, alphabet + alphabet.upper()))


def picked(text: str) -> Iterator[str]:
    """Every second and third letter, the first letters of words and of lines, the digits alone, and the shift
    by half of all printable characters, which gives digits for ordinary letters.
    """
    printable = "".join(map(chr, range(33, 127)))
    yield text.translate(str.maketrans(printable, _rotated(printable, 47)))
    for step in (2, 3):
        yield from (text[start::step] for start in range(step))
    yield "".join(line.strip()[:1] for line in text.splitlines())
    yield "".join(word[:1] for word in text.split())
    yield "".join(c for c in text if c.isdigit())


def with_digits(text: str) -> str:
    """A folded text with digits for the letters that are written for them."""
    return text.translate(str.maketrans("oil|", "0111"))


def _rotated(letters: str, by: int) -> str:
    return letters[by:] + letters[:by]
