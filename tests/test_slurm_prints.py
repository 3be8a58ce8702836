"""Output of SLURM's programs is parsed, however strange it is; lines of other jobs and lines of any other form are ignored."""

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
from sweeps.doctor.cluster_checks import all_nodes, minutes, number
from sweeps.jobs import slurm
from sweeps.jobs.accounting import ended_jobs, records
from sweeps.jobs.arrays import task_numbers
from sweeps.jobs.batch import Batch, batches
from sweeps.jobs.slurm import is_number, squeue_rows
from sweeps.jobs.submission import NoAnswerError, sbatch, sbatch_environment, submitted_id

MOST = 200  # tasks of an array
NEAR = st.text(st.sampled_from("0123456789-,:%.[]|_ ²٣"))  # text as SLURM might print it
ANY = st.text() | NEAR


@given(ANY)
def test_any_text_can_be_parsed_as_a_list_of_tasks(text: str) -> None:
    assert all(0 <= task < MOST for task in task_numbers(text, MOST))


@given(st.lists(st.tuples(st.integers(0, MOST), st.integers(0, MOST), st.integers(1, 9)), min_size=1), st.booleans())
def test_a_list_of_tasks_is_parsed_into_its_numbers(parts: list[tuple[int, int, int]], limited: bool) -> None:
    """The parts are first, last and step. A single number, and a range with step 1, are written shorter."""
    text = ",".join(f"{a}" if a == b else f"{a}-{b}" + (f":{step}" if step > 1 else "") for a, b, step in parts)
    expected = {task for a, b, step in parts for task in range(a, b + 1, step) if task < MOST}
    assert set(task_numbers(text + ("%7" if limited else ""), MOST)) == expected


@given(ANY, st.integers())
def test_no_line_of_squeue_or_sinfo_raises_an_error(text: str, where: int) -> None:
    line = f"300_0|RUNNING|gn1|1:00|me|None|name|/script\n{text}\n"
    shown = list(squeue_rows(line[where % len(line) :] + line))
    assert "300_0" in [row.id for row in shown]
    all_nodes(line[where % len(line) :] + text)
    assert number(text) >= 0 and minutes(text) >= 0


@given(ANY)
def test_is_number_accepts_only_ascii_digits_which_int_can_read(text: str) -> None:
    if is_number(text):
        assert str(int(text)) == (text.lstrip("0") or "0")
    assert not is_number("²") and not is_number("٣") and not is_number("") and is_number("07")


@pytest.mark.parametrize(
    ("shown", "cancelled"),
    [("300_[0-4:2%13]", {0, 2, 4}), ("300_[0,2,...,3...%120]", {0, 2}), ("300_[1,4-5]", {1, 4, 5})],
)
def test_cancelled_tasks_are_found_in_accounting_lists_with_steps_and_in_cut_lists(
    store: Store, tmp_path: Path, shown: str, cancelled: set[int]
) -> None:
    folder = submit(store, [[create(store, seed)] for seed in range(6)])
    answers(tmp_path, "sacct", {shown: "mmprompt-1-abc.0|CANCELLED by 0|0:0|None"})
    executions = ended_jobs({f"300_{task}": Batch(folder) for task in range(6)})
    assert {int(job.split("_")[1]) for job, last in executions.items() if last.state} == cancelled


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """A batch of three jobs."""
    return Batch(submit(Store(tmp_path_factory.mktemp("some") / "runs"), [["a"], ["b"], ["c"]]))


@given(st.lists(ANY, max_size=4))
def test_no_line_of_sacct_raises_an_error(batch: Batch, fields: list[str]) -> None:
    ours = f"300_2|FAILED|0:1|None|{batch.job_name}.0|/script"
    lines = ["|".join(("300_[0-1]", *fields)), "|".join(fields), ours]
    assert ("300_2", "FAILED") in [(job, one.state) for job, one in records(lines, {"300": batch})]


def test_a_renamed_job_is_recognised_by_its_script_and_an_id_alone_is_no_proof(store: Store, tmp_path: Path) -> None:
    folder = submit(store, [[create(store, seed)] for seed in range(4)])
    script = f"{store.root}/jobs/1/0/array_submission.sh"
    lines = [
        f"300_0|RUNNING|gn1|1:00|{who()}|None|a|new name|{script}",
        f"300_1|RUNNING|gn1|1:00|{who()}|None|mmprompt-1-abc|/home/me/train.sh",  # a new cluster has counted to 300 again
        f"300_2|RUNNING|gn1|1:00|somebody|None|x|{script}",
        f"301_3|RUNNING|gn1|1:00|{who()}|None|x|{script}",
        "what is this?",
        f"999|RUNNING|gn1|1:00|{who()}|None|mmprompt-1-abc.0|/script",  # ours by its name, whatever id was recorded
    ]
    program(tmp_path, "squeue", lines)
    jobs = slurm.jobs([Batch(folder)]).jobs
    assert {number: job.id for (_, number), job in jobs.items()} == {0: "999"}
    program(tmp_path, "squeue", lines[:-1])
    jobs = slurm.jobs([Batch(folder)]).jobs
    assert {number: job.id for (_, number), job in jobs.items()} == {0: "300_0"}


