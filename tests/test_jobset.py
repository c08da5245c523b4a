"""scripts/jobset.py: what it writes is a JobSet, and says what it should; wrong input is one line."""

import contextlib
import importlib.util
import io
import os
import runpy
import signal
import subprocess
import sys

import jsonschema
import pytest
import yaml
from running import refused

from trm.cli import ROOT

SPEC = importlib.util.spec_from_file_location("jobset", ROOT / "scripts" / "jobset.py")
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)

TRAIN = ["--", "python", "-m", "trm.train", "experiment=e1_1_baseline", "hardware=v4_64", "run_name=base"]
POD = ["base", "--image=IMAGE", "--claim=work", "--hardware=v4_64"]


def exactly(required, **others):
    """An object with these keys and no others."""
    return {"type": "object", "properties": required | others, "required": list(required), "additionalProperties": False}


def some(item):
    return {"type": "array", "items": item, "minItems": 1}


# The fields that the script uses, as the API's reference describes them (jobset.x-k8s.io/v1alpha2, batch/v1, core/v1)
TEXT, COUNT, NAME = (
    {"type": "string", "minLength": 1},
    {"type": "integer", "minimum": 0},
    {"pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
)
TPU = exactly({}, **{kind: {"type": "integer", "minimum": 1} for kind in ("google.com/tpu", "nvidia.com/gpu")})
VARIABLE = exactly({"name": TEXT}, value=TEXT, valueFrom=exactly({"fieldRef": exactly({"fieldPath": TEXT})}))
CONTAINER = exactly(
    {"name": NAME, "image": TEXT, "command": some(TEXT), "resources": exactly({"requests": TPU, "limits": TPU})},
    workingDir={"pattern": "^/"},
    env={"type": "array", "items": VARIABLE},
    envFrom=some(exactly({"secretRef": exactly({"name": NAME})})),
    ports=some(exactly({"containerPort": {"type": "integer", "minimum": 1, "maximum": 65535}})),
    volumeMounts=some(exactly({"name": NAME, "mountPath": {"pattern": "^/"}})),
)
PODS = exactly(
    {"restartPolicy": {"const": "Never"}, "containers": some(CONTAINER)},  # Never: podFailurePolicy asks for it
    terminationGracePeriodSeconds=COUNT,
    nodeSelector={"type": "object", "additionalProperties": TEXT},
    serviceAccountName=NAME,
    volumes=some(
        {
            "oneOf": [
                exactly({"name": NAME, "persistentVolumeClaim": exactly({"claimName": NAME})}),
                exactly({"name": NAME, "emptyDir": exactly({"medium": {"const": "Memory"}})}),
            ]
        }
    ),
)
EXIT_CODES = exactly({"operator": {"enum": ["In", "NotIn"]}, "values": some({"type": "integer", "minimum": 1})}, containerName=NAME)
JOB = exactly(
    {"template": exactly({"spec": PODS})},
    parallelism=COUNT,
    completions=COUNT,
    completionMode={"enum": ["Indexed", "NonIndexed"]},
    backoffLimit=COUNT,
    podFailurePolicy=exactly({"rules": some(exactly({"action": {"const": "FailJob"}}, onExitCodes=EXIT_CODES))}),
)
RULE = exactly(
    {"name": {"pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"}, "action": {"enum": ["FailJobSet", "RestartJobSet"]}},
    onJobFailureReasons=some({"enum": ["BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"]}),
)
JOBSET = exactly(
    {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": exactly({"name": NAME}, namespace=NAME, annotations={"type": "object", "additionalProperties": TEXT}),
        "spec": exactly(
            {"replicatedJobs": some(exactly({"name": NAME, "template": exactly({"spec": JOB})}, replicas=COUNT))},
            failurePolicy=exactly({}, maxRestarts=COUNT, rules=some(RULE)),
        ),
    }
)


def written(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        script.main(list(arguments))
    found = yaml.safe_load(out.getvalue())
    jsonschema.validate(found, JOBSET)
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    return found, job, job["template"]["spec"]


def test_a_run_on_all_hosts_of_a_slice():
    found, job, pod = written(*POD, "--secret=wandb", "--namespace=lab", "--service-account=trainer", *TRAIN)
    assert (found["metadata"]["name"], found["metadata"]["namespace"], pod["serviceAccountName"]) == ("base", "lab", "trainer")
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (8, 8, "Indexed")
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x4x4"
    (container,) = pod["containers"]
    assert container["command"] == TRAIN[1:]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    rank, ranks = container["env"]
    assert "job-completion-index" in rank["valueFrom"]["fieldRef"]["fieldPath"]
    assert (rank["name"], ranks) == ("TRM_RANK", {"name": "TRM_RANKS", "value": "8"})
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 20
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]


def test_a_sweep_shares_the_chips_of_one_host():
    sweep = ["--", "python", "-m", "trm.train", "+sweep=tn_sweep", "hardware=v4_8"]
    _, job, pod = written("grid", "--image=IMAGE", "--claim=work", "--hardware=v4_8", "--restarts=3", *sweep)
    assert (job["completions"], pod["containers"][0]["env"]) == (1, [])
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x2x1"


GPUS = ["base", "--image=IMAGE", "--claim=work", "--hardware=gpus", "--gpus=8"]
ON_GPUS = ["--", "python", "-m", "trm.train", "hardware=gpus", "run_name=base"]


def test_torchrun_starts_a_run_on_nodes_with_gpus():
    found, job, pod = written(*GPUS, "--nodes=2", *ON_GPUS)
    assert (job["parallelism"], job["completions"]) == (2, 2)
    assert "annotations" not in found["metadata"]
    assert "nodeSelector" not in pod
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    agents = ["--rdzv-backend=c10d", "--rdzv-id=base", "--rdzv-endpoint=base-slice-0-0.base:29500"]
    starter = ["python", "-m", "trm.ground.child", "--nnodes=2", "--nproc-per-node=8"]
    assert container["command"] == [*starter, *agents, *ON_GPUS[2:]]
    assert (container["ports"], container["env"]) == ([{"containerPort": 29500}], [])
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize("code", [2, 143])
def test_the_ranks_exit_code_reaches_kubernetes(code, tmp_path, monkeypatch):
    """podFailurePolicy ends the job where it is 2; torchrun's own command would end with 1."""
    _, _, pod = written(*GPUS, "--nodes=2", *ON_GPUS)
    starter = pod["containers"][0]["command"][:3]
    (tmp_path / "rank.py").write_text(f"import os; os._exit({code} if os.environ['RANK'] == '1' else 0)")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delitem(sys.modules, starter[2], raising=False)  # else runpy warns that it runs twice
    monkeypatch.setattr(sys, "argv", [starter[2], "--standalone", "--nproc-per-node=2", str(tmp_path / "rank.py")])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(starter[2], run_name="__main__")
    finally:
        for number, handler in handlers.items():  # torchrun leaves its own
            signal.signal(number, handler)
    assert ended.value.code == code


def test_a_sweep_shares_the_gpus_of_one_node():
    sweep = ["--", "python", "-m", "trm.train", "+sweep=tn_sweep", "hardware=gpu", "hardware.jobs=auto"]
    _, job, pod = written(*GPUS, *sweep)
    assert (job["completions"], pod["containers"][0]["command"]) == (1, sweep[1:])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*GPUS[:4], *ON_GPUS], "--gpus=…: a whole number"),
        ([*GPUS, "--nodes=0", *ON_GPUS], "--nodes=0: a whole number"),
        ([*GPUS, "--nodes=2", *ON_GPUS, "+sweep=tn_sweep"], "+sweep=tn_sweep: a sweep on every host"),
        ([*GPUS, *ON_GPUS[:-1]], "run_name=NAME is missing"),
        ([*GPUS, "--", "bash", "run.sh"], "bash: on GPUs the command is python -m trm.train"),
        ([*POD[:3], *TRAIN], "--hardware=… is missing"),
        (POD, "-- COMMAND is missing"),
        (["Base", *POD[1:], *TRAIN], "NAME is Base"),
        ([*POD, "--restarts=often", *TRAIN], "--restarts=often"),
        ([*POD, *TRAIN[:-1]], "run_name=NAME is missing"),
        ([*POD, *TRAIN, "+sweep=tn_sweep"], "+sweep=tn_sweep: a sweep on every host"),
        ([*POD[:3], "--hardware=cpu", *TRAIN], "are no TPU v4 slice"),
        ([*POD[:3], "--hardware=v9", *TRAIN], "v9"),
    ],
)
def test_wrong_input_is_one_line(arguments, words):
    refused(script.main, arguments, words)


def test_the_script_itself():
    command = [sys.executable, str(ROOT / "scripts/jobset.py"), *POD]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "-- COMMAND is missing" in done.stderr
