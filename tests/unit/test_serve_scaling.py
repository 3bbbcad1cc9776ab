"""How many scorers there should be: by the calls that wait, and by how old frames are when their scores come."""

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingContext

from serve.app import scaled

DEPLOYMENT = DeploymentID(name="scorer", app_name="unmask")
REPLICAS = [ReplicaID(str(n), DEPLOYMENT) for n in range(4)]


def context(*, running: int, calls: float, ages_s: tuple[float, ...] = (), most: int = 4) -> AutoscalingContext:
    return AutoscalingContext(
        deployment_id=DEPLOYMENT, deployment_name="scorer", app_name="unmask", current_num_replicas=running,
        target_num_replicas=running, running_replicas=REPLICAS[:running], total_num_requests=calls,
        total_queued_requests=None, aggregated_metrics={"frame_age_s": dict(zip(REPLICAS, ages_s, strict=False))},
        raw_metrics=None, capacity_adjusted_min_replicas=1, capacity_adjusted_max_replicas=most, policy_state={},
        last_scale_up_time=None, last_scale_down_time=None, current_time=None, config=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("running", "calls", "ages_s", "wanted"),
    [
        (1, 0.0, (), 1),
        (1, 8.0, (0.05,), 1),
        (1, 9.0, (0.05,), 2),
        (1, 30.0, (0.05,), 4),
        (1, 300.0, (0.05,), 4),
        (3, 4.0, (0.05, 0.05, 0.05), 1),
        # Frames are late, however few calls wait.
        (1, 2.0, (0.4,), 2),
        (2, 2.0, (0.05, 0.4), 3),
        (4, 2.0, (0.4, 0.4, 0.4, 0.4), 4),
        (1, 30.0, (0.4,), 4),
    ],
)
def test_scorers_follow_the_calls_and_the_lag(
    running: int, calls: float, ages_s: tuple[float, ...], wanted: int
) -> None:
    assert scaled(context(running=running, calls=calls, ages_s=ages_s)) == (wanted, {})
