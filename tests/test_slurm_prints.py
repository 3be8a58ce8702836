"""What SLURM's programs print is read however odd it is; a line that is none of ours, or not as expected, is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_causes import answers, create, submit
from test_causes import store as store  # a fixture

from mmprompt.runs.files import StoreError
from mmprompt.runs.processes import who
from mmprompt.runs.store import Store
from sweeps.doctor.site import all_nodes, minutes, number
from sweeps.jobs import slurm
from sweeps.jobs.accounting import ended, records
from sweeps.jobs.arrays import numbers
from sweeps.jobs.batch import Batch, batches
from sweeps.jobs.slurm import is_number, rows
from sweeps.jobs.submission import NoAnswerError, own_settings, sbatch, taken

MOST = 200  # tasks of an array
NEAR = st.text(st.sampled_from("0123456789-,:%.[]|_ ²٣"))  # text as SLURM might print it
ANY = st.text() | NEAR


@given(ANY)
def test_no_text_is_too_odd_for_a_list_of_tasks(text: str) -> None:
    assert all(0 <= task < MOST for task in numbers(text, MOST))


@given(st.lists(st.tuples(st.integers(0, MOST), st.integers(0, MOST), st.integers(1, 9)), min_size=1), st.booleans())
def test_a_list_of_tasks_has_the_numbers_that_it_says(parts: list[tuple[int, int, int]], limited: bool) -> None:
    """Of first, last and step; a number alone, and a range, are written shorter."""
    text = ",".join(f"{a}" if a == b else f"{a}-{b}" + (f":{step}" if step > 1 else "") for a, b, step in parts)
    wanted = {task for a, b, step in parts for task in range(a, b + 1, step) if task < MOST}
    assert set(numbers(text + ("%7" if limited else ""), MOST)) == wanted


@given(ANY, st.integers())
def test_no_line_of_squeue_or_sinfo_ends_a_verb(text: str, where: int) -> None:
    line = f"300_0|RUNNING|gn1|1:00|me|None|name|/script\n{text}\n"
    shown = list(rows(line[where % len(line) :] + line))
    assert "300_0" in [row.id for row in shown]
    all_nodes(line[where % len(line) :] + text)
    assert number(text) >= 0 and minutes(text) >= 0


@given(ANY)
def test_a_number_is_what_int_reads(text: str) -> None:
    if is_number(text):
        assert str(int(text)) == (text.lstrip("0") or "0")
    assert not is_number("²") and not is_number("٣") and not is_number("") and is_number("07")


@pytest.mark.parametrize(
    ("shown", "wanted"), [("300_[0-4:2%13]", {0, 2, 4}), ("300_[0,2,...,3...%120]", {0, 2}), ("300_[1,4-5]", {1, 4, 5})]
)
def test_tasks_that_accounting_lists_with_steps_or_cut_short_were_cancelled(
    store: Store, tmp_path: Path, shown: str, wanted: set[int]
) -> None:
    folder = submit(store, [[create(store, seed)] for seed in range(6)])
    answers(tmp_path, "sacct", {shown: "mmprompt-1-abc.0|CANCELLED by 0|0:0|None"})
    known = ended({f"300_{task}": Batch(folder) for task in range(6)})
    assert {int(job.split("_")[1]) for job, one in known.items() if one.state} == wanted


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """Of three jobs."""
    return Batch(submit(Store(tmp_path_factory.mktemp("some") / "runs"), [["a"], ["b"], ["c"]]))


@given(st.lists(ANY, max_size=4))
def test_no_line_of_sacct_ends_a_verb(batch: Batch, fields: list[str]) -> None:
    ours = f"300_2|FAILED|0:1|None|{batch.job_name}.0|/script"
    lines = ["|".join(("300_[0-1]", *fields)), "|".join(fields), ours]
    assert ("300_2", "FAILED") in [(job, one.state) for job, one in records(lines, {"300": batch})]


def test_a_renamed_job_is_known_by_its_script_and_an_id_alone_is_a_strangers(store: Store, tmp_path: Path) -> None:
    folder = submit(store, [[create(store, seed)] for seed in range(4)])
    script = f"{store.root}/jobs/1/0/array_submission.sh"
    lines = [
        f"300_0|RUNNING|gn1|1:00|{who()}|None|a|new name|{script}",
        f"300_1|RUNNING|gn1|1:00|{who()}|None|mmprompt-1-abc|/home/me/train.sh",  # a new cluster has counted to 300 again
        f"300_2|RUNNING|gn1|1:00|somebody|None|x|{script}",
        f"301_3|RUNNING|gn1|1:00|{who()}|None|x|{script}",
        "what is this?",
        f"999|RUNNING|gn1|1:00|{who()}|None|mmprompt-1-abc.0|/script",  # ours by its name, whatever id we noted
    ]
    program(tmp_path, "squeue", lines)
    found = slurm.jobs([Batch(folder)]).jobs
    assert {number: job.id for (_, number), job in found.items()} == {0: "999"}
    program(tmp_path, "squeue", lines[:-1])
    found = slurm.jobs([Batch(folder)]).jobs
    assert {number: job.id for (_, number), job in found.items()} == {0: "300_0"}


def program(folder: Path, name: str, lines: list[str]) -> None:
    """One that prints these, and notes how it was called."""
    (folder / f"{name}.said").write_text("".join(f"{line}\n" for line in lines))
    file = folder / "bin" / name
    reads = f'while read -r line; do echo "$line"; done < {folder}/{name}.said'
    notes = f'printf "%s\\n" "$*" >> {folder}/{name}.asked'
    file.write_text(f"#!/bin/sh\n{notes}\n{reads}\n")
    file.chmod(0o755)


def test_accounting_tells_of_a_renamed_job_and_not_of_another_clusters(store: Store, tmp_path: Path) -> None:
    folder = submit(store, [[create(store, seed)] for seed in range(2)])
    call = f"sbatch --parsable {store.root}/jobs/1/0/array_submission.sh"
    program(
        tmp_path,
        "sacct",
        [f"300_0|TIMEOUT|0:0|None|new|name|{call}", "300_1|TIMEOUT|0:0|None|new|sbatch /elsewhere/jobs/1/0/x.sh"],
    )
    known = ended({f"300_{task}": Batch(folder) for task in range(2)})
    assert [known[job].state for job in ("300_0", "300_1")] == ["TIMEOUT", ""]


def test_a_sacct_that_does_not_know_of_scripts_is_asked_without(store: Store, tmp_path: Path) -> None:
    folder = submit(store, [[create(store, 1)]])
    file = tmp_path / "bin/sacct"
    refuses = 'echo "sacct: error: Invalid field requested: \\"SubmitLine\\"" >&2; exit 1'
    knows = 'echo "300|TIMEOUT|0:0|None|mmprompt-1-abc.0"'
    file.write_text(f'#!/bin/sh\ncase "$*" in *SubmitLine*) {refuses};; *) {knows};; esac\n')
    file.chmod(0o755)
    assert ended({"300": Batch(folder)})["300"].state == "TIMEOUT"


def test_a_store_with_thousands_of_arrays_asks_with_arguments_that_the_kernel_takes(
    store: Store, tmp_path: Path
) -> None:
    folder = submit(store, [[create(store, 1)]])
    for first in range(1, 7000):
        (folder / str(first)).mkdir()
    for name in ("squeue", "sacct"):
        program(tmp_path, name, [])
    answer = slurm.jobs(batches(store))
    assert answer.jobs == {} and answer.problem == "" and not answer.unknown
    many = {f"{10**9 + identity}_0": Batch(folder) for identity in range(20000)}
    assert ended(many) == {}
    words = [word for line in (tmp_path / "sacct.asked").read_text().splitlines() for word in line.split()]
    asked = {identity for word in words if word[0].isdigit() for identity in word.split(",")}
    assert asked == {job.split("_")[0] for job in many} and max(map(len, words)) < 128 * 1024


def test_of_a_user_whom_this_machine_does_not_know_squeue_is_asked_all_the_same(store: Store, tmp_path: Path) -> None:
    """It would leave such a one out without a word: then all that he has would seem to be over."""
    folder = submit(store, [[create(store, 1)]])
    frozen = json.loads((folder / "batch.json").read_text())
    program(tmp_path, "squeue", ["300|RUNNING|gn1|1:00|gone|None|mmprompt-1-abc.0|/script"])
    for user, filtered in ((who(), f"-u {who()} "), ("gone", "")):
        (folder / "batch.json").write_text(json.dumps(frozen | {"user": user}))
        assert len(slurm.jobs([Batch(folder)]).jobs) == 1
        assert (tmp_path / "squeue.asked").read_text().splitlines()[-1].startswith(f"-h {filtered}-o ")


def test_tasks_that_wait_are_one_line_of_squeue_and_each_is_queued(store: Store, tmp_path: Path) -> None:
    folder = submit(store, [[create(store, seed)] for seed in range(7)])
    waits = "PENDING||1:00:00|me|Priority|mmprompt-1-abc.0|/script"
    program(
        tmp_path,
        "squeue",
        [f"300_[0-4:2,6,70%13]|{waits}", f"300_1|{waits}", "300_5|RUNNING|gn1|9|me|None|mmprompt-1-abc.0|"],
    )
    found = {number: (job.id, job.word) for (_, number), job in slurm.jobs([Batch(folder)]).jobs.items()}
    assert found == {**{task: (f"300_{task}", "PENDING") for task in (0, 1, 2, 4, 6)}, 5: ("300_5", "RUNNING")}


# sbatch


def test_the_id_is_the_last_line_that_is_one_whatever_is_printed_around_sbatch() -> None:
    assert taken("job 424242 of project p\n1234\nSubmitted batch job soon\n\n") == "1234"
    assert taken("17 jobs\n 67108871;east \nquota: 9 of 10\n") == "67108871"
    for said in ("", "thank you\n", "Submitted batch job 12\n", "12a\n"):
        with pytest.raises(NoAnswerError) as error:
            taken(said)
        assert "manually" not in str(error.value) and "sbatch printed no" in str(error.value)


def test_sbatch_keeps_what_slurm_knows_the_user_by_and_nothing_else_of_the_shell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = {"SLURM_CONF": "/etc/x", "SLURM_JWT": "token", "SLURM_SACK_SOCKET": "/run/x", "MUNGE_SOCKET": "/run/y"}
    gone = {"SLURM_JOB_ID": "7", "SLURM_CLUSTERS": "nowhere", "SBATCH_PARTITION": "p", "SRUN_DEBUG": "1"}
    for key, value in (kept | gone).items():
        monkeypatch.setenv(key, value)
    given = own_settings()
    assert kept.items() <= given.items() and not gone.keys() & given.keys()


def test_an_sbatch_that_is_not_there_is_one_sentence_and_a_disk_that_takes_no_script_another(
    store: Store, tmp_path: Path
) -> None:
    from submitit import SlurmExecutor

    (tmp_path / "bin/srun").touch(mode=0o755)
    executor = SlurmExecutor(tmp_path / "array", python="python")
    executor.update_parameters(cpus_per_task=1, additional_parameters={})
    with pytest.raises(ValueError, match="sbatch cannot be called: No such file"):
        sbatch(executor, tmp_path, "nothing", 1, None, None)
    executor.folder = tmp_path / "bin/srun/array"
    with pytest.raises(StoreError, match=r"array_submission\.sh cannot be written"):
        sbatch(executor, tmp_path, "nothing", 1, None, None)
