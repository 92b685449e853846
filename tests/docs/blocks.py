"""The fenced blocks, code spans and links of README, CONTRIBUTING, SECURITY and the pages of docs/."""

import dataclasses
import re
import shlex
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    ]
)
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.S | re.M)
_NOT_RUN = re.compile(r"<!-- not run: (?P<reason>[^>]*?) -->\s*$")
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SHELL_WORDS = {"srun", "mpirun", "nohup"}
"""Words before a command that start it elsewhere."""


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        place: page and line, to be shown.
        language: what stands behind the fence's three marks.
        text: without the fence and its indentation.
        not_run: the reason of a comment `<!-- not run: reason -->` right before the block, or None.
    """

    place: str
    language: str
    text: str
    not_run: str | None


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        before = text[: match.start()]
        marked = _NOT_RUN.search(before)
        place = f"{page.relative_to(ROOT).as_posix()}:{before.count(chr(10)) + 1}"
        found.append(
            Block(
                place, match["language"], textwrap.dedent(match["text"]), marked["reason"] if marked else None
            )
        )
    return found


def spans(page: Path) -> list[tuple[str, str]]:
    """(place, text) of every code span outside fenced blocks."""
    text = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text(encoding="utf-8"))
    name = page.relative_to(ROOT).as_posix()
    return [
        (f"{name}:{text[: match.start()].count(chr(10)) + 1}", match[1]) for match in _SPAN.finditer(text)
    ]


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures."""
    return _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))


def commands(shell: str) -> list[list[str]]:
    """The commands of a shell block as words: comments, `VARIABLE=value` and starters such as `srun` left out."""
    found = []
    for line in shell.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for command in _split(words):
            while command and (command[0] in _SHELL_WORDS or re.match(r"[A-Z_]+=", command[0])):
                command = command[1:]
            if command:
                found.append(command)
    return found


def _split(words: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", ";", "|"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts
