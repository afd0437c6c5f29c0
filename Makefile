# From a bare machine: `make demo` shows the whole walk, `make test` runs the tests, `make check` reads the code without
# running it. Suites of their own: `make test-stack` starts Prefect and Ray and types the guides' commands,
# `make test-faults` kills and damages things, `make test-long` takes minutes per test, `make test-cpus` runs the tests of
# numbers as on other CPUs.
# `make bench-peers` measures our stream beside other libraries', which get an environment of their own.
#   EXTRAS=gpu,offline,dev   on a machine with NVIDIA GPUs
#   PYTHON=python3.12        another interpreter (3.11 to 3.13)
PYTHON ?= python3
EXTRAS ?= cpu,offline,dev
VENV := .venv
comma := ,
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
# The two distributions of FAISS share one folder: never both.
OTHER_FAISS := $(if $(findstring gpu,$(EXTRAS)),faiss-cpu,faiss-gpu)
# Two at a time: the tests of the stack mostly wait for its processes (tests/conftest.py).
PYTEST_OPTIONS ?= -n 2 --dist loadgroup

# What tests must not need: `make test` runs without these extras (pyproject.toml's [tool.deptry]).
NOT_TESTED_PLAINLY := openvino,kernels,exports,git-theta,interop

PEERS := .venv-peers
PEERS_PINS := tests/benchmarks/peers/requirements.txt
PEERS_OPTIONS ?= --json $(PEERS)/result.json

.PHONY: check demo test test-cpus test-cpu-ci test-faults test-long test-stack bench-peers bench-gpu install down

demo: install
	@$(VENV)/bin/soe demo

check: install
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check -q .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/codespell $$(git ls-files '*.py' '*.md' '*.c' '*.js' '*.html' '*.yaml')
	@$(VENV)/bin/deptry storage_schema pipeline soe_model flows
	@$(VENV)/bin/deptry tests --optional-dependencies-dev-groups $(NOT_TESTED_PLAINLY) --ignore DEP002

test: install
	@$(VENV)/bin/python -m pytest $(PYTEST_OPTIONS)

# What a CPU can do decides in which order its libraries add up, and so the last bits of what they compute. Every test of
# numbers must hold on each: on one without AVX and FMA (alone: test-cpu-ci), on one without AVX-512, with other threads.
NUMBERS := $(filter-out tests/soe_model/exports/% %_memory.py %_hostile_soups.py, \
	$(wildcard tests/soe_model/test_*.py tests/soe_model/*/test_*.py)) tests/test_planted.py \
	$(patsubst %,tests/pipeline/%,tree mixtures domains embeddings/test_build.py reports/test_atlas.py \
	specialists/test_domain_weights.py stream/test_gather.py stream/test_replay.py)
OLD_CPU := ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Nehalem \
	FAISS_SIMD_LEVEL=NONE NPY_DISABLE_CPU_FEATURES=X86_V3,X86_V4,AVX512_ICL,AVX512_SPR
AVX2_CPU := ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=Haswell FAISS_SIMD_LEVEL=AVX2

test-cpu-ci: install
	@$(OLD_CPU) $(VENV)/bin/python -m pytest $(PYTEST_OPTIONS) $(NUMBERS)

test-cpus: test-cpu-ci
	@for cpu in "$(AVX2_CPU)" OMP_NUM_THREADS=2 OMP_NUM_THREADS=4; do echo "$$cpu"; \
		env $$cpu $(VENV)/bin/python -m pytest $(PYTEST_OPTIONS) $(NUMBERS) || exit; done

test-faults: install
	@$(VENV)/bin/python -m pytest -m faults

test-long: install
	@$(VENV)/bin/python -m pytest -m long

test-stack: install
	@$(VENV)/bin/python -m pytest $(PYTEST_OPTIONS) -m "stack and not long and not faults" tests/flows

bench-peers: install $(PEERS)/.installed
	@$(VENV)/bin/python -m tests.benchmarks.peers.compare $(PEERS_OPTIONS)

# The paper's shape (128 experts of 110 M parameters, 128 x 1024 tokens a step) on the GPU that is there, with the torch
# that is there: a slice of the bank first, then whole steps, one mixture and four. No other package of ours is needed.
BENCH_PYTHON ?= python3
BENCH := $(BENCH_PYTHON) -m tests.benchmarks.bank --experts 128 --preset paper-110m --vocabulary 32000 --length 1024 --compile
bench-gpu:
	$(BENCH) --only passes --params 8388608 --json bank-slice.json
	SOE_KERNELS=triton $(BENCH) --only passes --params 8388608 --json bank-slice-triton.json
	$(BENCH) --only steps --optimizers adam-bf16-moments factored factored-int8 --batch 128 --micro-batch 32 --json bank-1.json
	$(BENCH) --only steps --optimizers factored-int8 --batch 512 --micro-batch 32 --mixtures 4 --json bank-4.json

install: $(STAMP)

down:
	@if [ -x $(VENV)/bin/soe ]; then $(VENV)/bin/soe down; fi

$(STAMP): pyproject.toml constraints.txt soe_model/files/exact_sum.c pipeline/stream/gather.c
	@echo "[1/2] Making $(VENV) with $$($(PYTHON) --version)"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/2] Installing the packages (a few minutes the first time)"
	@$(VENV)/bin/python -m pip uninstall -q -y $(OTHER_FAISS) 2>/dev/null
	@$(VENV)/bin/python -m pip install -q --no-compile --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@# All cores, and not the packages' own tests: pip compiles one file after the other.
	@$(VENV)/bin/python -m compileall -q -j 0 -x '/tests?/' $(VENV)/lib >/dev/null 2>&1 || true
	@rm -f $(VENV)/.installed-* && touch $@

$(PEERS)/.installed: $(PEERS_PINS)
	@echo "Making $(PEERS): the libraries to compare with"
	@test -x $(PEERS)/bin/python || $(VENV)/bin/python -m venv $(PEERS)
	@# torch first: a CPU build that is there is kept, and the others ask for nothing larger.
	@$(PEERS)/bin/python -m pip install -q --no-compile --disable-pip-version-check $$(grep '^torch==' $(PEERS_PINS))
	@$(PEERS)/bin/python -m pip install -q --no-compile --disable-pip-version-check -r $(PEERS_PINS)
	@# Uncompiled packages would slow every process of theirs, and flatter us.
	@$(PEERS)/bin/python -m compileall -q -j 0 -x '/tests?/' $(PEERS)/lib >/dev/null 2>&1 || true
	@touch $@
