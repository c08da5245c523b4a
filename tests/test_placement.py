"""Where jobs run, as tables: TPU v4-8 and v4-64 under each placement, CPU slots, Slurm's words; and the pod script."""

import dataclasses
import math
import os
import subprocess

import pytest
from composing import composed

from trm.cli import ROOT, compose, starts_ranks
from trm.config import HardwareConfig, validate
from trm.errors import ConfigError
from trm.ground.cores import visible_gpus
from trm.study.placement import (
    batch_per_device,
    cores_of_slot,
    environment,
    expand_indices,
    gpu_environment,
    lock_names,
    place,
    ray_cores,
    ray_resources,
    ray_slice,
    slots_of_host,
    slurm_resources,
)


def hardware(name, placement=None):
    return dataclasses.replace(composed(f"hardware={name}").hardware, placement=placement)


CPU = HardwareConfig(name="cpu")


# processes of a job, devices of each, jobs on a host, jobs at once, batch per chip at a global batch of 256
TABLE = [
    ("v4_8", "chip", 1, 1, 4, 4, 256),
    ("v4_8", "host", 1, 4, 1, 1, 64),
    ("v4_8", "pod", 1, 4, 1, 1, 64),
    ("v4_8", None, 1, 4, 1, 1, 64),
    ("v4_64", "chip", 1, 1, 4, 32, 256),
    ("v4_64", "host", 1, 4, 1, 8, 64),
    ("v4_64", "pod", 8, 4, 1, 1, 8),
    ("v4_64", None, 8, 4, 1, 1, 8),
]


@pytest.mark.parametrize(("name", "placement", "processes", "devices", "per_host", "at_once", "batch"), TABLE)
def test_processes_jobs_and_batch(name, placement, processes, devices, per_host, at_once, batch):
    machine = hardware(name, placement)
    placed = place(machine)
    assert (placed.processes, placed.devices_per_process) == (processes, devices)
    assert (placed.jobs_per_host, placed.jobs_at_once) == (per_host, at_once)
    assert placed.devices == machine.devices == processes * devices
    assert placed.jobs_at_once * placed.devices == machine.num_hosts * machine.devices_per_host  # no chip idle, none shared
    assert batch_per_device(256, machine) == batch


@pytest.mark.parametrize(
    ("name", "placement", "chips", "of_process", "processes"),
    [
        ("v4_8", "chip", "2", "1,1,1", "1,1,1"),
        ("v4_64", "chip", "0", "1,1,1", "1,1,1"),
        ("v4_8", "host", "0,1,2,3", "2,2,1", "1,1,1"),
        ("v4_64", "host", "0,1,2,3", "2,2,1", "1,1,1"),
        ("v4_8", "pod", "0,1,2,3", "2,2,1", "1,1,1"),
        ("v4_64", "pod", "0,1,2,3", "2,2,1", "1,2,4"),
    ],
)
def test_what_libtpu_finds_in_the_environment(name, placement, chips, of_process, processes):
    found = environment(hardware(name, placement), tuple(map(int, chips.split(","))))
    expected = {"TPU_VISIBLE_CHIPS": chips, "TPU_CHIPS_PER_PROCESS_BOUNDS": of_process, "TPU_PROCESS_BOUNDS": processes}
    expected |= {"CLOUD_TPU_TASK_ID": "0"} if processes == "1,1,1" else {}
    assert {key: value for key, value in found.items() if key not in ("TPU_PROCESS_PORT", "TPU_PROCESS_ADDRESSES")} == expected
    assert math.prod(map(int, f"{of_process},{processes}".split(","))) == hardware(name, placement).devices


def test_jobs_on_one_host_have_ports_of_their_own():
    found = [environment(hardware("v4_8", "chip"), slot) for slot in slots_of_host(hardware("v4_8", "chip"))]
    assert len({env["TPU_PROCESS_PORT"] for env in found}) == 4
    assert [env["TPU_PROCESS_ADDRESSES"] for env in found] == [f"localhost:{env['TPU_PROCESS_PORT']}" for env in found]


@pytest.mark.parametrize(
    ("placement", "chips"), [("chip", (0, 1)), ("chip", ()), ("chip", (4,)), ("host", (0,)), ("pod", (0, 0, 1, 2))]
)
def test_chips_that_do_not_fit_the_placement_are_refused(placement, chips):
    with pytest.raises(ConfigError, match=r"hardware\.placement"):
        environment(hardware("v4_64", placement), chips)


