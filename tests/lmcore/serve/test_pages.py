"""The files of a page: each at its own path, with its type, and none from elsewhere."""

import re
from importlib import resources
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lmcore.serve.pages import page_routes

FILES = sorted(Path(str(resources.files("lmcore.serve") / "page")).iterdir())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with a page of its own."""
    folder = tmp_path / "some_package" / "page"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    (folder / "index.html").write_text("mine")
    (folder / "notes.txt").write_text("not served")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "some_package"


def test_each_file_is_served_with_its_type():
    client = TestClient(Starlette(routes=page_routes(["lmcore.serve"])))
    types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    assert {file.suffix for file in FILES} == types.keys()
    for file in FILES:
        response = client.get("/" if file.name == "index.html" else f"/{file.name}")
        assert response.content == file.read_bytes()
        assert response.headers["content-type"].partition(";")[0] == types[file.suffix]


def test_the_first_package_has_precedence_and_other_files_are_not_served(package: str):
    client = TestClient(Starlette(routes=page_routes([package, "lmcore.serve"])))
    assert client.get("/").text == "mine"
    assert client.get("/style.css").status_code == 200
    assert [client.get(path).status_code for path in ("/notes.txt", "/index.html", "/../pages.py")] == [404] * 3


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_page_has_neither_inline_code_nor_foreign_sources_nor_html_made_of_text(file: Path):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 400
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    if file.suffix == ".html":
        assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", text)
