"""Many machines: connected and idle, an epoch a second each, all of them back at once, a thousand at four fifths of the peak."""
import os
import statistics
import threading
import time

from measure.common import KIB, NotMeasured, ask, benchmarks, cpu_of, resident_of, row, server, written_by

OPEN_DOORS = "[limits]\nper_source_handshakes = 100000\nsessions = 20000\n"
EPOCH_A_SECOND = ("--profile", "random4k", "--blocks-per-epoch", 1, "--interval-ms", 1000, "--ramp", 3)


def growth_of_lag(report):
    """p99 of staleness in the last third of a run over that in the first."""
    points = [point["staleness_p99_ms"] for point in report["series"] if point["staleness_p99_ms"] > 0]
    third = len(points) // 3
    if third == 0:
        raise NotMeasured("too short to tell whether lag grows")
    return statistics.median(points[-third:]) / statistics.median(points[:third])


def rows_of_epochs(machines, reports, written, ack_target):
    what = f"{machines:,} machines, an epoch of one 4 KiB block a second each"
    yield row(f"{what}: ack p99", [r["ack_us_p99"] / 1000 for r in reports], ack_target, "ms")
    yield row(f"{what}: done of those due", [r["epochs_per_s"] / machines for r in reports], 0.98, "share", at_most=False)
    yield row(f"{what}: p99 of staleness, last third over first", [growth_of_lag(r) for r in reports], 1.5, "ratio")
    yield row(f"{what}: server CPU", [100 * r["server_cpu_share"] for r in reports], None, "% of a core")
    yield row(f"{what}: written to disk for an epoch", written, None, "bytes")


def a_thousand(run):
    seconds, reports, written = 15 if run.full else 8, [], []
    for _ in range(run.few):
        with server(run, config=OPEN_DOORS) as running:
            before = []
            reports.append(running.load(*EPOCH_A_SECOND, "--machines", 1000, "--seconds", seconds,
                                        on={"connected": lambda: before.append(written_by(running.pid))}))
            written.append((written_by(running.pid) - before[0]) / (reports[-1]["epochs_per_s"] * (seconds + 3)))
    yield from rows_of_epochs(1000, reports, written, 20)


def ten_thousand(run):
    """One fleet: idle, then an epoch a second each; then a storm of the same machines."""
    machines, hold, seconds = run.fleet, 60 if run.full else 30, 40 if run.full else 12
    idle = {"memory": [], "cpu": [], "written": []}
    reports, written, storms = [], [], []
    for _ in range(run.few if run.full else 1):
        with server(run, config=OPEN_DOORS) as running:
            running.load("--profile", "idle", "--machines", 64, "--seconds", 0.5, "--ramp", 0.1, "--prefix", "warm")
            enrolled, marks = running.data.parent / "machines", {}

            def look():
                begin, wrote, quiet = time.monotonic(), written_by(running.pid), 0
                # The last ones' first words, and the index's flush of them, ten seconds later.
                while quiet < 12 and time.monotonic() - begin < hold - 8:
                    time.sleep(1)
                    quiet = quiet + 1 if written_by(running.pid) == wrote else 0
                    wrote = written_by(running.pid)
                cpu, wrote, begin = cpu_of(running.pid), written_by(running.pid), time.monotonic()
                time.sleep(6)
                passed = time.monotonic() - begin
                idle["cpu"].append(100 * (cpu_of(running.pid) - cpu) / passed)
                idle["written"].append((written_by(running.pid) - wrote) / KIB * 60 / passed)
                idle["memory"].append((resident_of(running.pid) - marks["resident"]) / machines / KIB)
                marks["written"] = written_by(running.pid)

            reports.append(running.load(*EPOCH_A_SECOND, "--machines", machines, "--hold", hold, "--seconds", seconds,
                                        "--enrolled", enrolled,
                                        on={"enrolled": lambda: marks.update(resident=resident_of(running.pid)), "connected": look}))
            written.append((written_by(running.pid) - marks["written"]) / (reports[-1]["epochs_per_s"] * (seconds + 3)))
            storms.append(running.bench("storm", "--machines", machines - 16, "--healthy", 16, "--enrolled", enrolled))
    yield row(f"{machines:,} idle agents: server memory each", idle["memory"], 32, "KiB")
    yield row(f"{machines:,} idle agents: server CPU", idle["cpu"], 5, "% of a core")
    yield row(f"{machines:,} idle agents: written to disk in a minute", idle["written"], 64, "KiB")
    yield from rows_of_epochs(machines, reports, written, 1000)
    yield from rows_of_storms(run, storms)


