#!/usr/bin/env python3
"""Measures what the documents promise, in pairs on this machine, and prints a table.

Every row has value, target, unit, number of samples and spread; one that could not be measured says why. Figures of one
run are comparable with each other, not with those of another machine. usage: run.py --build DIR [--json FILE] [--quick]
"""
import argparse
import concurrent.futures
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

    def __init__(self, build, directory, partitions=2, config=""):
        self.build, self.data = build, directory / "data"
        subprocess.run([build / "bin/tidemarkd", "init", self.data, "--partitions", str(partitions), "--address", "127.0.0.1:7443"],
                       check=True, stdout=subprocess.DEVNULL)
        self.config = directory / "config.toml"
        self.config.write_text(config)
        self.log_path = directory / "server.log"
        self.log = open(self.log_path, "ab")
        self.start()

    def start(self):
        self.process = subprocess.Popen([self.build / "bin/tidemarkd", "run", "--data", self.data, "--listen", "127.0.0.1:0",
                                         "--config", self.config],
                                        stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        if "serving on " not in line:
            raise NotMeasured(f"tidemarkd did not start: {line!r}")
        self.address = line.split("serving on ")[1].split(",")[0]

    def begin_load(self, *options):
        return subprocess.Popen(self.load_command(*options), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def load_command(self, *options):
        return [self.build / "bin/tidemark-bench", "--server", self.address, "--socket", self.data / "admin.sock",
                "--server-pid", str(self.process.pid), *map(str, options)]

    def load(self, *options, when_connected=lambda: None):
        tool = subprocess.Popen(self.load_command(*options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        errors = ""
        for line in tool.stderr:
            errors += line
            if line.startswith("connected "):
                when_connected()
        output = tool.stdout.read()
        if tool.wait(timeout=400) != 0:
            raise NotMeasured((errors + output).strip()[-300:])
        return json.loads(output)

    def healthy(self):
        return subprocess.run([self.build / "bin/tidemark", "--data", self.data, "health"], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL).returncode == 0

    def log_of(self, since):
        with open(self.log_path) as log:
            log.seek(since)
            return log.read()

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


STAGED_GIB = 8


def restart(build, root, repetitions):
    """With several GiB staged, kill -9 under load of both kinds, and start again: until every partition serves."""
    space = os.statvfs(root)
    if space.f_bavail * space.f_frsize < (STAGED_GIB + 6) << 30:
        raise NotMeasured(f"needs {STAGED_GIB + 6} GiB free in {root}")
    seconds, replayed = [], []
    with server(build, root, partitions=4) as running:
        staged, round_number = 0, 0
        while staged < STAGED_GIB << 30:
            round_number += 1
            running.load("--profile", "bulk", "--machines", 8, "--seconds", 10, "--prefix", f"bulk{round_number}-")
            running.load("--profile", "small", "--machines", 64, "--seconds", 5, "--prefix", f"small{round_number}-")
            staged = sum(path.stat().st_size for path in running.data.glob("partition-*/*/*.segment"))
        for i in range(repetitions):
            tools = [running.begin_load("--profile", "small", "--machines", 64, "--seconds", 60, "--prefix", f"last{i}-"),
                     running.begin_load("--profile", "bulk", "--machines", 4, "--seconds", 60, "--prefix", f"more{i}-")]
            for tool in tools:
                while not tool.stderr.readline().startswith("connected "):
                    if tool.poll() is not None:
                        raise NotMeasured("the load did not start")
            time.sleep(12)  # longer than the index goes without a flush
            running.process.kill()
            running.process.wait()
            for tool in tools:
                tool.kill()
                tool.wait()
            mark = running.log_path.stat().st_size
            begin = time.monotonic()
            running.start()
            while not running.healthy():
                time.sleep(0.01)
            seconds.append(time.monotonic() - begin)
            replayed.append(sum(int(line.split("replayed_bytes=")[1].split()[0]) for line in running.log_of(mark).splitlines()
                                if "replayed_bytes=" in line) / (1 << 20))
        size = staged / (1 << 30)
    yield row("restart after kill -9 under load: until every partition serves", seconds, 2, "s", note=f"{size:.1f} GiB of segments")
    yield row("restart after kill -9 under load: log replayed, all partitions", replayed, 512, "MiB", note=f"{size:.1f} GiB of segments")


def written_by(pid):
    with open(f"/proc/{pid}/io") as counters:
        return int(next(line for line in counters if line.startswith("write_bytes")).split()[1])


def idle_writes(build, root, repetitions):
    """What a server writes while thousands of machines are connected and nothing changes."""
    samples, machines = [], 10_000
    for _ in range(max(1, repetitions // 3)):
        with server(build, root) as running:
            tool = running.begin_load("--profile", "idle", "--machines", machines, "--seconds", 100, "--prefix", "idle")
            line = ""
            while not line.startswith("connected "):
                line = tool.stderr.readline()
                if not line:
                    raise NotMeasured("the machines did not connect")
            machines = int(line.split()[1])
            time.sleep(20)  # enrolments and first segments are settled
            before = written_by(running.process.pid)
            time.sleep(60)
            samples.append((written_by(running.process.pid) - before) / (1 << 10))
            tool.kill()
            tool.wait()
    yield row(f"{machines} idle sessions: written in a minute", samples, 64, "KiB")


def settling(build, root, repetitions):
    """What the settler costs in one thread, and by how much the process grows."""
    results = {}
    for _ in range(repetitions):
        report = json_of([build / "bench/storage_settle_bench", "--benchmark_format=json"],
                         env=os.environ | {"TIDEMARK_BENCH_DIR": str(root)})
        for result in report["benchmarks"]:
            results.setdefault(result["name"].split("/iter")[0], []).append(result)
    for name, granules in (("Settle/1", 1), ("Settle/16", 16)):
        what = f"settling, blocks of {4 * granules} KiB"
        yield row(f"{what}: moved", [r["moved_mib_per_s"] for r in results[name]], 0, "MiB/s", at_most=False)
        yield row(f"{what}: CPU", [r["cpu_s_per_gib"] for r in results[name]], 0, "s/GiB")
        yield row(f"{what}: the process grows by", [r["peak_mib"] for r in results[name]], 0, "MiB")
    yield row("folding: versions looked at", [r["versions_per_s"] for r in results["Fold"]], 0, "1/s", at_most=False)
    yield row("folding: CPU", [r["cpu_us_per_version"] for r in results["Fold"]], 0, "us/version")


def settling_acks(build, root, repetitions):
    """Ack p99 of small epochs beside a load, with what it wrote being settled at once over without; alternating."""
    ratios, plain = [], []
    for _ in range(repetitions):
        p99 = {}
        for settle_after in ("1h", "0s"):
            with server(build, root, config=f'[storage]\nsettle_after = "{settle_after}"\n') as running:
                with concurrent.futures.ThreadPoolExecutor() as pool:
                    push = pool.submit(running.load, "--profile", "small", "--machines", 16, "--seconds", 20, "--prefix", "push")
                    report = running.load("--profile", "small", "--machines", 200, "--seconds", 15, "--blocks-per-epoch", 1,
                                          "--interval-ms", 1000, "--prefix", "ack")
                    push.result()
                moved = sum(f.stat().st_size for f in running.data.glob("partition-*/cold/*.segment"))
                if settle_after == "0s" and moved == 0:
                    raise NotMeasured("nothing was settled meanwhile")
                p99[settle_after] = report["ack_us_p99"]
        ratios.append(p99["0s"] / p99["1h"])
        plain.append(p99["1h"] / 1000)
    yield row("ack p99 beside a load of small blocks that settles at once, over the same not settled", ratios, 0, "ratio")
    yield row("ack p99 beside a load of small blocks, not settled", plain, 0, "ms")


def index_cost(build, root, repetitions):
    results = {}
    for _ in range(repetitions):
        report = json_of([build / "bench/storage_index_bench", "--benchmark_filter=4k|64k$", "--benchmark_format=json"],
                         env=os.environ | {"TIDEMARK_BENCH_DIR": str(root)})
        for result in report["benchmarks"]:
            results.setdefault(result["name"].split("/")[0], []).append(result)
    bytes_of = lambda name: [r["index_bytes_per_granule"] for r in results[name]]
    yield row("index: bytes for a random 4 KiB version", bytes_of("random_4k"), 24, "bytes")
    yield row("index: bytes for 4 KiB of bulk", bytes_of("bulk_64k"), 2, "bytes")
    yield row("index: CPU of applying a random 4 KiB version", [r["cpu_us_per_granule"] for r in results["random_4k"]], 0, "us")


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
        for measure in (bulk_ingest, log_append, idle_sessions, small_epochs, slow_disk_memory, restart, idle_writes, index_cost,
                        settling, settling_acks, micro):
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
