#!/usr/bin/env python3
"""Runs the same rows natively, under QEMU's translator and under doppel, in turn, and compares.

The guest's initramfs holds the static program `rows` (bench/rows.c) as /init. Each kind of machine
(one CPU, the same with Debian's programs in its initramfs, two CPUs) that the chosen rows need is started once in a round. "boot" is the time from
starting the one with one CPU to the first line of that program, "total" that to its end. Rows of
disk, network and shared folder run in a Debian guest (bench/debian.py). A row is
called noisy when rounds of one runner differ by more than a quarter: its figures say little then.

Somebody else who wants the host's CPUs makes a row slower, one for two CPUs most: the host's
scheduler may put both on one CPU for as long as that goes on. So each round of a row is told how
much of the time its threads waited for a CPU. Rounds that waited count only when there are no
others, and the row is called disturbed then.
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
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import debian

NOISY = 0.25
DISTURBED = 0.1
# Rows that bench.py itself measures: unit, rate or time, kind, machine.
MACHINE_ROWS = {"boot": ("s", "time", "boot", "one"), "total": ("s", "time", "boot", "one")}
# Rows whose aim is twice QEMU's speed, and in which the guest asks for what is then not at hand.
IO_KINDS = ("disk", "net", "share")
MACHINE_TITLES = {"one": "boot and static rows", "programs": "boot and Debian's programs"}
CPUS = {"one": 1, "programs": 1, "two": 2}


def cpio_entry(name, mode, data, ino, rdev=(0, 0)):
    """One member of a "newc" archive (Linux Documentation/driver-api/early-userspace)."""
    fields = [ino, mode, 0, 0, 1, 0, len(data), 0, 0, rdev[0], rdev[1], len(name) + 1, 0]
    out = b"070701" + b"".join(b"%08X" % f for f in fields) + name.encode() + b"\0"
    out += b"\0" * (-len(out) % 4) + data
    return out + b"\0" * (-len(out) % 4)


def make_initramfs(path, program, folder=None):
    """`program` as /init, and the files of `folder` (two levels deep) as /programs."""
    with open(path, "wb") as f:
        count = 0

        def add(name, mode, data=b"", rdev=(0, 0)):
            nonlocal count
            count += 1
            f.write(cpio_entry(name, mode, data, count, rdev))

        def add_file(name, source):
            with open(source, "rb") as data:
                add(name, 0o100755, data.read())

        add("dev", 0o040755)
        add("dev/console", 0o020600, rdev=(5, 1))
        add("dev/null", 0o020666, rdev=(1, 3))
        add_file("init", program)
        if folder:
            add("programs", 0o040755)
            for entry in sorted(os.listdir(folder)):
                source = os.path.join(folder, entry)
                if not os.path.isdir(source):
                    add_file("programs/" + entry, source)
                    continue
                add("programs/" + entry, 0o040755)
                for name in sorted(os.listdir(source)):
                    add_file(f"programs/{entry}/{name}", os.path.join(source, name))
        add("TRAILER!!!", 0)


def make_programs(out, programs, compiled):
    """Debian's programs, and what they work on, as rows_programs.c expects them."""
    here = os.path.dirname(os.path.abspath(__file__))
    os.mkdir(out)
    for entry in ("bin", "lib", "ld.so"):
        os.symlink(os.path.join(programs, entry), os.path.join(out, entry))
    shutil.copytree(os.path.join(here, "programs"), os.path.join(out, "data"))
    shutil.copy(compiled, os.path.join(out, "data", "compile.i"))


def list_rows(program):
    """{row: (unit, rate or time, kind, machine)} in the program's order."""
    out = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout
    return {w[0]: tuple(w[1:5]) for w in map(str.split, out.splitlines())}


