# %% [markdown]
# # From a sweep to one example
#
# What is behind a number? This tour goes from the table of a sweep down to single runs, their learning curves, and the examples
# on which two settings differ.
#
# The runs are those of `make sweep-length`, the length ablation of the paper (Table 6, Figure 2).

# %%
from analysis import diff, load, runs

length = load("length")
length

# %% [markdown]
# Every cell of that table is a mean over seeds. `cells()` returns it with both parts of its interval: over seeds, and over the
# finite test set.

# %%
columns = ["task", "prompt.length", "value", "lower", "upper", "half_seeds", "half_examples", "n"]
cells = length.cells().query("split == 'test'")
cells[columns].round(2)

# %% [markdown]
# ## One run
#
# `at` returns the runs behind a cell, `run` a run by the beginning of its id. A run has its settings, its scores, the commit and
# the device that made it, and the command that repeats it.

# %%
run = length.at(task="micro_grounding", **{"prompt.length": 64})[0]
run

# %% [markdown]
# The last steps that it logged during training:

# %%
run.history[["train/loss", "val/while_training"]].dropna().tail()

# %% [markdown]
# The settings in which it differs from a run of another length:

# %%
other = length.at(task="micro_grounding", **{"prompt.length": 10})[0]
diff(run.id, other.id)

# %% [markdown]
# ## Every run of the store
#
# A row per run, whatever sweep it belongs to, with its settings under dotted keys.

# %%
everything = runs()
everything.groupby(["task.name", "method", "state"]).size().rename("runs").to_frame()

# %% [markdown]
# ## Single examples
#
# Every evaluation stores the scores of single examples. Here are the examples on which a long prompt and a short one differ most;
# a score is the mean over seeds.

# %%
length.paired(64, 10, task="micro_grounding")

# %% [markdown]
# ## What this does not show
#
# It does not show which of two settings is better: examples that were selected because they differ tell nothing about that.
# `compare` and the table of differences answer this, with an interval that is corrected for the number of compared rows.
