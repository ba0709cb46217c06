# Every target makes .venv from nothing if it needs it; `make` alone lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= --out runs/demo --resume
EXTRAS := eval,lora,optimizers,train,gguf,data,dense,serve,mcp,trl,docs,dev
CONSTRAINTS := requirements/constraints.txt
LICENCES := requirements/LICENCES.md

# Installed packages are compiled when they are first used, not all at once by pip; that must be kept.
unexport PYTHONDONTWRITEBYTECODE

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
install = $(1)/bin/python -m pip install --no-compile $(2) -e ".[$(EXTRAS)]" $(TORCH)

# The trainers of others pin packages in other versions than ours, so each has an environment of its
# own. What pip installs there is known by the hash of its pins, and the checkout by that of its
# metadata and its place: as long as they stay the same, nothing is installed again. With
# ENVIRONMENTS=FOLDER they outlive the checkout, which CI makes afresh.
ENVIRONMENTS ?= .
OPENRLHF := $(ENVIRONMENTS)/.venv-openrlhf
VERIFIERS := $(ENVIRONMENTS)/.venv-verifiers
SKYRL := $(ENVIRONMENTS)/.venv-skyrl
VERL := $(ENVIRONMENTS)/.venv-verl
OPENENV := $(ENVIRONMENTS)/.venv-openenv
OPENRLHF_PINS := requirements/openrlhf-cpu.txt
VERIFIERS_PINS := requirements/verifiers.txt
SKYRL_PINS := requirements/skyrl.txt
VERL_PINS := requirements/verl.txt
OPENENV_PINS := requirements/openenv.txt

PYTHON_VERSION := $(shell $(PYTHON) --version)
hash = $(shell { $(1); } | sha256sum | cut -c 1-12)
# The stamps of the environment $(1): packages of the pins $(2), and the checkout with $(3) besides.
packages = $(1)/.packages-$(call hash,cat $(2); echo $(PYTHON_VERSION))
checkout = $(1)/.checkout-$(call hash,cat pyproject.toml $(addsuffix /pyproject.toml,$(3)); pwd)
OPENRLHF_READY := $(call checkout,$(OPENRLHF),)
VERIFIERS_READY := $(call checkout,$(VERIFIERS),trainers/verifiers)
SKYRL_READY := $(call checkout,$(SKYRL),)
VERL_READY := $(call checkout,$(VERL),)
OPENENV_READY := $(call checkout,$(OPENENV),trainers/openenv)
OPENRLHF_PACKAGES := $(call packages,$(OPENRLHF),$(OPENRLHF_PINS))
VERIFIERS_PACKAGES := $(call packages,$(VERIFIERS),$(VERIFIERS_PINS))
SKYRL_PACKAGES := $(call packages,$(SKYRL),$(SKYRL_PINS))
VERL_PACKAGES := $(call packages,$(VERL),$(VERL_PINS))
OPENENV_PACKAGES := $(call packages,$(OPENENV),$(OPENENV_PINS))
ADAPTERS := openrlhf verifiers skyrl verl openenv

# Makes the environment $(1) and installs pins into it, with the pip options $(2).
install_pins = rm -rf $(1) && $(PYTHON) -m venv $(1) && \
	$(1)/bin/python -m pip install --no-deps --no-compile $(2)
# Installs this checkout, and further packages of it $(2), into the environment $(1).
install_checkout = rm -f $(1)/.checkout-* && \
	$(1)/bin/python -m pip install --no-deps --no-build-isolation -e . $(addprefix -e ,$(2))

OPENRLHF_GPU := .venv-openrlhf-gpu
OPENRLHF_GPU_PINS := requirements/openrlhf-gpu.txt
OPENRLHF_GPU_PIP := $(OPENRLHF_GPU)/bin/python -m pip install --no-build-isolation

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv venv-openrlhf-gpu $(addprefix venv-,$(ADAPTERS)) demo docs test \
	$(addprefix test-,$(ADAPTERS)) test-adapters lint format constraints fuzz faults soak wheel audit \
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

venv-openrlhf: $(OPENRLHF_READY) ## Make .venv-openrlhf, for OpenRLHF on a CPU

venv-verifiers: $(VERIFIERS_READY) ## Make .venv-verifiers, for the environment in verifiers

venv-skyrl: $(SKYRL_READY) ## Make .venv-skyrl, for SkyRL

venv-verl: $(VERL_READY) ## Make .venv-verl, for verl

venv-openenv: $(OPENENV_READY) ## Make .venv-openenv, for the OpenEnv environment

demo: $(INSTALLED) ## Run the demonstration; results land in runs/demo
	$(BIN)/python -m scripts.demo $(DEMO)

docs: $(INSTALLED) ## Build the documentation into docs/_build; warnings are errors
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build

test: $(INSTALLED) ## Run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-openrlhf: $(OPENRLHF_READY) ## Run the tests of the OpenRLHF trainer, on a CPU
	$(OPENRLHF)/bin/python -m pytest tests/openrlhf

test-verifiers: $(VERIFIERS_READY) ## Run the tests of the environment in verifiers
	$(VERIFIERS)/bin/python -m pytest --confcutdir=tests/verifiers tests/verifiers

test-openenv: $(OPENENV_READY) ## Run the tests of the OpenEnv environment
	$(OPENENV)/bin/python -m pytest --confcutdir=tests/openenv tests/openenv

test-skyrl: $(SKYRL_READY) ## Run the tests of the environment and the credit in SkyRL
	$(SKYRL)/bin/python -m pytest --confcutdir=tests/skyrl tests/skyrl

test-verl: $(VERL_READY) ## Run the tests of the agent loop and the credit in verl
	$(VERL)/bin/python -m pytest --confcutdir=tests/verl tests/verl

test-adapters: $(addprefix test-,$(ADAPTERS)) ## Run the tests of all trainers of others

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

$(OPENRLHF_PACKAGES):
	$(call install_pins,$(OPENRLHF),$$(grep -v '^#\|^deepspeed==' $(OPENRLHF_PINS)))
	DS_BUILD_OPS=0 $(OPENRLHF)/bin/python -m pip install --no-deps --no-compile \
		--no-build-isolation $$(grep '^deepspeed==' $(OPENRLHF_PINS))
	@touch $@

$(VERIFIERS_PACKAGES):
	$(call install_pins,$(VERIFIERS),-r $(VERIFIERS_PINS))
	@touch $@

$(SKYRL_PACKAGES):
	$(call install_pins,$(SKYRL),--ignore-requires-python -r $(SKYRL_PINS))
	@touch $@

$(VERL_PACKAGES):
	$(call install_pins,$(VERL),-r $(VERL_PINS))
	@touch $@

$(OPENENV_PACKAGES):
	$(call install_pins,$(OPENENV),-r $(OPENENV_PINS))
	@touch $@

$(OPENRLHF_READY): $(OPENRLHF_PACKAGES)
	$(call install_checkout,$(OPENRLHF),)
	@touch $@

$(VERIFIERS_READY): $(VERIFIERS_PACKAGES)
	$(call install_checkout,$(VERIFIERS),trainers/verifiers)
	@touch $@

$(SKYRL_READY): $(SKYRL_PACKAGES)
	$(call install_checkout,$(SKYRL),)
	@touch $@

$(VERL_READY): $(VERL_PACKAGES)
	$(call install_checkout,$(VERL),)
	@touch $@

$(OPENENV_READY): $(OPENENV_PACKAGES)
	$(call install_checkout,$(OPENENV),trainers/openenv)
	@touch $@
