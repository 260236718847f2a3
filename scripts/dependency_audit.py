"""`make audit`: known holes, licences, and what has changed, of everything that is pinned.

The licences are read from the metadata of what is installed; known holes are asked of PyPI, or
looked up in a copy of the PyPA's advisory database, and what could not be asked about, or an old
copy, is a failure, never a pass. What is accepted, and why, is in
requirements/accepted.toml; an entry that nothing needs any more is a failure, too.
"""

from __future__ import annotations

import argparse
import importlib.metadata as metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from packaging.version import Version

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements"
FRESH_DAYS = 30
"""For which a copy of the database is believed."""


@dataclass(frozen=True)
class Accepted:
    """requirements/accepted.toml, parsed."""

    licences: frozenset[str]
    """Licences by SPDX that everything may have."""
    packages: Mapping[str, tuple[str, str]]
    """Licence and reason by package."""
    holes: Mapping[str, str]
    """Reason by identifier of a known hole."""

    @staticmethod
    def parse(text: str) -> Accepted:
        """Raises `ValueError` where a reason is missing."""
        found = tomllib.loads(text)
        packages = {
            name: (entry["licence"], entry["reason"])
            for entry in found.get("package", [])
            for name in entry["names"]
        }
        holes = {h["id"]: h["reason"] for h in found.get("hole", [])}
        reasons = [reason for _, reason in packages.values()] + list(holes.values())
        if not all(len(reason.split()) >= 4 for reason in reasons):
            raise ValueError("accepted.toml: every entry needs a reason, in words")
        return Accepted(frozenset(found["licences"]), packages, holes)


def pinned(text: str) -> dict[str, str]:
    """Version by package of a requirements file."""
    return dict(re.findall(r"(?m)^([a-z0-9][a-z0-9._-]*)(?:\[[^]]*\])?==([^ ;\\]+)", text))


def licence(about: Mapping[str, list[str]]) -> str:
    """What a package's metadata says: its expression, else classifiers, else a first line."""
    if expression := about.get("License-Expression"):
        return expression[0]
    names = [
        c.rsplit(" :: ", 1)[-1] for c in about.get("Classifier", []) if c.startswith("License")
    ]
    specific = [name for name in names if name != "OSI Approved"]
    if specific:
        return " AND ".join(sorted(specific))
    return (about.get("License") or ["unknown"])[0].strip().split("\n")[0] or "unknown"


def atoms(expression: str) -> list[set[str]]:
    """The licences of an expression: all of the sets, any of each."""
    parts = re.split(r" AND ", expression.replace("(", "").replace(")", ""))
    return [set(re.split(r" OR ", part)) for part in parts]


def wrong_licences(found: Mapping[str, str], accepted: Accepted) -> list[str]:
    """What no licence allows, and accepted packages that are not there or have another licence."""
    problems = []
    for name, expression in sorted(found.items()):
        allowed = expression in accepted.licences or all(
            any_of & accepted.licences for any_of in atoms(expression)
        )
        agreed = accepted.packages.get(name)
        if agreed and allowed:
            problems.append(f"{name}: needs no entry in accepted.toml any more")
        elif agreed and agreed[0] != expression:
            problems.append(f"{name}: accepted as {agreed[0]}, now {expression}")
        elif not agreed and not allowed:
            problems.append(f"{name}: {expression} is not among the accepted licences")
    gone = sorted(accepted.packages.keys() - found.keys())
    return problems + [f"{name}: in accepted.toml, but not pinned any more" for name in gone]


def installed(names: Mapping[str, str], site: Path) -> dict[str, str]:
    """Licence of each pinned package as it is installed; those for other systems are not."""
    found = {}
    for distribution in metadata.distributions(path=[str(site)]):
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if name in names:
            about: dict[str, list[str]] = {}
            for key, value in distribution.metadata.items():
                about.setdefault(key, []).append(value)
            found[name] = licence(about)
    return found


def wrong_holes(report: Any, accepted: Accepted) -> tuple[list[str], set[str]]:
    """What pip-audit's JSON shows to be wrong, and the accepted holes that it met."""
    problems, met = [], set()
    for package in report["dependencies"]:
        if "skip_reason" in package:
            problems.append(f"{package['name']}: not asked about: {package['skip_reason']}")
        for hole in package.get("vulns", []):
            names = {hole["id"], *hole.get("aliases", [])}
            known = names & accepted.holes.keys()
            met |= known
            if not known:
                fixed = ", ".join(hole.get("fix_versions", [])) or "no version yet"
                problems.append(
                    f"{package['name']} {package['version']}: {hole['id']}, fixed by {fixed}"
                )
    return problems, met


