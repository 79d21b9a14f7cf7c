"""A Slurm of two machines on one: network namespaces with addresses, host names and daemons of their own. Needs root.

    with slurm(folder) as cluster:
        job = cluster.submit("multi_node.slurm", ...)
        cluster.lose("node2")          # as a power cut would
        cluster.bring_back("node2")

Nothing of it is seen from outside, and nothing outlives it: all of it hangs on a few processes that are killed at the end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

NETWORK = "10.77.0"
ADDRESSES = {"head": f"{NETWORK}.1", "node1": f"{NETWORK}.11", "node2": f"{NETWORK}.12"}
NODES = ("node1", "node2")
DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=head({head})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
GresTypes=gpu
MpiDefault=none
SlurmdTimeout=20
ReturnToService=2
NodeName=node1 NodeAddr={node1} CPUs=2 RealMemory=4000 Gres=gpu:1
NodeName=node2 NodeAddr={node2} CPUs=2 RealMemory=4000 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """What is missing here to run this, or None."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    missing = [name for name in (*DAEMONS, "unshare", "nsenter", "ip") if shutil.which(name) is None]
    return f"needs {', '.join(missing)} (Debian: slurm-wlm, munge, iproute2)" if missing else None


class Host:
    """A machine: namespaces for its network, host name and mounts, held open by a process that sleeps."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.holder = subprocess.Popen(["unshare", "--net", "--uts", "--mount", "sleep", "infinity"])
        own = os.readlink("/proc/self/ns/net")
        wait_until(lambda: self.network not in ("", own), 10, "a network namespace")
        self.run("hostname", name)
        self.run("mount", "--bind", str(folder / "hosts"), "/etc/hosts")
        self.run("ip", "link", "set", "lo", "up")

    @property
    def network(self) -> str:
        """The kernel's name of its network namespace."""
        return network_of(self.holder.pid)

    def run(self, *command: str, cwd: Path | None = None, environment: Mapping[str, str] = os.environ) -> str:
        """What a command prints here."""
        inside = ["nsenter", "-t", str(self.holder.pid), "--net", "--uts", "--mount"]
        inside += [f"--wd={cwd}"] if cwd else []
        done = subprocess.run(
            [*inside, *command],
            env={**environment, "SLURM_CONF": str(self.folder / "slurm.conf")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}"
        return done.stdout

    def join(self, head: Host) -> None:
        """Plug into the head's network."""
        self.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", self.name, "netns", str(head.holder.pid))
        head.run("ip", "link", "set", self.name, "master", "switch", "up")
        self.run("ip", "address", "add", f"{ADDRESSES[self.name]}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")

    def kill(self) -> None:
        """End all that runs here, at once; the network goes with it."""
        here = self.network
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and here and network_of(int(entry.name)) == here:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(entry.name), signal.SIGKILL)
        self.holder.wait()


class Cluster:
    """A head with the controller, and two nodes of two CPUs and one pretended GPU each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "hosts").write_text(
            "".join(f"{a} {name}\n" for name, a in ADDRESSES.items()) + "127.0.0.1 localhost\n"
        )
        (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, **ADDRESSES))
        (folder / "gres.conf").write_text("Name=gpu File=/dev/zero\n")  # a device that exists; nobody opens it
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir()
        self.hosts: dict[str, Host] = {}

    def start(self) -> None:
        head = self.hosts["head"] = Host("head", self.folder)
        head.run("ip", "link", "add", "switch", "type", "bridge")
        head.run("ip", "address", "add", f"{ADDRESSES['head']}/24", "dev", "switch")
        head.run("ip", "link", "set", "switch", "up")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        head.run("munged", "--force", *(f"--{flag}={self.folder}/munge.{name}" for flag, name in files.items()))
        head.run("slurmctld")
        for node in NODES:
            self.bring_back(node)
        wait_until(lambda: set(self.states().values()) == {"idle"}, 60, "idle nodes")

    def bring_back(self, node: str) -> None:
        """Start a node, new or lost."""
        host = self.hosts[node] = Host(node, self.folder)
        host.join(self.hosts["head"])
        host.run("slurmd", "-N", node)

    def lose(self, node: str) -> None:
        """A node is gone."""
        self.hosts.pop(node).kill()

    def stop(self) -> None:
        for host in self.hosts.values():
            host.kill()

    def states(self) -> dict[str, str]:
        """Node -> what Slurm says of it."""
        printed = self.hosts["head"].run("sinfo", "--noheader", "--Node", "--format", "%N %T")
        return dict(line.split() for line in printed.splitlines())

    def submit(self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> str:
        """The number of a job submitted with these arguments of sbatch."""
        return self.hosts["head"].run("sbatch", "--parsable", *arguments, cwd=cwd, environment=environment).strip()

    def cancel(self, number: str) -> None:
        """End a job."""
        self.hosts["head"].run("scancel", number)

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, Restarts, ..."""
        printed = self.hosts["head"].run("scontrol", "--oneliner", "show", "job", number)
        return dict(word.split("=", 1) for word in printed.split() if "=" in word)

    def wait_for(self, number: str, state: str, timeout: float) -> dict[str, str]:
        """The job, once it is in that state."""
        failed = {"FAILED", "Canceled", "TIMEOUT", "NODE_FAIL"} - {state}

        def there() -> bool:
            now = self.job(number)["JobState"]
            assert now not in failed, f"job {number} is {now}"
            return now == state

        wait_until(there, timeout, f"job {number} to be {state}")
        return self.job(number)


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[Cluster]:
    """A running cluster with its files in `folder`."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def network_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"no {what} after {timeout:g} s"
        time.sleep(0.2)
