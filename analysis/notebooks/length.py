# %% [markdown]
# # How long should a prompt be?
#
# The paper (Table 6, Figure 2) finds that longer prompts are better up to a point, and that a length of 64 is best on average.
#
# `make sweep-length` makes the runs: six lengths on two tasks of the small world. To look at a part of them, or from another
# baseline, change the line that loads them: `load("length", tasks=["micro_grounding"], baseline={"prompt.length": 10})`.

# %%
from analysis import load, published

length = load("length")
length

# %%
length.figure()

# %% [markdown]
# ## Differences from the baseline
#
# The intervals are simultaneous: the level that the caption states is that of all differences at once.

# %%
length.table("differences")

# %% [markdown]
# ## The trend
#
# This ablation asks for a trend, and a trend uses all lengths at once: the slope per doubling of the length, and whether the
# curve turns.

# %%
length.table("trend")

# %% [markdown]
# ## Averaged over tasks, as in Table 6

# %%
length.table("average")

# %% [markdown]
# ## The paper's values
#
# They are values of OFA-large on other data, with one seed each. Read the two tables side by side, but do not compare single
# numbers.

# %%
paper = published()
paper[paper["table"] == "table6"].pivot_table(
    index="prompt_length", columns="task", values="value", aggfunc="mean"
).round(2)

# %% [markdown]
# ## What this does not show
#
# It does not show how OFA behaves on the paper's data: this is a small model on a small world, with a short and fixed number of
# updates. A difference that is not significant need not be zero; a note below the table gives the smallest difference that these
# seeds can show.
