# Short names for what is done often. Meson and Ninja do the work; everything lands in build/.
#
#   make run             boot a stock Debian kernel and give a shell (installs what is missing)
#   make test            build and run all tests; the last line counts them
#   make help            all targets and variables

.DEFAULT_GOAL := build
SHELL := /bin/bash

# A compiler other than the default gets a build directory of its own.
ifeq ($(origin CC),default)
CC := gcc
BUILD ?= build
else ifeq ($(notdir $(CC)),gcc)
BUILD ?= build
else
BUILD ?= build-$(notdir $(CC))
endif
export CC

PREFIX ?= /usr/local
DESTDIR ?=
ENGINE ?= auto
CPUS ?=
MEMORY ?= 512M
KERNEL ?= cloud
FUZZ_SECONDS ?= 60
FUZZ ?=
MINUTES ?= 30
ROUNDS ?= 200
BENCH ?=
# Warnings are errors where somebody looks at the result, not on a user's future compiler.
WERROR := $(if $(CI),true,false)

.PHONY: build run test test-nested test-crash bench bench-io soak install uninstall format fuzz sanitize clean help

$(BUILD)/build.ninja:
	@tools/deps build
	meson setup $(BUILD) --prefix=$(PREFIX) -Dwerror=$(WERROR)

build: $(BUILD)/build.ninja
	@tools/deps build
	ninja -C $(BUILD)

run: $(BUILD)/build.ninja
	@tools/deps build run
	ninja -C $(BUILD) doppel
	@tools/run-guest --doppel $(BUILD)/doppel --engine $(ENGINE) --memory $(MEMORY) \
		--kernel $(KERNEL) $(if $(CPUS),--cpus $(CPUS))

test: $(BUILD)/build.ninja
	@tools/deps build run test guests
	@tools/run-tests $(BUILD)

test-nested: $(BUILD)/build.ninja
	@tools/deps build run test
	@tools/run-tests $(BUILD) --suite nested

test-crash: $(BUILD)/build.ninja
	@tools/deps build run test guests
	ninja -C $(BUILD)
	@tests/crash/crash.py --doppel $(BUILD)/doppel --writers $(BUILD)/tests/crash/writers \
		--rounds $(ROUNDS)

bench: $(BUILD)/build.ninja
	@tools/deps build run test bench guests
	ninja -C $(BUILD)
	@bench/run $(BUILD) $(BENCH)

bench-io: $(BUILD)/build.ninja
	@tools/deps build run test bench guests
	ninja -C $(BUILD) doppel
	@bench/run $(BUILD) --io $(BENCH)

soak: $(BUILD)/build.ninja
	@tools/deps build run test
	ninja -C $(BUILD) doppel
	@tests/soak/soak.py --doppel $(BUILD)/doppel --minutes $(MINUTES)

install: $(BUILD)/build.ninja
	meson configure $(BUILD) -Dprefix=$(PREFIX)
	ninja -C $(BUILD)
	meson install -C $(BUILD) --no-rebuild $(if $(DESTDIR),--destdir $(abspath $(DESTDIR)))

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/doppel $(DESTDIR)$(PREFIX)/share/man/man1/doppel.1 \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/doppel

format:
	@tools/deps format
	git ls-files -co --exclude-standard '*.c' '*.h' | xargs clang-format -i

fuzz:
	@tools/deps build fuzz
	@tools/run-fuzz build-fuzz $(FUZZ_SECONDS) $(FUZZ)

sanitize:
	@tools/deps build test
	@test -f build-sanitize/build.ninja || \
		meson setup build-sanitize -Db_sanitize=address,undefined -Db_lundef=false
	@tools/run-tests build-sanitize --suite unit --suite fuzz --timeout-multiplier 4

.PHONY: bench-switch
bench-switch: $(BUILD)/build.ninja
	@tools/deps build run test
	ninja -C $(BUILD) doppel
	@bench/switch.py --doppel $(BUILD)/doppel $(BENCH)

clean:
	rm -rf build build-*

help:
	@printf '%s\n' \
	'make            build doppel (build/doppel)' \
	'make run        boot a stock Debian kernel: a shell on a terminal, else facts and power-off' \
	'make test       build, run all tests, end with "N passed, N failed, N skipped"' \
	'make test-nested of these, those under kvm on a host that QEMU makes' \
	'make test-crash kill machines at work ROUNDS=200 times; disks and file systems are checked' \
	'make bench      measure against QEMU and the bare host (BENCH=--list, BENCH="--rows boot,sqlite")' \
	'make bench-io   of these, disk, network and shared folder of a Debian guest (BENCH="--rows read4k,net-in")' \
	'make soak       a guest under load and memory pressure for MINUTES=30, every result checked' \
	'make install    into $$(DESTDIR)$$(PREFIX), PREFIX=/usr/local; uninstall takes it out again' \
	'make format     clang-format over all C files' \
	'make fuzz       run each fuzz target for FUZZ_SECONDS=60 (FUZZ="qcow2 virtio": only these)' \
	'make sanitize   unit tests with AddressSanitizer and UndefinedBehaviorSanitizer' \
	'make bench-switch  how long changes of engine stop a guest of 1 GiB (BENCH="--changes 100", BENCH=--nested)' \
	'make clean      remove build directories, cached guest kernels too' \
	'' \
	'Variables: CC=clang  ENGINE=auto|bt|interp  CPUS=N  MEMORY=512M  KERNEL=cloud|generic|FILE'
