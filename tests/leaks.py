"""Secrets in the environment of a launch, and a search for files that contain them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

SECRETS = {  # variable -> value
    "HF_TOKEN": "hf_QmVlcnNlY3JldA",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
    "DATABASE_PASSWORD": "correct-horse-battery-staple",
    "MAIL": "imaps://anna:s3same-open@mail.example",  # the name does not show that it is a secret
}


def leaks(folder: Path, environment: Mapping[str, str]) -> list[str]:
    """`FILE: NAME` for each file whose content or path contains the value of one of these variables."""
    words = {name: environment[name] for name in [*SECRETS, "WANDB_API_KEY"]}
    words["Authorization"] = base64.b64encode(f"api:{environment['WANDB_API_KEY']}".encode()).decode()
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 20  # the search is not empty
    found = []
    for file in files:
        content = str(file).encode() + file.read_bytes()
        found += [f"{file}: {name}" for name, secret in words.items() if secret.encode() in content]
    return found