class Waits:
    """How long a process's threads ran, and waited for a CPU of the host's."""

    def __init__(self, pid):
        self.pid = pid
        self.threads = {}
        self.begin = self.mark = (0, 0)

    def look(self):
        """(nanoseconds run, waited) of all threads; what is over counts as last seen."""
        folder = f"/proc/{self.pid}/task"
        try:
            for thread in os.listdir(folder):
                with open(f"{folder}/{thread}/schedstat", encoding="ascii") as f:
                    self.threads[thread] = tuple(map(int, f.read().split()[:2]))
        except OSError:
            pass  # a thread or the process has ended, or the host does not count
        return tuple(map(sum, zip(*self.threads.values()))) or (0, 0)

    @staticmethod
    def share(begin, end):
        run, wait = (b - a for a, b in zip(begin, end))
        return wait / (run + wait) if run + wait > 0 else 0.0

    def of_row(self):
        """The part of the time since the last row that was spent waiting."""
        begin, self.mark = self.mark, self.look()
        return self.share(begin, self.mark)

    def of_all(self):
        return self.share(self.begin, self.look())


def run(command, timeout):
    """
    Run it to its end; returns {row: value}, {row: part of the time spent waiting for a CPU},
    {row: sum of its output}.
    """
    result, waited, checks = {}, {}, {}
    errors = tempfile.TemporaryFile()
    begin = time.monotonic()
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL)
    watchdog = threading.Timer(timeout, p.kill)
    watchdog.start()
    waits = Waits(p.pid)
    is_done = False
    try:
        for raw in p.stdout:
            line = raw.decode(errors="replace").strip()
            words = line.split()
            if "rows: first process" in line:
                result["boot"] = time.monotonic() - begin
                waited["boot"] = waits.of_row()
            elif len(words) == 4 and words[0] == "row":
                result[words[1]] = float(words[2])
                waited[words[1]] = waits.of_row()
            elif len(words) == 3 and words[0] == "check":
                if checks.setdefault(words[1], words[2]) != words[2]:
                    raise RuntimeError(f"{words[1]}: another result in each pass: {command}")
            elif "rows: FAILED" in line:
                raise RuntimeError(f"{line}: {' '.join(command)}")
            elif "rows: done" in line:
                is_done = True
                waited["total"] = waits.of_all()
        p.wait()
        result["total"] = time.monotonic() - begin
    finally:
        watchdog.cancel()
        if p.poll() is None:
            p.kill()
            p.wait()
    if not is_done:
        errors.seek(0)
        raise RuntimeError(f"no end within {timeout} s, or it died: {' '.join(command)}\n" +
                           errors.read().decode(errors="replace"))
    return result, waited, checks


def doppel_command(binary, args, machine, initrd, cmdline):
    return [binary, "run", "--engine", "bt", "--cpus", str(CPUS[machine]), "--memory",
            f"{args.memory}M", "--kernel", args.kernel, "--initrd", initrd, "--cmdline", cmdline]


def make_runners(args, machine, initrd, chosen, programs):
    """{name: command} for one machine and its rows, those that are asked for and installed."""
    rows = ",".join(chosen) or "none"
    cmdline = "console=ttyS0 quiet rows=" + rows
    qemu = shutil.which("qemu-system-x86_64")
    runners = {"native": [args.program, rows] + ([programs] if programs else [])}
    if qemu:
        runners["tcg"] = [qemu, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp",
                          str(CPUS[machine]), "-m", str(args.memory), "-kernel", args.kernel,
                          "-initrd", initrd, "-append", cmdline, "-nographic", "-no-reboot", "-net",
                          "none"]
    if args.against:
        runners["against"] = doppel_command(args.against, args, machine, initrd, cmdline)
    runners["doppel"] = doppel_command(args.doppel, args, machine, initrd, cmdline)
    if args.on:
        wanted = args.on.split(",") + ["doppel"] + (["against"] if args.against else [])
        runners = {n: c for n, c in runners.items() if n in wanted}
    return runners


def make_machines(args, work, known, chosen):
    """{machine: its runners} for those machines that the rows need."""
    machines = {}
    for machine in CPUS:
        if not any(known[row][3] == machine for row in chosen):
            continue
        programs = None
        if machine == "programs":
            if not args.programs:
                print("bench: rows that run programs are left out, for there are none")
                continue
            programs = os.path.join(work, "programs")
            make_programs(programs, args.programs, args.compiled)
        initrd = os.path.join(work, "initrd-" + machine)
        make_initramfs(initrd, args.program, programs)
        rows = [r for r in chosen if known[r][3] == machine and r not in MACHINE_ROWS]
        machines[machine] = make_runners(args, machine, initrd, rows, programs)
    rows = [r for r in chosen if known[r][3] == debian.MACHINE]
    if rows:
        try:
            guest = debian.Debian(args, work, rows, known)
            machines[debian.MACHINE] = dict.fromkeys(guest.runners(), guest)
        except subprocess.CalledProcessError:
            print("bench: rows in a Debian guest are left out, for its disk could not be made")
    return machines


