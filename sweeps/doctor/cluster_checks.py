"""Checks of the user's cluster settings against what sinfo, scontrol and sacctmgr report about the cluster.

A cluster without accounting reports less, which is no fault. Limits that these programs do not report are found by sbatch itself.
"""

from __future__ import annotations

import difflib
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from mmprompt.runs.files import is_number
from mmprompt.runs.processes import who
from mmprompt.settings.deployment import Cluster
from sweeps.doctor.findings import Finding, bad, good, mine, note
from sweeps.jobs.slurm import ask, config, max_array

SLOW = 5.0  # seconds; a program of SLURM that takes longer to answer gets a note
SINFO = ("-h", "-e", "-o", "%P|%a|%l|%D|%m|%c|%G|%f|%t")  # arguments of sinfo for the text that `all_nodes` reads
READY = ("idle", "mix", "alloc", "comp", "resv", "plnd")  # states of nodes that take jobs, in sinfo's short form
SHOWN = 8  # how many names are listed


@dataclass(frozen=True)
class Nodes:
    """The nodes of one partition that are alike."""

    partition: str
    is_default: bool
    is_up: bool
    minutes: float  # the partition's time limit
    count: int
    mb: int  # of each node, as are cpus and gpus
    cpus: int
    gpus: dict[str, int]  # by type; "" for GPUs without a type
    features: frozenset[str]
    state: str

    @property
    def take_jobs(self) -> bool:
        return self.is_up and self.state.startswith(READY)

    def gpus_of_type(self, kind: str) -> int:
        """GPUs of this type in each node; of any type if `kind` is empty."""
        return self.gpus.get(kind, 0) if kind else sum(self.gpus.values())


def all_nodes(text: str) -> list[Nodes]:
    """The nodes in the output of `sinfo` with the arguments SINFO; lines of another form are skipped."""
    groups = []
    for line in text.splitlines():
        if line.count("|") < 8:
            continue
        name, up, limit, count, mb, cpus, gres, features, state = line.split("|", 8)
        words = frozenset(features.split(",")) - {"(null)"}
        total, is_up, gpus = number(count), up == "up", gpus_of(gres)
        name, is_default = name.rstrip("*"), name.endswith("*")
        groups.append(
            Nodes(name, is_default, is_up, minutes(limit), total, number(mb), number(cpus), gpus, words, state)
        )
    return groups


def number(text: str) -> int:
    """The number in `4000`, or in `4000+`, which sinfo writes if the nodes of a line differ; 0 for other texts."""
    digits = re.match(r"\d{1,18}", text, re.ASCII)
    return int(digits[0]) if digits else 0


def gpus_of(gres: str) -> dict[str, int]:
    """GPUs by type: {"a100": 4} for `gpu:a100:4(S:0-1),nvme:1`."""
    gpus: dict[str, int] = {}
    for kind, count in re.findall(r"(?:^|,)gpu\b(?::([A-Za-z][^:,(]*))?(?::(\d+))?", gres):
        gpus[kind] = gpus.get(kind, 0) + int(count or 1)
    return gpus


def minutes(limit: str) -> float:
    """Minutes of a time limit as sinfo writes it: `1-12:00:00`, `2:30:00`, `30:00`; infinite for `infinite` and other words."""
    match = re.fullmatch(r"((\d{1,9})-)?((\d{1,9}):)?(\d{1,9}):(\d{1,9})", limit, re.ASCII)
    if not match:
        return math.inf
    days, hours, mins, seconds = (int(match[i] or 0) for i in (2, 4, 5, 6))
    return days * 1440 + hours * 60 + mins + seconds / 60


