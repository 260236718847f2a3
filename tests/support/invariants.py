"""What holds at every moment of a job's life, whatever happens. Each rule is a function of its own:
a new field of the status gets a line here, a new promise a function."""

from __future__ import annotations

import json
from typing import Any

from model_api import ModelApi
from model_objects import Json

from finetune_operator import names
from finetune_operator.observe import seconds

FINAL = ("Succeeded", "Failed")
SUSPENDED = (
    "suspended; set spec.suspend to false to go on",
    "the workers save a checkpoint and end",
    "goes on when the workers of the last attempt have ended",
    "stopping",
)
LASTING = ("startTime", "completionTime")


def watch(api: ModelApi) -> None:
    """Check every status that is written to `api` from now on."""

    def check(old: Json, new: Json, owner: str) -> None:
        finished_is_final(old, new, owner)
        counters_never_go_back(old, new)
        usage_adds_up(old, new)
        times_stay(old, new)
        if owner == names.FIELD_OWNER:
            something_changed(old, new)
            suspended_time_is_counted(old, new, api.now())
            running_is_observed(new, api.shown)
            suspended_tells_the_truth(new, api.shown)
            success_is_proven(new, api)

    api.watchers.append(check)


def one_attempt_lives(api: ModelApi) -> None:
    """Pods of two attempts never live at the same time, whoever knows about it."""
    alive = {p.job_uid: p.name for p in api.pods.values() if p.alive and "-train-" in p.name}
    assert len(alive) <= 1, f"two attempts are alive: {sorted(alive.values())}"


def names_are_used_once(api: ModelApi) -> None:
    """An attempt's number is never given to a second Kubernetes Job."""
    trains = [name for name in api.made if "-train-" in name]
    assert len(trains) == len(set(trains)), f"an attempt was made twice: {trains}"
    assert trains == [f"docs-train-{n}" for n in range(len(trains))], f"a gap: {trains}"


def finished_is_final(old: Json, new: Json, owner: str) -> None:
    if old.get("phase") in FINAL:
        assert new == old, f"{owner} changes a job that is {old['phase']}"


def something_changed(old: Json, new: Json) -> None:
    assert new != old, f"a write that changes nothing: {new}"


def counters_never_go_back(old: Json, new: Json) -> None:
    before, after = _counters(old), _counters(new)
    back = {k: (v, after.get(k)) for k, v in before.items() if k in after and after[k] < v}
    assert not back, f"went back: {back}"
    gone = set(before) - set(after) - {f"progress.step of attempt {n}" for n in range(99)}
    assert not gone, f"gone: {gone}"
    failed = [e["attempt"] for e in new.get("restarts", {}).get("history", [])]
    assert failed == sorted(set(failed)), f"an attempt counted twice: {failed}"


def _counters(status: Json) -> dict[str, float]:
    restarts, progress = status.get("restarts", {}), status.get("progress", {})
    found: dict[str, Any] = {
        "attempt": status.get("attempt"),
        "counted": restarts.get("counted"),
        "disruptions": restarts.get("disruptions"),
        "failed attempts": len(restarts.get("history", [])) or None,
        "suspendedSeconds": status.get("suspendedSeconds"),
        "progress.attempt": progress.get("attempt"),
        f"progress.step of attempt {progress.get('attempt')}": progress.get("step"),
        "observedGeneration": status.get("observedGeneration"),
        **_spent(status),
    }
    return {k: v for k, v in found.items() if v is not None}


def _spent(status: Json) -> dict[str, float]:
    """All that only grows of what was held."""
    usage = status.get("usage", {})
    names = ("heldSeconds", "usefulSeconds", "queueSeconds", "gpuHours")
    found = {f"usage.{name}": usage[name] for name in names if name in usage}
    for field in ("costSoFar", "time"):
        if field in usage:
            found[f"usage.{field}"] = (
                float(usage[field]) if field == "costSoFar" else seconds(usage[field])
            )
    found |= {f"usage.badput.{name}": value for name, value in usage.get("badput", {}).items()}
    return found | {f"in {name}": value for name, value in status.get("phaseSeconds", {}).items()}


def usage_adds_up(old: Json, new: Json) -> None:
    """What is held is useful, badput, or waits for a checkpoint; when a job is over nothing does.
    Workers hold at most what the job asks for, from its start on; every second is in one phase."""
    usage = new.get("usage")
    if usage is None:
        assert "usage" not in old, "the account is gone"
        return
    accounted = usage["usefulSeconds"] + sum(usage["badput"].values())
    assert accounted <= usage["heldSeconds"], usage
    if new["phase"] in FINAL:
        assert (accounted, usage["holding"]) == (usage["heldSeconds"], 0), usage
    most = 16 * (seconds(usage["time"]) - seconds(new["startTime"]))
    assert usage["heldSeconds"] <= most, f"{usage['heldSeconds']} s held, {most} s are possible"
    assert usage["holding"] <= 16, usage
    if "phaseTime" in old:
        passed = seconds(new["phaseTime"]) - seconds(old["phaseTime"])
        counted = [sum(s.get("phaseSeconds", {}).values()) for s in (old, new)]
        assert counted[1] - counted[0] == passed, f"{passed} s passed, counted: {counted}"


