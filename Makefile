# `make` lists what there is. Everything installs what it needs; caches are in ~/.cache/finetune-operator.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
NODES ?= 1
GPUS ?= 8
CLUSTER ?= auto
export PYTHONPATH := api:operator:trainer_image:cli
DEV = V=$$(scripts/venv dev)
TRAINER = T=$$(scripts/venv trainer-test)
PYTEST = -m pytest -p no:cacheprovider

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  \033[1m%-18s\033[0m %s\n", $$1, $$2} /^##@ /{printf "\n%s\n", substr($$0, 5)}' $(MAKEFILE_LIST)

##@ Use it
.PHONY: demo
demo: ## The whole main job on this machine: cluster, images, chart, a real fine-tuning (LOCAL=1: no cluster)
	@$(DEV); $$V/bin/python scripts/demo.py $(if $(LOCAL),--local,--cluster $(CLUSTER))

.PHONY: install-cli
install-cli: ## kubectl finetune and finetune for this user, into BIN (default ~/.local/bin)
	@scripts/install-cli $(BIN)

.PHONY: cluster-up
cluster-up: ## A real Kubernetes on this machine (NODES=0, 1 or 2; GPUS=n advertised per node)
	@$(PYTHON) -m localcluster up --nodes $(NODES) --gpus $(GPUS)
.PHONY: cluster-down
cluster-down: ## Stop it and clean up (PURGE=1: its image store too)
	@$(PYTHON) -m localcluster down $(if $(PURGE),--purge)
.PHONY: cluster-status
cluster-status: ## What runs, where the logs are
	@$(PYTHON) -m localcluster status
.PHONY: images
images: ## Build both images into the local cluster
	@$(PYTHON) -m localcluster image localhost/finetune-operator:dev --dockerfile operator/Dockerfile --context .
	@$(PYTHON) -m localcluster image localhost/finetune-trainer:dev --dockerfile trainer_image/Dockerfile --context .

##@ Work on it
.PHONY: check
check: ## Format, lint, types, import rules, generated files, unit tests: seconds, needs nothing
	@$(DEV); set -x; \
	$$V/bin/ruff format --check .; \
	$$V/bin/ruff check .; \
	$$V/bin/mypy; \
	$$V/bin/lint-imports --no-cache >/dev/null || $$V/bin/lint-imports --no-cache; \
	test ! -e operator/__init__.py -a ! -e trainer_image/__init__.py; \
	$$V/bin/python -m finetune_api.crd crds --check; \
	$$V/bin/python -m finetune_api.crd charts/finetune-operator/files/crds --check; \
	$$V/bin/python -m finetune_api.admission charts/finetune-operator/files/admission/profile-limits.yaml --check; \
	$$V/bin/python $(PYTEST) -q -n 2 -m 'not cluster and not slow and not trainer and not e2e' \
	  --ignore=tests/trainer --ignore=tests/chart

.PHONY: test
test: check ## Everything but the kubelet: the operator against a real API server, training with real ranks
	@$(DEV); $$V/bin/python $(PYTEST) -q -n 2 -m 'cluster or slow' tests/operator; \
	$$V/bin/python $(PYTEST) tests/chart tests/cluster
	@$(TRAINER); PATH=$$T/bin:$$PATH $$T/bin/python $(PYTEST) -m trainer tests/trainer

.PHONY: fuzz
MINUTES ?= 10
fuzz: ## Fuzz the progress endpoint and the manifests (MINUTES=n for each of five tests; a failure names its seed, FUZZ_SEED=n repeats it)
	@$(DEV); FUZZ_MINUTES=$(MINUTES) $$V/bin/python $(PYTEST) -s --timeout=0 tests/operator/test_fuzz_progress.py tests/cluster/test_fuzz_manifests.py

.PHONY: e2e
e2e: ## The whole main job on a real kubelet, and what happens when it is disturbed
	@$(DEV); $$V/bin/python $(PYTEST) -m e2e tests/e2e

.PHONY: bench-operator
bench-operator: ## How soon the operator acts and what memory it needs: build/bench/operator.json
	@$(DEV); PYTHONPATH=$(PYTHONPATH):tests/support:. $$V/bin/python bench/operator_speed.py

.PHONY: bench-restart
bench-restart: ## The operator's start among 1,000 running jobs, and what 1,000 leave: build/bench/operator-restart.json
	@$(DEV); PYTHONPATH=$(PYTHONPATH):tests/support:. $$V/bin/python bench/operator_restart.py

.PHONY: bench-progress
bench-progress: ## What 1,000 jobs that report every 5 s cost the operator (QUICK=1: 50): build/bench/progress.json
	@$(DEV); PYTHONPATH=$(PYTHONPATH):tests/support:bench:. $$V/bin/python bench/progress_load.py $(if $(QUICK),--quick)

.PHONY: bench-trainer
bench-trainer: ## Our trainer beside TRL's, 8 minutes on an idle machine (QUICK=1: less; SEEDS=5: losses of more): build/bench/trainer.json
	@T=$$(scripts/venv bench); PATH=$$T/bin:$$PATH $$T/bin/python bench/trainer_speed.py $(if $(QUICK),--quick) $(if $(SEEDS),--seeds $(SEEDS))

.PHONY: generate
generate: ## Write the generated files: CRDs (also in the chart), tables of docs/ and of the chart's README, dashboards, alert rules
	@$(DEV); $$V/bin/python -m finetune_api.crd crds; $$V/bin/python -m finetune_api.crd charts/finetune-operator/files/crds; \
	$$V/bin/python -m finetune_api.admission charts/finetune-operator/files/admission/profile-limits.yaml; \
	$$V/bin/python scripts/memory_table.py; $$V/bin/python scripts/metrics_table.py; $$V/bin/python scripts/monitoring.py; \
	$$V/bin/python scripts/chart_readme.py; $$V/bin/python scripts/profile_table.py
.PHONY: chart-template
chart-template: ## Print what the chart makes of its defaults (VALUES=file: of these)
	@$$($(PYTHON) -m localcluster tool helm) template finetune-operator charts/finetune-operator --namespace finetune-system \
	  --kube-version 1.30.0 --skip-tests $(if $(VALUES),--values $(VALUES))
.PHONY: format
format: ## Format the code
	@$(DEV); $$V/bin/ruff format .; $$V/bin/ruff check --fix .
.PHONY: golden
golden: generate ## Write the expected manifests of the tests anew; read the diff
	@$(DEV); $$V/bin/python $(PYTEST) -q tests/operator --update-golden
.PHONY: lock
lock: ## Pin requirements/*.in into hashed requirements/*.txt
	@scripts/lock
# What the trainer's image installs, by the names of requirements/: build is used, but not in it.
IN_TRAINER = $(filter-out build,$(sort $(basename $(notdir $(shell grep -oh 'requirements/[a-z]*\.txt' trainer_image/Dockerfile)))))
.PHONY: audit
audit: ## Known holes and licences of all that is pinned; asks PyPI (ADVISORIES=directory: a copy of pypa/advisory-database; BASE=commit: what has changed since)
	@$(DEV); $(TRAINER); A=$$(scripts/venv audit); D=$$(echo $$V/lib/python3*/site-packages); \
	$$V/bin/python scripts/dependency_audit.py --pip-audit $$A/bin/pip-audit $(if $(BASE),--base $(BASE)) $(if $(ADVISORIES),--advisories $(ADVISORIES)) --installed \
	  operator=$$D cli=$$D $(addsuffix =$$(echo $$T/lib/python3*/site-packages),$(IN_TRAINER))
.PHONY: sbom
sbom: ## What both images' requirements are made of, as CycloneDX with hashes: build/sbom/
	@A=$$(scripts/venv audit); mkdir -p build/sbom; for name in operator $(IN_TRAINER); do \
	  $$A/bin/cyclonedx-py requirements requirements/$$name.txt --output-reproducible --output-format JSON \
	    --output-file build/sbom/$$name.json; \
	done; ls -l build/sbom
.PHONY: clean
clean: ## Stop the local cluster and remove what was made in this checkout
	@$(PYTHON) -m localcluster down --purge; rm -rf build .mypy_cache .ruff_cache .pytest_cache
