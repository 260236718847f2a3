"""Prepare connects to public addresses and to what the platform team names, however it is led."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hub_server import Hub, Repository, running_hub

from finetune_api.run_config import SourceConfig
from finetune_trainer import sources
from finetune_trainer.errors import DataError
from finetune_trainer.reach import (
    ForbiddenAddressError,
    is_public,
    named_hosts,
    named_networks,
    only_public,
)
from finetune_trainer.sources import fetch_data

pytestmark = pytest.mark.trainer

DATA = SourceConfig(uri="hf://team/docs")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        for name in ("HF_TOKEN", "HF_TOKEN_DATASET", "FINETUNE_FETCH_CIDRS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(sources, "RETRY_WAITS", (0.0, 0.0))
        found.repositories["datasets/team/docs"] = Repository({"train.jsonl": b"{}"})
        yield found


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("18.164.174.23", True),
        ("2600:9000:2000::1", True),
        ("::ffff:18.164.174.23", True),
        ("64:ff9b::12a4:ae17", True),
        ("169.254.169.254", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:a9fe:a9fe::1", False),
        ("fd00:ec2::254", False),
        ("fe80::1", False),
        ("100.100.100.200", False),
        ("10.96.0.1", False),
        ("172.20.0.10", False),
        ("192.168.0.1", False),
        ("127.0.0.1", False),
        ("::1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
    ],
)
def test_an_address_is_public_if_anybody_may_have_it(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "169.16689662",
        "::ffff:169.254.169.254",
        "fd00:ec2::254",
        "fe80::1%1",
        "localhost",
        "127.1",
    ],
)
def test_a_private_address_is_refused_however_it_is_written(host: str) -> None:
    with only_public({}), pytest.raises(ForbiddenAddressError, match="no public address"):
        socket.create_connection((host, 80), timeout=1)


def test_the_way_of_the_process_to_its_addresses_is_as_it_was_afterwards() -> None:
    before = socket.getaddrinfo
    with pytest.raises(ForbiddenAddressError), only_public({}):
        socket.getaddrinfo("10.0.0.1", 80)
    assert socket.getaddrinfo is before


@pytest.mark.parametrize("host", ["127.0.0.2", "2130706434", "localhost", "[::1]", "127.1.1.1"])
def test_a_redirect_of_the_hub_into_the_cluster_is_not_followed(hub: Hub, host: str) -> None:
    port = urlsplit(hub.endpoint).port
    hub.repositories["datasets/team/docs"].storage = f"http://{host}:{port}/storage"
    with pytest.raises(DataError) as caught:
        fetch_data(DATA)
    said = str(caught.value)
    assert said.startswith("hf://team/docs at revision main: a download leads to ")
    assert "which is no public address" in said
    assert [request for request in hub.requests if "/storage/" in request] == []


def test_storage_that_the_platform_team_has_named_is_fetched_from(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = urlsplit(hub.endpoint).port
    hub.repositories["datasets/team/docs"].storage = f"http://127.0.0.2:{port}/storage"
    monkeypatch.setenv("FINETUNE_FETCH_CIDRS", "127.0.0.2/32")
    with pytest.raises(DataError) as caught:
        fetch_data(DATA)
    assert "no public address" not in str(caught.value), "nobody listens there: that is all"


def test_the_hub_of_the_company_is_asked_though_its_address_is_private(hub: Hub) -> None:
    assert [name for name, _ in fetch_data(DATA).files] == ["train.jsonl"]


def test_endpoint_and_proxies_are_who_may_be_private() -> None:
    environ = {
        "HF_ENDPOINT": "https://Hub.example:8443/x",
        "https_proxy": "http://10.0.0.7:3128",
        "NO_PROXY": "other",
    }
    assert named_hosts(environ) == {"hub.example", "10.0.0.7"}
    networks = named_networks({"FINETUNE_FETCH_CIDRS": "10.1.0.0/16, fd00::/64"})
    assert [str(network) for network in networks] == ["10.1.0.0/16", "fd00::/64"]


@pytest.mark.parametrize(
    "uri",
    [
        "hf://team/../docs",
        "hf://team/docs/../../x",
        "hf://user@host/docs",
        "hf://team/docs?x=1",
        "hf://team/docs#x",
        "hf://team/do\ncs",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
    ],
)
def test_what_is_no_repository_is_not_asked_for(hub: Hub, uri: str) -> None:
    with pytest.raises(DataError, match="is not mounted and is no hf://owner/name"):
        fetch_data(SourceConfig(uri=uri))
    assert hub.requests == []


def test_a_revision_is_quoted_whole(hub: Hub) -> None:
    """Also one that looks like a path: it cannot leave the repository."""
    with pytest.raises(DataError, match=r"has no revision|is not known to"):
        fetch_data(DATA.model_copy(update={"revision": "../../../../etc"}))
    assert [request.split()[1] for request in hub.requests] == [
        "/api/datasets/team/docs/revision/../../../../etc"
    ], "unquoted by the test's server: what came was one part of a path"
