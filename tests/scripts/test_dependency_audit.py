"""`make audit` passes nothing that it did not look at."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from datetime import date
from pathlib import Path

import dependency_audit as audit
import pytest
from dependency_audit import (
    Accepted,
    atoms,
    installed,
    licence,
    pinned,
    wrong_holes,
    wrong_licences,
)

ACCEPTED = Accepted.parse(
    """
    licences = ["MIT", "Apache-2.0", "ISC License (ISCL)"]
    [[package]]
    names = ["driver"]
    licence = "Proprietary"
    reason = "its maker allows to pass it on"
    [[hole]]
    id = "CVE-2026-1"
    reason = "we never parse what others send"
    """
)
FILES = Path(audit.REQUIREMENTS)


def test_a_requirements_file_is_read_by_name_and_version() -> None:
    text = "aiohttp==3.1 \\\n    --hash=sha256:00\nhttpx[http2]==0.1 ; python_version < '3' \\\n"
    assert pinned(text) == {"aiohttp": "3.1", "httpx": "0.1"}


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"License-Expression": ["MIT"], "License": ["something"]}, "MIT"),
        (
            {"Classifier": ["License :: OSI Approved", "License :: OSI Approved :: MIT License"]},
            "MIT License",
        ),
        ({"License": ["Apache 2.0\nand all of its text"]}, "Apache 2.0"),
        ({}, "unknown"),
    ],
)
def test_a_licence_is_what_the_metadata_says(about: dict[str, list[str]], expected: str) -> None:
    assert licence(about) == expected


def test_of_alternatives_one_must_be_accepted_and_of_parts_all() -> None:
    assert atoms("(MIT OR GPL-3.0) AND Zlib") == [{"MIT", "GPL-3.0"}, {"Zlib"}]
    found = {"either": "MIT OR GPL-3.0", "both": "MIT AND GPL-3.0", "isc": "ISC License (ISCL)"}
    found |= {"driver": "Proprietary"}
    assert wrong_licences(found, ACCEPTED) == [
        "both: MIT AND GPL-3.0 is not among the accepted licences"
    ]


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ({}, "driver: in accepted.toml, but not pinned any more"),
        ({"driver": "MIT"}, "driver: needs no entry in accepted.toml any more"),
        ({"driver": "Other"}, "driver: accepted as Proprietary, now Other"),
    ],
)
def test_an_exception_that_does_not_hold_any_more_is_a_problem(
    found: dict[str, str], problem: str
) -> None:
    assert wrong_licences(found, ACCEPTED) == [problem]


def test_a_reason_is_words() -> None:
    with pytest.raises(ValueError, match="needs a reason"):
        Accepted.parse('licences = []\n[[hole]]\nid = "CVE-1"\nreason = "fine"')


def test_a_known_hole_and_what_was_not_asked_about_are_problems() -> None:
    hole = {"id": "PYSEC-1", "aliases": ["CVE-2026-2"], "fix_versions": ["2.0"]}
    accepted = {"id": "PYSEC-2", "aliases": ["CVE-2026-1"], "fix_versions": []}
    report = {
        "dependencies": [
            {"name": "good", "version": "1", "vulns": []},
            {"name": "bad", "version": "1", "vulns": [hole, accepted]},
            {"name": "unknown", "skip_reason": "not found"},
        ]
    }
    assert wrong_holes(report, ACCEPTED) == (
        ["bad 1: PYSEC-1, fixed by 2.0", "unknown: not asked about: not found"],
        {"CVE-2026-1"},
    )


def test_a_service_that_does_not_answer_is_no_pass(tmp_path: Path) -> None:
    """pip-audit itself ends with 0 when it could ask about nothing at all."""
    fake = tmp_path / "pip-audit"
    report = {"dependencies": [{"name": "aiohttp", "skip_reason": "not found"}], "fixes": []}
    fake.write_text(f"#!/bin/sh\necho '{json.dumps(report)}'\n")
    fake.chmod(0o755)
    command = [sys.executable, audit.__file__, "--pip-audit", str(fake)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "the vulnerability service answers for no package here" in done.stderr


ENTRY = """
id: PYSEC-2024-1
modified: {modified}T10:00:00Z
aliases: [CVE-2024-1]
{more}
affected:
- package: {{name: aiohttp, ecosystem: PyPI}}
  ranges:
  - type: GIT
    events: [{{introduced: "0"}}]
  - type: ECOSYSTEM
    events:
    - introduced: "3.0"
    - fixed: 3.9.2
    - introduced: 3.10.0
    - last_affected: 3.10.5
  versions: ["2.5"]
"""


def database(directory: Path, modified: str = "2026-11-01", more: str = "") -> Path:
    """A copy of the PyPA's database with one entry."""
    (directory / "vulns" / "aiohttp").mkdir(parents=True)
    text = ENTRY.format(modified=modified, more=more)
    (directory / "vulns" / "aiohttp" / "PYSEC-2024-1.yaml").write_text(text)
    return directory


@pytest.mark.parametrize("version", ["2.5", "3.0", "3.9.1", "3.10", "3.10.5"])
def test_a_version_in_an_entry_of_the_database_has_its_hole(tmp_path: Path, version: str) -> None:
    assert audit.holes(database(tmp_path), "aiohttp", version) == [
        {"id": "PYSEC-2024-1", "aliases": ["CVE-2024-1"], "fix_versions": ["3.9.2"]}
    ]


@pytest.mark.parametrize("version", ["2.4", "3.0rc1", "3.9.2", "3.9.9", "3.10.6", "4.0"])
def test_a_version_outside_of_it_does_not(tmp_path: Path, version: str) -> None:
    assert audit.holes(database(tmp_path), "aiohttp", version) == []


def test_neither_does_an_entry_that_was_withdrawn_nor_another_package(tmp_path: Path) -> None:
    found = database(tmp_path, more="withdrawn: 2024-02-01T00:00:00Z")
    assert [audit.holes(found, name, "3.1") for name in ("aiohttp", "yarl")] == [[], []]


def test_an_old_copy_of_the_database_is_no_pass(tmp_path: Path) -> None:
    found = database(tmp_path, modified="2024-10-10")
    command = [sys.executable, audit.__file__, "--pip-audit", "none", "--advisories", str(found)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "known holes: as of 2024-10-10\n" in done.stdout
    assert "days old; what came since is not known" in done.stderr


def test_a_directory_without_entries_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="which the advisory database has"):
        audit.age(tmp_path, date(2026, 11, 23))


def test_every_package_of_the_operator_and_the_command_line_has_an_accepted_licence() -> None:
    """Of the trainer's, too, in `make audit`: it is not installed here."""
    accepted = Accepted.parse((FILES / "accepted.toml").read_text())
    site = Path(sysconfig.get_paths()["purelib"])
    for name in ("operator", "cli"):
        pins = pinned((FILES / f"{name}.txt").read_text())
        found = installed(pins, site)
        assert len(found) >= 20
        problems = [p for p in wrong_licences(found, accepted) if "not pinned" not in p]
        assert problems == []
