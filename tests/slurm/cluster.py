"""A real SLURM cluster for tests: ordinary processes of one user, loopback only, no systemd and no cgroups.

    python tests/slurm/cluster.py up                       # takes seconds; does nothing if all daemons run
    eval "$(python tests/slurm/cluster.py env)"            # then sbatch, srun, squeue and sacct work in this shell
    python tests/slurm/cluster.py status                   # exit code 0 when all is up
    python tests/slurm/cluster.py kill slurmd.gn4          # as if the machine had crashed; `up` starts it again
    python tests/slurm/cluster.py down

Its daemons are munged (authentication), MariaDB and slurmdbd (accounting, for sacct), slurmctld (the controller), and a
slurmd for each of gn1 .. gn4, nodes with 4 CPUs, 4000 MB and two fake GPUs. `up --bare` starts a smaller cluster: two
nodes, arrays of at most 4 tasks, and no MariaDB or slurmdbd, hence no accounts. All files lie in one folder outside the
repository; the settings are the templates in etc/ beside this file. Any user can run it. Jobs of several users need a
cluster that root runs, and an account in it for each user (`add_user`).
"""

import argparse
import contextlib
import fcntl
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATES = Path(__file__).resolve().parent / "etc"
DEFAULT_FOLDER = Path(tempfile.gettempdir()) / f"mmprompt-slurm-{os.getuid()}"
FIRST_PORT_BASE = 16800  # the 1000 ports from here on lie below the kernel's range for outgoing connections
BARE_FOLDER = DEFAULT_FOLDER.with_name(f"{DEFAULT_FOLDER.name}-bare")
BARE_PORTS = FIRST_PORT_BASE + 1000
SPARE_FOLDER = DEFAULT_FOLDER.with_name(f"{DEFAULT_FOLDER.name}-spare")
SPARE_PORTS = FIRST_PORT_BASE + 2000
NODES = ("gn1", "gn2", "gn3", "gn4")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
ACCOUNTING = ("mariadbd", "mariadb-install-db", "slurmdbd", "sacctmgr")
ACCOUNT = "mmprompt"  # the account of users who may submit; root belongs to SLURM's own account
INSTALL = (
    "apt-get install -y --no-install-recommends slurm-wlm slurmdbd slurmctld slurmd slurm-client munge "
    "mariadb-server mariadb-client slurm-wlm-mysql-plugin"
)
START_SECONDS = 600.0  # until a daemon must be ready; on a busy machine it takes long
STOP_SECONDS = 20.0  # until a daemon that was told to stop is killed
DIE_SECONDS = 600.0


class ClusterError(Exception):
    """The cluster cannot do what was asked; the message says why and what helps."""


@dataclass(frozen=True)
class Daemon:
    """One process of the cluster. It runs in the foreground as our child, so that we know its pid."""

    name: str
    command: list[str]
    ready: Callable[[], bool]
    stop_signal: signal.Signals = signal.SIGTERM


