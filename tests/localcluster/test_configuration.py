"""What the components are told."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from localcluster import addons, containers, controlplane, images, nodeconfig, policies
from localcluster.layout import Layout, State
from localcluster.node import ended_too_early, is_ready
from localcluster.pki import ensure_authority, ensure_certificate, kubeconfig

LAYOUT = Layout.of("/some/cluster")
ALONE = State(nodes=0, gpus=0, api_port=20001, etcd_port=20002, etcd_peer_port=20003)
NODES = State(nodes=2, gpus=8, api_port=6443, etcd_port=2379, etcd_peer_port=2380, block=111)


def test_a_control_plane_alone_listens_on_loopback_only() -> None:
    command = controlplane.apiserver_command(Path("kube-apiserver"), LAYOUT, ALONE)
    assert "--bind-address=127.0.0.1" in command
    assert "--secure-port=20001" in command
    etcd = controlplane.etcd_command(Path("etcd"), LAYOUT, ALONE)
    assert all("127.0.0.1" in option for option in etcd if "http" in option)


def test_the_api_server_of_nodes_advertises_an_address_that_pods_reach() -> None:
    command = controlplane.apiserver_command(Path("kube-apiserver"), LAYOUT, NODES)
    assert f"--advertise-address={NODES.addresses.api_server}" in command
    assert f"--service-cluster-ip-range={NODES.addresses.services}" in command


@pytest.mark.parametrize("state", [ALONE, NODES])
def test_rbac_pod_security_and_audit_are_always_on(state: State) -> None:
    command = controlplane.apiserver_command(Path("kube-apiserver"), LAYOUT, state)
    assert "--authorization-mode=Node,RBAC" in command
    assert any(option.startswith("--admission-control-config-file=") for option in command)
    assert f"--audit-log-path={LAYOUT.logs / 'audit.log'}" in command


def test_namespaces_enforce_baseline_without_exemption() -> None:
    plugin = controlplane.admission_configuration()["plugins"][0]["configuration"]
    assert plugin["defaults"]["enforce"] == "baseline"
    assert plugin["defaults"]["warn"] == "restricted"
    assert plugin["exemptions"]["namespaces"] == []


def test_each_node_has_its_own_address_socket_control_group_and_folders() -> None:
    one, two = (json.loads(nodeconfig.kubelet(LAYOUT, NODES, number)) for number in (1, 2))
    for field in ("address", "cgroupRoot", "containerRuntimeEndpoint", "podLogsDir"):
        assert one[field] != two[field]
    assert nodeconfig.containerd(LAYOUT, 1) != nodeconfig.containerd(LAYOUT, 2)


def test_pods_of_all_nodes_get_addresses_from_one_pool() -> None:
    plugin = json.loads(nodeconfig.cni(LAYOUT, NODES))["plugins"][0]
    assert plugin["ipam"]["ranges"] == [[{"subnet": NODES.addresses.pods}]]


def test_the_storage_class_is_the_default_one() -> None:
    annotations = addons.storage_class()["metadata"]["annotations"]
    assert annotations["storageclass.kubernetes.io/is-default-class"] == "true"


def _node(status: str, heartbeat: str) -> dict[str, object]:
    condition = {"type": "Ready", "status": status, "lastHeartbeatTime": heartbeat}
    return {"status": {"conditions": [condition]}}


def test_a_node_is_ready_only_by_a_report_after_its_kubelet_was_started() -> None:
    started = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
    assert is_ready(_node("True", "2026-01-01T12:00:00Z"), started)
    assert not is_ready(_node("True", "2026-01-01T11:59:59Z"), started)
    assert not is_ready(_node("False", "2026-01-01T12:00:05Z"), started)
    assert not is_ready({}, started)


def test_a_kubeconfig_embeds_everything() -> None:
    content = json.loads(kubeconfig("https://x:1", b"authority", b"certificate", b"key"))
    assert content["clusters"][0]["cluster"]["certificate-authority-data"] == "YXV0aG9yaXR5"
    assert content["users"][0]["user"]["client-key-data"] == "a2V5"


def test_a_certificate_is_kept_until_its_names_change(tmp_path: Path) -> None:
    ensure_authority(tmp_path)
    ensure_certificate(tmp_path, "x", "/CN=x", ("IP:127.0.0.1",))
    first = (tmp_path / "x.crt").read_bytes()
    ensure_certificate(tmp_path, "x", "/CN=x", ("IP:127.0.0.1",))
    assert (tmp_path / "x.crt").read_bytes() == first
    ensure_certificate(tmp_path, "x", "/CN=x", ("IP:127.0.0.2",))
    assert (tmp_path / "x.crt").read_bytes() != first


@pytest.mark.parametrize(
    ("dockerfile", "expected"),
    [
        ("ARG BASE=python:3.11\nFROM ${BASE}\n", True),
        ("# x\n  arg BASE\nFROM $BASE\n", True),
        ("ARG BASEMENT=1\nFROM x\n", False),
        ("FROM x\n# ARG BASE\n", False),
    ],
)
def test_the_base_image_is_passed_only_to_dockerfiles_that_ask(
    dockerfile: str, expected: bool
) -> None:
    assert images.declares_base(dockerfile) is expected


def test_a_build_names_its_dockerfile_arguments_and_output() -> None:
    command = images.build_command(
        Path("buildctl"),
        LAYOUT,
        "localhost/x:dev",
        Path("/a/Containerfile"),
        Path("/b"),
        {"K": "V"},
    )
    assert "--opt=filename=Containerfile" in command
    assert "--opt=build-arg:K=V" in command
    assert "--local=dockerfile=/a" in command
    assert any("name=localhost/x:dev" in word for word in command)


def test_an_image_whose_name_a_newer_one_has_taken_is_not_kept() -> None:
    stored = {
        "localhost/finetune-trainer:dev": "sha256:new",
        "sha256:id-of-the-new": "sha256:new",
        "sha256:id-of-the-old": "sha256:old",
        "import-2026-11-22@sha256:base": "sha256:base",
        "localhost/pause:1": "sha256:pause",
        "sha256:id-of-pause": "sha256:pause",
    }
    assert containers.superseded(stored) == ["sha256:id-of-the-old"]


def test_only_what_pods_begin_is_sent_to_be_judged_and_all_of_it_is_taken_back() -> None:
    new = "-s 10.100.0.0/17 -m conntrack --ctstate NEW -j NFQUEUE --queue-num 100"
    assert policies.rules("10.100.0.0/17") == [
        "-N NETPOL",
        f"-A NETPOL {new}",
        "-I INPUT -j NETPOL",
        "-I POSTROUTING -j NETPOL",
    ]
    assert policies.undoing() == [
        "-D INPUT -j NETPOL",
        "-D POSTROUTING -j NETPOL",
        "-F NETPOL",
        "-X NETPOL",
    ]


def test_a_queue_is_listened_to_once_the_kernel_has_it() -> None:
    line = "  100   9632     0 2   128     0     0        0  1\n"
    assert (policies.listens(line), policies.listens(line.replace("100", "98"))) == (True, False)
    assert policies.listens("") is False


def test_a_kubelet_that_was_too_early_for_containerd_is_told_from_one_that_failed() -> None:
    early = "rpc error: code = Unknown desc = server is not initialized yet"
    assert ended_too_early(f'"command failed" err="failed to run Kubelet: {early}"')
    assert not ended_too_early('"command failed" err="failed to run Kubelet: no space left"')
