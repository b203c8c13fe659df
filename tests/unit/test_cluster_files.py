"""The files that start clusters: Ray takes them, they agree with the pins, with tuner's commands and with its cards."""

from __future__ import annotations

import copy
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from ray.autoscaler._private.util import prepare_config, validate_config
from ruamel.yaml import YAML

from tests.sweeps import ROOT
from tuner.backends.ray_autoscaler import groups_in
from tuner.cli import app
from tuner.gpus import GPUS
from tuner.placing import CARD_LABEL, TYPE_LABEL, card_of

LAUNCHER_FILES = [ROOT / "cluster.yaml", ROOT / "deploy" / "gcp.yaml", ROOT / "deploy" / "on-premise.yaml"]
RAYJOB = ROOT / "deploy" / "rayjob.yaml"
SLURM = ROOT / "deploy" / "slurm.sbatch"
ALL_FILES = [*LAUNCHER_FILES, RAYJOB, SLURM, ROOT / "deploy" / "Dockerfile"]
PINS = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
IMAGES = re.compile(r"rayproject/ray:(\S+)")

each_launcher_file = pytest.mark.parametrize("file", LAUNCHER_FILES, ids=lambda file: file.name)
each_file = pytest.mark.parametrize("file", ALL_FILES, ids=lambda file: file.name)


def documents(file: Path) -> list[Any]:
    return list(YAML(typ="safe", pure=True).load_all(file.read_text(encoding="utf-8")))


def prepared(file: Path) -> dict[str, Any]:
    """As `ray up` fills it out."""
    config: dict[str, Any] = prepare_config(copy.deepcopy(documents(file)[0]))
    return config


def commands(file: Path) -> list[str]:
    config = prepared(file)
    return [line for key, lines in config.items() if key.endswith("_commands") for line in lines]


def rayjob() -> dict[str, Any]:
    spec: dict[str, Any] = documents(RAYJOB)[-1]["spec"]
    return spec


def pods() -> dict[str, Any]:
    """Pod templates of the head and of each group of workers."""
    cluster = rayjob()["rayClusterSpec"]
    groups = {group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"]["spec"], **groups}


@each_launcher_file
def test_ray_takes_the_file(file: Path) -> None:
    validate_config(prepared(file))


@each_launcher_file
def test_ray_refuses_the_file_with_a_key_that_it_does_not_know(file: Path) -> None:
    config = prepared(file) | {"idle_timeout": 5}

    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(config)


@each_file
def test_a_file_begins_with_the_command_that_runs_it(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    first = next(line for line in lines if not line.startswith("#!"))

    assert str(file.relative_to(ROOT)) in first


@pytest.mark.parametrize("file", [LAUNCHER_FILES[0], RAYJOB, SLURM], ids=lambda file: file.name)
def test_the_tuner_commands_in_a_file_exist(file: Path) -> None:
    known = getattr(typer.main.get_command(app), "commands", {})
    used = re.findall(r"\btuner ([a-z-]+) (?=[/\"$-]|search_spaces)", file.read_text(encoding="utf-8"))

    assert used
    assert [verb for verb in used if verb not in known] == []


@each_file
def test_the_sweeps_that_a_file_names_exist(file: Path) -> None:
    named = re.findall(r"search_spaces/\S+\.yaml", file.read_text(encoding="utf-8"))

    assert [name for name in named if not (ROOT / name).is_file()] == []


@each_file
def test_images_are_of_the_ray_that_is_pinned(file: Path) -> None:
    tags = IMAGES.findall(file.read_text(encoding="utf-8"))

    assert [tag for tag in tags if not tag.startswith(f"{PINS['ray']}-py311-")] == []
    assert tags or file in {ROOT / "deploy" / "on-premise.yaml", RAYJOB, SLURM}


@each_launcher_file
def test_a_cluster_asks_for_a_token_and_shows_its_dashboard_to_itself_alone(file: Path) -> None:
    config = prepared(file)
    start = next(line for line in config["head_start_ray_commands"] if "--head" in line)
    settings = [*config["docker"].get("run_options", ()), *config["head_start_ray_commands"]]

    assert "--dashboard-host=127.0.0.1" in start
    assert any("RAY_AUTH_MODE=token" in line for line in settings)
    assert "~/.ray/auth_token" in documents(file)[0]["file_mounts"].values()


@each_launcher_file
def test_setup_installs_the_project_in_the_pinned_versions(file: Path) -> None:
    assert any("pip install" in line and "constraints.txt" in line for line in commands(file))


@pytest.mark.parametrize("file", LAUNCHER_FILES[:2], ids=lambda file: file.name)
def test_workers_in_a_cloud_are_spot_machines_that_go_when_idle(file: Path) -> None:
    config = prepared(file)
    workers = [kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]]

    assert config["idle_timeout_minutes"] <= 10
    assert all(kind["min_workers"] == 0 for kind in workers)
    assert all("spot" in str(kind["node_config"]) or "preemptible" in str(kind["node_config"]) for kind in workers)


@pytest.mark.parametrize("file", LAUNCHER_FILES[:2], ids=lambda file: file.name)
def test_the_labels_of_workers_name_their_cards(file: Path) -> None:
    config = prepared(file)
    workers = [kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]]

    for kind in workers:
        labels = kind["labels"]
        assert labels[CARD_LABEL] in GPUS
        assert labels[CARD_LABEL].startswith(f"{labels[TYPE_LABEL]}-")
        assert card_of(labels) == GPUS[labels[CARD_LABEL]]


