# %% [markdown]
# # Which of the paper's claims hold here?
#
# Every claim of "Prompt Tuning for Generative Multimodal Pretrained Models" that a sweep tests, with the result of its runs.
#
# `make paper` makes all runs, with five seeds.

# %%
import pandas as pd

from analysis import load

names = ["main", "methods", "depth", "reparameterization", "length", "robustness", "convergence"]
sweeps = {name: load(name) for name in names}
sweeps["main"]

# %% [markdown]
# ## The claims
#
# Each was declared in the sweep's file before its results were known. A claim holds, is reversed, is equivalent (no difference that
# matters), or is not known; intervals are corrected for all claims of a sweep.

# %%
claims = pd.concat([sweep.claims().assign(sweep=name) for name, sweep in sweeps.items()], ignore_index=True)
claims[["sweep", "claim", "task", "n", "value", "lower", "upper", "verdict"]].round(2)

# %%
claims.groupby(["sweep", "claim"], sort=False)["verdict"].value_counts().unstack(fill_value=0)

# %% [markdown]
# ## The distance from finetuning

# %%
sweeps["main"].figure()

# %% [markdown]
# ## What this does not show
#
# It does not show whether the paper is right: its claims are about OFA with hundreds of millions of parameters, pretrained on real
# images, and tuned for up to a hundred epochs. Here a model with less than a million parameters is tuned for a few epochs. A claim
# that does not hold here does not follow from the methods alone.
