#!/usr/bin/env python3
"""switch.py --doppel FILE [--changes N] [--memory SIZE] [--nested] - how long a change of engine stops the guest

A stock Debian kernel fills most of its memory and computes on two CPUs, while its engine changes from bt to
interp and back. With --nested it runs on a host with a KVM of its own (tests/nested), and its engine changes
from kvm to each of the others and back: the times are those of a host that QEMU's translator executes.
Each row says how long the guest stood still, as doppel measured it, and how long the change was prepared
while the guest ran. The aim is that no change stops a guest of 1 GiB for more than 50 ms.
"""
import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(TOP, "tests", "lib"))
from harness import run_tool

BOUND_MS = 50
RUN_DIR = "XDG_RUNTIME_DIR"

GUEST = """
mount -t tmpfs -o size=90%% fill /run
dd if=/dev/zero of=/run/fill bs=1M count=%d 2>/dev/null
say "ready $(grep -c ^processor /proc/cpuinfo) $(du -m /run/fill)"
for cpu in 0 1; do
    (while :; do dd if=/run/fill bs=64k count=64 2>/dev/null | sha256sum >/dev/null; done) &
done
wait
"""

RUN = ("run --name bench --engine %(engine)s --engines %(engines)s --kvm-irqchip %(irqchip)s --cpus 2 "
       "--memory %(memory)s --log info --kernel %(kernel)s --initrd %(initrd)s")
CMDLINE = "console=ttyS0 loglevel=4 panic=-1 doppel.test=script"

# $1: doppel and the arguments of run; the rest: engines to change to. What is printed is parsed.
JOB = """
doppel=$1
shift
mkfifo "$work/out"
"$doppel" %(run)s --cmdline '%(cmdline)s' </dev/null >"$work/out" 2>&1 &
machine=$!
(
    while read -r line; do
        echo "$line"
        case $line in *"doppel-guest: ready"*) : >"$work/ready" ;; esac
    done <"$work/out"
) &
until [ -e "$work/ready" ]; do
    kill -0 $machine || exit 1
    usleep 100000
done
for engine; do
    "$doppel" engine bench "$engine" || exit 1
    usleep 50000
done
"$doppel" stop --hard bench
wait
"""


def parse_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--doppel", required=True)
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--memory", default="1G", help="of the guest (default 1G)")
    parser.add_argument("--fill-mib", type=int, default=700, help="how much of it is written before")
    parser.add_argument("--nested", action="store_true")
    parser.add_argument("--irqchip", default="on", help="--kvm-irqchip of the nested machine")
    return parser.parse_args()


def engines_of(args):
    """The engine to begin with, and those to change to."""
    round_trip = ["bt", "kvm", "interp", "kvm"] if args.nested else ["interp", "bt"]
    return round_trip[-1], [round_trip[i % len(round_trip)] for i in range(args.changes)]


def job_of(args, kernel, initrd):
    engine, changes = engines_of(args)
    values = {"engine": engine, "engines": ",".join(sorted(set(changes + [engine]))), "irqchip": args.irqchip,
              "memory": args.memory, "kernel": kernel, "initrd": initrd}
    return JOB % {"run": RUN % values, "cmdline": CMDLINE}, changes


def command_of(args, work, kernel, initrd):
    if not args.nested:
        job, changes = job_of(args, kernel, initrd)
        return ["bash", "-c", "usleep() { sleep \"$(printf 0.%06d \"$1\")\"; }\n" + job, "bash", os.path.abspath(args.doppel), *changes]
    job, changes = job_of(args, "/kernel", "/guest.cpio")
    return [os.path.join(TOP, "tests", "nested", "nested.py"), "--doppel", args.doppel, "--memory-mib", "2560",
            "--timeout", "1800", "--file", initrd + "=guest.cpio", "--",
            "work=/tmp; set -- /doppel %s\n%s" % (" ".join(changes), job)]


def report(lines):
    rows = {}
    for line in lines:
        match = re.search(r"engine: (\w+) instead of (\w+); the guest stood still for ([0-9.]+) ms "
                          r"\(prepared in ([0-9.]+) ms\)", line)
        if match:
            to, before, stopped, prepared = match.groups()
            rows.setdefault("%s -> %s" % (before, to), []).append((float(stopped), float(prepared)))
    print("%-16s %8s %12s %10s %10s %10s %14s" % ("change", "count", "stopped: mean", "median", "99%", "max ms",
                                                 "prepared: mean"))
    for name, times in sorted(rows.items()):
        stopped = sorted(time[0] for time in times)
        print("%-16s %8d %12.3f %10.3f %10.3f %10.3f %14.3f" % (
            name, len(stopped), statistics.mean(stopped), statistics.median(stopped),
            stopped[min(len(stopped) - 1, len(stopped) * 99 // 100)], stopped[-1],
            statistics.mean(time[1] for time in times)))
    print("host: %d CPUs, load average %.1f: with more than it has CPUs, the guest's threads wait for each other's turn"
          % (os.cpu_count(), os.getloadavg()[0]))
    longest = max((time[0] for times in rows.values() for time in times), default=0)
    print("the longest: %.3f ms, %s %d ms" % (longest, "within" if longest <= BOUND_MS else "OVER", BOUND_MS))
    return sum(len(times) for times in rows.values())


def main():
    args = parse_arguments()
    kernel = run_tool("fetch-kernel", "cloud")
    with tempfile.TemporaryDirectory(prefix="doppel-bench-") as work:
        script, initrd = os.path.join(work, "script"), os.path.join(work, "guest.cpio")
        with open(script, "w", encoding="utf-8") as out:
            out.write(GUEST % args.fill_mib)
        run_tool("make-initramfs", initrd, script + "=script")
        environment = dict(os.environ, work=work, **{RUN_DIR: work})
        result = subprocess.run(command_of(args, work, kernel, initrd), env=environment, check=False, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                errors="replace")
        lines = result.stdout.splitlines()
        if result.returncode != 0 or report(lines) != args.changes:
            print("\n".join(lines[-40:]))
            sys.exit("the guest, or a change of its engine, failed (exit status %d)" % result.returncode)


main()
