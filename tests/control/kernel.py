#!/usr/bin/env python3
"""kernel.py DOPPEL - a stock kernel is paused, moved between engines and shut down by its button"""
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib"))
from harness import run_tool

LIMIT = 240  # seconds for anything at all


def expect(condition, message):
    if not condition:
        print("FAILED: " + message)
        sys.exit(1)


class Guest:
    """Its lines, each with the time at which it came."""

    def __init__(self, command, env):
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, env=env)
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for raw in self.process.stdout:
            line = raw.decode("utf-8", "replace").rstrip()
            print("  guest: " + line)
            match = re.search(r"doppel-guest: (\S+) ?(.*)", line)
            if match:
                self.lines.put(match.groups())
        self.lines.put(("end", ""))

    def wait_for(self, word):
        end = time.monotonic() + LIMIT
        while True:
            got = self.lines.get(timeout=max(0.1, end - time.monotonic()))
            if got[0] == word:
                return got[1]
            expect(got[0] != "end", "the guest ended before '%s'" % word)

    def drain(self):
        """The uptime of the latest tick that has come."""
        latest = None
        while not self.lines.empty():
            word, rest = self.lines.get()
            latest = float(rest) if word == "tick" else latest
        return latest


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
                       "--cmdline", "console=ttyS0 loglevel=4 panic=-1 doppel.test=tick"], env)
        try:
            guest.wait_for("ready")
            guest.wait_for("tick")
            ask("pause", "k")
            time.sleep(0.5)  # what it wrote before comes through the pipe
            before = guest.drain()
            time.sleep(3)
            expect(guest.drain() is None, "a paused guest speaks")
            ask("resume", "k")
            first = float(guest.wait_for("tick"))
            if before is not None:
                expect(first - before < 2, "the guest's clock went on while it was paused")
            for engine in ("interp", "bt", "interp", "bt"):
                ask("engine", "k", engine)
                guest.drain()
                guest.wait_for("tick")
            expect(json.loads(ask("status", "k", "--json"))["state"] == "running", "not running")
            expect(ask("stop", "k", "--timeout", "120") == "k: powered off\n", "no clean end")
            guest.wait_for("power-button")
            expect(guest.process.wait(LIMIT) == 0, "doppel's status is not 0")
        finally:
            if guest.process.poll() is None:
                guest.process.kill()
    print("ok")


main()
