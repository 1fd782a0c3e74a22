"""One server for each file of tests."""

from collections.abc import Iterator

import openai
import pytest
from serving import Running, load, serving


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    """One server for a file of tests."""
    with serving(load()) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Running) -> Iterator[openai.OpenAI]:
    """OpenAI's client of it."""
    with served.client() as made:
        yield made
