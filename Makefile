# Every target makes .venv from nothing if it needs it; `make` alone lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= --out runs/demo --resume
EXTRAS := lora,optimizers,train,gguf,data,dense,serve,mcp,trl,docs,dev
CONSTRAINTS := requirements/constraints.txt
LICENCES := requirements/LICENCES.md

# The stamp is written last, so an install that was cut short is done again. The marker tells that
# there was one: pip would take its half-unpacked packages for installed, so it starts afresh.
INSTALLED := $(VENV)/.installed
UNFINISHED := $(VENV)/.unfinished

# The newest CPU build of torch that pip's indexes offer in [2.6, 2.14), as in pyproject.toml, or
# nothing if they offer none. Left to itself, pip prefers a newer CUDA build, gigabytes larger.
# `make venv TORCH=torch==2.13.0` overrides it.
define newest_cpu_torch
$$({ $(1)/bin/python -m pip index versions torch 2>/dev/null | tr ', ' '\n\n'; \
	printf '2.6\n2.14\n'; } | sort -V | sed -n '/^2\.6$$/,/^2\.14$$/p' \
	| sed -n 's/^\([0-9.]*+cpu\)$$/torch==\1/p' | tail -n 1)
endef
TORCH = $(newest_cpu_torch)

# Installs the checkout and its extras into the environment $(1), with the pip options $(2).
install = $(1)/bin/python -m pip install $(2) -e ".[$(EXTRAS)]" $(TORCH)

# OpenRLHF pins packages in other versions than ours, so it has an environment of its own.
OPENRLHF := .venv-openrlhf
OPENRLHF_PINS := requirements/openrlhf-cpu.txt
OPENRLHF_PIP := $(OPENRLHF)/bin/python -m pip install --no-deps --no-compile
OPENRLHF_GPU := .venv-openrlhf-gpu
OPENRLHF_GPU_PINS := requirements/openrlhf-gpu.txt
OPENRLHF_GPU_PIP := $(OPENRLHF_GPU)/bin/python -m pip install --no-build-isolation

# So have verifiers and SkyRL.
VERIFIERS := .venv-verifiers
VERIFIERS_PINS := requirements/verifiers.txt
SKYRL := .venv-skyrl
SKYRL_PINS := requirements/skyrl.txt

# verl holds transformers back, and brings Ray.
VERL := .venv-verl
VERL_PINS := requirements/verl.txt

# OpenEnv brings a hundred packages along, which nothing else here needs.
OPENENV := .venv-openenv
OPENENV_PINS := requirements/openenv.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv venv-openrlhf-gpu venv-openenv demo docs test test-openrlhf test-verifiers test-skyrl test-verl test-openenv test-adapters lint format constraints fuzz faults soak wheel audit \
	licences clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

venv: $(INSTALLED) ## Make .venv and install the checkout with everything it needs

venv-openrlhf-gpu: ## Make .venv-openrlhf-gpu, for OpenRLHF on GPUs (never run here)
	rm -rf $(OPENRLHF_GPU)
	$(PYTHON) -m venv $(OPENRLHF_GPU)
	$(OPENRLHF_GPU_PIP) $$(grep '^torch==' $(OPENRLHF_GPU_PINS)) \
		ninja packaging psutil "setuptools>=77.0.3,<81" wheel
	$(OPENRLHF_GPU_PIP) -r $(OPENRLHF_GPU_PINS)
	$(OPENRLHF_GPU_PIP) --no-deps -e .

venv-openenv: $(OPENENV)/.installed ## Make .venv-openenv, for the OpenEnv environment

demo: $(INSTALLED) ## Run the demonstration; results land in runs/demo
	$(BIN)/python -m scripts.demo $(DEMO)

docs: $(INSTALLED) ## Build the documentation into docs/_build; warnings are errors
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build

test: $(INSTALLED) ## Run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-openrlhf: $(OPENRLHF)/.installed ## Run the tests of the OpenRLHF trainer, on a CPU
	$(OPENRLHF)/bin/python -m pytest tests/openrlhf

test-verifiers: $(VERIFIERS)/.installed ## Run the tests of the environment in verifiers
	$(VERIFIERS)/bin/python -m pytest --confcutdir=tests/verifiers tests/verifiers

test-openenv: $(OPENENV)/.installed ## Run the tests of the OpenEnv environment
	$(OPENENV)/bin/python -m pytest --confcutdir=tests/openenv tests/openenv

test-skyrl: $(SKYRL)/.installed ## Run the tests of the environment and the credit in SkyRL
	$(SKYRL)/bin/python -m pytest --confcutdir=tests/skyrl tests/skyrl

test-verl: $(VERL)/.installed ## Run the tests of the agent loop and the credit in verl
	$(VERL)/bin/python -m pytest --confcutdir=tests/verl tests/verl

test-adapters: test-openrlhf test-verifiers test-skyrl test-verl test-openenv ## Run the tests of all trainers of others

