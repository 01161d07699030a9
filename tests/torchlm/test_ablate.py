"""`python -m torchlm.ablate` is the common command with this package's name."""

from pathlib import Path

import pytest

from torchlm import ablate


def test_the_command_has_the_packages_name_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text("base: {}\nchanges: {unclipped: {optim.clip: 0}}\n")
    Path("runs").mkdir()
    Path("runs/study-torchlm").touch()
    assert ablate.main(["study.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: --out: runs/study-torchlm is a file, expected a folder")
    with pytest.raises(SystemExit, match="0"):
        ablate.main(["--help"])
    assert "python -m torchlm.ablate FILE" in capsys.readouterr().out
