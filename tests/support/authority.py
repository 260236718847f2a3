"""An authority that issues certificates for 127.0.0.1, mounted as a kubelet does it."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

SECRET = ("tls.crt", "tls.key", "ca.crt")


class Authority:
    """A CA of one day."""

    def __init__(self, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        made = _builder(self._name, self._name, self._key)
        basic = x509.BasicConstraints(ca=True, path_length=0)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        made = made.add_extension(basic, critical=True).add_extension(usage, critical=True)
        self.pem = _pem(made.sign(self._key, hashes.SHA256()))
        """The authority's own certificate."""

    def issue(self) -> dict[str, bytes]:
        """A new certificate with a new key: the data of a Secret."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "operator")])
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        made = _builder(subject, self._name, key).add_extension(here, critical=False)
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        served = _pem(made.sign(self._key, hashes.SHA256()))
        return {"tls.crt": served, "tls.key": secret, "ca.crt": self.pem}


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def mount(directory: Path, data: dict[str, bytes]) -> None:
    """Write or change the files as a kubelet does: a new folder, then one link is moved to it."""
    number = len(list(directory.glob("..20*")))
    folder = directory / f"..20{number}"
    folder.mkdir(parents=True)
    for name, content in data.items():
        (folder / name).write_bytes(content)
    (directory / "..data_tmp").symlink_to(folder.name)
    os.replace(directory / "..data_tmp", directory / "..data")
    for name in data:
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")
