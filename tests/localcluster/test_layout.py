"""Paths, names, addresses and state of a cluster's directory."""

import ipaddress
from pathlib import Path

import pytest

from localcluster.layout import (
    Addresses,
    ClusterError,
    Layout,
    State,
    free_ports,
    port_is_free,
    write_atomically,
)


def test_two_directories_share_no_name_on_the_machine(tmp_path: Path) -> None:
    one, two = Layout.of(tmp_path / "a"), Layout.of(tmp_path / "b")
    for name in ("id", "netns", "host_link", "inner_link", "nft_table", "sockets"):
        assert getattr(one, name) != getattr(two, name)
    assert one.cgroup(1) != two.cgroup(1)
    assert one.cgroup(1) != one.cgroup(2)


def test_names_of_links_fit_into_what_the_kernel_allows() -> None:
    layout = Layout.of("/some/where")
    assert len(layout.host_link) <= 15
    assert len(layout.inner_link) <= 15


def test_the_same_directory_by_another_spelling_is_the_same_cluster(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    assert Layout.of(tmp_path / "x" / ".." / "x").id == Layout.of(tmp_path / "x").id


def test_sockets_have_short_paths_however_deep_the_directory_is() -> None:
    layout = Layout.of("/" + "d" * 200)
    assert len(str(layout.containerd_socket(2))) < 100


def test_pods_services_and_nodes_do_not_overlap_within_the_block() -> None:
    plan = Addresses(123)
    pods, services = ipaddress.ip_network(plan.pods), ipaddress.ip_network(plan.services)
    everything = ipaddress.ip_network(plan.everything)
    assert not pods.overlaps(services)
    singles = [plan.api_server, plan.dns, plan.node(1), plan.node(2)]
    singles += [plan.host_end, plan.inner_end]
    assert len(set(singles)) == len(singles)
    for single in map(ipaddress.ip_address, singles):
        assert single in everything
        assert single not in pods
        assert single not in services
    assert ipaddress.ip_address(plan.first_service) == next(services.hosts())


def test_state_survives_being_written_and_read(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path)
    assert layout.load() is None
    state = State(nodes=2, gpus=4, api_port=6443, etcd_port=1, etcd_peer_port=2, block=101)
    layout.save(state)
    assert layout.load() == state


def test_a_control_plane_alone_is_reached_on_loopback() -> None:
    state = State(nodes=0, gpus=0, api_port=1234, etcd_port=1, etcd_peer_port=2)
    assert state.api_url == "https://127.0.0.1:1234"
    with pytest.raises(ClusterError, match="no pod network"):
        _ = state.addresses


def test_free_ports_are_free_and_different() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert all(port_is_free(port) for port in ports)


def test_a_file_is_replaced_whole_and_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "file"
    write_atomically(path, "old", mode=0o600)
    write_atomically(path, "new", mode=0o600)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
