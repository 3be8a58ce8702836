# %% [markdown]
# # Which method of tuning is best?
#
# The paper (Tables 1 and 2) finds that prompt tuning is better than adapters, adapters are better than BitFit, and prompts come
# close to finetuning.
#
# `make sweep-methods` makes the runs, and `make costs-methods` measures what each method takes.

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
# ## What they take
#
# Measured side by side, all methods of a task in turns on one device. Empty where it was not measured.

# %%
costs = methods.costs()
costs[costs["quantity"] != "parameters"].pivot_table(
    index="method", columns=["quantity", "task"], values="ratio"
).round(2)

# %% [markdown]
# ## What this does not show
#
# Methods at their best: all have the same short number of updates, and a learning rate chosen on validation. A method that
# learns slowly looks worse here than after many epochs; the notebook on convergence looks at that.
