"""What each stage may reach and who reaches it; `make e2e` tries it by traffic."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import builders
import pytest

from finetune_api.snapshot import Snapshot, make_snapshot
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_operator import names, network
from finetune_operator.plan import make_plan
from finetune_operator.settings import Settings

Json = dict[str, Any]

METADATA = ("169.254.169.254", "fd00:ec2::254", "100.100.100.200")
INSIDE = ("10.0.0.1", "10.96.0.1", "172.20.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1", "::1")
PUBLIC = ("18.164.174.23", "2600:9000:2000::1")


def specs(
    spec: Json | None = None, env: dict[str, str] | None = None, settings: Settings | None = None
) -> dict[str, Json]:
    profile = builders.PROFILE | {"env": env or {}}
    world = builders.world(standard=profile)
    parsed = FineTuneJobSpec.parse(builders.SPEC | (spec or {}))
    snapshot = make_snapshot(parsed, dict(world.profiles), "image")
    assert isinstance(snapshot, Snapshot)
    plan = make_plan("team-a", "docs", builders.UID, snapshot)
    return {str(k): v for k, v in network.specs(plan, settings or builders.SETTINGS).items()}


def reaches(spec: Json, address: str, port: int) -> bool:
    """Whether a host outside the cluster, at an address, may be reached by TCP."""
    wanted = ipaddress.ip_address(address)
    for rule in spec["egress"]:
        ports = [(p["port"], p["protocol"]) for p in rule.get("ports", [])]
        if ports and (port, "TCP") not in ports:
            continue
        for peer in rule["to"]:
            block = peer.get("ipBlock")
            if block is None:
                continue
            networks = [ipaddress.ip_network(c) for c in (block["cidr"], *block.get("except", []))]
            if wanted in networks[0] and not any(wanted in n for n in networks[1:]):
                return True
    return False


def test_prepare_reaches_public_addresses_and_none_of_the_cluster_or_its_clouds_metadata() -> None:
    prepare = specs()["prepare"]
    assert {a: reaches(prepare, a, 443) for a in PUBLIC} == dict.fromkeys(PUBLIC, True)
    never = (*METADATA, *INSIDE)
    assert {a: reaches(prepare, a, 443) for a in never} == dict.fromkeys(never, False)
    assert {p: reaches(prepare, PUBLIC[0], p) for p in (22, 80, 6443)} == {
        22: False,
        80: True,
        6443: False,
    }


def test_prepare_reaches_nothing_where_all_is_mounted() -> None:
    mounted = {
        "model": {"uri": "pvc://models/llama"},
        "dataset": {"uri": "configmap://data/a.jsonl"},
        "evaluation": {"retention": {"uri": "pvc://data/b.jsonl"}},
    }
    assert specs(mounted)["prepare"]["egress"] == []
    fetched = mounted | {"evaluation": {"retention": {"uri": "hf://a/b"}}}
    assert specs(fetched)["prepare"]["egress"] != []


@pytest.mark.parametrize(
    ("env", "rule"),
    [
        (
            {"HF_ENDPOINT": "http://10.1.2.3:8080"},
            {
                "to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}],
                "ports": [{"port": 8080, "protocol": "TCP"}],
            },
        ),
        (
            {"https_proxy": "http://[fd00::7]:3128"},
            {
                "to": [{"ipBlock": {"cidr": "fd00::7/128"}}],
                "ports": [{"port": 3128, "protocol": "TCP"}],
            },
        ),
        (
            {"HF_ENDPOINT": "https://hub.mirrors.svc.cluster.local"},
            {
                "to": [
                    {
                        "namespaceSelector": {
                            "matchLabels": {"kubernetes.io/metadata.name": "mirrors"}
                        }
                    }
                ]
            },
        ),
    ],
)
def test_prepare_reaches_the_mirror_or_proxy_that_its_profile_names(
    env: dict[str, str], rule: Json
) -> None:
    assert rule in specs(env=env)["prepare"]["egress"]
    assert rule not in specs()["prepare"]["egress"]


@pytest.mark.parametrize(
    "env", [{"HF_ENDPOINT": "https://hub.example"}, {"HF_ENDPOINT": "http://a:b"}]
)
def test_a_name_of_the_companys_own_dns_opens_nothing_private(env: dict[str, str]) -> None:
    assert specs(env=env)["prepare"] == specs()["prepare"]


def test_a_port_that_the_profile_names_is_open_to_public_addresses() -> None:
    prepare = specs(env={"HF_ENDPOINT": "https://hub.example:8443"})["prepare"]
    assert (reaches(prepare, PUBLIC[0], 8443), reaches(prepare, INSIDE[0], 8443)) == (True, False)


def test_prepare_reaches_the_networks_that_the_installation_names() -> None:
    settings = replace(builders.SETTINGS, fetch_cidrs=("10.9.0.0/16",))
    prepare = specs(settings=settings)["prepare"]
    assert {a: reaches(prepare, a, 9000) for a in ("10.9.8.7", "10.8.0.1")} == {
        "10.9.8.7": True,
        "10.8.0.1": False,
    }


def test_a_variable_of_ones_own_trainer_opens_nothing() -> None:
    env = [{"name": "HF_ENDPOINT", "value": "http://10.1.2.3"}]
    world = {"limits": {"ownTrainer": True}}
    parsed = FineTuneJobSpec.parse(builders.SPEC | {"trainer": {"env": env}})
    profiles = dict(builders.world(standard=builders.PROFILE | world).profiles)
    snapshot = make_snapshot(parsed, profiles, "image")
    assert isinstance(snapshot, Snapshot)
    found = network.specs(make_plan("team-a", "docs", builders.UID, snapshot), builders.SETTINGS)
    assert found == specs()


def test_workers_reach_each_other_the_dns_of_the_cluster_and_the_operator_and_nothing_else() -> (
    None
):
    train = specs()["train"]
    mine = {"finetune-operator.io/job": "docs", "finetune-operator.io/stage": "train"}
    workers = [{"podSelector": {"matchLabels": mine}}]
    others, dns, operator = train["egress"]
    assert (train["ingress"], others) == ([{"from": workers}], {"to": workers})
    assert {p["port"] for p in dns["ports"]} == {53, 5353}
    assert operator == {
        "to": [
            {
                "namespaceSelector": {
                    "matchLabels": {"kubernetes.io/metadata.name": "finetune-system"}
                }
            }
        ],
        "ports": [{"port": 8443, "protocol": "TCP"}],
    }
    assert [reaches(train, a, 53) for a in (*PUBLIC, *METADATA)] == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert not any(reaches(train, a, 443) for a in (*PUBLIC, *METADATA, *INSIDE))


def test_export_reaches_nothing_and_nobody_reaches_a_cpu_stage() -> None:
    found = specs()
    assert found["export"]["egress"] == []
    assert (found["prepare"]["ingress"], found["export"]["ingress"]) == ([], [])
    assert [found[s]["policyTypes"] for s in found] == [["Ingress", "Egress"]] * 3


def test_the_policies_of_two_jobs_never_have_the_same_name() -> None:
    """A job may be called like another one with a stage behind it."""
    jobs = ("a", "a-prepare", "a-train", "a-train-prepare", "a-export")
    made = [names.network_policy(job, stage) for job in jobs for stage in names.STAGES]
    assert len(set(made)) == len(made)
