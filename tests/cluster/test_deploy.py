"""What lies in deploy/: keys that KubeRay knows, options that ray has, settings that we have."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import yaml
from helpers.run_job import run_job

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RAY = Path(importlib.util.find_spec("ray").origin).parent
LOCK = (ROOT / "requirements.lock").read_text().splitlines()
DOCKERFILE = (ROOT / "Dockerfile").read_text()

# KubeRay's fields (ray.io/v1) and those of a pod that a run may need; a dict: of each below it.
POD = {
    "securityContext": {"runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup"},
    "containers": [
        {
            "name": None,
            "image": None,
            "env": [{"name": None, "value": None, "valueFrom": None}],
            "envFrom": None,
            "ports": [{"containerPort", "name"}],
            "resources": {"requests": None, "limits": None},
            "volumeMounts": [{"name", "mountPath", "subPath", "readOnly"}],
        }
    ],
    "volumes": [
        {
            "name": None,
            "persistentVolumeClaim": {"claimName"},
            "emptyDir": {"medium", "sizeLimit"},
        }
    ],
    "nodeSelector": None,
    "tolerations": None,
}
GROUP = {"rayStartParams": None, "template": {"metadata": None, "spec": POD}}
RAY_JOB = {
    "apiVersion": None,
    "kind": None,
    "metadata": {"name", "namespace", "labels", "annotations"},
    "spec": {
        **dict.fromkeys(("entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished")),
        **dict.fromkeys(("activeDeadlineSeconds", "backoffLimit", "submissionMode", "suspend")),
        "rayClusterSpec": {
            "rayVersion": None,
            "authOptions": {"mode"},
            "headGroupSpec": GROUP | {"serviceType": None},
            "workerGroupSpecs": [
                GROUP | dict.fromkeys(("groupName", "replicas", "minReplicas", "maxReplicas"))
            ],
        },
    },
}


def check_keys(value, known, where=""):
    """Every key is known, at its place."""
    if isinstance(known, list):
        assert isinstance(value, list), where
        for number, item in enumerate(value):
            check_keys(item, known[0], f"{where}[{number}]")
    elif known:
        assert set(value) <= set(known), (where, set(value) - set(known))
        for key in value:
            below = known[key] if isinstance(known, dict) else None
            check_keys(value[key], below, f"{where}.{key}")


OPTIONS = """
import json
from ray.scripts import scripts
options = {
    name: [opt for option in command.params for opt in option.opts]
    for name, command in scripts.cli.commands.items()
}
print(json.dumps(options))
"""


@cache
def ray_options():
    """Every command's, asked of another process: ray's import fixes how this one authenticates."""
    command = [sys.executable, "-c", OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def check_options(command, given):
    """`ray COMMAND` has these options."""
    known = set(ray_options()[command])
    assert set(given) <= known, (command, set(given) - known)


def check_settings(line):
    """The job takes these settings; what they are is printed, and nothing run."""
    words = [word for word in shlex.split(line) if "=" in word]
    code, _, err = run_job("collect", *words, "--cfg", "job")
    assert code == 0, (words, err)


@pytest.fixture(scope="module")
def rayjob():
    return yaml.safe_load((DEPLOY / "k8s" / "rayjob.yaml").read_text())


def groups(rayjob):
    cluster = rayjob["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_every_file_of_deploy_is_looked_at():
    found = {path.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("*") if path.is_file()}
    assert found == {"k8s/rayjob.yaml", "cloud/aws.yaml", "slurm/collect.sbatch"}


def test_rayjob_has_known_keys(rayjob):
    check_keys(rayjob, RAY_JOB)
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    with pytest.raises(AssertionError, match="workerGroupSpec"):
        check_keys({"spec": {"rayClusterSpec": {"workerGroupSpec": []}}}, RAY_JOB)


def test_rayjob_fits_image_and_job(rayjob):
    spec = rayjob["spec"]
    assert f"ray=={spec['rayClusterSpec']['rayVersion']}" in LOCK
    assert "/app/jobs/collect.py" in spec["entrypoint"]
    assert "WORKDIR /app" in DOCKERFILE
    check_settings(shlex.split(spec["entrypoint"])[2])
    for group in groups(rayjob):
        check_options("start", [f"--{name}" for name in group["rayStartParams"]])
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert f"USER {pod['securityContext']['runAsUser']}" in DOCKERFILE
        volumes = {volume["name"] for volume in pod["volumes"]}
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert all(isinstance(pair["value"], str) for pair in container["env"])
        if "groupName" in group:
            assert 0 < group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_cloud_by_rays_own_schema():
    text = (DEPLOY / "cloud" / "aws.yaml").read_text()
    config = yaml.safe_load(text)
    schema = json.loads((RAY / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError, match="head_node"):
        jsonschema.validate(config | {"head_node": {}}, schema)
    assert config["head_node_type"] in config["available_node_types"]
    for kind in ("head", "worker"):
        for line in config[f"{kind}_start_ray_commands"]:
            _, _, rest = line.partition("ray start ")
            check_options("start", [word.split("=")[0] for word in rest.split()])
    check_settings(re.search(r"'(python .*collect.py .*)'", text)[1])


def test_the_image_calls_its_own_python():
    """A link to it elsewhere is the system's: the image could not import the package."""
    spec = importlib.util.spec_from_file_location("image", ROOT / "tools" / "image.py")
    image = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(image)
    found = image.steps(DOCKERFILE)
    given = dict(found)
    assert set(given) <= {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}
    (python,) = json.loads(given["ENTRYPOINT"])
    environment = str(Path(python).parents[1])
    runs = [rest for name, rest in found if name == "RUN"]
    assert any(f"-m venv {environment} " in line for line in runs)
    assert any(f"PATH={environment}/bin:$PATH' > /etc/profile.d/" in line for line in runs)
    assert not any("ln -s" in line for line in runs)
    assert json.loads(given["CMD"])[0] == "/app/jobs/collect.py"


