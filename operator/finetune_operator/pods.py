"""The pods of the three stages, made for PodSecurity `restricted` and a read-only root."""

from __future__ import annotations

from typing import Any

from finetune_api import progress
from finetune_api.names import MODULES
from finetune_api.resolve import claim_of
from finetune_api.run_config import ENV_ATTEMPT, ENV_HEARTBEAT
from finetune_operator import names, own, trackers
from finetune_operator.names import Stage
from finetune_operator.observe import PROBE_FAILURES
from finetune_operator.placement import scheduling
from finetune_operator.plan import Plan
from finetune_operator.settings import Settings

Manifest = dict[str, Any]

PROBE = f'test -z "`find ${ENV_HEARTBEAT} -mmin +2 2>/dev/null`" || {{ kill -CONT 1; exit 1; }}'
"""Fails where launch's sign of life, one second old where all is well, is older than two minutes.
A file that is not there is no fault: other images do not write it. A launch that was only stopped
is made to go on: its ranks may be training, and if they are stopped too, it is the one to say so.
(Not in the form that Kubernetes would take for a variable of its own.)"""
ENV_FETCH_CIDRS = "FINETUNE_FETCH_CIDRS"
ENV_STOP_SECONDS = "FINETUNE_STOP_SECONDS"
"""How long the launcher lets the processes save: as long as the kubelet lets the pod."""


def pod_spec(plan: Plan, stage: Stage, attempt: int, settings: Settings) -> Manifest:
    """One pod of a stage."""
    spec: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **_account(plan),
        "securityContext": _identity(settings.trainer_user),
        "containers": [_container(plan, stage, attempt, settings)],
        "volumes": _volumes(plan, stage),
    }
    if stage == "train":
        spec["terminationGracePeriodSeconds"] = plan.grace_seconds
        spec["subdomain"] = names.service(plan.name)
        spec |= scheduling(plan, attempt)
    return spec


def _account(plan: Plan) -> Manifest:
    """Whom the pods run as, and what pulls their images."""
    pods = plan.snapshot.profile.pods
    account = plan.snapshot.spec.service_account_name or pods.service_account_name
    secrets = [{"name": name} for name in pods.image_pull_secrets]
    found: Manifest = {"serviceAccountName": account, "imagePullSecrets": secrets}
    return {key: value for key, value in found.items() if value}


def _identity(user: int | None) -> Manifest:
    """None: the cluster says who they are (OpenShift: a range for each namespace)."""
    fixed: Manifest = {}
    if user is not None:
        fixed = {
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "fsGroupChangePolicy": "OnRootMismatch",
        }
    return {"runAsNonRoot": True, **fixed, "seccompProfile": {"type": "RuntimeDefault"}}


def _container(plan: Plan, stage: Stage, attempt: int, settings: Settings) -> Manifest:
    # Of another trainer nothing is known that a probe could look at.
    probed = stage == "train" and not plan.run.own_trainer
    command = {"command": ["python", "-m", MODULES[stage], names.RUN_JSON]}
    return ({"livenessProbe": _liveness()} if probed else {}) | {
        "name": names.CONTAINER,
        "image": own.image(plan, stage),
        "imagePullPolicy": settings.trainer_pull_policy,
        **(own.command(plan, stage) or command),
        "env": _env(plan, stage, attempt, settings),
        "resources": _resources(plan, stage),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # A container that dies without a word leaves the end of its log in its status.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(plan, stage),
    }


def _liveness() -> Manifest:
    """Notices a pod in which nothing runs any more, launch included; launch notices the rest. It
    takes five minutes at least: nobody else may be blamed for a node that stands still a while."""
    return {
        "exec": {"command": ["sh", "-c", PROBE]},
        "periodSeconds": 60,
        "timeoutSeconds": 10,
        "failureThreshold": PROBE_FAILURES,
    }


