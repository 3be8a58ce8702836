"""The site: what sinfo, scontrol and sacctmgr tell of a cluster, and which of the user's settings do not fit it.

Without accounting there is less to tell, which is no fault. What only sbatch knows, sbatch says.
"""

from __future__ import annotations

import difflib
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from mmprompt.runs.deployment import Cluster
from mmprompt.runs.processes import who
from mmprompt.runs.store import is_number
from sweeps.doctor.probe import Finding, bad, good, mine, note
from sweeps.jobs.slurm import ask, config, max_array

SLOW = 5.0  # seconds
SINFO = ("-h", "-e", "-o", "%P|%a|%l|%D|%m|%c|%G|%f|%t")  # what `all_nodes` reads
READY = ("idle", "mix", "alloc", "comp", "resv", "plnd")  # as sinfo shortens the states of nodes that take jobs
SHOWN = 8  # names


@dataclass(frozen=True)
class Nodes:
    """Nodes of one partition that are alike."""

    partition: str
    is_default: bool
    is_up: bool
    minutes: float  # the partition's time limit
    count: int
    mb: int
    cpus: int
    gpus: dict[str, int]  # by type; "" where it has none
    features: frozenset[str]
    state: str

    @property
    def take_jobs(self) -> bool:
        return self.is_up and self.state.startswith(READY)

    def gpus_like(self, kind: str) -> int:
        return self.gpus.get(kind, 0) if kind else sum(self.gpus.values())


def all_nodes(text: str) -> list[Nodes]:
    """From what sinfo prints; lines that are not as expected are left out."""
    found = []
    for line in text.splitlines():
        if line.count("|") < 8:
            continue
        name, up, limit, count, mb, cpus, gres, features, state = line.split("|", 8)
        words = frozenset(features.split(",")) - {"(null)"}
        there, is_up, gpus = number(count), up == "up", gpus_of(gres)
        name, is_default = name.rstrip("*"), name.endswith("*")
        found.append(
            Nodes(name, is_default, is_up, minutes(limit), there, number(mb), number(cpus), gpus, words, state)
        )
    return found


def number(text: str) -> int:
    """`4000`, `4000+` where the nodes of a line differ after all."""
    digits = re.match(r"\d{1,18}", text, re.ASCII)
    return int(digits[0]) if digits else 0


def gpus_of(gres: str) -> dict[str, int]:
    """`gpu:a100:4(S:0-1),nvme:1` as {"a100": 4}."""
    found: dict[str, int] = {}
    for kind, count in re.findall(r"(?:^|,)gpu\b(?::([A-Za-z][^:,(]*))?(?::(\d+))?", gres):
        found[kind] = found.get(kind, 0) + int(count or 1)
    return found


def minutes(limit: str) -> float:
    """`1-12:00:00`, `2:30:00`, `30:00`, `infinite` as sinfo writes them; what is no time limits nothing."""
    found = re.fullmatch(r"((\d{1,9})-)?((\d{1,9}):)?(\d{1,9}):(\d{1,9})", limit, re.ASCII)
    if not found:
        return math.inf
    days, hours, mins, seconds = (int(found[i] or 0) for i in (2, 4, 5, 6))
    return days * 1440 + hours * 60 + mins + seconds / 60


