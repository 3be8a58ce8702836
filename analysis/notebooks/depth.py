# %% [markdown]
# # Where should prompts be: encoder, decoder or both?
#
# The paper (Table 3) finds that prompts in both stacks are best, and that of one stack alone the encoder is better.
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
# Neither is the baseline. `compare` takes any two rows.

# %%
compared = depth.compare("encoder", "decoder")
compared[["task", "value", "lower", "upper", "p_corrected", "verdict"]].round(3)

# %% [markdown]
# ## What they learn differently
#
# The examples on which the two differ most, on the task where a new answer has to be learnt.

# %%
depth.paired("encoder", "decoder", task="micro_entailment")

# %% [markdown]
# ## What this does not show
#
# Rows have different numbers of trained parameters: prompts in both stacks train twice as many. Whether a place is better or
# only larger is not asked here.
