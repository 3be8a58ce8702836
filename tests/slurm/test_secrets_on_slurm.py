"""After a launch on SLURM no file of the store holds a secret of the environment: no script, log or record."""

from __future__ import annotations

from faults import until
from lab import Lab, beside
from leaks import SECRETS, leaks
from wandb_server import WandbServer

from sweeps.jobs.batch import batches

SETTINGS = ("tracking=online", "optim.steps=2", "optim.validate_every=1", "optim.lr=0.1,1e30")  # the second fails


@beside
def test_no_file_of_a_sweep_on_slurm_holds_a_secret(lab: Lab) -> None:
    with WandbServer() as server:
        environment = SECRETS | server.environment
        sweep = lab.sweep_here(*SETTINGS, environment=environment)
        output = sweep.launch()
        [batch] = batches(sweep.store)
        asked = ("squeue", "-h", f"--name={','.join(batch.arrays.values())}")
        until(lambda: not sweep.slurm(*asked), "both jobs ended")
    assert sorted(upload.state for upload in server.runs.values()) == ["failed", "finished"]
    assert leaks(sweep.store.root, environment) == []
    assert not [name for name in SECRETS if environment[name] in output]