def rows_of_storms(run, storms):
    cores = os.cpu_count()
    for kind, words in (("resumed", "with tickets"), ("full", "full handshakes")):
        bare = benchmarks(run, "net_tls_bench", f"--benchmark_filter=handshake/{kind}", "--benchmark_min_time=1")
        bare_ms = next(iter(bare.values()))["both_ends_ms"]
        rounds = [r for storm in storms for r in storm["rounds"] if r["kind"] == kind]
        if not all(r["all_back"] for r in rounds):
            raise NotMeasured("not all machines came back")
        what = f"storm of {storms[0]['machines']:,}, {words}"
        yield row(f"{what}: until all are back, over the bare handshakes' cost on these cores",
                  [r["seconds"] * 1000 * cores / (storms[0]["machines"] * bare_ms) for r in rounds], 1.5, "ratio",
                  note=f"both ends on the same cores; a bare handshake takes {bare_ms:.2f} ms of CPU, both ends together")
        yield row(f"{what}: until all are back", [r["seconds"] for r in rounds], None, "s")
    yield row("storm: healthy sessions that were dropped", [s["dropped"] for s in storms], 0, "sessions")
    yield row("storm: ack p99 of the healthy meanwhile", [s["healthy_ack_us_p99"] / 1000 for s in storms], None, "ms")


def staleness(run):
    """1,000 agents, first as fast as they can, then at four fifths of that."""
    small, samples = ("--profile", "random4k", "--machines", 1000, "--blocks-per-epoch", 32), []
    for _ in range(run.few):
        with server(run, config=OPEN_DOORS) as running:
            enrolled = running.data.parent / "machines"
            peak = running.load(*small, "--enrolled", enrolled, "--ramp", 2, "--seconds", 5)["blocks_per_s"]
            report = running.load(*small, "--enrolled", enrolled, "--ramp", 3, "--seconds", 20 if run.full else 10, "--rate",
                                  round(0.8 * peak))
            samples.append(report["staleness_us_p99"] / 1e6)
    yield row("staleness with 1,000 agents at 80 % of the peak rate: p99", samples, 1, "s", note=f"peak {peak:.0f} blocks/s")


def recovery_points(run):
    """Pins on the newest points of machines that write, ten a second, over the same without; alternating."""
    ratios, plain, pins = [], [], 0
    load = ("--profile", "random4k", "--machines", 200, "--blocks-per-epoch", 8, "--interval-ms", 200, "--ramp", 1)
    for _ in range(run.few):
        p99 = {}
        with server(run, config=OPEN_DOORS) as running:
            enrolled = running.data.parent / "machines"
            for pinning in (False, True):
                pinner = Pinner(running, "bench", 200) if pinning else None
                report = running.load(*load, "--enrolled", enrolled, "--seconds", 6,
                                      on={"connected": pinner.start} if pinner else None)
                p99[pinning] = report["ack_us_p99"]
                if pinner:
                    pins += pinner.stop()
        ratios.append(p99[True] / p99[False])
        plain.append(p99[False] / 1000)
    if pins == 0:
        raise NotMeasured("no point could be pinned")
    yield row("taking recovery points, ten a second: ack p99 over that without", ratios, 1.25, "ratio",
              note=f"every epoch is a point; {pins} of the newest were pinned meanwhile")
    yield row("ack p99 of 200 machines, five epochs of 8 blocks a second each", plain, None, "ms")


class Pinner(threading.Thread):
    """Pins the newest point of one machine after another through the admin API."""

    def __init__(self, running, prefix, machines):
        super().__init__(daemon=True)
        self.socket, self.prefix, self.machines = running.data / "admin.sock", prefix, machines
        self.done, self.pinned = threading.Event(), 0

    def run(self):
        while not self.done.wait(0.1):
            name = f"{self.prefix}-{self.pinned % self.machines}"
            if ask(self.socket, "POST", f"/v1/machines/{name}/pins", {"at": "latest", "name": f"p{self.pinned}"}):
                self.pinned += 1

    def stop(self):
        self.done.set()
        self.join()
        return self.pinned