def test_a_slice_that_does_not_exist_is_refused():
    odd = dataclasses.replace(hardware("v4_64"), num_hosts=3)
    for ask in (lambda: environment(odd, (0, 1, 2, 3)), lambda: ray_slice(odd, cpus=1)):
        with pytest.raises(ConfigError, match=r"3 host\(s\) with 4 tpu device\(s\) each are no TPU v4 slice"):
            ask()
    assert environment(CPU, (0,)) == {}  # which is none, and needs none


@pytest.mark.parametrize(
    ("name", "placement", "batch", "nearest"),
    [("v4_64", "pod", 100, "96 or 128"), ("v4_64", "host", 255, "252 or 256"), ("v4_8", None, 3, "4"), ("v4_64", None, 31, "32")],
)
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(name, placement, batch, nearest):
    with pytest.raises(ConfigError, match=f"train.global_batch_size={batch} does not divide .*: use {nearest}$"):
        batch_per_device(batch, hardware(name, placement))
    cfg = compose([f"hardware={name}", "run_name=r", f"hardware.placement={placement or 'null'}"])
    cfg.train.global_batch_size = batch
    with pytest.raises(ConfigError, match=f"use {nearest}$"):
        validate(cfg)


def test_any_batch_fits_one_chip():
    assert compose(["hardware=v4_64", "hardware.placement=chip", "train.global_batch_size=101", "run_name=r"]).hardware.devices == 1


def test_slots_of_a_host():
    assert slots_of_host(hardware("v4_64", "chip")) == [(0,), (1,), (2,), (3,)]
    assert slots_of_host(hardware("v4_64", "host")) == [(0, 1, 2, 3)]
    assert slots_of_host(dataclasses.replace(CPU, jobs=3)) == [(0,), (1,), (2,)]
    assert slots_of_host(HardwareConfig(name="cpu_mesh", devices_per_host=8)) == [(0,)]


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_slots_share_the_cores(cores, slots):
    shares = [cores_of_slot(list(range(cores)), slot, slots) for slot in range(slots)]
    assert all(shares)
    assert {core for share in shares for core in share} == set(range(cores))
    if cores >= slots:
        assert sum(map(len, shares)) == cores


@pytest.mark.parametrize(
    ("name", "placement", "nodes", "chips", "at_once"),
    [("v4_64", "chip", 1, 1, 32), ("v4_64", "host", 1, 4, 8), ("v4_64", "pod", 8, 4, 1), ("v4_8", "chip", 1, 1, 4)],
)
def test_what_a_job_asks_of_slurm_and_ray(name, placement, nodes, chips, at_once):
    asked = {"nodes": nodes, "tasks_per_node": 1, "gres": f"tpu:{chips}", "array_parallelism": at_once}
    assert slurm_resources(hardware(name, placement)) == asked
    if placement != "pod":
        assert ray_resources(hardware(name, placement)) == {"TPU": chips}
    assert "gres" not in slurm_resources(CPU)
    assert ray_resources(CPU) == {}


@pytest.mark.parametrize(("text", "indices"), [("0", (0,)), ("0-3", (0, 1, 2, 3)), ("0-1,3", (0, 1, 3)), ("2,0", (2, 0))])
def test_slurms_lists_of_indices(text, indices):
    assert expand_indices(text) == indices


@pytest.mark.parametrize(
    ("num_hosts", "topology"), [(1, "2x2x1"), (2, "2x2x2"), (4, "2x2x4"), (8, "2x4x4"), (16, "4x4x4")], ids=str
)
def test_the_slice_that_a_job_on_all_hosts_asks_of_ray(num_hosts, topology):
    asked = ray_slice(dataclasses.replace(hardware("v4_64", "pod"), num_hosts=num_hosts), cpus=60)
    bundle = {"TPU": 4.0, "CPU": 60.0}
    assert asked == {"topology": topology, "accelerator_version": "v4", "resources_per_bundle": bundle}


def launch_pod(*arguments, **env):
    script = ROOT / "scripts" / "launch_pod.sh"
    return subprocess.run([script, *arguments], capture_output=True, text=True, env=os.environ | env, check=False)


POD = ("my-pod", "--zone=z", "--dir=a dir", "--", "python", "-m", "trm.train", "recursion=glob(*)", "run_name=it's")


