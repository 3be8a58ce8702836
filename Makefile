# The two main commands are `make sweep-length` and `make test`. `make help` lists all of them.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
NOTEBOOK := $(VENV)/.notebook# exists once Jupyter is installed, which happens when it is first needed

# CLUSTER=auto|local|slurm, TASKS=micro_vqa,micro_caption or all, RUNS=the store,
# ARGS="seed=0,1,2,3,4 optim.steps=300 --wait"; quote characters that have a meaning for the shell: ARGS="'seed=range(1,6)'"
# RUN=the beginning of a run's id; YES=1 skips the confirmation before jobs are submitted or cancelled, or files deleted
CLUSTER ?= auto
TASKS ?=
ARGS ?=
RUN ?=
RUNS ?= $(or $(MMPROMPT_RUNS),runs)
export MMPROMPT_RUNS := $(abspath $(RUNS))
export YES
PAPER := main methods depth reparameterization length robustness convergence
COSTS := methods convergence# the sweeps of these whose costs are measured too
SEEDS := 11,12,13,14,15# used by `make paper`; a sweep launched alone uses the three seeds in its file
# tests: two processes run the tests of SLURM and mostly wait; two others use two cores
PROCESSES := -n 4
CHOICE := cluster=$(CLUSTER) $(if $(filter all,$(TASKS)),'task=glob(micro_*)',$(if $(TASKS),task=$(TASKS)))

.DEFAULT_GOAL := help
.PHONY: help install paper publish report wandb-report notebooks notebook status logs cancel diff clean doctor sync tables test test-all chaos bench bench-gpu lint pretrain-micro \
	slurm-up slurm-down slurm-status

help: ## print this list
	@echo "mmprompt: ablations of prompt tuning, from config to table"
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-18s %s\n", $$1, $$2}'
	@echo "  with CLUSTER=auto|local|slurm, TASKS=all or a list, RUNS=the store, ARGS=\"KEY=VALUE ...\" (Hydra's grammar)"
	@echo "  sweeps: $(basename $(notdir $(wildcard conf/sweep/*.yaml)))"
	@echo "  searches: $(basename $(notdir $(wildcard conf/search/[!_]*.yaml)))"

install: $(INSTALLED) ## install the pinned packages into .venv; every target does this when needed

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

sweep-%: $(INSTALLED) ## train and evaluate the runs of a sweep that are not done yet, then write its table and figure
	@$(PY) -m sweeps launch $* $(CHOICE) $(ARGS); status=$$?; \
	if [ $$status -eq 2 ]; then exit 2; fi; $(PY) -m analysis tables $* || exit $$?; exit $$status

paper: $(INSTALLED) ## train and evaluate all sweeps of the paper as one launch, with five seeds; measure costs; write all tables and figures
	@$(PY) -m sweeps launch zero_shot $(CHOICE) $(ARGS); \
	$(PY) -m sweeps launch $(PAPER) seed=$(SEEDS) $(CHOICE) $(ARGS); status=$$?; \
	if [ $$status -eq 2 ]; then exit 2; fi; \
	if [ $$status -eq 0 ]; then for one in $(COSTS); do $(PY) -m sweeps measure $$one seed=$(SEEDS) $(CHOICE) $(ARGS); done; fi; \
	$(PY) -m analysis tables zero_shot $(PAPER) || exit $$?; exit $$status

search-%: $(INSTALLED) ## look for the best settings, trial by trial, and confirm them on fresh seeds, then write tables and a figure
	@$(PY) -m sweeps search $* $(CHOICE) $(ARGS); status=$$?; \
	if [ $$status -eq 2 ]; then exit 2; fi; $(PY) -m analysis tables search-$* || exit $$?; exit $$status

costs-%: $(INSTALLED) ## measure the rows of a sweep side by side: seconds, memory; then write its table with them
	@$(PY) -m sweeps measure $* $(CHOICE) $(ARGS); status=$$?; \
	if [ $$status -eq 2 ]; then exit 2; fi; $(PY) -m analysis tables $* || exit $$?; exit $$status

plan-search-%: $(INSTALLED) ## say what `make search-%` would do, and what it costs; changes nothing
	@$(PY) -m sweeps search plan $* $(CHOICE) $(ARGS)

