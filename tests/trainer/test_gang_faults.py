"""What becomes of a gang when one rank dies, stops or runs out of memory, wherever it is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gang_faults import Ended, Fault
from training_builders import arrays, environment, run_config, write_work

from finetune_trainer import cascade
from finetune_trainer.errors import OutOfMemoryError
from finetune_trainer.outcome_file import failure_class_of

CASES = {
    "killed in a step": Fault("SIGKILL", "step"),
    "killed in the evaluation": Fault("SIGKILL", "evaluation"),
    "killed before a barrier": Fault("SIGKILL", "barrier"),
    "stopped in a step": Fault("SIGSTOP", "step"),
    "asleep in a step": Fault("sleep", "step"),
    "asleep in the evaluation": Fault("sleep", "evaluation"),
    "without memory in a step": Fault("memory", "step"),
}
Results = dict[str, tuple[Ended, list[cascade.Ended]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """How every case ended, and what is known of each of its failed ranks."""
    root = tmp_path_factory.mktemp("faults")
    write_work(root / "work", arrays(20, seed=1), arrays(4, seed=2), 5)
    cases = {}
    for number, (name, fault) in enumerate(CASES.items()):
        work = root / f"work-{number}"
        shutil.copytree(root / "work", work)
        run = run_config(work, num_proc_per_node=2).model_dump(mode="json")
        cases[name] = (run, vars(fault), str(root / f"outcomes-{number}"))
    file = root / "cases.json"
    file.write_text(json.dumps(cases))
    done = subprocess.run(
        [sys.executable, "-m", "gang_faults", str(file)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: Results = {}
    for name, ended in json.loads(file.with_suffix(".ended").read_text()).items():
        outcomes, codes = Path(cases[name][2]), ended["codes"]
        ranks = [
            cascade.failure_of(rank, codes[rank], 0.0 if codes[rank] < 0 else 1.0, outcomes)
            for rank in range(2)
        ]
        found[name] = (Ended(**ended), ranks)
    return found


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("killed")])
def test_a_rank_whose_peer_is_killed_ends_with_205_within_seconds(
    results: Results, name: str
) -> None:
    ended, ranks = results[name]
    assert ended.codes == [205, -9]
    assert ended.seconds < 10
    assert ranks[0].failure.failure_class == "PeerLost"
    first = cascade.cause(ranks)
    assert (first.failure.failure_class, first.failure.rank, first.exit_code) == ("Killed", 1, 137)


def test_a_rank_whose_peer_is_stopped_ends_with_204_and_its_stacks(results: Results) -> None:
    ended, ranks = results["stopped in a step"]
    assert ended.codes == [204, -9]  # a stopped process ends by being killed only
    failure = ranks[0].failure
    assert (failure.failure_class, failure.rank, failure.step) == ("Hang", 0, 2)
    assert "no step has ended for 6 s after step 2" in failure.message
    assert "torch/distributed" in (failure.log_tail or "")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("asleep in a step", "no step has ended for 6 s after step 2"),
        ("asleep in the evaluation", "evaluating has not got on for 8 s before the first step"),
    ],
)
def test_the_rank_that_hangs_is_the_one_that_says_so(
    results: Results, name: str, words: str
) -> None:
    ended, ranks = results[name]
    assert ended.codes == [205, 204]
    first = cascade.cause(ranks)
    assert (first.failure.failure_class, first.failure.rank) == ("Hang", 1)
    assert words in first.failure.message
    assert "the process was in strike (" in first.failure.message
    assert "time.sleep(10 * SECONDS)" in (first.failure.log_tail or "")


def test_a_rank_without_memory_is_named_and_ends_with_13(results: Results) -> None:
    ended, ranks = results["without memory in a step"]
    assert ended.codes == [205, 13]
    assert ended.seconds < 10
    first = cascade.cause(ranks)
    assert (first.failure.failure_class, first.failure.rank) == ("OutOfMemory", 1)
    assert first.failure.step == 2
    assert "do not fit into the worker's memory; in this order: " in first.failure.message


@pytest.mark.parametrize("error", ["GPU", "Python", "torch"])
def test_every_way_to_run_out_of_memory_has_the_same_name(error: str) -> None:
    import torch

    from finetune_trainer.ranks import classified

    errors = {
        "GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        "Python": MemoryError(),
        "torch": RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate"
        ),
    }
    run = run_config(Path("/work"))
    with pytest.raises(OutOfMemoryError, match="in this order: "), classified(run):
        raise errors[error]
    assert failure_class_of(errors[error]) == "OutOfMemory"
