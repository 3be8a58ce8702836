# %% [markdown]
# # How long does prompt tuning take?
#
# The paper (section 4.4, Table 5, Figure 4) finds that prompts need many more epochs than finetuning, so that they often cost
# more compute although a step is cheaper, and that they are no slower at inference.
#
# `make sweep-convergence` makes the runs, and `make costs-convergence` measures what they take.

# %%
import matplotlib.pyplot as plt

from analysis import load

convergence = load("convergence")
convergence.figure()

# %%
convergence.table("scores")

# %%
convergence.table("cost")

# %% [markdown]
# ## Single seeds
#
# Means hide how much seeds differ while they learn.

# %%
curves = convergence.curves().dropna(subset="val/while_training")
figure, axes = plt.subplots(1, curves["task"].nunique(), figsize=(10, 3), layout="constrained")
for ax, (task, rows) in zip(axes, curves.groupby("task"), strict=True):
    for (method, _), one in rows.groupby(["method", "seed"]):
        ax.plot(one["step"], one["val/while_training"], color={"prompt": "C0", "finetune": "k"}[method], alpha=0.6)
    ax.set(title=task, xlabel="updates")

# %% [markdown]
# ## Seconds and memory
#
# Measured in turns on one device; ratios are taken within a round. The table is empty if nothing was measured.

# %%
costs = convergence.costs()
costs[costs["quantity"] != "parameters"].set_index(["task", "method", "quantity"])[
    ["median", "lowest", "highest", "ratio"]
]

# %% [markdown]
# ## What this does not show
#
# It does not show what the same updates cost on a GPU, or at the size of OFA: on one CPU core, attention and feed-forward layers
# take other shares of the time. A noisy curve comes near its best too early.
