"""A Kubernetes JobSet for one command on a GKE TPU v4 slice or on nodes with GPUs, a pod for each host, as YAML on stdout.

  python scripts/jobset.py NAME --image=IMAGE --claim=PVC --hardware=v4_64 [options] -- COMMAND ... | kubectl apply -f -
  python scripts/jobset.py baseline --image=IMAGE --claim=work --hardware=v4_64 -- \\
    python -m trm.train experiment=e1_1_baseline hardware=v4_64 run_name=baseline
  python scripts/jobset.py grid --image=IMAGE --claim=work --hardware=v4_8 -- python -m trm.train +sweep=tn_sweep hardware=v4_8
  python scripts/jobset.py base --image=IMAGE --claim=work --hardware=gpus --gpus=8 --nodes=2 -- \\
    python -m trm.train experiment=e1_1_baseline hardware=gpus run_name=base

PVC is a volume that all hosts may write (ReadWriteMany), mounted at /work. The command runs in --dir (default
/work/trm-scaling-study), so that outputs/ and multirun/ outlive the pods. A run on several hosts needs run_name=NAME; a sweep takes
a slice of one host, whose chips its jobs share. Where a host is lost, or a run fails or is preempted (exit code 143), all pods
start again, at most --restarts times (default 20), and go on from the last checkpoint. Wrong settings (exit code 2) end the JobSet.
On GPUs torchrun starts a run on --nodes (default 1) with --gpus each, inside trm/ground/child.py, which passes the exit codes 2 and
143 on (torchrun's own command ends with 1 after every failure). A sweep takes one node, whose GPUs its jobs share.
Other options: --namespace=NAME, --service-account=NAME, --secret=NAME (its keys become variables, such as WANDB_API_KEY).
"""

import re
import sys
from typing import Any

import yaml

from trm.cli import compose, fail, options
from trm.config import HardwareConfig
from trm.errors import EXIT_USER_ERROR, UserError
from trm.ground.rank import RANK, RANKS
from trm.study.placement import place, slice_topology

SAVING_S = 120  # between SIGTERM and the end
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"  # GKE gives TPU workers the same numbers
OPTIONS = ("image", "claim", "hardware", "gpus", "nodes", "dir", "restarts", "namespace", "service_account", "secret")
OWN_POOL = {"annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}}
# For NCCL between the GPUs of a node: the 64 MB that a container has by default may be too few
SHM: dict[str, tuple[str, dict[str, Any]]] = {"shm": ("/dev/shm", {"emptyDir": {"medium": "Memory"}})}
TORCHRUN = ("python", "-m", "trm.ground.child")  # with the exit codes of the ranks
GROUP, PORT = "slice", 29500  # the pods' part of their host names, and the port at which torchrun's agents meet


def manifest(name: str, command: list[str], hardware: HardwareConfig, given: dict[str, str]) -> dict[str, Any]:
    """The JobSet as plain data."""
    on_gpus = hardware.platform == "cuda"
    hosts = int(given["nodes"]) if on_gpus else place(hardware).processes
    env: list[dict[str, Any]] = []
    if on_gpus:
        command = command if _sweeps(command) else _by_torchrun(name, command, given)
        ports, device, selector = [PORT], {"nvidia.com/gpu": int(given["gpus"])}, {}
    else:
        ports, device = [8471, 8476], {"google.com/tpu": place(hardware).devices_per_process}  # of libtpu and of its slice builder
        topology = {"cloud.google.com/gke-tpu-topology": slice_topology(hardware)}
        selector = {"nodeSelector": {"cloud.google.com/gke-tpu-accelerator": "tpu-v4-podslice", **topology}}
    if hosts > 1 and not on_gpus:
        env = [{"name": RANK, "valueFrom": {"fieldRef": {"fieldPath": INDEX}}}, {"name": RANKS, "value": str(hosts)}]
    volumes = {"work": ("/work", {"persistentVolumeClaim": {"claimName": given["claim"]}}), **(SHM if on_gpus else {})}
    container = {
        "name": "trm",
        "image": given["image"],
        "workingDir": given["dir"],
        "command": command,
        "env": env,
        "ports": [{"containerPort": port} for port in ports],
        "resources": {kind: dict(device) for kind in ("requests", "limits")},
        "volumeMounts": [{"name": volume, "mountPath": path} for volume, (path, _) in volumes.items()],
    }
    if "secret" in given:
        container["envFrom"] = [{"secretRef": {"name": given["secret"]}}]
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SAVING_S,
        **selector,
        "containers": [container],
        "volumes": [{"name": volume, **source} for volume, (_, source) in volumes.items()],
    }
    if "service_account" in given:
        pod["serviceAccountName"] = given["service_account"]
    wrong_input = {"action": "FailJob", "onExitCodes": {"containerName": "trm", "operator": "In", "values": [EXIT_USER_ERROR]}}
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # where one host is lost, the JobSet starts all of them again
        "podFailurePolicy": {"rules": [wrong_input]},
        "template": {"spec": pod},
    }
    fail_at_once = {"name": "wrongInput", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            **({"namespace": given["namespace"]} if "namespace" in given else {}),
            **({} if on_gpus else OWN_POOL),
        },
        "spec": {
            "failurePolicy": {"maxRestarts": int(given["restarts"]), "rules": [fail_at_once]},
            "replicatedJobs": [{"name": GROUP, "replicas": 1, "template": {"spec": job}}],
        },
    }


