"""The modules under test as they are; and no test here waits."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from harmony_pulumi.orchestration import wait
from tests.orchestration.code import REAL, Code
from tests.orchestration.sites import instantly


@pytest.fixture(scope="session")
def code() -> Code:
    return REAL


@pytest.fixture(scope="package", autouse=True)
def no_waits() -> Generator[None]:
    with instantly(wait):
        yield
