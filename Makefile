# SPDX-License-Identifier: GPL-3.0-or-later
# The only door: everything a developer or a packager does goes through one of these.

SWIFT      ?= swift
PREFIX     ?= /usr/local
DESTDIR    ?=
BUILD      := .build/release
# Release everywhere: the tests exercise, and count the allocations of, the code that is shipped. An import that
# Package.swift does not declare is an error.
FLAGS      := -c release --explicit-target-dependency-import-check error
# For bash, zsh and fish, under PREFIX/share.
COMPLETIONS := bash-completion/completions/nfqmigctl zsh/site-functions/_nfqmigctl fish/vendor_completions.d/nfqmigctl.fish
SUDO       := $(if $(filter 0,$(shell id -u)),,sudo)

LIBRARIES  := libmnl-dev libnfnetlink-dev libnetfilter-queue-dev libnftnl-dev libsqlite3-dev pkg-config
LAB        := nftables iptables iproute2 conntrack ethtool tcpdump tshark iperf3 redis-server redis-tools wrk nginx-light iputils-ping \
              python3 python3-scapy libcap2-bin util-linux procps curl
# For the benchmark alone: ctdb_killtcp, the counting of system calls, the headers of Python.
COMPARISON := ctdb linux-perf gcc libc6-dev python3-dev python3-pip

.PHONY: help deps build test unit integration integration-full demo lint format bench clean install uninstall

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20

deps: ## Install what building, testing and the demo need (Debian, Ubuntu)
	@scripts/deps.sh $(LIBRARIES) $(LAB)
	@scripts/python-deps.sh

build: lint-imports ## Build nfqmigd and nfqmigctl
	$(SWIFT) build $(FLAGS)

test: deps unit integration ## Run all tests: units, and the programs between network namespaces (root)

# Without @testable imports, tests and programs share everything that is built.
unit: lint-imports ## Run the Swift tests
	$(SUDO) $(SWIFT) test $(FLAGS) --disable-testable-imports

# The cases in which it matters who writes the packets of datapath queue run with both treatments.
REWRITTEN := a f i l u v y

integration: build ## Run the quick integration cases (root)
	$(SUDO) python3 integration/run.py --quick
	$(SUDO) python3 integration/run.py --quick --treatment rewrite $(REWRITTEN)

integration-full: build ## Run all integration cases in full length (root; about an hour)
	$(SUDO) python3 integration/run.py --full
	$(SUDO) python3 integration/run.py --full --treatment rewrite $(REWRITTEN)

demo: deps build ## Show four migrations under load, on this machine alone (root)
	$(SUDO) python3 integration/demo.py

lint: lint-imports ## Check formatting, imports and file lengths
	$(SWIFT) format lint --strict --recursive --parallel Package.swift Sources Tests Benchmarks/Package.swift Benchmarks/Benchmarks
	@scripts/lint-lengths.sh

.PHONY: lint-imports
lint-imports:
	@scripts/lint-imports.sh

format: ## Format all Swift files
	$(SWIFT) format format --in-place --recursive --parallel Package.swift Sources Tests Benchmarks/Package.swift Benchmarks/Benchmarks

# What the benchmark compares with, and its load generator.
PEERS := $(addprefix .build/peers/,load batched textbook delay)

.build/peers/%: integration/peers/%.c integration/peers/flow.h
	@mkdir -p $(@D)
	$(CC) -O3 -Wall -Wextra -o $@ $< -lnetfilter_queue -lnfnetlink -lmnl -lpthread

bench: build $(PEERS) ## Measure migrations and the packet path beside other programs (root; half an hour)
	@scripts/deps.sh $(COMPARISON) || echo "some of what the benchmark compares with is missing" >&2
	@scripts/python-peer.sh
	$(SUDO) python3 integration/bench.py $(BENCH)

.PHONY: microbench
microbench: ## Measure the steps of the packet path and of a migration, one by one
	cd Benchmarks && $(SWIFT) package --disable-sandbox benchmark --no-progress

install: build ## Install the programs, the unit and an example configuration under PREFIX
	install -D -m 755 $(BUILD)/nfqmigd $(DESTDIR)$(PREFIX)/sbin/nfqmigd
	install -D -m 755 $(BUILD)/nfqmigctl $(DESTDIR)$(PREFIX)/bin/nfqmigctl
	mkdir -p $(addprefix $(DESTDIR)$(PREFIX)/share/,$(dir $(COMPLETIONS)))
	for each in $(COMPLETIONS); do \
	    case $$each in bash*) shell=bash ;; zsh*) shell=zsh ;; *) shell=fish ;; esac; \
	    $(BUILD)/nfqmigctl --generate-completion-script $$shell >$(DESTDIR)$(PREFIX)/share/$$each || exit; \
	done
	install -D -m 644 docs/nfqmigd.toml $(DESTDIR)/etc/nfqmigd/nfqmigd.toml.example
	sed 's|@PREFIX@|$(PREFIX)|' docs/nfqmigd.service.in | install -D -m 644 /dev/stdin $(DESTDIR)/lib/systemd/system/nfqmigd.service

uninstall: ## Remove what install has put there, configuration apart
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/share/,$(COMPLETIONS))
	rm -f $(DESTDIR)$(PREFIX)/sbin/nfqmigd $(DESTDIR)$(PREFIX)/bin/nfqmigctl $(DESTDIR)/lib/systemd/system/nfqmigd.service

clean: ## Remove what the build has made
	$(SWIFT) package clean
	rm -rf .build
