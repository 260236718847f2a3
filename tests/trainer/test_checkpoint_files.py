"""The parts of checkpoints that need no gang: files, identity, retention, errors, what is asked."""

from __future__ import annotations

import errno
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_builders import LORA, arrays, run_config, write_work

from finetune_api.outcome import Failure, Outcome, PrepareFacts, TrainFacts
from finetune_trainer.errors import ConfigurationError, InternalError, StoppedError

SOURCES = Path(__file__).parents[2] / "trainer_image"


def test_nothing_in_the_trainer_can_load_a_pickle() -> None:
    """Of what a tenant can write, only safetensors and JSON are read."""
    forbidden = re.compile(
        r"torch\.load\(|\bpickle\b|\bjoblib\b|\bdill\b|allow_pickle(?!=False)|weights_only"
        r"|load_checkpoint\(|\bmarshal\b|\bshelve\b|(?<!\.)\b(?:eval|exec)\("
    )
    found = []
    for path in sorted(SOURCES.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        code = re.sub(r'"""(?:.|\n)*?"""|#[^\n]*', "", text)
        found += [f"{path.name}: {match.group()}" for match in forbidden.finditer(code)]
    assert found == []


def test_a_shard_is_a_safetensors_file_with_the_size_and_hash_that_are_told(
    tmp_path: Path,
) -> None:
    from safetensors.numpy import load_file

    from finetune_trainer.checkpoint.files import problem_with, write_shard

    buffer = np.arange(10, dtype=np.float32)
    view = memoryview(buffer)
    path = tmp_path / "rank-00000.safetensors"
    told = write_shard(path, [("weight:0:a", view[2:5]), ("exp_avg:7:b.c", view[5:9])])
    found = load_file(path)
    assert {k: v.tolist() for k, v in found.items()} == {
        "weight:0:a": [2.0, 3.0, 4.0],
        "exp_avg:7:b.c": [5.0, 6.0, 7.0, 8.0],
    }
    assert problem_with(path, told) is None
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    assert problem_with(path, told) == (
        "rank-00000.safetensors is not what was written (other hash)"
    )
    path.write_bytes(content[:-1])
    assert problem_with(path, told) == (
        f"rank-00000.safetensors has {len(content) - 1} bytes instead of {len(content)}"
    )
    path.unlink()
    assert problem_with(path, told) == "rank-00000.safetensors is missing"


def test_a_range_is_put_together_from_the_files_of_another_number_of_processes(
    tmp_path: Path,
) -> None:
    import torch

    from finetune_trainer.checkpoint.files import write_shard
    from finetune_trainer.checkpoint.fragments import Fragment, Pieces

    numbers = np.arange(12, dtype=np.float32)
    paths = []
    for rank, (begin, end) in enumerate(((0, 5), (5, 6), (6, 12))):
        paths.append(tmp_path / f"rank-{rank:05}.safetensors")
        write_shard(paths[-1], [(f"weight:{begin}:a", memoryview(numbers)[begin:end])])
    into = torch.zeros(8)
    Pieces(paths).copy("weight", Fragment("a", 3, 8, 0, 0), into)
    assert into.tolist() == [3, 4, 5, 6, 7, 8, 9, 10]
    with pytest.raises(InternalError, match="has 7 of the 8 numbers of a"):
        Pieces([paths[0], paths[2]]).copy("weight", Fragment("a", 3, 8, 0, 0), into)
    with pytest.raises(InternalError, match="has 0 of the 8 numbers of b"):
        Pieces(paths).copy("weight", Fragment("b", 3, 8, 0, 0), into)


def prepared(tmp_path: Path) -> PrepareFacts:
    write_work(tmp_path / "work", arrays(4, seed=1), None, 3)
    return PrepareFacts.model_validate_json((tmp_path / "work" / "prepare.json").read_bytes())


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"learning_rate": 2e-3}, "training"),
        ({"precision": "BF16"}, "training"),
        ({"seed": 8}, "training"),
        ({"global_batch_size": 8}, "training"),
        ({"tuning": "LoRA", "lora": LORA}, "method"),
        ({"model": {"uri": "hf://someone/tiny", "revision": "def"}}, "model"),
        ({"dataset": {"uri": "pvc://data/other.jsonl", "path": "/data/other.jsonl"}}, "data"),
    ],
)
def test_what_determines_what_is_learned_makes_another_identity(
    tmp_path: Path, changes: dict[str, Any], subject: str
) -> None:
    from finetune_trainer.checkpoint.manifest import differences, identity

    facts = prepared(tmp_path)
    mine = identity(run_config(tmp_path), facts)
    other = identity(run_config(tmp_path, **changes), facts)
    assert differences(other, mine) == f"it was made with another {subject}"


