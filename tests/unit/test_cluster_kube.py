"""The Kubernetes files, as built: against KubeRay's schemas where they lie beside, and in what they say in any case."""

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.session import DECODES
from serve.app import APP, build
from serve.settings import SCORER, Settings
from tests.crds import faults, schemas
from unmask import __version__

ROOT = Path(__file__).parents[2]
KUBE = ROOT / "cluster/kube"
CRDS = ROOT.parent / "shared/kuberay"
OVERLAYS = ("cpu", "v100", "h100")
RESOURCES = ("RayCluster", "RayJob", "RayService")

Resource = dict[str, Any]


def build_with() -> list[str]:
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    pytest.skip("neither kustomize nor kubectl is installed: the overlays cannot be built")


@pytest.fixture(scope="module")
def built() -> dict[str, list[Resource]]:
    found = {}
    for name in OVERLAYS:
        command = [*build_with(), str(KUBE / "overlays" / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found[name] = list(yaml.safe_load_all(done.stdout))
    return found


def of_kind(resources: list[Resource], kind: str) -> list[Resource]:
    return [r for r in resources if r["kind"] == kind]


def clusters(resources: list[Resource]) -> dict[str, Resource]:
    """The Ray cluster of each resource that has one, by its name."""
    found = {r["metadata"]["name"]: r["spec"]["rayClusterSpec"] for r in of_kind(resources, "RayJob")}
    return found | {
        f"{r['metadata']['name']}-serve": r["spec"]["rayClusterConfig"] for r in of_kind(resources, "RayService")
    }


def pods(cluster: Resource) -> list[Resource]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.fixture(scope="module")
def crds() -> dict[tuple[str, str], Resource]:
    if not CRDS.is_dir():
        pytest.skip("KubeRay's schemas are not in ../shared/kuberay: only the structure is checked")
    return schemas(CRDS)


def test_the_overlays_are_what_kuberay_takes(
    built: dict[str, list[Resource]], crds: dict[tuple[str, str], Resource]
) -> None:
    for name, resources in built.items():
        mine = [r for r in resources if r["kind"] in RESOURCES]
        assert len(mine) == 4
        for resource in mine:
            assert faults(resource, crds) == [], (name, resource["metadata"]["name"])


def test_the_check_finds_what_is_wrong(built: dict[str, list[Resource]], crds: dict[tuple[str, str], Resource]) -> None:
    (service,) = of_kind(built["v100"], "RayService")
    group = ("spec", "rayClusterConfig", "workerGroupSpecs", 1)
    for path, value, expected in (
        ((*group, "replicas"), "one", "replicas: 'one' is not of type 'integer'"),
        ((*group, "replica"), 1, "'replica' was unexpected"),
        ((*group, "template", "spec", "containers", 0, "resource"), {}, "'resource' was unexpected"),
        (("spec", "rayClusterConfig", "authOptions", "mode"), "secret", "'secret' is not one of"),
    ):
        broken = copy.deepcopy(service)
        place: Any = broken
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        assert any(expected in fault for fault in faults(broken, crds)), path
    del broken["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert any("'headGroupSpec' is a required property" in fault for fault in faults(broken, crds))


def test_each_overlay_has_the_service_and_three_jobs_that_wait(built: dict[str, list[Resource]]) -> None:
    for resources in built.values():
        jobs = {r["metadata"]["name"]: r["spec"] for r in of_kind(resources, "RayJob")}
        assert set(jobs) == {"unmask-preprocess", "unmask-train", "unmask-evaluate"}
        for name, spec in jobs.items():
            assert spec["suspend"]
            assert spec["shutdownAfterJobFinishes"]
            # Whatever the jobs read from the environment is set there.
            (settings,) = of_kind(resources, "ConfigMap")
            assert set(re.findall(r"\$(\w+)", spec["entrypoint"])) <= set(settings["data"]), name
        assert {r["metadata"]["labels"]["app.kubernetes.io/part-of"] for r in resources} == {"unmask"}


def _words_on_the_head(entrypoint: str, variables: dict[str, str]) -> list[str]:
    """What a command gets: KubeRay's submitter puts it into a shell that knows none of its variables, and hands on what
    is left, joined again; on the head, another shell takes it."""

    def words(text: str, **variables: str) -> list[str]:
        show = "import json, sys; print(json.dumps(sys.argv[1:]))"
        env = {"PATH": os.environ["PATH"], **variables}
        command = ["bash", "-c", f"{shlex.quote(sys.executable)} -c {shlex.quote(show)} {text}"]
        return list(json.loads(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout))

    handed = words(entrypoint)
    assert handed[:2] == ["sh", "-c"]
    assert handed[2].startswith("exec ")
    return words(handed[2].removeprefix("exec "), **variables)


def test_entry_points_are_commands_with_options_that_there_are(built: dict[str, list[Resource]]) -> None:
    import importlib

    import typer.main

    (settings,) = of_kind(built["cpu"], "ConfigMap")
    for job in of_kind(built["cpu"], "RayJob"):
        words = _words_on_the_head(job["spec"]["entrypoint"], settings["data"])
        assert words[:2] == ["python", "-m"]
        assert "" not in words
        assert not any("$" in word for word in words)
        command = typer.main.get_command(importlib.import_module(words[2]).app)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known


def test_pods_are_confined_and_watched(built: dict[str, list[Resource]]) -> None:
    for resources in built.values():
        claims = {r["metadata"]["name"] for r in of_kind(resources, "PersistentVolumeClaim")}
        for name, cluster in clusters(resources).items():
            assert cluster["authOptions"] == {"mode": "token"}
            for pod in pods(cluster):
                assert pod["securityContext"]["runAsNonRoot"]
                assert pod["securityContext"]["runAsUser"] == 1000, "the image's user"
                (container,) = pod["containers"]
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                }
                assert {"livenessProbe", "readinessProbe"} <= set(container)
                assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
                mounted, there = {m["name"] for m in container["volumeMounts"]}, {v["name"] for v in pod["volumes"]}
                assert mounted == there, name
                assert {
                    v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
                } <= claims


def test_gpus_are_where_they_are_said_to_be(built: dict[str, list[Resource]]) -> None:
    family = {"v100": "volta", "h100": "hopper"}
    for name, resources in built.items():
        for cluster in clusters(resources).values():
            groups = {g["groupName"]: g for g in cluster["workerGroupSpecs"]}
            assert set(groups) == ({"cpu"} if name == "cpu" else {"cpu", "gpu"})
            assert "nvidia.com/gpu" not in str(groups["cpu"])
            (container,) = groups["cpu"]["template"]["spec"]["containers"]
            assert container["image"] == f"unmask:{__version__}" + ("-cpu" if name == "cpu" else "")
            if name == "cpu":
                continue
            pod = groups["gpu"]["template"]["spec"]
            assert pod["nodeSelector"] == {"nvidia.com/gpu.family": family[name]}
            resources_of = pod["containers"][0]["resources"]
            gpus = groups["gpu"]["rayStartParams"]["num-gpus"]
            assert (
                str(resources_of["limits"]["nvidia.com/gpu"]) == str(resources_of["requests"]["nvidia.com/gpu"]) == gpus
            )
            # Decoding is to go to the other group.
            assert int(groups["gpu"]["rayStartParams"]["num-cpus"]) < int(resources_of["requests"]["cpu"])
        sizes = {n: sum(g["replicas"] for g in c["workerGroupSpecs"]) for n, c in clusters(resources).items()}
        assert min(sizes.values()) >= 1
        for cluster in clusters(resources).values():
            for group in cluster["workerGroupSpecs"]:
                assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_service_scales_and_is_not_torn_down_at_once(built: dict[str, list[Resource]]) -> None:
    for resources in built.values():
        (service,) = of_kind(resources, "RayService")
        cluster = service["spec"]["rayClusterConfig"]
        assert cluster["enableInTreeAutoscaling"]
        assert any(g["minReplicas"] < g["maxReplicas"] for g in cluster["workerGroupSpecs"])
        assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "redis://unmask-redis:6379"
        assert "unmask-redis" in {r["metadata"]["name"] for r in of_kind(resources, "Service")}
        budgets = {r["metadata"]["name"]: r["spec"] for r in of_kind(resources, "PodDisruptionBudget")}
        assert set(budgets) == {"unmask-head", "unmask-workers"}
        for spec in budgets.values():
            wanted = {k: v for k, v in spec["selector"]["matchLabels"].items() if not k.startswith("ray.io/")}
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                assert wanted.items() <= group["template"]["metadata"]["labels"].items()


def test_what_serve_is_told_is_what_the_service_knows(built: dict[str, list[Resource]], tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    told = {name: yaml.safe_load(of_kind(r, "RayService")[0]["spec"]["serveConfigV2"]) for name, r in built.items()}
    for name, same in (("serve", "cpu"), ("serve-gpu", "v100")):
        told[name] = yaml.safe_load((ROOT / f"cluster/{name}.yaml").read_text())
        assert told[name] == told[same]
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-more-than-16-characters\n")
    for name, config in told.items():
        schema = ServeDeploySchema.model_validate(config)
        (application,) = schema.applications
        assert (application.name, application.import_path) == (APP, "serve.app:build")
        settings = Settings(**application.args)
        assert not settings.is_open
        assert settings.port == schema.http_options.port
        assert settings.on_gpu == (name in ("v100", "h100", "serve-gpu"))
        app = build(settings.model_copy(update={"api_key_file": keys}))
        assert app._bound_deployment.name == "door"
        if name in built:
            (service,) = of_kind(built[name], "RayService")
            for pod in pods(service["spec"]["rayClusterConfig"]):
                (keys_at,) = [m["mountPath"] for m in pod["containers"][0]["volumeMounts"] if m["name"] == "keys"]
                # Not in /run/secrets, where Kubernetes itself must mount something.
                assert application.args["api_key_file"] == f"{keys_at}/keys" == "/etc/unmask/keys/keys"
        for deployment in application.deployments:
            assert deployment.name in {"door", "desk", SCORER}


def test_the_desk_stays_on_the_head(built: dict[str, list[Resource]]) -> None:
    for resources in built.values():
        (service,) = of_kind(resources, "RayService")
        (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
        desk, door = application["deployments"]
        assert (desk["name"], door["name"]) == ("desk", "door")
        (resource,) = desk["ray_actor_options"]["resources"]
        head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]
        assert resource in head["resources"]
        # And the door, which must answer while the head is away, is not there.
        assert head["num-cpus"] == "0"
        assert door["ray_actor_options"]["num_cpus"] > 0
        assert door["num_replicas"] > 1
        for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
            assert resource not in str(group["rayStartParams"])


def test_decoding_goes_to_the_cpu_group(built: dict[str, list[Resource]]) -> None:
    for resources in built.values():
        for job in of_kind(resources, "RayJob"):
            for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
                told = json.loads(json.loads(group["rayStartParams"].get("resources", '"{}"')))
                assert told == ({DECODES: 1} if group["groupName"] == "cpu" else {})


def test_secrets_are_named_and_never_written_down() -> None:
    for path in KUBE.rglob("*.yaml"):
        for resource in yaml.safe_load_all(path.read_text()):
            assert not isinstance(resource, dict) or resource.get("kind") != "Secret", path
    for path in (*KUBE.rglob("*.yaml"), ROOT / "cluster/compose.yaml"):
        assert not re.search(r"(password|token|secret)['\"]?:\s*['\"]?[A-Za-z0-9+/]{12,}", path.read_text()), path
