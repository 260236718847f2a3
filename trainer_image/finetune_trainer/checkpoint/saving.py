"""Writing checkpoints: a snapshot in the step loop, all the rest in a thread.

No thread takes part in a collective: the processes tell each other by files that they are done
(`rank-00000.json`), and the thread of process 0 completes the checkpoint when all are there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import secrets
import threading
import time
from pathlib import Path

import torch
from pydantic import ValidationError

from finetune_api.run_config import WORK_ATTEMPT, WORK_CHECKPOINTS, RunConfig
from finetune_trainer import logs
from finetune_trainer.checkpoint.files import sync_directory, write_shard, write_text
from finetune_trainer.checkpoint.fragments import Owned
from finetune_trainer.checkpoint.manifest import (
    COMMITTED,
    MANIFEST,
    Manifest,
    Position,
    RandomState,
    RunState,
    ShardFile,
    ShardRecord,
    directory_name,
)
from finetune_trainer.checkpoint.retention import retain
from finetune_trainer.checkpoint.snapshot import Snapshot
from finetune_trainer.errors import (
    ConfigurationError,
    InternalError,
    PeerLostError,
    StoppedError,
)
from finetune_trainer.ranks import Gang

COMMIT_SECONDS = 1800.0
"""How long the other processes may take to write after process 0 has."""


class Checkpoints:
    """The checkpoints of one run, on one process; all processes call everything alike."""

    def __init__(
        self, owned: Owned, run: RunConfig, gang: Gang, identity: dict[str, str], attempt: str
    ) -> None:
        """Write nothing yet. `attempt`: see `new_attempt`."""
        self.directory = Path(run.work_dir) / WORK_CHECKPOINTS
        self.saved: int | None = None
        """Step of the last snapshot."""
        self.stalled: list[float] = []
        """Seconds that training stood still for each of them."""
        self.longest: float | None = None
        """Seconds of the slowest complete one, of all processes; on process 0."""
        self.complete: tuple[int, float] | None = None
        """Step of the last complete one, and the seconds that it took; on process 0."""
        self._claim = Path(run.work_dir) / WORK_ATTEMPT
        self._owned, self._run, self._gang = owned, run, gang
        self._identity, self._attempt = identity, attempt
        self._snapshot: Snapshot | None = None
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def take_over(self) -> None:
        """From now on no earlier gang of this run completes a checkpoint; on process 0."""
        write_text(self._claim, self._attempt)

    def prepare(self) -> None:
        """Make the buffers in the background, so that the first snapshot need not."""
        self._thread = threading.Thread(target=self._make_buffers, name="buffers", daemon=True)
        self._thread.start()

    def save(self, step: int, state: RunState, wait: bool = False) -> None:
        """Save what is there after `step` steps; `wait`: return when it is complete.

        Raises:
            ConfigurationError: the volume is full; this or the write before it.
            InternalError: it cannot be written.
        """
        began = time.perf_counter()
        self.snapshot()
        manifest = self._manifest(step, state)
        stalled = time.perf_counter() - began
        self.stalled.append(stalled)
        self.saved = step
        self._thread = threading.Thread(
            target=self._write_and_remember,
            args=(manifest, stalled),
            name="checkpoint",
            daemon=True,
        )
        self._thread.start()
        if wait:
            self.settle()

    def snapshot(self) -> None:
        """Copy what is owned into host memory, and nothing more: the part that training feels."""
        self._finish()  # the buffers are still being made, or written
        if self._snapshot is None:
            self._snapshot = Snapshot(self._owned)
        self._snapshot.take()

    def check(self) -> None:
        """Raise what went wrong in the thread, if anything; returns at once."""
        if self._failure is not None:
            raise self._failure

    def settle(self) -> None:
        """Wait until the last checkpoint is complete, on all processes alike.

        Raises:
            ConfigurationError, InternalError: it could not be written by this process.
            PeerLostError: it could not be written by another.
        """
        failure: Exception | None = None
        try:
            self._finish()
        except Exception as exc:  # the others are told first
            failure = exc
        problem = self._gang.agree(None if failure is None else str(failure))
        if problem is not None:
            raise failure or PeerLostError(f"another process could not save: {problem}")

    def _finish(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _manifest(self, step: int, state: RunState) -> Manifest:
        run = self._run
        nothing = ShardFile(name="rank-00000.safetensors", bytes=0, sha256="0" * 64)
        return Manifest(
            step=step,
            identity=self._identity,
            world_size=self._gang.world_size,
            zero_stage=run.zero_stage,
            position=Position(
                sequences=step * run.training.global_batch_size, seed=run.training.seed
            ),
            random=RandomState(seed=run.training.seed),
            optimizer_steps=self._owned.optimizer_steps,
            state=state,
            files=[nothing],  # replaced when all are written
        )

    # In a thread -------------------------------------------------------------------------------

    def _make_buffers(self) -> None:
        try:
            self._use_device()
            self._snapshot = Snapshot(self._owned)
        except Exception as exc:  # raised in the loop, as whatever the writer meets
            self._failure = exc

    def _write_and_remember(self, manifest: Manifest, stalled: float) -> None:
        place = self.directory / directory_name(manifest.step)
        try:
            self._use_device()
            self._write(place, manifest, stalled)
        except OSError as exc:
            self._failure = self._advice(place, exc)
            self._failure.__cause__ = exc
            self._give_up(place, str(self._failure))
        except Exception as exc:  # raised in the loop, where somebody hears it
            self._failure = exc

    def _give_up(self, place: Path, problem: str) -> None:
        """Tell process 0; what was written makes room for it, should the volume be full."""
        name = f"rank-{self._gang.rank:05}"
        record = ShardRecord(attempt=self._attempt, problem=problem)
        with contextlib.suppress(OSError):  # then process 0 waits until its time is up
            (place / f"{name}.safetensors").unlink(missing_ok=True)
            write_text(place / f"{name}.json", record.model_dump_json(by_alias=True))

    def _use_device(self) -> None:
        """A new thread's device is the first one: it would take memory there for nothing."""
        if self._gang.device.type == "cuda":
            torch.cuda.set_device(self._gang.device)

    def _write(self, place: Path, manifest: Manifest, stalled: float) -> None:
        began = time.perf_counter()
        assert self._snapshot is not None
        self._snapshot.ready()
        self._check_claim()
        place.mkdir(parents=True, exist_ok=True)
        name = f"rank-{self._gang.rank:05}"
        file = write_shard(place / f"{name}.safetensors", self._snapshot.parts())
        record = ShardRecord(attempt=self._attempt, file=file)
        write_text(place / f"{name}.json", record.model_dump_json(by_alias=True))
        if not self._gang.is_lead:
            return
        files = self._wait_for_all(place)
        self._check_claim()
        text = manifest.model_copy(update={"files": files}).model_dump_json(by_alias=True, indent=1)
        write_text(place / MANIFEST, text)
        write_text(place / COMMITTED, hashlib.sha256(text.encode()).hexdigest() + "\n")
        sync_directory(self.directory)
        size, taken = sum(f.bytes for f in files) / 1e6, time.perf_counter() - began
        self.longest = max(self.longest or 0.0, stalled + taken)
        self.complete = manifest.step, stalled + taken
        logs.say(
            f"checkpoint of step {manifest.step}: {size:.0f} MB in "
            f"{taken:.1f} s, training stood still for {stalled:.2f} s"
        )
        retain(self.directory, self._run.checkpoints.keep, manifest.state.best_step)

    def _check_claim(self) -> None:
        """A node that was cut off may still run a worker whose pod was given up.

        Raises:
            StoppedError: another gang has started since.
        """
        with contextlib.suppress(FileNotFoundError):  # not started by `History`
            if self._claim.read_text(encoding="utf-8") != self._attempt:
                raise StoppedError("another attempt of this run has taken over; this one ends")

    def _wait_for_all(self, place: Path) -> list[ShardFile]:
        """What every process has written.

        Raises:
            PeerLostError: one says that it cannot.
            InternalError: one says nothing.
        """
        end, pause = time.monotonic() + COMMIT_SECONDS, 0.005
        found: list[ShardFile] = []
        while len(found) < self._gang.world_size:
            path = place / f"rank-{len(found):05}.json"
            try:
                record = ShardRecord.model_validate_json(path.read_bytes())
                if record.attempt == self._attempt and record.file:
                    found.append(record.file)
                    continue
                if record.attempt == self._attempt:
                    raise PeerLostError(f"rank {len(found)} could not save: {record.problem}")
            except (FileNotFoundError, ValidationError):
                pass  # not there yet, or half of an earlier attempt's
            if time.monotonic() > end:
                raise InternalError(
                    f"rank {len(found)} has not written its part of checkpoint {place.name} "
                    f"after {COMMIT_SECONDS / 60:.0f} minutes; do all pods see the same volume?"
                )
            time.sleep(pause)
            pause = min(1.0, 1.5 * pause)
        return found

    def _advice(self, place: Path, exc: OSError) -> Exception:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            return InternalError(f"checkpoint {place.name} cannot be written: {exc}")
        size = self._snapshot.nbytes * self._gang.world_size / 1e9 if self._snapshot else 0.0
        keep = self._run.checkpoints.keep
        return ConfigurationError(
            f"no space left while writing checkpoint {place.name}: each takes {size:.3g} GB and up "
            f"to {keep + 2} are there at a time; raise spec.storage.size of the profile, or lower "
            f"spec.checkpoints.keep (now {keep})"
        )


def new_attempt(gang: Gang) -> str:
    """A word that no earlier start of this run had, the same on all processes."""
    word: str = gang.tell(secrets.token_hex(8))
    return word