def test_sbatch():
    path = DEPLOY / "slurm" / "collect.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text()
    known = {"job-name", "nodes", "ntasks-per-node", "exclusive", "gpus-per-node", "time"}
    known |= {"signal", "requeue"}
    assert set(re.findall(r"^#SBATCH --([\w-]+)", text, re.MULTILINE)) <= known
    command = text.replace("\\\n", " ")
    _, _, rest = command.partition("ray symmetric-run ")
    rest, _, _ = rest.partition(" -- ")
    options = [word for word in shlex.split(rest) if word.startswith("--")]
    own = {"--address", "--min-nodes"}
    assert own <= set(options)
    check_options("start", set(options) - own)
    check_settings("ray=slurm model=opt-66b data=paper run=/shared/runs/opt-66b")


@pytest.mark.parametrize(
    ("ray", "code"), [("exit 0", 1), ('while [ $1 != -- ]; do shift; done; "${@:2}"', 0)]
)
def test_sbatch_where_ray_does_not_start(ray, code, tmp_path):
    """Ray's symmetric-run then ends with 0 and has not run the job."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    stand_ins = {
        "ray": ray,
        "python": f"echo $@ >> {tmp_path}/ran",
        "scontrol": "echo here",
        "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    }
    for name, text in stand_ins.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "1", "TMPDIR": str(tmp_path)}
    job |= {"SLURM_JOB_NODELIST": "here", "SLURM_JOB_NUM_NODES": "1"}
    job["PATH"] = f"{folder}:{os.environ['PATH']}"
    command = ["bash", DEPLOY / "slurm" / "collect.sbatch", "model=opt-mini", "run=a b"]
    done = subprocess.run(command, env=job, capture_output=True, text=True, check=False)
    assert done.returncode == code, done
    assert ("Ray did not start" in done.stderr) == bool(code)
    ran = tmp_path / "ran"
    assert (ran.read_text() if ran.exists() else "") == (
        "" if code else "jobs/collect.py ray=slurm model=opt-mini run=a b\n"
    )
    assert not list(tmp_path.glob("neuronstats-begun.*"))