def test_the_pod_script_says_what_it_will_do_and_does_not_with_dry_run():
    done = launch_pod("--dry-run", *POD)
    assert (done.returncode, done.stderr) == (0, "")
    assert "on every host of my-pod (z):" in done.stdout
    assert "cd a\\ dir && TRM_RANK=" in done.stdout
    assert "exec python -m trm.train" in done.stdout
    assert "--worker=all" in done.stdout


def test_the_pod_script_gives_every_host_the_command_as_it_was(tmp_path):
    """A stand-in for gcloud runs the remote command in a shell, as ssh does; one for curl is the TPU's metadata server."""
    (tmp_path / "a dir").mkdir()
    gcloud, python, curl = tmp_path / "gcloud", tmp_path / "python", tmp_path / "curl"
    curl.write_text("#!/bin/bash\ncase $4 in */agent-worker-number) echo 5 ;; *-endpoints) echo a:1,b:2,c:3 ;; esac\n")
    gcloud.write_text('#!/bin/bash\nprintf "%s\\n" "${@:1:$#-1}" > gcloud.txt\nexec bash -c "${!##--command=}"\n')
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$PWD" "$TRM_RANK of $TRM_RANKS" "$@" > ../command.txt\nexit 7\n')
    for program in (gcloud, python, curl):
        program.chmod(0o755)
    script = ROOT / "scripts" / "launch_pod.sh"
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([script, *POD], capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert done.returncode == 7  # the command's own
    assert "on every host" in done.stdout
    said = (tmp_path / "gcloud.txt").read_text().split()
    assert said == ["compute", "tpus", "tpu-vm", "ssh", "my-pod", "--zone=z", "--worker=all"]
    ran = (tmp_path / "command.txt").read_text().splitlines()
    assert ran == [str(tmp_path / "a dir"), "5 of 3", "-m", "trm.train", "recursion=glob(*)", "run_name=it's"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--zone=z", "--", "true"), "TPU_NAME is missing"),
        (("pod", "--", "true"), "--zone=ZONE is missing"),
        (("pod", "--zone=z"), "-- COMMAND is missing"),
        (("pod", "--zone=z", "true"), "the command comes after --"),
        (("pod", "--worker=3"), "no such option"),
        (("p", "--zone=z", "--", "python", "-m", "trm.train", "-m", "run_name=a"), "-m: a sweep on every host"),
        (("p", "--zone=z", "--", "trm-train", "+sweep=tn_sweep", "run_name=a"), "+sweep=tn_sweep: a sweep on every host"),
        (("p", "--zone=z", "--", "python3", "-m", "trm.train", "seed=1"), "run_name=NAME is missing"),
    ],
)
def test_the_pod_script_refuses_half_a_command(arguments, message):
    done = launch_pod(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.fixture
def gpus(monkeypatch):
    """A machine with so many GPUs."""

    def there_are(count):
        monkeypatch.setattr("trm.study.placement.visible_gpus", lambda: [str(number) for number in range(count)])

    return there_are


def gpu(**keys):
    return HardwareConfig(name="gpu", platform="cuda", backend="inductor", **keys)


# GPUs of the machine, settings, devices of a job, jobs at once, what the first jobs see
GPUS = [
    (8, {}, 1, 1, ["0", "1"]),
    (8, {"jobs": 8}, 1, 8, ["0", "1", "2", "3", "4", "5", "6", "7"]),
    (8, {"jobs": 0}, 1, 8, ["0", "1", "2", "3", "4", "5", "6", "7"]),
    (2, {"jobs": 0, "jobs_per_device": 2}, 1, 4, ["0", "1", "0", "1"]),
    (1, {"jobs_per_device": 3}, 1, 3, ["0", "0", "0"]),
    (4, {"jobs": 3, "jobs_per_device": 2}, 1, 3, ["0", "1", "2"]),
    (8, {"num_devices": None, "placement": "chip", "jobs": 0}, 1, 8, ["0", "1"]),
    (8, {"num_devices": None, "placement": "host", "jobs": 0}, 8, 1, ["0,1,2,3,4,5,6,7"]),
    (8, {"num_devices": 4, "jobs": 0}, 4, 2, ["0,1,2,3", "4,5,6,7"]),
    (0, {"jobs": 4}, 1, 4, []),  # a host without GPUs, which tells a queue what to run
]


@pytest.mark.parametrize(("count", "keys", "devices", "at_once", "seen"), GPUS)
def test_each_job_of_a_sweep_has_gpus_of_its_own(gpus, count, keys, devices, at_once, seen):
    gpus(count)
    machine = gpu(**keys)
    placed = place(machine)
    assert (placed.devices, placed.jobs_at_once) == (devices, at_once)
    slots = slots_of_host(machine)
    assert len({place for slot in slots for place in slot}) == sum(map(len, slots))  # none is in two slots
    assert [gpu_environment(machine, slot).get("CUDA_VISIBLE_DEVICES") for slot in slots][: len(seen)] == seen


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"jobs": 3}, r"hardware.jobs=3: 2 GPU\(s\) have room for 2 job\(s\) of 1"),
        ({"num_devices": None, "jobs_per_device": 2}, "hardware.jobs_per_device=2: a job on 2 GPUs shares none"),
    ],
)
def test_more_jobs_than_the_gpus_have_room_for_are_refused(gpus, keys, words):
    gpus(2)
    with pytest.raises(ConfigError, match=words):
        place(gpu(**keys))


