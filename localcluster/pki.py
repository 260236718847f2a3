"""Certificates and kubeconfigs, by the `openssl` command."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

from localcluster.layout import ClusterError, Layout, State, write_atomically

DAYS = "3650"
_CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def _openssl(*arguments: str | Path) -> None:
    if shutil.which("openssl") is None:
        raise ClusterError("the command `openssl` is missing (Debian package: openssl)")
    command = ["openssl", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed:\n{result.stderr}")


def ensure_authority(pki: Path) -> None:
    """Make the certificate authority and the key that signs service account tokens."""
    pki.mkdir(parents=True, exist_ok=True)
    pki.chmod(0o700)
    if not (pki / "ca.crt").exists():
        subject = ["-subj", "/CN=localcluster"]
        out: list[str | Path] = ["-keyout", pki / "ca.key", "-out", pki / ".ca.crt"]
        _openssl("req", "-x509", *_CURVE, *out, "-days", DAYS, *subject)
        (pki / ".ca.crt").replace(pki / "ca.crt")
    if not (pki / "sa.pub").exists():
        parameters = ["-pkeyopt", "ec_paramgen_curve:prime256v1"]
        _openssl("genpkey", "-algorithm", "EC", *parameters, "-out", pki / "sa.key")
        _openssl("pkey", "-in", pki / "sa.key", "-pubout", "-out", pki / ".sa.pub")
        (pki / ".sa.pub").replace(pki / "sa.pub")


def ensure_certificate(
    pki: Path, name: str, subject: str, alternatives: tuple[str, ...] = ()
) -> None:
    """Make a certificate unless there is one for the same subject and alternative names."""
    wanted = json.dumps([subject, alternatives])
    note = pki / f"{name}.json"
    if note.exists() and note.read_text() == wanted:
        return
    key, request, certificate = pki / f"{name}.key", pki / f"{name}.csr", pki / f"{name}.crt"
    extensions = pki / f"{name}.ext"
    lines = ["extendedKeyUsage=clientAuth,serverAuth"]
    if alternatives:
        lines.append(f"subjectAltName={','.join(alternatives)}")
    extensions.write_text("\n".join(lines) + "\n")
    _openssl("req", *_CURVE, "-keyout", key, "-out", request, "-subj", subject)
    signer: list[str | Path] = ["-CA", pki / "ca.crt", "-CAkey", pki / "ca.key", "-CAcreateserial"]
    result: list[str | Path] = ["-out", certificate, "-days", DAYS, "-extfile", extensions]
    _openssl("x509", "-req", "-in", request, *signer, *result)
    request.unlink()
    extensions.unlink()
    note.write_text(wanted)


def kubeconfig(server: str, authority: bytes, certificate: bytes, key: bytes) -> str:
    """Return a kubeconfig that embeds everything it needs (JSON, which is YAML too)."""

    def encoded(data: bytes) -> str:
        return base64.b64encode(data).decode()

    user = {"client-certificate-data": encoded(certificate), "client-key-data": encoded(key)}
    cluster = {"server": server, "certificate-authority-data": encoded(authority)}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "localcluster", "cluster": cluster}],
        "users": [{"name": "localcluster", "user": user}],
        "contexts": [
            {"name": "localcluster", "context": {"cluster": "localcluster", "user": "localcluster"}}
        ],
        "current-context": "localcluster",
    }
    return json.dumps(content, indent=2) + "\n"


def write_kubeconfig(layout: Layout, server: str, name: str, path: Path) -> None:
    """Write the kubeconfig of the user whose certificate has this name."""
    pki = layout.pki
    files = [pki / "ca.crt", pki / f"{name}.crt", pki / f"{name}.key"]
    text = kubeconfig(server, *(file.read_bytes() for file in files))
    if not path.exists() or path.read_text() != text:
        write_atomically(path, text, mode=0o600)


def component_kubeconfig(layout: Layout, name: str) -> Path:
    """Return the path of the kubeconfig of a component."""
    return layout.config / f"{name}.kubeconfig"


CLIENTS = {
    "admin": "/O=system:masters/CN=admin",
    "kube-controller-manager": "/CN=system:kube-controller-manager",
    "kube-scheduler": "/CN=system:kube-scheduler",
}
NODE_CLIENTS = {
    "kube-proxy": "/CN=system:kube-proxy",
    "coredns": "/CN=system:coredns",
    "provisioner": "/CN=system:provisioner",
    "netpol-agent": "/CN=system:netpol-agent",
}


def ensure_pki(layout: Layout, state: State) -> None:
    """Make every certificate and kubeconfig that a cluster needs and does not have."""
    ensure_authority(layout.pki)
    first_service = state.addresses.first_service if state.nodes else "10.96.0.1"
    names = ("DNS:localhost", "DNS:kubernetes.default.svc", "DNS:kubernetes.default")
    addresses = ("127.0.0.1", state.api_address, first_service)
    alternatives = names + tuple(f"IP:{address}" for address in dict.fromkeys(addresses))
    ensure_certificate(layout.pki, "apiserver", "/CN=kube-apiserver", alternatives)
    clients = dict(CLIENTS)
    if state.nodes:
        clients.update(NODE_CLIENTS)
        subject = "/O=system:masters/CN=kube-apiserver-kubelet-client"
        ensure_certificate(layout.pki, "kubelet-client", subject)
    for number in range(1, state.nodes + 1):
        clients[f"node-{number}"] = f"/O=system:nodes/CN=system:node:node-{number}"
        address = f"IP:{state.addresses.node(number)}"
        serving = (address, f"DNS:node-{number}")
        ensure_certificate(layout.pki, f"kubelet-{number}", f"/CN=node-{number}", serving)
    for name, subject in clients.items():
        ensure_certificate(layout.pki, name, subject)
        write_kubeconfig(layout, state.api_url, name, component_kubeconfig(layout, name))
    write_kubeconfig(layout, state.api_url, "admin", layout.kubeconfig)
