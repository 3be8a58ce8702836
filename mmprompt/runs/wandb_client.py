"""The W&B client of this process: what it may read, its background process, and for how long no server is asked.

What the client (0.31) does by itself, and what is done about it here:
- it reads its environment once, and asks that server ever after: it begins anew when the environment is another;
- it waits for a server that does not answer, at the beginning and at the end of each run: here up to 20 s and 30 s, and
  then not again for `ASK_AGAIN`;
- it looks for an account, captures the console, reads git, logs under $HOME: switched off, or in a temporary folder.

The user's WANDB_* variables and settings file are for the user's own runs: offline none of them is read, so WANDB_MODE,
WANDB_DIR or WANDB_API_KEY change nothing. Online, those that say which server and who (`CREDENTIALS`) are read, and the
settings file. Part of the light half of the package: wandb is imported when the client is used.
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

ASK_AGAIN = 600.0  # seconds until a server that could not be had is asked again: a job may be many short runs
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
    "finish_timeout": 30,  # what is not uploaded by then is on disk
    "finish_timeout_raises": True,
    "init_timeout": 20,
    "label_disable": True,
    "reinit": "create_new",  # a record left open by a failed run is not ours to finish as a success
    "sagemaker_disable": True,
    "save_code": False,
    "silent": True,
    "symlink": False,
    "use_dot_wandb": False,
}


class Client:
    """What this process has told its W&B client, and learned from it. wandb keeps one client per process: `CLIENT`."""

    def __init__(self) -> None:
        self.offline_until = 0.0  # by the monotonic clock; before that no server is asked
        self._known: dict[str, str] = {}  # the mode and the credentials that wandb has read

    @contextlib.contextmanager
    def wandb(self, mode: Literal["offline", "online"]) -> Iterator[Any]:
        """The wandb module. In the block the environment has our own WANDB_* variables alone, and online the user's credentials.

        wandb reads them when it is first used. What it read for another mode or server is forgotten: it would go on to ask that
        server, and show it this one's key.
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
        """Ends the background process, if it has not ended by itself; wandb forgets what it has read."""
        import wandb

        with contextlib.suppress(*errors_of_a_dead_client()):
            wandb.teardown()

    @property
    def may_go_online(self) -> bool:
        return time.monotonic() >= self.offline_until

    def stay_offline(self, reason: str) -> None:
        """Asks no server for `ASK_AGAIN`, and warns the caller that opened or finished a record."""
        self.offline_until = time.monotonic() + ASK_AGAIN
        rest = f"records are offline ones for {ASK_AGAIN / 60:.0f} minutes; `make sync` uploads what is missing there"
        warnings.warn(f"{reason}: {rest}", stacklevel=4)

    def _variables(self, mode: Literal["offline", "online"]) -> dict[str, str]:
        folders = {f"WANDB_{kind}DIR": self._scratch.name for kind in ("", "CACHE_", "DATA_", "CONFIG_")}
        if mode == "online":
            del folders["WANDB_CONFIG_DIR"]  # `wandb login --host` leaves the server's address there
        return folders | {"WANDB_ERROR_REPORTING": "false", "TERM": "dumb"}  # such a terminal is not asked for a key

    @cached_property
    def _scratch(self) -> tempfile.TemporaryDirectory[str]:
        """Where wandb keeps what nobody reads; removed when this process ends."""
        return tempfile.TemporaryDirectory(prefix="mmprompt-wandb-", ignore_cleanup_errors=True)


CLIENT = Client()


def errors_of_a_dead_client() -> tuple[type[Exception], ...]:
    """What wandb raises when its background process is dead."""
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    return (ConnectionError, HandleAbandonedError, MailboxClosedError)


def first_line(error: Exception) -> str:
    """The reason, without the advice that W&B adds, and without the value of a setting, which may be a key."""
    if isinstance(error, ValidationError):
        wrong = error.errors()[0]
        return f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _set_variables(values: Mapping[str, str]) -> None:
    """W&B's, and the kind of the terminal."""
    for key in [key for key in os.environ if key.startswith("WANDB_") or key == "TERM"]:
        del os.environ[key]
    os.environ.update(values)