def test_what_a_job_on_gpus_asks_of_slurm_and_ray(gpus):
    gpus(0)
    one = slurm_resources(gpu(jobs=16))
    assert one == {"nodes": 1, "tasks_per_node": 1, "gres": "gpu:1", "array_parallelism": 16}
    several = slurm_resources(gpu(num_devices=8))
    assert several == {"nodes": 1, "tasks_per_node": 8, "gres": "gpu:8", "array_parallelism": 1}
    with pytest.raises(ConfigError, match="num_devices=null: a job of this sweep gets all GPUs of this machine"):
        slurm_resources(gpu(num_devices=None))
    assert ray_resources(gpu()) == {"GPU": 1.0}
    assert ray_resources(gpu(num_devices=8)) == {"GPU": 8.0}
    assert ray_resources(gpu(jobs_per_device=4)) == {"GPU": 0.25}
    for jobs in range(2, 65):  # so many fit on one GPU, and no more
        share = ray_resources(gpu(jobs_per_device=jobs))["GPU"]
        assert (round(share * 10_000, 6) % 1, int(1 / share)) == (0, jobs)
    gpus(2)
    assert ray_resources(gpu(num_devices=None)) == {"GPU": 2.0}
    assert ray_resources(gpu(jobs=16)) == {"GPU": 1.0}  # on other hosts there may be room for so many


@pytest.mark.parametrize(
    ("machine", "cores"),
    [
        (gpu(), 8),
        (gpu(num_devices=8), 64),
        (gpu(jobs_per_device=3), 2),
        (HardwareConfig(name="cpu", jobs=2), 1),  # of the node with the fewest
        (hardware("v4_8", "chip"), 2),  # where no node has the device: of the node with the fewest
    ],
)
def test_a_job_on_ray_has_its_share_of_the_cores_of_a_node_with_its_devices(machine, cores):
    assert ray_cores(machine, [{"CPU": 2.0}, {"CPU": 64.0, "GPU": 8.0}]) == cores


def test_visible_gpus_are_those_that_cuda_would_see(monkeypatch, tmp_path):
    monkeypatch.setattr("trm.ground.cores.DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == []
    for name in ("nvidia4", "nvidia10", "nvidia5", "nvidiactl", "nvidia-uvm"):  # of a container with three of the host's
        (tmp_path / name).touch()
    assert visible_gpus() == ["0", "1", "2"]
    for told, seen in (("", []), ("3", ["3"]), ("1, GPU-abc", ["1", "GPU-abc"]), ("2,-1,0", ["2"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
        assert visible_gpus() == seen


def test_sweeps_that_see_other_gpus_of_a_host_do_not_wait_for_one_another(monkeypatch):
    def names(visible, **keys):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return {name for slot in slots_of_host(gpu(**keys)) for name in lock_names(gpu(**keys), slot)}

    assert names("0,1", jobs=0).isdisjoint(names("2,3", jobs=0))
    assert names("2,1", jobs=0) & names("0,1", num_devices=2) == {"1_0of1"}
    assert len(names("0,1", jobs=0, jobs_per_device=3)) == 6


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert starts_ranks(compose(["hardware=gpus", "run_name=r"]))
    with pytest.raises(ConfigError, match="num_devices=4: a process needs a GPU of its own, and here are 2"):
        starts_ranks(compose(["hardware=gpus", "hardware.num_devices=4", "run_name=r"]))


def test_jobs_auto_is_as_many_as_the_gpus_have_room_for():
    assert compose(["hardware=gpu", "hardware.jobs=auto", "run_name=r"]).hardware.jobs == 0
