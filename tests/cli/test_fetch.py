"""A result that comes as a tar stream, and the pod that reads it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from job_builders import job, succeeded
from websocket import ABNF, WebSocketConnectionClosedException

from finetune_cli.artefact import Entry, listed, unpack, verify
from finetune_cli.exits import CliError, Exit
from finetune_cli.frames import check_result, frames
from finetune_cli.reader import reader_pod

FILES = {"adapter_model.safetensors": b"weights" * 1000, "sub/config.json": b"{}"}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


ENTRIES = [Entry(name, len(data), sha(data)) for name, data in FILES.items()]
MANIFEST = json.dumps(
    {"files": [{"path": e.path, "bytes": e.bytes, "sha256": e.sha256} for e in ENTRIES]}
).encode()


def tar(files: dict[str, bytes], size: int = 700) -> Iterator[bytes]:
    """As it comes over the network: in pieces that respect nothing."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    whole = made.getvalue()
    return (whole[i : i + size] for i in range(0, len(whole), size))


def test_what_arrives_is_what_was_written(tmp_path: Path) -> None:
    came: list[int] = []
    unpack(tar(FILES), tmp_path, came.append)
    verify(tmp_path, ENTRIES)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == FILES
    assert sum(came) == sum(len(piece) for piece in tar(FILES))


def test_a_file_that_differs_or_lacks_is_named(tmp_path: Path) -> None:
    unpack(tar({"sub/config.json": b"[]"}), tmp_path, lambda _: None)
    with pytest.raises(CliError) as error:
        verify(tmp_path, ENTRIES)
    assert (error.value.code, str(error.value)) == (
        Exit.CORRUPT,
        "2 of 2 files are not what manifest.json says: adapter_model.safetensors, sub/config.json",
    )


def test_a_stream_that_breaks_off_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(CliError) as error:
        unpack(iter(list(tar(FILES))[:3]), tmp_path, lambda _: None)
    assert error.value.code == Exit.CORRUPT


def test_nothing_is_written_outside_the_directory(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="outside"):
        unpack(tar({"../evil": b"x"}), tmp_path / "here", lambda _: None)
    assert not (tmp_path / "evil").exists()


def test_the_manifest_is_proven_by_the_digest_of_the_status() -> None:
    assert listed(MANIFEST, f"sha256:{sha(MANIFEST)}") == ENTRIES
    with pytest.raises(CliError, match="a later run may have replaced the result") as error:
        listed(MANIFEST, "sha256:" + "0" * 64)
    assert error.value.code == Exit.CORRUPT


class Socket:
    """Frames of the exec protocol, as the websocket library gives them."""

    def __init__(self, *frames: bytes) -> None:
        self._frames = [ABNF.create_frame(frame, ABNF.OPCODE_BINARY) for frame in frames]

    def recv_data_frame(self, control: bool) -> tuple[int, ABNF]:
        if not self._frames:
            raise WebSocketConnectionClosedException("it is closed")
        frame = self._frames.pop(0)
        return frame.opcode, frame


def test_frames_of_an_exec_stream_come_one_by_one_until_it_is_closed() -> None:
    assert list(frames(Socket(b"\x01one", b"\x02two", b""))) == [b"\x01one", b"\x02two"]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (b"", "the connection broke while `tar x` ran in the pod"),
        (
            b'{"status": "Failure", "message": "exit code 2"}',
            "`tar x` failed in the pod: no such file",
        ),
    ],
)
def test_a_command_that_failed_or_broke_off_is_no_success(result: bytes, expected: str) -> None:
    with pytest.raises(CliError) as error:
        check_result(["tar", "x"], result, b"no such file\n")
    assert str(error.value) == expected
    check_result(["tar", "x"], b'{"status": "Success"}', b"")


def test_the_reader_pod_has_no_rights_and_ends_by_itself() -> None:
    assert reader_pod(job(succeeded()), "team-models", "example/trainer:1", 3600) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "docs-fetch-",
            "namespace": "team-a",
            "labels": {"finetune-operator.io/reader-of": "docs"},
            "ownerReferences": [
                {
                    "apiVersion": "finetune-operator.io/v1alpha1",
                    "kind": "FineTuneJob",
                    "name": "docs",
                    "uid": "uid-docs",
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": 3600,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "reader",
                    "image": "example/trainer:1",
                    "command": ["sleep", "3600"],
                    "resources": {
                        "requests": {"cpu": "50m", "memory": "32Mi"},
                        "limits": {"memory": "256Mi"},
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "claim", "mountPath": "/claim", "readOnly": True}],
                }
            ],
            "volumes": [
                {
                    "name": "claim",
                    "persistentVolumeClaim": {"claimName": "team-models", "readOnly": True},
                }
            ],
        },
    }
