"""The store: index, settling and folding, a trace over a month, restart after kill -9, clones, a slow disk."""
import contextlib
import json
import os
import pathlib
import re
import subprocess
import threading
import time

from measure.common import GIB, MIB, NotMeasured, ask, benchmarks, end, need_space, row, server


def index_cost(run):
    results = [benchmarks(run, "storage_index_bench", "--benchmark_filter=4k|64k$") for _ in range(run.few)]
    of = lambda kind, counter: [r[counter] for result in results for name, r in result.items() if name.split("/")[0] == kind]
    yield row("index: a random 4 KiB version", of("random_4k", "index_bytes_per_granule"), 24, "bytes")
    yield row("index: 4 KiB of bulk", of("bulk_64k", "index_bytes_per_granule"), 2, "bytes")
    yield row("index: CPU of applying a random 4 KiB version", of("random_4k", "cpu_us_per_granule"), None, "us")


def settling(run):
    """What the settler and the folding do in one thread, and by how much the process grows."""
    results = {}
    for _ in range(run.few):
        for name, result in benchmarks(run, "storage_settle_bench").items():
            results.setdefault(name.split("/iter")[0], []).append(result)
    of = lambda name, counter: [r[counter] for r in results[name]]
    for name, size in (("Settle/1", 4), ("Settle/16", 64)):
        yield row(f"settling, blocks of {size} KiB: moved", of(name, "moved_mib_per_s"), None, "MiB/s", at_most=False)
        yield row(f"settling, blocks of {size} KiB: CPU", of(name, "cpu_s_per_gib"), None, "s/GiB")
        yield row(f"settling, blocks of {size} KiB: the process grows by", of(name, "peak_mib"), None, "MiB")
    yield row("folding: versions looked at", of("Fold", "versions_per_s"), None, "1/s", at_most=False)
    yield row("folding: CPU", of("Fold", "cpu_us_per_version"), None, "us/version")


# What is overwritten is not needed any more a second later, so that a third or so of each segment is dead when it is settled.
PUSHERS, PUSH = 16, ("--profile", "random4k", "--machines", 16, "--disk-size", "16M", "--rate", 20_000, "--prefix", "push")
SHORT_LADDER = {"dense_seconds": 1, "rungs": []}


def settling_acks(run):
    """Ack p99 of small epochs beside a load, with what it wrote being settled at once over not settled; alternating."""
    ratios, plain, moved, seconds = [], [], [], 15 if run.full else 8
    for _ in range(run.few):
        p99 = {}
        for settle_after in ("1h", "0s"):
            config = f'[storage]\nsettle_after = "{settle_after}"\n[retention]\nremoval_holdoff = "0s"\n'
            with server(run, config=config) as running:
                push = running.begin_load(*PUSH, "--seconds", 600)
                try:
                    for i in range(PUSHERS):
                        if not ask(running.data / "admin.sock", "PUT", f"/v1/machines/push-{i}/ladder", SHORT_LADDER):
                            raise NotMeasured("the ladder was refused")
                    report = running.load("--profile", "random4k", "--machines", 200, "--seconds", seconds, "--ramp", 4,
                                          "--blocks-per-epoch", 1, "--interval-ms", 1000, "--prefix", "ack")
                    if settle_after == "0s":
                        moved.append(running.metric("tidemark_settled_bytes_total") / MIB)
                finally:
                    end(push)
            p99[settle_after] = report["ack_us_p99"]
        ratios.append(p99["0s"] / p99["1h"])
        plain.append(p99["1h"] / 1000)
    if min(moved) == 0:
        raise NotMeasured("nothing was settled meanwhile")
    yield row("ack p99 beside 20,000 blocks/s that are settled at once, over the same not settled", ratios, None, "ratio",
              note=f"{min(moved):.0f} to {max(moved):.0f} MiB were moved meanwhile")
    yield row("ack p99 beside 20,000 blocks/s, not settled", plain, None, "ms")


# While 1 GiB in a row and 16,384 random blocks of a clone are read: the index's cache and what RocksDB holds of its tables.
CLONE_READ_MIB = 64 + 16


