# Everything from nothing: needs Python 3.11 or newer, and make.
PYTHON ?= python3
STUDY ?= params/small.yaml
BENCH ?= params/bench.yaml
CORES ?= all
# default: this machine; slurm: a job for every notebook. Another name is a folder of profiles/.
PROFILE ?= default

VENV := .venv
BIN := $(VENV)/bin
PIP_VERSION := 26.3
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt --build-constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help study smoke changes claim learning test test-all faults bench lab clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  STUDY=params/paper.yaml  another study     (now $$STUDY)"
	@echo "  CORES=4                  how many cores    (now $$CORES)"
	@echo "  PROFILE=slurm            on a cluster      (now $$PROFILE)"
	@echo "  PYTHON=python3.12        another Python    (now $(PYTHON))"
	@echo "  LAB=\"--no-browser\"       options of JupyterLab, for make lab"

# As variables of the shell, which are only text to it, and none that make would expand first.
override STUDY := $(value STUDY)
override BENCH := $(value BENCH)
override CORES := $(value CORES)
override PROFILE := $(value PROFILE)
export STUDY BENCH CORES PROFILE

# What holds for every run is in profiles/default, which snakemake reads by itself. Every other
# profile is for a cluster.
HERE := $(filter default,$(PROFILE))
WHERE := $(if $(HERE),--cores "$$CORES",--profile "profiles/$$PROFILE")

study: $(VENV)/$(if $(HERE),.installed,.installed-slurm) ## run a study and print where its report is
	$(BIN)/snakemake $(WHERE) --quiet host reason --config study="$$STUDY"
	@$(BIN)/python -c "import os; from zdc_nb.params import load_study; \
	print('\nThe report:', load_study(os.environ['STUDY']).reports / 'index.html')"

smoke: ## the same on params/smoke.yaml, in minutes
	@$(MAKE) --no-print-directory study STUDY=params/smoke.yaml

# Slurm and Chromium are unpacked for the tests, not installed. On a machine without apt-get they do without.
define CHECK
$(if $(wildcard /usr/bin/apt-get),-$(BIN)/python -m tests.slurm_cluster install)
$(if $(wildcard /usr/bin/apt-get),-$(BIN)/python -m tests.browser)
$(BIN)/ruff check .
$(BIN)/ruff format --check .
$(BIN)/mypy
$(BIN)/lint-imports --no-cache --no-logo
endef
# Files as they come: else those with the fewest tests, which take longest, would be left to the end.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1 \
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-dev ## all that CI checks: ruff, mypy, imports, examples, the tests but the slow
	$(CHECK)
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.installed-all ## before a release: the slow tests, too, and more random input
	$(CHECK)
	ZDC_TESTS=all $(PYTEST)

faults: $(VENV)/.installed-dev ## kill the smoke study 20 times, compare its results with a quiet run's
	$(BIN)/python -m tests.kill_grid params/smoke.yaml --kills 20

# Under another name until it has succeeded, so that a run that failed is not taken for done.
BENCH_RESULTS = "reports/$$(basename "$$BENCH" .yaml)"

bench: $(VENV)/.installed-bench ## time this project beside nflows and Pyro, print where the report is
	@mkdir -p $(BENCH_RESULTS)
	$(BIN)/papermill notebooks/17_benchmark.ipynb $(BENCH_RESULTS)/17_benchmark.running.ipynb \
	--kernel python3 --no-progress-bar --stdout-file /dev/stdout -r bench "$$BENCH"
	@mv $(BENCH_RESULTS)/17_benchmark.running.ipynb $(BENCH_RESULTS)/17_benchmark.ipynb
	@$(BIN)/python -m zdc_nb.study.pages $(BENCH_RESULTS)/17_benchmark.ipynb $(BENCH_RESULTS)/index.html
	@echo "The report: $$PWD/"$(BENCH_RESULTS)/index.html

