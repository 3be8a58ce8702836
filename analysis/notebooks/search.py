# %% [markdown]
# # What did a search find?
#
# The paper reports no search: it gives one learning rate for every task. Is there a better one, and does it hold on fresh seeds?
#
# `make search-learning_rate` makes the trials and confirms the best beside the default.

# %%
from analysis import study

search = study("learning_rate")
search

# %%
search.figure()

# %% [markdown]
# ## Trials
#
# The best trials were chosen by these scores, which makes them optimistic; the confirmation on fresh seeds counts.

# %%
search.trials.dropna(axis="columns", how="all").drop(columns=["runs", "seeds"]).head(12)

# %% [markdown]
# ## Optuna's own view
#
# These are the same trials as an Optuna study in memory, for Optuna's own functions.

# %%
optuna = search.optuna()
optuna.trials_dataframe()[["number", "value", "state"]].tail()

# %% [markdown]
# ## What this does not show
#
# It does not show that the settings are optimal: they are the best of the few that were tried. A trial's score in the search is
# too high, since the trial was chosen by it; the table above shows how much fresh seeds correct it.
