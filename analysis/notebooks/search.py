# %% [markdown]
# # What did a search find?
#
# The paper shows no search: it gives one learning rate for every task. Was there a better one, and does it hold on fresh seeds?
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
# The score of a trial is what it was chosen by; the confirmation on fresh seeds is what counts.

# %%
search.trials.dropna(axis="columns", how="all").drop(columns=["runs", "seeds"]).head(12)

# %% [markdown]
# ## Optuna's own view
#
# The same trials as a study of Optuna's, in memory: its functions work on it.

# %%
optuna = search.optuna()
optuna.trials_dataframe()[["number", "value", "state"]].tail()

# %% [markdown]
# ## What this does not show
#
# That the settings are best: they are the best of the few that were tried. The score that a trial was chosen by is too high,
# since it was chosen; the table above says by how much fresh seeds correct it.
