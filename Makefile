# Makes its own environment in .venv; needs Linux, Python 3.11 or newer with its headers, make and a C compiler.

PYTHON ?= python3
DEMO_ARGS ?= --plot demo.png
TEST_ARGS ?=
TEST_LIMIT ?= 30m
DURATION ?= 1min
FUZZ_EXAMPLES ?= 5000
SOAK ?= soak
SOAK_ARGS ?=
BENCH_ARGS ?= --json bench.json
P ?=

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/pip --quiet --disable-pip-version-check
PYTEST := .ci/limit $(TEST_LIMIT) $(BIN)/pytest
SOURCES := pyproject.toml meson.build meson.options $(shell find rtloop -type f -not -name '*.py[co]')
TESTS := $(shell find tests -name '*.py')
C_SOURCES := $(wildcard rtloop/include/rtloop/*.h tests/native/*.h tests/native/*.c)
ALONE := $(patsubst %,tests/rt/test_%.py,buffer clean clock_steps cpus doctor grants isolation sleep_until)
COMPILED := $(sort $(subst /,.,$(basename $(shell find rtloop -name '*.pyx'))))
STUBTEST := --concise --ignore-disjoint-bases --ignore-unused-allowlist --allowlist $(CURDIR)/.ci/stubtest.allow \
  --mypy-config-file $(CURDIR)/pyproject.toml

# meson looks for cython and ninja there.
export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test native sanitize fuzz soak bench platforms wheels lint strict format docs linkcheck clean remake
.SILENT:

help: ## show this list
	sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r a b; do printf '%-16s%s\n' "$$a" "$$b"; done

demo: $(VENV)/.installed ## install rtloop and run its demo; DEMO_ARGS="--duration 5s" replaces its arguments
	$(BIN)/rtloop demo $(DEMO_ARGS)

# First nearly all, in three processes more than there are CPUs, because many tests mostly wait; tests/support/schedule.py
# says what runs beside what. Then the storms and failures, which are judged by counts, two at a time. Then what changes the
# machine, or whose loops must have it for themselves. All parts share what is compiled once. Without
# --max-worker-restart=0, loadfile waits for ever for a worker that was killed. 5: none was selected.
test: $(VENV)/.installed $(VENV)/.test $(if $(findstring tests/,$(TEST_ARGS)),,$(VENV)/.collected) ## install rtloop and run all tests; TEST_ARGS="-k histogram" narrows them
	failed=; run() { $(PYTEST) "$$@" $(TEST_ARGS) || [ $$? = 5 ] || failed=1; }; \
	beside() { workers=$$1; shift; run -n $$workers --dist loadfile --max-worker-restart=0 "$$@"; }; \
	RTLOOP_TEST_SHARED=$$(mktemp -d) && export RTLOOP_TEST_SHARED && trap 'rm -rf "$$RTLOOP_TEST_SHARED"' EXIT; \
	$(if $(findstring tests/,$(TEST_ARGS)),run, \
	beside $$(($$(nproc) + 3)) $(addprefix --ignore=,tests/faults $(ALONE)); \
	beside 2 tests/faults; \
	run $(ALONE)); \
	[ -z "$$failed" ]

native: $(VENV)/.installed $(VENV)/.test ## test the C headers alone, under the sanitizers
	$(PYTEST) tests/native $(TEST_ARGS)

sanitize: native ## the same, and the Python tests that lock next to nothing with extension modules under ASan
	.ci/asan_tests $(PYTHON) $(CURDIR)/$(VENV)/asan

fuzz: $(VENV)/.installed $(VENV)/.test ## fuzz every parser; FUZZ_EXAMPLES=... for each
	RTLOOP_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(PYTEST) tests/fuzz $(TEST_ARGS)

soak: $(VENV)/.installed ## run loops under all loads at once, beside cyclictest; DURATION=1h, SOAK_ARGS="--json soak.json"; SOAK=hours: at 200 us, as OSADL and TI do
	$(BIN)/python benchmarks/$(SOAK).py --duration $(DURATION) $(SOAK_ARGS)

bench: $(VENV)/.installed $(VENV)/.bench ## measure every claim about speed beside its peers, into bench.json; BENCH_ARGS="--quick"
	benchmarks/install_peers
	$(BIN)/python benchmarks/bench.py $(BENCH_ARGS)

platforms: ## test on several Debian systems and Pythons, as root; P="trixie sid" names some, TEST_ARGS="-k fork"
	$(PYTHON) .ci/platforms.py $(P) $(if $(TEST_ARGS),--tests '$(TEST_ARGS)')

wheels: ## build wheels for x86-64 and arm64 into dist, and test each without a compiler, as root; P="3.13 sdist" names some
	$(PYTHON) .ci/wheels.py $(P)

# All in parallel, because each is one process; their output is shown one after the other.
lint: $(VENV)/.installed $(VENV)/.lint strict ## check style, format, types and stubs, and do a strict build
	said=$$(mktemp -d) && trap 'rm -rf "$$said"' EXIT; \
	run() { { "$$@" >"$$said/$$(basename $$1).$$2" 2>&1 || basename $$1 >>"$$said/failed"; } & }; \
	run $(BIN)/mypy; \
	cd $(VENV) && run $(BIN)/stubtest $(STUBTEST) $(COMPILED); cd $(CURDIR); \
	run $(BIN)/ruff check --output-format concise; \
	run $(BIN)/ruff format --check; \
	run $(BIN)/cython-lint rtloop tests examples; \
	run $(BIN)/clang-format --dry-run -Werror $(C_SOURCES); \
	wait; \
	for one in "$$said"/*.*; do cat "$$one"; done; \
	if [ -e "$$said/failed" ]; then echo "failed:" $$(cat "$$said/failed") >&2; exit 1; fi

strict: $(VENV)/.strict ## build from scratch; Cython's performance hints and C warnings in our code fail

format: $(VENV)/.lint ## put Python and C into the house's format
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(C_SOURCES)

docs: $(VENV)/.installed $(VENV)/.docs ## build the documentation into build/docs; a warning, such as a wrong link, fails
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --jobs auto docs build/docs
	echo "see build/docs/index.html"

linkcheck: $(VENV)/.installed $(VENV)/.docs ## look at the external links of the documentation; what has no answer is named
	$(BIN)/python docs/linkcheck.py build/linkcheck

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist docs/examples .pytest_cache .mypy_cache .ruff_cache
	find rtloop tests examples benchmarks docs -name __pycache__ -prune -exec rm -rf {} +

# A stamp is newer than what it was made from, so that a repeated call does nothing. Another PYTHON begins anew.
ifneq ($(shell cat $(VENV)/.made 2>/dev/null),$(PYTHON))
$(VENV)/.made: remake
endif
$(VENV)/.made:
	command -v $(PYTHON) >/dev/null || { echo "rtloop needs Python 3.11 or newer: no $(PYTHON) here; fix: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) .ci/preflight.py
	echo "making $(VENV) with $$($(PYTHON) --version)"
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install 'pip>=25.1'
	echo '$(PYTHON)' > $@

$(VENV)/.build $(VENV)/.test $(VENV)/.lint $(VENV)/.bench $(VENV)/.docs: $(VENV)/.%: $(VENV)/.made pyproject.toml
	echo "installing what is needed to $*"
	$(PIP) install --group $*
	touch $@

# With STRICT=1 the build that is installed is the strict one, so that a clean checkout is built once.
$(VENV)/.installed: $(VENV)/.build $(SOURCES)
	echo "building and installing rtloop"
	$(if $(STRICT),rm -rf $(VENV)/rtloop-build; $(BIN)/python .ci/strict_build.py --run) \
	$(PIP) install $(if $(STRICT),-vv -Csetup-args=-Drt_werror=true) \
	  --no-build-isolation -Cbuild-dir=$(VENV)/rtloop-build '.[all]'
	$(if $(STRICT),touch $(VENV)/.strict)
	touch $@

# pytest rewrites each assert, which takes four fifths of a collection. Otherwise each worker would do it.
$(VENV)/.collected: $(VENV)/.installed $(VENV)/.test $(TESTS)
	for part in "tests/unit" "tests --ignore=tests/unit"; do \
	  env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest --collect-only --quiet $$part >/dev/null 2>&1 & \
	done; wait
	touch $@

$(VENV)/.strict: $(VENV)/.build $(SOURCES)
	echo "strict build"
	$(BIN)/python .ci/strict_build.py . -Dbuildtype=release -Drt_werror=true
	touch $@
