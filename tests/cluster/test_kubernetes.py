"""The Kubernetes recipes, as far as they can be looked at without a cluster."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffedit_batch import cli
from diffedit_batch.config import load_config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "configs" / "cluster"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text("utf-8")))


def job_specs() -> list[dict[str, Any]]:
    [job], [cron_job] = documents("kuberay-rayjob.yaml"), documents("kuberay-raycronjob.yaml")
    return [job["spec"], cron_job["spec"]["jobTemplate"]]


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def arguments(spec: dict[str, Any]) -> list[str]:
    """Those of `diffedit-batch`, with what the image calls its folder called as it is here."""
    program, *rest = shlex.split(spec["entrypoint"])
    assert program == "diffedit-batch"
    return [word.replace("/app/", f"{ROOT}/") for word in rest]


@pytest.mark.parametrize("spec", job_specs())
def test_the_entrypoint_is_a_command_of_ours_with_keys_of_ours(spec: dict[str, Any]) -> None:
    parsed = cli._parser().parse_args(arguments(spec))
    config = load_config(parsed.config, parsed.settings)
    assert config.output.uri.startswith("s3://")
    [group] = spec["rayClusterSpec"]["workerGroupSpecs"]
    # Demand is what an autoscaler goes by: with fewer workers asked for, nodes would never come.
    assert config.cluster.worker_range == (1, group["maxReplicas"])


def test_both_schedules_run_the_same_job() -> None:
    job, cron_job = job_specs()
    skip = "--if-locked=skip"  # nothing but the lease keeps runs of a RayCronJob apart
    assert cron_job == {**job, "entrypoint": f"{job['entrypoint']} {skip}"}


@pytest.mark.parametrize("spec", job_specs())
def test_a_job_cleans_up_and_ends(spec: dict[str, Any]) -> None:
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["activeDeadlineSeconds"] > spec["preRunningDeadlineSeconds"] > 0
    assert spec["backoffLimit"] > 0
    assert not {"clusterSelector", "suspend", "deletionStrategy", "runtimeEnvYAML"} & set(spec)


@pytest.mark.parametrize("spec", job_specs())
def test_the_cluster_is_safe_and_of_one_version(spec: dict[str, Any]) -> None:
    cluster = spec["rayClusterSpec"]
    pins = (ROOT / "constraints.txt").read_text("utf-8").split()
    assert f"ray=={cluster['rayVersion']}" in pins
    assert cluster["authOptions"] == {"mode": "token"}
    head, [workers] = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"] == {"num-cpus": "0"}
    assert "serviceType" not in head
    assert cluster["enableInTreeAutoscaling"]
    assert workers["minReplicas"] == workers["replicas"] == 0
    [worker] = workers["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for pod in pods(cluster):
        assert pod["securityContext"]["runAsNonRoot"]
        [container] = pod["containers"]
        assert container["image"] == head["template"]["spec"]["containers"][0]["image"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/models", "/dev/shm"} <= mounted
        # Secrets are named, never written down.
        assert {entry["name"] for entry in container["env"]} == {"HF_HOME"}


@pytest.mark.parametrize("path", sorted(CLUSTER.glob("*.yaml")), ids=lambda path: path.name)
def test_nothing_listens_to_the_world(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not [
        word for word in ("0.0.0.0", "dashboard-host", "NodePort", "Ingress") if word in text
    ]


def test_the_schedule_waits_for_its_job_and_outlives_it() -> None:
    cron_job = documents("kuberay-cronjob.yaml")[0]["spec"]
    assert cron_job["concurrencyPolicy"] == "Forbid"
    assert cron_job["successfulJobsHistoryLimit"] + cron_job["failedJobsHistoryLimit"] < 10
    job, [spec, _] = cron_job["jobTemplate"]["spec"], job_specs()
    attempts = spec["backoffLimit"] + 1
    assert job["activeDeadlineSeconds"] > attempts * spec["activeDeadlineSeconds"]
    assert job["backoffLimit"] == 0


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["Initializing ", "Running RUNNING", "Complete SUCCEEDED"], 0),
        (["Running RUNNING", "Retrying FAILED", "Running RUNNING", "Complete SUCCEEDED"], 0),
        (["Running RUNNING", "Complete STOPPED"], 1),
        (["Running RUNNING", "Failed FAILED"], 1),
        (["ValidationFailed "], 1),
    ],
)
def test_what_the_schedule_says_of_its_job(tmp_path: Path, states: list[str], code: int) -> None:
    pod = documents("kuberay-cronjob.yaml")[0]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    (tmp_path / "states").write_text("\n".join(states) + "\n")
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f"""#!/bin/sh
cd {tmp_path}
echo "$*" >> asked
case $1 in
    create) printf diffedit-batch-x7 ;;
    get) head -n 1 states; sed -i 1d states ;;
esac
"""
    )
    kubectl.chmod(0o755)
    done = subprocess.run(
        [*container["command"], *container["args"]],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "POLL_SECONDS": "0"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == f"diffedit-batch-x7: {states[-1]}"
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0].startswith("create -f /job/rayjob.yaml")
    assert len(asked) == len(states) + 1
    # What it may do is what it does.
    role = next(
        document for document in documents("kuberay-cronjob.yaml") if document["kind"] == "Role"
    )
    assert role["rules"] == [
        {
            "apiGroups": ["ray.io"],
            "resources": ["rayjobs"],
            "verbs": sorted({line.split()[0] for line in asked}),
        }
    ]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_what_is_applied_holds_the_job() -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(CLUSTER)], capture_output=True, text=True, check=True
    )
    applied = {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}
    assert set(applied) >= {"CronJob", "ConfigMap", "PersistentVolumeClaim", "RoleBinding"}
    held = yaml.safe_load(applied["ConfigMap"]["data"]["rayjob.yaml"])
    assert [held] == documents("kuberay-rayjob.yaml")
    pod = applied["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["configMap"]["name"] == applied["ConfigMap"]["metadata"]["name"]
    claims = {
        v["persistentVolumeClaim"]["claimName"]
        for v in pods(held["spec"]["rayClusterSpec"])[0]["volumes"]
        if "persistentVolumeClaim" in v
    }
    assert claims == {applied["PersistentVolumeClaim"]["metadata"]["name"]}
