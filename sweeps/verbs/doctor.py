"""`python -m sweeps doctor`: tries the user's cluster settings, and reports each fault with the line that mends it.

It first checks what can be checked on this machine (`sweeps.doctor.cluster_checks`, and here), then runs a probe with exactly
these settings where jobs run (`sweeps.doctor.probe_job`, `slurm_probe`). It writes only into STORE/doctor/, and removes all of
it, except the logs if a check failed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
from collections.abc import Iterator, Sequence
from netrc import NetrcParseError, netrc
from pathlib import Path

from mmprompt.runs.deployment import ROOT, backbone_file, deployment_of, store_folder
from mmprompt.runs.files import StoreError, follow_mode, make_folder
from mmprompt.runs.identity import checksum_of, config_of
from mmprompt.runs.store import Store
from mmprompt.settings.deployment import Deployment
from mmprompt.settings.parsing import ConfigError
from sweeps.doctor import node_checks, training_checks
from sweeps.doctor.cluster_checks import SINFO, Site, all_nodes, commands, unanswered
from sweeps.doctor.findings import MINE, Finding, Findings, bad, good, note
from sweeps.doctor.probe_job import SHARED, LaunchSettings, LocalProbe
from sweeps.doctor.slurm_probe import SlurmProbe
from sweeps.grid.compose import Composer, parse
from sweeps.grid.limits import points_allowed
from sweeps.jobs import slurm

CONF = ROOT / "conf"
# Bytes free on the store's file system: below the first a check fails, above the second it passes.
LITTLE, ENOUGH = (
    100e6,
    5e9,
)
INODES = 1000  # that must be free on the store's file system
# File systems of a single machine.
ONE_MACHINE = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "ramfs", "overlay")
UNKNOWN = "0" * 64  # stands for the checksum of a backbone that cannot be read


def doctor(overrides: Sequence[str]) -> int:
    """Makes all checks and prints the findings.

    Returns 0 if no check failed, 1 if one did, 130 if interrupted. Raises ConfigError for overrides that cannot be composed.
    """
    settings, report = compose(overrides), Findings()
    print(f"doctor: what a launch would meet here ({' '.join(overrides) or 'no overrides'})")
    report.heading(f"On this machine, {socket.gethostname()}")
    kind = check_scheduler(settings, report)
    check_key_and_backbone(settings, report)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) != signal.SIG_IGN:  # nohup has it ignored
            signal.signal(ending, signal.default_int_handler)  # as for Ctrl-C
    try:
        with probe_folder(settings.store, report, kind) as folder:
            if folder is not None and kind is not None:
                (SlurmProbe if kind == "slurm" else LocalProbe)(settings, folder, report).run()
    except KeyboardInterrupt:
        return 130
    return conclude(report)


def conclude(report: Findings) -> int:
    """Prints how many checks failed, and what to do next. Returns the exit code."""
    failed, total = report.failed, len(report.grades)
    if not failed:
        print(f"\nAll is well, {total} checks. Next: python -m sweeps plan length")
        return 0
    print(f"\n{len(failed)} of {total} checks failed: {', '.join(failed)}. Mend the first one first,")
    print(f"then call the doctor again. Your own lines go into {MINE}.")
    return 1


def compose(overrides: Sequence[str]) -> LaunchSettings:
    """The settings of a launch with these overrides. A backbone that cannot be read is no error here; a check reports it.

    Raises ConfigError for an override that is not valid or has several values.
    """
    given, allowed = {}, points_allowed(overrides, CONF)
    for text in overrides:
        key, values = parse(text, CONF, allowed)
        if len(values) > 1:
            raise ConfigError(f"{text!r} gives {len(values)} values, and a probe is one job; give one")
        given[key] = values[0]
    composed = Composer(CONF).compose(given)
    deployment = deployment_of(composed)
    checksum, problem = backbone_checksum(deployment)
    store = Store(store_folder(deployment.paths.runs))
    return LaunchSettings(deployment, store, config_of(composed, checksum or UNKNOWN), checksum, problem)


def backbone_checksum(deployment: Deployment) -> tuple[str | None, str]:
    """The checksum of the backbone, or None and why it cannot be read."""
    try:
        return checksum_of(deployment), ""
    except ConfigError as error:
        return None, str(error)
    except OSError as error:
        return None, f"{backbone_file(deployment)} cannot be read: {error.strerror}"


def check_scheduler(settings: LaunchSettings, report: Findings) -> str | None:
    """Checks what executes the jobs, and returns it: `slurm` or `local`; None if it should be SLURM and SLURM does not answer."""
    cluster = settings.deployment.cluster
    try:
        kind, why = slurm.choose(cluster.kind)
    except slurm.NoSlurmError as error:
        report_silence(report, f"SLURM does not answer: {error.problem}; SLURM_CONF={os.environ.get('SLURM_CONF', '')}")
        return None
    report.say(good("scheduler", f"{'SLURM' if kind == 'slurm' else 'local processes'} ({why})"))
    if kind == "local":
        if cluster.python or cluster.setup:
            report.say(note("setup", "cluster.python and cluster.setup are for SLURM jobs: they are not used here"))
        return kind
    report.say(*commands())
    answer, problem = slurm.ask("sinfo", *SINFO)
    if answer is None:
        report_silence(report, problem)
        return None
    report.say(*Site(cluster, all_nodes(answer)).findings())
    return kind


def report_silence(report: Findings, problem: str) -> None:
    """Reports that SLURM does not answer, and that therefore no node was checked."""
    report.say(unanswered("sinfo", problem))
    report.say(note("node", "not checked, because SLURM does not answer; cluster=local checks this machine"))


def check_key_and_backbone(settings: LaunchSettings, report: Findings) -> None:
    """Checks what does not depend on SLURM: the key of W&B, and the backbone."""
    host, is_there = training_checks.wandb_host(), has_key()
    if settings.deployment.tracking.mode == "online" and not is_there:
        found = f"tracking=online, and there is no key for {host}: records would stay offline"
        report.say(note("key", found, "wandb login"))
    elif settings.deployment.tracking.mode == "online":
        report.say(good("key", f"there is one for {host}; jobs inherit it, and no file of ours holds it"))
    else:
        state = "there is one" if is_there else "there is none"
        report.say(good("key", f"tracking={settings.deployment.tracking.mode} needs none ({state} for {host})"))
    if settings.checksum is None:
        report.say(bad("backbone", settings.problem, "paths.backbone=/path/of/the/checkpoint"))


def has_key() -> bool:
    """Whether ~/.netrc or the environment has a key for the W&B server."""
    with contextlib.suppress(OSError, NetrcParseError):
        if netrc().authenticators(training_checks.wandb_host()):
            return True
    return "WANDB_API_KEY" in os.environ


@contextlib.contextmanager
def probe_folder(store: Store, report: Findings, kind: str | None) -> Iterator[Path | None]:
    """A folder for the probe in the store; None, and a finding, if it cannot be made. It is removed afterwards; only if a check
    failed the probe's script and logs stay."""
    existing = next(folder for folder in (store.root, *store.root.parents) if folder.is_dir())
    folder = store.probes / secrets.token_hex(4)
    try:
        follow_mode(store.root)
        make_folder(folder)
        node_checks.write(folder / "megabyte", "x" * 2**20)
        (folder / "megabyte").unlink()
        report.say(*disk(store, folder, kind), *node_checks.files({"folder": folder, "store": store.root}))
    except OSError as error:
        report.say(bad("store", f"{store.root} cannot be written: {error.strerror}", SHARED))
        report.say(note("node", "not checked, because the store cannot be written"))
        clear(folder, existing)
        yield None
        return
    try:
        yield folder
    except StoreError as error:
        report.say(bad("store", str(error), SHARED))
    finally:
        logs = list(folder.glob("*_log.*")) if report.failed else []
        clear(folder, existing, [*logs, *folder.glob("*_submission.sh")] if logs else [])
        if logs:
            print(f"\nThe probe's script and log stay in {folder}")