@dataclass(frozen=True)
class Site:
    """The cluster settings, and the nodes that SLURM has."""

    cluster: Cluster
    nodes: Sequence[Nodes]

    @cached_property
    def partitions(self) -> list[str]:
        return list(dict.fromkeys(group.partition for group in self.nodes))

    @cached_property
    def ours(self) -> list[Nodes]:
        """The nodes of the partitions that the jobs are sent to."""
        if self.cluster.partition is None:
            return [group for group in self.nodes if group.is_default]
        return [group for group in self.nodes if group.partition in self.cluster.partition.split(",")]

    @property
    def where(self) -> str:
        """The names of these partitions, for messages."""
        return " or ".join(dict.fromkeys(group.partition for group in self.ours))

    def findings(self) -> Iterator[Finding]:
        """All checks of the settings against the cluster."""
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
        named, existing = self.cluster.partition, f"there are {listed(self.partitions)}"
        for name in named.split(",") if named else ():
            if name not in self.partitions:
                line = mine(f"partition: {nearest(name, self.partitions)}")
                return bad("partition", f"cluster.partition={named}: there is no {name}; {existing}", line)
        if not self.ours:
            return bad(
                "partition", f"no partition is the default one; {existing}", mine(f"partition: {self.partitions[0]}")
            )
        total = sum(group.count for group in self.ours)
        ready = sum(group.count for group in self.ours if group.take_jobs)
        text = f"{self.where}{'' if named else ', the default one'}: {ready} of {total} nodes take jobs"
        if ready:
            return good("partition", text)
        first, *rest = [*self.others(lambda group: group.take_jobs), "sinfo -R  (says why)"]
        return bad("partition", text, first.removeprefix("or  "), *rest)

    def amount(self, key: str, wanted: float, of: Callable[[Nodes], float], text: str, gres: str = "") -> Finding:
        """Checks that a node, or a job's time limit, has as much of something as the setting `key` wants.

        `of`: how much of it nodes have; `text`: a sentence with %s for the most that they have; `gres`: the beginning of a line
        for cluster.gres that asks for it, if there is one.
        """
        most = max(map(of, self.ours))
        found = f"cluster.{key}={wanted:g}; {text % ('any number of' if math.isinf(most) else f'{most:g}')}"
        if wanted <= most:
            return good(key, found)
        lines = [mine(f"{key}: {most:g}"), *([mine(f"gres: {gres}:{most:g}")] if gres else [])]
        return bad(key, f"{found} at most", *lines, *self.others(lambda group: of(group) >= wanted))

    def others(self, fits: Callable[[Nodes], bool]) -> list[str]:
        """Advice: at most two lines that choose another partition, one with nodes that fit."""
        names = dict.fromkeys(group.partition for group in self.nodes if group not in self.ours and fits(group))
        return [f"or  {mine(f'partition: {name}')}" for name in names][:2]

    def gpus(self, node: str) -> Iterator[Finding]:
        """Checks the number of GPUs, and their types, which `cluster.gres` may name."""
        if not self.cluster.gpus:
            return
        kinds = sorted({kind for group in self.ours for kind in group.gpus if kind})
        for kind, count in self.requested_gpus.items():
            if kind and kind not in kinds:
                found = f"cluster.gres={self.cluster.gres}: {node} {listed(kinds) if kinds else 'no GPUs with names'}"
                line = mine(f"gres: gpu:{nearest(kind, kinds)}:{count}" if kinds else "gres: null")
                yield bad("gpus", found, line, *self.others(lambda group, kind=kind: kind in group.gpus))  # type: ignore[misc]
            else:
                gres = f"gpu:{kind}" if kind else ""
                yield self.amount("gpus", count, lambda group, kind=kind: group.gpus_of_type(kind), f"{node} %s", gres)  # type: ignore[misc]

    @property
    def requested_gpus(self) -> dict[str, int]:
        """The GPUs that the settings ask for, by type."""
        return gpus_of(self.cluster.gres or f"gpu:{self.cluster.gpus}")

    def constraint(self) -> Iterator[Finding]:
        constraint = self.cluster.constraint
        if constraint is None:
            return
        features = sorted({word for group in self.ours for word in group.features})
        unknown = [word for word in re.findall(r"[A-Za-z_][\w.-]*", constraint) if word not in features]
        if unknown:
            found = (
                f"cluster.constraint={constraint}: no node of {self.where} is {unknown[0]}; "
                f"they are {listed(features) or 'nothing'}"
            )
            yield bad("constraint", found, mine(f"constraint: {nearest(unknown[0], features)}"))
        else:
            yield good("constraint", f"there are nodes that are {constraint}")

    def together(self) -> Iterator[Finding]:
        """Checks that one node has the memory, the cores and the GPUs at once."""
        gpus, mb = self.requested_gpus if self.cluster.gpus else {}, self.cluster.mem_gb * 1024
        fits = [
            [
                group.mb >= mb,
                group.cpus >= self.cluster.cpus,
                *(group.gpus_of_type(kind) >= n for kind, n in gpus.items()),
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
    """Checks the account and the QOS, and reports how many jobs the user may have."""
    settings = config() or {}
    arrays = [f"arrays of up to {max_array()} jobs"] if "MaxArraySize" in settings else []
    where = [f"user={who()}", *([f"cluster={settings['ClusterName']}"] if "ClusterName" in settings else [])]
    answer, problem = None, "this cluster keeps no accounts"
    if not has_no_accounting(settings):
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


def has_no_accounting(settings: dict[str, str]) -> bool:
    """Whether the cluster has no accounting, by its configuration."""
    return settings.get("AccountingStorageType", "").endswith("/none")


def among(key: str, named: str | None, allowed: Sequence[str], enforced: bool) -> Iterator[Finding]:
    """Checks that the user may use the named account or QOS. A cluster that does not enforce this accepts any name."""
    choice = f"you may use {listed(allowed) or 'none'}"
    if named in allowed or (named is None and (allowed or not enforced or key == "qos")):
        yield good(key, f"{named} is yours" if named else choice)
    elif named is None:
        yield bad(key, f"this cluster takes only jobs of an {key}, and {choice}", "ask the cluster's people for one")
    else:
        line = mine(f"{key}: {nearest(named, allowed)}")
        found = f"cluster.{key}={named} is none of yours; {choice}"
        yield bad(key, found, line) if enforced else note(key, f"{found}. This cluster does not enforce it", line)


def nearest(word: str, names: Sequence[str]) -> str:
    """The name that was most likely meant; `null` if there are no names."""
    return (difflib.get_close_matches(word, names, n=1, cutoff=0.0) or ["null"])[0]


def listed(names: Sequence[str]) -> str:
    """The names, separated by commas; of many names the first few and the number of the others."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def commands() -> Iterator[Finding]:
    """Checks that SLURM's programs answer, and how fast, with small queries of the kind that a launch and `status` make."""
    queries = {"sinfo": ("-h",), "squeue": ("-h", "-u", who()), "scontrol": ("show", "config")}
    queries |= {} if has_no_accounting(config() or {}) else {"sacct": ("-n", "-X", "--starttime=now")}
    took = {}
    for program, arguments in queries.items():
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
    """The finding about a program of SLURM that does not answer; for sacct it is only a note."""
    if program == "sacct":
        return note("sacct", f"{problem}: fine, the store knows how runs ended")
    return bad(program, problem, "scontrol ping  (says which controllers are up)")
