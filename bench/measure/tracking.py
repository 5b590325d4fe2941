"""What tracking costs a machine that writes: CPU of the programs in the kernel, and of the agent."""
import collections
import contextlib
import datetime
import json
import mmap
import os
import pathlib
import random
import re
import shutil
import struct
import subprocess
import time

from measure.common import NotMeasured, cpu_of, json_of, missing, need, row, server

OURS = re.compile(r"(queue|remap|split|end|done|issue)_\d$")  # agent/bpf/track.bpf.c
STATS = pathlib.Path("/proc/sys/kernel/bpf_stats_enabled")
WRITES_PER_S, DISK_MIB, SYNCED_MIB = 10_000, 2048, 512


@contextlib.contextmanager
def loop_device(path, direct="on"):
    done = subprocess.run(["losetup", "--find", "--show", f"--direct-io={direct}", path], capture_output=True, text=True)
    if done.returncode != 0:
        raise NotMeasured(f"losetup: {done.stderr.strip()}")
    try:
        yield done.stdout.strip()
    finally:
        subprocess.run(["losetup", "--detach", done.stdout.strip()], check=False)


@contextlib.contextmanager
def kernel_counts_time():
    before = STATS.read_text()
    STATS.write_text("1")
    try:
        yield
    finally:
        STATS.write_text(before)


def programs():
    """The seconds of CPU of every program of an agent's kind that is loaded, by its id."""
    out = subprocess.run([shutil.which("bpftool") or "/usr/sbin/bpftool", "prog", "show", "-j"], capture_output=True, text=True, check=True)
    return {p["id"]: p.get("run_time_ns", 0) / 1e9 for p in json.loads(out.stdout) if OURS.match(p.get("name", ""))}


@contextlib.contextmanager
def agent_of(run, device, *options):
    """A server and an agent that protects the device: (server, command line of an agent's command, a way to start it)."""
    state = run.root / "agent"
    with server(run) as running:
        agent = lambda *words: [str(w) for w in (run.build / "bin/tidemark-agent", *words, "--state-dir", state)]
        token = json.loads(running.cli("token", "create", "--ttl", "10m").stdout)["token"]
        for words in (("enroll", running.address, "--token", token, "--name", "writer"), ("protect", device)):
            done = subprocess.run(agent(*words), capture_output=True, text=True)
            if done.returncode != 0:
                raise NotMeasured(f"tidemark-agent {words[0]}: {done.stderr.strip()[-200:]}")
        with open(state / "agent.toml", "a") as config:
            config.write("\n".join(('tracking = "ebpf"', *options)) + "\n")
        started = []

        def start():
            with open(run.root / "agent.log", "ab") as log:
                started.append(subprocess.Popen(agent("run"), stdout=log, stderr=log))
            wait_until_continuous(agent("status", "--json"))
            return started[-1]

        try:
            yield running, agent, start
        finally:
            for process in started:
                process.terminate()
                process.wait(timeout=60)
            subprocess.run(agent("untrack"), capture_output=True, check=False)
            shutil.rmtree(state)


def random_writes(device, *options):
    return json_of(["fio", "--name=w", f"--filename={device}", "--direct=1", "--ioengine=io_uring", "--rw=randwrite", "--bs=4k",
                    "--iodepth=32", "--time_based", "--output-format=json", *options])["jobs"][0]["write"]


def tracking(run):
    if os.geteuid() != 0 or not STATS.exists():
        raise NotMeasured("needs root, and a kernel that counts the time of BPF programs")
    need("losetup")
    yield from cost_of_a_write(run)
    yield from with_and_without(run)
    yield from staleness_under_a_trace(run)


def cost_of_a_write(run):
    share, agent_cpu, others = [], [], set(programs())
    seconds = lambda: sum(spent for program, spent in programs().items() if program not in others)
    image = run.root / "source.img"
    with open(image, "wb") as file:
        file.truncate(DISK_MIB << 20)
        for _ in range(SYNCED_MIB):
            file.write(os.urandom(1 << 20))
    with loop_device(image) as device, agent_of(run, device) as (_, _, start):
        process = start()
        synced = cpu_of(process.pid)
        with kernel_counts_time():
            for _ in range(run.repetitions):
                before, spent, begin = seconds(), cpu_of(process.pid), time.monotonic()
                wrote = random_writes(device, f"--rate_iops={WRITES_PER_S}", "--runtime=6")
                passed, in_kernel = time.monotonic() - begin, seconds() - before
                if in_kernel == 0:
                    raise NotMeasured("no program of the agent ran: it does not track here")
                share.append(100 * in_kernel / wrote["total_ios"] * WRITES_PER_S)
                agent_cpu.append(100 * (cpu_of(process.pid) - spent) / passed)
    yield row("tracking: CPU of the programs in the kernel, at 10,000 writes a second", share, 2, "% of a core",
              note=f"measured at {wrote['iops']:.0f} random writes of 4 KiB a second")
    yield row("tracking: CPU of the agent meanwhile, sending all of it", agent_cpu, None, "% of a core")
    yield row("agent: CPU of a first pass", [synced / (SYNCED_MIB / 1024)], None, "s/GiB sent",
              note=f"incompressible; {DISK_MIB - SYNCED_MIB} MiB of zeroes read besides")


