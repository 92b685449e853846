"""Other readings of a text: what it says after decoding, so that an identifier is found however written.

Decodings are applied to one another's results, `_DEEPEST` times: hexadecimal digits of a reversed text are
found, too. Each gives only what it decodes to a printable text, so that ordinary words have no second reading
but their own letters.
"""

import base64
import binascii
import codecs
import html
import quopri
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterator

_DEEPEST = 3
_LONGEST = 100_000
"""Characters of a text that are decoded; declared texts are shorter."""
_MOST = 400
"""Readings of one text."""
_LEAST = 4
"""Characters that a decoded text has at least."""
_LOOKALIKES = str.maketrans(
    "авсеԁһіјкӏмпорԛѕтуѵԝхАВСЕНІЈКМОРЅТУХαβεηικμνορτυχΑΒΕΖΗΙΚΜΝΟΡΤΥΧıℓ",
    "abcedhijklmnopqstyvwxABCEHIJKMOPSTYXabenikmvoptuxABEZHIKMNOPTYXil",
)
"""Cyrillic and Greek letters that look like Latin ones."""
_SEPARATED = re.compile(r"[\s\-_.,:;/|+*'’`\"()\[\]{}<>#=^~\\]+")


def folded(text: str) -> str:
    """One form for what looks the same: compatibility forms, digits of any script, lookalikes, no marks, no
    invisible characters, no case.
    """
    plain = unicodedata.normalize("NFKD", text)
    kept = (c for c in plain if unicodedata.category(c) not in ("Mn", "Me", "Cf", "Cc", "Co", "Cn"))
    digits = (str(unicodedata.digit(c)) if unicodedata.digit(c, None) is not None else c for c in kept)
    return "".join(digits).translate(_LOOKALIKES).casefold()


def squeezed(text: str) -> str:
    """Letters and digits alone, several zeros at the beginning of a number as one."""
    return re.sub(r"(?<!\d)0+(?=\d)", "0", _SEPARATED.sub("", folded(text)))


def spelt(text: str) -> list[str]:
    """`squeezed`, word by word; the whole where it is written letter by letter."""
    words = [word for word in _SEPARATED.split(text) if word]
    by_letter = sum(map(len, words)) <= 2 * len(words)
    return [squeezed(word) for word in ([text] if by_letter else text.split())]


def readings(text: str) -> set[str]:
    """The text itself, and everything that it says after up to `_DEEPEST` decodings."""
    found, waiting = {text}, [text[:_LONGEST]]
    for _ in range(_DEEPEST):
        new = {
            reading
            for one in waiting
            for decode in _DECODINGS
            for reading in decode(one)
            if len(reading) >= _LEAST and _is_text(reading)
        } - found
        waiting = sorted(new)[: max(0, _MOST - len(found))]
        found |= set(waiting)
    return found


def _is_text(text: str) -> bool:
    return all(c.isprintable() or c in "\n\r\t" or unicodedata.category(c) == "Cf" for c in text)


def _words(text: str) -> Iterator[str]:
    """Runs of letters that an encoding may use, and the text without its spaces."""
    yield from re.findall(r"[A-Za-z0-9+/_=\-!#$%&()*;<>?@^`{|}~.:]{6,}", text)
    yield re.sub(r"\s+", "", text)


def escaped(text: str) -> Iterator[str]:
    """The text, and what it says where HTML, URL, JSON, MIME or domain escapes are resolved."""
    yield text
    if "&" in text:
        yield html.unescape(text)
    if "%" in text or "+" in text:
        yield urllib.parse.unquote_plus(text)
    if "\\" in text:
        yield re.sub(
            r"\\(?:u\{?([0-9a-fA-F]{4,6})\}?|x([0-9a-fA-F]{2})|([0-7]{3}))",
            lambda m: chr(min(int(m[1] or m[2], 16) if m[1] or m[2] else int(m[3], 8), 0x10FFFF)),
            text,
        )
    if "=" in text:
        yield quopri.decodestring(text.encode("utf-8")).decode("utf-8", errors="replace")
    if "xn--" in text.lower():
        for word in re.findall(r"xn--[a-z0-9-]+", text.lower()):
            yield from _decoded(lambda w=word: w[4:].encode("ascii").decode("punycode").encode())


def _turned(text: str) -> Iterator[str]:
    yield text[::-1]
    yield codecs.encode(text, "rot13")
    yield " ".join(word[::-1] for word in text.split())


def _based(text: str) -> Iterator[str]:
    """Base 64 (of both alphabets, with or without padding), 85, 32 and 16, of every word."""
    for word in dict.fromkeys(_words(text)):
        bare = word.strip("=.:-").rstrip("=")
        for alphabet in (bare, bare.replace("-", "+").replace("_", "/")):
            padded = alphabet + "=" * (-len(alphabet) % 4)
            yield from _decoded(lambda p=padded: base64.b64decode(p, validate=True))
        upper = bare.upper()
        yield from _decoded(lambda u=upper: base64.b32decode(u + "=" * (-len(u) % 8)))
        yield from _decoded(lambda w=word: base64.b85decode(w))
        yield from _decoded(lambda w=word: base64.a85decode(w))


def _numbered(text: str) -> Iterator[str]:
    """Characters written as numbers: hexadecimal pairs, decimal, octal or binary codes."""
    pairs = re.sub(r"0x|\\x|[\s:,;\-_.]", "", text)
    for run in {pairs, *re.findall(r"[0-9a-fA-F]{8,}", text)}:
        if re.fullmatch(r"([0-9a-fA-F]{2}){4,}", run):
            yield from _decoded(lambda r=run: binascii.unhexlify(r))
    for run in re.findall(r"[0-9a-fA-F]{8,}", pairs):
        yield from _decoded(lambda r=run: binascii.unhexlify(r[: len(r) // 2 * 2]))
    for base, form in ((2, r"[01]{7,8}"), (8, r"[0-7]{2,3}"), (10, r"\d{2,3}")):
        codes = re.findall(rf"(?<![0-9a-zA-Z]){form}(?![0-9a-zA-Z])", text)
        if len(codes) >= _LEAST:
            yield from _decoded(lambda c=codes, b=base: bytes(int(code, b) % 256 for code in c))
    if re.fullmatch(r"[01\s]{32,}", text):
        bits = re.sub(r"\s", "", text)
        yield from _decoded(lambda b=bits: bytes(int(b[i : i + 8], 2) for i in range(0, len(b) - 7, 8)))


def _decoded(decode: Callable[[], bytes]) -> Iterator[str]:
    """The text that bytes stand for; nothing where they stand for none."""
    try:
        content = decode()
    except (ValueError, binascii.Error):
        return
    for encoding in ("utf-8", "utf-16-le", "utf-16-be", "latin-1"):
        try:
            text = content.decode(encoding).strip("\x00")
        except UnicodeDecodeError:
            continue
        if encoding == "utf-8" or _mostly_ascii(text):
            yield text


def _mostly_ascii(text: str) -> bool:
    """Whether bytes that any encoding can read are likely to be a text of Latin letters."""
    return sum(c.isascii() for c in text) > 0.7 * len(text) and max(text, default="") < "\u0250"


_DECODINGS = (escaped, _turned, _based, _numbered)
