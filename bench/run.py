#!/usr/bin/env python3
"""Measures what the documents promise, in pairs on this machine, and prints a table.

Every row has value, target, unit, number of samples and spread; one that could not be measured says why. Figures of one
run are comparable with each other, not with those of another machine. usage: run.py --build DIR [--json FILE] [--quick]
"""
import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

CGROUP = pathlib.Path("/sys/fs/cgroup/blkio")
SLOW_DISK_BYTES_PER_S = 8 << 20
# What 1,000 sessions that push as fast as they can may cost in all, with two partitions (docs/operating.md has the sum).
MEMORY_BOUND_MIB = 512 + 2 * (40 + 64 + 64)


class NotMeasured(Exception):
    pass


class Server:
    """A tidemarkd of its own for one measurement."""

    def __init__(self, build, directory, partitions=2):
        self.build, self.data = build, directory / "data"
        subprocess.run([build / "bin/tidemarkd", "init", self.data, "--partitions", str(partitions), "--address", "127.0.0.1:7443"],
                       check=True, stdout=subprocess.DEVNULL)
        self.log = open(directory / "server.log", "ab")
        self.process = subprocess.Popen([build / "bin/tidemarkd", "run", "--data", self.data, "--listen", "127.0.0.1:0"],
                                        stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        if "serving on " not in line:
            raise NotMeasured(f"tidemarkd did not start: {line!r}")
        self.address = line.split("serving on ")[1].split(",")[0]

    def load(self, *options, when_connected=lambda: None):
        command = [self.build / "bin/tidemark-bench", "--server", self.address, "--socket", self.data / "admin.sock",
                   "--server-pid", str(self.process.pid), *map(str, options)]
        tool = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        errors = ""
        for line in tool.stderr:
            errors += line
            if line.startswith("connected "):
                when_connected()
        output = tool.stdout.read()
        if tool.wait(timeout=400) != 0:
            raise NotMeasured((errors + output).strip()[-300:])
        return json.loads(output)

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=60)


@contextlib.contextmanager
def server(build, root, **options):
    directory = pathlib.Path(tempfile.mkdtemp(dir=root))
    running = Server(build, directory, **options)
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(directory)


def json_of(command, **options):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, **options)
    if result.returncode != 0:
        raise NotMeasured(f"{command[0]}: {result.stderr.strip()[-300:]}")
    return json.loads(result.stdout)


def row(name, samples, target, unit, at_most=True, note=""):
    value = statistics.median(samples)
    return {"row": name, "value": round(value, 3), "target": target, "unit": unit, "samples": len(samples),
            "spread": [round(min(samples), 3), round(max(samples), 3)],
            "holds": value <= target if at_most else value >= target, "note": note}


def bulk_ingest(build, root, repetitions):
    """Server CPU per GiB of one incompressible stream, durable, over the floor with disk; alternating."""
    ratios = []
    for _ in range(repetitions):
        file = root / "floor.img"
        floor = json_of([build / "bench/tls_floor", 2048, file])["cpu_s_per_gib"]
        file.unlink()
        with server(build, root) as running:
            ours = running.load("--profile", "bulk", "--seconds", 6)["server_cpu_s_per_gib"]
        ratios.append(ours / floor)
    yield row("bulk ingest, incompressible: server CPU per GiB over the floor with disk", ratios, 1.4, "ratio")


def log_append(build, root, repetitions):
    """Durable appends of 1 MiB, 8 in flight, over fio's dsync writes of the same size and depth; alternating."""
    if shutil.which("fio") is None:
        raise NotMeasured("fio is not installed")
    ratios = []
    for _ in range(repetitions):
        directory = pathlib.Path(tempfile.mkdtemp(dir=root))
        bench = json_of([build / "bench/storage_log_bench", "--benchmark_filter=Durable/1048576/8/",
                         "--benchmark_min_time=2", "--benchmark_format=json"],
                        env=os.environ | {"TIDEMARK_BENCH_DIR": str(directory)})
        ours = bench["benchmarks"][0]["bytes_per_second"]
        fio = ["fio", "--name=log", f"--filename={directory}/fio.img", "--size=512m", "--direct=1", "--ioengine=io_uring",
               "--rw=write", "--bs=1m", "--output-format=json"]
        json_of([*fio, "--iodepth=8"])  # writes the file once, as segments are
        theirs = json_of([*fio, "--iodepth=8", "--sync=dsync", "--overwrite=1", "--time_based", "--runtime=3"])
        ratios.append(ours / theirs["jobs"][0]["write"]["bw_bytes"])
        shutil.rmtree(directory)
    yield row("log append, 1 MiB durable, over fio --sync=dsync", ratios, 0.8, "ratio", at_most=False)


def idle_sessions(build, root, repetitions):
    samples = []
    for _ in range(repetitions):
        with server(build, root) as running:
            running.load("--profile", "idle", "--machines", 64, "--seconds", 0.5, "--prefix", "warm")
            report = running.load("--profile", "idle", "--machines", 1000, "--seconds", 2, "--prefix", "idle")
        samples.append(report["server_bytes_per_session"] / 1024)
    yield row("idle session: server memory", samples, 40, "KiB")


