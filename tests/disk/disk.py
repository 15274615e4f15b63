#!/usr/bin/env python3
"""disk.py - a Debian disk of guests/debian: login, packages, ssh, reboot, power button

The disk is made smaller than the machine's, and has to grow. What is written has to be there after
a reboot and after a shutdown by the power button, in a file system that has no errors; and
`qemu-img check` finds nothing in an image that is qcow2. With --short there are no packages and no
reboot.
"""
import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from console import Guest, Ssh, free_port, make_disk, run_doppel
from harness import Failed, expect

ROOT_AT = 34 << 20  # where guests/debian-root puts the root file system


def parse_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--doppel", required=True)
    parser.add_argument("--engine", default="bt")
    parser.add_argument("--firmware", default="none",
                        help="seabios, ovmf, or none: the disk's kernel is started directly")
    parser.add_argument("--format", default="qcow2", choices=("qcow2", "raw"))
    parser.add_argument("--short", action="store_true")
    return parser.parse_args()


def as_raw(work, disk):
    """The disk's bytes in a file, as another program than doppel reads them."""
    if not disk.endswith(".qcow2"):
        return disk
    out = os.path.join(work, "copy.img")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, out], check=True)
    return out


def check_disk(work, disk):
    if disk.endswith(".qcow2"):
        # 0: no errors, and no leaks either
        subprocess.run(["qemu-img", "check", "-f", "qcow2", disk], check=True)
    subprocess.run(["e2fsck", "-fn", "%s?offset=%d" % (as_raw(work, disk), ROOT_AT)], check=True,
                   stdin=subprocess.DEVNULL)


def debugfs(disk, request):
    return subprocess.run(["debugfs", "-R", request, "%s?offset=%d" % (disk, ROOT_AT)], check=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True).stdout


def kernel_options(work, disk):
    """As GRUB does it: kernel and initial RAM disk are those of the disk."""
    options, disk = [], as_raw(work, disk)
    for option, name in (("--kernel", "vmlinuz"), ("--initrd", "initrd.img")):
        found = re.search("/(%s-[^/]+)/" % name, debugfs(disk, "ls -p /boot"))
        expect(found, "the disk holds no /boot/%s" % name)
        out = os.path.join(work, name)
        debugfs(disk, "dump /boot/%s %s" % (found.group(1), out))
        options += [option, out]
    return options + ["--cmdline", "root=/dev/vda3 ro console=ttyS0"]


def check_grown(guest):
    mib = int(guest.run("df --output=size -m / | tail -n 1"))
    expect(mib > 2700, "the root file system has %d MiB of a disk of 3 GiB" % mib)


def check_kept(args, guest, word, digest):
    expect(guest.run("cat /root/word").strip() == word, "a file was lost")
    expect(guest.run("sha256sum /root/data").split()[0] == digest, "data was lost")
    expect(args.short or "Hello, world!" in guest.run("hello"), "the package was lost")


def check_log(guest):
    log = guest.run("dmesg | grep -E 'EXT4-fs (error|warning)|I/O error|WARNING:|BUG:' || true")
    expect(log.strip() == "", "the kernel complains:\n" + log)


def use_machine(args, guest, ssh, data):
    """What the issue asks of it; returns a word that was written to a file."""
    word = os.urandom(8).hex()
    guest.login()
    print("\nlogin after %.1f s" % (time.monotonic() - guest.start))
    check_grown(guest)
    if not args.short:
        guest.run("apt-get -q update")
        guest.run("DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends hello")
    guest.run("echo %s >/root/word" % word)
    ssh.run("cat >/root/data", data)
    expect(ssh.run("cat /root/data") == data, "data came back through ssh another")
    return word


def test(args, work):
    disk = os.path.join(work, "debian.qcow2" if args.format == "qcow2" else "debian.img")
    port = free_port()
    ssh = Ssh(work, port)
    make_disk(disk, "--size", "2G", "--hostname", "disktest", "--ssh-key", ssh.key + ".pub")
    subprocess.run([args.doppel, "image", "resize", disk, "3G"], check=True)
    data = os.urandom(8 << 20)
    digest = hashlib.sha256(data).hexdigest()
    env = dict(os.environ, XDG_RUNTIME_DIR=work)
    command = [args.doppel, "run", "--engine", args.engine, "--cpus", "2", "--memory", "512M",
               "--name", "disktest", "--disk", disk,
               "--net", "user,hostfwd=tcp:127.0.0.1:%d-:22" % port]
    if args.firmware == "none":
        command += kernel_options(work, disk)
    else:
        command += ["--firmware", args.firmware]

    with Guest(command, env) as guest:
        word = use_machine(args, guest, ssh, data)
        if not args.short:
            guest.send("reboot")
            guest.login()
        check_kept(args, guest, word, digest)
        check_log(guest)
        run_doppel(args.doppel, env, "stop", "disktest")
        expect(guest.wait_end() == 0, "doppel's exit status is %s" % guest.process.returncode)
        expect("reboot: Power down" in guest.text, "the power button did not shut the guest down")
    with Guest(command, env) as guest:
        guest.login()
        check_kept(args, guest, word, digest)
        check_log(guest)
        guest.send("poweroff")
        expect(guest.wait_end() == 0, "doppel's exit status is %s" % guest.process.returncode)
    check_disk(work, disk)


def main():
    args = parse_arguments()
    args.doppel = os.path.abspath(args.doppel)
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # debugfs, e2fsck
    with tempfile.TemporaryDirectory(prefix="doppel-disk-") as work:
        try:
            test(args, work)
        except Failed as failure:
            print("\nFAILED: %s" % failure)
            return 1
    return 0


sys.exit(main())
