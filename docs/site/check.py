"""What is wrong with a built site: links, anchors and images that lead nowhere, and what is asked of another host.

`python docs/site/check.py FOLDER` prints one fault a line. The build does the same, and each is a warning there, which
ends it. Links to other sites are looked at and not followed: nothing here needs a network.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes whose address a browser asks for at once, by tag; of an <a> it does so when it is followed.
LOADED = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "image": ("href", "xlink:href"),
    "img": ("src", "srcset"),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
}
HOST = re.compile(r"[\w-]+(\.[\w-]+)+(:\d+)?")
CSS_ADDRESS = re.compile(r"""(?:url\(\s*|@import\s+)["']?(?!data:)([^"')\s;]+)""")


class Page(HTMLParser):
    """The anchors, links and parts of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.parts: list[str] = []
        self.without_alt: list[str] = []
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        for name in LOADED.get(tag, ()):
            if name in values:
                self.parts += (
                    [part.split()[0] for part in values[name].split(",")] if name == "srcset" else [values[name]]
                )
        if tag == "img" and not values.get("alt"):
            self.without_alt.append(values.get("src", ""))
        self.parts += CSS_ADDRESS.findall(values.get("style", ""))
        self._in_style = tag == "style"

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.parts += CSS_ADDRESS.findall(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False


def faults(site: Path) -> Iterator[str]:
    """Each fault in a line, with the page that it is on."""
    pages = {path: Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site}: has no page"
    for path, page in pages.items():
        name = path.relative_to(site)
        yield from (f"{name}: {fault}" for part in page.parts for fault in faults_of_part(site, path, part))
        for link in page.links:
            yield from (f"{name}: {fault}" for fault in faults_of_link(site, path, link, pages))
        yield from (f"{name}: has an image without a text in its place, {source}" for source in page.without_alt)
    for path in sorted(site.rglob("*.css")):
        for part in CSS_ADDRESS.findall(path.read_text("utf-8")):
            yield from (f"{path.relative_to(site)}: {fault}" for fault in faults_of_part(site, path, part))


def is_elsewhere(address: str) -> bool:
    split = urlsplit(address)
    return bool(split.netloc or split.scheme)


def file_of(site: Path, page: Path, address: str) -> Path | None:
    """The file that an address on a page of this site is; None where it lies outside of the site."""
    path = unquote(urlsplit(address).path)
    found = (site / path.lstrip("/") if path.startswith("/") else page.parent / path) if path else page
    found = found.resolve()
    if not found.is_relative_to(site.resolve()):
        return None
    return found / "index.html" if found.is_dir() else found


def faults_of_part(site: Path, path: Path, part: str) -> Iterator[str]:
    if part.startswith("data:"):
        return
    if is_elsewhere(part):
        yield f"asks another host for {part}"
    elif not (found := file_of(site, path, part)) or not found.is_file():
        yield f"has a part that is not there, {part}"


def faults_of_link(site: Path, path: Path, link: str, pages: dict[Path, Page]) -> Iterator[str]:
    split = urlsplit(link)
    if split.scheme == "mailto":
        return
    if is_elsewhere(link):
        if split.scheme not in ("http", "https") or not HOST.fullmatch(split.netloc):
            yield f"links to {link}, which is no address"
        return
    found = file_of(site, path, link)
    if found is None or not found.is_file():
        yield f"links to {link}, which is not there"
    elif split.fragment:
        page = pages.get(site / found.relative_to(site.resolve()))
        if page is None or unquote(split.fragment) not in page.anchors:
            yield f"links to {link}, where there is no such anchor"


if __name__ == "__main__":
    found = list(faults(Path(sys.argv[1])))
    print("\n".join(found))
    sys.exit(bool(found))