def run_machine(args, name, command):
    """One round of one machine under one runner; as run()."""
    if isinstance(command, debian.Debian):
        return (*command.run(name, Waits), {})
    return run(command, args.timeout)


def measure(args, machines):
    """{runner: {row: [value of each round]}}, and the same of what part it waited for a CPU"""
    samples, waits, checks = {}, {}, {}
    for _ in range(args.rounds):
        for machine, runners in machines.items():
            for name, command in runners.items():
                values, waited, sums = run_machine(args, name, command)
                for row, value in values.items():
                    if row not in MACHINE_ROWS or (machine == "one" and name != "native"):
                        samples.setdefault(name, {}).setdefault(row, []).append(value)
                        waits.setdefault(name, {}).setdefault(row, []).append(waited[row])
                for row, value in sums.items():
                    if checks.setdefault(row, value) != value:
                        raise RuntimeError(f"{row}: the output under {name} is not that of others")
    return samples, waits


def options():
    ap = argparse.ArgumentParser(prog="bench/run", description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--doppel", required=True, help="the doppel to measure")
    ap.add_argument("--program", required=True, help="the compiled bench/rows.c")
    ap.add_argument("--programs", help="what bench/make-programs made")
    ap.add_argument("--compiled", help="preprocessed C file for the gcc row")
    ap.add_argument("--kernel", help="guest kernel")
    ap.add_argument("--share", required=True, help="the compiled bench/share.c")
    ap.add_argument("--rows", help="only these rows, as in matrix,libm")
    ap.add_argument("--kinds", help="only rows of these kinds, as in disk,net,share")
    ap.add_argument("--seconds", type=int, default=3, help="of each row of those three kinds")
    ap.add_argument("--on", help="beside doppel only these of native,tcg")
    ap.add_argument("--against", metavar="DOPPEL", help="another doppel to measure beside it")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--best", action="store_true", help="take the best round, not the median")
    ap.add_argument("--memory", type=int, default=512, metavar="MIB")
    ap.add_argument("--timeout", type=int, default=600, metavar="SECONDS", help="for one machine")
    ap.add_argument("--list", action="store_true", help="print the rows and end")
    ap.add_argument("--json", metavar="FILE", help="all samples and results")
    return ap.parse_args()


def main():
    args = options()
    known = {**MACHINE_ROWS, **list_rows(args.program), **debian.list_rows(args.share)}
    if args.list:
        print(f"{'row':<14}{'unit':>9}  {'more is':<8}{'kind':<10}machine")
        for row, (unit, rate, kind, machine) in known.items():
            print(f"{row:<14}{unit:>9}  {'better' if rate == 'rate' else 'worse':<8}{kind:<10}"
                  f"{machine}")
        return 0
    chosen = args.rows.split(",") if args.rows else list(known)
    for row in chosen:
        if row not in known:
            sys.exit(f"bench: no row '{row}'; --list prints them")
    if args.kinds:
        kinds = args.kinds.split(",")
        for kind in kinds:
            if kind not in {row[2] for row in known.values()}:
                sys.exit(f"bench: no rows of the kind '{kind}'; --list prints them")
        chosen = [row for row in chosen if known[row][2] in kinds]
    work = tempfile.mkdtemp(prefix="doppel-bench-")
    try:
        machines = make_machines(args, work, known, chosen)
        samples, waits = measure(args, machines)
        costs = {} if args.rows else translation_cost(args, machines)
    except RuntimeError as e:
        sys.exit(f"bench: {e}")
    finally:
        shutil.rmtree(work)
    results = compare(args, known, samples, waits)
    head = header(args)
    print_table(args, head, results, [n for n in ("native", "tcg", "against", "doppel")
                                      if n in samples])
    for machine, cost in costs.items():
        print(f"translating one guest byte: {cost:.0f} ns ({MACHINE_TITLES[machine]})")
    found = [] if args.rows else checks(results, samples)
    if found:
        print_checks(found)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"header": head, "rows": results, "samples": samples, "waits": waits,
                       "ns_per_translated_byte": costs,
                       "checks": [dict(zip(("what", "figure", "aim", "is_met"), c))
                                  for c in found]}, f, indent=1)
    return 0


