"""The order of the tests that build images: the CUDA image is built beside what needs the CPU image alone."""

import pytest

from tests.builders.standin import start_build


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests: the CPU image first, then the CUDA image, last the test that must find no running build."""
    items.sort(key=_turn)  # a stable sort: all others stay where they are


def _turn(item: pytest.Item) -> int:
    if item.get_closest_marker("images") is None:
        return 0
    if item.get_closest_marker("when_nothing_builds") is not None:
        return 3
    return 2 if "cuda" in item.name else 1


@pytest.fixture(scope="session")
def early_build(request: pytest.FixtureRequest) -> None:
    """Start to build the CUDA image in the background if a test of this run needs it."""
    if any("cuda" in item.name and item.get_closest_marker("images") for item in request.session.items):
        start_build("cuda")
