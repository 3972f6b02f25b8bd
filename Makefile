# Isthmus. `make help` lists the targets.

SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS   += --no-print-directory
.DEFAULT_GOAL := help

# Where built peers (istiod, Envoy, Java libraries) and our own binaries are kept from one run to the next.
export ISTHMUS_CACHE ?= $(HOME)/.cache/isthmus

# DEMO_ARGS and BENCH_ARGS go to the demo and the benchmark; FUZZTIME is for each fuzz target; PKG narrows the unit tests.
DEMO_ARGS  ?=
BENCH_ARGS ?=
FUZZTIME   ?= 30s
BIN        ?= bin
E2E_TIMEOUT  ?= 40m
UNIT_TIMEOUT ?= 10m

# The race detector is for the packages that have goroutines. The filter has none, and its tests count allocations,
# which the detector changes. go-zookeeper v1.0.4 races with itself: sendSetWatches reads what its receiver writes, at a session that goes on.
RACY_PKGS  = $(shell go list ./adapters/zookeeper ./tools/isthmusctl/cli 2>/dev/null)
RACE_PKGS  = $(filter-out $(RACY_PKGS),$(shell go list ./adapters/... ./mcp-server/... ./tools/... ./manifests/... 2>/dev/null))
PLAIN_PKGS = $(shell go list ./wasm-filters/... 2>/dev/null) $(RACY_PKGS)
# The longest first: what is last runs alone.
E2E_PKGS   = ./e2e/sofaregistry ./e2e/demo ./e2e/lifted ./e2e/rules ./e2e/bench $(shell go list ./e2e/... 2>/dev/null)
FOLDERS   := wasm-filters adapters mcp-server manifests e2e tools

# $(call need,tool:package ...) prints one line for each system tool that is missing, and stops if there is one.
define need
@missing=0; for pair in $(1); do \
	command -v "$${pair%%:*}" >/dev/null || { echo "isthmus: $${pair%%:*} is missing: apt-get install $${pair##*:}" >&2; missing=1; }; \
done; exit $$missing
endef
NEED_BUILD := go:golang git:git
NEED_RACE  := gcc:gcc
NEED_PEERS := ip:iproute2 iptables:iptables java:openjdk-17-jdk-headless javac:openjdk-17-jdk-headless mvn:maven python3:python3-venv

comma := ,

# $(call step,text) announces a step, with the time.
step = @printf '\n== %s  [%s]\n' '$(1)' "$$(date +%H:%M:%S)"

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  DEMO_ARGS=--once    run the demo once and check each step'
	@echo '  BENCH_ARGS=-quick   a benchmark of four minutes, which only prints'
	@echo '  FUZZTIME=10m        time for each fuzz target'
	@echo '  ISTHMUS_CACHE=DIR   built peers and binaries (default ~/.cache/isthmus)'

.PHONY: demo
demo: ## a mesh of virtual machines on this computer: Dubbo, ZooKeeper, Envoy, istiod, Isthmus
	$(call need,$(NEED_BUILD) $(NEED_PEERS))
	@go run ./e2e/demo $(DEMO_ARGS)

.PHONY: test
test: static unit docs generated e2e ## all that CI checks: check, unit tests with the race detector, documentation, e2e
	$(call step,all checks passed)

.PHONY: check
check: static unit-short doc-static ## the fast inner loop: format, vet, lint, architecture, size, short unit tests

.PHONY: bench
bench: ## what the filter costs, against bare Envoy and its own codecs; 14 minutes; writes e2e/bench/RESULTS.md
	$(call need,$(NEED_BUILD) python3:python3-venv java:openjdk-17-jdk-headless javac:openjdk-17-jdk-headless mvn:maven)
	@go run ./e2e/bench $(BENCH_ARGS)

.PHONY: generate
generate: ## write the generated files (zz_generated_*) again
	go generate ./...

.PHONY: fuzz
fuzz: ## run every fuzz target in turn, FUZZTIME each
	$(call need,$(NEED_BUILD))
	@for package in $$(go list ./wasm-filters/... ./adapters/... ./mcp-server/... ./tools/...); do \
		for target in $$(go test -list '^Fuzz' "$$package" | grep '^Fuzz' || true); do \
			printf '\n== fuzz %s %s for %s\n' "$$package" "$$target" '$(FUZZTIME)'; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime '$(FUZZTIME)' "$$package"; \
		done; \
	done

.PHONY: build
build: ## build mcp-server, isthmusctl and isthmus.wasm into bin/ (BIN=DIR for another place)
	$(call need,$(NEED_BUILD))
	@mkdir -p '$(BIN)'
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o '$(BIN)/' ./mcp-server/cmd/mcp-server ./tools/isthmusctl
	go run ./tools/sizecheck -o '$(BIN)/isthmus.wasm'

.PHONY: clean
clean: ## remove bin/ (the cache of built peers stays: it is in ISTHMUS_CACHE)
	rm -rf '$(BIN)'

# The steps that the targets above are made of. They can be run by themselves.

.PHONY: static fmt tidy vet lint archcheck sizecheck doc-static docs unit unit-short generated e2e
static: fmt tidy vet lint archcheck sizecheck

fmt:
	$(call need,$(NEED_BUILD))
	$(call step,gofmt)
	@unformatted=$$(gofmt -l $(wildcard $(FOLDERS))); test -z "$$unformatted" || { echo "not formatted (gofmt -w):" >&2; echo "$$unformatted" >&2; exit 1; }

tidy:
	$(call step,go.mod says what is used)
	@go mod tidy -diff

vet:
	$(call step,go vet)
	@go vet ./...
	@GOOS=wasip1 GOARCH=wasm go vet ./wasm-filters/cmd/...

lint:
	$(call step,staticcheck)
	@go tool -modfile=tools/tools.mod staticcheck ./...

archcheck:
	$(call step,archcheck)
	@go run ./tools/archcheck

sizecheck:
	$(call step,sizecheck)
	@go run ./tools/sizecheck

doc-static:
	$(call step,doccheck: links and blocks, without running them)
	@go run ./tools/doccheck -static

docs:
	$(call step,doccheck)
	@go run ./tools/doccheck

unit-short:
	$(call step,unit tests, short)
	@go test -short -timeout $(UNIT_TIMEOUT) $(PLAIN_PKGS) $(RACE_PKGS)

unit:
	$(call need,$(NEED_RACE))
	$(call step,unit tests)
	@go test -timeout $(UNIT_TIMEOUT) $(PLAIN_PKGS)
	@CGO_ENABLED=1 go test -race -timeout $(UNIT_TIMEOUT) $(RACE_PKGS)

generated:
	$(call step,generated files are up to date)
	@before=$$(git status --porcelain); go generate ./...; after=$$(git status --porcelain); \
	test "$$before" = "$$after" || { echo 'make generate changes these files:' >&2; diff <(echo "$$before") <(echo "$$after") >&2; exit 1; }

e2e:
	$(call need,$(NEED_BUILD) $(NEED_PEERS))
	$(call step,e2e: two packages at a time$(comma) which mostly wait for their peers)
	@go test -p 2 -count 1 -timeout $(E2E_TIMEOUT) $(E2E_PKGS)
