#!/usr/bin/env python3
"""kernel.py DOPPEL - a stock kernel is paused, moved between engines and shut down by its button"""
import json
import os
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from harness import Failed, expect, run_tool
from lines import LIMIT, Guest

PAUSE = 4  # seconds; the guest speaks several times a second


def ticks(guest):
    """The uptimes that have come from the guest and were not looked at."""
    found = []
    while not guest.lines.empty():
        word, rest = guest.lines.get()
        found += [float(rest)] if word == "tick" else []
    return found


def main():
    doppel = os.path.abspath(sys.argv[1])
    kernel = run_tool("fetch-kernel", "cloud")
    with tempfile.TemporaryDirectory(prefix="doppel-control-") as work:
        os.chmod(work, 0o700)
        env = dict(os.environ, XDG_RUNTIME_DIR=work)
        modules = os.path.join(os.path.dirname(os.path.dirname(kernel)), "modules")
        initrd = os.path.join(work, "initramfs.cpio")
        run_tool("make-initramfs", initrd, *["%s/%s.ko=modules/%s.ko" % (modules, name, name)
                                             for name in ("button", "evdev")])

        def ask(*arguments):
            result = subprocess.run([doppel, *arguments], env=env, stdin=subprocess.DEVNULL,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                    timeout=LIMIT, check=False)
            expect(result.returncode == 0, "%s: %s" % (arguments, result.stderr))
            print(result.stdout.rstrip())
            return result.stdout

        guest = Guest([doppel, "run", "--name", "k", "--engine", "bt", "--engines", "bt,interp",
                       "--cpus", "2", "--memory", "256M", "--kernel", kernel, "--initrd", initrd,
                       "--cmdline", "console=ttyS0 loglevel=4 panic=-1 doppel.test=tick"], env=env)
        try:
            guest.wait_for("ready")
            before = float(guest.wait_for("tick"))
            ask("pause", "k")
            time.sleep(PAUSE)
            # What it said before the pause may have been on its way.
            late = ticks(guest)
            expect(len(late) < PAUSE, "a paused guest speaks: %s" % late)
            before = max([before, *late])
            ask("resume", "k")
            first = float(guest.wait_for("tick"))
            expect(first - before < PAUSE - 1, "the guest's clock went on while it was paused")
            for engine in ("interp", "bt", "interp", "bt"):
                ask("engine", "k", engine)
                ticks(guest)
                guest.wait_for("tick")
            expect(json.loads(ask("status", "k", "--json"))["state"] == "running", "not running")
            expect(ask("stop", "k", "--timeout", "120") == "k: powered off\n", "no clean end")
            guest.wait_for("power-button")
            expect(guest.process.wait(LIMIT) == 0, "doppel's status is not 0")
        finally:
            if guest.process.poll() is None:
                guest.process.kill()
    print("ok")


try:
    main()
except Failed as failure:
    print("FAILED: %s" % failure)
    sys.exit(1)
