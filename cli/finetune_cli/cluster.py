"""The only module that talks to the API server, by the official client.

Requests are made by path: manifests stay dictionaries. The client takes a second or two to import,
so it is imported when it is needed, and `--help` does not wait for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from finetune_api.base import API_VERSION
from finetune_cli import __version__
from finetune_cli.exits import CliError, Exit
from finetune_cli.frames import RESULT, STDERR, STDOUT, check_result, frames

Json = dict[str, Any]
FINETUNE = f"/apis/{API_VERSION}"
FIELD_OWNER = "finetune-cli"
TIMEOUT = (10.0, 30.0)
"""Seconds to connect, and to wait for something to come."""


class ApiError(CliError):
    """The API server refused; `status` is the HTTP status, `causes` its list of fields and
    messages."""

    def __init__(self, status: int, message: str, causes: tuple[tuple[str, str], ...] = ()) -> None:
        code = {404: Exit.NOT_FOUND, 422: Exit.INVALID}.get(status, Exit.FAILED)
        super().__init__(message, code)
        self.status = status
        self.causes = causes


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and the warnings that came with it."""

    body: Json
    warnings: tuple[str, ...] = ()


class Cluster:
    """Requests, by path."""

    def __init__(self, api: Any, namespace: str) -> None:
        self._api = api
        self.namespace = namespace
        """The one that the kubeconfig names, else `default`."""

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request.

        Raises:
            ApiError: the API server refused.
            CliError: it does not answer.
        """
        answer = self._send(method, path, body, content_type, query or {})
        data = answer.data
        if answer.status >= 300:
            raise _error(answer.status, data)
        return Answer(json.loads(data) if data else {}, _warnings(answer.headers.get("Warning")))

    def get(self, path: str, **query: str) -> Json:
        """The body of a `GET`."""
        return self.request("GET", path, query=query).body

    def items(self, path: str, **query: str) -> list[Json]:
        """The items of a list."""
        found: list[Json] = self.get(path, **query)["items"]
        return found

    def job(self, namespace: str, name: str) -> Json:
        """One FineTuneJob.

        Raises:
            CliError: there is none of that name.
        """
        return self.get(job_path(namespace, name))

    def jobs(self, namespace: str | None) -> list[Json]:
        """All of a namespace, or with None of the cluster."""
        if namespace is None:
            return self.items(f"{FINETUNE}/finetunejobs")
        return self.items(job_path(namespace))

    def gpus_of_profiles(self) -> dict[str, int] | None:
        """GPUs of a node by profile; None: this user may not read profiles."""
        try:
            found = self.items(f"{FINETUNE}/finetuneprofiles")
        except ApiError as error:
            if error.status in (401, 403):
                return None
            raise
        default = 8  # what the CRD fills in
        return {
            p["metadata"]["name"]: p.get("spec", {}).get("node", {}).get("gpusPerNode", default)
            for p in found
        }

    def pods(self, namespace: str, selector: str) -> list[Json]:
        """Pods with labels."""
        return self.items(f"/api/v1/namespaces/{quote(namespace)}/pods", labelSelector=selector)

    def events(self, namespace: str, name: str) -> list[Json]:
        """Events about the job and what belongs to it, by their names; none where they may not be
        read: they only add to what the status says."""
        try:
            found = self.items(f"/api/v1/namespaces/{quote(namespace)}/events")
        except ApiError as error:
            if error.status in (401, 403):
                return []
            raise
        starts = (f"{name}-prepare", f"{name}-train-", f"{name}-export", f"{name}-work")
        return [
            event
            for event in found
            if event["involvedObject"].get("name") == name
            or str(event["involvedObject"].get("name", "")).startswith(starts)
        ]

    def log(self, namespace: str, pod: str, container: str, **query: str) -> Iterator[str]:
        """The lines of a pod's log; with `follow="true"` until it ends.

        Raises:
            ApiError: the pod is gone, or has not started.
        """
        path = f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}/log"
        wanted = {"container": container} | query
        answer = self._send("GET", path, None, "application/json", wanted, stream=True)
        if answer.status >= 300:
            raise _error(answer.status, answer.data)
        rest = b""
        for chunk in answer.stream(65_536, decode_content=True):
            *lines, rest = (rest + chunk).split(b"\n")
            for found in lines:
                yield found.decode(errors="replace")
        if rest:
            yield rest.decode(errors="replace")

    def run(self, namespace: str, pod: str, container: str, command: list[str]) -> Iterator[bytes]:
        """What a command in a container writes to its standard output, as it comes.

        Raises:
            CliError: it ended with an error; with what it wrote to its standard error.
        """
        from kubernetes.client import CoreV1Api
        from kubernetes.stream import stream

        client = stream(
            CoreV1Api(self._api).connect_get_namespaced_pod_exec,
            pod,
            namespace,
            container=container,
            command=command,
            stdin=False,
            stdout=True,
            stderr=True,
            tty=False,
            binary=True,
            _preload_content=False,
        )
        said, result = b"", b""
        try:
            # By frame: the client's own buffers would take in a whole model where the network is
            # faster than the disk.
            for frame in frames(client.sock):
                channel, data = frame[0], frame[1:]
                if channel == STDOUT and data:
                    yield data
                elif channel == STDERR:
                    said = (said + data)[-4096:]
                elif channel == RESULT:
                    result += data
        finally:
            client.close()
        check_result(command, result, said)

    def _send(
        self,
        method: str,
        path: str,
        body: Any,
        content_type: str,
        query: Mapping[str, str],
        stream: bool = False,
    ) -> Any:
        from urllib3.exceptions import HTTPError

        headers = {"Accept": "application/json", "User-Agent": f"finetune-cli/{__version__}"}
        api = self._api
        api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = api.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        if body is not None:
            headers["Content-Type"] = content_type
        timeout = (TIMEOUT[0], None) if stream else TIMEOUT
        from urllib3 import Timeout

        try:
            return api.rest_client.pool_manager.request(
                method,
                url,
                headers=headers,
                body=None if body is None else json.dumps(body),
                timeout=Timeout(connect=timeout[0], read=timeout[1]),
                retries=1 if method == "GET" else False,
                preload_content=not stream,
            )
        except HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise CliError(
                f"the API server {api.configuration.host} does not answer: {reason}",
                Exit.NO_CLUSTER,
            ) from error


def connect(kubeconfig: str | None, context: str | None) -> Cluster:
    """The cluster that the kubeconfig names, or in a pod the one that it runs in.

    Raises:
        CliError: none is configured.
    """
    from kubernetes import client, config

    # As by `Any`: the client has types for a part of these functions only.
    load: Any = config
    configuration = client.Configuration()
    in_pod = Path("/var/run/secrets/kubernetes.io/serviceaccount")
    try:
        if kubeconfig is None and context is None and _no_file(load) and in_pod.is_dir():
            load.load_incluster_config(client_configuration=configuration)
            namespace = (in_pod / "namespace").read_text().strip()
        else:
            load.load_kube_config(kubeconfig, context, client_configuration=configuration)
            contexts, active = load.list_kube_config_contexts(kubeconfig)
            wanted = context or active["name"]
            found = next(c for c in contexts if c["name"] == wanted)
            namespace = found["context"].get("namespace") or "default"
    except (config.ConfigException, OSError, TypeError) as error:
        raise CliError(
            f"no cluster is configured: {error}; set KUBECONFIG or --kubeconfig", Exit.NO_CLUSTER
        ) from error
    return Cluster(client.ApiClient(configuration), namespace)


def _no_file(config: Any) -> bool:
    paths = str(config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION).split(":")
    return not any(Path(path).expanduser().is_file() for path in paths)


def job_path(namespace: str, name: str | None = None) -> str:
    """Path of the jobs of a namespace, or of one."""
    path = f"{FINETUNE}/namespaces/{quote(namespace, safe='')}/finetunejobs"
    return path if name is None else f"{path}/{quote(name, safe='')}"


def _error(status: int, data: bytes) -> ApiError:
    try:
        body = json.loads(data)
    except ValueError:
        body = {"message": data.decode(errors="replace").strip()}
    message = str(body.get("message") or f"HTTP status {status}")
    if status == 404 and not body.get("details"):
        return ApiError(
            status,
            "the API server does not know FineTuneJobs; is finetune-operator installed in this "
            "cluster?",
        )
    causes = (body.get("details") or {}).get("causes") or []
    return ApiError(
        status, message, tuple((c.get("field") or "", c.get("message") or "") for c in causes)
    )


def _warnings(header: str | None) -> tuple[str, ...]:
    """The texts of a `Warning` header: `299 - "text"`, several by commas."""
    if not header:
        return ()
    return tuple(part.rstrip('", ') for part in header.split('299 - "')[1:])
