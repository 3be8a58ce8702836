# %% [markdown]
# # Where should prompts be: encoder, decoder or both?
#
# The paper (Table 3) finds that prompts in both stacks are best, and that the encoder alone is better than the decoder alone.
#
# `make sweep-depth` makes the runs, with prompts of length 64.

# %%
from analysis import load

depth = load("depth")
depth

# %%
depth.figure()

# %%
depth.table("differences")

# %% [markdown]
# ## Encoder against decoder
#
# Neither of them is the baseline. `compare` compares any two rows.

# %%
compared = depth.compare("encoder", "decoder")
compared[["task", "value", "lower", "upper", "p_corrected", "verdict"]].round(3)

# %% [markdown]
# ## What they learn differently
#
# These are the examples on which the two differ most, on the task whose answers have to be learnt anew.

# %%
depth.paired("encoder", "decoder", task="micro_entailment")

# %% [markdown]
# ## What this does not show
#
# Rows have different numbers of trained parameters: prompts in both stacks train twice as many. The comparison does not tell
# whether a depth is better because of its place or because of its size.