def with_and_without(run):
    """The same writes as fast as they go, to a disk in memory: marked in the kernel, the agent away, and not marked."""
    image = pathlib.Path("/dev/shm") / f"tidemark-bench-{os.getpid()}.img"
    ratios = []
    try:
        with open(image, "wb") as file:
            file.truncate(256 << 20)
        with loop_device(image, direct="off") as device, agent_of(run, device) as (_, agent, start):
            work = lambda: random_writes(device, "--runtime=3")["iops"]
            work()
            for _ in range(run.repetitions):
                process = start()
                process.kill()
                process.wait()
                marked = work()
                subprocess.run(agent("untrack"), capture_output=True, check=True)
                ratios.append(marked / work())
    finally:
        image.unlink(missing_ok=True)
    yield row("tracking: random 4 KiB writes a second to a disk in memory, over those without it", ratios, 0.98, "ratio", at_most=False)


def staleness_under_a_trace(run):
    """The ten minutes of a recorded trace that write most, ten times as fast, on a disk of its size: how old the newest point is."""
    name = "staleness of one tracked disk under the trace's busiest ten minutes, ten times as fast"
    if not run.full:
        return
    if run.trace is None:
        yield missing(name, None, "s", "needs a recorded trace: --trace FILE")
        return
    records = struct.iter_unpack("<IIIHHQQ", run.trace.read_bytes())
    every = [(at, sector * 512, length) for _, length, _, command, _, sector, at in records if command == 0x2a]
    per_minute = collections.Counter()
    for at, _, length in every:
        per_minute[(at - every[0][0]) // 60_000_000] += length
    first = max(range(max(per_minute) - 8), key=lambda minute: sum(per_minute[minute + i] for i in range(10)))
    writes = [write for write in every if first <= (write[0] - every[0][0]) // 60_000_000 < first + 10]
    image = run.root / "traced.img"
    with open(image, "wb") as file:
        file.truncate((max(offset + length for _, offset, length in every) + (1 << 20)) >> 20 << 20)
    with loop_device(image) as device, agent_of(run, device) as (running, _, start):
        start()
        place, buffer = os.open(device, os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, 1 << 20)
        begin, late = time.time(), 0.0
        for number, (at, offset, length) in enumerate(writes):
            due = begin + (at - writes[0][0]) / 1e6 / 10
            time.sleep(max(0.0, due - time.time()))
            late = max(late, time.time() - due)
            buffer[:length] = random.Random(number).randbytes(length)
            os.pwritev(place, [memoryview(buffer)[:length]], offset)
        end = time.time()
        os.close(place)
        points = [point for point in json.loads(running.cli("points", "writer").stdout)["points"] if point["consistency"] == "crash"]
    cuts = sorted((seconds_of(point["arrival"]), seconds_of(point["time"])) for point in points)
    # From one arrival to the next the newest point gets older: the share of the time that it is at most so old.
    ages = [now - cut for (arrived, cut), (following, _) in zip(cuts, cuts[1:])
            for now in [arrived + i / 100 for i in range(int(100 * (following - arrived)) + 1)] if begin <= now <= end]
    ages.sort()
    for what, value in (("median", ages[len(ages) // 2]), ("p99", ages[len(ages) * 99 // 100])):
        yield row(f"{name}: {what}", [value], None, "s", note=f"{len(writes)} writes, late by {late:.1f} s at most; {len(cuts)} points")


def seconds_of(text):
    """Of a time with microseconds in UTC."""
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def wait_until_continuous(status):
    state = ""
    for _ in range(600):
        done = subprocess.run(status, capture_output=True, text=True)
        with contextlib.suppress(ValueError):
            state = json.loads(done.stdout).get("state", "")
        if state == "continuous":
            return
        time.sleep(0.1)
    raise NotMeasured(f"the agent did not come to continuous replication, it is {state or 'not running'}")