def _by_torchrun(name: str, command: list[str], given: dict[str, str]) -> list[str]:
    """`python -m MODULE ...` as torchrun starts it on each node; the agents meet at the first pod, under its name in the JobSet."""
    if command[:2] != ["python", "-m"]:
        raise UserError(f"{command[0]}: on GPUs the command is python -m trm.train ..., which torchrun starts")
    endpoint = f"--rdzv-endpoint={name}-{GROUP}-0-0.{name}:{PORT}"
    sizes = [f"--nnodes={given['nodes']}", f"--nproc-per-node={given['gpus']}"]
    return [*TORCHRUN, *sizes, "--rdzv-backend=c10d", f"--rdzv-id={name}", endpoint, *command[1:]]


def _sweeps(command: list[str]) -> list[str]:
    """The words that make a command a sweep; none where it is a run."""
    return [word for word in command[3:] if word in ("-m", "--multirun") or re.match(r"\+?sweep=", word)]


def main(arguments: list[str]) -> None:
    """The command; see the module's docstring."""
    end = [*arguments, "--"].index("--")
    words, command = arguments[:end], arguments[end + 1 :]
    read = vars(options("scripts/jobset.py", words, words=True, **{name: {} for name in OPTIONS}))
    given = {"dir": "/work/trm-scaling-study", "restarts": "20", "nodes": "1"} | {
        key: read[key] for key in OPTIONS if read[key] is not None
    }
    names = read["rest"]
    if len(names) != 1 or not re.fullmatch("[a-z]([a-z0-9-]{0,38}[a-z0-9])?", names[0]):
        raise UserError(f"NAME is {' '.join(names) or 'missing'}: give one of small letters, digits and -, at most 40 characters")
    for key in ("image", "claim", "hardware"):
        if key not in given:
            raise UserError(f"--{key}=… is missing")
    if not given["restarts"].isdecimal():
        raise UserError(f"--restarts={given['restarts']}: a whole number, 0 or more")
    if not command:
        raise UserError("-- COMMAND is missing")
    hardware = compose([f"hardware={given['hardware']}"]).hardware
    on_gpus = hardware.platform == "cuda"
    for key in ("gpus", "nodes") if on_gpus else ():
        if not given.get(key, "").isdecimal() or given[key] == "0":
            raise UserError(
                f"--{key}={given.get(key, '…')}: a whole number, 1 or more, of a node's GPUs (--gpus) or of nodes (--nodes)"
            )
    swept = _sweeps(command)
    if hardware.num_hosts > 1 or (on_gpus and (given["nodes"] != "1" or not swept)):
        if swept:
            raise UserError(
                f"{swept[0]}: a sweep on every host would train the same jobs in the same folders: give it --hardware=v4_8 or "
                "--nodes=1, or one run at a time"
            )
        if "trm.train" in command and not any(re.match("run_name=.", word) for word in command):
            raise UserError("run_name=NAME is missing: without it every host would name the run by its own clock")
    yaml.safe_dump(manifest(names[0], command, hardware, given), sys.stdout, sort_keys=False)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        fail(error)
