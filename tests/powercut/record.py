"""The part of the power-cut rig that records: a file system on a disk whose every write and flush is logged, the real
server on it under load, and with each thing that was acknowledged its place in the log.

A mark is written after something was acknowledged, and stands in the log behind all that the acknowledgement stood for.
"""
import pathlib
import random
import shutil
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "crash"))
from logged_disk import LoggedDisk
from parts import MKFS, NARROW, CloneUser, Machine, Server

DISK_SIZE = 1536 << 20  # with the place of the marks
SMALL = (3 << 20, (1 << 20) + 1536)  # the second disk ends in a short granule
LARGE = (16 << 20,)
RESTART_SECONDS = 4
# What the load is to have done, by the counters of the server; summed over its lives.
WORK = {"tidemark_segments_settled_total": "segments_settled", "tidemark_settled_blocks_total": "blocks_settled",
        "tidemark_versions_folded_total": "versions_folded", "tidemark_points_dropped_total": "points_dropped",
        "tidemark_log_commits_total": "commits"}


class MarkedMachine(Machine):
    """Leaves a mark for each acknowledged epoch, and a copy of what the agent knew then."""

    def __init__(self, disk, *arguments, **options):
        super().__init__(*arguments, **options)
        self.disk = disk

    def enrolled(self):
        self.enroll()
        self.disk.mark("enrolled", self.label, self.keep_state("enrolled"))

    def keep_state(self, name):
        copy = self.root / f"state-{name}"
        shutil.copytree(self.state, copy, ignore=shutil.ignore_patterns("lock"))
        return copy

    def acknowledged(self, epoch, digests):
        if epoch in self.expected:  # unchanged
            return
        super().acknowledged(epoch, digests)
        self.disk.mark("epoch", self.label, epoch, digests, self.keep_state(epoch))
        if self.ladder and self.random.random() < 0.2:
            pinned = self.server.cli("pin", self.label, "--at", f"epoch:{epoch}", "--name", f"p{epoch}", check=False)
            if pinned.returncode == 0:  # else it was dropped before, or the server is away
                self.disk.mark("pin", self.label, epoch)


class MarkedClone(CloneUser):
    """Leaves a mark for each flush that was answered."""

    def __init__(self, disk, *arguments):
        super().__init__(*arguments)
        self.disk = disk

    def created(self):
        super().created()
        self.disk.mark("cloned", self.name)

    def promised(self):
        super().promised()
        self.disk.mark("flushed", self.name, self.flushed)


class Passing(threading.Thread):
    """Enrols machines, lets them synchronise a few times, and removes them."""

    def __init__(self, load, make):
        super().__init__(daemon=True)
        self.load, self.make, self.machines, self.removed, self.failure = load, make, [], 0, None

    def run(self):
        try:
            while not self.load.stopping.is_set():
                self.one(self.make(f"passing{len(self.machines)}"))
        except Exception as error:  # reported by the main thread, which ends the run
            self.failure = error

    def one(self, machine):
        self.machines.append(machine)
        try:
            machine.enrolled()
        except (subprocess.CalledProcessError, OSError, ValueError):  # the server is away
            self.load.stopping.wait(0.2)
            return
        for _ in range(3):
            machine.step()
        self.load.disk.mark("removing", machine.label)
        while not self.load.stopping.wait(0.2):
            if self.load.server.cli("machine", "remove", machine.label, "--confirm", machine.label, check=False).returncode == 0:
                self.load.disk.mark("removed", machine.label)
                self.removed += 1
                return


class Load:
    """The server under load on a logged disk, for a time; then `machines`, `marks` and `work` tell what was done."""

    def __init__(self, root, kind, binaries, seed, program=None, environment=None):
        self.kind, self.disk = kind, LoggedDisk(root, DISK_SIZE, MKFS[kind])
        self.choose = random.Random(f"{seed} {kind}")
        self.stopping = threading.Event()
        self.server = Server(binaries, self.disk.mount / "data", root / "server.log", program=program,
                             environment=environment)
        machine = lambda label, sizes, **options: MarkedMachine(self.disk, label, self.server, root, seed, self.stopping,
                                                                sizes, **options)
        self.machines = [machine("kept0", SMALL), machine("kept1", SMALL), machine("thinned", SMALL, ladder=NARROW),
                         machine("large", LARGE, ladder=NARROW, changes=(8, 40))]
        self.clones = [MarkedClone(self.disk, f"clone-{label}", label, self.server, seed, self.stopping)
                       for label in ("kept0", "thinned")]
        self.passing = Passing(self, lambda label: machine(label, SMALL))
        self.work = dict.fromkeys(WORK.values(), 0)
        self.restarts = {"killed": 0, "stopped": 0, "index_lost": 0}
        self.seen = {}

    def run(self, seconds):
        """At least so long, and until everything was done that the store is to do; five times as long at most."""
        started = time.monotonic()
        try:
            self.disk.start()
            self.server.init()
            self.server.start()
            for machine in self.machines:
                machine.enrolled()
            threads = (*self.machines, *self.clones, self.passing)
            for thread in threads:
                thread.start()
            while time.monotonic() - started < 5 * seconds:
                time.sleep(RESTART_SECONDS * (0.5 + self.choose.random()))
                self.count()
                for thread in threads:
                    if thread.failure:
                        raise thread.failure
                for clone in self.clones:
                    if clone.problems:
                        raise RuntimeError(clone.problems[0])
                if time.monotonic() - started >= seconds and not self.missing():
                    break
                self.restart()
            self.stopping.set()
            for thread in threads:
                thread.join()
            self.count()
            self.server.kill()
        finally:
            self.stopping.set()
            for machine in self.everyone():
                machine.kill_agent()
            self.server.end()
            self.disk.stop()
        if self.missing():
            raise RuntimeError(f"the load never came to {', '.join(self.missing())}: this run would show nothing")

    def everyone(self):
        return [*self.machines, *self.passing.machines]

    def figures(self):
        return self.work | {f"server_{how}": count for how, count in self.restarts.items()} | {
            "machines_removed": self.passing.removed,
            "pins": sum(mark[0] == "pin" for mark in self.disk.marks),
            "clone_flushes": sum(clone.flushes for clone in self.clones),
            "epochs_acknowledged": sum(len(machine.expected) for machine in self.everyone())}

    def missing(self):
        return [name for name, value in self.figures().items() if value == 0]

    def count(self):
        metrics = self.server.admin().metrics()
        for metric, name in WORK.items():
            self.work[name] += int(metrics.get(metric, 0) - self.seen.get(name, 0))
            self.seen[name] = metrics.get(metric, 0)

    def restart(self):
        how = min(self.restarts, key=lambda one: (self.restarts[one], self.choose.random()))
        if how == "stopped":
            self.server.stop()
        else:
            self.server.kill()
        if how == "index_lost":
            self.server.lose_index()
        self.restarts[how] += 1
        self.seen = {}
        self.server.start()
