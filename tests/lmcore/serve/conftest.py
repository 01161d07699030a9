"""A server of the NumPy model for the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.lmcore.serve.toy import Running, chat_template, make_served, running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server with a chat template; a test that changes it makes its own."""
    with running(make_served(chat_template())) as server:
        yield server
