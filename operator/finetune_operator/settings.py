"""The operator's settings. This module is the only reader of the environment."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from finetune_api.names import USER

PREFIX = "FINETUNE_"
ASSIGNED = "Assigned"


class SettingsError(Exception):
    """The environment is incomplete or wrong; the message names the variable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where the operator runs and what it starts. Field `x_y` is the variable `FINETUNE_X_Y`."""

    namespace: str
    """The operator's own namespace."""
    trainer_image: str
    """Image of the trainer's pods, where the profile names none."""
    trainer_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """Pull policy of the trainer's pods."""
    trainer_user: int | None = USER
    """User and group of the trainer's pods; None (`FINETUNE_TRAINER_USER=Assigned`): the cluster
    assigns them, as OpenShift does, and refuses others."""
    fetch_cidrs: tuple[str, ...] = ()
    """Private addresses that prepare may reach beside the public ones: a mirror of the Hub, a proxy
    (`FINETUNE_FETCH_CIDRS=10.1.2.0/24,10.9.8.7/32`)."""
    progress_url: str
    """Base URL of the progress endpoint, as pods reach it."""
    progress_port: int = 8443
    """Port the progress endpoint listens on (TLS)."""
    metrics_port: int = 8080
    """Port of `/metrics`, `/healthz` and `/readyz`."""
    bind_address: str = "0.0.0.0"  # noqa: S104 (a pod has one address, and it is not known before)
    """Address both servers listen on."""
    tls_dir: str = "/etc/finetune/tls"
    """Directory with `tls.crt`, `tls.key` and `ca.crt`."""
    watch_namespaces: tuple[str, ...] = ()
    """Namespaces to serve; empty: all."""
    log_format: Literal["text", "json"] = "text"
    """Form of the log lines."""
    resync_seconds: float = 300.0
    """How often every job is looked at, whatever the events said."""
    identity: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    """Name of this replica in the Lease. No two may have the same at the same time; one that is
    started anew may have its old one, and then leads at once again."""
    lease_name: str = "finetune-operator"
    """The Lease that the replicas share."""
    lease_seconds: float = 10.0
    """After so many seconds without a sign of life of the leader another replica leads."""
    watch_silence_seconds: float = 70.0
    """A watch over which nothing came for so long is made anew. The API server sends a bookmark
    every 60 seconds."""

    @staticmethod
    def from_env(environ: Mapping[str, str]) -> Settings:
        """Read `FINETUNE_*`; raises `SettingsError`."""

        def text(name: str, default: str | None = None) -> str:
            value = environ.get(PREFIX + name) or default
            if value is None:
                raise SettingsError(f"set {PREFIX}{name}")
            return value

        def number(name: str, default: float) -> float:
            raw = environ.get(PREFIX + name) or str(default)
            try:
                return float(raw)
            except ValueError:
                raise SettingsError(f"{PREFIX}{name} must be a number, not {raw!r}") from None

        def at_least(least: float, name: str, default: float) -> float:
            value = number(name, default)
            if value < least:
                raise SettingsError(f"{PREFIX}{name} must be {least} or more, not {value:g}")
            return value

        pull, log = text("TRAINER_PULL_POLICY", "IfNotPresent"), text("LOG_FORMAT", "text")
        if pull not in ("Always", "IfNotPresent", "Never"):
            raise SettingsError(
                f"{PREFIX}TRAINER_PULL_POLICY must be Always, IfNotPresent or Never"
            )
        if log not in ("text", "json"):
            raise SettingsError(f"{PREFIX}LOG_FORMAT must be text or json")
        names = environ.get(PREFIX + "WATCH_NAMESPACES", "").split(",")
        return Settings(
            namespace=text("NAMESPACE"),
            trainer_image=text("TRAINER_IMAGE"),
            trainer_pull_policy=pull,  # type: ignore[arg-type]
            trainer_user=_user(text("TRAINER_USER", str(USER))),
            fetch_cidrs=_networks(environ.get(PREFIX + "FETCH_CIDRS", "")),
            progress_url=text("PROGRESS_URL").rstrip("/"),
            progress_port=int(number("PROGRESS_PORT", 8443)),
            metrics_port=int(number("METRICS_PORT", 8080)),
            bind_address=text("BIND_ADDRESS", "0.0.0.0"),  # noqa: S104
            tls_dir=text("TLS_DIR", "/etc/finetune/tls"),
            watch_namespaces=tuple(n.strip() for n in names if n.strip()),
            log_format=log,  # type: ignore[arg-type]
            resync_seconds=number("RESYNC_SECONDS", 300.0),
            identity=text("IDENTITY", f"{socket.gethostname()}-{os.getpid()}"),
            lease_name=text("LEASE_NAME", "finetune-operator"),
            lease_seconds=at_least(2, "LEASE_SECONDS", 10.0),
            watch_silence_seconds=at_least(1, "WATCH_SILENCE_SECONDS", 70.0),
        )


def _user(text: str) -> int | None:
    if text == ASSIGNED:
        return None
    if not text.isdecimal() or int(text) == 0:
        name = f"{PREFIX}TRAINER_USER"
        raise SettingsError(f"{name} must be {ASSIGNED} or a number above 0, not {text!r}")
    return int(text)


def _networks(text: str) -> tuple[str, ...]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    for cidr in found:
        try:
            ipaddress.ip_network(cidr)
        except ValueError as error:
            raise SettingsError(f"{PREFIX}FETCH_CIDRS: {error}") from None
    return tuple(found)
