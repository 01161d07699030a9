"""docs/config.md says what the dataclasses say."""

from dataclasses import fields
from pathlib import Path

from lmcore import config as configs
from lmcore.config.reference import reference

PAGE = Path(__file__).parents[3] / "docs" / "config.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == reference(), "run: python -m lmcore.config.reference > docs/config.md"


def test_every_field_is_described_once():
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    groups = [*configs.GROUPS.values(), configs.RopeScaling, configs.LoraConfig]
    assert len(rows) == sum(len(fields(group)) for group in groups)
    assert all(len(row.rsplit("|", 2)[1].strip()) > 10 for row in rows)
