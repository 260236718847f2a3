"""A job on this machine: its manifest and a profile turned into `run.json`, with local paths."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.profile import FineTuneProfileSpec
from finetune_api.resolve import Paths, run_config
from finetune_api.run_config import RunConfig
from finetune_api.snapshot import Refused, make_snapshot
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_cli.exits import CliError, Exit

SCHEMES = ("pvc", "configmap")


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine has."""

    memory_bytes: int
    gpus: int
    gpu_memory_gib: int | None
    """Of one; None: not known."""


def this_machine() -> Machine:
    """Memory, and the GPUs that the NVIDIA driver knows of."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    program = shutil.which("nvidia-smi")
    if program is None:
        return Machine(memory, 0, None)
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True)
    sizes = [int(line) for line in done.stdout.split() if line.isdigit()]
    if done.returncode != 0 or not sizes:
        return Machine(memory, 0, None)
    return Machine(memory, len(sizes), min(sizes) // 1024)


def local_profile(machine: Machine, workers: int) -> FineTuneProfileSpec:
    """What a worker gets here: all GPUs, and its share of the memory."""
    node: dict[str, object] = {"memory": f"{machine.memory_bytes // workers // 2**20}Mi"}
    if machine.gpus:
        node |= {"accelerator": "CUDA", "gpusPerNode": machine.gpus}
        node |= {"gpuMemoryGiB": machine.gpu_memory_gib} if machine.gpu_memory_gib else {}
    else:
        node |= {"accelerator": "CPU", "gpusPerNode": 0}
    return FineTuneProfileSpec.parse({"node": node})


def sources(spec: FineTuneJobSpec) -> dict[str, str]:
    """The URIs of a job that lie in a cluster, by the field that has them."""
    retention, output = spec.evaluation.retention, spec.output
    found = {
        "spec.model.uri": spec.model.uri,
        "spec.dataset.uri": spec.dataset.uri,
        "spec.evaluation.retention.uri": retention.uri if retention else "",
        "spec.output.uri": output.uri if output else "",
    }
    return {field: uri for field, uri in found.items() if uri.partition("://")[0] in SCHEMES}


def missing(spec: FineTuneJobSpec, given: Mapping[str, Path]) -> list[str]:
    """Which directories of this machine have to be named; a line each, with the flag.

    Args:
        given: Directories by `claim` or `configmap/name`.
    """
    found = []
    for field, uri in sources(spec).items():
        scheme, _, rest = uri.partition("://")
        name = rest.split("/")[0]
        if scheme == "pvc" and field != "spec.output.uri" and name not in given:
            found.append(f"{field} is {uri}: name the directory here by --claim {name}=DIR")
        if scheme == "configmap" and f"configmap/{name}" not in given:
            found.append(f"{field} is {uri}: name the directory here by --configmap {name}=DIR")
    return found


def lay_out(spec: FineTuneJobSpec, given: Mapping[str, Path], base: Path) -> Paths:
    """Claims and ConfigMaps below `base`, as a pod sees them: links to what was given; the claim
    of the result is a directory of its own where none was given.

    Raises:
        CliError: a directory is not named, or not there.
    """
    wrong = missing(spec, given)
    wrong += [f"{path} is no directory" for path in given.values() if not path.is_dir()]
    if wrong:
        raise CliError("\n".join(wrong), Exit.USAGE)
    claims, maps = base / "claims", base / "configmaps"
    for field, uri in sources(spec).items():
        scheme, _, rest = uri.partition("://")
        name = rest.split("/")[0]
        if scheme == "pvc" and name in given:
            _link(claims / name, given[name])
        elif scheme == "pvc":
            (claims / name).mkdir(parents=True, exist_ok=True)
        else:
            of = "retention" if "retention" in field else "dataset"
            _link(maps / of, given[f"configmap/{name}"])
    return Paths(str(base / "work"), str(claims), str(maps))


def _link(place: Path, target: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        place.unlink()
    elif place.is_dir() and not any(place.iterdir()):
        place.rmdir()
    elif place.exists():
        raise CliError(f"{place} is in the way of {target}; remove it, or take another --dir")
    place.symlink_to(target.resolve(), target_is_directory=True)


def resolve(
    name: str, spec: FineTuneJobSpec, profile: FineTuneProfileSpec, paths: Paths
) -> RunConfig:
    """What the three stages are told.

    Raises:
        CliError: the job and the profile do not fit.
    """
    wanted = spec.profile or "local"
    snapshot = make_snapshot(
        spec.model_copy(update={"profile": wanted}), {wanted: profile}, "local"
    )
    if isinstance(snapshot, Refused):
        raise CliError(f"{snapshot.reason}: {snapshot.message}", Exit.INVALID)
    return run_config("local", name, "local", snapshot, paths)
