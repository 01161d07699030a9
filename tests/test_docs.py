"""The documents are whole: links and pictures lead somewhere, and README stays one page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub makes them into anchors."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    found = []
    for link in LINK.findall(text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            found.append(link)
    return found


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str):
    page = ROOT / name
    assert broken(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_found():
    page = ROOT / "README.md"
    text = "[a](docs/absent.md) [b](docs/parity.md#absent) [c](docs/parity.md#the-ladder) [d](https://example.org/x)"
    assert broken(page, text) == ["docs/absent.md", "docs/parity.md#absent"]


def test_readme_is_one_page_with_small_pictures():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 160
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+\.png)\)", text)
    assert len(pictures) >= 3
    assert all((ROOT / picture).stat().st_size < 200_000 for picture in pictures)
