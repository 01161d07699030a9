"""The notebook runs top to bottom, as a newcomer runs it, in a folder of its own."""

import base64
from pathlib import Path

import matplotlib.image
import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "experiments.ipynb"


def execute(folder: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept in the repository"
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    return client.execute()  # a failing cell raises


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    """What the cells showed, of one MIME type."""
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    return [data[kind] for data in shown if kind in data]


def printed(notebook: nbformat.NotebookNode) -> str:
    shown = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(shown)


@pytest.mark.slow
def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOUR_STEPS", "4")
    notebook = execute(tmp_path)
    assert len(outputs(notebook, "text/markdown")) == 2
    assert "| untied head |" in outputs(notebook, "text/markdown")[1]
    pictures = outputs(notebook, "image/png")
    assert len(pictures) == 3  # curve, attention, ablation
    for number, picture in enumerate(pictures):
        path = tmp_path / f"{number}.png"
        path.write_bytes(base64.b64decode(picture))
        assert matplotlib.image.imread(path).std() > 0.05  # not a blank sheet
    assert "4 layers, weights (1, 4," in printed(notebook)
    assert (tmp_path / "runs" / "tour-parity.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_tour_at_its_full_length_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TOUR_STEPS", raising=False)
    notebook = execute(tmp_path)
    losses = [float(line.split("|")[2]) for line in outputs(notebook, "text/markdown")[0].splitlines()[2:]]
    assert len(losses) == 5
    assert losses[-1] < 3.5 < losses[0]
