"""The files of ``cluster/``: Ray accepts them, nothing in them is open to strangers, and Slurm's script runs."""

import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "cluster"
LAUNCHER = ["aws", "gcp", "onprem"]
CLOUDS = ["aws", "gcp"]
SHIPPED = ["aws.yaml", "gcp.yaml", "kuberay.yaml", "onprem.yaml", "slurm.sh"]


def read(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def prepared(name):
    """What `ray up` makes of a file before it asks the provider: merged with Ray's defaults, and valid."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    config = util.prepare_config(read(name))
    util.validate_config(config)
    return config


def start_commands(config):
    """``ray start`` on the head, ``ray start`` on a worker."""
    found = [[c for c in config[f"{kind}_start_ray_commands"] if "ray start" in c] for kind in ("head", "worker")]
    assert [len(commands) for commands in found] == [1, 1]
    return found[0][0], found[1][0]


def test_every_file_is_looked_at():
    assert sorted(p.name for p in FOLDER.iterdir() if p.suffix in (".yaml", ".sh")) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_no_secret_stands_in_a_file(name):
    text = (FOLDER / name).read_text()
    assert not re.search(r"\b[0-9a-f]{32,}\b|BEGIN [A-Z ]*PRIVATE KEY|\bAKIA[0-9A-Z]{16}\b", text)
    assert "token" in text
    assert "0.0.0.0" not in text
    assert max(len(line) for line in text.splitlines()) <= 120


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_accepts_the_launcher_files(name):
    config = prepared(name)
    assert config["provider"]["type"] == {"onprem": "local"}.get(name, name)
    assert not [key for key in read(name) if key not in config]


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_cluster_asks_everybody_for_the_secret(name):
    config = prepared(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for kind in ("head", "worker"):
        assert "chmod 600 ~/.ray/auth_token" in config[f"{kind}_setup_commands"]
    for command in start_commands(config):
        before, _, _ = command.partition("ray start")
        assert before.startswith("unset OMP_NUM_THREADS; ")
        assert {"RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0"} <= set(before.split())


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_dashboard_listens_on_loopback_only(name):
    config = prepared(name)
    assert "--dashboard-host=127.0.0.1" in start_commands(config)[0].split()
    assert "0.0.0.0" not in json.dumps(config)  # which Ray's own defaults, merged in, would bring


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_launcher_installs_the_checkout(name):
    config = prepared(name)
    sources = [remote for remote, local in config["file_mounts"].items() if local == "."]
    assert sources == ["~/gcsr-src"]  # a folder ~/gcsr would shadow the package for what runs in the home folder
    assert config["rsync_exclude"] == [".git"]
    assert config["rsync_filter"] == [".gitignore"]
    kinds = ["head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"]
    for command in [command for kind in kinds for command in config[kind]]:
        subprocess.run(["bash", "-n", "-c", command], check=True)


@pytest.mark.parametrize("name", LAUNCHER)
def test_a_second_ray_up_adds_nothing_to_bashrc(name, tmp_path):
    (line,) = [command for command in prepared(name)["worker_setup_commands"] if ".bashrc" in command]
    (tmp_path / ".bashrc").touch()
    for _ in range(2):
        subprocess.run(["bash", "-c", line], check=True, env=os.environ | {"HOME": str(tmp_path)})
    assert (tmp_path / ".bashrc").read_text() == "export PATH=$HOME/gcsr-venv/bin:$PATH\n"


@pytest.mark.parametrize("name", CLOUDS)
def test_in_a_cloud_idle_costs_one_small_machine(name):
    config = prepared(name)
    head, workers = config["available_node_types"]["head"], config["available_node_types"]["gpu"]
    assert config["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert workers["min_workers"] == 0
    assert workers["max_workers"] == config["max_workers"] <= 8
    assert config["idle_timeout_minutes"] <= 10
    assert config["provider"]["cache_stopped_nodes"] is False


def test_the_workers_on_aws_are_spot_and_the_head_is_not():
    types = read("aws")["available_node_types"]
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]


def test_aws_is_opened_to_nobody(tmp_path, monkeypatch):
    """Ray's whole preparation and the start of a machine of each kind, against a pretended AWS."""
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto")
    from ray.autoscaler._private.aws.config import log_to_cli
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    (tmp_path / ".ssh").mkdir()
    for name, value in {"HOME": tmp_path, "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}.items():
        monkeypatch.setenv(name, str(value))
    with moto.mock_aws():
        config = prepared("aws")
        region = config["provider"]["region"]
        ec2, iam = boto3.resource("ec2", region), boto3.client("iam", region)
        group = ec2.create_security_group(GroupName="gcsr", Description="gcsr")
        image = next(iter(ec2.images.all()))
        filled = {"SecurityGroupIds": [group.id], "ImageId": image.id}
        for node in config["available_node_types"].values():
            node["node_config"] |= {name: filled[name] for name in filled if name in node["node_config"]}
            iam.create_instance_profile(InstanceProfileName=node["node_config"]["IamInstanceProfile"]["Name"])
        before = [g.ip_permissions for g in ec2.security_groups.all()]

        config = AWSNodeProvider.bootstrap_config(AWSNodeProvider.fillout_available_node_types_resources(config))
        log_to_cli(config)
        assert [g.ip_permissions for g in ec2.security_groups.all()] == before
        assert {p["InstanceProfileName"] for p in iam.list_instance_profiles()["InstanceProfiles"]} == {
            "gcsr-head",
            "gcsr-worker",
        }
        resources = {name: node["resources"] for name, node in config["available_node_types"].items()}
        assert resources["head"]["CPU"] == 0
        assert (resources["gpu"]["CPU"], resources["gpu"]["GPU"]) == (4, 1)

        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for node in config["available_node_types"].values():
            provider.create_node(node["node_config"], {}, 1)
        started = {i.instance_type: i for i in ec2.instances.all()}
        assert sorted(started) == ["g6.xlarge", "m6i.large"]
        assert [i.security_groups for i in started.values()] == [[{"GroupId": group.id, "GroupName": "gcsr"}]] * 2
        assert {i.image_id for i in started.values()} == {image.id}
        assert started["g6.xlarge"].instance_lifecycle == "spot"


def test_gcp_gets_what_its_interface_takes():
    types = read("gcp")["available_node_types"]
    workers = types["gpu"]["node_config"]
    # One object, as Google's interface says; Ray's examples have a list there (Ray issue 46248).
    assert workers["scheduling"]["provisioningModel"] == "SPOT"
    assert workers["scheduling"]["onHostMaintenance"] == "TERMINATE"
    assert workers["scheduling"]["automaticRestart"] is False
    assert "scheduling" not in types["head"]["node_config"]
    assert types["gpu"]["resources"] == {"CPU": 4, "GPU": 1}  # of a g2-standard-4
    assert workers["machineType"] == "g2-standard-4"
    (account,) = workers["serviceAccounts"]
    assert account["scopes"] == ["https://www.googleapis.com/auth/devstorage.read_write"]
    for node in types.values():
        (interface,) = node["node_config"]["networkInterfaces"]
        assert interface["subnetwork"].endswith("/gcsr")  # not the network in which strangers may knock
        assert node["node_config"]["tags"] == {"items": ["gcsr"]}


def kubernetes():
    """The documents of kuberay.yaml, by their kind."""
    documents = list(yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text()))
    kinds = {document["kind"]: document for document in documents}
    assert len(kinds) == len(documents)
    return kinds


def test_kuberay_describes_a_job_and_its_cluster():
    job = kubernetes()["RayJob"]
    assert job["apiVersion"] == "ray.io/v1"
    assert job["metadata"]["name"] == "gcsr"
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "cluster.run", "sweep"]
    assert {"--out", "--resume"} <= set(words)
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert (workers["minReplicas"], workers["replicas"]) == (0, 0)
    assert 0 < workers["maxReplicas"] <= 8
    assert workers["groupName"]
    for group in (head, workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())  # else it is refused
        (container,) = group["template"]["spec"]["containers"]
        assert container["name"]
        assert container["image"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert all(set(variable) == {"name", "value"} for variable in container["env"])
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_kuberay_is_closed():
    documents = kubernetes()
    assert set(documents) == {"RayJob", "NetworkPolicy"}  # the Secret is made by a command, and stands in no file
    cluster = documents["RayJob"]["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "gcsr-ray-token"}
    assert tuple(int(part) for part in cluster["rayVersion"].split(".")) >= (2, 52)  # the first that knows tokens
    assert "serviceType" not in cluster["headGroupSpec"]  # so it is reachable inside Kubernetes only
    policy = documents["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert all(list(peer) for rule in policy["ingress"] for peer in rule["from"])
    templates = [g["template"] for g in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    for template in templates:
        assert template["metadata"]["labels"].items() >= policy["podSelector"]["matchLabels"].items()
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert template["spec"]["serviceAccountName"] != "default"
        (container,) = template["spec"]["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert templates[1]["spec"]["automountServiceAccountToken"] is False


# What stands in for a command: notes how it was called, and does just enough. bash writes what it prints line by line,
# and several commands run at once: cat adds a note in one write.
SHIM = r"""#!/bin/bash
printf '%s\0' "${0##*/}" "OMP_NUM_THREADS=${OMP_NUM_THREADS-}" "$RAY_AUTH_MODE $RAY_ADDRESS" "$@" $'\1' > "$NOTES.$$"
cat "$NOTES.$$" >> "$NOTES"
case "${0##*/} $1 $2" in
  "ray get-auth-token --generate") mkdir -p ~/.ray && echo secret > ~/.ray/auth_token && echo secret ;;
  "ray start --head") exec sleep 60 ;;
  "ray start --address="*) touch "$NOTES.worker"; exec sleep 60 ;;
  "srun "*) while [ "$1" != bash ]; do shift; done; echo $$ > "$NOTES.srun"; exec setsid "$@" ;;
  "scancel "*) kill -TERM -- "-$(cat "$NOTES.srun")" ;;
  "python -m cluster.run")
    echo "resume with: $GCSR_RESUME_COMMAND"
    until [ "$SLURM_JOB_NUM_NODES" = 1 ] || [ -e "$NOTES.worker" ]; do sleep 0.1; done
    [ -n "$LONG" ] || exit 3
    trap 'kill $!; exit 130' TERM
    touch "$NOTES.runs"
    sleep 60 & wait ;;
esac
"""
JOB = 123456


@pytest.fixture
def slurm(tmp_path):
    """Starts slurm.sh as Slurm would, on three nodes of 4 CPUs; and what its commands noted."""
    commands, home, notes = tmp_path / "bin", tmp_path / "home", tmp_path / "notes"
    commands.mkdir()
    home.mkdir()
    (commands / "shim").write_text(SHIM)
    (commands / "shim").chmod(0o755)
    for name in ("ray", "srun", "scancel", "python"):
        (commands / name).symlink_to("shim")
    given = {"HOME": home, "PATH": f"{commands}:{os.environ['PATH']}", "NOTES": notes, "OMP_NUM_THREADS": 1, "LONG": ""}
    given |= {"SLURM_JOB_ID": JOB, "SLURM_JOB_NUM_NODES": 3, "SLURM_CPUS_PER_TASK": 4}

    def start(*arguments, **changed):
        environment = os.environ | {name: str(value) for name, value in (given | changed).items()}
        return subprocess.Popen(
            ["bash", FOLDER / "slurm.sh", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def calls():
        return [call.removesuffix("\0").split("\0") for call in notes.read_text().split("\1\0") if call]

    return start, calls, home


def test_slurm_hands_the_arguments_on_as_they_are(slurm):
    start, calls, home = slurm
    arguments = ["sweep", "my spec.yaml", "--set", "lam=[1e-3, 3e-3]", "--set", "model='*'", "--out", "/s/$x `y` \\z"]
    job = start(*arguments)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 3, output  # the sweep's own
    assert "secret" not in output
    (again,) = re.findall(r"^resume with: (.*)$", output, re.MULTILINE)
    assert shlex.split(again) == ["sbatch", "cluster/slurm.sh", *arguments, "--resume"]
    assert (home / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
    assert (home / ".ray").stat().st_mode & 0o777 == 0o700

    made = calls()
    assert [call[3:] for call in made if call[0] == "python" and "cluster.run" in call] == [
        ["-m", "cluster.run", *arguments]
    ]
    head, *workers = [call for call in made if call[:1] == ["ray"] and call[3] == "start"]
    port = 20000 + JOB % 2500 * 4
    address = head[2].removeprefix("token ")
    assert address == f"{address.partition(':')[0]}:{port}"
    assert {call[1] for call in made[1:]} == {"OMP_NUM_THREADS="}
    assert {call[2] for call in made[1:]} == {f"token {address}"}
    assert {"--head", "--dashboard-host=127.0.0.1", f"--port={port}", f"--node-ip-address={address[:-6]}"} <= set(head)
    ports = [int(option.partition("=")[2]) for option in head if re.match(r"--[a-z-]*port=[1-9]", option)]
    assert sorted(ports) == list(range(port, port + 4))  # the next job's are 4 further

    (srun,) = [call for call in made if call[0] == "srun"]
    assert {"--nodes=2", "--ntasks=2", "--relative=1"} <= set(srun)
    assert len(workers) == 1  # the shim runs on one node what Slurm runs on two
    assert f"--address={address}" in workers[0]
    shared = {"--num-cpus=4", "--block", "--min-worker-port=0", "--max-worker-port=0"}
    assert shared <= set(head) & set(workers[0])
    folders = {option.partition("=")[2] for call in (head, workers[0]) for option in call if "--temp-dir" in option}
    assert len(folders) == 2
    assert not [folder for folder in folders if os.path.exists(folder)]


def test_slurm_on_one_node_starts_nothing_elsewhere(slurm):
    start, calls, _ = slurm
    job = start("sweep", "digits", SLURM_JOB_NUM_NODES=1)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 3, output
    assert not [call for call in calls() if call[0] in ("srun", "scancel")]


def test_the_time_limit_of_slurm_ends_the_sweep_as_ctrl_c(slurm, tmp_path):
    assert re.search(r"^#SBATCH --signal=B:TERM@\d+$", (FOLDER / "slurm.sh").read_text(), re.MULTILINE)
    start, _, _ = slurm
    job = start("sweep", "digits", LONG="yes")
    deadline = time.monotonic() + 60
    while not (tmp_path / "notes.runs").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 130, output


def test_slurm_without_ray_says_what_to_do(slurm):
    start, _, _ = slurm
    job = start("sweep", "digits", PATH="/usr/bin:/bin")
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 2
    assert output == "slurm.sh: no ray in PATH: submit with gcsr's environment active\n"
