# Two commands do everything: `make sweep-length` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
NOTEBOOK := $(VENV)/.notebook# Jupyter besides, installed when it is first needed

# CLUSTER=auto|local|slurm, TASKS=micro_vqa,micro_caption or all, RUNS=the store,
# ARGS="seed=0,1,2,3,4 optim.steps=300 --wait"; quote what a shell would read: ARGS="'seed=range(1,6)'"
# RUN=the beginning of a run's id; YES=1 answers the question before jobs are submitted or cancelled, or files deleted
CLUSTER ?= auto
TASKS ?=
ARGS ?=
RUN ?=
RUNS ?= $(or $(MMPROMPT_RUNS),runs)
export MMPROMPT_RUNS := $(abspath $(RUNS))
export YES
PAPER := main methods depth reparameterization length robustness convergence
COSTS := methods convergence# of these, what rows take is measured as well
SEEDS := 11,12,13,14,15# of the paper's sweeps together; a sweep alone has the three of its file
# tests: two processes have SLURM and mostly wait, two others use two cores
PROCESSES := -n 4
CHOICE := cluster=$(CLUSTER) $(if $(filter all,$(TASKS)),'task=glob(micro_*)',$(if $(TASKS),task=$(TASKS)))

.DEFAULT_GOAL := help
.PHONY: help install paper publish report wandb-report notebooks notebook status logs cancel diff clean doctor sync tables test test-all chaos bench lint pretrain-micro \
	slurm-up slurm-down slurm-status

help: ## this list
	@echo "mmprompt: ablations of prompt tuning, from config to table"
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-18s %s\n", $$1, $$2}'
	@echo "  with CLUSTER=auto|local|slurm, TASKS=all or a list, RUNS=the store, ARGS=\"KEY=VALUE ...\" (Hydra's grammar)"
	@echo "  sweeps: $(basename $(notdir $(wildcard conf/sweep/*.yaml)))"
	@echo "  searches: $(basename $(notdir $(wildcard conf/search/[!_]*.yaml)))"

install: $(INSTALLED) ## the virtual environment with the pinned packages (every target makes it when needed)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or later is needed, $(PYTHON) is {v.major}.{v.minor}; try make PYTHON=python3.11 ...")'
	@echo "installing into $(VENV) (once)"
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(NOTEBOOK): $(INSTALLED)
	@echo "installing Jupyter into $(VENV) (once)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[notebook]'
	@touch $@

sweep-%: $(INSTALLED) ## run a sweep (what is done already is not run again), then its table and figure
	@$(PY) -m sweeps launch $* $(CHOICE) $(ARGS); status=$$?; \
	if [ $$status -eq 2 ]; then exit 2; fi; $(PY) -m analysis tables $* || exit $$?; exit $$status

paper: $(INSTALLED) ## every sweep of the paper as one launch, five seeds, with the time left; then all tables and figures
	@$(PY) -m sweeps launch zero_shot $(CHOICE) $(ARGS); \
	$(PY) -m sweeps launch $(PAPER) seed=$(SEEDS) $(CHOICE) $(ARGS); status=$$?; \
	if [ $$status -eq 2 ]; then exit 2; fi; \
	if [ $$status -eq 0 ]; then for one in $(COSTS); do $(PY) -m sweeps measure $$one seed=$(SEEDS) $(CHOICE) $(ARGS); done; fi; \
	$(PY) -m analysis tables zero_shot $(PAPER) || exit $$?; exit $$status

search-%: $(INSTALLED) ## look for the best settings, trial by trial, and confirm them on fresh seeds
	@$(PY) -m sweeps search $* $(CHOICE) $(ARGS); status=$$?; \
	if [ $$status -eq 2 ]; then exit 2; fi; $(PY) -m analysis tables search-$* || exit $$?; exit $$status

costs-%: $(INSTALLED) ## measure what the rows of a sweep take, side by side (seconds, memory), then its table with it
	@$(PY) -m sweeps measure $* $(CHOICE) $(ARGS); status=$$?; \
	if [ $$status -eq 2 ]; then exit 2; fi; $(PY) -m analysis tables $* || exit $$?; exit $$status

