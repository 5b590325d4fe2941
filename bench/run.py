#!/usr/bin/env python3
"""Measures what the documents promise, in pairs on this machine, and prints a table.

Every row has value, target, unit, number of samples and spread; one that could not be measured says why. Figures of one
run are comparable with each other, not with those of another machine. docs/bench.md says what each row means.
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from measure import ingest, machines, micro, store, tracking
from measure.common import NotMeasured, Run, missing

HERE = pathlib.Path(__file__).resolve().parent


def nbd(run):
    """bench/nbd.py: clones and points read and written over NBD."""
    try:
        from nbd import measurements
    except ImportError as why:
        raise NotMeasured(f"bench/nbd.py cannot be loaded: {why}") from None
    yield from measurements(run.build, run.root, run.repetitions, short=not run.full)


# In this order: what stands on its own first, what takes longest last. With each: what its rows are, for those that
# could not be measured, as (row, target, unit).
MEASUREMENTS = {
    "compare": (ingest.compare, "bulk and 4 KiB writes against the floor and the peers", None),
    "latency": (ingest.latency, "receive to durable inside the server, p99, over the p99 of a bare 64 KiB durable write", 5),
    "log_append": (ingest.log_append, "log append, 1 MiB durable, over fio --sync=dsync", 0.8),
    "a_thousand": (machines.a_thousand, "1,000 machines, an epoch of one 4 KiB block a second each: ack p99", 20),
    "ten_thousand": (machines.ten_thousand, "10,000 machines: idle, an epoch a second each, a storm", None),
    "staleness": (machines.staleness, "staleness with 1,000 agents at 80 % of the peak rate: p99", 1),
    "recovery_points": (machines.recovery_points, "taking recovery points, ten a second: ack p99 over that without", 1.25),
    "index_cost": (store.index_cost, "index: a random 4 KiB version", 24),
    "settling": (store.settling, "settling and folding", None),
    "settling_acks": (store.settling_acks, "ack p99 beside 20,000 blocks/s that are settled at once, over the same not settled", None),
    "clones": (store.clones, "clone of 1 TiB, 10 million extents, 60 points", None),
    "nbd": (nbd, "clones and points over NBD, export, boot", None),
    "restart": (store.restart, "restart after kill -9 under load: until every partition serves", 2),
    "replay": (store.replay, "a trace over the ladder: space and bytes written", None),
    "tracking": (tracking.tracking, "tracking: CPU of the programs in the kernel, at 10,000 writes a second", 2),
    "slow_disk_memory": (store.slow_disk_memory, "1,000 sessions pushing at a slow disk: server memory", store.MEMORY_BOUND_MIB),
    "other_disk": (store.other_disk, "beside machines that push at another, slow disk: ack p99 over that without", 2),
    "micro": (micro.micro, "micro-benchmarks", None),
}


def measure(name, run):
    function, what, target = MEASUREMENTS[name]
    print(f"-- {name}", file=sys.stderr, flush=True)
    begin, rows = time.monotonic(), []
    try:
        rows.extend(function(run))
    except (NotMeasured, subprocess.TimeoutExpired, OSError, KeyError, StopIteration, ValueError) as why:
        rows.append(missing(what, target, "", f"{type(why).__name__}: {why}" if not isinstance(why, NotMeasured) else why))
    for entry in rows:
        entry["measurement"] = name
    print(f"   {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    return rows


def number(value):
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def line(entry):
    if entry["value"] is None:
        return f"{entry['row']}: {entry['note']}"
    text = f"{entry['row']}: {number(entry['value'])} {entry['unit']}"
    if entry["spread"]:
        text += f" ({number(entry['spread'][0])} to {number(entry['spread'][1])}, {entry['samples']} samples)"
    if entry["target"] is not None:
        verdict = "holds" if entry["holds"] else "DOES NOT HOLD"
        text += f", target {'at most' if entry['at_most'] else 'at least'} {number(entry['target'])}: {verdict}"
    return text + (f" ({entry['note']})" if entry["note"] else "")


def about_this_machine(root):
    cpu = next((text.split(":")[1].strip() for text in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                if text.startswith("model name")), platform.machine())
    kind = subprocess.run(["stat", "-f", "-c", "%T", root], capture_output=True, text=True).stdout.strip()
    return {"kernel": platform.release(), "cores": os.cpu_count(), "processor": cpu, "file_system": kind,
            "load_average_before": round(os.getloadavg()[0], 1)}


def commit():
    git = lambda *words: subprocess.run(["git", *words], capture_output=True, text=True, cwd=HERE).stdout.strip()
    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("/tmp"), help="where the data goes: on the disk to be measured")
    parser.add_argument("--json", type=pathlib.Path, help="the results go there")
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, help="this measurement; can be given again")
    parser.add_argument("--trace", type=pathlib.Path, help="a vscsi trace for `replay`; without one a synthetic one is made")
    parser.add_argument("--fleet", type=int, default=10_000, help="machines in ten_thousand: fewer, where there is no room for so many")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_true", help="one repetition of each")
    form.add_argument("--full", action="store_true", help="longer, five repetitions of each, and the micro-benchmarks")
    arguments = parser.parse_args()
    build = arguments.build.resolve()
    os.environ["PATH"] = f"{build / 'bin'}:{build / 'bench'}:{os.environ['PATH']}"
    root = pathlib.Path(tempfile.mkdtemp(prefix="tidemark-bench-", dir=arguments.dir))
    root.chmod(0o755)  # some peers run as nobody
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    run = Run(build, root, 1 if arguments.quick else 5 if arguments.full else 2, arguments.full, arguments.trace, arguments.fleet)
    report = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "commit": commit(),
              "machine": about_this_machine(root), "form": "full" if run.full else "quick" if arguments.quick else "default"}
    begin, rows = time.monotonic(), []
    try:
        for name in arguments.only or [name for name in MEASUREMENTS if run.full or name != "micro"]:
            rows += measure(name, run)
    finally:
        shutil.rmtree(root, ignore_errors=True)
        report |= {"seconds": round(time.monotonic() - begin), "rows": rows}
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    for entry in rows:
        print(line(entry))


if __name__ == "__main__":
    main()
