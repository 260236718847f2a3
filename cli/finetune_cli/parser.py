"""The command line: commands, arguments, help."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from finetune_cli import __version__
from finetune_cli.exits import Exit

EPILOG = f"""exit codes:
  {Exit.OK:>3}  done
  {Exit.FAILED:>3}  the API server refused, or something else did not work
  {Exit.USAGE:>3}  the command line is wrong
  {Exit.INVALID:>3}  the manifest is wrong
  {Exit.NOT_FOUND:>3}  no such job, file, pod or result
  {Exit.NO_CLUSTER:>3}  no cluster, no answer from it, or no finetune-operator in it
  {Exit.JOB_FAILED:>3}  a job that was watched has failed
  {Exit.CORRUPT:>3}  what was fetched is not what the job wrote
  {Exit.TIMEOUT:>3}  it took longer than --timeout
  {Exit.INTERRUPTED:>3}  Ctrl-C
`run` ends with the code of the stage that failed: 10 to 14 yours to mend (settings, data, model,
memory, divergence), 143 stopped after saving, 203 to 205 the machine's.
"""


def build(program: str) -> argparse.ArgumentParser:
    """All commands. A positional argument whose metavar begins with JOB is the name of a job."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Fine-tuning jobs: write, check, submit, watch and understand them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    common = _common()
    _writing(commands, common)
    _looking(commands, common)
    _changing(commands, common)
    _local(commands, common)
    return parser


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("cluster and output")
    group.add_argument("-n", "--namespace", help="namespace; default: the kubeconfig's")
    group.add_argument("--context", help="context of the kubeconfig")
    group.add_argument("--kubeconfig", metavar="FILE", help="default: $KUBECONFIG, ~/.kube/config")
    group.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table")
    return common


if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def _add(
    commands: Commands, common: argparse.ArgumentParser, name: str, text: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=[common]
    )


def _writing(commands: Commands, common: argparse.ArgumentParser) -> None:
    init = _add(commands, common, "init", "write a commented manifest; asks what is not given")
    init.add_argument("--name", help="name of the job")
    init.add_argument("--model", metavar="URI", help="hf://owner/name or pvc://claim/path")
    init.add_argument("--dataset", metavar="URI", help="hf://..., pvc://... or configmap://...")
    init.add_argument("--objective", choices=("SFT", "CPT", "DPO", "KTO", "ORPO"))
    init.add_argument("--tuning", choices=("LoRA", "QLoRA", "Full"))
    init.add_argument("--workers", type=int, metavar="N", help="worker pods")
    init.add_argument("--epochs", type=float, metavar="N", help="passes over the data")
    init.add_argument("--profile", help="FineTuneProfile")
    init.add_argument("--output-uri", metavar="URI", help="pvc://claim/path for the result")
    init.add_argument("-f", "--file", default="job.yaml", help="default: job.yaml; -: print it")
    init.add_argument("--force", action="store_true", help="replace the file")

    text = "check a manifest: types here, rules by a dry run of the API server, the profile"
    validate = _add(commands, common, "validate", text)
    validate.add_argument("file", metavar="FILE", help="manifest; -: standard input")
    validate.add_argument("--offline", action="store_true", help="ask no cluster")

    submit = _add(commands, common, "submit", "make the job of a manifest")
    submit.add_argument("file", metavar="FILE", help="manifest; -: standard input")
    submit.add_argument("--name", help="another name than the manifest's")
    submit.add_argument("--dry-run", action="store_true", help="make nothing")
    submit.add_argument("-w", "--watch", action="store_true", help="watch it to its end")
    _polling(submit)


def _polling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="SECONDS", help="between looks; default: 2"
    )
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="give up after so long (exit code 8)"
    )


def _looking(commands: Commands, common: argparse.ArgumentParser) -> None:
    text = "see jobs live, until all that are named are over; lines where there is no terminal"
    watch = _add(commands, common, "watch", text)
    watch.add_argument("jobs", nargs="*", metavar="JOB", help="default: all of the namespace")
    watch.add_argument("-A", "--all-namespaces", action="store_true")
    watch.add_argument("--once", action="store_true", help="print them once")
    _polling(watch)

    logs = _add(commands, common, "logs", "print the log of rank 0, one worker, all, or the failed")
    logs.add_argument("job", metavar="JOB")
    which = logs.add_mutually_exclusive_group()
    which.add_argument("--worker", type=int, metavar="N", help="worker pod, from 0")
    which.add_argument("--rank", type=int, metavar="N", help="the worker pod of this rank")
    which.add_argument("--all", action="store_true", help="all pods of the stage")
    which.add_argument("--failed", action="store_true", help="the pod that failed first")
    logs.add_argument("--stage", choices=("prepare", "train", "export"), help="default: newest")
    logs.add_argument("--attempt", type=int, metavar="N", help="of training; default: newest")
    logs.add_argument("--tail", type=int, metavar="N", help="last lines only")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until it ends")

    text = "say why a job waits or what killed it, and what to try"
    _add(commands, common, "explain", text).add_argument("job", metavar="JOB")

    plot = _add(commands, common, "plot", "draw loss curves in the terminal, or as PNG")
    plot.add_argument("jobs", nargs="+", metavar="JOB")
    plot.add_argument("--png", metavar="FILE", help="needs matplotlib")
    plot.add_argument("--width", type=int, metavar="N", help="characters; default: the terminal's")
    plot.add_argument("--height", type=int, default=15, metavar="N", help="lines; default: 15")

    compare = _add(commands, common, "compare", "show what is different between two jobs")
    compare.add_argument("a", metavar="JOB_A")
    compare.add_argument("b", metavar="JOB_B")

    text = "bring the result of a job here, and prove it by its hashes"
    fetch = _add(commands, common, "fetch", text)
    fetch.add_argument("job", metavar="JOB")
    fetch.add_argument("dir", metavar="DIR", help="a new or empty directory")
    fetch.add_argument("--image", help="with sleep, cat and tar; default: the job's own")
    fetch.add_argument(
        "--timeout", type=int, default=3600, metavar="SECONDS", help="for all; default: 3600"
    )


def _changing(commands: Commands, common: argparse.ArgumentParser) -> None:
    for name, text in (
        ("suspend", "let jobs save a checkpoint and give their GPUs back"),
        ("resume", "let suspended jobs go on from their checkpoints"),
    ):
        _add(commands, common, name, text).add_argument("jobs", nargs="+", metavar="JOB")


def _local(commands: Commands, common: argparse.ArgumentParser) -> None:
    text = "run a manifest on this machine, without a cluster: prepare, train, export"
    run = _add(commands, common, "run", text)
    run.add_argument("file", metavar="FILE", help="manifest; -: standard input")
    run.add_argument("--dir", metavar="DIR", help="for all it makes; default: finetune-NAME")
    pair = {"action": "append", "default": [], "metavar": "NAME=DIR"}
    run.add_argument("--claim", help="what stands for a claim", **pair)  # type: ignore[arg-type]
    run.add_argument("--configmap", help="for a ConfigMap", **pair)  # type: ignore[arg-type]
    run.add_argument("--profile", metavar="FILE", help="a FineTuneProfile; default: this machine")
    run.add_argument("--workers", type=int, metavar="N", help="in place of spec.workers.numNodes")
    run.add_argument("--python", default="python3", metavar="PATH", help="one with the trainer")
    run.add_argument("--dry-run", action="store_true", help="write run.json only")
    text = "print the script that completes commands and job names"
    shell = commands.add_parser("completion", help=text, description=f"{text}.", parents=[common])
    shell.add_argument("shell", choices=("bash", "zsh", "fish"))
