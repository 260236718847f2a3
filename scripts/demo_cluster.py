"""Where the demonstration runs: a local cluster of our own, kind, or the cluster that is there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

OPERATOR, TRAINER = "localhost/finetune-operator:dev", "localhost/finetune-trainer:dev"
POD_SECONDS = 300


class TargetError(Exception):
    """What is missing, or which command failed."""


def output(command: list[str], stdin: str | None = None, env: Mapping[str, str] = {}) -> str:
    """What a command prints; its errors are shown where it fails."""
    done = subprocess.run(
        command, input=stdin, text=True, capture_output=True, env=os.environ | dict(env)
    )
    if done.returncode != 0:
        raise TargetError(f"`{' '.join(command[:6])} ...` failed:\n{done.stdout}{done.stderr}")
    return done.stdout


@dataclass
class Target:
    """A cluster: how to reach it, and what is special about it."""

    root: Path
    kubeconfig: str
    access_mode: str = "ReadWriteMany"
    gpus_per_worker: int = 0
    builds: bool = True
    build_id: str = "0"

    def prepare(self) -> None:
        """Start it and build both images where the nodes find them, where that is ours to do."""

    @property
    def images(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Repository and tag of operator and trainer."""
        return split(OPERATOR), split(TRAINER)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl."""
        return output([program("kubectl"), *arguments], stdin, {"KUBECONFIG": self.kubeconfig})

    def apply(self, manifests: str) -> None:
        """Server-side apply, with unknown fields refused."""
        self.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", stdin=manifests)

    def helm(self, *arguments: str) -> str:
        """Run Helm."""
        return output([program("helm"), *arguments], None, {"KUBECONFIG": self.kubeconfig})

    @contextmanager
    def helper_pod(self, namespace: str, name: str, claims: Mapping[str, str]) -> Iterator[Pod]:
        """A pod with claims mounted, to copy files in and out and run commands; then removed."""
        manifest = helper_manifest(namespace, name, ":".join(self.images[1]), claims)
        self.kubectl("-n", namespace, "delete", "pod", name, "--ignore-not-found", "--now")
        self.apply(json.dumps(manifest))
        try:
            ready = f"--timeout={POD_SECONDS}s"
            self.kubectl("-n", namespace, "wait", "--for=condition=Ready", f"pod/{name}", ready)
            yield Pod(self, namespace, name)
        finally:
            self.kubectl("-n", namespace, "delete", "pod", name, "--now", "--wait=false")


@dataclass
class Pod:
    """A running helper pod."""

    target: Target
    namespace: str
    name: str

    def run(self, *command: str) -> str:
        """What a command in the pod prints."""
        return self.target.kubectl("-n", self.namespace, "exec", self.name, "--", *command)

    def copy_in(self, path: Path, target: str) -> None:
        """A file into the pod."""
        self.target.kubectl("-n", self.namespace, "cp", str(path), f"{self.name}:{target}")

    def copy_out(self, source: str, path: Path) -> None:
        """A directory out of the pod."""
        self.target.kubectl("-n", self.namespace, "cp", f"{self.name}:{source}", str(path))


def helper_manifest(
    namespace: str, name: str, image: str, claims: Mapping[str, str]
) -> dict[str, object]:
    """A restricted pod that waits to be used."""
    volumes: list[dict[str, object]] = [{"name": "tmp", "emptyDir": {}}]
    mounts: list[dict[str, object]] = [{"name": "tmp", "mountPath": "/tmp"}]
    for number, (claim, path) in enumerate(claims.items()):
        source = {"claimName": claim}
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": source})
        mounts.append({"name": f"claim-{number}", "mountPath": path})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "helper",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python", "-c", "import time; time.sleep(3600)"],
                    "env": [
                        {"name": "HOME", "value": "/tmp"},
                        {"name": "HF_HOME", "value": "/tmp/hf"},
                        {"name": "OMP_NUM_THREADS", "value": "1"},
                    ],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": mounts,
                }
            ],
            "volumes": volumes,
        },
    }


class Local(Target):
    """The real one-machine Kubernetes of `localcluster/`."""

    def prepare(self) -> None:
        # Images wait for the network and the disk, the programs of the cluster for the processors.
        self._localcluster("store")
        builds = [self._build(OPERATOR, "operator"), self._build(TRAINER, "trainer_image")]
        try:
            self._localcluster("prefetch")
            self._localcluster("up", "--nodes", "1", "--gpus", "8")
            for build, log in builds:
                if build.wait() != 0:
                    said = log.read_text(errors="replace")[-4000:]
                    raise TargetError(f"an image could not be built, see {log}:\n{said}")
                print(log.read_text().splitlines()[-1], flush=True)
        finally:
            for build, _ in builds:
                build.terminate()  # nothing, if it has ended
        self.build_id = source_hash(self.root)

    def _build(self, tag: str, directory: str) -> tuple[subprocess.Popen[bytes], Path]:
        log = self.root / "build" / "demo" / f"image-{directory}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"building {tag} meanwhile; log: {log.relative_to(self.root)}", flush=True)
        command = [sys.executable, "-m", "localcluster", "image", "--context", ".", tag]
        dockerfile = ("--dockerfile", f"{directory}/Dockerfile")
        with log.open("wb") as output:
            build = subprocess.Popen(
                [*command, *dockerfile], cwd=self.root, stdout=output, stderr=subprocess.STDOUT
            )
        return build, log

    def _localcluster(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "localcluster", *arguments]
        if subprocess.run(command, cwd=self.root).returncode != 0:
            raise TargetError(f"localcluster {arguments[0]} failed, see above")


class Kind(Target):
    """kind, where Docker runs."""

    name = "finetune-demo"

    def prepare(self) -> None:
        kind = program("kind")
        if self.name not in output([kind, "get", "clusters"]).split():
            subprocess.run([kind, "create", "cluster", "--name", self.name], check=True)
        Path(self.kubeconfig).parent.mkdir(parents=True, exist_ok=True)
        Path(self.kubeconfig).write_text(output([kind, "get", "kubeconfig", "--name", self.name]))
        for tag, directory in ((OPERATOR, "operator"), (TRAINER, "trainer_image")):
            build = ["docker", "build", "--tag", tag, "--file", f"{directory}/Dockerfile", "."]
            subprocess.run(build, check=True, cwd=self.root)
            load = [program("kind"), "load", "docker-image", tag, "--name", self.name]
            subprocess.run(load, check=True)
        self.build_id = source_hash(self.root)


class Current(Target):
    """The cluster that KUBECONFIG names, with images that its nodes can pull."""

    @property
    def images(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return split(os.environ["OPERATOR_IMAGE"]), split(os.environ["TRAINER_IMAGE"])


def choose(choice: str, root: Path) -> Target:
    """The cluster to use; raises `TargetError` that says what is missing."""
    docker = shutil.which("docker") is not None and (
        subprocess.run(["docker", "info"], capture_output=True).returncode == 0
    )
    if choice == "current":
        missing = [
            name
            for name in ("KUBECONFIG", "OPERATOR_IMAGE", "TRAINER_IMAGE")
            if not os.environ.get(name)
        ]
        if missing:
            raise TargetError(
                f"CLUSTER=current needs {', '.join(missing)} in the environment: the cluster, and "
                "the images as its nodes can pull them (build operator/Dockerfile and "
                "trainer_image/Dockerfile from the repository's root, and push them)"
            )
        access_mode = os.environ.get("ACCESS_MODE", "ReadWriteMany")
        return Current(root, os.environ["KUBECONFIG"], access_mode=access_mode, builds=False)
    if choice == "kind" or (choice == "auto" and docker):
        if not docker:
            raise TargetError("CLUSTER=kind needs a running Docker; `docker info` failed")
        config = str(root / ".cluster" / "kind-kubeconfig")
        return Kind(root, config, access_mode="ReadWriteOnce")
    if choice == "auto" and os.geteuid() != 0:
        raise TargetError(
            "containers need root (on Debian or Ubuntu) or a running Docker, and here is neither.\n"
            "Run it as root, or start Docker, or use a cluster you have (KUBECONFIG=... "
            "CLUSTER=current),\nor run the same three stages on this machine without a cluster: "
            "make demo LOCAL=1"
        )
    return Local(root, str(root / ".cluster" / "kubeconfig"), gpus_per_worker=1)


def program(name: str) -> str:
    """A program: the one on the PATH, else built from pinned sources."""
    found = shutil.which(name)
    if found is not None and name != "helm":
        return found
    done = subprocess.run(
        [sys.executable, "-m", "localcluster", "tool", name], stdout=subprocess.PIPE, text=True
    )
    if done.returncode != 0:
        raise TargetError(f"{name} could not be built, see above")
    return done.stdout.strip()


def split(image: str) -> tuple[str, str]:
    """Repository and tag."""
    repository, _, tag = image.rpartition(":")
    if not repository or "/" in tag:
        raise TargetError(f"{image!r} needs a tag: repository:tag")
    return repository, tag


def source_hash(root: Path) -> str:
    """Changes with the operator's source, so that a new build restarts it."""
    digest = hashlib.sha256()
    for directory in ("api", "operator"):
        for path in sorted((root / directory).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