plan-search-%: $(INSTALLED) ## what `make search-%` would run, how much of it is there, and what it costs
	@$(PY) -m sweeps search plan $* $(CHOICE) $(ARGS)

plan-%: $(INSTALLED) ## what `make sweep-%` would run, without running it
	@$(PY) -m sweeps plan $* $(CHOICE) $(ARGS)

status: $(INSTALLED) ## how far sweeps are, and what went wrong (ARGS="length --watch")
	@$(PY) -m sweeps status $(ARGS)

logs: $(INSTALLED) ## what the job of a run printed (RUN=3f2a ARGS=-f)
	@$(PY) -m sweeps logs $(RUN) $(ARGS)

cancel: $(INSTALLED) ## stop runs or sweeps (RUN=3f2a, or ARGS="length --state queued")
	@$(PY) -m sweeps cancel $(RUN) $(ARGS)

diff: $(INSTALLED) ## how a run differs from another (RUN=3f2a, or ARGS="3f2a 91bc")
	@$(PY) -m sweeps diff $(RUN) $(ARGS)

clean: $(INSTALLED) ## free what is not needed any more; says first what
	@$(PY) -m sweeps clean $(ARGS)

doctor: $(INSTALLED) ## what a new cluster needs (CLUSTER=slurm ARGS="cluster.partition=gpu cluster.gpus=1")
	@$(PY) -m sweeps doctor $(CHOICE) $(ARGS)

sync: $(INSTALLED) ## send the records that the W&B server does not have (of the sweeps in ARGS; none: the whole store)
	@$(PY) -m sweeps sync $(ARGS)

tables: $(INSTALLED) ## rebuild the tables and figures of every sweep in the store
	@$(PY) -m analysis tables

report: $(INSTALLED) ## one page with everything in the store, report.html; needs no network
	@$(PY) -m analysis report

wandb-report: $(INSTALLED) ## the same page, tables and figures as one run of your W&B project
	@$(PY) -m analysis report --wandb $(ARGS)

notebooks: $(NOTEBOOK) ## the notebooks, executed on the runs at hand, into docs/notebooks/ (ARGS="length" chooses)
	@$(PY) -m analysis notebooks $(ARGS)

notebook: $(NOTEBOOK) ## the notebooks in JupyterLab
	@$(PY) -m jupytext --quiet --sync --set-kernel python3 analysis/notebooks/*.py
	@$(PY) -m jupyter lab --notebook-dir analysis/notebooks $(ARGS)

publish: $(INSTALLED) ## docs/ and README.md say what the records say: claims, tables, figures, the runs behind them
	@$(PY) -m analysis publish README.md docs/results-micro.md

pretrain-micro: $(INSTALLED) ## make the small backbone again (about an hour; its result is committed)
	@$(PY) -m mmprompt.pretrain $(ARGS)

test: $(INSTALLED) ## all tests; those of SLURM skip, and say so, where its daemons are not installed
	@$(PY) -m pytest $(PROCESSES) $(PYTEST_ARGS)

test-all: $(INSTALLED) ## the same and the long ones (an hour)
	@MMPROMPT_LONG=1 $(PY) -m pytest $(PROCESSES) $(PYTEST_ARGS)

chaos: $(INSTALLED) ## sweeps and a search under sixty random faults on the test cluster must give the tables of undisturbed ones
	@$(PY) tests/chaos/run.py $(ARGS)

bench: $(INSTALLED) ## every benchmark, as Markdown; ARGS="planning sweep" chooses
	@$(PY) tests/bench $(ARGS)

lint: $(INSTALLED) ## ruff and mypy
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

slurm-up: $(INSTALLED) ## a real SLURM test cluster on this machine (needs its Debian packages)
	@$(PY) tests/slurm/cluster.py up $(ARGS)

slurm-down: $(INSTALLED) ## stop the test cluster
	@$(PY) tests/slurm/cluster.py down

slurm-status: $(INSTALLED) ## is it up?
	@$(PY) tests/slurm/cluster.py status