def ask(pip_audit: Path, name: str) -> Any:
    """pip-audit over one requirements file; its exit code says less than its report."""
    file = REQUIREMENTS / f"{name}.txt"
    command = [str(pip_audit), "--disable-pip", "--require-hashes", "-r", str(file)]
    command += ["--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError:
        raise SystemExit(f"pip-audit of {file.name} failed:\n{done.stderr[-2000:]}") from None


def look_up(database: Path, name: str) -> Any:
    """The report that pip-audit would make of one requirements file, by a copy of the database."""
    pins = pinned((REQUIREMENTS / f"{name}.txt").read_text())
    found = [
        {"name": package, "version": version, "vulns": holes(database, package, version)}
        for package, version in pins.items()
    ]
    return {"dependencies": found}


def holes(database: Path, package: str, version: str) -> list[dict[str, Any]]:
    """Those of a version, from entries in the form of OSV: `vulns/PACKAGE/*.yaml`."""
    found = []
    for path in sorted((database / "vulns" / package).glob("*.yaml")):
        entry = yaml.safe_load(path.read_text())
        met = [a for a in entry["affected"] if is_affected(version, a)]
        if met and "withdrawn" not in entry:
            events = [e for a in met for r in _ranges(a) for e in r["events"]]
            fixes = [e["fixed"] for e in events if "fixed" in e]
            hole = {"id": entry["id"], "aliases": entry.get("aliases", []), "fix_versions": fixes}
            found.append(hole)
    return found


def is_affected(version: str, affected: Mapping[str, Any]) -> bool:
    """Whether an entry's list of versions has this one, or one of its ranges."""
    if version in affected.get("versions", []):
        return True
    here = Version(version)
    for found in _ranges(affected):
        inside = False
        for event in found["events"]:
            if "introduced" in event:
                inside = inside or here >= Version(event["introduced"])
            elif "fixed" in event:
                inside = inside and here < Version(event["fixed"])
            elif "last_affected" in event:
                inside = inside and here <= Version(event["last_affected"])
        if inside:
            return True
    return False


def _ranges(affected: Mapping[str, Any]) -> list[Any]:
    return [r for r in affected.get("ranges", []) if r["type"] == "ECOSYSTEM"]


def age(database: Path, today: date) -> tuple[date, int]:
    """The last change of any entry, and how many days ago it was."""
    texts = (path.read_text() for path in (database / "vulns").rglob("*.yaml"))
    days = [
        day for text in texts for day in re.findall(r"(?m)^modified: .?(\d{4}-\d\d-\d\d)", text)
    ]
    if not days:
        raise SystemExit(f"{database}: no vulns/*/*.yaml, which the advisory database has")
    last = date.fromisoformat(max(days))
    return last, (today - last).days


def changes(base: str) -> list[str]:
    """What is pinned otherwise than at a commit, for people to review."""
    lines = []
    for path in sorted(REQUIREMENTS.glob("*.txt")):
        where = f"{base}:{path.relative_to(ROOT)}"
        before = subprocess.run(["git", "show", where], cwd=ROOT, capture_output=True, text=True)
        old, new = pinned(before.stdout), pinned(path.read_text())
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                there, now = old.get(name, "absent"), new.get(name, "absent")
                lines.append(f"{path.name}: {name} {there} -> {now}")
    return lines


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pip-audit", type=Path, required=True)
    parser.add_argument("--advisories", type=Path, help="a copy of the database: PyPI is not asked")
    parser.add_argument("--installed", nargs="+", metavar="NAME=SITE-PACKAGES", default=[])
    parser.add_argument("--base", help="a commit: say what has changed since")
    options = parser.parse_args()
    accepted = Accepted.parse((REQUIREMENTS / "accepted.toml").read_text())
    licences: dict[str, str] = {}
    for pair in options.installed:
        name, _, site = pair.partition("=")
        licences |= installed(pinned((REQUIREMENTS / f"{name}.txt").read_text()), Path(site))
    problems = wrong_licences(licences, accepted)
    print(f"licences: {len(licences)} packages, {len(problems)} problems")
    met: set[str] = set()
    if options.advisories:
        last, days = age(options.advisories, date.today())
        print(f"known holes: as of {last}")
        if days > FRESH_DAYS:
            problems.append(f"{options.advisories}: {days} days old; what came since is not known")
    for path in sorted(REQUIREMENTS.glob("*.txt")):
        report = (
            look_up(options.advisories, path.stem)
            if options.advisories
            else ask(options.pip_audit, path.stem)
        )
        skipped = sum("skip_reason" in package for package in report["dependencies"])
        total = len(report["dependencies"])
        print(f"known holes: {path.name}: asked about {total - skipped} of {total} packages")
        if skipped == total:  # nobody else will be known there either
            problems.append(f"{path.name}: the vulnerability service answers for no package here")
            break
        found, known = wrong_holes(report, accepted)
        problems, met = problems + found, met | known
    else:
        gone = accepted.holes.keys() - met
        problems += [f"{hole}: in accepted.toml, but met no more" for hole in gone]
    for line in changes(options.base) if options.base else []:
        print(f"changed: {line}")
    for line in dict.fromkeys(problems):
        print(f"PROBLEM: {line}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
