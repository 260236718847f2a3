"""One control plane for all tests here, and an operator as a process of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from apiserver import kubeconfig
from kube import Kube
from operator_process import Operator, install_api

__all__ = ["kubeconfig"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.cluster)
    # Tests that play the operator themselves come before the real one is started.
    items.sort(key=lambda item: "operator_process" in getattr(item, "fixturenames", ()))
    items.sort(key=lambda item: Path(item.path).name == "test_privileges.py")  # counts all before


@pytest.fixture(scope="session")
def kube(kubeconfig: Path) -> Kube:
    """The API server with our CRDs and a default profile for CPU nodes."""
    found = Kube(kubeconfig)
    install_api(found)
    return found


@pytest.fixture(scope="session")
def operator_process(
    kube: Kube, kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    found = Operator(kubeconfig, tmp_path_factory.mktemp("operator"))
    found.start()
    yield found
    if found.running:
        assert found.stop(signal.SIGTERM) == 0, found.log.read_text()


@pytest.fixture
def operator(operator_process: Operator) -> Operator:
    """A running operator, whatever the test before did to it."""
    if not operator_process.running:
        operator_process.start()
    return operator_process
