from collections.abc import Iterator

import httpx
import pytest

from kmsd.lab import Lab, running_lab
from tests.lab.parties import Acme, Subscriber, web


@pytest.fixture(scope="session")
def calm_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab"), calm=True) as lab:
        yield lab


@pytest.fixture
def lab(calm_lab: Lab) -> Iterator[Lab]:
    """A lab that is not hostile, with every switch as at the start."""
    yield calm_lab
    calm_lab.reset()


@pytest.fixture
def client(lab: Lab) -> Iterator[httpx.Client]:
    with web(lab.facts) as client:
        yield client


@pytest.fixture
def subscriber(lab: Lab, client: httpx.Client) -> Subscriber:
    return Subscriber(lab.facts, client)


@pytest.fixture
def acme(lab: Lab, client: httpx.Client) -> Acme:
    """A client with an account."""
    acme = Acme(lab.facts, client)
    acme.register()
    return acme
