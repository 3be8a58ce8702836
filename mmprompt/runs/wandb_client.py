"""The W&B client of this process: which variables it reads, its background process, and how long it stays offline.

What the client (0.31) does by default, and what this module does about it:
- It reads its environment once, and uses that server ever after. So it is started again if the environment has changed.
- At the beginning and at the end of each run it waits for a server that does not answer. Here it waits at most 20 s and
  30 s, and then does not try again for `ASK_AGAIN`.
- It looks for an account, captures the console, reads git, and logs under $HOME. This is switched off, or done in a
  temporary folder.

The user's WANDB_* variables and settings file are meant for the user's own runs. Offline none of them is read, so
WANDB_MODE, WANDB_DIR or WANDB_API_KEY change nothing. Online, the settings file and the variables for server and account
(`CREDENTIALS`) are read. Part of the light half of the package: wandb is imported when the client is used.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

from pydantic import ValidationError

ASK_AGAIN = 600.0  # seconds until a server that could not be used is tried again: a job may have many short runs
CREDENTIALS = (
    "WANDB_API_KEY",
    "WANDB_BASE_URL",
    "WANDB_CONFIG_DIR",
    "WANDB_CREDENTIALS_FILE",
    "WANDB_HTTP_TIMEOUT",
    "WANDB_IDENTITY_TOKEN_FILE",
    "WANDB_INSECURE_DISABLE_SSL",
)
SETTINGS: dict[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "finish_timeout": 30,  # what has not been uploaded by then is on disk
    "finish_timeout_raises": True,
    "init_timeout": 20,
    "label_disable": True,
    "reinit": "create_new",  # else a record that a failed run left open would be finished as a success
    "sagemaker_disable": True,
    "save_code": False,
    "silent": True,
    "symlink": False,
    "use_dot_wandb": False,
}


class Client:
    """The state of this process's W&B client. wandb keeps one client per process: `CLIENT`."""

    def __init__(self) -> None:
        self.offline_until = 0.0  # on the monotonic clock; until then no server is used
        self._known: dict[str, str] = {}  # the mode and the credentials that wandb has read

    @contextlib.contextmanager
    def wandb(self, mode: Literal["offline", "online"]) -> Iterator[Any]:
        """The wandb module. In the block the environment has only our own WANDB_* variables and, online, the user's credentials.

        wandb reads them when it is first used. If it was used for another mode or server before, it is made to forget that one:
        else it would go on using that server, and send it the new key.
        """
        users = {key: value for key, value in os.environ.items() if key.startswith("WANDB_") or key == "TERM"}
        credentials = {key: users[key] for key in CREDENTIALS if key in users and mode == "online"}
        _set_variables(self._variables(mode) | credentials)
        try:
            import wandb

            told = {"mode": mode} | credentials
            if self._known != told:
                self.end()
                self._known = told
            yield wandb
        finally:
            _set_variables(users)

    def end(self) -> None:
        """Ends the background process if it still runs, and makes wandb forget the variables that it has read."""
        import wandb

        with contextlib.suppress(*errors_of_a_dead_client()):
            wandb.teardown()

    @property
    def may_go_online(self) -> bool:
        return time.monotonic() >= self.offline_until

    def stay_offline(self, reason: str) -> None:
        """Stays offline for `ASK_AGAIN`, and warns the caller that opened or finished a record."""
        self.offline_until = time.monotonic() + ASK_AGAIN
        rest = f"records are offline ones for {ASK_AGAIN / 60:.0f} minutes; `make sync` uploads what is missing there"
        warnings.warn(f"{reason}: {rest}", stacklevel=4)

    def _variables(self, mode: Literal["offline", "online"]) -> dict[str, str]:
        folders = {f"WANDB_{kind}DIR": self._scratch.name for kind in ("", "CACHE_", "DATA_", "CONFIG_")}
        if mode == "online":
            del folders["WANDB_CONFIG_DIR"]  # `wandb login --host` leaves the server's address there
        return folders | {"WANDB_ERROR_REPORTING": "false", "TERM": "dumb"}  # on this terminal it asks for no key

    @cached_property
    def _scratch(self) -> tempfile.TemporaryDirectory[str]:
        """A folder for wandb's logs and caches, which nothing here reads; removed when this process ends."""
        return tempfile.TemporaryDirectory(prefix="mmprompt-wandb-", ignore_cleanup_errors=True)


CLIENT = Client()


def errors_of_a_dead_client() -> tuple[type[Exception], ...]:
    """The exceptions that wandb raises if its background process is dead."""
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    return (ConnectionError, HandleAbandonedError, MailboxClosedError)


def first_line(error: Exception) -> str:
    """The reason of an error, without the advice that W&B adds and without the value of a setting, which may be a key."""
    if isinstance(error, ValidationError):
        wrong = error.errors()[0]
        return f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _set_variables(values: Mapping[str, str]) -> None:
    """Replaces all of W&B's variables, and TERM, by these values."""
    for key in [key for key in os.environ if key.startswith("WANDB_") or key == "TERM"]:
        del os.environ[key]
    os.environ.update(values)