def clear(folder: Path, existing: Path, keep: Sequence[Path] = ()) -> None:
    """Removes what is in the folder, except `keep`; then the folder and its parents, as far as they are empty, up to `existing`."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path not in keep:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        while folder != existing:
            folder.rmdir()
            folder = folder.parent


def disk(store: Store, folder: Path, kind: str | None) -> Iterator[Finding]:
    """Checks the store's file system: how it is mounted, and how much is free."""
    system, mounted = mount_of(folder)
    if kind != "local":
        found = f"{store.root} is on {mounted} ({system})"
        alone = f"{found}, which is mostly one machine's own; the node will tell"
        yield note("mount", alone) if system in ONE_MACHINE else good("mount", found)
    stat = os.statvfs(folder)
    # Some file systems create inodes as they need them.
    free, has_limit = (
        stat.f_bavail * stat.f_frsize,
        stat.f_files > 0,
    )
    found = f"{free / 1e9:.1f} GB" + (f" and {stat.f_favail:,} files" if has_limit else "") + f" more fit on {mounted}"
    if free < LITTLE or (has_limit and stat.f_favail < INODES):
        more = "python -m sweeps clean  (frees what is not needed)"
        yield bad("space", found, "export MMPROMPT_RUNS=a folder with more room", more)
    else:
        yield note("space", found) if free < ENOUGH else good("space", found)


def mount_of(folder: Path) -> tuple[str, str]:
    """The type and the mount point of the file system that holds a folder."""
    nearest, path = ("unknown", "/"), folder.resolve()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        mount_point = fields[4].replace("\\040", " ")
        if path.is_relative_to(mount_point) and len(mount_point) >= len(nearest[1]):
            nearest = fields[fields.index("-") + 1], mount_point
    return nearest
