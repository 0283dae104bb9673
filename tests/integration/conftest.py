"""One real server for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.live import Server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`monailabel start_server` as a user would call it in the activated environment."""
    with serving(tmp_path_factory.mktemp("server")) as started:
        yield started
