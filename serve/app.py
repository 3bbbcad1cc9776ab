"""The Ray Serve application: door, desk and scorer. `serve run serve.app:build`, or by `unmask serve`."""

import math
from collections.abc import Mapping
from typing import Any

from ray import serve as ray_serve
from ray.serve import Application

from serve.api import make_api
from serve.client import DeskClient
from serve.desk import Desk
from serve.settings import SCORER, Settings, key_digests

__all__ = ["APP", "Door", "build", "scaled"]

APP = "unmask"
"""What the application is called where nothing else is said."""

# A scorer is asked for by about this many calls at once before another one is worth its memory.
_CALLS = 8.0
# Older frames than this, when their scores leave the scorer, mean that streams lag.
_LATE_S = 0.25

# Of a GPU, where nothing else is said: the analyst wants some, too.
_GPU_SHARE = 0.5

_current: Any = None


class _Entry:
    """The ASGI application of this process; `Door` puts it here."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})
            return
        from serve import app

        await app._current(scope, receive, send)


class _Door:
    """The ingress: HTTP and sockets. It holds nothing, so any replica serves any request.

    Args:
        settings: As of `Settings`, in plain values.
        desk: The desk's handle.
    """

    def __init__(self, settings: Mapping[str, Any], desk: Any) -> None:
        from serve import app

        known = Settings(**settings)
        self._desk = DeskClient(desk)
        app._current = make_api(known, self._desk, key_digests(known.api_key_file))


Door = ray_serve.ingress(_Entry())(_Door)


def scaled(context: Any) -> tuple[int, dict[str, Any]]:
    """How many scorers there should be: enough for the calls, one more where frames come late.

    Args:
        context: Ray Serve's `AutoscalingContext`.
    """
    wanted = math.ceil(context.total_num_requests / _CALLS)
    ages = ((context.aggregated_metrics or {}).get("frame_age_s") or {}).values()
    if max(ages, default=0.0) > _LATE_S:
        wanted = max(wanted, context.current_num_replicas + 1)
    least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return min(max(wanted, least), most), {}


def build(args: Settings) -> Application:
    """The application.

    Args:
        args: Settings, by their names (`serve run serve.app:build model=... max_streams=...`).

    Raises:
        UsageError: The keys cannot be read.
    """
    key_digests(args.api_key_file)
    args = args.model_copy(update={"state": args.state.resolve()})
    plain = args.model_dump(mode="json")
    gpus = (_GPU_SHARE if args.scorer_gpus is None else args.scorer_gpus) if args.on_gpu else 0.0
    scorer = ray_serve.deployment(
        name=SCORER,
        max_ongoing_requests=256,
        health_check_period_s=2.0,
        graceful_shutdown_timeout_s=5.0,
        max_surge_percent=100,
        ray_actor_options={"num_cpus": args.scorer_cpus, "num_gpus": gpus},
        autoscaling_config={
            "min_replicas": args.scorers,
            "max_replicas": args.max_scorers,
            "target_ongoing_requests": _CALLS,
            "upscale_delay_s": 5.0,
            "downscale_delay_s": 60.0,
            "metrics_interval_s": 2.0,
            "look_back_period_s": 6.0,
            "policy": {"policy_function": "serve.app:scaled"},
        },
    )(_scorer_class())
    desk = ray_serve.deployment(
        name="desk",
        num_replicas=1,
        max_ongoing_requests=10_000,
        health_check_period_s=2.0,
        graceful_shutdown_timeout_s=3.0,
        ray_actor_options={"num_cpus": 0},
    )(Desk)
    door = ray_serve.deployment(
        name="door",
        num_replicas=1,
        max_ongoing_requests=10_000,
        health_check_period_s=2.0,
        graceful_shutdown_timeout_s=2.0,
        ray_actor_options={"num_cpus": 0},
    )(Door)
    return door.bind(plain, desk.bind(plain, scorer.bind(plain)))


def _scorer_class() -> type:
    from serve.scorer import Scorer

    return Scorer
