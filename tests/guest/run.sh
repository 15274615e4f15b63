#!/bin/sh
# run.sh DOPPEL ENGINE GUEST.elf STATUS CPUS [OPTION...] - run a guest and judge it
# DOPPEL: path of the program; ENGINE: kvm, bt or interp; or "qemu" to look at a guest elsewhere; or
# storm:N to run it undisturbed, then with a change between bt and interp after about every N
# instructions, and compare the two.
# Under kvm the processor, or what interprets it, is the host's: kvm-differences lists what may
# differ. Without a KVM the test is skipped.
# STATUS is what doppel must end with: 1 for a guest that reports success, 2 for a triple fault.
# OPTIONs go to doppel.
set -u
doppel=$1 engine=$2 guest=$3 status=$4 cpus=$5
shift 5
out=$(mktemp)
trap 'rm -f "$out" "$out.err" "$out.calm" "$out.calm.err"' EXIT

run() {
    "$doppel" run "$@" --cpus "$cpus" --memory 64M --kernel "$guest" --debug-exit \
        --serial stdio --on-reboot exit </dev/null >"$out" 2>"$out.err"
}

kind=''
name=$(basename "$guest" .elf)
if [ "$engine" = kvm ]; then
    # there is nothing in it to boot, but the engine is chosen first
    said=$("$doppel" run --engine auto --log info --kernel /dev/null 2>&1)
    case $said in
    *'engine: kvm'*) kind=hardware ;;
    *'runs kernel-mode code at'*) kind=interpreted ;;
    *)
        echo "$said" | sed -n 's/.*engine: not kvm: /skipped: /p'
        exit 77
        ;;
    esac
    if [ "$kind $name" = "interpreted pagingall" ]; then
        echo "skipped: this host's KVM interprets kernel mode, and would take ten minutes"
        exit 77
    fi
fi

case $engine in
qemu)
    qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp "$cpus" -m 64 -display none \
        -serial stdio -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=4 -device pc-testdev \
        -kernel "$guest" </dev/null >"$out" 2>"$out.err"
    ;;
storm:*)
    run --engine bt "$@"
    mv "$out" "$out.calm"
    mv "$out.err" "$out.calm.err"
    run --engine bt --engines bt,interp --switch-storm "${engine#storm:}" --stats "$@"
    ;;
*)
    run --engine "$engine" "$@"
    ;;
esac
got=$?

# Nothing but differences is worth reading, and where the guest was when it stopped.
grep -v '^ok ' "$out"
tail -n 1 "$out" | grep '^ok ' | sed 's/^/# last: /'

# One that KVM's interpreter cannot bring to its end.
if [ -n "$kind" ] && [ "$got" -eq 2 ] &&
    grep -q -x -F "$kind $name: triple fault" "$(dirname "$0")/kvm-differences"; then
    sed -i 's/^FAIL/known/' "$out"
    got=$status
    : >"$out.err"
fi
if [ -n "$kind" ] && grep -q '^FAIL' "$out" && [ "$got" -eq 3 ]; then
    # "FAIL name got ...", "FAIL unexpected exception got ... after name": those listed are none
    # what interprets knows nothing of some guests' subjects: all but the listed ones are let pass
    if [ "$kind" = interpreted ] && ! grep -q "^interpreted $name:" "$(dirname "$0")/kvm-differences"; then
        sed -i 's/^FAIL/known/' "$out"
        got=$status
    fi
    sed -n 's/^FAIL unexpected exception got.*, after \(.*\)/exception after \1/p
            t
            s/^FAIL \(.*\) got .*/\1/p' "$out" | sort -u |
        grep -v -x -F "$(sed -n "s/^$kind $name: //p" "$(dirname "$0")/kvm-differences")" |
        sed "s/^/not listed in kvm-differences: $kind $name: /" >"$out.err"
    sed -i 's/^FAIL/known/' "$out"
    if [ ! -s "$out.err" ]; then
        got=$status
        echo "ok but for known differences" >>"$out"
    fi
fi
cat "$out.err" >&2
if [ "$got" -ne "$status" ]; then
    echo "exit status $got, expected $status"
    exit 1
fi
if grep -q '^FAIL' "$out" || ! grep -q '^ok ' "$out"; then
    exit 1
fi
if [ -e "$out.calm" ]; then
    if ! diff "$out.calm" "$out"; then
        echo "the output differs from that of an undisturbed run"
        exit 1
    fi
    # what doppel says, registers of a triple fault among it; then come statistics
    if ! head -n "$(wc -l <"$out.calm.err")" "$out.err" | diff "$out.calm.err" -; then
        echo "the messages differ from those of an undisturbed run"
        exit 1
    fi
    if ! grep -q '^ *engine changes  *[1-9]' "$out.err"; then
        echo "there was no change of the engine"
        exit 1
    fi
fi
