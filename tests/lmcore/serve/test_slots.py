"""What the server asks of a twin has the names of the config."""

from dataclasses import fields

from lmcore.config import SampleConfig
from lmcore.serve.slots import Sampling


def test_options_have_the_names_of_the_config():
    assert set(Sampling._fields) < {field.name for field in fields(SampleConfig)}
