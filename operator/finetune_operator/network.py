"""NetworkPolicies: one for each stage of a job, and each lets its pods reach what that stage needs.

| stage | may reach | is reached by |
|---|---|---|
| prepare | DNS and public addresses (443, 80), where a source is `hf://`; else nothing | nobody |
| train | the other workers of the job, DNS, the operator's progress endpoint | the other workers |
| export | nothing | nobody |
| train, first worker | also public addresses (443, 80), where `spec.tracking` names a server | |

Private addresses (the cluster's own, those of its nodes, the metadata service of a cloud) are no
place to fetch from, but for what the platform team says: a mirror or a proxy that the profile's
environment names by address or as a Service, and `FINETUNE_FETCH_CIDRS`.
"""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

from finetune_api.tracking import REMOTE
from finetune_operator import names
from finetune_operator.names import Stage
from finetune_operator.plan import Plan
from finetune_operator.settings import Settings

Json = dict[str, Any]

HTTP_PORTS = (80, 443)
DNS_PORTS = (53, 5353)
"""5353 is where OpenShift's DNS pods listen; policies see the pod's port, not the Service's."""
IN_CLUSTER = (
    "10.0.0.0/8",
    "100.64.0.0/10",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "fc00::/7",
)
"""Where clusters have their pods, Services and nodes."""
NODE_LOCAL_DNS = ("169.254.20.10/32", "169.254.25.10/32")
"""Of a DNS cache on each node: Kubernetes' own, and Kubespray's."""
NOT_PUBLIC = (
    *IN_CLUSTER,
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "192.0.0.0/24",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
)
"""The metadata service of most clouds is 169.254.169.254, of one fd00:ec2::254."""
TRACKERS = ("MLFLOW_TRACKING_URI", "WANDB_BASE_URL")
"""Variables of a profile that say where a tracker's server is."""
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
"""Variables of a profile by way of which pods reach what is outside."""


def specs(plan: Plan, settings: Settings) -> dict[Stage, Json]:
    """The `spec` of the NetworkPolicy of each stage."""
    workers = [{"podSelector": _pods(plan, "train")}]
    return {
        "prepare": _spec(plan, "prepare", [], _sources(plan, settings)),
        "train": _spec(
            plan, "train", [{"from": workers}], [{"to": workers}, _dns(), _operator(settings)]
        ),
        "export": _spec(plan, "export", [], []),
    }


def tracking(plan: Plan) -> Json | None:
    """Of the first worker, which reports for all; None: the job reports to no server."""
    wanted = plan.snapshot.spec.tracking
    if wanted is None or not any(tracker in REMOTE for tracker in wanted.report_to):
        return None
    rules = _outside(plan, (*TRACKERS, *PROXIES))
    first = _pods(plan, "train")["matchLabels"] | {names.LABEL_INDEX: "0"}
    return {
        "podSelector": {"matchLabels": first},
        "policyTypes": ["Egress"],
        "egress": rules,
    }


def _pods(plan: Plan, stage: Stage) -> Json:
    return {"matchLabels": {names.LABEL_JOB: plan.name, names.LABEL_STAGE: stage}}


def _spec(plan: Plan, stage: Stage, ingress: list[Json], egress: list[Json]) -> Json:
    return {
        "podSelector": _pods(plan, stage),
        "policyTypes": ["Ingress", "Egress"],
        "ingress": ingress,
        "egress": egress,
    }


def _sources(plan: Plan, settings: Settings) -> list[Json]:
    """What prepare fetches from; what is mounted needs no network of the pod."""
    spec = plan.snapshot.spec
    uris = [spec.model.uri, spec.dataset.uri]
    if spec.evaluation.retention is not None:
        uris.append(spec.evaluation.retention.uri)
    if not any(uri.startswith("hf://") for uri in uris):
        return []
    rules = [_dns(), *_outside(plan, ("HF_ENDPOINT", *PROXIES))]
    rules += [{"to": [{"ipBlock": {"cidr": cidr}}]} for cidr in settings.fetch_cidrs]
    return [rule for number, rule in enumerate(rules) if rule not in rules[:number]]


def _outside(plan: Plan, variables: tuple[str, ...]) -> list[Json]:
    """Public addresses, and what these variables of the profile name, also in small letters."""
    wanted = {name for known in variables for name in (known, known.lower())}
    env = plan.snapshot.profile.env
    named = [urlsplit(value) for name, value in sorted(env.items()) if name in wanted]
    ports = sorted({*HTTP_PORTS, *(found for url in named if (found := _port(url)))})
    private = [rule for url in named if (rule := _private(url))]
    return [{"to": _public(), "ports": _tcp(*ports)}, *private]


def _port(url: Any) -> int | None:
    try:
        found: int | None = url.port
    except ValueError:  # not a number: prepare will say so
        return None
    return found


def _private(url: Any) -> Json | None:
    """A rule for an endpoint at a private address or behind a Service; None for every other one:
    a public one is covered, and what a name of the company's own DNS stands for is not known."""
    host = (url.hostname or "").rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        parts = host.split(".")
        if len(parts) < 3 or parts[2] != "svc":
            return None
        # All ports: policies see the pods' port, which the Service alone knows.
        return {"to": [_namespace(parts[1])]}
    port = _port(url) or (443 if url.scheme == "https" else 80)
    cidr = f"{address}/{address.max_prefixlen}"
    return {"to": [{"ipBlock": {"cidr": cidr}}], "ports": _tcp(port)}


def _public() -> list[Json]:
    def but(everything: str, version: int) -> Json:
        never = [c for c in NOT_PUBLIC if ipaddress.ip_network(c).version == version]
        return {"ipBlock": {"cidr": everything, "except": never}}

    return [but("0.0.0.0/0", 4), but("::/0", 6)]


def _dns() -> Json:
    """In the cluster, wherever its DNS runs: not any host that listens on that port."""
    blocks = [{"ipBlock": {"cidr": cidr}} for cidr in (*IN_CLUSTER, *NODE_LOCAL_DNS)]
    ports = [{"port": port, "protocol": p} for port in DNS_PORTS for p in ("UDP", "TCP")]
    return {"to": [{"namespaceSelector": {}}, *blocks], "ports": ports}


def _operator(settings: Settings) -> Json:
    return {"to": [_namespace(settings.namespace)], "ports": _tcp(settings.progress_port)}


def _namespace(name: str) -> Json:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _tcp(*ports: int) -> list[Json]:
    return [{"port": port, "protocol": "TCP"} for port in ports]
