#!/usr/bin/env python3
"""machines.py DOPPEL - ten machines of 128 MiB at once, on one switch

All ten reach their neighbour; data comes over unchanged; the switch is killed and another takes its
place, and they go on; all shut down by the power button.
"""
import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from console import Guest, run_doppel
from harness import Failed, expect, modules_named, run_tool

COUNT = 10
MODULES = ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
           "failover", "net_failover", "virtio_net"]


def make_initrd(work, kernel):
    initrd = os.path.join(work, "initramfs.cpio")
    run_tool("make-initramfs", initrd,
             *modules_named(kernel, MODULES + ["button", "evdev"]))
    return initrd


def start_switch(doppel, path):
    switch = subprocess.Popen([doppel, "switch", path], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, text=True)
    expect("is there" in switch.stdout.readline(), "the switch did not start")
    return switch


def address(number):
    return "10.9.0.%d" % (number % COUNT + 1)


def set_up(guest, number):
    guest.quiet_shell()
    for module in MODULES:
        guest.run("[ ! -e /modules/%s.ko ] || insmod /modules/%s.ko" % (module, module))
    guest.run("ip link set eth0 up")
    guest.run("ip addr add %s/24 dev eth0" % address(number))
    return guest.run("cat /sys/class/net/eth0/address").strip()


def resident_kib(pid):
    with open("/proc/%d/smaps_rollup" % pid, encoding="ascii") as file:
        return int(re.search(r"^Pss: *(\d+) kB", file.read(), re.M).group(1))


def transfer(sender, receiver):
    """The receiver answers what comes with its sum."""
    receiver.run("printf '#!/bin/sh\\nmd5sum\\n' >/tmp/sum; chmod +x /tmp/sum")
    # not in the background: an idle shell of busybox takes its child's end for its own
    listen = "nc -l -p 9 -e /tmp/sum"
    receiver.start_command(listen)
    sender.run("dd if=/dev/urandom of=/tmp/data bs=64k count=128 2>/dev/null")
    sender.run("until nc %s 9 </tmp/data >/tmp/answer; do usleep 10000; done" % address(0))
    receiver.finish_command(listen)
    sender.run("md5sum </tmp/data | cmp - /tmp/answer")


def test(doppel, work, guests):
    kernel = run_tool("fetch-kernel", "cloud")
    initrd = make_initrd(work, kernel)
    env = dict(os.environ, XDG_RUNTIME_DIR=work)
    path = os.path.join(work, "lan")
    switch = start_switch(doppel, path)
    try:
        for number in range(COUNT):
            guests.append(Guest([doppel, "run", "--engine", "bt", "--memory", "128M",
                                 "--name", "m%d" % number, "--net", "socket:" + path,
                                 "--kernel", kernel, "--initrd", initrd,
                                 "--cmdline", "console=ttyS0 quiet"], env, "m%d" % number))
        macs = [set_up(guest, number) for number, guest in enumerate(guests)]
        expect(len(set(macs)) == COUNT, "machines share an address: %s" % macs)
        for number, guest in enumerate(guests):
            guest.run("ping -c 2 -W 10 %s" % address(number + 1))
        transfer(guests[1], guests[0])
        memory = [resident_kib(guest.process.pid) for guest in guests]
        print("%d machines of 128 MiB take %d MiB of the host's memory, %d to %d MiB each" %
              (COUNT, sum(memory) >> 10, min(memory) >> 10, max(memory) >> 10))
        switch.kill()
        switch.wait()
        switch.stdout.close()
        switch = start_switch(doppel, path)
        for number, guest in enumerate(guests):
            guest.run("until ping -c 1 -W 1 %s; do :; done" % address(number + 1))
    finally:
        switch.terminate()
        switch.stdout.close()
        status = switch.wait()
    expect(status == 0, "the switch ended with status %d" % status)
    for number, guest in enumerate(guests):
        run_doppel(doppel, env, "stop", "--button", "m%d" % number)
        expect(guest.wait_end() == 0, "machine %d ended with status %d" %
               (number, guest.process.returncode))


def main():
    doppel = os.path.abspath(sys.argv[1])
    guests = []
    with tempfile.TemporaryDirectory(prefix="doppel-net-") as work:
        os.chmod(work, 0o700)
        try:
            test(doppel, work, guests)
        except Failed as failure:
            print("\nFAILED: %s" % failure)
            return 1
        finally:
            for guest in guests:
                guest.__exit__()
    return 0


sys.exit(main())