def _env(plan: Plan, stage: Stage, attempt: int, settings: Settings) -> list[Manifest]:
    spec = plan.snapshot.spec
    found: list[Manifest] = [
        {"name": key, "value": value} for key, value in sorted(plan.snapshot.profile.env.items())
    ]
    cached = stage == "prepare" and plan.snapshot.profile.storage.cache_claim
    fetched = names.CACHE_DIR if cached else names.TMP_DIR
    found += [
        {"name": "HOME", "value": names.TMP_DIR},
        {"name": "HF_HOME", "value": f"{fetched}/huggingface"},
        {"name": "MPLCONFIGDIR", "value": f"{names.TMP_DIR}/matplotlib"},
        {"name": "TRITON_CACHE_DIR", "value": f"{names.TMP_DIR}/triton"},
    ]
    found += own.variables(plan, stage)
    found += trackers.variables(plan, stage)
    if stage == "prepare" and settings.fetch_cidrs:
        found.append({"name": ENV_FETCH_CIDRS, "value": ",".join(settings.fetch_cidrs)})
    if stage == "prepare":
        sources = (
            ("HF_TOKEN", spec.model),
            ("HF_TOKEN_DATASET", spec.dataset),
            ("HF_TOKEN_RETENTION", spec.evaluation.retention),
        )
        for variable, source in sources:
            if source is not None and source.secret_ref is not None:
                ref = {"name": source.secret_ref.name, "key": "token"}
                found.append({"name": variable, "valueFrom": {"secretKeyRef": ref}})
    if plan.run.accelerator == "CPU":
        found.append({"name": "DS_ACCELERATOR", "value": "cpu"})
    if stage == "train":
        found += _rendezvous(plan, attempt)
        found += [
            {"name": ENV_ATTEMPT, "value": str(attempt)},
            {"name": ENV_HEARTBEAT, "value": f"{names.TMP_DIR}/launch.alive"},
        ]
        url = settings.progress_url + progress.status_path(plan.namespace, plan.name)
        found += [
            {"name": progress.ENV_URL, "value": url},
            {"name": progress.ENV_CA_CERT, "value": f"{names.TOKEN_DIR}/ca.crt"},
            {"name": progress.ENV_TOKEN, "value": f"{names.TOKEN_DIR}/token"},
            {"name": ENV_STOP_SECONDS, "value": str(plan.grace_seconds)},
        ]
    # The last of a name counts, as in a container; server-side apply takes each name once.
    return list({variable["name"]: variable for variable in found}.values())


