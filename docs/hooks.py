"""What the site's build does beyond Markdown: the code map from the modules' docstrings, and a check that no
page loads anything from another host.
"""

import ast
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "jaxcxr"
MARK = "<!-- every module, with the first sentence of its docstring -->"
LOADING = {"src", "srcset", "data", "poster", "action"}
"""Attributes that make a browser fetch something, whatever the element; `href` does only in `link`."""
MAY_BE_LINKED = ("https://arxiv.org/", "https://doi.org/")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the code map where a page has its mark."""
    return markdown.replace(MARK, code_map()) if MARK in markdown else markdown


def code_map() -> str:
    """One table per folder of the package, outermost first: file, and what its docstring says first."""
    parts = []
    for folder in sorted({path.parent for path in PACKAGE.rglob("*.py")}):
        name = folder.relative_to(PACKAGE.parent).as_posix()
        rows = [
            f"| `{path.name}` | {first_sentence(path)} |"
            for path in sorted(folder.glob("*.py"))
            if first_sentence(path)
        ]
        if rows:
            parts.append("\n".join([f"## `{name}/`", "", "| file | what it is |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring; empty where it has none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", paragraph, maxsplit=1)[0].replace("|", "\\|")


class _Addresses(HTMLParser):
    """Collects what a page loads, and what it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded, self.linked = list[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Sort the addresses of one element."""
        for name, value in attrs:
            if name in LOADING or (name, tag) == ("href", "link"):
                self.loaded.append(value or "")
            elif name == "href":
                self.linked.append(value or "")


def on_post_build(config: Any, **_: Any) -> None:
    """Refuse a site that needs another host, or names one that it was not meant to."""
    site = Path(config["site_dir"])
    if wrong := outside(site):
        raise SystemExit("the site must open without a network:\n" + "\n".join(wrong))


def outside(site: Path) -> list[str]:
    """What the pages and style sheets of a built site load from elsewhere, and links to hosts not in
    `MAY_BE_LINKED`.
    """
    wrong = []
    for page in sorted(site.rglob("*.html")):
        text, parser = page.read_text(encoding="utf-8"), _Addresses()
        parser.feed(text)
        elsewhere = [address for address in parser.loaded if re.match(r"(https?:)?//", address)]
        links = [address for address in parser.linked if re.match(r"(https?:)?//", address)]
        elsewhere += [address for address in links if not address.startswith(MAY_BE_LINKED)]
        wrong += [f"{page.relative_to(site)}: {address}" for address in elsewhere]
    for sheet in sorted(site.rglob("*.css")):
        found = re.findall(
            r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s]+)", sheet.read_text(encoding="utf-8")
        )
        wrong += [f"{sheet.relative_to(site)}: {address}" for address in found]
    return wrong
