"""The desk: the one process that knows all analyses and streams, owns the store, and tells the others what to do.

It does no work on pictures, so it is small and has no reason to die. Where it does, Serve starts it again; hosts play
on meanwhile and keep what they have to tell.
"""

import asyncio
import contextlib
import functools
import secrets
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from serve.bench import Bench
from serve.faults import ApiError, code_of, error_json, from_error
from serve.fleet import Fleet
from serve.journal import Journal
from serve.logs import set_up
from serve.metrics import Meter, Numbers
from serve.settings import Settings
from serve.store import AnalysisRecord, Event, Store, StreamRecord
from serve.stream import Stream
from unmask import __version__
from unmask.addresses import AddressPolicy
from unmask.errors import MediaError, Reason, UnmaskError
from unmask.inputs import without_password

__all__ = ["Answer", "Desk"]

P = ParamSpec("P")
Answer = dict[str, Any]
"""{"ok": value} or {"refused": {code, message, retry_after_s}}: an error that needs no class on the other side."""

_PRUNE_S = 300.0
# A file that no analysis names yet is an upload under way, or one that was answered a moment ago.
_UPLOAD_S = 90.0
# Of a CPU, that hosts and analysts count for: none is placed on a head that counts none, and lost with it.
_CPU_SHARE = 0.1
# Of a GPU, that each analyst holds where there is one.
_GPU_SHARE = 0.25
_NAMESPACE = "unmask"


def _answered(
    method: Callable[Concatenate["Desk", P], Awaitable[Any]],
) -> Callable[Concatenate["Desk", P], Awaitable[Answer]]:
    """Give what a method returns, or why it refuses, as an `Answer`. None answers before the store was looked at."""

    @functools.wraps(method)
    async def wrapped(self: "Desk", /, *args: P.args, **kwargs: P.kwargs) -> Answer:
        try:
            await self.begin()
            return {"ok": await method(self, *args, **kwargs)}
        except ApiError as error:
            refused = error
        except UnmaskError as error:
            refused = from_error(error)
        except sqlite3.Error as error:
            refused = ApiError("NOT_READY", f"What the service knows cannot be stored ({error}); look at its disk", 30)
        return {"refused": {"code": refused.code, "message": refused.message, "retry_after_s": refused.retry_after_s}}

    return wrapped


