"""Ways between operator and API server that fail: they wrap a cluster, real or modelled."""

from __future__ import annotations

from typing import Any

WRITES = ("apply", "suspend_job", "fail_pod", "force_delete", "delete", "post_event")


class Died(BaseException):
    """The operator's process is gone: nothing of it may catch this."""


class DyingCluster:
    """The operator dies at its k-th write: before it, or after it with the answer lost.

    Args:
        after: Writes that are done; None: it does not die.
        lost: Whether the deadly write itself is done, too.
    """

    def __init__(self, cluster: Any, after: int | None, lost: bool = False) -> None:
        self._cluster, self._after, self._lost = cluster, after, lost
        self.writes: list[str] = []

    def __getattr__(self, name: str) -> Any:
        wanted = getattr(self._cluster, name)
        if not name.startswith(WRITES):
            return wanted

        async def write(*args: Any, **kwargs: Any) -> Any:
            deadly = len(self.writes) == self._after
            if deadly and not self._lost:
                raise Died
            answer = await wanted(*args, **kwargs)
            self.writes.append(_named(name, args))
            if deadly:
                raise Died
            return answer

        return write


class StaleCluster:
    """Lists of children are answered as they were: by an API server that lags behind."""

    def __init__(self, cluster: Any, older: Any) -> None:
        self._cluster, self._older = cluster, older

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)

    async def children(self, namespace: str, job: str) -> Any:
        self._cluster.shown = self._older
        return self._older


def _named(verb: str, args: tuple[Any, ...]) -> str:
    """What a write is about, for counting: `apply Job docs-prepare`."""
    if verb == "apply":
        return f"apply {args[0]['kind']} {args[0]['metadata']['name']}"
    if verb == "post_event":
        return f"event {args[0]['reason']} {args[0]['metadata']['name']}"
    return f"{verb} {args[1]}"
