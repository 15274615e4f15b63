#!/usr/bin/env python3
"""control.py DOPPEL SOURCE-ROOT - the control socket and the commands on it, with tiny guests

Every route, field and answer is compared with docs/api/openapi.yaml.
"""
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import yaml

DOPPEL = ""
ROOT = ""
LIMIT = 60  # seconds for anything at all


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("doppel", timeout=LIMIT)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT)
        self.sock.connect(self.path)


class Machine:
    """doppel run, with its guest ready."""

    def __init__(self, test, guest, *options, engine="bt", name="dev"):
        self.test = test
        self.name = name
        command = [DOPPEL, "run", "--engine", engine, "--memory", "16M", "--kernel",
                   test.paths[guest], *options]
        if name:
            command += ["--name", name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, env=test.env)
        test.addCleanup(self.end)
        self.expect(b"ready\r\n")

    @property
    def socket(self):
        return os.path.join(self.test.folder, self.name + ".sock")

    def expect(self, text):
        got = b""
        while not got.endswith(text):
            byte = self.process.stdout.read(1)
            if not byte:
                raise AssertionError("ended after %r: %r" % (got, self.process.stderr.read()))
            got += byte

    def type(self, text):
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def is_silent(self, seconds):
        return not select.select([self.process.stdout], [], [], seconds)[0]

    def ask(self, method, path, body=None):
        """Status, answer."""
        connection = UnixConnection(self.socket)
        text = json.dumps(body) if body is not None else None
        connection.request(method, path, text)
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        return response.status, answer

    def raw(self, data, shut=False):
        """What comes back for these bytes, until the other end closes or has answered."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(LIMIT)
            client.connect(self.socket)
            try:
                client.sendall(data)
                if shut:
                    client.shutdown(socket.SHUT_WR)
            except (BrokenPipeError, ConnectionResetError):
                pass
            got = b""
            while True:
                try:
                    part = client.recv(65536)
                except ConnectionResetError:
                    break
                if not part:
                    break
                got += part
            return got

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(LIMIT)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            try:
                stream.close()
            except BrokenPipeError:
                pass


class Control(unittest.TestCase):
    def setUp(self):
        self.work = tempfile.TemporaryDirectory(prefix="doppel-control-")
        self.addCleanup(self.work.cleanup)
        self.env = dict(os.environ, XDG_RUNTIME_DIR=self.work.name)
        os.chmod(self.work.name, 0o700)
        self.folder = os.path.join(self.work.name, "doppel")
        self.paths = {}
        for name, code in guests.GUESTS.items():
            self.paths[name] = os.path.join(self.work.name, name)
            with open(self.paths[name], "wb") as out:
                out.write(guests.image(code))

    def doppel(self, *arguments, **options):
        return subprocess.run([DOPPEL, *arguments], stdin=subprocess.DEVNULL, env=self.env,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=LIMIT,
                              check=False, text=True, **options)

    def does(self, *arguments):
        result = self.doppel(*arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr, "")
        return result.stdout

    def left_behind(self):
        return sorted(os.listdir(self.folder)) if os.path.isdir(self.folder) else []

    # ---- the description and the implementation ----

    def check_schema(self, spec, schema, value, where):
        if "$ref" in schema:
            schema = spec["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
        if value is None:
            self.assertTrue(schema.get("nullable"), where)
            return
        kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int,
                 "number": (int, float)}
        if "allOf" in schema:
            for part in schema["allOf"]:
                self.check_schema(spec, part, value, where)
            return
        self.assertIsInstance(value, kinds[schema["type"]], where)
        if "enum" in schema:
            self.assertIn(value, schema["enum"], where)
        if schema["type"] == "array":
            for index, item in enumerate(value):
                self.check_schema(spec, schema["items"], item, "%s[%d]" % (where, index))
        if schema["type"] == "object":
            known = schema.get("properties", {})
            self.assertLessEqual(set(schema.get("required", [])), set(value), where)
            for key, item in value.items():
                inner = known.get(key) or schema.get("additionalProperties")
                self.assertTrue(inner, "%s.%s is not described" % (where, key))
                self.check_schema(spec, inner, item, where + "." + key)

    def test_openapi_describes_it_all(self):
        with open(os.path.join(ROOT, "docs", "api", "openapi.yaml"), encoding="utf-8") as file:
            spec = yaml.safe_load(file)
        disk = os.path.join(self.work.name, "disk")
        with open(disk, "wb") as out:
            out.truncate(1 << 20)
        machine = Machine(self, "button", "--engines", "bt,interp", "--balloon", "on", "--net",
                          "user", "--disk", disk)
        _, index = machine.ask("GET", "/v1")
        described = {}
        for path, methods in spec["paths"].items():
            for method, operation in methods.items():
                body = operation.get("requestBody")
                fields = []
                if body:
                    name = body["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
                    fields = list(spec["components"]["schemas"][name]["properties"])
                described[method.upper(), path] = sorted(fields)
        self.assertEqual(described, {(route["method"], route["path"]): sorted(route["fields"])
                                     for route in index["routes"]})
        bodies = {"/v1/engine": {"engine": "interp"}, "/v1/balloon": {"size_bytes": 1 << 20},
                  "/v1/link": {"state": "down"}, "/v1/resize": {"disk": "0"}}
        order = sorted(described, key=lambda key: key[1] == "/v1/stop")  # the end comes last
        for method, path in order:
            status, answer = machine.ask(method, path, bodies.get(path))
            self.assertEqual(status, 200, (path, answer))
            answers = spec["paths"][path][method.lower()]["responses"]
            schema = answers["200"]["content"]["application/json"]["schema"]
            self.check_schema(spec, schema, answer, path)
        self.assertEqual(answer, {"result": "powered_off"})
        self.assertEqual(machine.process.wait(LIMIT), 0)

    # ---- life ----

    def test_status_and_ps(self):
        machine = Machine(self, "echo", "--cpus", "2", "--cmdline", "caf\udce9 \"x\"")
        status = json.loads(self.does("status", "dev", "--json"))
        self.assertEqual(status["pid"], machine.process.pid)
        self.assertEqual((status["name"], status["engine"], status["state"], status["cpus"]),
                         ("dev", "bt", "running", 2))
        self.assertEqual(status["memory_bytes"], 16 << 20)
        self.assertEqual(status["kernel"], self.paths["echo"])
        self.assertIsNone(status["firmware"])
        self.assertEqual(status["cmdline"], "caf? \"x\"")
        self.assertIn("running", self.does("status", machine.socket))
        other = Machine(self, "echo", name="another")
        self.assertEqual([m["name"] for m in json.loads(self.does("ps", "--json"))],
                         ["another", "dev"])
        self.assertEqual(len(self.does("ps").splitlines()), 3)
        other.process.send_signal(signal.SIGTERM)
        other.process.wait(LIMIT)
        self.assertEqual(self.left_behind(), ["dev.lock", "dev.sock"])
        machine.process.send_signal(signal.SIGTERM)
        machine.process.wait(LIMIT)
        self.assertEqual(self.left_behind(), [])
        self.assertEqual(json.loads(self.does("ps", "--json")), [])

    def test_files_are_private(self):
        machine = Machine(self, "echo")
        self.assertEqual(os.stat(self.folder).st_mode & 0o777, 0o700)
        self.assertEqual(os.stat(machine.socket).st_mode & 0o777, 0o600)
        self.assertEqual(os.stat(self.folder + "/dev.lock").st_mode & 0o777, 0o600)

    def test_pause_and_resume(self):
        for engine in ("bt", "interp"):
            machine = Machine(self, "echo", engine=engine)
            machine.type(b"a")
            machine.expect(b"a")
            self.assertEqual(self.does("pause", "dev"), "dev: paused\n")
            self.does("pause", "dev")
            before = machine.ask("GET", "/v1/status")[1]
            self.assertEqual(before["state"], "paused")
            machine.type(b"b")
            self.assertTrue(machine.is_silent(0.3), "a paused guest speaks")
            self.assertEqual(machine.ask("GET", "/v1/status")[1]["guest_time_s"],
                             before["guest_time_s"])
            self.assertEqual(self.does("resume", "dev"), "dev: running\n")
            machine.expect(b"b")
            machine.end()

    def test_engine(self):
        machine = Machine(self, "echo", "--engines", "bt,interp")
        for engine in ("interp", "bt", "bt", "interp"):
            was = self.does("engine", "dev").strip()
            answer = json.loads(self.does("engine", "dev", engine, "--json"))
            self.assertEqual((answer["from"], answer["to"]), (was, engine))
            self.assertEqual(json.loads(self.does("stats", "dev", "--json"))["engine"], engine)
            machine.type(b"z")
            machine.expect(b"z")
        self.does("pause", "dev")
        self.does("engine", "dev", "bt")
        self.assertEqual(machine.ask("GET", "/v1/status")[1]["state"], "paused")
        self.does("resume", "dev")
        machine.type(b"y")
        machine.expect(b"y")
        result = self.doppel("engine", "dev", "qemu")
        self.assertEqual(result.returncode, 1)
        self.assertIn("kvm, bt and interp", result.stderr)

    def test_stats(self):
        machine = Machine(self, "echo")
        machine.type(b"12345")
        machine.expect(b"12345")

        def port_reads():
            stats = json.loads(self.does("stats", "dev", "--json"))
            return sum(group["counters"].get("io_reads", 0) for group in stats["groups"])
        first = port_reads()
        machine.type(b"67890")
        machine.expect(b"67890")
        self.assertGreaterEqual(port_reads(), first + 5)
        self.assertIn("CPU 0, execution (", self.does("stats", "dev"))

    def test_stats_go_on_when_the_engine_changes(self):
        machine = Machine(self, "echo", "--engine", "interp", "--engines", "interp,bt")

        def port_reads():
            stats = json.loads(self.does("stats", "dev", "--json"))
            return {group["engine"]: group["counters"]["io_reads"] for group in stats["groups"]
                    if group["name"] == "execution"}
        machine.type(b"12345")
        machine.expect(b"12345")
        first = port_reads()
        self.assertEqual(list(first), ["interp"])
        self.assertGreaterEqual(first["interp"], 5)
        self.does("engine", "dev", "bt")
        machine.type(b"67890")
        machine.expect(b"67890")
        second = port_reads()
        self.assertEqual(list(second), ["bt", "interp"])
        self.assertGreaterEqual(second["interp"], first["interp"])
        self.does("engine", "dev", "interp")
        self.does("engine", "dev", "bt")
        third = port_reads()
        self.assertGreaterEqual(third["bt"], second["bt"])
        self.assertGreaterEqual(third["interp"], second["interp"])

    # ---- stopping ----

    def test_stop_by_button(self):
        for pause in (False, True):
            machine = Machine(self, "button")
            if pause:
                self.does("pause", "dev")
            self.assertEqual(self.does("stop", "dev"), "dev: powered off\n")
            self.assertEqual(self.left_behind(), [])
            self.assertEqual(machine.process.wait(LIMIT), 0)

    def test_stop_hard(self):
        machine = Machine(self, "echo")
        result = self.doppel("stop", "dev", "--button", "--timeout", "0")
        self.assertEqual(result.returncode, 5)
        self.assertIn("still running", result.stdout)
        self.assertIsNone(machine.process.poll())
        self.assertTrue(machine.ask("GET", "/v1/status")[1]["stopping"])
        self.assertIn("stopped hard: the guest had not", self.does("stop", "dev", "--timeout", "1"))
        self.assertEqual(machine.process.wait(LIMIT), 0)
        machine = Machine(self, "echo")
        self.assertEqual(self.does("stop", "--hard", "dev"), "dev: stopped hard\n")
        self.assertEqual(machine.process.wait(LIMIT), 0)
        machine = Machine(self, "button")
        self.assertEqual(self.does("stop", "--no-wait", "dev"), "dev: stopping\n")
        self.assertEqual(machine.process.wait(LIMIT), 0)

    def test_waiting_for_the_end(self):
        """Whoever waits is told how it ended, whatever ended it; who has left is no loss."""
        machine = Machine(self, "echo")
        answers = []
        waiters = [threading.Thread(target=lambda: answers.append(
            machine.ask("POST", "/v1/stop", {"mode": "button", "timeout_s": 600})))
                   for _ in range(3)]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(machine.socket)
            client.sendall(b"POST /v1/stop HTTP/1.1\r\nHost: d\r\nContent-Length: 17\r\n\r\n"
                           b'{"mode":"button"}')
        for waiter in waiters:
            waiter.start()
        while not machine.ask("GET", "/v1/status")[1]["stopping"]:
            pass
        time.sleep(0.1)
        machine.process.send_signal(signal.SIGTERM)
        for waiter in waiters:
            waiter.join(LIMIT)
        self.assertEqual(answers, [(200, {"result": "ended"})] * 3)
        self.assertEqual(machine.process.wait(LIMIT), 128 + signal.SIGTERM)

    # ---- names ----

    def test_one_name_one_machine(self):
        Machine(self, "echo")
        result = self.doppel("run", "--name", "dev", "--kernel", self.paths["echo"])
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stderr, r"'dev' is in use by a running machine \(process \d+\)")
        self.assertEqual(json.loads(self.does("status", "dev", "--json"))["state"], "running")

    def test_two_start_at_once(self):
        command = [DOPPEL, "run", "--name", "race", "--memory", "16M", "--serial", "none",
                   "--kernel", self.paths["echo"]]
        processes = [subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL,
                                      stderr=subprocess.PIPE) for _ in range(6)]
        end = time.monotonic() + LIMIT
        while sum(p.poll() is None for p in processes) > 1 and time.monotonic() < end:
            time.sleep(0.02)
        alive = [p for p in processes if p.poll() is None]
        self.assertEqual(len(alive), 1)
        self.assertEqual(json.loads(self.does("status", "race", "--json"))["pid"], alive[0].pid)
        self.does("stop", "--hard", "race")
        for process in processes:
            process.communicate(timeout=LIMIT)

    def test_killed(self):
        for command in (("ps",), ("status", "dev"), None):
            machine = Machine(self, "echo")
            os.kill(machine.process.pid, signal.SIGKILL)
            machine.process.wait(LIMIT)
            self.assertEqual(self.left_behind(), ["dev.lock", "dev.sock"])
            if command:
                result = self.doppel(*command)
                self.assertEqual(result.returncode, 4 if command[0] == "status" else 0)
                if command[0] == "status":
                    self.assertIn("was killed", result.stderr)
                self.assertEqual(self.left_behind(), [])
            again = Machine(self, "echo")
            self.assertEqual(json.loads(self.does("status", "dev", "--json"))["pid"],
                             again.process.pid)
            again.process.terminate()
            again.process.wait(LIMIT)

    def test_control_path(self):
        path = os.path.join(self.work.name, "my.sock")
        command = [DOPPEL, "run", "--engine", "bt", "--memory", "16M", "--kernel",
                   self.paths["echo"], "--control", path]
        machine = Machine(self, "echo", "--control", path, name=None)
        status = json.loads(self.does("status", path, "--json"))
        self.assertEqual((status["name"], status["socket"]), (None, path))
        self.assertIn(path, self.doppel("status", "./my.sock", cwd=self.work.name).stdout)
        result = subprocess.run(command, env=self.env, stdin=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, timeout=LIMIT, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"in use by a running machine", result.stderr)
        os.kill(machine.process.pid, signal.SIGKILL)
        machine.process.wait(LIMIT)
        machine = Machine(self, "echo", "--control", path)  # with a name as well
        self.assertEqual(json.loads(self.does("status", "dev", "--json"))["socket"], path)
        self.does("stop", "--hard", path)
        self.assertFalse(os.path.exists(path) or os.path.exists(path + ".lock"))
        with open(path, "w", encoding="utf-8") as file:
            file.write("precious")
        result = subprocess.run(command, env=self.env, stdin=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, timeout=LIMIT, check=False)
        self.assertEqual(result.returncode, 1)
        with open(path, encoding="utf-8") as file:
            self.assertEqual(file.read(), "precious")

    def test_errors_help(self):
        for arguments, status, text in (
                (("status", "nobody"), 4, "'doppel ps' lists"),
                (("status", self.work.name + "/none"), 4, "none"),
                (("status", "/nonexistent/x"), 4, "/nonexistent/x"),
                (("status", "../x y"), 4, "x y"),
                (("status", "a b"), 1, "letters, digits"),
                (("status",), 1, "which machine"),
                (("status", "a", "b"), 1, "unexpected argument 'b'"),
                (("stop", "--hrad", "a"), 1, "did you mean '--hard'"),
                (("stop", "--hard", "--button", "a"), 1, "exclude"),
                (("stop", "--timeout", "soon", "a"), 1, "--timeout"),
                (("stauts", "a"), 1, "did you mean 'status'"),
                (("ps", "x"), 1, "unexpected"),
                (("run", "--name", "a/b", "--kernel", "k"), 1, "--name"),
                (("run", "--name", "x" * 64, "--kernel", "k"), 1, "too long"),
                (("run", "--control", "/nonexistent/s", "--kernel", self.paths["echo"]), 1,
                 "/nonexistent/s"),
                (("run", "--control", self.work.name + "/" + "s" * 100, "--kernel",
                  self.paths["echo"]), 1, "longer than")):
            result = self.doppel(*arguments)
            self.assertEqual(result.returncode, status, (arguments, result.stderr))
            self.assertIn(text, result.stderr)
            self.assertEqual(result.stdout, "")

    def test_not_a_doppel(self):
        path = os.path.join(self.work.name, "other.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            for answer in (b"220 mail ready\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
                           b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"):
                def serve():
                    client, _ = listener.accept()
                    client.recv(1000)
                    client.sendall(answer)
                    client.close()
                thread = threading.Thread(target=serve)
                thread.start()
                result = self.doppel("status", path)
                thread.join(LIMIT)
                self.assertEqual(result.returncode, 1, answer)
                self.assertIn(path, result.stderr)
        result = self.doppel("status", path)
        self.assertEqual(result.returncode, 4)
        self.assertIn("nobody listens", result.stderr)

    def test_another_user(self):
        if os.geteuid() != 0:
            self.skipTest("needs root, to become another user")
        machine = Machine(self, "echo")
        os.chmod(self.work.name, 0o755)
        own = {"user": 65534, "group": 65534, "extra_groups": []}
        result = self.doppel("status", machine.socket, **own)
        self.assertEqual(result.returncode, 1)
        self.assertIn("Permission denied", result.stderr)
        # Somebody opens the file's mode to all: the peer's credentials still count.
        os.chmod(self.folder, 0o755)
        os.chmod(machine.socket, 0o666)
        result = self.doppel("stop", "--hard", machine.socket, **own)
        self.assertEqual(result.returncode, 1)
        self.assertIn("another user", result.stderr)
        self.assertIn("running", self.does("status", "dev"))

    def test_lock_file_of_another_user(self):
        """Root asks for a machine, and is not talked into removing a socket."""
        if os.geteuid() != 0:
            self.skipTest("needs root, to become another user")
        paths = [os.path.join(self.work.name, name) for name in ("x", "victim")]
        for path in paths:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
        with open(paths[0] + ".lock", "w", encoding="utf-8") as lock:
            lock.write("1\n%s\n" % paths[1])
        for path in (paths[0], paths[0] + ".lock"):
            os.chown(path, 65534, 65534)
        self.assertEqual(self.doppel("status", paths[0]).returncode, 4)
        self.assertTrue(os.path.exists(paths[1]))

    def test_folder_of_another_user(self):
        if os.geteuid() != 0:
            self.skipTest("needs root, to become another user")
        os.mkdir(self.folder, 0o777)
        os.chown(self.folder, 65534, 65534)
        result = self.doppel("run", "--name", "x", "--kernel", self.paths["echo"])
        self.assertEqual(result.returncode, 1)
        self.assertIn("belongs to another user", result.stderr)

    # ---- hostile clients ----

    def test_garbage(self):
        machine = Machine(self, "echo")
        get = b"GET /v1/status HTTP/1.1\r\nHost: d\r\nConnection: close\r\n"
        post = b"POST /v1/stop HTTP/1.1\r\nHost: d\r\nConnection: close\r\n"
        for data, status in (
                (b"\0" * 100, 400),
                (b"hello\n", 400),
                (b"GET\r\n", 400),
                (b"GET /v1/status HTTP/2.0\r\n", 505),
                (b"GET /v1/status SMTP/1.1\r\n", 400),
                (b"GET /v1/status HTTP/1.1\r\n\r\n", 400),
                (b"GE\x80T / HTTP/1.1\r\n", 400),
                (get + b" folded\r\n\r\n", 400),
                (get + b"No colon\r\n\r\n", 400),
                (get + b"Space : x\r\n\r\n", 400),
                (get + b"Host: again\r\n\r\n", 400),
                (get + b"Content-Length: -1\r\n\r\n", 400),
                (get + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
                (get + b"Content-Length: 99999999999999999999\r\n\r\n", 400),
                (get + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
                (get + b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n", 400),
                (get + b"Expect: tea\r\n\r\n", 417),
                (get + b"X: y\r\n" * 65 + b"\r\n", 431),
                (get + b"X: " + b"y" * 9000, 431),
                (b"GET /" + b"y" * 9000, 414),
                (get + b"Content-Length: 5000\r\n\r\n" + b" " * 5000, 413),
                (get + b"\r\n", 200),
                (b"\r\n\r\n" + get + b"\r\n", 200),
                (b"GET http://any/v1/status HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n", 200),
                (b"GET /v1/status HTTP/1.0\r\n\r\n", 200),
                (b"BREW /v1/status HTTP/1.0\r\n\r\n", 501),
                (b"PUT /v1/status HTTP/1.0\r\n\r\n", 405),
                (b"GET /v1/stop HTTP/1.0\r\n\r\n", 405),
                (b"GET /v1/status?x=1 HTTP/1.0\r\n\r\n", 404),
                (b"GET / HTTP/1.0\r\n\r\n", 404),
                (post + b"Content-Length: 1\r\n\r\n{", 400),
                (post + b"Content-Length: 2\r\n\r\n[]", 400),
                (post + b"Content-Length: 4000\r\n\r\n" + b"[" * 4000, 400),
                (post + b'Content-Length: 20\r\n\r\n{"mode":"hard\\u0000"}', 400),
                (post + b'Content-Length: 30\r\n\r\n{"mode":"hard","mode":"hard"}  ', 400),
                (post + b'Content-Length: 16\r\n\r\n{"timeout_s":-1}', 400),
                (post + b'Content-Length: 19\r\n\r\n{"timeout_s":1e999}', 400),
                (post + b'Content-Length: 10\r\n\r\n{"wait":1}', 400),
                (post + b'Content-Length: 10\r\n\r\n{"what":1}', 400),
                (post + b"Content-Length: 10\r\n\r\nshort", 400)):
            got = machine.raw(data, shut=data.endswith((b"short", b"\0")))
            self.assertRegex(got, rb"^HTTP/1\.1 %d " % status, data[:200])
            head, _, body = got.partition(b"\r\n\r\n")
            answer = json.loads(body)
            if status >= 400:
                self.assertGreater(len(answer["error"]["message"]), 10)
            if status == 405:
                self.assertIn(b"\r\nAllow: ", head)
        self.assertEqual(machine.ask("GET", "/v1/status")[1]["state"], "running")

    def test_one_connection_many_requests(self):
        machine = Machine(self, "echo")
        request = b"GET /v1 HTTP/1.1\r\nHost: d\r\n\r\n"
        got = machine.raw(request * 20 + request[:-2] + b"Connection: close\r\n\r\n")
        self.assertEqual(got.count(b"HTTP/1.1 200 OK"), 21)
        # byte by byte, and the end of sending before the answer
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(LIMIT)
            client.connect(machine.socket)
            for index in range(len(request)):
                client.sendall(request[index:index + 1])
            client.shutdown(socket.SHUT_WR)
            got = b""
            while part := client.recv(4096):
                got += part
            self.assertTrue(got.startswith(b"HTTP/1.1 200 OK"))
        got = machine.raw(b"HEAD /v1/status HTTP/1.0\r\n\r\n")
        self.assertTrue(got.endswith(b"\r\n\r\n"))
        self.assertNotIn(b"Content-Length: 0", got)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(LIMIT)
            client.connect(machine.socket)
            client.sendall(b"POST /v1/stop HTTP/1.1\r\nHost: d\r\nConnection: close\r\n"
                           b"Expect: 100-continue\r\nContent-Length: 8\r\n\r\n")
            self.assertEqual(client.recv(4096), b"HTTP/1.1 100 Continue\r\n\r\n")
            client.sendall(b'{"no":1}')
            self.assertTrue(client.recv(4096).startswith(b"HTTP/1.1 400"))

    def test_many_clients(self):
        """100 at once, beside some that send nothing or stop in the middle."""
        machine = Machine(self, "echo")
        idle = []
        for number in range(20):
            client = socket.socket(socket.AF_UNIX)
            client.connect(machine.socket)
            client.sendall(b"GET /v1/st" * (number % 2))
            idle.append(client)
        results = []

        def ask():
            for _ in range(3):
                results.append(machine.ask("GET", "/v1/status")[0])
        threads = [threading.Thread(target=ask) for _ in range(100)]
        for thread in threads:
            thread.start()
        machine.type(b"alive")
        machine.expect(b"alive")
        for thread in threads:
            thread.join(LIMIT)
        self.assertEqual(results, [200] * 300)
        for client in idle:
            client.close()

    def test_too_many_clients(self):
        machine = Machine(self, "echo")
        clients = []
        for number in range(300):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(number < 150)
            try:
                client.connect(machine.socket)
            except BlockingIOError:  # the queue is full
                client.close()
                break
            clients.append(client)
        clients[140].settimeout(LIMIT)
        self.assertTrue(clients[140].recv(4096).startswith(b"HTTP/1.1 503 "))
        machine.type(b"alive")
        machine.expect(b"alive")
        for client in clients:
            client.close()
        self.assertIn("running", self.does("status", "dev"))

    def test_client_that_takes_nothing(self):
        machine = Machine(self, "echo")
        with socket.socket(socket.AF_UNIX) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            client.connect(machine.socket)
            client.setblocking(False)
            try:
                while True:
                    client.send(b"GET /v1/stats HTTP/1.1\r\nHost: d\r\n\r\n" * 10)
            except BlockingIOError:
                pass
            machine.type(b"alive")
            machine.expect(b"alive")
            self.assertIn("running", self.does("status", "dev"))

    def test_no_descriptors_left(self):
        machine = Machine(self, "echo")
        limit = len(os.listdir("/proc/%d/fd" % machine.process.pid)) + 3
        subprocess.run(["prlimit", "--pid", str(machine.process.pid), "--nofile=%d" % limit],
                       check=True)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(20)]
        for client in clients:
            client.connect(machine.socket)
        machine.type(b"alive")
        machine.expect(b"alive")

        def cpu_ticks():
            # of the main thread: the guest's own polls the port
            pid = machine.process.pid
            with open("/proc/%d/task/%d/stat" % (pid, pid), encoding="utf-8") as stat:
                return sum(int(n) for n in stat.read().rsplit(")", 1)[1].split()[11:13])
        before = cpu_ticks()
        time.sleep(1)
        # An accept that fails again and again would take a processor.
        self.assertLess(cpu_ticks() - before, os.sysconf("SC_CLK_TCK") // 2)
        for client in clients:
            client.close()
        self.assertIn("running", self.does("status", "dev"))

    def test_stopped_doppel(self):
        """One that does not answer is listed, and does not hold up the list."""
        machine = Machine(self, "echo")
        machine.process.send_signal(signal.SIGSTOP)
        try:
            listed = json.loads(self.does("ps", "--json"))
        finally:
            machine.process.send_signal(signal.SIGCONT)
        self.assertEqual([(m["name"], m["state"]) for m in listed], [("dev", "unreachable")])


if __name__ == "__main__":
    DOPPEL = os.path.abspath(sys.argv.pop(1))
    ROOT = os.path.abspath(sys.argv.pop(1))
    sys.path.insert(0, os.path.join(ROOT, "tests", "cli"))
    import guests
    unittest.main(verbosity=2)