class Desk:
    """The deployment's class.

    Args:
        settings: As of `Settings`, in plain values.
        scorer: The scorer's handle: the desk needs it to be there.
    """

    def __init__(self, settings: Mapping[str, Any], scorer: Any) -> None:
        from ray import serve as ray_serve

        self._settings, self._scorer = Settings(**settings), scorer
        self._log = set_up()
        self._app = ray_serve.get_replica_context().app_name
        self._settings.state.mkdir(parents=True, exist_ok=True)
        self._spool.mkdir(mode=0o700, exist_ok=True)
        self._store = Store(
            self._settings.state / "unmask.sqlite",
            keep_events_s=self._settings.keep_events_h * 3600,
            keep_analyses_s=self._settings.keep_analyses_h * 3600,
        )
        self._journal, self._meter = Journal(self._store), Meter()
        self._policy = AddressPolicy(allow_private=self._settings.allow_private)
        self._models: dict[str, dict[str, Any]] = {}
        self._fleet = Fleet(self._settings, self._journal, self._meter, self._host, self._model_of)
        self._bench = Bench(self._settings, self._journal, self._meter, self._analyst, _kill)
        self._begun: asyncio.Task[None] | None = None
        self._started_s = time.time()

    @property
    def _spool(self) -> Path:
        return self._settings.state / "spool"

    # Processes.

    def _host(self, number: int) -> Any:
        import ray

        from serve.host import Host

        # It outlives the desk, and not for long: see `Host`.
        return (
            ray.remote(Host)
            .options(
                name=f"unmask-host-{self._app}-{number}", namespace=_NAMESPACE, lifetime="detached",
                get_if_exists=True, num_cpus=_CPU_SHARE, scheduling_strategy=_home(number), max_restarts=0,
                max_concurrency=1000,
            )
            .remote(self._settings.model_dump(mode="json"), self._app)
        )  # fmt: skip

    def _analyst(self, number: int) -> Any:
        import ray

        from serve.analyst import Analyst

        del number
        options = {
            "num_cpus": _CPU_SHARE,
            "num_gpus": _GPU_SHARE if self._settings.on_gpu else 0,
            "max_restarts": 0,
            "max_concurrency": 3,
        }
        return ray.remote(Analyst).options(**options).remote(self._settings.model_dump(mode="json"))

    async def begin(self) -> None:
        """Start working; the first call does it: Serve's first health check, if nobody was faster.

        Raises:
            Exception: It cannot; Serve then starts another desk.
        """
        if self._begun is None:
            self._fleet.begin(without_password)
            self._begun = asyncio.create_task(self._begin())
        if self._begun.done():
            self._begun.result()

    async def _begin(self) -> None:
        slot = await self._fleet.any_host(wait_s=600.0)
        self._models = await self._described(slot.actor)
        self._bench.begin()
        while True:
            self._tidy()
            await asyncio.sleep(_PRUNE_S)

    async def _described(self, actor: Any) -> dict[str, dict[str, Any]]:
        """All models. One that was put here and is no more makes way for that of the settings, if there is one."""
        named, found = self._settings.named_models(), dict[str, dict[str, Any]]()
        for name, spec in self._specs().items():
            try:
                found[name] = {"spec": spec, **await actor.describe.remote(spec)}
            except UnmaskError as error:
                if named.get(name) == spec:
                    raise
                self._log.error("the model %s was put here and cannot be had any more (%s)", name, error.message)
                if name in named:
                    found[name] = {"spec": named[name], **await actor.describe.remote(named[name])}
        return found

    def _tidy(self) -> None:
        """Forget what is old, in the store and beside it."""
        try:
            self._store.prune()
            waiting = [*self._store.analyses("queued", 10_000), *self._store.analyses("running", 10_000)]
        except sqlite3.Error as error:
            self._log.error("the store cannot be tidied (%s)", error)
            return
        named = {Path(record.request["path"]).name for record in waiting}
        for path in self._spool.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.name not in named and path.stat().st_mtime < time.time() - _UPLOAD_S:
                    path.unlink()

    async def check_health(self) -> None:
        """Serve asks once the desk is there, and every other second."""
        await self.begin()

    async def ready(self) -> dict[str, Any]:
        """Whether everything is there, and what is."""
        await self.begin()
        return {
            "ready": self._fleet.is_ready and "default" in self._models,
            "hosts": len(self._fleet.pids),
            "models": sorted(self._models),
            "pids": {"hosts": self._fleet.pids, "analysts": list(self._bench.pids.values())},
        }

    # Models.

    def _specs(self) -> dict[str, str]:
        """All models: those of the settings, and those put since (over one of the settings while that is as it was)."""
        named = self._settings.named_models()
        saved, replaced = self._store.note("models") or {}, self._store.note("replaced") or {}
        return {**named, **{k: spec for k, spec in saved.items() if k not in named or replaced.get(k) == named[k]}}

    def _model_of(self, name: str) -> tuple[str, str]:
        # The first streams may be placed before the models are described.
        known = self._models or {k: {"spec": spec, "sha256": ""} for k, spec in self._specs().items()}
        if name not in known:
            names = ", ".join(sorted(known))
            raise ApiError("MODEL_UNAVAILABLE", f"No model is called {name!r} here; there are {names}")
        return known[name]["spec"], known[name]["sha256"]

    def _check_models(self) -> None:
        if not self._models:
            raise ApiError("NOT_READY", "The models are being loaded; try again", 5)

    @_answered
    async def models(self) -> list[dict[str, Any]]:
        """All models."""
        return [_model_json(name, model) for name, model in sorted(self._models.items())]

    @_answered
    async def put_model(self, name: str, spec: str) -> dict[str, Any]:
        """Let a name stand for another model; streams that use it go on with it."""
        self._check_models()
        slot = await self._fleet.any_host()
        described = await slot.actor.describe.remote(spec)
        named = self._settings.named_models()
        saved = {k: v for k, v in {**self._specs(), name: spec}.items() if v != named.get(k)}
        self._store.append((), {"models": saved, "replaced": named})
        self._models[name] = {"spec": spec, **described}
        await self._fleet.swap(name)
        return _model_json(name, self._models[name])

    # Analyses.

    @_answered
    async def room_for_analysis(self, key: str | None, fingerprint: str) -> dict[str, Any] | None:
        """Before an upload: the analysis that the key stands for already, or None where there is room for a new one."""
        if key is not None and (known := self._store.claimed(key)) is not None:
            owner, same = known[0], known[1] == fingerprint
            if not same:
                raise ApiError("CONFLICT", "This Idempotency-Key was used for another request; take a new one")
            return self._analysis_json(self._analysis(owner))
        self._bench.check_room()
        return None

    @_answered
    async def submit(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Take an analysis.

        Args:
            wanted: shown, path or url, frames, fps, every, model, callback_url, key, fingerprint.
        """
        self._bench.check_room()
        self._check_models()
        spec, sha256 = self._model_of(wanted["model"])
        analysis_id = "an_" + secrets.token_hex(8)
        if wanted.get("url"):
            await self._check_address(wanted["url"])
        if wanted.get("callback_url"):
            await self._check_address(wanted["callback_url"])
            self._settings.callback_secret()
        if wanted.get("key"):
            owner, same = self._store.claim(wanted["key"], wanted["fingerprint"], analysis_id)
            if not same:
                raise ApiError("CONFLICT", "This Idempotency-Key was used for another request; take a new one")
            if owner != analysis_id:
                if wanted.get("path"):  # both were sent at once: the other's bytes are analysed
                    Path(wanted["path"]).unlink(missing_ok=True)
                return self._analysis_json(self._analysis(owner))
        fields = ("url", "frames", "fps", "every", "callback_url", "model")
        request = {name: wanted.get(name) for name in fields} | {"spec": spec, "sha256": sha256}
        request["path"] = wanted.get("path") or str(self._spool / f"{analysis_id}.download")
        record = AnalysisRecord(
            id=analysis_id, state="queued", input=wanted["shown"], created_s=time.time(), request=request
        )
        self._bench.submit(record)
        return self._analysis_json(record)

    async def _check_address(self, url: str) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._policy.check, url)
        except MediaError as error:
            if error.reason is Reason.ADDRESS_REFUSED:
                raise

    def _analysis(self, analysis_id: str) -> AnalysisRecord:
        record = self._store.analysis(analysis_id)
        if record is None:
            raise ApiError("NOT_FOUND", f"There is no analysis {analysis_id}")
        return record

    def _analysis_json(self, record: AnalysisRecord) -> dict[str, Any]:
        return {
            "id": record.id,
            "state": record.state,
            "input": record.input,
            "model": record.request.get("model", "default"),
            "created_at": record.created_s,
            "finished_at": record.finished_s,
            "callback": record.request.get("callback"),
            "progress": 1.0 if record.state == "done" else self._bench.progress(record.id),
            "result": record.result,
            "error": error_json(record.result["error"]) if record.result is not None else None,
        }

    @_answered
    async def analysis(self, analysis_id: str) -> dict[str, Any]:
        """One analysis."""
        return self._analysis_json(self._analysis(analysis_id))

    @_answered
    async def analyses(self, limit: int) -> list[dict[str, Any]]:
        """The newest."""
        return [self._analysis_json(record) for record in self._store.analyses(limit=limit)]

    @_answered
    async def remove_analysis(self, analysis_id: str) -> None:
        """Forget one."""
        await self._bench.remove(self._analysis(analysis_id))

    # Streams.

    @_answered
    async def add_stream(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Add a stream: url, name, fps, model, transport."""
        self._fleet.check_room()
        self._model_of(wanted["model"])
        await self._check_address(wanted["url"])
        self._fleet.check_room()
        stream_id = "st_" + secrets.token_hex(6)
        settings = {k: wanted.get(k) for k in ("name", "fps", "model", "transport", "paused")}
        record = StreamRecord(id=stream_id, url=wanted["url"], created_s=time.time(), settings=settings)
        stream = await self._fleet.add(record, without_password(wanted["url"]))
        return _stream_json(stream)

    @_answered
    async def streams(self) -> list[dict[str, Any]]:
        """All streams."""
        return [_stream_json(stream) for stream in self._fleet.streams.values()]

    @_answered
    async def stream(self, stream_id: str) -> dict[str, Any]:
        """One stream."""
        return _stream_json(self._fleet.get(stream_id))

    @_answered
    async def change_stream(self, stream_id: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change name, fps, model, or whether it is paused."""
        stream = self._fleet.get(stream_id)
        if "model" in changes:
            self._model_of(changes["model"])
        await self._fleet.change(stream, changes)
        return _stream_json(stream)

    @_answered
    async def remove_stream(self, stream_id: str) -> None:
        """Forget a stream."""
        await self._fleet.remove(self._fleet.get(stream_id))

    @_answered
    async def events(self, owner: str, after: int | None, wait_s: float, last: int = 0) -> dict[str, Any]:
        """Events of an analysis or stream after an id, waiting for the first.

        Args:
            owner: Its id.
            after: The id; None for the `last` ones.
            wait_s: How long to wait where there is none.
            last: How many of the past, where no id is given.

        Returns:
            events, and over: whether no more can come.
        """
        record = self._store.analysis(owner)
        if record is None and owner not in self._fleet.streams:
            raise ApiError("NOT_FOUND", f"There is no {owner}")
        if after is None:
            events = self._store.last_events(owner, last)
        else:
            events = await self._journal.after(owner, after, wait_s=wait_s)
        over = owner not in self._fleet.streams and (record is None or record.state == "done")
        if over and record is not None and events:
            over = events[-1].kind == "result"
        gone = self._store.analysis(owner) is None and owner not in self._fleet.streams
        return {"events": [_event_json(event) for event in events], "over": over or gone}

    # Sockets.

    @_answered
    async def open_socket(self, model: str) -> dict[str, Any]:
        """Make room for a socket's pictures: its id, and the name of the actor that takes them."""
        self._fleet.check_room()
        socket_id = "ws_" + secrets.token_hex(6)
        number = await self._fleet.open_socket(socket_id, model)
        return {"id": socket_id, "host": f"unmask-host-{self._app}-{number}", "namespace": _NAMESPACE}

    async def close_socket(self, socket_id: str) -> None:
        """A socket has ended."""
        self._fleet.close_socket(socket_id)

    # Numbers.

    async def count(self, numbers: Numbers) -> None:
        """Take what another process counted."""
        self._meter.merge(numbers)

    async def metrics(self) -> bytes:
        """The text of `/metrics`."""
        meter, streams = self._meter, list(self._fleet.streams.values())
        for name in ("unmask_streams", "unmask_analyses_waiting", "unmask_model_info"):
            meter.forget(name)
        states = [stream.state for stream in streams] + ["socket"] * len(self._fleet.sockets)
        for state in {"live", *states}:
            meter.set("unmask_streams", states.count(state), state)
        meter.set("unmask_stream_limit", self._settings.max_streams)
        meter.set("unmask_stream_lag_seconds", max((s.lag_s for s in streams if s.state == "live"), default=0.0))
        for state, number in self._bench.waiting().items():
            meter.set("unmask_analyses_waiting", number, state)
        for name, model in self._models.items():
            trained = str(model["trained"]).lower()
            meter.set("unmask_model_info", 1, name, model["version"], model["sha256"][:16], trained)
        meter.set("unmask_info", 1, __version__)
        return meter.render()


def _home(number: int) -> Any:
    """Where a host goes: each to another node, as far as there are some, and none where GPUs are for others."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= _CPU_SHARE]  # type: ignore[no-untyped-call]
    fit = [node for node in alive if not node["Resources"].get("GPU")] or alive
    nodes = sorted(str(node["NodeID"]) for node in fit)
    return NodeAffinitySchedulingStrategy(nodes[number % len(nodes)], soft=True) if nodes else "DEFAULT"


def _kill(actor: Any) -> None:
    import ray

    ray.kill(actor)


def _model_json(name: str, model: Mapping[str, Any]) -> dict[str, Any]:
    fields = ("version", "sha256", "trained", "card")
    return {"name": name, "model": model["name"], **{k: model[k] for k in fields}}


def _stream_json(stream: Stream) -> dict[str, Any]:
    settings, snapshot, change = stream.settings, stream.snapshot or {}, stream.change
    known = stream.state == change.get("state")
    return {
        "id": stream.record.id,
        "name": settings.get("name") or stream.shown,
        "url": stream.shown,
        "model": settings["model"],
        "fps": settings["fps"],
        "transport": settings["transport"],
        "paused": bool(settings.get("paused")),
        "created_at": stream.record.created_s,
        "state": stream.state,
        "reason": change.get("reason") if known else None,
        "message": change.get("message") if known else None,
        "error": _error_of(change) if known else None,
        "retry_in_s": change.get("retry_in_s") if known else None,
        "media": change.get("media") if known else None,
        "lag_s": stream.lag_s,
        "window_fill": stream.fill,
        "last": stream.last,
        "frames": snapshot.get("frames", {"received": 0, "scored": 0, "dropped": {}}),
        "resets": snapshot.get("resets", {}),
        "reconnects": snapshot.get("reconnects", {}),
    }


def _error_of(change: Mapping[str, Any]) -> dict[str, str] | None:
    """Why a source is not there, with the API's code; what the service itself refused has one already."""
    reason = change.get("reason")
    if reason is None:
        return None
    code = code_of(reason) if reason in set(Reason) else str(reason).upper()
    return {"code": code, "message": change.get("message") or ""}


def _event_json(event: Event) -> dict[str, Any]:
    return {"id": event.id, "kind": event.kind, "data": event.data}
