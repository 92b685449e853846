"""The built site must open without a network: no page loads anything from another host, and links lead only
to hosts that are listed here.
"""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

LOADING = {"src", "srcset", "data", "poster", "action"}
"""Attributes that make a browser fetch something, whatever the element; `href` does so in `link` alone."""
MAY_BE_LINKED = (
    "https://arxiv.org/",
    "https://doi.org/",
    "https://github.com/opendp/deployments-registry-data",
)


def on_post_build(config: Any, **_: Any) -> None:
    """End the build with an error that names each page and address."""
    site = Path(config["site_dir"])
    if wrong := outside(site):
        raise SystemExit("the site must open without a network:\n" + "\n".join(wrong))


def outside(site: Path) -> list[str]:
    """Each address on another host that a built site loads, or links to without being listed."""
    wrong = []
    for page in sorted(site.rglob("*.html")):
        parser = _Addresses()
        parser.feed(page.read_text(encoding="utf-8"))
        found = [*filter(_is_elsewhere, parser.loaded)]
        found += [
            link for link in parser.linked if _is_elsewhere(link) and not link.startswith(MAY_BE_LINKED)
        ]
        wrong += [f"{page.relative_to(site)}: {address}" for address in found]
    for sheet in sorted(site.rglob("*.css")):
        addresses = re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s]+)", sheet.read_text(encoding="utf-8"))
        wrong += [f"{sheet.relative_to(site)}: {address}" for address in filter(_is_elsewhere, addresses)]
    return wrong


def _is_elsewhere(address: str) -> bool:
    return re.match(r"(\w+:)?//", address) is not None


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
