"""A private Slurm of one node for tests: set up, used and taken down, by any user, root or not.

It is a real Slurm with its own configuration, key, ports and folders, so that one that the machine
may belong to is neither used nor changed. ``python -m tests.slurm_cluster install`` gets the
programs where the system has none, ``python -m tests.slurm_cluster run COMMAND...`` runs a command
while a cluster is up, for example ``make smoke PROFILE=slurm``.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.debian import UnpackError, libraries, unpack

__all__ = ["ENDS_WITH_US", "Cluster", "SlurmError", "find_programs", "install", "private_cluster"]

PREFIX = Path(sys.prefix) / "slurm"
"""Where Debian's packages are unpacked, unless the system has Slurm."""

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
DAEMONS = ("munged", "slurmctld", "slurmd", "slurmstepd")
COMMANDS = ("sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun", "sacct")
PATIENCE = 60
"""Seconds after which a daemon that has not answered is taken to have failed."""
ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL")
"""In front of a command: nothing is left to wait for ever if this process is killed."""

# The node has memory for every stage: it is not there, and nothing holds jobs to what they ask for,
# but requests are scheduled as on a real cluster.
SLURM_CONF = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# a job that was requeued waits as long as a credential is valid
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MailProg=/bin/true
{plugins}
# neither cgroups nor accounting, which would need more than a user's rights
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
# how jobs ended can be asked as long as the cluster is up
MinJobAge=86400
KillWait=10
GresTypes=gpu
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=262144 Gres=gpu:{cpus}
PartitionName=study Nodes=node Default=YES MaxTime=INFINITE
"""


class SlurmError(RuntimeError):
    """Slurm is not there, or a part of the cluster does not do what it should."""


@dataclass(frozen=True)
class Programs:
    """Where Slurm's and munge's programs are, and their libraries if these are not the system's."""

    paths: Mapping[str, Path]
    libraries: Sequence[Path] = ()

    @property
    def environment(self) -> dict[str, str]:
        """What the programs need to start."""
        if not self.libraries:
            return {}
        return {"LD_LIBRARY_PATH": os.pathsep.join(map(str, self.libraries))}


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up.

    Attributes
    ----------
    folder
        configuration, logs and all else that belongs to it.
    environment
        environment variables with which commands use this cluster, jobs included: a ``PATH`` that
        begins with its commands.
    """

    folder: Path
    environment: dict[str, str] = field(repr=False)

    def ask(self, *command: str) -> str:
        """Output of a command, for example ``ask("squeue", "--noheader")``."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SlurmError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def jobs(self) -> list[dict[str, str]]:
        """All jobs, also those that have ended, as ``scontrol show job`` describes them."""
        lines = self.ask("scontrol", "--oneliner", "show", "job").splitlines()
        # values may hold spaces: one ends where the next name begins
        found = [re.findall(r"(\S+?)=(.*?) *(?= [\w/:]+=|\s*$)", line) for line in lines]
        return [dict(pairs) for pairs in found if pairs]


def find_programs() -> Programs:
    """Slurm's programs, the system's or those that ``install`` has unpacked.

    Raises
    ------
    SlurmError
        naming a program that is missing.
    """
    system = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    paths = {name: shutil.which(name, path=system) for name in (*DAEMONS, *COMMANDS)}
    found = {name: Path(path) for name, path in paths.items() if path}
    if len(found) == len(paths):
        return Programs(found)
    folders = os.pathsep.join([f"{PREFIX}/usr/sbin", f"{PREFIX}/usr/bin"])
    unpacked = {name: shutil.which(name, path=folders) for name in paths}
    if None in unpacked.values():
        missing = ", ".join(name for name, path in paths.items() if not path)
        raise SlurmError(f"no {missing} in PATH, and no Slurm in {PREFIX}")
    found = {name: Path(path) for name, path in unpacked.items() if path}
    # its plugins first: they are looked for there
    return Programs(found, sorted(libraries(PREFIX), key=lambda path: path.name != "slurm-wlm"))


def install() -> None:
    """Unpack Debian's or Ubuntu's packages into ``PREFIX`` unless there is a Slurm already.

    Nothing is installed.

    Raises
    ------
    SlurmError
        if this system has no apt, or apt finds no packages.
    """
    try:
        find_programs()
    except SlurmError:
        pass
    else:
        return
    try:
        unpack(PACKAGES, PREFIX)
    except UnpackError as error:
        raise SlurmError(str(error)) from error
    # Slurm goes by the name that a program is called by. In Debian's packages it ends in -wlm,
    # and an installation would add links.
    for program in PREFIX.glob("usr/*bin/*-wlm"):
        program.with_name(program.name.removesuffix("-wlm")).symlink_to(program.name)
    find_programs()


