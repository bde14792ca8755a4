"""The files in cluster/ without a cluster: shellcheck, and the schemas of what reads them.

JobSet's schema is in no package: what is written down here are the fields that its definition requires
(https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/), and those of Kubernetes inside of them.
"""

import importlib.util
import json
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import ROOT

CLUSTER = ROOT / "cluster"
TEXT = {"type": "string", "minLength": 1}
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
COUNT = {"type": "integer", "minimum": 1}


def fields(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """An object with these fields and no others, so that a misspelled one is an error."""
    return {
        "type": "object",
        "required": [*required],
        "properties": required | optional,
        "additionalProperties": False,
    }


def some(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": item}


VARIABLE = {
    "oneOf": [
        fields({"name": TEXT, "value": TEXT}),
        fields({"name": TEXT, "valueFrom": fields({"fieldRef": fields({"fieldPath": TEXT})})}),
    ]
}
VOLUME = {
    "oneOf": [
        fields({"name": NAME, "persistentVolumeClaim": fields({"claimName": NAME})}),
        fields({"name": NAME, "emptyDir": fields({}, medium={"const": "Memory"}, sizeLimit=TEXT)}),
    ]
}
CONTAINER = fields(
    {"name": NAME, "image": TEXT},
    args=some(TEXT),
    env=some(VARIABLE),
    ports=some(fields({"containerPort": COUNT})),
    resources=fields({}, limits={"type": "object"}),
    volumeMounts=some(fields({"name": NAME, "mountPath": TEXT})),
)
POD = fields(
    {"containers": some(CONTAINER), "restartPolicy": {"enum": ["Never", "OnFailure"]}},
    terminationGracePeriodSeconds=COUNT,
    volumes=some(VOLUME),
)
JOB = fields(
    {"template": fields({"spec": POD})},
    completionMode={"enum": ["Indexed", "NonIndexed"]},
    parallelism=COUNT,
    completions=COUNT,
    backoffLimit={"type": "integer", "minimum": 0},
)
JOBSET = fields(
    {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": fields({"name": NAME}),
        "spec": fields(
            {
                "replicatedJobs": some(
                    fields({"name": NAME, "template": fields({"spec": JOB})}, replicas=COUNT)
                )
            },
            failurePolicy=fields({}, maxRestarts={"type": "integer", "minimum": 0}),
        ),
    }
)


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


@pytest.mark.parametrize("name", ["train.sbatch", "pieces.sbatch"])
def test_scripts_pass_shellcheck(name):
    found = subprocess.run(["shellcheck", str(CLUSTER / name)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("name", ["train.sbatch", "pieces.sbatch"])
def test_slurm_reads_all_options(name):
    lines = (CLUSTER / name).read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    # Options after the first command are taken for comments.
    assert max(options) < first_command
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", lines[i]) for i in options)


@pytest.mark.parametrize(
    ("name", "commands"), [("train", ["train"]), ("pieces", ["data", "inpaint"])]
)
def test_scripts_set_fields_that_their_commands_have(name, commands):
    text = (CLUSTER / f"{name}.sbatch").read_text()
    _, *examples = re.split(r"--config=configs/(\w+)\.py", text)
    assert examples[::2] == commands
    (by_itself,) = re.findall(r"python run\.py .*", text)
    for command, example in zip(commands, examples[1::2], strict=True):
        config = runpy.run_path(str(ROOT / "configs" / f"{command}.py"))["get_config"]()
        fields_set = re.findall(r"--config\.([a-z_.]+)=", example + by_itself)
        assert fields_set
        for field in fields_set:
            part = config
            for key in field.split("."):
                assert key in part
                part = part[key]


def test_the_jobset_is_one_that_the_schema_allows():
    jsonschema.validate(read("train.jobset.yaml"), JOBSET)


def test_the_jobset_says_the_same_number_of_hosts_everywhere():
    manifest = read("train.jobset.yaml")
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    variables = {each["name"]: each for each in container["env"]}
    hosts = job["parallelism"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == hosts == int(variables["JAX_NUM_PROCESSES"]["value"])
    # <jobset>-<job>-<number of the job>-<number of the pod>.<jobset>, as JobSet names its pods.
    name, (port,) = manifest["metadata"]["name"], container["ports"]
    address = f"{name}-{replicated['name']}-0-0.{name}:{port['containerPort']}"
    assert variables["JAX_COORDINATOR_ADDRESS"]["value"] == address
    index = variables["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}


def test_a_misspelled_field_of_the_jobset_is_found():
    manifest = read("train.jobset.yaml")
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["paralelism"] = job.pop("parallelism")
    with pytest.raises(jsonschema.ValidationError, match="paralelism"):
        jsonschema.validate(manifest, JOBSET)


def test_the_ray_cluster_is_one_that_ray_allows():
    # Without running Ray.
    ray = importlib.util.find_spec("ray")
    if ray is None or ray.origin is None:
        pytest.skip("Ray is not installed")
    schema = Path(ray.origin).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(read("ray.yaml"), json.loads(schema.read_text()))
