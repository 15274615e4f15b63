#!/usr/bin/env python3
"""options.py DOPPEL SOURCE-ROOT - --help, the manual page, README and the completion agree"""
import os
import re
import subprocess
import sys

doppel, root = sys.argv[1], sys.argv[2]
problems = []


def read(*path):
    with open(os.path.join(root, *path), encoding="utf-8") as file:
        return file.read()


def compare(name, has, wants):
    for option in sorted(wants - has):
        problems.append("%s: '%s' is missing" % (name, option))
    for option in sorted(has - wants):
        problems.append("%s: '%s' does not exist" % (name, option))


help_text = subprocess.run([doppel, "run", "--help"], stdout=subprocess.PIPE, check=True,
                           stdin=subprocess.DEVNULL, text=True).stdout
helped = dict(re.findall(r"^  --([a-z-]+) ?(\S*)", help_text, re.M))
commands = re.findall(r"^  ([a-z]+)(?: [][A-Z ]+)?  +\S", help_text.split("Commands on")[1].split("\n\n")[0], re.M)
if len(commands) < 5:
    problems.append("--help lists no commands")
run_options = set(helped)
for command in commands:
    text = subprocess.run([doppel, command, "--help"], stdout=subprocess.PIPE, check=True,
                          stdin=subprocess.DEVNULL, text=True).stdout
    if not text.startswith("Usage: doppel %s" % command):
        problems.append("doppel %s --help: no usage" % command)
    helped.update(re.findall(r"^  --([a-z-]+) ?([A-Z]*)", text, re.M))
images = re.findall(r"^  image ([a-z]+) ", help_text, re.M)
image_help = subprocess.run([doppel, "image", "--help"], stdout=subprocess.PIPE, check=True,
                            stdin=subprocess.DEVNULL, text=True).stdout
image_options = dict(re.findall(r"^  --([a-z-]+) ?([A-Z]*)", image_help, re.M))
used = {"help"}
for command in images:
    text = subprocess.run([doppel, "image", command, "--help"], stdout=subprocess.PIPE, check=True,
                          stdin=subprocess.DEVNULL, text=True).stdout
    if not text.startswith("Usage: doppel image %s" % command):
        problems.append("doppel image %s --help: no usage" % command)
    if not re.search(r"^  %s " % command, image_help, re.M):
        problems.append("doppel image --help: '%s' is missing" % command)
    used.update(re.findall(r"^  --([a-z-]+)", text, re.M))
compare("doppel image --help", set(image_options), used)
helped.update(image_options)
statuses = set(re.findall(r"^  (\S+)  +\S", help_text.split("Exit status:")[1], re.M))
if len(helped) < 10 or len(statuses) < 5:
    problems.append("--help cannot be read")

# roff writes "-" as "\-".
man = read("man", "doppel.1").replace("\\-", "-")
described = set(re.findall(r"^\.It Fl -([a-z-]+)", man, re.M))
compare("man/doppel.1", described, set(helped))
for option, argument in helped.items():
    section = re.search(r"^\.It Fl -%s\b(.*)$" % option, man, re.M)
    if section and bool(argument) != (" Ar " in section.group(1)):
        problems.append("man/doppel.1: --%s and --help disagree about an argument" % option)
man_statuses = set(re.findall(r"^\.It (\S+)$", man.split(".Sh EXIT STATUS")[1].split(".Sh ")[0], re.M))
compare("man/doppel.1, EXIT STATUS", man_statuses, statuses)

for command in commands + ["image " + name for name in images]:
    if not re.search(r"^\.It Cm %s\b" % command, man, re.M):
        problems.append("man/doppel.1: the command '%s' is missing" % command)

completion = read("completions", "doppel.bash")
compare("completions/doppel.bash", set(re.findall(r"--([a-z-]+)", completion)), set(helped))

for command in commands + images + ["image"]:
    if not re.search(r"-W '[^']*(?<!-)\b%s\b" % command, completion):
        problems.append("completions/doppel.bash: the command '%s' is missing" % command)

readme = read("README.md")
unknown = set(re.findall(r"(?<!\S)`?--([a-z][a-z-]+)", "\n".join(
    line for line in readme.splitlines() if "doppel run" in line or "`--" in line)))
for option in sorted(unknown - set(helped)):
    problems.append("README.md: '--%s' does not exist" % option)

print("\n".join(problems))
sys.exit(1 if problems else 0)
