# make            this list
PYTHON ?= python3
PREFIX ?= /usr/local
# Not every shell expands ~ in an argument.
override PREFIX := $(patsubst ~/%,$(HOME)/%,$(PREFIX))
VENV   := .venv
NAME   := gpt-image2
ROOT    = $(DESTDIR)$(PREFIX)

# What runs the installed program. As a module it is compiled once, not at each start. The folder of this file goes from
# the path, as it may hold somebody else's json.py.
define LAUNCHER
#!/usr/bin/env python3
import os
import sys
safe = getattr(sys.flags, "safe_path", sys.flags.isolated)
here = os.path.dirname(os.path.realpath(__file__))
sys.path[:0 if safe else 1] = [os.path.join(os.path.dirname(here), "lib", "gpt-image2")]
from gpt_image2 import leave, main
leave(main())
endef
export LAUNCHER

help:           ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

test:           ## run all tests; needs python3, curl and make only
	$(PYTHON) tests/run.py

test-fast:      ## the same without the long kill tests
	FAST=1 $(PYTHON) tests/run.py

test-gateway:   ## real gateways and SDKs in front of the loopback servers; installs them into .clients/
	$(PYTHON) tests/gateway.py
	$(PYTHON) tests/gateway_runapi.py

test-clients:   ## the real Hermes, OpenClaw, Codex, Claude Code and validators; installs them into .clients/
	$(PYTHON) tests/clients.py

demo:           ## make and edit an image against a server on this machine, no key needed
	@$(PYTHON) tests/demo.py

bench:          ## speed and memory beside curl, a shell pipeline and the vendor's SDK; ROUNDS=1 for a short look
	@$(PYTHON) tests/bench.py

lint: $(VENV)/done ## ruff, mypy --strict and vermin, in a private virtual environment
	$(VENV)/bin/ruff check scripts
	$(VENV)/bin/ruff check --config line-length=120 tests
	$(VENV)/bin/mypy --strict --python-version 3.9 scripts/gpt_image2.py
	$(VENV)/bin/vermin --quiet --violations --no-tips -t=3.8- scripts tests

$(VENV)/done: Makefile
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check ruff==0.14.6 mypy==1.18.2 vermin==1.7.0
	touch $@

matrix:         ## run the fast tests with every Python 3.8 to 3.19 on this machine
	@sh tests/matrix.sh

test-systems:   ## the fast tests in Debian's oldest and newest systems, with their Python and curl; needs root
	@sh tests/systems.sh

install:        ## install as PREFIX/bin/gpt-image2 (PREFIX=/usr/local, DESTDIR for packagers)
	install -d "$(ROOT)/bin" "$(ROOT)/lib/$(NAME)" "$(ROOT)/share/bash-completion/completions" \
		"$(ROOT)/share/zsh/site-functions" "$(ROOT)/share/fish/vendor_completions.d"
	install -m 644 scripts/gpt_image2.py "$(ROOT)/lib/$(NAME)/gpt_image2.py"
	umask 022; $(PYTHON) -m compileall -q "$(ROOT)/lib/$(NAME)"
	printf '%s\n' "$$LAUNCHER" > "$(ROOT)/bin/$(NAME)"
	chmod 755 "$(ROOT)/bin/$(NAME)"
	umask 022; $(PYTHON) "$(ROOT)/bin/$(NAME)" config --completion bash > "$(ROOT)/share/bash-completion/completions/$(NAME)"
	umask 022; $(PYTHON) "$(ROOT)/bin/$(NAME)" config --completion zsh > "$(ROOT)/share/zsh/site-functions/_$(NAME)"
	umask 022; $(PYTHON) "$(ROOT)/bin/$(NAME)" config --completion fish > "$(ROOT)/share/fish/vendor_completions.d/$(NAME).fish"
	@case ":$$PATH:$(DESTDIR)" in *":$(PREFIX)/bin:"|*":$(PREFIX)/bin:"*:) ;; \
		*:) echo 'Installed. $(PREFIX)/bin is not in your PATH; add it: export PATH="$(PREFIX)/bin:$$PATH"' ;; esac

uninstall:      ## remove what install put there
	rm -rf "$(ROOT)/bin/$(NAME)" "$(ROOT)/lib/$(NAME)" "$(ROOT)/share/bash-completion/completions/$(NAME)" \
		"$(ROOT)/share/zsh/site-functions/_$(NAME)" "$(ROOT)/share/fish/vendor_completions.d/$(NAME).fish"
	@echo "Your settings stay in ~/.config/gpt-image-2, unfinished requests and receipts in ~/.local/state/gpt-image-2."

clean:          ## remove what the other targets made
	rm -rf $(VENV) .clients .chroots .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help test test-fast test-gateway test-clients test-systems demo bench lint matrix install uninstall clean
