"""The shipped configs are known by their bare names, and what is no config says which there are."""

from pathlib import Path

import pytest

from lmcore.config import shipped
from lmcore.errors import UserError


def test_a_bare_name_is_a_shipped_config_and_a_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.config_path("tinystories", "--config").name == "tinystories.yaml"
    (tmp_path / "tinystories").mkdir()
    assert shipped.config_path("tinystories", "--config").name == "tinystories.yaml"
    (tmp_path / "classic").write_text("{}")
    assert shipped.config_path("classic", "--config") == Path("classic")
    with pytest.raises(
        UserError, match=r"--config: found no file 'tinystory', .* one of chat, classic, .*wikitext103$"
    ):
        shipped.config_path("tinystory", "--config")
    with pytest.raises(UserError, match=r"found no file 'sub/classic'"):
        shipped.config_path("sub/classic", "--config")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="found the folder 'folder', expected a YAML file"):
        shipped.config_path("folder", "--config")


def test_the_names_are_those_of_the_configs_but_for_the_plan_of_runs():
    files = {path.stem for path in (Path(__file__).parents[3] / "configs").glob("*.yaml")}
    assert "ablations" in files
    assert shipped.names() == sorted(files - {"ablations"})
    assert shipped.config_path("ablations", "FILE").name == "ablations.yaml"