@dataclass(frozen=True)
class Site:
    cluster: Cluster
    nodes: Sequence[Nodes]

    @cached_property
    def partitions(self) -> list[str]:
        return list(dict.fromkeys(group.partition for group in self.nodes))

    @cached_property
    def ours(self) -> list[Nodes]:
        """Where the jobs can go."""
        if self.cluster.partition is None:
            return [group for group in self.nodes if group.is_default]
        return [group for group in self.nodes if group.partition in self.cluster.partition.split(",")]

    @property
    def where(self) -> str:
        """In words."""
        return " or ".join(dict.fromkeys(group.partition for group in self.ours))

    def findings(self) -> Iterator[Finding]:
        cluster = self.cluster
        yield self.partition()
        if self.ours:
            job, node = f"a job in {self.where} may take", f"a node of {self.where} has"
            yield self.amount("time_min", cluster.time_min, lambda group: group.minutes, f"{job} %s minutes")
            yield self.amount(
                "mem_gb", cluster.mem_gb, lambda group: math.floor(group.mb / 102.4) / 10, f"{node} %s GB"
            )
            yield self.amount("cpus", cluster.cpus, lambda group: group.cpus, f"{node} %s")
            yield from self.gpus(node)
            yield from self.constraint()
            yield from self.together()
        yield from self.reservation()
        yield from accounts(cluster)

    def partition(self) -> Finding:
        named, known = self.cluster.partition, f"there are {listed(self.partitions)}"
        for name in named.split(",") if named else ():
            if name not in self.partitions:
                line = mine(f"partition: {nearest(name, self.partitions)}")
                return bad("partition", f"cluster.partition={named}: there is no {name}; {known}", line)
        if not self.ours:
            return bad(
                "partition", f"no partition is the default one; {known}", mine(f"partition: {self.partitions[0]}")
            )
        total = sum(group.count for group in self.ours)
        ready = sum(group.count for group in self.ours if group.take_jobs)
        text = f"{self.where}{'' if named else ', the default one'}: {ready} of {total} nodes take jobs"
        if ready:
            return good("partition", text)
        first, *rest = [*self.others(lambda group: group.take_jobs), "sinfo -R  (says why)"]
        return bad("partition", text, first.removeprefix("or  "), *rest)

    def amount(self, key: str, wanted: float, of: Callable[[Nodes], float], text: str, gres: str = "") -> Finding:
        """Is there so much of it? `gres`: how cluster.gres asks for it, if it does."""
        most = max(map(of, self.ours))
        found = f"cluster.{key}={wanted:g}; {text % ('any number of' if math.isinf(most) else f'{most:g}')}"
        if wanted <= most:
            return good(key, found)
        lines = [mine(f"{key}: {most:g}"), *([mine(f"gres: {gres}:{most:g}")] if gres else [])]
        return bad(key, f"{found} at most", *lines, *self.others(lambda group: of(group) >= wanted))

    def others(self, fits: Callable[[Nodes], bool]) -> list[str]:
        """Advice: other partitions that would do."""
        names = dict.fromkeys(group.partition for group in self.nodes if group not in self.ours and fits(group))
        return [f"or  {mine(f'partition: {name}')}" for name in names][:2]

    def gpus(self, node: str) -> Iterator[Finding]:
        """`cluster.gres` may name a type."""
        if not self.cluster.gpus:
            return
        kinds = sorted({kind for group in self.ours for kind in group.gpus if kind})
        for kind, count in self.asked.items():
            if kind and kind not in kinds:
                found = f"cluster.gres={self.cluster.gres}: {node} {listed(kinds) if kinds else 'no GPUs with names'}"
                line = mine(f"gres: gpu:{nearest(kind, kinds)}:{count}" if kinds else "gres: null")
                yield bad("gpus", found, line, *self.others(lambda group, kind=kind: kind in group.gpus))  # type: ignore[misc]
            else:
                gres = f"gpu:{kind}" if kind else ""
                yield self.amount("gpus", count, lambda group, kind=kind: group.gpus_like(kind), f"{node} %s", gres)  # type: ignore[misc]

    @property
    def asked(self) -> dict[str, int]:
        """GPUs, by type."""
        return gpus_of(self.cluster.gres or f"gpu:{self.cluster.gpus}")

    def constraint(self) -> Iterator[Finding]:
        asked = self.cluster.constraint
        if asked is None:
            return
        there = sorted({word for group in self.ours for word in group.features})
        unknown = [word for word in re.findall(r"[A-Za-z_][\w.-]*", asked) if word not in there]
        if unknown:
            found = f"cluster.constraint={asked}: no node of {self.where} is {unknown[0]}; they are {listed(there) or 'nothing'}"
            yield bad("constraint", found, mine(f"constraint: {nearest(unknown[0], there)}"))
        else:
            yield good("constraint", f"there are nodes that are {asked}")

    def together(self) -> Iterator[Finding]:
        """Each may be there, and not in one node."""
        asked, mb = self.asked if self.cluster.gpus else {}, self.cluster.mem_gb * 1024
        fits = [
            [
                group.mb >= mb,
                group.cpus >= self.cluster.cpus,
                *(group.gpus_like(kind) >= n for kind, n in asked.items()),
            ]
            for group in self.ours
        ]
        if all(any(each) for each in zip(*fits, strict=True)) and not any(map(all, fits)):
            what = f"cpus={self.cluster.cpus}, mem_gb={self.cluster.mem_gb:g} and gpus={self.cluster.gpus}"
            line = mine("mem_gb: less; or less of cpus, or of gpus")
            yield bad("together", f"no node of {self.where} has {what} at once", line, "sinfo -N -o '%N %c %m %G'")

    def reservation(self) -> Iterator[Finding]:
        named = self.cluster.reservation
        answer = ask("scontrol", "show", "reservation", "-o")[0] if named else None
        if named is None or answer is None:
            return
        names = re.findall(r"ReservationName=(\S+)", answer)
        if named in names:
            yield good("reservation", f"{named} is there")
        else:
            found = f"cluster.reservation={named} is not there; there is {listed(names) or 'none'}"
            yield bad("reservation", found, mine(f"reservation: {nearest(named, names)}"))