def times_stay(old: Json, new: Json) -> None:
    for name in LASTING:
        if name in old:
            assert new.get(name) == old[name], f"{name} moved: {old[name]} -> {new.get(name)}"
    suspended = new.get("phase") == "Suspended" and "startTime" in new
    assert ("suspendTime" in new) == suspended, f"suspendTime in phase {new.get('phase')}: {new}"
    assert ("completionTime" in new) == (new.get("phase") in FINAL), new
    before = {c["type"]: c for c in old.get("conditions", [])}
    for now in new.get("conditions", []):
        was = before.get(now["type"])
        if was is not None:
            moved = was["lastTransitionTime"] != now["lastTransitionTime"]
            flipped = was["status"] != now["status"]
            if now["type"] == "Waiting":  # since when it waits for this very reason
                flipped = flipped or was["reason"] != now["reason"]
            assert not moved or flipped, f"the time moved, the status did not: {was} -> {now}"


def suspended_time_is_counted(old: Json, new: Json, now: str) -> None:
    """From the moment a job is suspended to the moment it goes on, once."""
    since, until = old.get("suspendTime"), new.get("suspendTime")
    before, after = old.get("suspendedSeconds", 0), new.get("suspendedSeconds", 0)
    if since is None:
        assert until in (None, now), f"suspended at {now}, but since {until}"
    passed = 0.0 if since is None or until is not None else seconds(now) - seconds(since)
    assert after - before == passed, f"{before} s, {passed} s more, and now {after} s"


def running_is_observed(new: Json, shown: tuple[list[Json], list[Json]]) -> None:
    """`Running` while no pod of the newest attempt is pending; `training` while all run."""
    if new.get("phase") != "Running":
        return
    job, pods = newest_attempt(shown)
    assert job is not None, "Running without a Job"
    phases = [pod["status"]["phase"] for pod in pods]
    assert "Pending" not in phases, f"Running while a pod is Pending: {phases}"
    if new["message"] == "training":
        assert phases == ["Running"] * job["spec"]["parallelism"], f"training: {phases}"
        assert not any("deletionTimestamp" in pod["metadata"] for pod in pods)


def suspended_tells_the_truth(new: Json, shown: tuple[list[Json], list[Json]]) -> None:
    if new.get("phase") != "Suspended":
        return
    alive = [p for p in shown[1] if p["status"]["phase"] in ("Pending", "Running")]
    active = [j for j in shown[0] if not (j["spec"]["suspend"] and j["status"]["conditions"])]
    active = [j for j in active if not _ended(j)]
    message = new["message"]
    assert message in SUSPENDED, message
    if message.startswith("suspended"):
        assert not alive, f"{message!r} with {len(alive)} pods alive"
        assert not active, f"{message!r} with {active} active"
    else:
        assert alive or active, f"{message!r} and nothing is left"
    if "checkpoint" in message:
        assert any(p["status"]["phase"] == "Running" for p in alive), f"{message!r}: {alive}"


def _ended(job: Json) -> bool:
    return any(c["type"] in ("Complete", "Failed") for c in job["status"]["conditions"])


def success_is_proven(new: Json, api: ModelApi) -> None:
    if new.get("phase") == "Succeeded":
        exports = [j for j in api.jobs.values() if j.stage == "export"]
        assert [j.state for j in exports] == ["Complete"], exports
        held = {c["type"]: c["status"] for c in new["conditions"]}
        assert (held["Prepared"], held["Trained"], held["Exported"]) == ("True",) * 3, held
        assert new["progress"]["step"] == new["progress"]["totalSteps"], new["progress"]
        assert new["output"]["digest"]


def what_runs_is_what_the_spec_says(api: ModelApi) -> None:
    """An edit that was let in is in what the stages are told."""
    config = api.others.get(("ConfigMap", "docs-run"))
    if config is not None:
        told = json.loads(config["data"]["run.json"])["training"]["globalBatchSize"]
        wanted = api.body["spec"]["training"]["globalBatchSize"]
        assert told == wanted, f"the spec says globalBatchSize {wanted}, the run {told}"


def newest_attempt(shown: tuple[list[Json], list[Json]]) -> tuple[Json | None, list[Json]]:
    """The newest training Job that was shown, and its pods."""
    label = names.LABEL_ATTEMPT
    trains = [j for j in shown[0] if j["metadata"]["labels"][names.LABEL_STAGE] == "train"]
    job = max(trains, key=lambda j: int(j["metadata"]["labels"][label]), default=None)
    if job is None:
        return None, []
    uid = job["metadata"]["uid"]
    return job, [p for p in shown[1] if p["metadata"]["ownerReferences"][0]["uid"] == uid]