def _rendezvous(plan: Plan, attempt: int) -> list[Manifest]:
    """What torchrun reads."""
    index = f"metadata.annotations['{names.LABEL_INDEX}']"
    return [
        {"name": "PET_NNODES", "value": str(plan.run.num_nodes)},
        {"name": "PET_NPROC_PER_NODE", "value": str(plan.run.num_proc_per_node)},
        {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        {"name": "PET_MASTER_ADDR", "value": names.master_host(plan.name, attempt)},
        {"name": "PET_MASTER_PORT", "value": str(names.MASTER_PORT)},
    ]


def _resources(plan: Plan, stage: Stage) -> Manifest:
    profile = plan.snapshot.profile
    if stage != "train":
        size = profile.cpu_stages
        return {
            "requests": {"cpu": size.cpu, "memory": size.memory},
            "limits": {"memory": size.memory},
        }
    node = profile.node
    found: Manifest = {
        "requests": {"cpu": node.cpu, "memory": node.memory, **node.extra_resources},
        "limits": {"memory": node.memory, **node.extra_resources},
    }
    if node.gpus_per_node:
        gpus = {node.gpu_resource_name: str(plan.run.num_proc_per_node)}
        found["requests"] |= gpus
        found["limits"] |= gpus
    return found


def _claims(plan: Plan, stage: Stage) -> dict[str, bool]:
    """Claims of other people that a stage mounts, and whether read-only."""
    spec = plan.snapshot.spec
    if stage == "prepare":
        claims = (claim_of(uri) for uri in (spec.model.uri, *_data_uris(plan).values()))
        return {claim: True for claim in claims if claim}
    if stage == "export" and spec.output is not None:
        claim = claim_of(spec.output.uri)
        return {claim: False} if claim else {}
    return {}


def _data_uris(plan: Plan) -> dict[str, str]:
    """All that is read as examples, by what it is for."""
    spec = plan.snapshot.spec
    retention = spec.evaluation.retention
    return {"dataset": spec.dataset.uri} | ({"retention": retention.uri} if retention else {})


def _config_maps(plan: Plan, stage: Stage) -> dict[str, str]:
    """Names of the ConfigMaps with examples, by what they are for."""
    if stage != "prepare":
        return {}
    parts = {of: uri.partition("://") for of, uri in _data_uris(plan).items()}
    return {
        of: rest.partition("/")[0]
        for of, (scheme, _, rest) in parts.items()
        if scheme == "configmap"
    }


def _volumes(plan: Plan, stage: Stage) -> list[Manifest]:
    profile = plan.snapshot.profile
    work = profile.storage.work_claim or names.work_claim(plan.name)
    start = {"name": names.run_config_map(plan.name)}
    run = {"name": plan.config} if plan.config else start
    found: list[Manifest] = [
        {"name": "run", "configMap": run},
        {"name": "work", "persistentVolumeClaim": {"claimName": work}},
        {"name": "tmp", "emptyDir": {}},
    ]
    for number, (claim, read_only) in enumerate(sorted(_claims(plan, stage).items())):
        source = {"claimName": claim} | ({"readOnly": True} if read_only else {})
        found.append({"name": f"claim-{number}", "persistentVolumeClaim": source})
    for of, name in _config_maps(plan, stage).items():
        # Optional, so that prepare starts and says what is missing, instead of waiting for ever.
        found.append({"name": of, "configMap": {"name": name, "optional": True}})
    cache = profile.storage.cache_claim
    if stage == "prepare" and cache is not None:
        found.append({"name": "cache", "persistentVolumeClaim": {"claimName": cache}})
    if own.files(plan, stage) is not None:
        found.append({"name": "files", "configMap": {"name": own.files(plan, stage)}})
    if stage == "train":
        shm = {"medium": "Memory", "sizeLimit": profile.node.shared_memory}
        found.append({"name": "shm", "emptyDir": shm})
        token = {
            "audience": progress.audience(plan.namespace, plan.name),
            "expirationSeconds": progress.TOKEN_SECONDS,
            "path": "token",
        }
        ca = start | {"items": [{"key": "ca.crt", "path": "ca.crt"}]}
        sources = [{"serviceAccountToken": token}, {"configMap": ca}]
        found.append({"name": "progress", "projected": {"sources": sources}})
    return found


def _mounts(plan: Plan, stage: Stage) -> list[Manifest]:
    found: list[Manifest] = [
        {"name": "run", "mountPath": names.RUN_DIR, "readOnly": True},
        {"name": "work", "mountPath": names.WORK_MOUNT},
        {"name": "tmp", "mountPath": names.TMP_DIR},
    ]
    for number, (claim, read_only) in enumerate(sorted(_claims(plan, stage).items())):
        mount: Manifest = {"name": f"claim-{number}", "mountPath": f"{names.CLAIMS_DIR}/{claim}"}
        found.append(mount | ({"readOnly": True} if read_only else {}))
    for of in _config_maps(plan, stage):
        path = f"{names.CONFIGMAP_DIR}/{of}"
        found.append({"name": of, "mountPath": path, "readOnly": True})
    if stage == "prepare" and plan.snapshot.profile.storage.cache_claim is not None:
        found.append({"name": "cache", "mountPath": names.CACHE_DIR})
    if own.files(plan, stage) is not None:
        found.append({"name": "files", "mountPath": names.FILES_DIR, "readOnly": True})
    if stage == "train":
        found.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108 (a volume of its own)
        found.append({"name": "progress", "mountPath": names.TOKEN_DIR, "readOnly": True})
    return found