def faster(a, b, rate):
    """How many times a is faster than b; None when one is missing."""
    if not a or not b:
        return None
    return a / b if rate == "rate" else b / a


def undisturbed(values, waits):
    """The rounds that had the CPUs they wanted, or all."""
    return [v for v, w in zip(values, waits) if w <= DISTURBED] or values


def compare(args, rows, samples, waits):
    counted = {name: {row: undisturbed(values, waits[name][row]) for row, values in by_row.items()}
               for name, by_row in samples.items()}
    results = []
    for row, (unit, rate, kind, machine) in rows.items():
        values = {}
        for name, by_row in counted.items():
            if row in by_row:
                best = max if rate == "rate" else min
                values[name] = (best if args.best else statistics.median)(by_row[row])
        d = values.get("doppel")
        if d is None:
            continue
        spreads = {name: (max(v[row]) - min(v[row])) / values[name] if values[name] else 0
                   for name, v in counted.items() if row in v}
        results.append({
            "row": row, "unit": unit, "more_is": "better" if rate == "rate" else "worse",
            "kind": kind, "machine": machine, "values": values,
            "vs_native": faster(values.get("native"), d, rate),
            "vs_tcg": faster(d, values.get("tcg"), rate),
            "vs_against": faster(d, values.get("against"), rate),
            "spread": spreads["doppel"], "spreads": spreads,
            "noisy": [name for name, spread in spreads.items() if spread > NOISY],
            "disturbed": {name: min(v[row]) for name, v in waits.items()
                          if row in v and min(v[row]) > DISTURBED},
        })
    return results


def translation_cost(args, machines):
    """{machine: nanoseconds for translating one guest byte}, from one more run with --stats."""
    costs = {}
    for machine in ("one", "programs"):
        if machine not in machines:
            continue
        command = machines[machine]["doppel"]
        command = command[:2] + ["--stats"] + command[2:]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, timeout=args.timeout, text=True)
        found = {}
        for line in done.stderr.splitlines():
            for key in ("guest bytes", "ms translating"):
                if line.strip().startswith(key + "  "):
                    found[key] = found.get(key, 0) + float(line.split()[-1])
        if found.get("guest bytes") and "ms translating" in found:
            costs[machine] = 1e6 * found["ms translating"] / found["guest bytes"]
    return costs


def checks(results, samples):
    """[(what, figure, bound as text, is met)]: what doppel is held to."""
    by_row = {r["row"]: r for r in results}
    out = []

    def add(what, figure, bound, is_met):
        if figure is not None:
            out.append((what, figure, bound, is_met(figure)))

    def slowest(rows, key):
        values = [r[key] for r in rows if r[key]]
        return max(values) if values else None

    def named(*names):
        return [by_row[n] for n in names if n in by_row]

    if "tcg" in samples:
        ratios = single_cpu(results, "vs_tcg")
        add("geometric mean against QEMU, one CPU", geometric_mean(ratios), ">= 3",
            lambda x: x >= 3)
        slow = [r for r in results if r["kind"] in IO_KINDS and r["vs_tcg"]]
        slow.sort(key=lambda r: r["vs_tcg"])
        for r in slow[:1]:
            add(f"slowest row of disk, network and folder against QEMU ({r['row']})", r["vs_tcg"],
                ">= 2", lambda x: x >= 2)
        slow = [r["row"] for r in results if r["vs_tcg"] and r["vs_tcg"] < 1]
        add("rows slower than QEMU" + (": " + ", ".join(slow) if slow else ""), float(len(slow)),
            "= 0", lambda x: x == 0)
        if "boot" in by_row:
            add("power-on to first process, part of QEMU's time", 1 / by_row["boot"]["vs_tcg"],
                "<= 0.5", lambda x: x <= 0.5)
        for r in named("futex", "futex2", "mutex"):
            add(f"{r['row']} against QEMU", r["vs_tcg"], "> 1", lambda x: x > 1)
    if "native" in samples:
        add("floating point and vector rows, slowest against native",
            slowest([r for r in results if r["kind"] == "float"], "vs_native"), "<= 2.5",
            lambda x: x <= 2.5)
        add("system call against native", slowest(named("getppid"), "vs_native"), "<= 2",
            lambda x: x <= 2)
        for row, what in (("fault", "page fault"), ("fork", "fork"), ("exec", "exec")):
            add(what + " against native", slowest(named(row), "vs_native"), "<= 3",
                lambda x: x <= 3)
    for r in named("threads"):
        add("two compute threads on two CPUs, times one" + (", disturbed" if r["disturbed"] else ""),
            r["values"]["doppel"], ">= 1.9",
            lambda x: x >= 1.9)
    return out


