# Every target sets up what it needs and is quick when run again.
#
#   make demo    boot the embedded guest and fetch a file through the whole chain
#   make test    lint, types and every test
#   make bench   the benchmarks, against the other user-mode networks that are installed
#   make clean   remove what the above made
#
# PYTHON=...  the interpreter that .venv is made from;  ARGS=...  passed on to the command

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip compiles what it copies, and copies nothing for an editable install; without byte code every
# start compiles anew where Python may not, or shall not, write any.
BYTE_CODE = $(BIN)/python -m compileall -q slirp nic dma

# What the tests talk to; each as Debian names it.
TEST_PACKAGES := gcc libc6-dev iproute2 iputils-ping netcat-openbsd curl ethtool procps util-linux \
    iperf3 bind9-dnsutils isc-dhcp-client udhcpc dhcpcd-base ndisc6 iputils-tracepath traceroute tshark slirp4netns \
    libseccomp2 \
    gcc-sparc64-linux-gnu binutils-sparc64-linux-gnu qemu-system-x86 busybox-static cpio strace \
    debootstrap debian-archive-keyring gpgv ipxe-qemu ovmf tftp-hpa atftp ntpsec-ntpdate nginx-light haproxy \
    zsh fish groff-base mandoc
# What the benchmarks compare with.
BENCH_PACKAGES := gcc libc6-dev iproute2 util-linux iperf3 curl slirp4netns passt \
    debootstrap debian-archive-keyring gpgv

.PHONY: demo test lint bench coverage clean test-packages bench-packages testing-root
.DELETE_ON_ERROR:

demo: $(VENV)/.guest
	$(BIN)/slirp demo --capture captures/out/demo.pcapng $(ARGS)

test: lint testing-root
	$(BIN)/pytest -n auto --dist loadgroup -q $(ARGS)

lint: $(VENV)/.dev test-packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

bench: $(VENV)/.dev bench-packages
	$(BIN)/python -m benchmarks $(ARGS)

coverage: $(VENV)/.dev test-packages testing-root
	$(BIN)/pytest -n auto --dist loadgroup -q --cov --cov-report=term:skip-covered $(ARGS)

$(VENV)/bin/python:
	tools/make-venv $(VENV) $(PYTHON)

# Two steps, so that the demo need not wait for the developers' tools.
$(VENV)/.guest: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[guest]'
	$(BYTE_CODE)
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --group dev --editable '.[guest,seccomp,owners,top,bench]'
	$(BYTE_CODE)
	touch $@ $(VENV)/.guest

# No stamp: asking dpkg is quick, and who is not root is reminded until the packages are there.
test-packages:
	@tools/debian-packages $(TEST_PACKAGES)

bench-packages:
	@tools/debian-packages $(BENCH_PACKAGES)

# Newer programs that the tests run as well, under ~/.cache/slirp. Where it cannot be built the tool
# says why, and so do the tests that want it.
testing-root: test-packages
	@tools/testing-root > /dev/null || true

clean:
	rm -rf $(VENV) build dist benchmarks/out captures/out .mypy_cache .ruff_cache .pytest_cache
	rm -rf .hypothesis .coverage .coverage.*
	find . -name __pycache__ -prune -exec rm -rf {} +
