"""The doctor: tries the user's settings for a cluster, and says what is wrong with them and which line mends it.

First what this machine can tell (`sweeps.doctor.site`, and here), then what a probe with exactly these settings meets where
jobs run (`sweeps.doctor.probe_job`). All that is written lies in STORE/doctor/ and goes again, but for logs where something failed.
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

from mmprompt.runs.config import ConfigError
from mmprompt.runs.deployment import ROOT, Deployment, backbone_file, deployment_of, store_folder
from mmprompt.runs.files import StoreError, follow_mode, make_folder
from mmprompt.runs.identity import checksum_of, config_of
from mmprompt.runs.store import Store
from sweeps.doctor import probe
from sweeps.doctor.probe import MINE, Finding, bad, good, note
from sweeps.doctor.probe_job import SHARED, Findings, LaunchSettings, LocalProbe, SlurmProbe
from sweeps.doctor.site import SINFO, Site, all_nodes, commands, unanswered
from sweeps.grid.compose import Composer, parse
from sweeps.grid.limits import points_allowed
from sweeps.jobs import slurm

CONF = ROOT / "conf"
LITTLE, ENOUGH = 100e6, 5e9  # bytes free on the store's file system: too few, and so many that nothing is said
INODES = 1000
ONE_MACHINE = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "ramfs", "overlay")  # file systems
UNKNOWN = "0" * 64  # stands for the checksum of a backbone that is not there


def doctor(overrides: Sequence[str]) -> int:
    """Returns 0 if nothing failed, 1 if something did, 130 if interrupted. Raises ConfigError for what cannot be composed."""
    settings, report = compose(overrides), Findings()
    print(f"doctor: what a launch would meet here ({' '.join(overrides) or 'no overrides'})")
    report.heading(f"On this machine, {socket.gethostname()}")
    kind = ask_scheduler(settings, report)
    ask_home(settings, report)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(ending, signal.default_int_handler)  # as Ctrl-C
    try:
        with folder_in(settings.store, report, kind) as folder:
            if folder is not None and kind is not None:
                (SlurmProbe if kind == "slurm" else LocalProbe)(settings, folder, report).examine()
    except KeyboardInterrupt:
        return 130
    return end(report)


def end(report: Findings) -> int:
    failed, total = report.failed, len(report.grades)
    if not failed:
        print(f"\nAll is well, {total} checks. Next: python -m sweeps plan length")
        return 0
    print(f"\n{len(failed)} of {total} checks failed: {', '.join(failed)}. Mend the first one first,")
    print(f"then call the doctor again. Your own lines go into {MINE}.")
    return 1


def compose(overrides: Sequence[str]) -> LaunchSettings:
    """What a launch with these overrides would go by. A backbone that is not there is no error yet."""
    given, most = {}, points_allowed(overrides, CONF)
    for text in overrides:
        key, values = parse(text, CONF, most)
        if len(values) > 1:
            raise ConfigError(f"{text!r} gives {len(values)} values, and a probe is one job; give one")
        given[key] = values[0]
    composed = Composer(CONF).compose(given)
    deployment = deployment_of(composed)
    checksum, problem = checksum_in(deployment)
    store = Store(store_folder(deployment.paths.runs))
    return LaunchSettings(deployment, store, config_of(composed, checksum or UNKNOWN), checksum, problem)


def checksum_in(deployment: Deployment) -> tuple[str | None, str]:
    """Of the backbone, or None and what is wrong with it."""
    try:
        return checksum_of(deployment), ""
    except ConfigError as error:
        return None, str(error)
    except OSError as error:
        return None, f"{backbone_file(deployment)} cannot be read: {error.strerror}"


def ask_scheduler(settings: LaunchSettings, report: Findings) -> str | None:
    """Who takes the jobs? None: it should be SLURM, and it does not answer."""
    cluster = settings.deployment.cluster
    try:
        kind, why = slurm.choose(cluster.kind)
    except slurm.NoSlurmError as error:
        silence(report, f"SLURM does not answer: {error.problem}; SLURM_CONF={os.environ.get('SLURM_CONF', '')}")
        return None
    report.say(good("scheduler", f"{'SLURM' if kind == 'slurm' else 'local processes'} ({why})"))
    if kind == "local":
        if cluster.python or cluster.setup:
            report.say(note("setup", "cluster.python and cluster.setup are for SLURM jobs: they are not used here"))
        return kind
    report.say(*commands())
    answer, problem = slurm.ask("sinfo", *SINFO)
    if answer is None:
        silence(report, problem)
        return None
    report.say(*Site(cluster, all_nodes(answer)).findings())
    return kind


def silence(report: Findings, problem: str) -> None:
    report.say(unanswered("sinfo", problem))
    report.say(note("node", "not asked, for want of SLURM; cluster=local looks at this machine"))


def ask_home(settings: LaunchSettings, report: Findings) -> None:
    """What has nothing to do with SLURM: the key of W&B, the backbone."""
    host, has = probe.wandb_host(), has_key()
    if settings.deployment.tracking.mode == "online" and not has:
        found = f"tracking=online, and there is no key for {host}: records would stay offline"
        report.say(note("key", found, "wandb login"))
    elif settings.deployment.tracking.mode == "online":
        report.say(good("key", f"there is one for {host}; jobs inherit it, and no file of ours holds it"))
    else:
        there = "there is one" if has else "there is none"
        report.say(good("key", f"tracking={settings.deployment.tracking.mode} needs none ({there} for {host})"))
    if settings.checksum is None:
        report.say(bad("backbone", settings.problem, "paths.backbone=/path/of/the/checkpoint"))


def has_key() -> bool:
    with contextlib.suppress(OSError, NetrcParseError):
        if netrc().authenticators(probe.wandb_host()):
            return True
    return "WANDB_API_KEY" in os.environ


@contextlib.contextmanager
def folder_in(store: Store, report: Findings, kind: str | None) -> Iterator[Path | None]:
    """A folder in the store for the probe. None, and a finding: there can be none."""
    was = next(folder for folder in (store.root, *store.root.parents) if folder.is_dir())
    folder = store.probes / secrets.token_hex(4)
    try:
        follow_mode(store.root)
        make_folder(folder)
        probe.write(folder / "megabyte", "x" * 2**20)
        (folder / "megabyte").unlink()
        report.say(*disk(store, folder, kind), *probe.files({"folder": folder, "store": store.root}))
    except OSError as error:
        report.say(bad("store", f"{store.root} cannot be written: {error.strerror}", SHARED))
        report.say(note("node", "not asked, for want of a store"))
        clear(folder, was)
        yield None
        return
    try:
        yield folder
    except StoreError as error:
        report.say(bad("store", str(error), SHARED))
    finally:
        logs = list(folder.glob("*_log.*")) if report.failed else []
        clear(folder, was, [*logs, *folder.glob("*_submission.sh")] if logs else [])
        if logs:
            print(f"\nThe probe's script and log stay in {folder}")


def clear(folder: Path, was: Path, stays: Sequence[Path] = ()) -> None:
    """Removes what is in the folder, it, and those it lies in up to one that was there before."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path not in stays:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        while folder != was:
            folder.rmdir()
            folder = folder.parent


