#!/usr/bin/env python3
"""cli.py DOPPEL - exit statuses, messages, the terminal, signals; with tiny guests"""
import fcntl
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
import unittest

import guests

DOPPEL = ""
LIMIT = 30  # seconds for anything at all


def wait_until_it_takes(pid, number):
    """Until process `pid` blocks the signal, which it then reads when it can."""
    end = time.monotonic() + LIMIT
    while True:
        with open("/proc/%d/status" % pid, encoding="ascii", errors="replace") as status:
            blocked = next(line for line in status if line.startswith("SigBlk:"))
        if int(blocked.split()[1], 16) >> (number - 1) & 1:
            return
        if time.monotonic() > end:
            raise AssertionError("signal %d is never taken" % number)
        time.sleep(0.01)


class Terminal:
    """doppel as the foreground job of a terminal of its own."""

    def __init__(self, arguments):
        self.fd, self.slave = pty.openpty()
        self.output = b""
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)
            for number in range(3):
                os.dup2(self.slave, number)
            os.execv(DOPPEL, [DOPPEL] + arguments)

    def is_raw(self):
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO)

    def read_until(self, text):
        end = time.monotonic() + LIMIT
        while text not in self.output:
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.monotonic()))
            if not ready:
                raise AssertionError("no %r in %r" % (text, self.output))
            try:
                self.output += os.read(self.fd, 4096)
            except OSError as error:
                raise AssertionError("terminal ended: %r" % self.output) from error

    def type(self, text):
        os.write(self.fd, text)

    def wait_for(self, condition, what):
        end = time.monotonic() + LIMIT
        while not condition():
            if time.monotonic() > end:
                raise AssertionError("never: " + what)
            time.sleep(0.01)

    def wait(self):
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if select.select([self.fd], [], [], 0.01)[0]:
                self.output += os.read(self.fd, 4096)
        raise AssertionError("does not end: %r" % self.output)

    def close(self):
        os.close(self.slave)
        os.close(self.fd)


