#!/usr/bin/env python3
"""check.py SOURCE-ROOT | --self-test - no folder under src/ includes what lies above it

The table is that of docs/ARCHITECTURE.md, "The tree".
"""
import os
import re
import sys
import tempfile

ALLOWED = {
    "base": set(),
    "os": {"base"},
    "state": {"base"},
    "cpu": {"state", "base"},
    "mem": {"os", "base"},
    "backend": {"os", "base"},
    "dev": {"backend", "mem", "cpu", "state", "os", "base"},
    "engine": {"cpu", "mem", "state", "os", "base"},
    "vm": {"engine", "dev", "backend", "mem", "cpu", "state", "os", "base"},
    "api": {"vm", "os", "base"},
    # A front end makes the loop and the back ends that it hands to the machine.
    "cli": {"api", "vm", "backend", "cpu", "os", "base"},
}

# Within engine/: what two engines share knows neither of them.
ENGINE_ALLOWED = {
    "soft": {"soft"},
    "interp": {"soft", "interp"},
    "bt": {"soft", "bt"},
    "kvm": {"soft", "kvm"},
}

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')


def check_file(path, parts, problems):
    folder = parts[0]
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            target = match.group(1).split("/")

            def complain(why):
                problems.append("%s:%d: includes \"%s\": %s" % (path, number, match.group(1), why))

            if ".." in target:
                complain("paths start at src/")
            elif len(target) == 1:
                # Generated, or beside the file; never a way around the table.
                continue
            elif target[0] not in ALLOWED:
                complain("'%s' is not a folder of src/" % target[0])
            elif target[0] != folder and target[0] not in ALLOWED[folder]:
                complain("%s/ must not know %s/" % (folder, target[0]))
            elif folder == "engine" and target[0] == "engine" and len(parts) > 2 and len(target) > 2:
                if target[1] not in ENGINE_ALLOWED.get(parts[1], set()):
                    complain("engine/%s must not know engine/%s" % (parts[1], target[1]))


def check(root):
    problems = []
    count = 0
    src = os.path.join(root, "src")
    for directory, _, names in os.walk(src):
        for name in sorted(names):
            if not name.endswith((".c", ".h")):
                continue
            path = os.path.join(directory, name)
            parts = os.path.relpath(path, src).split(os.sep)
            if parts[0] not in ALLOWED:
                problems.append("%s: folder '%s' is not in the table of %s" % (path, parts[0], __file__))
                continue
            check_file(path, parts, problems)
            count += 1
    if count == 0:
        problems.append("no sources under %s" % src)
    return problems


def self_test():
    cases = [
        ("base/a.c", '#include "os/loop.h"', True),
        ("os/a.c", '#include "base/err.h"', False),
        ("dev/timer/a.c", '#include "vm/vm.h"', True),
        ("engine/bt/a.c", '#include "dev/irq.h"', True),
        ("engine/bt/a.c", '#include "engine/soft/vcpu.h"', False),
        ("engine/soft/a.c", '  #  include "engine/bt/bt.h"', True),
        ("engine/interp/a.c", '#include "engine/bt/bt.h"', True),
        ("cli/a.c", '#include "engine/engine.h"', True),
        ("vm/a.c", '#include "engine/engine.h"', False),
        ("os/a.c", '#include "../vm/vm.h"', True),
        ("os/a.c", "#include <errno.h>", False),
        ("new/a.c", "", True),
    ]
    for path, text, is_bad in cases:
        with tempfile.TemporaryDirectory() as root:
            full = os.path.join(root, "src", path)
            os.makedirs(os.path.dirname(full))
            with open(full, "w", encoding="utf-8") as out:
                out.write(text + "\n")
            if bool(check(root)) != is_bad:
                print("self-test: %s with %s: expected %s" % (path, text, is_bad))
                return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--self-test":
        sys.exit(self_test())
    found = check(sys.argv[1])
    print("\n".join(found))
    sys.exit(1 if found else 0)
