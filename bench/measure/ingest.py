"""Taking in: bulk and small writes against the peers and the floor, the log against the disk, latency inside the server."""
import pathlib
import shutil
import tempfile

from measure.common import NotMeasured, benchmarks, fio, json_of, missing, row, server

OURS = "tidemarkd"
COMPRESSED = "tidemarkd, 2:1 compressed, a plain GiB"
FLOOR = "TLS floor with disk"
PEERS = ("qemu-nbd", "nbdkit")


def against(by_name, ours, theirs):
    """Ratios of what was measured one after the other."""
    mine, other = by_name[ours].get("values"), by_name[theirs].get("values")
    if not mine or not other:
        raise NotMeasured(by_name[theirs if mine else ours].get("note", "no value"))
    return [a / b for a, b in zip(mine, other)]


def compare(run):
    """`tidemark-bench compare`: all in alternation."""
    report = json_of([run.build / "bin/tidemark-bench", "compare", "--dir", run.root, "--repetitions", run.repetitions,
                      "--mib", 2048 if run.full else 384, "--seconds", 6 if run.full else 3, "--json", "-"], partial=True, timeout=3600)
    bulk = {entry["who"]: entry for entry in report["rows"] if entry["row"].startswith("bulk")}
    small = {entry["who"]: entry for entry in report["rows"] if entry["row"].startswith("4 KiB")}

    def ratio(name, entries, ours, theirs, target, at_most=True):
        try:
            return row(name, against(entries, ours, theirs), target, "ratio", at_most)
        except NotMeasured as why:
            return missing(name, target, "ratio", why, at_most)

    yield ratio("bulk, incompressible, durable: server CPU per GiB over the floor with disk", bulk, OURS, FLOOR, 1.15)
    yield ratio("bulk, incompressible, durable: server CPU per GiB over that of qemu-nbd", bulk, OURS, "qemu-nbd", 0.5)
    yield ratio("bulk, 2:1 compressible: server CPU per plain GiB over the floor with disk", bulk, COMPRESSED, FLOOR, 0.6)
    name, rivals = "4 KiB random durable writes, 64 connections, 32 to an acknowledgement", [p for p in PEERS if small[p].get("values")]
    if rivals and small[OURS].get("values"):
        best = max(rivals, key=lambda peer: small[peer]["value"])
        yield row(f"{name}: over the best peer", against(small, OURS, best), 20, "ratio", at_most=False,
                  note=f"{best} made {small[best]['value']:.0f} a second")
    else:
        yield missing(f"{name}: over the best peer", 20, "ratio", "no peer, or not our own, could be measured", at_most=False)
    if small[OURS].get("values"):
        yield row(name, small[OURS]["values"], None, "1/s", at_most=False)


def log_append(run):
    """Durable appends of 1 MiB, 8 in flight, over fio's dsync writes of the same size and depth; alternating."""
    ratios = []
    for _ in range(run.repetitions):
        directory = pathlib.Path(tempfile.mkdtemp(dir=run.root))
        ours = next(iter(benchmarks(run, "storage_log_bench", "--benchmark_filter=Durable/1048576/8/",
                                    "--benchmark_min_time=1").values()))["bytes_per_second"]
        same = ("--rw=write", "--bs=1m", "--iodepth=8")
        fio(directory, *same)  # writes the file once, as segments are
        theirs = fio(directory, *same, "--sync=dsync", "--overwrite=1", "--time_based", "--runtime=2")
        ratios.append(ours / theirs["write"]["bw_bytes"])
        shutil.rmtree(directory)
    yield row("log append, 1 MiB durable, over fio --sync=dsync", ratios, 0.8, "ratio", at_most=False)


def bare_write_p99_ms(run, seconds, *pace):
    directory = pathlib.Path(tempfile.mkdtemp(dir=run.root))
    fio(directory, "--rw=write", "--bs=64k", size="128m")
    job = fio(directory, "--rw=randwrite", "--bs=64k", "--iodepth=1", "--sync=dsync", "--overwrite=1", "--time_based",
              f"--runtime={seconds}", *pace, size="128m")
    shutil.rmtree(directory)
    return job["write"]["clat_ns"]["percentile"]["99.000000"] / 1e6


LOW_RATE, EPOCH = 2_000, 32  # blocks


def latency(run):
    """From an epoch's commit received to its being durable, inside the server, over a bare durable write; alternating.

    At a low rate the bare writes come at that rate too: a disk, and a kernel, that have been idle take longer."""
    half, low, seconds, notes = [], [], 5 if run.full else 3, {}
    small = ("--profile", "random4k", "--machines", 64, "--blocks-per-epoch", EPOCH, "--ramp", 1)
    for i in range(run.repetitions):
        with server(run) as running:
            peak = running.load(*small, "--seconds", 2, "--prefix", "peak")["blocks_per_s"]
        for rate, ratios, pace in ((peak / 2, half, ()), (LOW_RATE, low, (f"--rate_iops={LOW_RATE // EPOCH}",))):
            bare = bare_write_p99_ms(run, seconds, *pace)
            with server(run) as running:
                report = running.load(*small, "--seconds", seconds, "--rate", round(rate), "--prefix", f"at{i}")
            inside = report["server"]["ack_ms_p99"]
            if inside is None:
                raise NotMeasured("the server's histogram has no 99th percentile")
            ratios.append(inside / bare)
            notes.setdefault(bool(pace), []).append(f"{inside:.2f} to {bare:.2f}")
    name = "receive to durable inside the server, p99, over the p99 of a bare 64 KiB durable write"
    yield row(f"{name}: at half of the peak rate", half, 5, "ratio", note=f"ms: {', '.join(notes[False])}")
    yield row(f"{name}: at {LOW_RATE:,} blocks a second, the bare writes at as many epochs a second", low, 3, "ratio",
              note=f"ms: {', '.join(notes[True])}")