def disk(store: Store, folder: Path, kind: str | None) -> Iterator[Finding]:
    """Of the store: how it is mounted, and the room in it."""
    system, mounted = mount_of(folder)
    if kind != "local":
        found = f"{store.root} is on {mounted} ({system})"
        alone = f"{found}, which is mostly one machine's own; the node will tell"
        yield note("mount", alone) if system in ONE_MACHINE else good("mount", found)
    there = os.statvfs(folder)
    free, counts = there.f_bavail * there.f_frsize, there.f_files > 0  # some file systems make inodes as they need them
    found = f"{free / 1e9:.1f} GB" + (f" and {there.f_favail:,} files" if counts else "") + f" more fit on {mounted}"
    if free < LITTLE or (counts and there.f_favail < INODES):
        more = "python -m sweeps clean  (frees what nobody needs)"
        yield bad("space", found, "export MMPROMPT_RUNS=a folder with more room", more)
    else:
        yield note("space", found) if free < ENOUGH else good("space", found)


def mount_of(folder: Path) -> tuple[str, str]:
    """Kind and place of the file system that holds it."""
    found, path = ("unknown", "/"), folder.resolve()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        deployment = words[4].replace("\\040", " ")
        if path.is_relative_to(deployment) and len(deployment) >= len(found[1]):
            found = words[words.index("-") + 1], deployment
    return found
