"""Settings that contain a secret are refused. The message does not show the secret, and names a safe way."""

from __future__ import annotations

import time

import pytest

from mmprompt.runs.deployment import ROOT
from mmprompt.settings.parsing import ConfigError
from mmprompt.settings.secret import secret
from sweeps.grid.manifest import expand

VALUE = "s3cr3tVALUE0123abc"
JOBS = "in the shell that launches: jobs inherit it"
WANDB = "type `wandb login` once on the login node: it asks for the key and writes ~/.netrc"
HUB = "type `hf auth login` once on the login node: it asks for the token"
VARIABLE = "export it as a variable in the shell that launches, jobs inherit it, and write $VARIABLE here"


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        expand("length", overrides, ROOT / "conf")
    assert VALUE not in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "shown", "cure"),
    [
        (
            "cluster.sbatch={{export: 'ALL,WANDB_API_KEY={}'}}",
            "cluster.sbatch='export=ALL,WANDB_API_KEY=...'",
            f"export WANDB_API_KEY {JOBS}",
        ),
        ("cluster.sbatch={{comment: 'token={}'}}", "cluster.sbatch='comment=token=...'", JOBS),
        ("cluster.sbatch={{comment: 'my token: {}'}}", "cluster.sbatch='comment=my token: ...'", VARIABLE),
        ("cluster.sbatch={{api-token: {}}}", "cluster.sbatch='api-token=...'", JOBS),
        ("cluster.python='env WANDB_API_KEY={} python'", "cluster.python='env WANDB_API_KEY=...'", JOBS),
        ("cluster.partition='gpu --export=ALL,HF_TOKEN={}'", "cluster.partition='gpu", "export HF_TOKEN"),
        ("cluster.setup=['export WANDB_API_KEY={}']", "cluster.setup='export WANDB_API_KEY=...'", JOBS),
        ("cluster.setup=['true','wandb login {}']", "cluster.setup='wandb login ...'", WANDB),
        ("cluster.setup=['hf auth login --token {}']", "cluster.setup='hf auth login --token ...'", HUB),
        ("cluster.setup=['tool --api-key {}']", "cluster.setup='tool --api-key ...'", VARIABLE),
    ],
)
def test_a_secret_in_a_setting_of_the_cluster_is_refused_and_not_shown(override: str, shown: str, cure: str) -> None:
    said = refused(override.format(VALUE))
    assert shown in said and "would write a secret into files that others can read" in said and cure in said


def test_sbatch_settings_that_are_ours_are_refused_as_such_before_anybody_looks_for_secrets() -> None:
    assert "cluster.sbatch has wckey, which is set by a launch" in refused(f"cluster.sbatch={{wckey: {VALUE}}}")


@pytest.mark.parametrize(
    "text",
    [
        "export X_TOKEN='{}'",
        'export "X_TOKEN={}"',
        'export PASSWORD="{} and more"',
        "export WANDB_API_KEY=$'{}'",
        "export A_TOKEN=$A B_TOKEN={}",
        "export TOKEN={}$X",
        "declare -x aws_secret_access_key={}",
        "HF_TOKEN={} true",
        "setenv WANDB_API_KEY {}",
        "wandb login --relogin {}",
        "wandb login --host=https://x.y '{}'",
        'wandb login --host https://x.y "{}"',
        "python -m wandb login -- {}",
        "wandb login $X || wandb login {}",
        "wandb login <<< {}",
        "echo {} | wandb login",
        "echo machine api.wandb.ai login user password {} >> ~/.netrc",
        "python -c 'import wandb; wandb.login(key=\"{}\")'",
        "huggingface-cli login --token {}",
        "hf auth login --add-to-git-credential --token={}",
        "tool --api-key={}",
        "tool --password '{}'",
        "curl -H 'Authorization: Bearer {}' x",
        "pip install git+https://me:{}@github.com/me/x",
    ],
)
def test_a_secret_is_found_and_not_shown(text: str) -> None:
    found = secret(text.format(VALUE))
    assert found is not None and found.shown == text.partition("{}")[0] + "..."


@pytest.mark.parametrize(
    "text",
    [
        *("export WANDB_API_KEY=$WANDB_API_KEY", 'export HF_TOKEN="${HF_TOKEN}"', "export X_KEY=${X_KEY:?not set}"),
        *("export HF_TOKEN=$(cat ~/.hf)", 'export HF_TOKEN="$(cat ~/.hf)"', "export HF_TOKEN=`cat x`", "unset X_KEY"),
        *("export TOKENIZERS_PARALLELISM=false", "export MAX_TOKENS=512", "export KEYBOARD=us", "export TOKEN=''"),
        *("export HF_TOKEN_PATH=/home/me/.hf", "export AWS_KEY_FILE=~/x", 'if [ "$X_KEY" = "" ]; then exit; fi'),
        *("wandb login", "wandb login || true", "wandb login && x", "wandb login; x", "wandb login 2>/dev/null"),
        *("wandb login > log", "wandb login --relogin", 'wandb login "$KEY"', "wandb login $(cat ~/key)"),
        *("wandb login < ~/key", "wandb login --host https://my.server", "wandb login # once", "wandb offline"),
        *("hf auth login", "hf auth login --token $HF_TOKEN", "huggingface-cli login --token $(cat x)"),
        *("module load cuda/12.1", "source activate keyenv", "conda activate tokenizer", "source ~/secrets.sh"),
        *("sort --key 2 file", "sort --sort-key name", "ssh-keygen -t ed25519", "singularity exec --nv x.sif python"),
        *("export https_proxy=http://proxy:3128/@x", "git clone git@github.com:me/x", "echo Basic setup done"),
        *("export=NONE", "mail-user=me@there.org", "comment=ablation of keys and tokens", "comment=token 64", "python"),
    ],
)
def test_an_honest_setting_is_no_secret(text: str) -> None:
    assert secret(text) is None


def test_honest_settings_are_accepted() -> None:
    sbatch = "cluster.sbatch={export: NONE, mail-user: me@there, comment: ablation, hold: true, nice: 7}"
    setup = "cluster.setup=['module load cuda','source activate keyenv','export HF_TOKEN=$(cat ~/.hf)']"
    assert expand("length", [sbatch, setup, "cluster.python='env X=1 python'"], ROOT / "conf").points


@pytest.mark.parametrize("piece", ["KEY_", "key", "--", "wandb login ", "hf login --token ", "echo a |", "://a:", " "])
def test_a_line_of_a_hundred_thousand_letters_takes_no_time(piece: str) -> None:
    began = time.process_time()
    secret(piece * (100_000 // len(piece)) + "\n")
    assert time.process_time() - began < 5