def clones(run):
    """Clones of a disk of 1 TiB with 10 million extents and 60 points: made, first byte, memory of reading one."""
    results = {}
    for _ in range(3 if run.full else 1):
        for name, result in benchmarks(run, "storage_clone_bench", timeout=1800).items():
            results.setdefault("large" if "/1024/" in name else "small", []).append(result)
    what = "clone of 1 TiB, 10 million extents, 60 points"
    of = lambda kind, counter: [r[counter] for r in results[kind]]
    each = "each sample is of 50 clones"
    yield row(f"{what}: made, median", of("large", "create_ms_median"), 10, "ms", note=each)
    yield row(f"{what}: made, slowest", of("large", "create_ms_max"), None, "ms", note=each)
    yield row(f"{what}: first byte, slowest", of("large", "first_byte_ms_max"), 20, "ms", note=each)
    yield row(f"{what}: 4 KiB written durably, median", of("large", "write_ms_median"), None, "ms", note=each)
    yield row(f"{what}: the process grows by while it is read", of("large", "read_mib"), CLONE_READ_MIB, "MiB",
              note="the bound is the index's cache and RocksDB's tables, whatever the disk's size")
    yield row("clone of 64 GiB, 625,000 extents: the process grows by while it is read", of("small", "read_mib"), CLONE_READ_MIB, "MiB")


def replay(run):
    """A trace over days of the ladder, or its whole month, in a real store, every point compared; and bulk."""
    where, report = run.root / "replay", run.root / "replay.json"
    where.mkdir(exist_ok=True)
    command = [run.build / "bin/trace_replay", "--directory", where, "--json", report]
    if not run.full:
        command += ["--days", 5, "--bulk-mib", 512]
    if run.trace:
        command += ["--trace", run.trace]
    # Exit status 1 is a missed target too; one whose points are wrong writes no report.
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=3600)
    if not report.exists():
        raise NotMeasured(f"trace_replay: {done.stderr.strip()[-300:]}")
    written = json.loads(report.read_text())
    note = f"trace {run.trace.name}" if run.trace else "no --trace: a synthetic one of the same shape"
    note += "" if run.full else "; over 5 days"
    for entry in written["rows"]:
        yield row(entry["row"], [entry["value"]], entry["target"], entry["unit"], note=note)


def restart(run):
    """With much staged, kill -9 under load of both kinds, and start again: until every partition serves."""
    staged_gib, kills = (8, 5) if run.full else (2, 2)
    need_space(run, staged_gib + 6)
    seconds, replayed = [], []
    with server(run, partitions=4) as running:
        size = lambda: sum(path.stat().st_size for path in running.data.glob("partition-*/*/*.segment"))
        rounds = 0
        while size() < staged_gib * GIB:
            rounds += 1
            running.load("--profile", "bulk", "--machines", 8, "--seconds", 5, "--prefix", f"bulk{rounds}")
            running.load("--profile", "random4k", "--machines", 64, "--seconds", 2, "--prefix", f"small{rounds}")
        staged = size() / GIB
        for i in range(kills):
            tools = [running.begin_load("--profile", "random4k", "--machines", 64, "--seconds", 60, "--prefix", f"last{i}"),
                     running.begin_load("--profile", "bulk", "--machines", 4, "--seconds", 60, "--prefix", f"more{i}")]
            time.sleep(12)  # longer than the index goes without a flush
            running.process.kill()
            running.process.wait()
            for tool in tools:
                end(tool)
            mark = running.log_path.stat().st_size
            begin = time.monotonic()
            running.start()
            while not running.healthy():
                time.sleep(0.01)
            seconds.append(time.monotonic() - begin)
            said = re.findall(r"replayed_bytes=(\d+)", running.log_of(mark))
            if not said:
                raise NotMeasured("the server does not say how much it replayed")
            replayed.append(sum(map(int, said)) / MIB)
    note = f"{staged:.1f} GiB of segments"
    yield row("restart after kill -9 under load: until every partition serves", seconds, 2, "s", note=note)
    yield row("restart after kill -9 under load: log replayed, all partitions", replayed, 512, "MiB", note=note)


CGROUP = pathlib.Path("/sys/fs/cgroup/blkio")
SLOW_DISK_BYTES_PER_S = 8 * MIB
# What 1,000 sessions that push as fast as they can may cost in all, with two partitions (docs/operating.md has the sum).
MEMORY_BOUND_MIB = 512 + 2 * (40 + 64 + 64)


def device_of(path):
    device = os.stat(path).st_dev
    link = pathlib.Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if not link.exists():
        raise NotMeasured(f"{path} does not lie on a block device of its own")
    if (link / "partition").exists():
        return (link.resolve().parent / "dev").read_text().strip()
    return f"{os.major(device)}:{os.minor(device)}"