@pytest.mark.parametrize(
    "changes",
    [
        {"num_nodes": 2, "num_proc_per_node": 2},
        {"micro_batch_size": 2},
        {"gradient_checkpointing": True},
        {"zero_stage": 3, "offload": "Optimizer"},
        {"checkpoints": {"every_steps": 5, "keep": 9}},
        {"evaluation": {"every_steps": 5}},
        {"work_dir": "/elsewhere", "merge": True, "name": "other", "uid": "x"},
        {"dataset": {"uri": "pvc://data/train.jsonl", "path": "/mounted/elsewhere"}},
    ],
)
def test_how_the_work_is_dealt_out_is_no_part_of_the_identity(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    from finetune_trainer.checkpoint.manifest import identity

    facts = prepared(tmp_path)
    assert identity(run_config(tmp_path, **changes), facts) == identity(run_config(tmp_path), facts)


def test_other_data_under_the_same_name_are_another_identity(tmp_path: Path) -> None:
    from finetune_trainer.checkpoint.manifest import differences, identity

    facts = prepared(tmp_path)
    more = facts.model_copy(update={"tokens": facts.tokens + 1})
    run = run_config(tmp_path)
    found = differences(identity(run, more), identity(run, facts))
    assert found == "it was made with another data"


def complete(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).mkdir(parents=True)
        (directory / name / "COMMITTED").write_text("x")


def there(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_newest_and_the_best_are_kept_and_nothing_else_of_ours(tmp_path: Path) -> None:
    from finetune_trainer.checkpoint.retention import retain

    complete(tmp_path, *(f"step-{n:08}" for n in (5, 10, 15, 20, 25)), "other-step-00000030")
    complete(tmp_path, "step-7", "my-step-00000001", "backup", "other-things")
    (tmp_path / "step-00000030").mkdir()  # being written
    (tmp_path / "outside").mkdir()
    (tmp_path / "step-00000001").symlink_to(tmp_path / "outside")
    retain(tmp_path, keep=2, best=10)
    assert there(tmp_path) == [
        "backup",
        "my-step-00000001",
        "other-things",
        "outside",
        "step-00000001",
        "step-00000010",
        "step-00000020",
        "step-00000025",
        "step-00000030",
        "step-7",
    ]


def test_what_cannot_be_gone_on_from_makes_room_but_is_not_lost_at_once(tmp_path: Path) -> None:
    from finetune_trainer.checkpoint.retention import set_aside

    complete(tmp_path, "step-00000005", "step-00000010", "step-00000015")
    (tmp_path / "step-00000007").mkdir()
    (tmp_path / "step-00000020").mkdir()
    set_aside(tmp_path, "step-00000010")
    assert there(tmp_path) == ["other-step-00000015", "step-00000005", "step-00000010"]
    set_aside(tmp_path, None)
    assert there(tmp_path) == [f"other-step-{n:08}" for n in (5, 10, 15)]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("COMMITTED", None, r"never completed \(no COMMITTED\)"),
        ("COMMITTED", "0" * 64, "manifest.json is not the one that was committed"),
        ("manifest.json", "{}", "manifest.json is not the one that was committed"),
        ("manifest.json", None, "manifest.json cannot be read"),
    ],
)
def test_a_checkpoint_without_its_marker_or_manifest_does_not_count(
    tmp_path: Path, name: str, content: str | None, words: str
) -> None:
    from finetune_trainer.checkpoint.manifest import Manifest, read_committed

    saved(tmp_path)
    place = tmp_path / "checkpoints" / "step-00000002"
    assert isinstance(read_committed(place), Manifest)
    if content is None:
        (place / name).unlink()
    else:
        (place / name).write_text(content)
    found = read_committed(place)
    assert isinstance(found, str)
    assert re.search(words, found)


def test_a_manifest_that_points_out_of_its_directory_is_refused(tmp_path: Path) -> None:
    import hashlib

    from finetune_trainer.checkpoint.manifest import read_committed

    saved(tmp_path)
    place = tmp_path / "checkpoints" / "step-00000002"
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["files"][0]["name"] = "../../secret.safetensors"
    text = json.dumps(manifest)
    (place / "manifest.json").write_text(text)
    (place / "COMMITTED").write_text(hashlib.sha256(text.encode()).hexdigest())
    assert "manifest.json cannot be read" in str(read_committed(place))