def program(folder: Path, name: str, lines: list[str]) -> None:
    """Writes a program that prints these lines and records the arguments of each call."""
    (folder / f"{name}.said").write_text("".join(f"{line}\n" for line in lines))
    file = folder / "bin" / name
    prints = f'while read -r line; do echo "$line"; done < {folder}/{name}.said'
    records = f'printf "%s\\n" "$*" >> {folder}/{name}.asked'
    file.write_text(f"#!/bin/sh\n{records}\n{prints}\n")
    file.chmod(0o755)


def test_accounting_finds_a_renamed_job_and_ignores_another_clusters_job(store: Store, tmp_path: Path) -> None:
    folder = submit(store, [[create(store, seed)] for seed in range(2)])
    call = f"sbatch --parsable {store.root}/jobs/1/0/array_submission.sh"
    program(
        tmp_path,
        "sacct",
        [f"300_0|TIMEOUT|0:0|None|new|name|{call}", "300_1|TIMEOUT|0:0|None|new|sbatch /elsewhere/jobs/1/0/x.sh"],
    )
    executions = ended_jobs({f"300_{task}": Batch(folder) for task in range(2)})
    assert [executions[job].state for job in ("300_0", "300_1")] == ["TIMEOUT", ""]


def test_a_sacct_that_does_not_know_the_field_submitline_is_asked_again_without_it(
    store: Store, tmp_path: Path
) -> None:
    folder = submit(store, [[create(store, 1)]])
    file = tmp_path / "bin/sacct"
    refuses = 'echo "sacct: error: Invalid field requested: \\"SubmitLine\\"" >&2; exit 1'
    knows = 'echo "300|TIMEOUT|0:0|None|mmprompt-1-abc.0"'
    file.write_text(f'#!/bin/sh\ncase "$*" in *SubmitLine*) {refuses};; *) {knows};; esac\n')
    file.chmod(0o755)
    assert ended_jobs({"300": Batch(folder)})["300"].state == "TIMEOUT"


def test_a_store_with_thousands_of_arrays_asks_with_arguments_that_the_kernel_accepts(
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
    assert ended_jobs(many) == {}
    words = [word for line in (tmp_path / "sacct.asked").read_text().splitlines() for word in line.split()]
    asked = {identity for word in words if word[0].isdigit() for identity in word.split(",")}
    assert asked == {job.split("_")[0] for job in many} and max(map(len, words)) < 128 * 1024


def test_squeue_lists_all_users_if_this_machine_does_not_know_the_batchs_user(store: Store, tmp_path: Path) -> None:
    """With -u, squeue would silently leave out an unknown user, and all jobs of this user would seem to have ended."""
    folder = submit(store, [[create(store, 1)]])
    record = json.loads((folder / "batch.json").read_text())
    program(tmp_path, "squeue", ["300|RUNNING|gn1|1:00|gone|None|mmprompt-1-abc.0|/script"])
    for user, filtered in ((who(), f"-u {who()} "), ("gone", "")):
        (folder / "batch.json").write_text(json.dumps(record | {"user": user}))
        assert len(slurm.jobs([Batch(folder)]).jobs) == 1
        assert (tmp_path / "squeue.asked").read_text().splitlines()[-1].startswith(f"-h {filtered}-o ")


def test_waiting_tasks_share_one_line_of_squeue_and_each_is_queued(store: Store, tmp_path: Path) -> None:
    folder = submit(store, [[create(store, seed)] for seed in range(7)])
    waits = "PENDING||1:00:00|me|Priority|mmprompt-1-abc.0|/script"
    program(
        tmp_path,
        "squeue",
        [f"300_[0-4:2,6,70%13]|{waits}", f"300_1|{waits}", "300_5|RUNNING|gn1|9|me|None|mmprompt-1-abc.0|"],
    )
    jobs = {number: (job.id, job.state) for (_, number), job in slurm.jobs([Batch(folder)]).jobs.items()}
    assert jobs == {**{task: (f"300_{task}", "PENDING") for task in (0, 1, 2, 4, 6)}, 5: ("300_5", "RUNNING")}


# sbatch


def test_the_job_id_is_the_last_line_that_is_an_id_whatever_is_printed_around_it() -> None:
    assert submitted_id("job 424242 of project p\n1234\nSubmitted batch job soon\n\n") == "1234"
    assert submitted_id("17 jobs\n 67108871;east \nquota: 9 of 10\n") == "67108871"
    for output in ("", "thank you\n", "Submitted batch job 12\n", "12a\n"):
        with pytest.raises(NoAnswerError) as error:
            submitted_id(output)
        assert "manually" not in str(error.value) and "sbatch printed no" in str(error.value)


def test_sbatch_keeps_slurms_authentication_variables_and_no_other_variables_of_slurm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = {"SLURM_CONF": "/etc/x", "SLURM_JWT": "token", "SLURM_SACK_SOCKET": "/run/x", "MUNGE_SOCKET": "/run/y"}
    removed = {"SLURM_JOB_ID": "7", "SLURM_CLUSTERS": "nowhere", "SBATCH_PARTITION": "p", "SRUN_DEBUG": "1"}
    for key, value in (kept | removed).items():
        monkeypatch.setenv(key, value)
    environment = sbatch_environment()
    assert kept.items() <= environment.items() and not removed.keys() & environment.keys()


def test_a_missing_sbatch_and_a_script_that_cannot_be_written_get_one_sentence_each(
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
