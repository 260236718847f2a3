"""Waits for the job of `helm test`: `python await_job.py NAMESPACE NAME SECONDS`.

Runs in the operator's image, with a right to read this one job. Prints each phase once; a job that
fails or takes too long ends it with 1 and what its status says.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from kubernetes import client, config


def status(api: Any, namespace: str, name: str) -> dict[str, Any]:
    """The job's status as it is now; empty before the operator has seen it."""
    where = ("finetune-operator.io", "v1alpha1", namespace, "finetunejobs", name)
    found: dict[str, Any] = api.get_namespaced_custom_object(*where).get("status") or {}
    return found


def main(namespace: str, name: str, seconds: str) -> int:
    """Entry point."""
    config.load_config()
    api = client.CustomObjectsApi()
    shown, found = "", {}
    deadline = time.monotonic() + float(seconds)
    while time.monotonic() < deadline:
        found = status(api, namespace, name)
        phase = found.get("phase", "not seen by the operator yet")
        if phase != shown:
            print(f"{name}: {phase} {found.get('message', '')}".rstrip(), flush=True)
            shown = phase
        if phase == "Succeeded":
            return 0
        if phase == "Failed":
            break
        time.sleep(1)
    else:
        print(f"{name} did not end within {seconds} s; the operator has seen it: {bool(found)}")
    print(json.dumps(found, indent=1))
    return 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
