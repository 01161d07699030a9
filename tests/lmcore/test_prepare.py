"""`python -m lmcore.prepare` prepares the text of its command line."""

import runpy
import sys
from pathlib import Path

import pytest

from lmcore.data.batches import read_header


def test_the_module_prepares_text_and_ends_with_the_commands_code(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "text.txt").write_text("four")
    argv = [f"--data.files={tmp_path / 'text.txt'}", f"--data.dir={tmp_path / 'data'}", "--tokenizer.kind=bytes"]
    for more, code in (([], 0), (["--data.stories=0"], 2)):
        monkeypatch.setattr(sys, "argv", ["prepare", *argv, *more])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("lmcore.prepare", run_name="__main__")
        assert ended.value.code == code
    out, err = capsys.readouterr()
    splits = read_header(Path(out.splitlines()[-1]))["splits"]
    assert (splits["train"]["bytes"], splits["valid"]["bytes"]) == (3, 1)
    assert err == "error: data.stories: found 0, expected at least 1\n"