def print_checks(found):
    print("aims:")
    for what, figure, bound, is_met in found:
        print(f"  {'met    ' if is_met else 'NOT met'}  {what}: {figure:.2f} (aim {bound})")


def header(args):
    cpu = ""
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        for line in f:
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break

    def first_line(*command):
        if not shutil.which(command[0]):
            return f"{command[0]} is not installed"
        return subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[0]

    return {"cpu": cpu, "cpus": os.cpu_count(), "host": platform.release(),
            "kernel": os.path.basename(args.kernel or ""), "memory": args.memory, "rounds": args.rounds,
            "of_rounds": "best" if args.best else "median",
            "doppel": first_line(args.doppel, "--version"),
            "qemu": first_line("qemu-system-x86_64", "--version")}


def single_cpu(results, key):
    """The ratios that count for the mean; "total" would count all of them once more."""
    return [r[key] for r in results if r[key] and r["machine"] in ("one", "programs") and
            r["row"] != "total"]


def geometric_mean(ratios):
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None


def print_table(args, head, results, names):
    print(f"host:  {head['cpu']}, {head['cpus']} CPUs, Linux {head['host']}")
    guest = f"{head['kernel']}, {head['memory']} MiB" if head["kernel"] else "a Debian disk"
    print(f"guest: {guest}; {head['rounds']} rounds, {head['of_rounds']} of each")
    print(f"{head['doppel']}; {head['qemu']}")
    ratios = [("vs_native", "vs native", "native"), ("vs_tcg", "vs tcg", "tcg"),
              ("vs_against", "vs other", "against")]
    ratios = [r for r in ratios if r[2] in names]
    print(f"{'row':<14}{'unit':>8}" + "".join(f"{n:>12}" for n in names) +
          "".join(f"{title:>11}" for _, title, _ in ratios) + "  spread")

    def cell(value, form, width, suffix=""):
        return f"{format(value, form) + suffix if value is not None else '-':>{width}}"

    for r in results:
        print(f"{r['row']:<14}{r['unit']:>8}" +
              "".join(cell(r["values"].get(n), ".3f", 12) for n in names) +
              "".join(cell(r[key], ".2f", 11, "x") for key, _, _ in ratios) +
              f"{100 * r['spread']:>7.0f}%" +
              (" noisy: " + ", ".join(r["noisy"]) if r["noisy"] else "") +
              (" disturbed: " + ", ".join(f"{n} waited {100 * w:.0f}% of the time"
                                          for n, w in r["disturbed"].items())
               if r["disturbed"] else ""))
    disturbed = [r["row"] for r in results if r["disturbed"]]
    if disturbed:
        print(f"{len(disturbed)} of {len(results)} rows are disturbed: others used the host's CPUs "
              "in every round")
    noisy = [r["row"] for r in results if r["noisy"]]
    if noisy:
        print(f"{len(noisy)} of {len(results)} rows are noisy: measure again with less else running, "
              "or with more --rounds")
    for key, _, name in ratios[1 if "native" in names else 0:]:
        mean = geometric_mean(single_cpu(results, key))
        if mean:
            print(f"geometric mean of rows with one CPU: {mean:.2f} times as fast as "
                  f"{'QEMU' if name == 'tcg' else args.against}")
    print("vs native: times slower than the host; vs tcg, vs other: times faster than those")


if __name__ == "__main__":
    sys.exit(main())