def test_a_driver_sees_what_the_launchers_file_allows() -> None:
    config = pytest.importorskip("ray.autoscaler.v2.instance_manager.config").AutoscalingConfig(
        documents(LAUNCHER_FILES[0])[0], skip_content_hash=True
    )

    assert {group.name: group.max_nodes for group in groups_in(config)} == {"l4": 8, "a10g": 4}


def test_the_rayjob_is_of_the_ray_that_is_pinned() -> None:
    images = {container["image"] for pod in pods().values() for container in pod["containers"]}

    assert rayjob()["rayClusterSpec"]["rayVersion"] == PINS["ray"]
    assert images == {f"registry.example.com/tuner:ray{PINS['ray']}"}


def test_the_rayjob_asks_for_a_token_and_scales() -> None:
    cluster = rayjob()["rayClusterSpec"]
    groups = cluster["workerGroupSpecs"]

    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    assert rayjob()["shutdownAfterJobFinishes"] is True
    assert all(group["minReplicas"] == 0 < group["maxReplicas"] for group in groups)
    assert all(group["labels"][CARD_LABEL] in GPUS for group in groups)


def test_every_pod_of_the_rayjob_sees_the_folder_that_its_sweep_is_written_to() -> None:
    folder = re.findall(r"--out (/\w+)", rayjob()["entrypoint"])
    claim = documents(RAYJOB)[0]

    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods().values():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert volumes[mounts[folder[0]]]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert mounts.keys() & {"/sweep", "/dev/shm"}


def test_what_a_pod_requests_is_what_it_may_use() -> None:
    for pod in pods().values():
        resources = pod["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]


def stand_in(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def run_slurm_script(folder: Path) -> tuple[int, list[str]]:
    """Exit code, and the words that each node would run; Slurm and Ray are stand-ins, and the sweep is over at once."""
    bins = folder / "bin"
    bins.mkdir(exist_ok=True)
    stand_in(bins, "scontrol", "echo node1; echo node2")
    stand_in(bins, "hostname", "echo 10.0.0.1 fe80::1")
    stand_in(bins, "srun", 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"')
    stand_in(
        bins,
        "ray",
        'echo "$@"; stat -c "mode %a" "$RAY_AUTH_TOKEN_PATH"; mkdir -p reports/mine; touch reports/mine/report.html',
    )
    slurm = {
        "JOB_ID": "7",
        "JOB_NODELIST": "node[1-2]",
        "JOB_NUM_NODES": "2",
        "CPUS_PER_TASK": "8",
        "GPUS_ON_NODE": "4",
    }
    env = {"PATH": f"{bins}:{os.environ['PATH']}"} | {f"SLURM_{name}": value for name, value in slurm.items()}
    done = subprocess.run(
        ["bash", str(SLURM), "mine.yaml"], env=env, cwd=folder, capture_output=True, text=True, check=False
    )
    return done.returncode, [*done.stdout.split(), *done.stderr.splitlines()]


def test_the_slurm_script_runs_the_sweep_on_all_nodes_and_removes_its_token(tmp_path: Path) -> None:
    code, words = run_slurm_script(tmp_path)

    sweep = f"-- tuner run mine.yaml --out {tmp_path}/reports/mine --address 10.0.0.1:6379 mode 600"
    start = "symmetric-run --address 10.0.0.1:6379 --min-nodes 2 --num-cpus=8 --num-gpus=4"
    assert " ".join(words) == f"{start} {sweep}"
    assert code == 0
    assert list(tmp_path.glob(".ray-token*")) == []


def test_the_slurm_script_resumes_a_sweep_that_was_begun(tmp_path: Path) -> None:
    (tmp_path / "reports" / "mine").mkdir(parents=True)
    (tmp_path / "reports" / "mine" / "study.journal").touch()

    _, words = run_slurm_script(tmp_path)

    assert f"-- tuner resume {tmp_path}/reports/mine --address" in " ".join(words)
