"""A secret in a text: a key, a token or a password that stands there itself, and is not taken from a variable or a file.

It is found by what stands before it, so it is no guess at what a secret looks like. Light: no torch, no Hydra.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# What begins with $X, $(...), a backquote or < comes from elsewhere, and $'...' does not; 2> and # end a command.
VALUE = r"""(?!\d*[<>]|\#)(?:\$?["'])?(?P<value>[^\s$`"'<>|&;,(){}\[\]\\][^\s"'`;]*)"""
WORD = r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)"  # ends a part of a name: not TOKENIZERS
NAME = rf"(?<![\w-])(?P<name>(?:\w[\w-]{{0,60}})?{WORD}(?:[_-]\w{{1,30}}|\d{{0,9}}))"
OPTION = r"--?(?:[\w-]{0,60}(?:TOKEN|SECRET|PASSWORD|PASSWD)|[\w-]{0,60}(?:API|ACCESS|SECRET|AUTH|WANDB|HF)[_-]?KEY)"
OPTIONS = r"(?>\s+--host[=\s]\s*\S+|\s+--?[\w-]*)*+"  # of a login, one of them with a value
WANDB = "type `wandb login` once on the login node: it asks for the key and writes ~/.netrc, where jobs find it"
HUB = "type `hf auth login` once on the login node: it asks for the token and keeps it in your home, where jobs find it"
EXPORT = "export {name} in the shell that launches: jobs inherit it"
VARIABLE = "export it as a variable in the shell that launches, jobs inherit it, and write $VARIABLE here"

BEFORE = {  # patterns, and what does it right
    rf"\bwandb\s+login\b{OPTIONS}\s+{VALUE}": WANDB,
    rf"\bwandb\s+login\b[^;|&]{{0,200}}<<<\s*{VALUE}": WANDB,
    rf"\becho\s+{VALUE}\s*\|\s*wandb\s+login\b": WANDB,
    rf"\blogin\s+\S+\s+password\s+{VALUE}": WANDB,  # a line of ~/.netrc
    rf"\b(?:huggingface-cli|hf)\s[^;|&]{{0,200}}\blogin\b[^;|&]{{0,200}}\s--?token[=\s]\s*{VALUE}": HUB,
    rf"(?<![\w-]){OPTION}(?:=|\s+(?!-)){VALUE}": VARIABLE,
    rf"{NAME}\s*=\s*{VALUE}": EXPORT,
    rf"\bsetenv\s+{NAME}\s+{VALUE}": EXPORT,
    rf"\b(?:token|password|secret|api[_-]?key)\s*:\s+{VALUE}": VARIABLE,
    rf"\bAuthorization:\s*\w+\s+{VALUE}": VARIABLE,
    r"://[^\s/@:]{0,200}:(?P<value>[^\s/@$`]{1,200})@": VARIABLE,
}
PATTERNS = [(re.compile(pattern, re.IGNORECASE), cure) for pattern, cure in BEFORE.items()]
HARMLESS = re.compile(r"\d[\d.,]{0,7}|true|false|yes|no|on|off|null|none", re.IGNORECASE)
WHERE = re.compile(r"\w+[_-](?:FILE|PATH|DIR|NAME|ID|TYPE)", re.IGNORECASE)  # names of what tells where it is, or which


@dataclass(frozen=True)
class Secret:
    shown: str  # the text as far as it can be shown
    cure: str


def secret(text: str) -> Secret | None:
    """The first one in a line of shell, or in `KEY=VALUE`."""
    found = [
        (match.start("value"), cure.format(name=match.groupdict().get("name")))
        for pattern, cure in PATTERNS
        for match in pattern.finditer(text)
        if not HARMLESS.fullmatch(match["value"]) and not WHERE.fullmatch(match.groupdict().get("name") or "")
    ]
    if not found:
        return None
    begin, cure = min(found, key=lambda one: one[0])
    return Secret(f"{text[:begin]}...", cure)