class Alone:
    """A gang of one."""

    rank, world_size, is_lead = 0, 1, True

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cpu")

    def agree(self, problem: str | None) -> str | None:
        return problem


class Vectors:
    """What a process owns, without an engine."""

    def __init__(self) -> None:
        import torch

        from finetune_trainer.checkpoint.fragments import Fragment

        self.flat = torch.arange(6, dtype=torch.float32)
        self.fragments = [Fragment("a", 0, 4, 0, 0)]  # the rest is padding
        self.optimizer_steps = 2

    def tensors(self, kind: str) -> list[Any]:
        return [self.flat]


def checkpoints(tmp_path: Path, attempt: str = "attempt", **changes: Any) -> Any:
    from finetune_trainer.checkpoint.saving import Checkpoints

    owned: Any = Vectors()
    gang: Any = Alone()
    return Checkpoints(owned, run_config(tmp_path, **changes), gang, {"model": "x"}, attempt)


def saved(tmp_path: Path) -> Any:
    from finetune_trainer.checkpoint.manifest import RunState

    found = checkpoints(tmp_path)
    found.save(2, RunState(loss=1.5), wait=True)
    return found


def test_a_snapshot_is_of_the_moment_it_was_taken_and_padding_is_left_out(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    from finetune_trainer.checkpoint.manifest import RunState

    found = checkpoints(tmp_path)
    found.save(2, RunState())
    found._owned.flat += 100
    found.settle()
    path = tmp_path / "checkpoints" / "step-00000002" / "rank-00000.safetensors"
    assert {k: v.tolist() for k, v in load_file(path).items()} == {
        f"{kind}:0:a": [0.0, 1.0, 2.0, 3.0] for kind in ("weight", "exp_avg", "exp_avg_sq")
    }
    assert there(path.parent) == [
        "COMMITTED", "manifest.json", "rank-00000.json", "rank-00000.safetensors"
    ]  # fmt: skip


def test_a_full_volume_is_told_at_the_next_step_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune_trainer.checkpoint import saving
    from finetune_trainer.checkpoint.manifest import RunState

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving, "write_shard", full)
    found = checkpoints(tmp_path)
    found.save(2, RunState())
    found._thread.join()
    with pytest.raises(ConfigurationError, match=r"no space left .* raise spec.storage.size"):
        found.check()
    with pytest.raises(ConfigurationError, match=r"lower spec.checkpoints.keep \(now 2\)"):
        found.settle()


