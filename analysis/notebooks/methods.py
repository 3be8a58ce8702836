# %% [markdown]
# # Which method of tuning is best?
#
# The paper (Tables 1 and 2) finds that prompt tuning is better than adapters, adapters are better than BitFit, and prompts come
# close to finetuning.
#
# `make sweep-methods` makes the runs, and `make costs-methods` measures the time and memory of each method.

# %%
from analysis import load

methods = load("methods")
methods

# %%
methods.figure()

# %%
methods.table("differences")

# %% [markdown]
# ## Against finetuning instead
#
# Another baseline is one line; intervals and verdicts follow.

# %%
load("methods", baseline={"method": "finetune"}).table("differences")

# %% [markdown]
# ## Time and memory
#
# All methods of a task were measured in turns on one device. The table is empty if nothing was measured.

# %%
costs = methods.costs()
costs[costs["quantity"] != "parameters"].pivot_table(
    index="method", columns=["quantity", "task"], values="ratio"
).round(2)

# %% [markdown]
# ## What this does not show
#
# It does not show methods at their best: all have the same short number of updates, and a learning rate chosen on validation. A
# method that learns slowly looks worse here than after many epochs; see the notebook on convergence.
