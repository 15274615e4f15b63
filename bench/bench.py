#!/usr/bin/env python3
"""Runs the same rows natively, under QEMU's translator and under doppel, in turn, and compares.

usage: bench.py --doppel PATH --kernel FILE --rows PATH [--rounds N] [--json FILE] [--memory MiB]

The guest's initramfs holds the static program `rows` (bench/rows.c) as /init. "boot" is the time
from starting the monitor to the first line of that program. A row is called noisy when its
rounds differ by more than a quarter.
"""
import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

RATES = {"MB/s", "MFLOP/s"}


def cpio_entry(name, mode, data, ino, rdev=(0, 0)):
    """One member of a "newc" archive (Linux Documentation/driver-api/early-userspace)."""
    fields = [ino, mode, 0, 0, 1, 0, len(data), 0, 0, rdev[0], rdev[1], len(name) + 1, 0]
    out = b"070701" + b"".join(b"%08X" % f for f in fields) + name.encode() + b"\0"
    out += b"\0" * (-len(out) % 4) + data
    return out + b"\0" * (-len(out) % 4)


def make_initramfs(path, rows):
    with open(rows, "rb") as f:
        program = f.read()
    with open(path, "wb") as f:
        f.write(cpio_entry("dev", 0o040755, b"", 1))
        f.write(cpio_entry("dev/console", 0o020600, b"", 2, (5, 1)))
        f.write(cpio_entry("init", 0o100755, program, 3))
        f.write(cpio_entry("TRAILER!!!", 0, b"", 0))


def run(command, timeout=600):
    """Run it; returns {row: (value, unit)}. Ends at "rows: done"."""
    result = {}
    begin = time.monotonic()
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         stdin=subprocess.DEVNULL)
    try:
        for raw in p.stdout:
            line = raw.decode(errors="replace").strip()
            words = line.split()
            if "rows: first process" in line:
                result["boot"] = (time.monotonic() - begin, "s")
            elif len(words) == 4 and words[0] == "row":
                result[words[1]] = (float(words[2]), words[3])
            elif "rows: done" in line:
                break
            if time.monotonic() - begin > timeout:
                raise RuntimeError("timed out: " + " ".join(command))
        p.stdout.close()
        p.wait(timeout=30)
        result["total"] = (time.monotonic() - begin, "s")
    finally:
        if p.poll() is None:
            p.kill()
            p.wait()
    if "total" not in result or len(result) < 3:
        raise RuntimeError("no rows came from: " + " ".join(command) + "\n" +
                           p.stderr.read().decode(errors="replace"))
    return result


def median(values):
    return statistics.median(values) if values else None


def main():
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--doppel", required=True)
    ap.add_argument("--kernel", required=True)
    ap.add_argument("--rows", required=True)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--memory", type=int, default=512)
    ap.add_argument("--json")
    args = ap.parse_args()

    work = tempfile.mkdtemp(prefix="doppel-bench-")
    initrd = os.path.join(work, "initrd")
    make_initramfs(initrd, args.rows)
    cmdline = "console=ttyS0 quiet"
    qemu = shutil.which("qemu-system-x86_64")
    runners = {
        "native": [args.rows],
        "doppel": [args.doppel, "run", "--engine", "bt", "--cpus", "1", "--memory",
                   f"{args.memory}M", "--kernel", args.kernel, "--initrd", initrd, "--cmdline",
                   cmdline],
    }
    if qemu:
        runners["tcg"] = [qemu, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m",
                          str(args.memory), "-kernel", args.kernel, "-initrd", initrd, "-append",
                          cmdline, "-nographic", "-no-reboot", "-net", "none"]
    samples = {name: {} for name in runners}
    for _ in range(args.rounds):
        for name, command in runners.items():
            for row, (value, unit) in run(command).items():
                samples[name].setdefault(row, []).append(value)
                samples.setdefault("unit", {})[row] = unit
    shutil.rmtree(work)
    report(args, samples, qemu)


def report(args, samples, qemu):
    units = samples["unit"]
    names = [n for n in ("native", "tcg", "doppel") if n in samples]
    cpu = ""
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    version = subprocess.run([args.doppel, "--version"], capture_output=True, text=True).stdout.strip()
    qemu_version = ""
    if qemu:
        qemu_version = subprocess.run([qemu, "--version"], capture_output=True,
                                      text=True).stdout.splitlines()[0]
    print(f"host: {cpu}, {os.cpu_count()} CPUs, Linux {platform.release()}")
    print(f"guest: {os.path.basename(args.kernel)}, {args.memory} MiB, 1 CPU; "
          f"{args.rounds} rounds, medians")
    print(f"{version}; {qemu_version or 'QEMU is not installed'}")
    print(f"{'row':<12}{'unit':>9}" + "".join(f"{n:>12}" for n in names) +
          f"{'vs native':>12}{'vs tcg':>10}  spread")
    ratios, table = [], []
    for row in units:
        unit = units[row]
        values = {n: median(samples[n].get(row, [])) for n in names}
        d = values["doppel"]
        is_rate = unit in RATES
        vs_native = vs_tcg = None
        if d and values["native"]:
            vs_native = values["native"] / d if is_rate else d / values["native"]
        if d and values.get("tcg"):
            vs_tcg = d / values["tcg"] if is_rate else values["tcg"] / d
        if row in ("boot", "total"):
            vs_native = None
        spread = samples["doppel"].get(row, [0])
        rel = (max(spread) - min(spread)) / d if d else 0
        if vs_tcg is not None and row != "total":
            ratios.append(vs_tcg)
        print(f"{row:<12}{unit:>9}" +
              "".join(f"{values[n]:>12.3f}" if values[n] is not None else f"{'-':>12}" for n in names) +
              (f"{vs_native:>11.2f}x" if vs_native else f"{'-':>12}") +
              (f"{vs_tcg:>9.2f}x" if vs_tcg else f"{'-':>10}") +
              f"  {100 * rel:.0f}%" + (" noisy" if rel > 0.25 else ""))
        table.append({"row": row, "unit": unit, **values, "vs_native": vs_native, "vs_tcg": vs_tcg,
                      "spread": rel})
    if ratios:
        mean = math.exp(sum(math.log(r) for r in ratios) / len(ratios))
        print(f"geometric mean of speed against QEMU's translator: {mean:.2f}x")
    print("vs native: how many times slower than the host; vs tcg: how many times faster than QEMU")
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"rows": table, "version": version, "qemu": qemu_version, "cpu": cpu}, f,
                      indent=1)


if __name__ == "__main__":
    sys.exit(main())
