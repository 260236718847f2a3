"""`run FILE`: the same manifest on this machine, without a cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from pydantic import ValidationError

from finetune_api.profile import FineTuneProfile, FineTuneProfileSpec
from finetune_cli import localrun, manifest, stages
from finetune_cli.exits import CliError, Exit
from finetune_cli.output import note
from finetune_cli.session import Session


def run_command(session: Session) -> int:
    """`run FILE`: prepare, train and export; ends with the exit code of the stage that failed."""
    args = session.args
    bodies = manifest.read(args.file)
    if len(bodies) > 1:
        raise CliError(f"{args.file} has {len(bodies)} jobs; run takes one", Exit.USAGE)
    job = manifest.parse(bodies[0], args.file)
    name = str(bodies[0]["metadata"]["name"])
    spec = job.spec
    if args.workers is not None:
        workers = spec.workers.model_copy(update={"num_nodes": args.workers})
        spec = spec.model_copy(update={"workers": workers})
    profile = _profile(args.profile) or localrun.local_profile(
        localrun.this_machine(), spec.workers.num_nodes
    )
    base = Path(args.dir or f"finetune-{name}").resolve()
    config = localrun.resolve(name, spec, profile, localrun.lay_out(spec, _given(args), base))
    run_json = stages.write_config(config, base)
    if args.dry_run:
        session.print(str(run_json))
        return Exit.OK
    stages.check_trainer(args.python)
    # Data alone on standard output, where data is asked for.
    output = None if args.output == "table" else sys.stderr.fileno()
    runner = stages.Runner(args.python, run_json, config, base / "outcomes", note, output)
    return _run(session, runner)


def _run(session: Session, runner: stages.Runner) -> int:
    ended = []
    for stage in stages.STAGES:
        note(f"==> {stage}")
        ended.append(runner.run(stage))
        if ended[-1].code:
            break
    last = ended[-1]
    if session.args.output == "table":
        for text in stages.summary(runner.config, ended):
            (note if last.code else session.print)(text)
    else:
        session.print_data(
            {
                "result": None if last.code else runner.config.output_dir,
                "stages": [
                    {
                        "stage": e.stage,
                        "exitCode": e.code,
                        "seconds": round(e.seconds, 1),
                        "outcome": e.outcome.to_json_dict() if e.outcome else None,
                    }
                    for e in ended
                ],
            }
        )
    return last.code


def _given(args: object) -> dict[str, Path]:
    """Directories of this machine, by the claim or ConfigMap that they stand for."""
    found: dict[str, Path] = {}
    for flag, prefix in (("claim", ""), ("configmap", "configmap/")):
        for text in getattr(args, flag):
            name, equals, path = text.partition("=")
            if not equals or not path:
                raise CliError(f"--{flag} {text}: give NAME=DIR", Exit.USAGE)
            found[prefix + name] = Path(path).expanduser()
    return found


def _profile(path: str | None) -> FineTuneProfileSpec | None:
    """A FineTuneProfile from a file."""
    if path is None:
        return None
    try:
        return FineTuneProfile.parse(yaml.safe_load(Path(path).read_text())).spec
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}", Exit.NOT_FOUND) from error
    except (ValidationError, yaml.YAMLError) as error:
        raise CliError(f"{path} is no FineTuneProfile: {error}", Exit.INVALID) from error
