"""What every program that `moe speed --peers` starts shares: one message of JSON a line, a first one that says
what is here or what is missing, then an answer for each line read."""

import json
import sys


def say(message):
    print(json.dumps(message), flush=True)


def missing(what):
    say({"missing": what})
    sys.exit(0)


def peak_bytes():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def serve(about, run):
    """`run()` gives the answer of a round as a dictionary."""
    say({"ready": about})
    for _ in sys.stdin:
        say(run())