CHANGES ?= params/changes.yaml
CLAIM ?= params/claim.yaml
override CHANGES := $(value CHANGES)
override CLAIM := $(value CLAIM)
export CHANGES CLAIM

# Studies that the file $$FILE names, one after the other since each takes all cores; then the
# notebook that puts them side by side, under its name once it has succeeded.
define SIDE_BY_SIDE
@$(BIN)/python -m zdc_nb.study.$(1) "$$FILE" | while read -r study; do \
$(MAKE) --no-print-directory study STUDY="$$study" || exit; done
@folder="reports/$$(basename "$$FILE" .yaml)"; mkdir -p "$$folder" && \
$(BIN)/papermill notebooks/$(2).ipynb "$$folder/$(2).running.ipynb" \
--kernel python3 --no-progress-bar --stdout-file /dev/stdout -r $(1) "$$FILE" && \
mv "$$folder/$(2).running.ipynb" "$$folder/$(2).ipynb" && \
$(BIN)/python -m zdc_nb.study.pages "$$folder/$(2).ipynb" "$$folder/index.html" && \
echo "The report: $$PWD/$$folder/index.html"
endef

changes: export FILE = $(CHANGES)
changes: $(VENV)/.installed ## what each change is worth, from the published recipe to the splitting flow
	$(call SIDE_BY_SIDE,changes,18_changes)

claim: export FILE = $(CLAIM)
claim: $(VENV)/.installed ## does the physics in the loss help? Hours: many students, three trainings each
	$(call SIDE_BY_SIDE,claim,20_claim)

LEARNING ?= params/learning.yaml
override LEARNING := $(value LEARNING)
export LEARNING

# Each point of the curve is kept when it is done, so that the same command goes on.
learning: export OMP_NUM_THREADS = 1
learning: $(VENV)/.installed ## a learning curve: more particles, or more responses to each?
	@folder="reports/$$(basename "$$LEARNING" .yaml)"; mkdir -p "$$folder" && \
	$(BIN)/papermill notebooks/19_learning.ipynb "$$folder/19_learning.running.ipynb" \
	--kernel python3 --no-progress-bar --stdout-file /dev/stdout -r learning "$$LEARNING" && \
	mv "$$folder/19_learning.running.ipynb" "$$folder/19_learning.ipynb" && \
	$(BIN)/python -m zdc_nb.study.pages "$$folder/19_learning.ipynb" "$$folder/index.html" && \
	echo "The report: $$PWD/$$folder/index.html"

# More options of JupyterLab: LAB="--allow-root --no-browser --port 8888".
LAB ?=
override LAB := $(value LAB)
export LAB

# Words of $$LAB, of which the shell makes nothing: neither names of files nor commands.
lab: $(VENV)/.installed ## JupyterLab with this project's kernel; opens notebooks/00_explorer.ipynb
	@$(BIN)/python -m ipykernel install --sys-prefix --display-name "Python 3 (zdc-nb)"
	@set -f; more=$$($(BIN)/python -m zdc_nb.study.lab $$LAB) && \
	$(BIN)/jupyter lab --ServerApp.root_dir="$$PWD" \
	--LabApp.default_url=/lab/tree/notebooks/00_explorer.ipynb $$more $$LAB

clean: ## remove the results of all studies, and caches; .venv stays
	rm -rf artifacts reports .snakemake .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; v = sys.version.split()[0]; \
	sys.exit(None if sys.version_info >= (3, 11) else f'Python 3.11 or newer is needed, $(PYTHON) is {v}; try make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install pip==$(PIP_VERSION)
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-slurm: $(VENV)/.installed
	$(INSTALL) --editable ".[slurm]"
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(INSTALL) --group bench
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-slurm
	$(INSTALL) --group dev
	@touch $@

$(VENV)/.installed-all: $(VENV)/.installed-dev
	$(INSTALL) --editable ".[slurm,wandb]"
	@touch $@