def small_epochs(build, root, repetitions):
    blocks, acks = [], []
    for _ in range(repetitions):
        with server(build, root) as running:
            blocks.append(running.load("--profile", "small", "--machines", 64, "--seconds", 5)["blocks_per_s"])
        with server(build, root) as running:
            acks.append(running.load("--profile", "small", "--machines", 200, "--seconds", 5, "--blocks-per-epoch", 1,
                                     "--interval-ms", 1000)["ack_us_p99"] / 1000)
    # No target is set for these yet: the comparison with other programs comes with the load harness.
    yield row("4 KiB random durable writes, 64 machines, 32 to an acknowledgement", blocks, 0, "blocks/s", at_most=False)
    yield row("200 machines, one epoch of one block a second: ack p99", acks, 20, "ms")


def device_of(path):
    device = os.stat(path).st_dev
    major, minor = os.major(device), os.minor(device)
    link = pathlib.Path(f"/sys/dev/block/{major}:{minor}")
    if not link.exists():
        raise NotMeasured(f"{path} does not lie on a block device of its own")
    if (link / "partition").exists():
        return (link.resolve().parent / "dev").read_text().strip()
    return f"{major}:{minor}"


def slow_disk_memory(build, root, repetitions):
    """1,000 sessions push as fast as they can while the kernel slows the server's disk down to 8 MiB/s."""
    if os.geteuid() != 0 or not (CGROUP / "blkio.throttle.write_bps_device").exists():
        raise NotMeasured("needs root and the blkio cgroup to slow the disk down")
    samples = []
    for _ in range(max(1, repetitions // 3)):
        group = CGROUP / f"tidemark-bench-{os.getpid()}"
        group.mkdir()
        try:
            (group / "blkio.throttle.write_bps_device").write_text(f"{device_of(root)} {SLOW_DISK_BYTES_PER_S}\n")
            with server(build, root) as running:
                # Enrolled and connected at full speed: what is measured is the pushing.
                report = running.load("--profile", "bulk", "--machines", 1000, "--seconds", 20, "--prefix", "slow",
                                      when_connected=lambda: (group / "cgroup.procs").write_text(f"{running.process.pid}\n"))
                samples.append(report["server_resident_mib"])
                written = report["durable_mib_per_s"]
                (CGROUP / "cgroup.procs").write_text(f"{running.process.pid}\n")
        finally:
            time.sleep(0.5)
            group.rmdir()
    yield row("1,000 sessions pushing at a slow disk: server memory", samples, MEMORY_BOUND_MIB, "MiB",
              note=f"{written:.1f} MiB/s became durable")


def micro(build, root, _):
    """Every micro-benchmark, as the benchmark library reports it; no targets."""
    for program in sorted((build / "bench").glob("*_bench")):
        report = json_of([program, "--benchmark_format=json", "--benchmark_min_time=0.1"],
                         env=os.environ | {"TIDEMARK_BENCH_DIR": str(root)})
        for result in report["benchmarks"]:
            if result.get("error_occurred"):
                yield {"row": f"{program.name} {result['name']}", "value": None, "note": result.get("error_message", "")}
                continue
            yield {"row": f"{program.name} {result['name']}", "value": round(result["cpu_time"], 1), "unit": result["time_unit"],
                   "bytes_per_second": result.get("bytes_per_second"), "items_per_second": result.get("items_per_second")}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("/tmp"), help="where the server's data goes")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true", help="one repetition instead of five")
    parser.add_argument("--only", help="rows whose measurement's name contains this")
    arguments = parser.parse_args()
    build = arguments.build.resolve()
    root = pathlib.Path(tempfile.mkdtemp(prefix="tidemark-bench-", dir=arguments.dir))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    rows = []
    try:
        for measure in (bulk_ingest, log_append, idle_sessions, small_epochs, slow_disk_memory, micro):
            if arguments.only and arguments.only not in measure.__name__:
                continue
            print(f"-- {measure.__name__}", file=sys.stderr, flush=True)
            try:
                rows.extend(measure(build, root, 1 if arguments.quick else 5))
            except (NotMeasured, subprocess.TimeoutExpired) as why:
                rows.append({"row": measure.__name__, "value": None, "holds": None, "note": f"not measured: {why}"})
    finally:
        shutil.rmtree(root, ignore_errors=True)
    for entry in rows:
        if "holds" in entry and entry["value"] is not None:
            low, high = entry["spread"]
            verdict = ("holds" if entry["holds"] else "DOES NOT HOLD") if entry["target"] else "no target"
            verdict += f" ({entry['note']})" if entry["note"] else ""
            print(f"{entry['row']}: {entry['value']} {entry['unit']} ({low} to {high}, {entry['samples']} samples), "
                  f"target {entry['target']}: {verdict}")
        elif entry["value"] is None:
            print(f"{entry['row']}: {entry['note']}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    report = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "commit": commit,
              "machine": {"kernel": platform.release(), "cores": os.cpu_count(), "processor": platform.machine()},
              "rows": rows}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
