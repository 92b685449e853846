"""Other readings of a text: what it says after decoding, so that an identifier is found however written.

Decodings are applied to one another's results, `_DEEPEST` times: hexadecimal digits of a reversed text are
found, too. Each gives only what it decodes to a printable text, so that ordinary words have no second reading
but their own letters.
"""

import base64
import binascii
import bz2
import codecs
import contextlib
import functools
import html
import lzma
import quopri
import re
import unicodedata
import urllib.parse
import zlib
from collections.abc import Callable, Iterator

_DEEPEST = 3
_LONGEST = 100_000
"""Characters of a text that are decoded; declared texts are shorter."""
_MOST = 400
"""Readings of one text that are decoded again, and half as many of those."""
_LEAST = 4
"""Characters that a decoded text has at least."""
_LOOKALIKES = str.maketrans(
    "авсеԁһіјкӏмпорԛѕтуѵԝхАВСЕНІЈКМОРЅТУХαβεηικμνορτυχΑΒΕΖΗΙΚΜΝΟΡΤΥΧıℓՍոօᎪᏴᏟᎠᎬᏀᎻᎥᎫᏦᏞᎷᏢᎡᏚᎢᏙᎳᏃ",
    "abcedhijklmnopqstyvwxABCEHIJKMOPSTYXabenikmvoptuxABEZHIKMNOPTYXilUnoABCDEGHIJKLMPRSTVWZ",
)
"""Cyrillic, Greek, Armenian and Cherokee letters that look like Latin ones."""
_DRAWN = re.compile(
    r"(?:REGIONAL INDICATOR SYMBOL LETTER|LATIN LETTER SMALL CAPITAL"
    r"|(?:NEGATIVE )?(?:CIRCLED|SQUARED|PARENTHESIZED) LATIN (?:CAPITAL|SMALL) LETTER) ([A-Z])$"
)
"""Names of symbols that are letters, and that no compatibility form resolves."""
_BASE_58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_SEPARATED = re.compile(r"[\s\-_.,:;/|+*'’`\"()\[\]{}<>#=^~\\]+")


def folded(text: str) -> str:
    """One form for what looks the same: compatibility forms, digits of any script, lookalikes, no marks, no
    invisible characters, no case.
    """
    plain = unicodedata.normalize("NFKD", text)
    kept = (c for c in plain if unicodedata.category(c) not in ("Mn", "Me", "Cf", "Cc", "Co", "Cn"))
    return "".join(map(_letter, kept)).translate(_LOOKALIKES).casefold()


@functools.lru_cache(maxsize=4096)
def _letter(character: str) -> str:
    """The digit or Latin letter that a character draws; the character itself if it draws none."""
    if character.isascii():
        return character
    if (digit := unicodedata.digit(character, None)) is not None:
        return str(digit)
    drawn = _DRAWN.match(unicodedata.name(character, ""))
    return drawn[1] if drawn else character


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
    for depth in range(_DEEPEST):
        new = {
            reading
            for one in waiting
            for decode in _DECODINGS
            for reading in decode(one)
            if len(reading) >= _LEAST and _is_text(reading)
        } - found
        found |= new
        waiting = sorted(new)[: _MOST >> depth]
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
        if re.fullmatch(r"[1-9A-HJ-NP-Za-km-z]{6,128}", bare):
            yield from _decoded(lambda w=bare: _base_58(w))
    for line in map(str.strip, text.splitlines()):
        yield from _decoded(lambda w=line: binascii.a2b_uu(w))


def _base_58(word: str) -> bytes:
    number = 0
    for letter in word:
        number = 58 * number + _BASE_58.index(letter)
    return number.to_bytes(max(1, (number.bit_length() + 7) // 8), "big")


def _numbered(text: str) -> Iterator[str]:
    """Characters written as numbers: hexadecimal pairs, decimal, octal or binary codes, dots of braille."""
    if dots := re.findall("[\u2800-\u28ff]", text):
        yield from _decoded(lambda: bytes(ord(c) - 0x2800 for c in dots))
    for number in re.findall(r"0[xX][0-9a-fA-F]{4,16}", text):
        yield str(int(number, 16))
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
    for magic, unpack in _PACKED.items():
        if content.startswith(magic):
            with contextlib.suppress(OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
                content = unpack(content)
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


def _inflated(content: bytes) -> bytes:
    """At most `_LONGEST` bytes of what zlib or gzip packed."""
    return zlib.decompressobj(wbits=47).decompress(content, _LONGEST)


_PACKED: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": _inflated,
    **{b"\x78" + level: _inflated for level in (b"\x01", b"\x5e", b"\x9c", b"\xda")},
    b"BZh": lambda content: bz2.BZ2Decompressor().decompress(content, _LONGEST),
    b"\xfd7zXZ": lambda content: lzma.LZMADecompressor().decompress(content, _LONGEST),
}
"""First bytes of packed contents, and how they are unpacked."""
_DECODINGS = (escaped, _turned, _based, _numbered)
