"""The configuration files of a node: containerd, pod network, kubelet."""

from __future__ import annotations

import json

from localcluster.layout import Layout, State

PAUSE_IMAGE = "localhost/pause:1"


def containerd(layout: Layout, number: int) -> str:
    """Return the configuration of a node's containerd."""
    home = layout.node(number)
    text = json.dumps  # a JSON string is a TOML string
    return f"""version = 2
root = {text(str(home / "containerd"))}
state = {text(str(home / "containerd-state"))}

[grpc]
  address = {text(str(layout.containerd_socket(number)))}

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true  # works without CAP_SYS_RESOURCE
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  stats_collect_period = 120  # it walks through all files of large images: a tenth of a processor
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = {text(str(home / "cni.d"))}
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""


def cni(layout: Layout, state: State) -> str:
    """Return the pod network: a routed pair of interfaces for each pod, no bridge.

    Routing (rather than bridging) makes every packet pass kube-proxy's rules, whether or
    not the kernel has br_netfilter. All nodes share one namespace and one address pool.
    """
    addresses = {
        "type": "host-local",
        "dataDir": str(layout.run / "pod-addresses"),
        "ranges": [[{"subnet": state.addresses.pods}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugins = [
        {"type": "ptp", "ipMasq": False, "ipam": addresses},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": plugins}, indent=2)


def kubelet(layout: Layout, state: State, number: int) -> str:
    """Return the configuration of a node's kubelet."""
    address = state.addresses.node(number)
    content = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "healthzBindAddress": address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(layout.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(layout.pki / f"kubelet-{number}.crt"),
        "tlsPrivateKeyFile": str(layout.pki / f"kubelet-{number}.key"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup(number)}",
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,  # 1.35 refuses version 1 otherwise
        "failSwapOn": False,
        "featureGates": {"KubeletInUserNamespace": True},  # tolerates missing capabilities
        "clusterDNS": [state.addresses.dns],
        "clusterDomain": "cluster.local",
        "resolvConf": str(layout.config / "resolv.conf"),
        "containerRuntimeEndpoint": f"unix://{layout.containerd_socket(number)}",
        "podLogsDir": str(layout.node(number) / "pod-logs"),
        # The machine is somebody's: its nearly full disk is no reason to evict pods here.
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "0%",
            "imagefs.available": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "serializeImagePulls": False,
        "volumeStatsAggPeriod": "0s",
    }
    return json.dumps(content, indent=2)