plan-%: $(INSTALLED) ## say what `make sweep-%` would do, and what it costs; changes nothing
	@$(PY) -m sweeps plan $* $(CHOICE) $(ARGS)

status: $(INSTALLED) ## show how far sweeps are, and what went wrong (ARGS="length --watch")
	@$(PY) -m sweeps status $(ARGS)

logs: $(INSTALLED) ## print the output of a run's job (RUN=3f2a ARGS=-f)
	@$(PY) -m sweeps logs $(RUN) $(ARGS)

cancel: $(INSTALLED) ## stop runs or sweeps (RUN=3f2a, or ARGS="length --state queued")
	@$(PY) -m sweeps cancel $(RUN) $(ARGS)

diff: $(INSTALLED) ## show in which settings a run differs from another (RUN=3f2a, or ARGS="3f2a 91bc")
	@$(PY) -m sweeps diff $(RUN) $(ARGS)

clean: $(INSTALLED) ## free disk space that is no longer needed; lists it first, and asks
	@$(PY) -m sweeps clean $(ARGS)

doctor: $(INSTALLED) ## try your cluster settings; for each fault, show the line that fixes it (CLUSTER=slurm ARGS="cluster.gpus=1")
	@$(PY) -m sweeps doctor $(CHOICE) $(ARGS)

sync: $(INSTALLED) ## send the W&B records that the server does not have (ARGS="length" chooses sweeps; default: the whole store)
	@$(PY) -m sweeps sync $(ARGS)

tables: $(INSTALLED) ## write and print the tables and figures of all sweeps in the store
	@$(PY) -m analysis tables

report: $(INSTALLED) ## write the report page, report.html in the store: one file, no network
	@$(PY) -m analysis report

wandb-report: $(INSTALLED) ## write the same page, tables and figures as one run of your W&B project
	@$(PY) -m analysis report --wandb $(ARGS)

notebooks: $(NOTEBOOK) ## execute the notebooks on your runs, and write them into docs/notebooks/ (ARGS="length" chooses)
	@$(PY) -m analysis notebooks $(ARGS)

notebook: $(NOTEBOOK) ## open the notebooks in JupyterLab
	@$(PY) -m jupytext --quiet --sync --set-kernel python3 analysis/notebooks/*.py
	@$(PY) -m jupyter lab --notebook-dir analysis/notebooks $(ARGS)

publish: $(INSTALLED) ## write results into README.md and docs/: claims, tables, figures, and the runs behind them
	@$(PY) -m analysis publish README.md docs/results-micro.md

pretrain-micro: $(INSTALLED) ## make the small backbone again (about an hour; the result is in the repository)
	@$(PY) -m mmprompt.pretrain $(ARGS)

test: $(INSTALLED) ## run the tests; those of SLURM are skipped, with the reason, if its daemons are not installed
	@$(PY) -m pytest $(PROCESSES) $(PYTEST_ARGS)

test-all: $(INSTALLED) ## run the long tests as well (an hour)
	@MMPROMPT_LONG=1 $(PY) -m pytest $(PROCESSES) $(PYTEST_ARGS)

chaos: $(INSTALLED) ## run sweeps and a search under sixty random faults on the test cluster; check that their tables are those of undisturbed ones
	@$(PY) tests/chaos/run.py $(ARGS)

bench: $(INSTALLED) ## run every benchmark, and print Markdown (ARGS="planning sweep" chooses)
	@$(PY) tests/bench $(ARGS)

bench-gpu: $(INSTALLED) ## measure a step and decoding of the official sizes on a GPU, as a share of its rate (without one: the small model)
	@$(PY) tests/bench gpu

lint: $(INSTALLED) ## run ruff and mypy
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

slurm-up: $(INSTALLED) ## start a real SLURM test cluster on this machine (needs its Debian packages)
	@$(PY) tests/slurm/cluster.py up $(ARGS)

slurm-down: $(INSTALLED) ## stop the test cluster
	@$(PY) tests/slurm/cluster.py down

slurm-status: $(INSTALLED) ## show whether the test cluster is up
	@$(PY) tests/slurm/cluster.py status
