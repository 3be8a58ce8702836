# %% [markdown]
# # Should an MLP make the prompts?
#
# The paper (Table 4) finds that reparameterization by an MLP helps a little on grounding and harms a little elsewhere: neither
# variant is better in general.
#
# `make sweep-reparameterization` makes the runs. Each variant has its own learning rate.

# %%
import matplotlib.pyplot as plt

from analysis import load

reparameterization = load("reparameterization")
reparameterization

# %%
reparameterization.figure()

# %%
reparameterization.table("differences")

# %% [markdown]
# ## Trained parameters
#
# The MLP is trained too; after training only the prompts that it computes are needed.

# %%
facts = reparameterization.facts()
facts.pivot(index="prompt.reparameterization", columns="task", values="value")

# %% [markdown]
# ## How they learn

# %%
curves = reparameterization.curves().dropna(subset="val/while_training")
means = curves.groupby(["task", "prompt.reparameterization", "step"])["val/while_training"].mean()
figure, axes = plt.subplots(1, curves["task"].nunique(), figsize=(11, 2.6), layout="constrained")
for ax, (task, rows) in zip(axes, means.groupby("task"), strict=True):
    rows.droplevel("task").unstack(0).plot(ax=ax, title=task, ylim=(0, None))

# %% [markdown]
# ## What this does not show
#
# The curves are unsmoothed means over seeds on a part of the validation split; with so few updates, the point where they cross
# means little. No other width of the MLP was tried.