@contextlib.contextmanager
def throttled(device, bytes_per_s):
    """Two functions: one lets a process write so fast to this disk, and no faster; the other ends that for all."""
    if os.geteuid() != 0 or not (CGROUP / "blkio.throttle.write_bps_device").exists():
        raise NotMeasured("needs root and the blkio cgroup to slow the disk down")
    group = CGROUP / f"tidemark-bench-{os.getpid()}"
    group.mkdir()
    limit, slow = group / "blkio.throttle.write_bps_device", []
    limit.write_text(f"{device} {bytes_per_s}\n")

    def slow_down(pid):
        slow.append(pid)
        (group / "cgroup.procs").write_text(f"{pid}\n")

    def let_go():
        limit.write_text(f"{device} 0\n")

    try:
        yield slow_down, let_go
    finally:
        let_go()
        for pid in slow:
            with contextlib.suppress(OSError):  # it has ended
                (CGROUP / "cgroup.procs").write_text(f"{pid}\n")
        time.sleep(0.5)
        group.rmdir()


def slow_disk_memory(run):
    """1,000 sessions push as fast as they can while the kernel slows the server's disk down to 8 MiB/s."""
    samples, written, seconds = [], [], 20 if run.full else 10
    for _ in range(run.few if run.full else 1):
        with server(run) as running, throttled(device_of(run.root), SLOW_DISK_BYTES_PER_S) as (slow_down, let_go):
            # Enrolled and connected at full speed: what is measured is the pushing. Nor does the rest of what was sent
            # have to trickle to the disk.
            after = threading.Timer(seconds + 3, let_go)

            def connected():
                slow_down(running.pid)
                after.start()

            report = running.load("--profile", "bulk", "--machines", 1000, "--seconds", seconds, "--ramp", 1, "--prefix", "slow",
                                  on={"connected": connected})
            after.join()
            samples.append(report["server_resident_mib"])
            written.append(report["durable_mib_per_s"])
    yield row("1,000 sessions pushing at a slow disk: server memory", samples, MEMORY_BOUND_MIB, "MiB",
              note=f"a disk of 8 MiB/s; {min(written):.1f} MiB/s became durable")


def other_disk(run):
    """Acks of machines on one disk, while others push at a second disk that the kernel slows down; over those before."""
    ratios, plain, seconds = [], [], 15 if run.full else 6
    small = ("--profile", "random4k", "--machines", 100, "--blocks-per-epoch", 1, "--interval-ms", 500, "--ramp", 2)
    for _ in range(run.few):
        with second_disk(run) as (device, mount), server(run, partitions=1) as running:
            enrolled = running.data.parent / "machines"
            before = running.load(*small, "--seconds", seconds, "--prefix", "well", "--enrolled", enrolled)["ack_us_p99"]
            running.stop()
            tidemarkd = run.build / "bin/tidemarkd"
            added = subprocess.run([tidemarkd, "add-directory", mount / "tidemark", "--data", running.data, "--partitions", "1"],
                                   capture_output=True, text=True)
            if added.returncode != 0:
                raise NotMeasured(f"tidemarkd add-directory: {added.stderr.strip()[-200:]}")
            running.start()
            with throttled(device, SLOW_DISK_BYTES_PER_S) as (slow_down, _):
                # New machines go where there is most space: a sparse file system larger than what is left here.
                push = running.begin_load("--profile", "bulk", "--machines", 50, "--seconds", 600, "--prefix", "slow")
                try:
                    homes = {m["name"]: m["partition"] for m in json.loads(running.cli("machines").stdout)["machines"]}
                    if {home for name, home in homes.items() if name.startswith("slow")} != {1}:
                        raise NotMeasured("the machines that push did not come to the second disk")
                    slow_down(running.pid)
                    time.sleep(3)
                    during = running.load(*small, "--seconds", seconds, "--prefix", "well", "--enrolled", enrolled)["ack_us_p99"]
                finally:
                    end(push)
            ratios.append(during / before)
            plain.append(before / 1000)
    yield row("beside 50 machines that push at another disk, of 8 MiB/s: ack p99 over that without", ratios, 2, "ratio")
    yield row("ack p99 of 100 machines, two epochs of one block a second each", plain, None, "ms")


@contextlib.contextmanager
def second_disk(run):
    image, mount = run.root / "second.img", run.root / "second"
    free = os.statvfs(run.root)
    with open(image, "wb") as file:
        file.truncate(2 * free.f_bavail * free.f_frsize)
    mount.mkdir()
    if subprocess.run(["mkfs.ext4", "-q", "-F", image], capture_output=True).returncode != 0:
        raise NotMeasured("mkfs.ext4 failed")
    done = subprocess.run(["mount", "-o", "loop", image, mount], capture_output=True, text=True)
    if done.returncode != 0:
        raise NotMeasured(f"mount: {done.stderr.strip()}")
    try:
        device = os.stat(mount).st_dev
        yield f"{os.major(device)}:{os.minor(device)}", mount
    finally:
        subprocess.run(["umount", mount], check=False)
        mount.rmdir()
        image.unlink()