@contextmanager
def private_cluster(cpus: int = 2) -> Iterator[Cluster]:
    """A cluster of one node, this machine, until the block ends; its jobs are cancelled then.

    Parameters
    ----------
    cpus
        how many CPUs, and pretended GPUs, the node offers to jobs.

    Raises
    ------
    SlurmError
        if Slurm is not there or does not start, with the end of its logs.
    """
    programs = find_programs()
    with ExitStack() as stack:
        # short, as the path of a socket has to be
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        environment = _write_configuration(folder, programs, cpus)
        cluster = Cluster(folder, environment)
        munged = (
            *("munged", "--foreground", "--force", "--num-threads=2"),
            *(f"--{key}-file={folder}/munge.{key}" for key in ("key", "log", "pid", "seed")),
            f"--socket={folder}/munge.socket",
        )
        stack.enter_context(_daemon(cluster, *munged))
        _wait_for(cluster, "munged", (folder / "munge.socket").exists)
        stack.enter_context(_daemon(cluster, "slurmctld", "-D"))
        _wait_for(cluster, "slurmctld", lambda: "UP" in _try(cluster, "scontrol", "ping"))
        stack.enter_context(_daemon(cluster, "slurmd", "-D", "-d", f"{folder}/bin/slurmstepd"))
        idle = ("sinfo", "--noheader", "--format=%T")
        _wait_for(cluster, "slurmd", lambda: _try(cluster, *idle).strip() == "idle")
        try:
            yield cluster
        finally:
            _cancel_all(cluster)


def _write_configuration(folder: Path, programs: Programs, cpus: int) -> dict[str, str]:
    for name in ("bin", "state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        ports = [first.getsockname()[1], second.getsockname()[1]]
    configuration = SLURM_CONF.format(
        host=socket.gethostname().split(".")[0],
        controller_port=ports[0],
        node_port=ports[1],
        user=pwd.getpwuid(os.getuid()).pw_name,
        folder=folder,
        plugins=f"PluginDir={programs.libraries[0]}" if programs.libraries else "",
        cpus=cpus,
    )
    (folder / "slurm.conf").write_text(configuration, "utf-8")
    # GPUs to count down from: nobody needs to have one. Empty files stand for the devices.
    devices = [folder / f"gpu{number}" for number in range(cpus)]
    for device in devices:
        device.touch()
    gres = "".join(f"NodeName=node Name=gpu File={device}\n" for device in devices)
    (folder / "gres.conf").write_text(gres, "utf-8")
    # No cgroups, of which a user may have none: since 23.11 Slurm can be told so, before that the
    # first version does nothing unless it is used.
    printed = subprocess.check_output(
        [programs.paths["slurmd"], "-V"], env={**os.environ, **programs.environment}, text=True
    )
    version = tuple(int(part) for part in re.findall(r"\d+", printed)[:2])
    plugin = "disabled" if version >= (23, 11) else "cgroup/v1"
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n", "utf-8")
    # Commands that know their cluster. A variable SLURM_CONF alone would not do: the plugin of
    # snakemake removes all that begin with SLURM_ before it starts a job's step.
    exports = {"SLURM_CONF": str(folder / "slurm.conf"), **programs.environment}
    for name, program in programs.paths.items():
        lines = [f"export {key}='{value}'" for key, value in exports.items()]
        command = folder / "bin" / name
        command.write_text("\n".join(["#!/bin/sh", *lines, f"exec '{program}' \"$@\"\n"]), "utf-8")
        command.chmod(0o755)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    path = os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", os.defpath)])
    return {**inherited, "PATH": path}


@contextmanager
def _daemon(cluster: Cluster, name: str, *arguments: str) -> Iterator[None]:
    """A daemon in the foreground. It ends with the block, or with this process if that is killed."""
    with (cluster.folder / f"{name}.out").open("wb") as output:
        process = subprocess.Popen(
            [*ENDS_WITH_US, cluster.folder / "bin" / name, *arguments],
            env=cluster.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _try(cluster: Cluster, *command: str) -> str:
    """Output of a command, empty as long as it fails."""
    try:
        return cluster.ask(*command)
    except SlurmError:
        return ""


def _wait_for(cluster: Cluster, name: str, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > deadline:
            logs = [cluster.folder / f"{name}.{kind}" for kind in ("out", "log")]
            ends = [path.read_text("utf-8", "replace")[-3000:] for path in logs if path.exists()]
            raise SlurmError(f"{name} was not ready after {PATIENCE} s:\n" + "\n".join(ends))
        time.sleep(0.1)


def _cancel_all(cluster: Cluster) -> None:
    """Cancel what is left and wait until nothing of it runs, while there are daemons to do so."""
    _try(cluster, "scancel", "--quiet", "--user", str(os.getuid()))
    deadline = time.monotonic() + PATIENCE
    while _try(cluster, "squeue", "--noheader") and time.monotonic() < deadline:
        time.sleep(0.2)


def _main(arguments: Sequence[str]) -> int:
    try:
        match arguments:
            case ["install"]:
                install()
                print("Slurm:", find_programs().paths["slurmctld"])
                return 0
            case ["run", *command] if command:
                # an end that leaves the block below, and so takes the cluster down
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
                with private_cluster(os.cpu_count() or 1) as cluster:
                    return subprocess.run(
                        [*ENDS_WITH_US, *command], env=cluster.environment, check=False
                    ).returncode
    except SlurmError as error:
        print(error, file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