def test_a_process_that_cannot_write_tells_process_0_which_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune_trainer.checkpoint import saving
    from finetune_trainer.checkpoint.manifest import RunState
    from finetune_trainer.errors import PeerLostError

    def full(path: Path, parts: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    gang = Alone()
    gang.rank, gang.world_size, gang.is_lead = 1, 2, False
    with monkeypatch.context() as patched:
        patched.setattr(saving, "write_shard", full)
        other = checkpoints(tmp_path)
        other._gang = gang
        with pytest.raises(ConfigurationError):
            other.save(2, RunState(), wait=True)
    assert there(tmp_path / "checkpoints" / "step-00000002") == ["rank-00001.json"]
    lead = checkpoints(tmp_path)
    lead._gang.world_size = 2
    with pytest.raises(PeerLostError, match=r"rank 1 could not save: no space left"):
        lead.save(2, RunState(), wait=True)


def test_a_process_that_writes_nothing_is_named_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune_trainer.checkpoint import saving
    from finetune_trainer.checkpoint.manifest import RunState

    monkeypatch.setattr(saving, "COMMIT_SECONDS", 0.0)
    found = checkpoints(tmp_path)
    found._gang.world_size = 2
    stale = tmp_path / "checkpoints" / "step-00000002" / "rank-00001.json"
    stale.parent.mkdir(parents=True)
    file = {"name": "rank-00001.safetensors", "bytes": 1, "sha256": "0" * 64}
    stale.write_text(json.dumps({"attempt": "an earlier one", "file": file}))
    with pytest.raises(InternalError, match="rank 1 has not written its part of checkpoint step-"):
        found.save(2, RunState(), wait=True)
    assert not (stale.parent / "COMMITTED").exists()


@dataclass
class Asked:
    """Checkpoints and watcher of a course, which only take note."""

    notes: list[str]
    saved: int | None = None
    longest: float | None = None
    complete: tuple[int, float] | None = None
    stalled: list[float] = field(default_factory=list)

    def save(self, step: int, state: Any) -> None:
        self.saved = step
        self.notes.append(f"save {step}")

    def settle(self) -> None:
        self.notes.append("settle")

    def check(self) -> None:
        pass

    def doing(self, activity: str) -> None:
        self.notes.append(activity)

    def after_step(self, step: Any) -> None:
        pass

    def has_saved(self, seconds: float) -> None:
        self.notes.append(f"saved in {seconds:g} s")

    def checkpointed(self, step: int, seconds: float, stalled: float) -> None:
        self.notes.append(f"step {step} is saved, {seconds:g} s, {stalled:g} s in all")


def course(clock: list[float], losses: list[float], **changes: Any) -> tuple[Any, list[str]]:
    from finetune_trainer.checkpoint.manifest import RunState
    from finetune_trainer.course import Course
    from finetune_trainer.stopping import StopRequest

    asked: Any = Asked([])
    gang: Any = Alone()
    stop = StopRequest()
    stop.at_once = False
    found = Course(
        run_config(Path("/w"), **changes),
        gang,
        asked,
        stop,
        RunState(),
        asked,
        lambda: losses.pop(0),
        lambda: clock[0],
    )
    return found, asked.notes


def step(number: int, seconds: float = 1.0) -> Any:
    from finetune_trainer.loop import Step

    return Step(number, 9, 0.1, 2.0, 1e-3, 1.0, seconds, 10.0)


def test_a_checkpoint_is_due_by_the_clock_of_process_0() -> None:
    clock = [0.0]
    found, notes = course(clock, [], checkpoints={"every_minutes": 2})
    assert found.wishes() == (False, False)
    clock[0] = 120.0
    assert found.wishes() == (False, True)
    found.after_step(step(1), stop=False, save=True)
    assert found.pauses_at(1)
    assert found.pause(1)
    assert notes == ["Checkpointing", "save 1", "Training"]
    assert found.wishes() == (False, False)
    assert not found.pauses_at(2)


def test_who_is_asked_to_stop_tells_the_others_and_all_save_before_they_end() -> None:
    found, notes = course([0.0], [])
    found._request.on_signal(15, None)
    assert found.wishes() == (True, False)
    assert not found.pauses_at(1)  # not before all know
    found.after_step(step(1), stop=True, save=False)
    assert found.pauses_at(1)
    with pytest.raises(StoppedError, match="checkpoint of step 1 is saved"):
        found.pause(1)
    assert notes == ["Checkpointing", "save 1", "settle"]


def test_a_worker_that_was_given_up_completes_no_checkpoint_after_another_attempt_started(
    tmp_path: Path,
) -> None:
    from finetune_trainer.checkpoint.manifest import RunState

    cut_off = checkpoints(tmp_path, "the first")
    cut_off.take_over()
    cut_off.save(1, RunState(), wait=True)
    checkpoints(tmp_path, "the second").take_over()
    with pytest.raises(StoppedError, match="another attempt of this run has taken over"):
        cut_off.save(2, RunState(), wait=True)
    assert [p.name for p in sorted((tmp_path / "checkpoints").rglob("*")) if p.is_file()] == [
        "COMMITTED",
        "manifest.json",
        "rank-00000.json",
        "rank-00000.safetensors",
    ]


def test_who_watches_is_told_how_long_the_longest_checkpoint_took() -> None:
    found, notes = course([0.0], [])
    found.after_step(step(1), stop=False, save=False)
    found._checkpoints.longest = 2.5
    found.after_step(step(2), stop=False, save=False)
    assert notes == ["saved in 2.5 s"]


def test_who_watches_is_told_which_checkpoint_is_complete_and_what_all_of_them_cost() -> None:
    found, notes = course([0.0], [])
    found.after_step(step(1), stop=False, save=False)
    found._checkpoints.complete, found._checkpoints.stalled = (1, 3.5), [0.5, 0.25]
    found.after_step(step(2), stop=False, save=False)
    assert notes == ["step 1 is saved, 3.5 s, 0.75 s in all"]


def test_the_longest_checkpoint_is_measured_with_the_time_that_training_stood_still(
    tmp_path: Path,
) -> None:
    from finetune_trainer.checkpoint.manifest import RunState

    found = checkpoints(tmp_path)
    assert found.longest is None
    found.save(1, RunState(), wait=True)
    first = found.longest
    assert first is not None
    assert first > found.stalled[0]
    found.save(2, RunState(), wait=True)
    assert found.longest >= first
    assert found.complete is not None
    assert (found.complete[0], found.complete[1] > found.stalled[1]) == (2, True)


def test_a_new_best_is_saved_and_patience_counts_evaluations_without_one() -> None:
    evaluation = {"every_steps": 2, "early_stopping_patience": 2}
    found, notes = course([0.0], [2.0, 2.0, 1.9, 1.95, 2.1], evaluation=evaluation)
    ended = [found.pause(done) for done in range(2, 12, 2) if found.pauses_at(done)]
    assert ended == [True, True, True, True, False]
    assert [note for note in notes if note.startswith("save")] == ["save 2", "save 6"]
    assert (found.state.best_step, found.state.best_loss) == (6, 1.9)
    assert found.stopped_early


def test_before_the_first_step_a_request_to_stop_ends_the_process_at_once() -> None:
    from finetune_trainer.stopping import StopRequest

    with pytest.raises(StoppedError, match="before the first step"):
        StopRequest().on_signal(15, None)


def test_a_step_of_a_process_has_one_seed_and_no_other_has_it() -> None:
    import random

    import torch

    from finetune_trainer.seeds import seed_step, step_seed

    found = {step_seed(seed, n, rank) for seed in (7, 8) for n in range(50) for rank in range(8)}
    assert len(found) == 800
    drawn = []
    for _ in range(2):
        seed_step(7, 3, 1)
        drawn.append((torch.rand(3).tolist(), random.random(), np.random.rand()))
    assert drawn[0] == drawn[1]


def test_a_resumed_run_continues_its_curve(tmp_path: Path) -> None:
    from finetune_trainer.loop import LossLog

    path = tmp_path / "losses.jsonl"
    kept = ['{"step": 0, "evalLoss": 3.0}', '{"step": 1, "loss": 2.5}', '{"step": 2, "loss": 2.4}']
    path.write_text("\n".join([*kept, '{"step": 3, "loss": 2.3}', '{"step": 4, "lo']))
    log = LossLog(path, 9, lambda line: None, resumed_from=2)
    log.evaluation(3, 2.0)
    assert path.read_text().splitlines() == [*kept, '{"step": 3, "evalLoss": 2.0}']


def outcomes(directory: Path, *failures: tuple[str, str]) -> None:
    for rank, (found, message) in enumerate(failures):
        failure = Failure(failure_class=found, message=message, rank=rank, time=1.0)  # type: ignore[arg-type]
        (directory / f"{rank}.json").write_text(Outcome(failure=failure).to_message())


def test_a_pod_that_was_stopped_says_what_was_saved_and_blames_nobody(tmp_path: Path) -> None:
    from finetune_trainer.launch import stopped

    outcomes(tmp_path, ("PeerLost", "gone"), ("Stopped", "checkpoint of step 7 is saved"))
    found = stopped("SIGTERM", tmp_path, 2)
    assert found is not None
    told = found.failure
    assert (found.exit_code, told.failure_class, told.rank, told.message) == (
        143, "Stopped", None, "checkpoint of step 7 is saved"
    )  # fmt: skip


def test_a_pod_that_could_not_save_when_it_was_stopped_says_why(tmp_path: Path) -> None:
    from finetune_trainer.launch import stopped

    outcomes(tmp_path, ("PeerLost", "gone"), ("Configuration", "no space left"))
    found = stopped("SIGTERM", tmp_path, 2)
    assert found is not None
    assert (found.exit_code, found.failure.message) == (10, "no space left")


def test_a_pod_that_was_done_before_it_was_stopped_is_done(tmp_path: Path) -> None:
    from finetune_trainer.launch import stopped

    facts = TrainFacts(
        step=3, total_steps=3, loss=1.0, tokens=9, tokens_per_second=1.0, duration_seconds=9.0
    )
    for rank in range(2):
        (tmp_path / f"{rank}.json").write_text(Outcome(train=facts).to_message())
    assert stopped("SIGTERM", tmp_path, 2) is None
    with pytest.raises(StoppedError, match="no process could say that it has saved"):
        stopped("SIGTERM", tmp_path, 3)