lint: $(INSTALLED) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## Sort imports, fix what can be fixed, lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: ## Pin the newest versions of all dependencies afresh
	rm -rf $(VENV)-constraints
	$(PYTHON) -m venv $(VENV)-constraints
	$(call install,$(VENV)-constraints)
	{ grep '^#' $(CONSTRAINTS); $(VENV)-constraints/bin/python -m pip freeze --all --exclude-editable \
		| sed -e '/^pip==/d' -e 's/^torch==.*/torch>=2.6,<2.14/'; } > $(CONSTRAINTS).new
	mv $(CONSTRAINTS).new $(CONSTRAINTS)
	rm -rf $(VENV)-constraints

fuzz: $(INSTALLED) ## Play a million random inputs to what reads strangers' text (minutes)
	$(BIN)/python -m scripts.campaigns.fuzz --out runs/fuzz

faults: $(INSTALLED) ## Kill, starve and disturb the programs, and compare what is left (an hour)
	$(BIN)/python -m scripts.campaigns.faults --out runs/faults --report docs/results

soak: $(INSTALLED) ## Run environment, trainer and server for long, and watch memory and time (an hour)
	$(BIN)/python -m scripts.campaigns.soak --out runs/soak --report docs/results

wheel: $(INSTALLED) ## Build the wheel of this commit into dist; the same commit gives the same bytes
	rm -rf build/commit && mkdir -p build/commit
	git archive HEAD | tar -xp -C build/commit
	umask 022 && SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) \
		$(BIN)/python -m build --wheel --no-isolation --outdir dist build/commit

audit: $(INSTALLED) ## Look up known vulnerabilities of the installed packages (needs the internet)
	$(BIN)/pip-audit --local --skip-editable

licences: $(INSTALLED) ## List the licences of all dependencies in requirements/LICENCES.md
	$(BIN)/pip-licenses --from=mixed --with-system --format=markdown --output-file=$(LICENCES) --packages \
		$$(sed -n 's/^\([A-Za-z0-9][A-Za-z0-9._-]*\)[=><].*/\1/p' $(CONSTRAINTS))

clean: ## Remove what building and testing leave behind; keeps .venv and runs/
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		docs/_build docs/jupyter_execute docs/reference/generated
	find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@if [ -e $(UNFINISHED) ]; then rm -rf $(VENV); fi
	@mkdir -p $(VENV) && touch $(UNFINISHED)
	$(PYTHON) -m venv $(VENV)
	$(call install,$(VENV),-c $(CONSTRAINTS))
	@rm $(UNFINISHED)
	@touch $@

$(OPENRLHF)/.installed: pyproject.toml $(OPENRLHF_PINS)
	rm -rf $(OPENRLHF)
	$(PYTHON) -m venv $(OPENRLHF)
	grep -v '^deepspeed==' $(OPENRLHF_PINS) > $(OPENRLHF)/pins.txt
	$(OPENRLHF_PIP) -r $(OPENRLHF)/pins.txt
	DS_BUILD_OPS=0 $(OPENRLHF_PIP) --no-build-isolation $$(grep '^deepspeed==' $(OPENRLHF_PINS))
	$(OPENRLHF_PIP) --no-build-isolation -e .
	@touch $@

$(VERIFIERS)/.installed: pyproject.toml trainers/verifiers/pyproject.toml $(VERIFIERS_PINS)
	rm -rf $(VERIFIERS)
	$(PYTHON) -m venv $(VERIFIERS)
	$(VERIFIERS)/bin/python -m pip install --no-deps --no-compile -r $(VERIFIERS_PINS)
	$(VERIFIERS)/bin/python -m pip install --no-deps --no-build-isolation -e . -e trainers/verifiers
	@touch $@

$(OPENENV)/.installed: pyproject.toml trainers/openenv/pyproject.toml $(OPENENV_PINS)
	rm -rf $(OPENENV)
	$(PYTHON) -m venv $(OPENENV)
	$(OPENENV)/bin/python -m pip install --no-deps --no-compile -r $(OPENENV_PINS)
	$(OPENENV)/bin/python -m pip install --no-deps --no-build-isolation -e . -e trainers/openenv
	@touch $@

$(SKYRL)/.installed: pyproject.toml $(SKYRL_PINS)
	rm -rf $(SKYRL)
	$(PYTHON) -m venv $(SKYRL)
	$(SKYRL)/bin/python -m pip install --no-deps --no-compile --ignore-requires-python \
		-r $(SKYRL_PINS)
	$(SKYRL)/bin/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@

$(VERL)/.installed: pyproject.toml $(VERL_PINS)
	rm -rf $(VERL)
	$(PYTHON) -m venv $(VERL)
	$(VERL)/bin/python -m pip install --no-deps --no-compile -r $(VERL_PINS)
	$(VERL)/bin/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@
