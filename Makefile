# Everything runs in a virtual environment of the project's own; nothing outside the clone is touched.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
DATASET ?= sample
DATA    ?=

.PHONY: demo test lint format proto proto-check bench clean

# torch comes first: its pin decides which build every later package is satisfied by.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## the whole main job: import, enrich, train, publish, recommend
	$(BIN)/dmesr-cli demo --dataset $(DATASET) $(if $(DATA),--data $(DATA))

test: $(VENV)/.installed  ## every test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed proto-check  ## style, types, wire
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

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
	rm -rf build dist $(VENV) .venv-proto demo-data