class Cluster:
    """The cluster in one folder: its daemons, and what `up`, `down` and `status` do."""

    def __init__(self, folder: Path, port_base: int | None = None, bare: bool = False) -> None:
        """`bare` matters only the first time; a folder that was up before keeps its kind."""
        self.folder = folder.resolve()
        if self.folder.is_relative_to(REPOSITORY):
            raise ClusterError(f"--folder {self.folder} lies in the repository {REPOSITORY}, wanted one outside")
        if len(str(self.folder)) > 80:  # the kernel ends a socket's path after 107 bytes
            raise ClusterError(f"--folder {self.folder} has {len(str(self.folder))} characters, wanted at most 80")
        self.conf = self.folder / "etc/slurm.conf"
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.port_base = port_base or self._last_port_base() or (BARE_PORTS if bare else FIRST_PORT_BASE)
        self.bare = self._was_bare(bare)
        self.nodes = NODES[:2] if self.bare else NODES
        # Not os.environ: its SLURM_*, SBATCH_* and SINFO_* variables would change what our commands do.
        self.env = {
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",  # the daemons' folders may not be in the user's PATH
            "SLURM_CONF": str(self.conf),
            "MYSQL_UNIX_PORT": str(self.folder / "run/mariadb.sock"),
        }
        self.stages = self._stages()

    def _stages(self) -> list[list[Daemon]]:
        """The daemons in the order of their start; those of one stage start together."""
        files = {"key-file": "etc/munge.key", "socket": "run/munge.sock", "seed-file": "var/munge.seed"}
        files |= {"pid-file": "run/munged.pid", "log-file": "log/munged.log"}
        # --force: munged insists that every user can reach its socket, which is not so if a user other than root runs the cluster
        munged = ["munged", "--force", "--foreground", *(f"--{k}={self.folder / path}" for k, path in files.items())]
        mariadbd = ["mariadbd", f"--defaults-file={self.folder}/etc/my.cnf"]
        succeeds = self._succeeds
        identity = [Daemon("munged", munged, partial(succeeds, "munge", "-n", "-S", f"{self.folder}/run/munge.sock"))]
        # SIGKILL loses nothing: slurmdbd, its only client, has stopped by then, and MariaDB replays its log at the next start.
        database = Daemon("mariadbd", mariadbd, self._database_answers, signal.SIGKILL)
        accounts = Daemon("slurmdbd", ["slurmdbd", "-D"], partial(succeeds, "sacctmgr", "-n", "list", "cluster"))
        serving = [
            [Daemon("slurmctld", ["slurmctld", "-D"], partial(succeeds, "sinfo"))],
            [
                Daemon(f"slurmd.{node}", ["slurmd", "-D", "-N", node], partial(self._serves, node))
                for node in self.nodes
            ],
        ]
        return [identity, *serving] if self.bare else [[*identity, database], [accounts], *serving]

    def up(self, fresh: bool = False) -> None:
        """Starts the daemons that do not run, and returns when every node takes jobs. `fresh` wipes state and logs first."""
        wanted = PROGRAMS if self.bare else (*PROGRAMS, *ACCOUNTING)
        missing = [program for program in wanted if shutil.which(program, path=self.env["PATH"]) is None]
        if missing:
            raise ClusterError(f"SLURM tests need {', '.join(missing)}: {INSTALL}")
        with self._locked():
            running = self.running()
            if fresh and running:
                raise ClusterError(f"--fresh wipes database and state, and {', '.join(running)} run: down first")
            for part in ("var", "log") if fresh else ():
                shutil.rmtree(self.folder / part, ignore_errors=True)
            self._write_settings(bool(running))
            if not self.bare:
                self._create_database()
            for stage in self.stages:
                for daemon in stage:
                    if daemon.name not in running:
                        self._start(daemon)
                for daemon in stage:
                    self._wait_until_ready(daemon)
                if stage[0].name == "slurmdbd":
                    self._create_accounts()

    def kill(self, *names: str) -> None:
        """Sends SIGKILL to these daemons, as if their machine had crashed. Processes that slurmd had started go on."""
        with self._locked():
            for daemon in self._named(names):
                self._signal(daemon, signal.SIGKILL)
                if not wait_for(partial(self._has_ended, daemon), DIE_SECONDS):
                    raise ClusterError(f"{daemon.name} did not end within {DIE_SECONDS:g} s of SIGKILL")

    def start(self, *names: str) -> None:
        """Starts these daemons unless they run, and returns when they answer."""
        with self._locked():
            for daemon in self._named(names):
                if self._has_ended(daemon):
                    self._start(daemon)
                self._wait_until_ready(daemon)

    def add_user(self, user: str, account: str = ACCOUNT, **limits: int) -> None:
        """Lets a user submit, with limits such as MaxSubmitJobs=10; -1 lifts a limit. slurmctld knows at once."""
        if self.bare:
            return
        self._run("sacctmgr", "-i", "add", "account", account)  # fails if it exists
        self._run("sacctmgr", "-i", "add", "user", user, f"account={account}")
        settings = [f"{key}={value}" for key, value in limits.items()]
        where = [f"user={user}", f"account={account}"]
        if settings and not self._succeeds("sacctmgr", "-i", "modify", "user", "where", *where, "set", *settings):
            raise ClusterError(f"sacctmgr does not take {', '.join(settings)} for {user} in {account}")
        listed = self._run("sacctmgr", "-n", "-P", "list", "associations", *where, "format=user").stdout.split()
        if listed != [user]:
            raise ClusterError(f"{user} is not in the account {account} after it was added; sacctmgr lists {listed}")

    def remove_user(self, user: str) -> None:
        if not self.bare:
            self._run("sacctmgr", "-i", "delete", "user", user)

    def down(self, keep_jobs: bool = False) -> None:
        """Cancels all jobs, unless `keep_jobs`, and stops the daemons, last started first."""
        with self._locked():
            if not keep_jobs and "slurmctld" in self.running():
                self._cancel_jobs()
            for stage in reversed(self.stages):
                for daemon in stage:
                    self._signal(daemon, daemon.stop_signal)
                for daemon in stage:
                    if not wait_for(partial(self._has_ended, daemon), STOP_SECONDS):
                        print(f"{daemon.name} did not stop within {STOP_SECONDS:g} s and is killed")
                        self._signal(daemon, signal.SIGKILL)

    def status(self) -> bool:
        """Prints a line for each daemon and `sinfo`; true when all run and all nodes take jobs."""
        running = self.running()
        print(f"folder      {self.folder}")
        for daemon in (daemon for stage in self.stages for daemon in stage):
            print(f"{daemon.name:<11} {f'runs, pid {running[daemon.name]}' if daemon.name in running else 'down'}")
        if "slurmctld" not in running:  # a query would wait for MessageTimeout
            return False
        print(self._run("sinfo").stdout, end="")
        return all(daemon.name in running and daemon.ready() for stage in self.stages for daemon in stage)

    def running(self) -> dict[str, int]:
        """Name and pid of each daemon that we started and that has not ended."""
        pids = {daemon.name: self._pid(daemon) for stage in self.stages for daemon in stage}
        return {name: pid for name, pid in pids.items() if pid is not None}

    @property
    def export(self) -> str:
        """The shell command by which SLURM's commands find this cluster, and our runs know that its GPUs are fake."""
        return f"export SLURM_CONF={shlex.quote(str(self.conf))} MMPROMPT_FAKE_GPUS=1"

    def _named(self, names: Sequence[str]) -> list[Daemon]:
        known = {daemon.name: daemon for stage in self.stages for daemon in stage}
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise ClusterError(
                f"there is no daemon {', '.join(unknown) or '(none named)'}; there are {', '.join(known)}"
            )
        return [known[name] for name in names]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One `up` or `down` at a time, because several test processes may call them at once."""
        # A slurmd that is not root runs all users' jobs as its own user, so no other user may reach munge's socket.
        self.folder.mkdir(mode=0o755 if os.getuid() == 0 else 0o700, parents=True, exist_ok=True)
        if self.folder.stat().st_uid != os.getuid():  # any user can make a folder in /tmp
            raise ClusterError(f"{self.folder} belongs to uid {self.folder.stat().st_uid}, wanted {os.getuid()}")
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # The steps of `up`, in order

    def _last_port_base(self) -> int | None:
        port = re.search(r"^SlurmctldPort=(\d+)$", self._last_conf(), re.MULTILINE)
        return int(port[1]) - 1 if port else None

    def _was_bare(self, otherwise: bool) -> bool:
        included = re.search(r"^Include .*/(full|bare)\.conf$", self._last_conf(), re.MULTILINE)
        return included[1] == "bare" if included else otherwise

    def _last_conf(self) -> str:
        return self.conf.read_text() if self.conf.exists() else ""

    def _write_settings(self, in_use: bool) -> None:
        """Fills in the templates. It is an error if that would change settings that running daemons use."""
        for part in ("etc", "run", "log", "pids", "dev", "var/state", "var/spool"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        values = {
            "folder": self.folder,
            "user": self.user,
            "host": socket.gethostname().split(".")[0],
            "slurmctld_port": self.port_base + 1,
            "slurmdbd_port": self.port_base + 2,
            "slurmd_ports": f"[{self.port_base + 11}-{self.port_base + 10 + len(self.nodes)}]",
            "kind": "bare" if self.bare else "full",
            "nodes": f"gn[1-{len(self.nodes)}]",
            "srun_ports": f"{self.port_base + 100}-{self.port_base + 999}",
        }
        for template in TEMPLATES.iterdir():
            path, text = self.folder / "etc" / template.name, string.Template(template.read_text()).substitute(values)
            if in_use and path.read_text() != text:
                raise ClusterError(f"{path} is in use, and --port-base or {template} says otherwise now: down first")
            if not in_use:  # else it says the same, and SLURM's commands may be reading it
                path.touch(mode=0o600 if template.name == "slurmdbd.conf" else 0o644)  # slurmdbd insists
                path.write_text(text)
        key = self.folder / "etc/munge.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(os.urandom(128))
        for gpu in (self.folder / "dev/nvidia0", self.folder / "dev/nvidia1"):
            if not gpu.exists():
                gpu.symlink_to("/dev/null")

    def _create_database(self) -> None:
        """Creates MariaDB's own tables, once. slurmdbd creates the others."""
        data, draft = self.folder / "var/mysql", self.folder / "var/mysql.draft"
        if data.exists():
            return
        shutil.rmtree(draft, ignore_errors=True)  # left by an `up` that was interrupted here
        login = f"--auth-root-socket-user={self.user}"
        defaults = f"--defaults-file={self.folder}/etc/my.cnf"
        created = self._run("mariadb-install-db", defaults, f"--datadir={draft}", login, "--skip-test-db")
        if created.returncode != 0:
            raise ClusterError(f"mariadb-install-db failed:\n{created.stdout}{created.stderr}")
        draft.rename(data)

    def _create_accounts(self) -> None:
        """Adds the cluster's entry, which slurmctld needs to enforce limits, and this user to an account."""
        self._run("sacctmgr", "-i", "add", "cluster", "mmprompt")  # fails if it exists
        if self.user != "root":
            self.add_user(self.user)

    def _start(self, daemon: Daemon) -> None:
        with self._output(daemon).open("ab") as output:
            process = subprocess.Popen(
                daemon.command,
                env=self.env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # so that Ctrl-C in a terminal does not end it
            )
        draft = self.folder / "pids/draft"
        draft.write_text(f"{process.pid} {start_time(process.pid)}")
        draft.rename(self.folder / "pids" / daemon.name)  # in one step: `status` may be reading

    def _wait_until_ready(self, daemon: Daemon) -> None:
        if wait_for(lambda: self._has_ended(daemon) or daemon.ready(), START_SECONDS) and not self._has_ended(daemon):
            return
        what = "has ended" if self._has_ended(daemon) else f"was not ready within {START_SECONDS:g} s"
        end = "\n  ".join(self._output(daemon).read_text(errors="replace").splitlines()[-15:])
        advice = f"If a package is missing: {INSTALL}"
        raise ClusterError(f"{daemon.name} {what}. The end of {self._output(daemon)}:\n  {end}\n{advice}")

    def _database_answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(self.env["MYSQL_UNIX_PORT"]) == 0

    def _serves(self, node: str) -> bool:
        return bool(self._run("sinfo", "-h", "-r", "-n", node, "-t", "idle,mixed,allocated,completing").stdout)

    # The steps of `down`

    def _cancel_jobs(self) -> None:
        jobs = self._run("squeue", "-h", "-o", "%A").stdout.split()
        if jobs:
            self._run("scancel", *jobs)  # jobs that ignore SIGTERM, as submitit's do, are killed after KillWait
            if not wait_for(lambda: not self._run("squeue", "-h").stdout, STOP_SECONDS):
                print(f"these jobs did not end within {STOP_SECONDS:g} s:\n{self._run('squeue').stdout}")

    def _signal(self, daemon: Daemon, number: signal.Signals) -> None:
        pid = self._pid(daemon)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, number)

    # Processes

    def _pid(self, daemon: Daemon) -> int | None:
        """The pid that was noted at the start, unless that process has ended; with another start time it is another process."""
        try:
            pid, started = (self.folder / "pids" / daemon.name).read_text().split()
        except FileNotFoundError:
            return None
        return int(pid) if start_time(int(pid)) == started else None

    def _has_ended(self, daemon: Daemon) -> bool:
        return self._pid(daemon) is None

    def _output(self, daemon: Daemon) -> Path:
        return self.folder / "log" / f"{daemon.name}.out"

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    def _succeeds(self, *command: str) -> bool:
        return self._run(*command).returncode == 0


