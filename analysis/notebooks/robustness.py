# %% [markdown]
# # Does prompt tuning make a model more robust?
#
# The paper (Figure 3) attacks with one step of FGSM and finds that prompt tuning loses less of its score than finetuning on
# every task. Neither its values nor its epsilon are published.
#
# `make sweep-robustness` attacks finished runs at several values of epsilon; it trains nothing.

# %%
from analysis import load

robustness = load("robustness")
robustness.figure()

# %% [markdown]
# ## The share of its own score that a run keeps
#
# Scores before the attack differ, so shares are compared instead of points.

# %%
robustness.table("kept")

# %%
compared = robustness.compare("prompt", "finetune", quantity="kept")
compared[["task", "value", "lower", "upper", "p_corrected", "verdict"]].round(3)

# %% [markdown]
# ## Which answers change
#
# These are the questions on which the two differ most under one of the attacks.

# %%
robustness.paired("prompt", "finetune", task="micro_vqa", **{"attack.epsilon": 0.02})

# %% [markdown]
# ## What this does not show
#
# It does not show robustness against stronger attacks: one step is a weak attack, and `make sweep-robustness_pgd` takes ten. A
# method that never learnt a task has nothing to lose on it, and the shares include the score of guessing.
