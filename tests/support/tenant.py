"""Somebody with few rights: a service account with a token, and nothing of the administrator's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import requests
from kube import Kube

Json = dict[str, Any]
RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces"


class Tenant(Kube):
    """Requests by path, as a service account of one namespace that has these rules there."""

    def __init__(
        self, admin: Kube, kubeconfig: Path, namespace: str, name: str, rules: list[Json]
    ) -> None:
        super().__init__(kubeconfig)
        self.namespace_name, self.account = namespace, name
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        admin.create(accounts, {"metadata": {"name": name}})
        admin.create(f"{RBAC}/{namespace}/roles", {"metadata": {"name": name}, "rules": rules})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
        binding = {"metadata": {"name": name}, "roleRef": role, "subjects": [subject]}
        admin.create(f"{RBAC}/{namespace}/rolebindings", binding)
        token = admin.create(f"{accounts}/{name}/token", {"spec": {}})["status"]["token"]
        verify = self._session.verify
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = verify
        self._session.headers["Authorization"] = f"Bearer {token}"
