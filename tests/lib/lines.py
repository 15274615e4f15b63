"""lines.py - a guest that tells how far it is, line by line, and connections with it"""
import queue
import re
import socket
import subprocess
import threading
import time

from harness import Failed, expect

LIMIT = 240  # seconds for anything at all


class Guest:
    """A running doppel, and what its guest says: lines of a word and the rest."""

    def __init__(self, command, env=None):
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, env=env)
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for raw in self.process.stdout:
            line = raw.decode("utf-8", "replace").rstrip()
            print("  guest: " + line, flush=True)
            match = re.search(r"doppel-guest: (\S+) ?(.*)", line)
            if match:
                self.lines.put(match.groups())
        self.lines.put(("end", ""))

    def wait_for(self, word):
        end = time.monotonic() + LIMIT
        while True:
            try:
                got = self.lines.get(timeout=max(0.1, end - time.monotonic()))
            except queue.Empty:
                raise Failed("no '%s' within %d s" % (word, LIMIT)) from None
            if got[0] == word:
                return got[1]
            expect(got[0] != "end", "the guest ended before '%s'" % word)


class Flows:
    """The host's ends of two TCP connections, which the guest makes: to `sink`, and to `source`."""

    def __init__(self, mib, address="127.0.0.1"):
        self.mib = mib
        self.sink, self.source = (socket.create_server((address, 0)) for _ in range(2))
        self.received = None
        for target in (self.take, self.give):
            threading.Thread(target=target, daemon=True).start()

    def take(self):
        peer, _ = self.sink.accept()
        total = 0
        while data := peer.recv(1 << 20):
            total += len(data)
        self.received = total
        peer.close()

    def give(self):
        peer, _ = self.source.accept()
        for _ in range(self.mib):
            peer.sendall(bytes(1 << 20))
        peer.shutdown(socket.SHUT_WR)
        peer.recv(1)
