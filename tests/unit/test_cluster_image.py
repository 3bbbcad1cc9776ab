"""The image: what its Dockerfile copies is there, what it installs is what the project needs, and no tool of tests."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cluster.dockerfile import Instruction, Stage, pairs, stages
from cluster.lock import part_of, pinned

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
STAGES = stages((ROOT / "cluster/Dockerfile").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def names(part: str) -> set[str]:
    return {p.name for p in pinned(part_of(LOCK, part))}


def versions(part: str) -> dict[str, str]:
    """What an installer takes from a part, on this machine."""
    found = {}
    for package in pinned(part_of(LOCK, part)):
        requirement = Requirement(package.text.split(" \\")[0])
        if requirement.marker is None or requirement.marker.evaluate():
            assert package.name not in found
            found[package.name] = package.version
    return found


def needed(requirement: Requirement) -> set[str]:
    """What an installed package needs here, by its own metadata."""
    found: set[str] = set()
    pending = [(requirement.name, extra) for extra in ("", *requirement.extras)]
    seen = set()
    while pending:
        name, extra = pending.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found.add(canonicalize_name(name))
        for text in importlib.metadata.requires(name) or []:
            child = Requirement(text)
            if child.marker is None or child.marker.evaluate({"extra": extra}):
                pending += [(child.name, e) for e in ("", *child.extras)]
    return found


def test_the_image_gets_all_that_the_project_needs_and_no_tools_of_tests() -> None:
    kept = names("gpu")
    for text in PROJECT["project"]["dependencies"]:
        assert needed(Requirement(text)) <= kept, text
    assert not kept & {"pytest", "mypy", "ruff", "moto", "hypothesis", "onnxruntime", "pytest-xdist"}
    assert kept < {p.name for p in pinned(LOCK)}


def test_every_version_keeps_its_digests() -> None:
    for package in pinned(part_of(LOCK, "gpu")):
        assert "--hash=sha256:" in package.text, package.name


def test_each_package_comes_in_the_version_that_this_python_runs() -> None:
    """Some are in the lock twice, for older and newer Pythons."""
    found = versions("gpu")
    assert {name: importlib.metadata.version(name) for name in found} == found
    assert {"numpy", "scipy", "av"} <= set(found)
    assert len(list(pinned(part_of(LOCK, "gpu")))) > len(names("gpu"))


def test_without_gpus_only_pytorch_and_cuda_are_left_out() -> None:
    left_out = names("gpu") - names("cpu")
    assert {"torch", "torchvision", "triton"} <= left_out
    assert all(name.startswith(("nvidia-", "cuda-")) for name in left_out - {"torch", "torchvision", "triton"})
    assert part_of(LOCK, "torch") == " ".join(
        f"{name}=={importlib.metadata.version(name)}" for name in ("torch", "torchvision")
    )


def test_the_lock_is_cut_by_plain_python() -> None:
    """As in the image, before anything is installed."""
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        "import sys; sys.path.insert(0, '.'); from cluster.lock import main; main()",
    ]
    done = subprocess.run([*command, "requirements.lock", "cpu"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == part_of(LOCK, "cpu").strip()
    wrong = subprocess.run([*command, "requirements.lock", "tpu"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("usage:")


def test_the_stages_build_on_one_base() -> None:
    assert [(s.name, s.base) for s in STAGES] == [
        ("python", "debian:bookworm-slim"),
        ("build", "python"),
        ("", "python"),
    ]


def test_what_is_copied_is_there_and_allowed_in() -> None:
    allowed = (ROOT / "cluster/Dockerfile.dockerignore").read_text().split()
    copied = set()
    for stage in STAGES:
        for copy in stage.all_of("COPY"):
            words = copy.words({})
            if not words[0].startswith("--from="):
                copied |= set(words[:-1])
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name.split('/')[0]}" in allowed
    assert set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= copied
    assert allowed[allowed.index("*") + 1 :]


def test_the_image_runs_as_nobody_special_and_tells_its_health() -> None:
    image = STAGES[-1]
    assert image.all_of("USER")[-1].text == "1000:1000"
    (health,) = image.all_of("HEALTHCHECK")
    assert "$HEALTH_URL" in health.text
    env = {k: v for e in image.all_of("ENV") for k, v in pairs(e, {}).items()}
    assert env["HEALTH_URL"].endswith("/api/local_raylet_healthz")
    assert env["PATH"].startswith("/opt/unmask/bin:")
    assert not any(re.search("key|secret|token|password", k, re.IGNORECASE) for k in env)


def test_reading_a_dockerfile() -> None:
    text = '# why\nFROM a AS b\nARG X=1 Y\nRUN one \\\n    # aside\n    && two\nFROM b\nCMD ["c", "d e"]\nENV P=$X/q\n'
    first, last = stages(text)
    assert first == Stage("b", "a", (Instruction("ARG", "X=1 Y"), Instruction("RUN", "one && two")))
    assert pairs(first.instructions[0], {}) == {"X": "1"}
    assert last.instructions[0].words({}) == ["c", "d e"]
    assert pairs(last.instructions[1], {"X": "1"}) == {"P": "1/q"}
    with pytest.raises(ValueError, match="VOLUME is not known"):
        stages("FROM a\nVOLUME /x\n")


def test_compose_runs_the_image_as_it_is_made() -> None:
    plan = yaml.safe_load((ROOT / "cluster/compose.yaml").read_text())
    told = yaml.safe_load((ROOT / "cluster/serve.yaml").read_text())
    assert set(plan["services"]) == {"head", "worker", "gpu-worker", "service"}
    for name, service in plan["services"].items():
        assert service["build"]["dockerfile"] == "cluster/Dockerfile"
        assert set(service["build"]["args"]) == {"ACCELERATOR"}
        (secret,) = service["secrets"]
        assert secret["target"] == told["applications"][0]["args"]["api_key_file"], name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "Ray's ports are for this machine only"
    for known in ("secrets", "configs"):
        for entry in plan[known].values():
            assert entry["file"] in {"../keys.txt", "${SERVE:-serve.yaml}"}
    # Neither goes into the image, or to a cluster with a job: the build takes named folders only.
    assert {"/keys.txt", "/data/"} <= set((ROOT / ".gitignore").read_text().split())
    taken = (ROOT / "cluster/Dockerfile.dockerignore").read_text().split("\n")
    assert "*" in taken
    assert not {"!keys.txt", "!data"} & set(taken)
