"""The composition root: everything is made and joined here, nothing at import."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import kopf

from finetune_operator import handlers, logs
from finetune_operator.cluster import connect
from finetune_operator.controller import Controller, now
from finetune_operator.metrics import Metrics
from finetune_operator.progress_server import ProgressEndpoint, metrics_app, progress_app, serve
from finetune_operator.settings import Settings, SettingsError


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop, ready = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    cluster = await connect(os.environ.get("KUBECONFIG"))
    metrics = Metrics()
    ca_cert = (Path(settings.tls_dir) / "ca.crt").read_text()
    controller = Controller(cluster, settings, ca_cert, metrics)
    registry = kopf.OperatorRegistry()
    handlers.register(registry, controller)

    address = settings.bind_address
    endpoint = ProgressEndpoint(cluster, metrics, now)
    servers = [
        await serve(metrics_app(metrics, ready.is_set), address, settings.metrics_port),
        await serve(progress_app(endpoint), address, settings.progress_port, settings.tls_dir),
    ]
    watching = kopf.operator(
        registry=registry,
        standalone=True,
        clusterwide=not settings.watch_namespaces,
        namespaces=settings.watch_namespaces,
        ready_flag=ready,
        stop_flag=stop,
    )
    tasks = [asyncio.create_task(watching), asyncio.create_task(handlers.work(controller))]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # a watch that died is an error of the whole process
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in servers:
            await server.cleanup()
        await cluster.close()


def main() -> int:
    """Entry point of `python -m finetune_operator`."""
    try:
        settings = Settings.from_env(os.environ)
    except SettingsError as error:
        print(f"finetune-operator: {error}", file=sys.stderr)
        return 2
    logs.configure(settings.log_format)
    asyncio.run(run(settings))
    return 0