def start_time(pid: int) -> str | None:
    """When a process started, in clock ticks after boot; None if there is no such process or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name may contain blanks
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["up", "down", "status", "env", "kill", "start"])
    parser.add_argument("daemons", nargs="*", help="kill, start: which, by the names that status prints")
    parser.add_argument("--folder", type=Path, help=f"where all files lie ({DEFAULT_FOLDER}; {BARE_FOLDER})")
    parser.add_argument("--port-base", type=int, help=f"up: first of 1000 ports (the last used, or {FIRST_PORT_BASE})")
    parser.add_argument("--bare", action="store_true", help="the smaller cluster without accounts")
    parser.add_argument("--fresh", action="store_true", help="up: wipe database, jobs and logs first")
    parser.add_argument("--keep-jobs", action="store_true", help="down: cancel no job; the next up finds them again")
    asked = parser.parse_args(arguments)
    os.umask(0o022)  # other users read slurm.conf and reach munge's socket
    began = time.monotonic()
    try:
        cluster = Cluster(asked.folder or (BARE_FOLDER if asked.bare else DEFAULT_FOLDER), asked.port_base, asked.bare)
        if asked.verb == "up":
            cluster.up(asked.fresh)
            print(f"up in {cluster.folder} after {time.monotonic() - began:.1f} s; in your shell: {cluster.export}")
        elif asked.verb == "down":
            cluster.down(asked.keep_jobs)
            print(f"down after {time.monotonic() - began:.1f} s; {cluster.folder} stays")
        elif asked.verb == "env":
            print(cluster.export)
        elif asked.verb == "kill":
            cluster.kill(*asked.daemons)
        elif asked.verb == "start":
            cluster.start(*asked.daemons)
        elif not cluster.status():
            return 1
    except ClusterError as error:
        print(f"cluster.py {asked.verb}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
