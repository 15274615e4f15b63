"""harness.py - what tests that start guests share: expectations, the project's tools, kernel modules"""
import ctypes
import fcntl
import os
import socket
import subprocess
import sys

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Failed(Exception):
    pass


def expect(condition, message):
    if not condition:
        raise Failed(message)


def run_tool(*command):
    """What a program of tools/ prints; an error when it fails."""
    path = os.path.join(TOP, "tools", command[0])
    return subprocess.run([path, *command[1:]], check=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, text=True).stdout.strip()


def nbd_server(path, *command):
    """A server on the Unix socket `path`, to be killed by who asked for it. It gets the socket as from
    systemd: connections wait there until it takes them."""
    hand_over = ("import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_FDS='1', "
                 "LISTEN_PID=str(os.getpid())); os.execvp(sys.argv[2], sys.argv[2:])")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        fd = listener.fileno()
        return subprocess.Popen([sys.executable, "-c", hand_over, str(fd), *command], pass_fds=[fd],
                                stdin=subprocess.DEVNULL)


def has_io_uring():
    """Does the host let us use it? (io_uring_setup has no other name in libc)"""
    ring = ctypes.CDLL(None).syscall(425, 1, ctypes.create_string_buffer(120))
    if ring >= 0:
        os.close(ring)
    return ring >= 0


def wait_unlocked(path):
    """Until nobody has an image locked. What survives a killed process has it locked until what was
    being written to the image's tables is there (decision 0024). And the kernel closes the files of a
    killed process that used io_uring a while after the process has ended (decision 0019)."""
    with open(path, "r+b") as file:
        # the bytes that QEMU and doppel lock; goes with the file
        fcntl.lockf(file, fcntl.LOCK_EX, 200, 100)


def modules_where(kernel, is_wanted):
    """Arguments of make-initramfs: those of the fetched kernel's modules whose file names are wanted."""
    folder = os.path.join(os.path.dirname(os.path.dirname(kernel)), "modules")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return ["%s/%s=modules/%s" % (folder, name, name) for name in names if is_wanted(name)]


def modules_named(kernel, names):
    """The same for modules by name, in that order; some kernels have some of them built in."""
    folder = os.path.join(os.path.dirname(os.path.dirname(kernel)), "modules")
    return ["%s/%s.ko=modules/%s.ko" % (folder, name, name) for name in names
            if os.path.exists("%s/%s.ko" % (folder, name))]
