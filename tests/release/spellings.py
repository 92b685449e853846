"""Ways to write an identifier so that it does not look like one."""

import base64
import binascii
import bz2
import gzip
import hashlib
import quopri
import string
import unicodedata
import urllib.parse
import zlib
from collections.abc import Callable


def shifted(start: int, digits: int) -> Callable[[str], str]:
    """Letters and digits in a block of Unicode that looks like ordinary ones."""

    def write(text: str) -> str:
        of_letters = (chr(start + ord(c.upper()) - 65) if c.isascii() and c.isalpha() else c for c in text)
        return "".join(chr(digits + int(c)) if c.isascii() and c.isdigit() else c for c in of_letters)

    return write


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


SIGNS = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --.. "
    "----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----. -....-"
)
NAMES = (
    "alfa bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey x-ray yankee zulu zero one two three four five six seven eight nine dash"
)
GERMAN = ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun")
LETTERS = f"{string.ascii_lowercase}{string.digits}-"
MORSE, SPOKEN = dict(zip(LETTERS, SIGNS.split(), strict=True)), dict(zip(LETTERS, NAMES.split(), strict=True))


def ascii_of(text: str) -> str:
    """Letters, digits and hyphens, without marks."""
    plain = unicodedata.normalize("NFKD", text.lower().replace("^", "-"))
    return "".join(c for c in plain if c in LETTERS)


def moved(text: str, to: Callable[[int], int]) -> str:
    """Each letter in another place of the alphabet."""
    alphabet = "".join(string.ascii_lowercase[to(place)] for place in range(26))
    return text.translate(str.maketrans(string.ascii_letters, alphabet + alphabet.upper()))


def drawn(text: str, start: int, digits: str = string.digits) -> str:
    """Letters as symbols from `start` on."""
    letters = (chr(start + ord(c.upper()) - 65) if c.isascii() and c.isalpha() else c for c in text)
    return "".join(letters).translate(str.maketrans(string.digits, digits))


def base_58(content: bytes) -> str:
    number, letters = int.from_bytes(content, "big"), ""
    while number:
        number, last = divmod(number, 58)
        letters = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"[last] + letters
    return letters


SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "upper case": str.upper,
    "mixed case": lambda v: "".join(c.upper() if i % 2 else c.lower() for i, c in enumerate(v)),
    "inside a word": lambda v: f"effusion{v}left" if v[0].isalpha() else f"effusion_{v}_left",
    "reversed": lambda v: v[::-1],
    "reversed, upper case": lambda v: v[::-1].upper(),
    "base 64": b64,
    "base 64 without padding": lambda v: b64(v).rstrip("="),
    "base 64 for URLs": lambda v: base64.urlsafe_b64encode(v.encode()).decode(),
    "base 64 twice": lambda v: b64(b64(v)),
    "base 64, reversed": lambda v: b64(v)[::-1],
    "base 64 of the reversed": lambda v: b64(v[::-1]),
    "base 64 of UTF-16": lambda v: base64.b64encode(v.encode("utf-16-le")).decode(),
    "base 64 in a sentence": lambda v: f"seen by {b64(v)} on Monday",
    "base 32": lambda v: base64.b32encode(v.encode()).decode(),
    "base 32, lower case": lambda v: base64.b32encode(v.encode()).decode().lower().rstrip("="),
    "base 85": lambda v: base64.b85encode(v.encode()).decode(),
    "Ascii85": lambda v: base64.a85encode(v.encode()).decode(),
    "hexadecimal": lambda v: v.encode().hex(),
    "hexadecimal, upper case": lambda v: v.encode().hex().upper(),
    "hexadecimal with colons": lambda v: v.encode().hex(":"),
    "hexadecimal with 0x": lambda v: " ".join(f"0x{b:02x}" for b in v.encode()),
    "hexadecimal of UTF-16": lambda v: v.encode("utf-16-be").hex(),
    "hexadecimal, reversed": lambda v: v.encode().hex()[::-1],
    "base 64 of hexadecimal": lambda v: b64(v.encode().hex()),
    "decimal codes": lambda v: " ".join(str(b) for b in v.encode()),
    "decimal codes with commas": lambda v: ",".join(str(b) for b in v.encode()),
    "octal codes": lambda v: " ".join(f"{b:03o}" for b in v.encode()),
    "binary codes": lambda v: " ".join(f"{b:08b}" for b in v.encode()),
    "binary in one": lambda v: "".join(f"{b:08b}" for b in v.encode()),
    "URL escapes": lambda v: "".join(f"%{b:02x}" for b in v.encode()),
    "URL escapes twice": lambda v: urllib.parse.quote("".join(f"%{b:02x}" for b in v.encode())),
    "HTML entities": lambda v: "".join(f"&#{ord(c)};" for c in v),
    "HTML entities, hexadecimal": lambda v: "".join(f"&#x{ord(c):x};" for c in v),
    "JSON escapes": lambda v: "".join(f"\\u{ord(c):04x}" for c in v),
    "byte escapes": lambda v: "".join(f"\\x{ord(c):02x}" for c in v),
    "quoted-printable": lambda v: (
        quopri.encodestring(v.encode(), quotetabs=True).decode().strip()
        if not v.isascii()
        else "".join(f"={b:02X}" for b in v.encode())
    ),
    "rot13": lambda v: v.translate(
        str.maketrans(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
            "nopqrstuvwxyzabcdefghijklmNOPQRSTUVWXYZABCDEFGHIJKLM",
        )
    ),
    "full-width": lambda v: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in v),
    "bold letters of mathematics": shifted(0x1D400, 0x1D7CE),
    "monospace letters of mathematics": shifted(0x1D670, 0x1D7F6),
    "superscript digits": lambda v: v.translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")),
    "Arabic digits": lambda v: v.translate(str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")),
    "Cyrillic letters": lambda v: v.translate(str.maketrans("AaEeOoPpCcXxMTHKBIi", "АаЕеОоРрСсХхМТНКВІі")),
    "Greek letters": lambda v: v.translate(str.maketrans("ABEHIKMNOPTXYZo", "ΑΒΕΗΙΚΜΝΟΡΤΧΥΖο")),
    "soft hyphens": lambda v: "\u00ad".join(v),
    "zero-width spaces": lambda v: "\u200b".join(v),
    "zero-width joiner": lambda v: v[:3] + "\u200d" + v[3:],
    "combining marks": lambda v: "".join(c + "\u0323" if c.isalnum() else c for c in v),
    "other direction marks": lambda v: "\u202e" + v[::-1] + "\u202c",
    "zeros before it": lambda v: f"0000{v}" if v.isdigit() else v.replace("0003", "00000003"),
    "spaces between": lambda v: " ".join(v),
    "hyphens between": lambda v: "-".join(v),
    "dots between": lambda v: ".".join(v),
    "underscores instead": lambda v: v.replace("-", "_").replace(".", "_").replace("^", "_"),
    "nothing instead": lambda v: v.replace("-", "").replace(".", "").replace("^", ""),
    "MD5": lambda v: hashlib.md5(v.encode(), usedforsecurity=False).hexdigest(),
    "SHA-1": lambda v: hashlib.sha1(v.encode(), usedforsecurity=False).hexdigest(),
    "SHA-256": lambda v: hashlib.sha256(v.encode()).hexdigest(),
    "SHA-256, upper case of the lower": lambda v: hashlib.sha256(v.lower().encode()).hexdigest().upper(),
    "dots of braille": lambda v: "".join(chr(0x2800 + b) for b in v.encode()),
    "Morse": lambda v: " ".join(MORSE[c] for c in ascii_of(v)),
    "spelling alphabet": lambda v: " ".join(SPOKEN[c] for c in ascii_of(v)),
    "names of digits": lambda v: " ".join(SPOKEN[c] if c.isdigit() else c for c in v),
    "names of digits in German": lambda v: " ".join(GERMAN[int(c)] if c.isdigit() else c for c in v),
    "shifted by three": lambda v: moved(v, lambda place: (place + 3) % 26),
    "mirrored alphabet": lambda v: moved(v, lambda place: 25 - place),
    "shifted by 47": lambda v: "".join(chr(33 + (ord(c) + 14) % 94) if "!" <= c <= "~" else c for c in v),
    "gzip in base 64": lambda v: base64.b64encode(gzip.compress(v.encode(), mtime=0)).decode(),
    "zlib in hexadecimal": lambda v: zlib.compress(v.encode()).hex(),
    "bzip2 in base 85": lambda v: base64.b85encode(bz2.compress(v.encode())).decode(),
    "base 58": lambda v: base_58(v.encode()),
    "uuencoded": lambda v: binascii.b2a_uu(v.encode()).decode().strip(),
    "O for 0, l for 1": lambda v: v.replace("0", "O").replace("1", "l"),
    "first letters of lines": lambda v: "\n".join(f"{c}x and so on" for c in v),
    "first letters of words": lambda v: " ".join(f"{c}xyz" for c in v),
    "every second letter": lambda v: "".join(f"{c}x" for c in v),
    "every third letter": lambda v: "".join(f"xy{c}" for c in v),
    "regional indicators": lambda v: drawn(v, 0x1F1E6),
    "squared letters": lambda v: drawn(v, 0x1F130),
    "negative circled letters": lambda v: drawn(v, 0x1F150, "⓿❶❷❸❹❺❻❼❽❾"),
    "small capitals": lambda v: v.lower().translate(str.maketrans("abcdefgimnoprtu", "ᴀʙᴄᴅᴇꜰɢɪᴍɴᴏᴘʀᴛᴜ")),
    "keycaps": lambda v: "".join(f"{c}\ufe0f\u20e3" if c.isdigit() else c for c in v),
    "Cherokee letters": lambda v: v.translate(str.maketrans("IMGABDE", "ᎥᎷᏀᎪᏴᎠᎬ")),
    "after 600 other words": lambda v: " ".join(
        [*(b64(f"Z{i} in a word") for i in range(600)), b64(f"z {v}")]
    ),
    "SHA-512": lambda v: hashlib.sha512(v.encode()).hexdigest(),
    "SHA3-256": lambda v: hashlib.sha3_256(v.encode()).hexdigest(),
    "BLAKE2": lambda v: hashlib.blake2b(v.encode()).hexdigest(),
    "SHA-256 in base 64": lambda v: base64.b64encode(hashlib.sha256(v.encode()).digest()).decode(),
    "SHA-256 of a line": lambda v: hashlib.sha256(f"{v}\n".encode()).hexdigest(),
    "half of an MD5": lambda v: hashlib.md5(v.encode(), usedforsecurity=False).hexdigest()[:16],
    "CRC-32": lambda v: f"{zlib.crc32(v.encode()):08x}",
}
