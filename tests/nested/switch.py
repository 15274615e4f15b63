#!/usr/bin/env python3
"""switch.py DOPPEL on|off - a stock kernel on a real KVM, and changes of its engine while it computes

The second argument is that of --kvm-irqchip. On a host with a KVM of its own (nested.py) Debian's
kernel boots with 2 CPUs under --engine kvm; while it computes sums on both, the engine changes from
kvm to bt and back. The sums and the clock must be those of an undisturbed machine, and each change
must say how long the guest stood still.
"""
import hashlib
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
CHANGES_MIN = 4


def fail(lines, why):
    print("\n".join(lines))
    print("FAILED: " + why)
    sys.exit(1)


def one(lines, word):
    found = []
    for line in lines:
        match = re.search(r"at ([0-9.]+) .*doppel-guest: %s ?(.*)" % word, line)
        if match:
            found.append((float(match.group(1)), match.group(2)))
    if len(found) != 1:
        fail(lines, "%d lines '%s' instead of one" % (len(found), word))
    return found[0]


def main():
    with open(os.path.join(HERE, "switch.sh"), encoding="utf-8") as job:
        command = [sys.executable, os.path.join(HERE, "nested.py"), "--doppel", sys.argv[1], "--",
                   "irqchip=%s" % sys.argv[2], job.read()]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, check=False, text=True, errors="replace")
    lines = run.stdout.splitlines()
    if run.returncode != 0:
        fail(lines, "exit status %d" % run.returncode)
    one(lines, "ok")
    digest = hashlib.sha256(bytes(32 << 16)).hexdigest()
    # "2 24 DIGEST -": both CPUs' jobs computed it 24 times
    if one(lines, "sums")[1].split() != ["2", "24", digest, "-"]:
        fail(lines, "a sum is wrong")
    pauses = {}
    for line in lines:
        if re.search(r"guest: \w+ -> \w+", line):
            match = re.fullmatch(r"guest: (kvm -> bt|bt -> kvm), the guest stood still for "
                                 r"([0-9]+\.[0-9]{3}) ms", line)
            if not match or float(match.group(2)) <= 0:
                fail(lines, "a change does not say how long the guest stood still: " + line)
            pauses.setdefault(match.group(1), []).append(float(match.group(2)))
    count = sum(len(times) for times in pauses.values())
    if count < CHANGES_MIN or len(pauses) != 2:
        fail(lines, "%d changes of the engine" % count)
    (from_host, rest), (to_host, to_guest) = one(lines, "started"), one(lines, "ended")
    guest, host = float(to_guest) - float(rest.split()[0]), to_host - from_host
    # lines may arrive late, and the host is slow
    if abs(guest - host) > 1.5:
        fail(lines, "%.2f s passed in the guest, %.2f s outside" % (guest, host))
    for change, times in sorted(pauses.items()):
        print("%s: the guest stood still for %.1f ms, at most %.1f ms" %
              (change, sorted(times)[len(times) // 2], max(times)))
    print("%d changes of the engine in %.1f s; sums and clock are right" % (count, host))


main()