class CommandLine(unittest.TestCase):
    def setUp(self):
        self.work = tempfile.TemporaryDirectory(prefix="doppel-cli-")
        self.paths = {}
        for name, code in guests.GUESTS.items():
            self.paths[name] = os.path.join(self.work.name, name)
            with open(self.paths[name], "wb") as out:
                out.write(guests.image(code))

    def tearDown(self):
        self.work.cleanup()

    def arguments(self, guest, *more):
        return ["run", "--memory", "16M", "--kernel", self.paths[guest], *more]

    def run_doppel(self, *arguments, **options):
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run([DOPPEL, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=LIMIT, check=False, **options)

    def start(self, *arguments, **options):
        return subprocess.Popen([DOPPEL, *arguments], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    # ---- usage ----

    def test_help_and_version(self):
        for arguments in (["help"], ["--help"], ["-h"], ["run", "--help"]):
            result = self.run_doppel(*arguments)
            self.assertEqual(result.returncode, 0)
            self.assertIn(b"--memory SIZE", result.stdout)
            self.assertEqual(result.stderr, b"")
        result = self.run_doppel("--version")
        self.assertRegex(result.stdout, rb"^doppel [0-9.]+\n$")
        with open("/dev/full", "wb") as full:
            result = subprocess.run([DOPPEL, "--help"], stdout=full, stderr=subprocess.PIPE,
                                    check=False)
        self.assertEqual(result.returncode, 1)

    def test_cpu_models(self):
        result = self.run_doppel("run", "--cpu-model", "help")
        self.assertEqual(result.returncode, 0)
        self.assertIn(b"host", result.stdout)

    def test_bad_usage(self):
        for arguments, text in (
                ([], b"Usage:"),
                (["rnu"], b"did you mean 'run'"),
                (["run"], b"--kernel FILE"),
                (["run", "--kernell", "x"], b"did you mean '--kernel'"),
                (["run", "--kernel", "/nonexistent"], b"/nonexistent"),
                (["run", "--kernel", "/dev/null"], b"/dev/null"),
                (["run", "--kernel", self.work.name], b"doppel-cli-"),
                (["run", "--kernel", self.paths["hang"], "--serial", "tcp:1"], b"--serial"),
                (["run", "--kernel", self.paths["hang"], "--serial", "file:/nonexistent/x"],
                 b"/nonexistent/x"),
                (["run", "--kernel", self.paths["hang"], "--initrd", "/nonexistent"],
                 b"/nonexistent"),
                (["run", "--kernel", self.paths["hang"], "--cpu-model", "abacus"], b"abacus"),
                (["run", "--kernel", self.paths["hang"], "--cpu-model", "host,+warp"], b"warp")):
            result = self.run_doppel(*arguments)
            self.assertEqual(result.returncode, 1, arguments)
            self.assertIn(text, result.stderr)
            self.assertEqual(result.stdout, b"")

    # ---- how it ends ----

    def test_debug_exit(self):
        for engine in ("bt", "interp"):
            result = self.run_doppel(*self.arguments("debug-exit", "--debug-exit", "--engine", engine))
            self.assertEqual(result.returncode, 43, result.stderr)

    def test_triple_fault(self):
        for engine in ("bt", "interp"):
            result = self.run_doppel(*self.arguments("triple-fault", "--engine", engine))
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn(b"triple fault on CPU 0", result.stderr)
            self.assertRegex(result.stderr.lower(), rb"rip|eip")
            self.assertEqual(result.stdout, b"")

    def test_reset(self):
        result = self.run_doppel(*self.arguments("reset", "--on-reboot", "exit"))
        self.assertEqual(result.returncode, 3, result.stderr)

    def test_stats(self):
        result = self.run_doppel(*self.arguments("debug-exit", "--debug-exit", "--stats"))
        self.assertEqual(result.returncode, 43)
        self.assertGreater(len(result.stderr.splitlines()), 5)
        self.assertEqual(result.stdout, b"")

    def test_signals(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with self.start(*self.arguments("hang")) as process:
                self.assertEqual(process.stdout.readline(), b"ready\r\n")
                process.send_signal(number)
                self.assertEqual(process.wait(LIMIT), 128 + number)

    def test_signal_while_busy(self):
        with self.start(*self.arguments("flood", "--serial", "none")) as process:
            wait_until_it_takes(process.pid, signal.SIGTERM)
            time.sleep(0.2)  # so that the guest is on its way, most of the time
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(LIMIT), 128 + signal.SIGTERM)

    # ---- serial output and input ----

    def test_output_is_complete(self):
        want = b"0123456789abcdef" * 1000
        arguments = self.arguments("lines", "--debug-exit")
        self.assertEqual(self.run_doppel(*arguments).stdout, want)
        path = os.path.join(self.work.name, "out")
        self.run_doppel(*arguments, "--serial", "file:" + path)
        with open(path, "rb") as out:
            self.assertEqual(out.read(), want)

    def test_input_from_pipe_and_file(self):
        with self.start(*self.arguments("echo")) as process:
            self.assertEqual(process.stdout.readline(), b"ready\r\n")
            text = b"some text, with Ctrl-A \x01x in it\n" * 20
            process.stdin.write(text)
            process.stdin.close()
            self.assertEqual(process.stdout.read(len(text)), text)
            process.send_signal(signal.SIGTERM)
        path = os.path.join(self.work.name, "in")
        with open(path, "wb") as out:
            out.write(text)
        with open(path, "rb") as stdin:
            process = subprocess.Popen([DOPPEL, *self.arguments("echo")], stdin=stdin,
                                       stdout=subprocess.PIPE)
        with process:
            self.assertEqual(process.stdout.readline(), b"ready\r\n")
            self.assertEqual(process.stdout.read(len(text)), text)
            process.send_signal(signal.SIGTERM)

    def test_broken_pipe(self):
        process = self.start(*self.arguments("flood"))
        process.stdout.read(100)
        process.stdout.close()
        self.assertEqual(process.wait(LIMIT), 1)
        self.assertIn(b"Broken pipe", process.stderr.read())
        process.stdin.close()
        process.stderr.close()

    def test_closed_descriptors(self):
        for redirect in (">&-", "<&-", "2>&-"):
            command = "exec \"$0\" \"$@\" " + redirect
            guest = "flood" if redirect == ">&-" else "debug-exit"
            want = 1 if redirect == ">&-" else 43
            result = subprocess.run(["sh", "-c", command, DOPPEL,
                                     *self.arguments(guest, "--debug-exit")],
                                    stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                    stdout=subprocess.DEVNULL, timeout=LIMIT, check=False)
            self.assertEqual(result.returncode, want, redirect)

    def test_stuck_reader_does_not_hold_up_the_end(self):
        process = self.start(*self.arguments("flood"))
        process.stdout.read(1)
        time.sleep(0.3)  # the pipe and the queue fill up
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(LIMIT), 128 + signal.SIGTERM)
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()

    def test_unix_socket(self):
        path = os.path.join(self.work.name, "socket")
        for number in (signal.SIGTERM, signal.SIGKILL):
            process = self.start(*self.arguments("echo", "--serial", "unix:" + path))
            end = time.monotonic() + LIMIT
            while not os.path.exists(path):
                self.assertLess(time.monotonic(), end)
                time.sleep(0.01)
            with socket.socket(socket.AF_UNIX) as client:
                while True:
                    try:
                        client.connect(path)
                        break
                    except ConnectionRefusedError:
                        time.sleep(0.01)
                client.sendall(b"hello")
                got = b""
                while not got.endswith(b"hello"):
                    got += client.recv(100)
                self.assertEqual(got, b"ready\r\nhello")
            process.send_signal(number)
            process.wait(LIMIT)
            while os.path.exists(path):
                self.assertLess(time.monotonic(), end, "the socket's file is left behind")
                time.sleep(0.01)
            for stream in (process.stdin, process.stdout, process.stderr):
                stream.close()

    # ---- on a terminal ----

    def test_terminal_escape_keys(self):
        terminal = Terminal(self.arguments("echo"))
        terminal.read_until(b"ready")
        self.assertTrue(terminal.is_raw())
        terminal.type(b"abc\x03\x1a\x01\x01")
        terminal.read_until(b"abc\x03\x1a\x01")
        terminal.type(b"\x01h")
        terminal.read_until(b"power button")
        terminal.type(b"\x01x")
        self.assertEqual(terminal.wait(), 0)
        self.assertFalse(terminal.is_raw())
        terminal.close()

    def test_terminal_leaves_a_guest_that_reads_nothing(self):
        terminal = Terminal(self.arguments("hang"))
        terminal.read_until(b"ready")
        for _ in range(20):
            terminal.type(b"y" * 1000)
            time.sleep(0.01)
        terminal.type(b"\x01x")
        self.assertEqual(terminal.wait(), 0)
        self.assertFalse(terminal.is_raw())
        terminal.close()

    def test_terminal_restored_after_signals(self):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL,
                       signal.SIGABRT, signal.SIGSEGV):
            terminal = Terminal(self.arguments("hang"))
            terminal.read_until(b"ready")
            terminal.wait_for(terminal.is_raw, "raw mode")
            os.kill(terminal.pid, number)
            status = terminal.wait()
            self.assertIn(status, (-number, 128 + number))
            terminal.wait_for(lambda: not terminal.is_raw(), "terminal restored, %d" % number)
            terminal.close()

    def test_terminal_stop_and_continue(self):
        terminal = Terminal(self.arguments("echo"))
        terminal.read_until(b"ready")
        os.kill(terminal.pid, signal.SIGTSTP)
        pid, status = os.waitpid(terminal.pid, os.WUNTRACED)
        self.assertTrue(os.WIFSTOPPED(status))
        self.assertFalse(terminal.is_raw())
        os.kill(pid, signal.SIGCONT)
        terminal.wait_for(terminal.is_raw, "raw mode again")
        terminal.type(b"back")
        terminal.read_until(b"back")
        terminal.type(b"\x01x")
        self.assertEqual(terminal.wait(), 0)
        terminal.close()

    def test_terminal_untouched_when_serial_is_elsewhere(self):
        terminal = Terminal(self.arguments("hang", "--serial", "none"))
        wait_until_it_takes(terminal.pid, signal.SIGINT)
        time.sleep(0.3)  # it would have changed the terminal by then, most of the time
        self.assertFalse(terminal.is_raw())
        terminal.type(b"\x03")  # Ctrl-C
        self.assertEqual(terminal.wait(), 130)
        terminal.close()


if __name__ == "__main__":
    DOPPEL = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
