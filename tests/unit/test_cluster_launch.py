"""`ray up` and Slurm: what they hand to Ray is what Ray takes."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster/slurm.sh"


@pytest.fixture
def launch() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster/ray-up.yaml").read_text())  # type: ignore[no-any-return]


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` reads it, checked by Ray's own validator."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(config)
    validate_config(config)
    return config


def test_ray_takes_the_launch_file(launch: dict[str, Any]) -> None:
    config = prepared(launch)
    types = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert {name for name, t in types.items() if t["resources"].get("GPU")} == {"v100"}
    assert types["cpu"]["resources"]["CPU"] > types["v100"]["resources"]["CPU"]
    assert all(t["max_workers"] <= config["max_workers"] for t in types.values())
    assert types["v100"]["node_config"]["InstanceType"].startswith("p3.")
    assert all("&disk" not in str(t) and t["node_config"]["BlockDeviceMappings"] for t in types.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"head_node_type": "none"}, "head_node_type"),
        ({"max_worker": 3}, "max_worker"),
        ({"max_workers": "many"}, "many"),
    ],
    ids=["head", "unknown", "kind"],
)
def test_ray_refuses_what_is_wrong(launch: dict[str, Any], change: dict[str, Any], said: str) -> None:
    import jsonschema

    with pytest.raises((ValueError, jsonschema.ValidationError), match=said):
        prepared({**launch, **change})


def test_nodes_get_the_code_and_no_data(launch: dict[str, Any]) -> None:
    assert launch["file_mounts"] == {"/home/ubuntu/unmask": "."}
    assert {".git", ".venv", "out"} <= set(launch["rsync_exclude"])
    assert launch["rsync_filter"] == [".gitignore"]
    assert "make install" in " ".join(launch["setup_commands"])


def slurm(tmp_path: Path, *command: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run the script where `srun` shows what it was given, one word a line."""
    for name, body in (("srun", 'printf "%s\\n" "$RAY_TMPDIR" "$@"'), ("scontrol", "printf 'node7\\nnode8\\n'")):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    env = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path), "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "123456", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_CPUS_ON_NODE": "40",
        "SLURM_GPUS_ON_NODE": "4", **more,
    }  # fmt: skip
    return subprocess.run(["bash", str(SCRIPT), *command], env=env, capture_output=True, text=True, timeout=60)


def test_slurm_starts_ray_on_every_node_and_the_command_on_one(tmp_path: Path) -> None:
    from ray.scripts import symmetric_run
    from ray.scripts.scripts import start

    done = slurm(tmp_path, "python", "-m", "train.fit", "--recipe", "dfdc-b7", "--data", "a folder")
    assert done.returncode == 0, done.stderr
    scratch, *words = done.stdout.splitlines()
    assert scratch == "/tmp/ray-123456"
    begin, middle = words.index("ray"), words.index("--")
    assert words[:begin] == ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert words[begin + 1] == "symmetric-run"
    # Ray's own reading of it, and of what it hands on to `ray start`.
    told = words[begin + 2 : middle]
    context = symmetric_run.symmetric_run.make_context("_", list(told), resilient_parsing=True)
    assert (context.params["address"], context.params["min_nodes"]) == ("node7:6856", 2)
    handed_on = symmetric_run.curate_and_validate_ray_start_args(list(told))
    params = start.make_context("_", handed_on).params
    assert (params["num_cpus"], params["num_gpus"], params["include_dashboard"]) == (40, 4, False)
    assert words[middle + 1 :] == [
        "env", "RAY_ADDRESS=node7:6856", "python", "-m", "train.fit", "--recipe", "dfdc-b7", "--data", "a folder",
    ]  # fmt: skip


def test_slurm_says_what_is_missing(tmp_path: Path) -> None:
    assert slurm(tmp_path).returncode == 2
    assert "usage: sbatch" in slurm(tmp_path).stderr
    outside = slurm(tmp_path, "true", SLURM_JOB_ID="")
    assert outside.returncode != 0
    assert "submit this with sbatch" in outside.stderr