def accounts(cluster: Cluster) -> Iterator[Finding]:
    """Account, QOS, and how many jobs one may have."""
    settings = config() or {}
    arrays = [f"arrays of up to {max_array()} jobs"] if "MaxArraySize" in settings else []
    where = [f"user={who()}", *([f"cluster={settings['ClusterName']}"] if "ClusterName" in settings else [])]
    answer, problem = None, "this cluster keeps no accounts"
    if not is_bare(settings):
        fields = "format=Account,QOS,MaxSubmitJobs,GrpSubmitJobs"
        answer, problem = ask("sacctmgr", "-n", "-P", "show", "assoc", *where, fields)
    if answer is None:
        yield note("accounting", f"none ({problem}): fine, the store knows how runs ended")
        yield good("limits", "; ".join(arrays) or "none are known")
        return
    rows = [row for line in answer.splitlines() if len(row := line.split("|")) == 4]
    enforced = settings.get("AccountingStorageEnforce", "")
    yield from among("account", cluster.account, [row[0] for row in rows], "associations" in enforced)
    yield from among(
        "qos", cluster.qos, sorted({name for row in rows for name in row[1].split(",") if name}), "qos" in enforced
    )
    ours = [row for row in rows if row[0] == (cluster.account or row[0])]
    most = [int(limit) for row in ours for limit in row[2:] if is_number(limit)]
    text = f"{min(most)} jobs of yours at once, more wait for the next launch" if most else "no limit on your own jobs"
    yield good("limits", "; ".join([*arrays, text]))


def is_bare(settings: dict[str, str]) -> bool:
    """Does nobody keep accounts?"""
    return settings.get("AccountingStorageType", "").endswith("/none")


def among(key: str, named: str | None, there: Sequence[str], enforced: bool) -> Iterator[Finding]:
    """Is the account, or the QOS, one that the user may use? Clusters that do not enforce it take any."""
    known = f"you may use {listed(there) or 'none'}"
    if named in there or (named is None and (there or not enforced or key == "qos")):
        yield good(key, f"{named} is yours" if named else known)
    elif named is None:
        yield bad(key, f"this cluster takes only jobs of an {key}, and {known}", "ask the cluster's people for one")
    else:
        line = mine(f"{key}: {nearest(named, there)}")
        found = f"cluster.{key}={named} is none of yours; {known}"
        yield bad(key, found, line) if enforced else note(key, f"{found}. This cluster does not mind", line)


def nearest(word: str, there: Sequence[str]) -> str:
    """The one that was most likely meant; null if there are none."""
    return (difflib.get_close_matches(word, there, n=1, cutoff=0.0) or ["null"])[0]


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def commands() -> Iterator[Finding]:
    """Do SLURM's commands answer, and how fast? Each asks a little of what a launch and `status` ask."""
    asked = {"sinfo": ("-h",), "squeue": ("-h", "-u", who()), "scontrol": ("show", "config")}
    asked |= {} if is_bare(config() or {}) else {"sacct": ("-n", "-X", "--starttime=now")}
    took = {}
    for program, arguments in asked.items():
        began = time.monotonic()
        answer, problem = ask(program, *arguments)
        if answer is None:
            yield unanswered(program, problem)
        else:
            took[program] = time.monotonic() - began
    text = ", ".join(f"{program} {seconds:.2f} s" for program, seconds in took.items())
    yield (
        note("slurm", f"answers slowly: {text}")
        if max(took.values(), default=0) > SLOW
        else good("slurm", f"answers: {text}")
    )


def unanswered(program: str, problem: str) -> Finding:
    if program == "sacct":
        return note("sacct", f"{problem}: fine, the store knows how runs ended")
    return bad(program, problem, "scontrol ping  (says which controllers are up)")
