"""What every command has: its arguments, a cluster where it needs one, and where it prints."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

from finetune_cli.cluster import Cluster, connect
from finetune_cli.jobs import Job, parse_job
from finetune_cli.output import dump


@dataclass
class Session:
    """One call of the program."""

    args: argparse.Namespace
    program: str
    """How it was called: `finetune` or `kubectl finetune`."""
    out: TextIO = field(default_factory=lambda: sys.stdout)
    _cluster: Cluster | None = None

    @property
    def cluster(self) -> Cluster:
        """The cluster; connected to when it is asked for."""
        if self._cluster is None:
            self._cluster = connect(self.args.kubeconfig, self.args.context)
        return self._cluster

    @property
    def namespace(self) -> str:
        """The one that was asked for, else the kubeconfig's."""
        named: str | None = self.args.namespace
        return named or self.cluster.namespace

    def job(self, name: str) -> Job:
        """A job of the namespace; `namespace/name` is one of another."""
        namespace, slash, rest = name.partition("/")
        if slash:
            return parse_job(self.cluster.job(namespace, rest))
        return parse_job(self.cluster.job(self.namespace, name))

    def print(self, text: str) -> None:
        """A line or more on standard output, at once."""
        print(text, file=self.out, flush=True)

    def print_data(self, value: object) -> None:
        """Data in the format of `-o`."""
        self.out.write(dump(value, self.args.output))
        self.out.flush()

    @staticmethod
    def now() -> float:
        """Seconds since the epoch."""
        return time.time()
