"""console.py - a guest on its serial console: wait for words, run commands, ssh"""
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time

from harness import TOP, Failed, expect

LIMIT = 300  # seconds for anything at all
PASSWORD = "secret"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_disk(path, *options):
    subprocess.run([os.path.join(TOP, "guests", "debian"), path, "--password", PASSWORD, *options],
                   check=True, stdin=subprocess.DEVNULL)


class Guest:
    """A running doppel; what it prints is shown, and kept from where it was last waited for."""

    def __init__(self, command, env=None, name=""):
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, env=env)
        self.chunks = queue.Queue()
        self.text = ""
        self.start = time.monotonic()
        threading.Thread(target=self.read, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def read(self):
        while True:
            chunk = os.read(self.process.stdout.fileno(), 65536)
            self.chunks.put(chunk)
            if not chunk:
                return

    def wait_for(self, pattern):
        """Wait until the output matches; what was before that is forgotten."""
        end = time.monotonic() + LIMIT
        while True:
            match = re.search(pattern, self.text)
            if match:
                self.text = self.text[match.end():]
                return match
            try:
                chunk = self.chunks.get(timeout=max(0.1, end - time.monotonic()))
            except queue.Empty:
                raise Failed("no '%s' within %d s" % (pattern, LIMIT)) from None
            expect(chunk, "doppel ended before '%s'" % pattern)
            text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", chunk.decode("utf-8", "replace"))
            self.show(text)
            self.text += text

    def show(self, text):
        text = text.replace("\r", "")
        if self.name:
            text = "".join("%s: %s\n" % (self.name, line) for line in text.split("\n") if line)
        sys.stdout.write(text)
        sys.stdout.flush()

    def send(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def login(self):
        """From power-on or reboot to a shell that says nothing of its own accord."""
        self.wait_for(r"login: ")
        self.send("root")
        self.wait_for(r"Password: ")
        self.send(PASSWORD)
        self.quiet_shell()

    def quiet_shell(self):
        """From a prompt to a shell that says nothing of its own accord."""
        self.wait_for(r"# ")
        self.send("dmesg -n 1; stty -echo; exec env PS1= TERM=dumb PAGER=cat sh")
        self.run("true")

    def run(self, command):
        """The output of a command that has to succeed."""
        self.start_command(command)
        return self.finish_command(command)

    def start_command(self, command):
        # apt would read what is typed ahead
        self.send("{ %s; } </dev/null; printf '=%%s:%%d=\\n' end $?" % command)

    def finish_command(self, command):
        match = self.wait_for(r"(?s)(.*?)=end:(\d+)=\r?\n")
        expect(match.group(2) == "0", "'%s' ended with status %s" % (command, match.group(2)))
        return match.group(1).replace("\r", "")

    def wait_end(self):
        """The exit status; `text` holds what was said since it was last waited for."""
        while True:
            try:
                chunk = self.chunks.get(timeout=LIMIT)
            except queue.Empty:
                raise Failed("doppel did not end within %d s" % LIMIT) from None
            if not chunk:
                return self.process.wait(LIMIT)
            text = chunk.decode("utf-8", "replace")
            self.show(text)
            self.text += text


class Ssh:
    """ssh to root of the guest behind a forwarded port."""

    def __init__(self, work, port):
        self.key = os.path.join(work, "key")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        self.command = ["ssh", "-q", "-F", "none", "-i", self.key, "-p", str(port),
                        "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                        "-o", "BatchMode=yes", "root@127.0.0.1"]

    def run(self, command, data=b""):
        result = subprocess.run(self.command + [command], input=data, stdout=subprocess.PIPE,
                                timeout=LIMIT, check=False)
        expect(result.returncode == 0, "ssh '%s' ended with status %d" % (command, result.returncode))
        return result.stdout


def run_doppel(doppel, env, *arguments):
    result = subprocess.run([doppel, *arguments], env=env, stdin=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True, timeout=LIMIT, check=False)
    expect(result.returncode == 0, "doppel %s: %s" % (" ".join(arguments), result.stderr))
