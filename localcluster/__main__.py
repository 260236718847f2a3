"""The command line: `python -m localcluster --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from localcluster import cluster, images, packages, policies, status, tools
from localcluster.layout import ClusterError, Layout


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m localcluster",
        description="A real one-machine Kubernetes, built from pinned upstream sources.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str, *, directory: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        if directory:
            command.add_argument(
                "--dir", default=".cluster", help="the cluster's directory (default: .cluster)"
            )
        return command

    up = add("up", "Start the cluster of a directory, or check that it runs.")
    up.add_argument("--nodes", type=int, default=1, help="0 (control plane only, no root), 1, 2")
    up.add_argument("--gpus", type=int, default=8, help="nvidia.com/gpu that each node pretends")
    down = add("down", "Stop everything that the directory started.")
    down.add_argument("--purge", action="store_true", help="remove the image stores and logs too")
    add("status", "Show processes, nodes and the kubeconfig.")
    image = add("image", "Build a Dockerfile into the image stores of the nodes.")
    image.add_argument("tag", help="for example localhost/trainer:dev")
    image.add_argument("--dockerfile", type=Path, required=True)
    image.add_argument("--context", type=Path, required=True)
    image.add_argument("--build-arg", action="append", default=[], metavar="K=V")
    enforcing = add("policies", "Enforce NetworkPolicies on the nodes of a running cluster.")
    enforcing.add_argument("--off", action="store_true", help="enforce them no longer")
    tool = add("tool", "Print the path of a program, built if missing.", directory=False)
    tool.add_argument("name", nargs="+", help=", ".join(sorted(tools.all_tools())))
    add("store", "Make ready only what images are built with, before a cluster is up.")
    add("prefetch", "Make all that `up` and `image` need, at once.", directory=False)
    needed = add("system-packages", "Install the Debian packages of nodes.", directory=False)
    needed.add_argument("--check", action="store_true", help="only say what is missing")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "tool":
        print("\n".join(str(path) for path in tools.ensure(arguments.name).values()))
        return 0
    if arguments.command == "prefetch":
        cluster.prefetch()
        return 0
    if arguments.command == "system-packages":
        return packages.report() if arguments.check else packages.ensure()
    layout = Layout.of(arguments.dir)
    if arguments.command == "up":
        cluster.up(layout, arguments.nodes, arguments.gpus)
    elif arguments.command == "down":
        cluster.down(layout, purge=arguments.purge)
    elif arguments.command == "store":
        cluster.open_store(layout)
    elif arguments.command == "policies":
        policies.stop(layout) if arguments.off else policies.start(layout)
    elif arguments.command == "status":
        return status.show(layout)
    else:
        build_args = dict(item.partition("=")[::2] for item in arguments.build_arg)
        cluster.open_store(layout)
        images.build(layout, arguments.tag, arguments.dockerfile, arguments.context, build_args)
    return 0


def main() -> int:
    """Run a command; return the exit status."""
    try:
        return _run(_parser().parse_args())
    except ClusterError as error:
        print(f"localcluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
