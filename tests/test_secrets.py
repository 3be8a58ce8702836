"""No file of the store contains a secret of the environment, whether runs succeed or fail."""

from __future__ import annotations

import pytest
from groups import some
from launcher import Launcher
from leaks import SECRETS, leaks
from wandb_server import KEY, WandbServer


@pytest.mark.parametrize("key", some(["right", "wrong", "malformed"], "right"))
def test_no_file_of_a_local_sweep_holds_a_secret(launcher: Launcher, key: str) -> None:
    keys = {"right": KEY, "wrong": "local" + 40 * "1", "malformed": "sesame-open-sesame"}
    with WandbServer() as server:
        launcher.environment = SECRETS | server.environment | {"WANDB_API_KEY": keys[key]}
        code, output = launcher.run("launch", "tracking=online", "optim.steps=2", "seed=1", "optim.lr=0.1,1e30")
    assert code == 0 and "the loss is nan" in output, output  # of one of the two: there is an error.txt as well
    states = sorted(upload.state for upload in server.runs.values())
    assert states == (["failed", "finished"] if key == "right" else [])  # the right one was used
    assert leaks(launcher.store.root, launcher.environment) == []
    assert not [name for name, value in (SECRETS | {"key": keys[key]}).items() if value in output]
