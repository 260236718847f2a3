"""The pod that reads a result for `fetch`: short-lived, without rights, the volume read-only."""

from __future__ import annotations

from typing import Any

from finetune_api.base import API_VERSION, GROUP
from finetune_api.names import USER
from finetune_cli.jobs import Job

Json = dict[str, Any]
CONTAINER = "reader"
MOUNT = "/claim"
LABEL = f"{GROUP}/reader-of"


def reader_pod(job: Job, claim: str, image: str, seconds: int) -> Json:
    """A pod for PodSecurity `restricted` that sleeps while the result is read through `exec`.

    Args:
        seconds: After which it ends by itself, should nobody be left to delete it.
    """
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{job.name[:40]}-fetch-",
            "namespace": job.namespace,
            "labels": {LABEL: job.name},
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": "FineTuneJob",
                    "name": job.name,
                    "uid": job.uid,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": seconds,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": CONTAINER,
                    "image": image,
                    "command": ["sleep", str(seconds)],
                    "resources": {
                        "requests": {"cpu": "50m", "memory": "32Mi"},
                        "limits": {"memory": "256Mi"},
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "claim", "mountPath": MOUNT, "readOnly": True}],
                }
            ],
            "volumes": [
                {
                    "name": "claim",
                    "persistentVolumeClaim": {"claimName": claim, "readOnly": True},
                }
            ],
        },
    }
