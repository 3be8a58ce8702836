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
# All differences together hold with the confidence that the caption names.

# %%
length.table("differences")

# %% [markdown]
# ## The trend
#
# The question of this ablation is one of trend, and a trend uses all lengths at once: the slope per doubling of the length, and
# whether the curve turns.

# %%
length.table("trend")

# %% [markdown]
# ## Averaged over tasks, as in Table 6

# %%
length.table("average")

# %% [markdown]
# ## What the paper has
#
# Values of OFA-large on other data, one seed each. They are here to be read beside ours; a number there is not to be compared
# with a number here.

# %%
paper = published()
paper[paper["table"] == "table6"].pivot_table(
    index="prompt_length", columns="task", values="value", aggfunc="mean"
).round(2)

# %% [markdown]
# ## What this does not show
#
# How OFA behaves on the paper's data: this is a small model on a small world, with a short and fixed number of updates. A
# difference that is not told apart is not thereby none; the smallest one that these seeds can show stands under the table.
