#!/usr/bin/env python3
"""switch.py DOPPEL on|off - a stock kernel on a real KVM, and changes of its engine while it computes

The second argument is that of --kvm-irqchip. On a host with a KVM of its own (nested.py) Debian's
kernel boots with 2 CPUs under --engine kvm; while it computes sums on both and fetches a file by the
network, the engine changes from kvm to bt and back. The sums, the file and the clock must be those
of an undisturbed machine, the kernel must use KVM's hypercalls where they work, and each change must
say how long the guest stood still.
"""
import hashlib
import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from harness import modules_named, run_tool

HERE = os.path.dirname(os.path.abspath(__file__))
CHANGES_MIN = 4
MODULES = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
           "failover", "net_failover", "virtio_net"]


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


def run(doppel, irqchip):
    """What was printed, and the exit status."""
    with open(os.path.join(HERE, "switch.sh"), encoding="utf-8") as file:
        job = file.read()
    with tempfile.TemporaryDirectory(prefix="doppel-switch-") as work:
        guest = os.path.join(work, "guest.cpio")
        run_tool("make-initramfs", guest, os.path.join(HERE, "guest.sh") + "=script",
                 *modules_named(run_tool("fetch-kernel", "cloud"), MODULES))
        command = [sys.executable, os.path.join(HERE, "nested.py"), "--doppel", doppel,
                   "--file", guest + "=guest.cpio", "--", "irqchip=%s" % irqchip, job]
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False, text=True, errors="replace")


def check_network(lines):
    """The file, each time, and notifications of the device that took no exit of KVM."""
    fetched = one(lines, "fetched")[1].split()
    if len(fetched) != 3 or fetched[1] != hashlib.sha256(bytes(1 << 16)).hexdigest():
        fail(lines, "a file came otherwise than it was sent")
    rung = [re.search(r"notifications without an exit +(\d+)", line) for line in lines]
    rung = sum(int(match.group(1)) for match in rung if match)
    if rung == 0:
        fail(lines, "all of the network's notifications left the guest")
    for group in "CPU 0, KVM (kvm)", "CPU 0, translator (bt)":
        if group not in lines:
            fail(lines, "no counters of '%s'" % group)
    return int(fetched[0]), rung


def main():
    result = run(sys.argv[1], sys.argv[2])
    lines = result.stdout.splitlines()
    if result.returncode != 0:
        fail(lines, "exit status %d" % result.returncode)
    one(lines, "ok")
    # hypercalls are KVM's, and for its own local APICs
    used = one(lines, "paravirt")[1].split(",")
    if ("setup PV IPIs" in used) != (sys.argv[2] == "on"):
        fail(lines, "of the paravirtual features the kernel uses: %s" % used)
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
    print("%d files fetched meanwhile, %d notifications without an exit" % check_network(lines))


main()
