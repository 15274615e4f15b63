#!/bin/sh
# run.sh DOPPEL ENGINE GUEST.elf STATUS CPUS [OPTION...] - run a guest and judge it
# DOPPEL: path of the program; ENGINE: bt or interp, or "qemu" to look at a guest elsewhere.
# STATUS is what doppel must end with: 1 for a guest that reports success, 2 for a triple fault.
# OPTIONs go to doppel.
set -u
doppel=$1 engine=$2 guest=$3 status=$4 cpus=$5
shift 5
out=$(mktemp)
trap 'rm -f "$out" "$out.err"' EXIT

if [ "$engine" = qemu ]; then
    qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp "$cpus" -m 64 -display none \
        -serial stdio -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=4 -device pc-testdev \
        -kernel "$guest" </dev/null >"$out" 2>"$out.err"
else
    "$doppel" run --engine "$engine" --cpus "$cpus" --memory 64M --kernel "$guest" --debug-exit \
        --serial stdio --on-reboot exit "$@" </dev/null >"$out" 2>"$out.err"
fi
got=$?

# Nothing but differences is worth reading, and where the guest was when it stopped.
grep -v '^ok ' "$out"
tail -n 1 "$out" | grep '^ok ' | sed 's/^/# last: /'
cat "$out.err" >&2
if [ "$got" -ne "$status" ]; then
    echo "exit status $got, expected $status"
    exit 1
fi
if grep -q '^FAIL' "$out" || ! grep -q '^ok ' "$out"; then
    exit 1
fi
