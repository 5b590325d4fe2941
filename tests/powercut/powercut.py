#!/usr/bin/env python3
"""Power cuts of the real server, on a real ext4 or XFS: no acknowledged epoch may be lost, and none be wrong.

First tidemarkd and agents run on a disk whose every write and flush is logged (record.py). Then the disk is made again as
a failure of power would have left it: everything up to some flush, and of what was written after it all, nothing, some, or
some torn by sector. Each image is mounted, and the real server started on it:

  - every machine that was enrolled, every epoch acknowledged and every pin set before the cut is there (of machines whose
    ladder thins their points out: the newest epoch and the pinned ones);
  - a machine that was removed is gone, or goes;
  - a disk of a clone is as it was after some write over NBD, and not before the last one that had been flushed;
  - what is read of a point equals what the machine's disks held, all of them at the same moment;
  - an agent that knows what it knew then goes on without an alarm, and its next epoch is exact.

Last, a server with a planted bug, which acknowledges what the disk does not hold yet, must be found out by the same
checks. Prints what was done; exit status 1 when anything was lost or wrong, or a planted bug was not found. Needs root,
Linux, qemu-storage-daemon, FUSE and xfsprogs. A seed repeats the choices, not the kernel's timing.
"""
import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import queue
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

from record import DISK_SIZE, Load  # puts tests/crash on the path
from logged_disk import MARKS_SIZE
from write_log import Images, WriteLog
from nbd_client import NbdClient
from parts import Server, disks_of, is_dropped, is_removed, points_of, read_point, run, unmount

FICLONE = 0x40049409
FATES = ("all", "none", "some", "torn")
EVERYTHING_EVERY = 20  # cuts: then each point is read, otherwise some
SCRATCH_SIZE = 200 << 30  # sparse


class Scratch:
    """An XFS of its own for the images: a copy of one costs nothing there."""

    def __init__(self, root):
        self.image, self.mount, self.loop = root / "scratch.xfs", root / "scratch", None
        with open(self.image, "wb") as file:
            file.truncate(SCRATCH_SIZE)
        self.mount.mkdir()
        run("mkfs.xfs", "-q", "-m", "reflink=1", self.image)
        self.loop = run("losetup", "--find", "--show", "--direct-io=on", self.image)
        run("mount", self.loop, self.mount)

    def end(self):
        if os.path.ismount(self.mount):
            unmount(self.mount)
        run("losetup", "--detach", self.loop)
        self.image.unlink()


def clone(source, target):
    copy = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    fcntl.ioctl(copy, FICLONE, source)
    return copy


class Promised:
    """What had been acknowledged before a cut, by machine."""

    def __init__(self, load, log, cut):
        self.epochs, self.pins, self.states, self.removed, self.clones = {}, {}, {}, set(), {}
        for number, (kind, label, *what) in enumerate(load.disk.marks):
            if log.marks[number] > cut:
                continue
            if kind == "enrolled":
                self.epochs[label], self.pins[label], self.states[label] = {}, set(), what[0]
            elif kind == "epoch":
                self.epochs[label][what[0]], self.states[label] = what[1], what[2]
            elif kind == "pin":
                self.pins[label].add(what[0])
            elif kind in ("cloned", "flushed"):
                self.clones[label] = what[0] if what else 0
            elif kind == "removing":  # from now on it may be there or not
                del self.epochs[label]
            else:
                self.removed.add(label)


class Check:
    """One image, mounted, with the real server on it."""

    def __init__(self, worker, promised, choose, everything):
        self.worker, self.promised, self.choose, self.everything = worker, promised, choose, everything
        self.problems, self.epochs, self.points, self.clones, self.rebuilt = [], 0, 0, 0, 0

    def server(self, data):
        log = self.worker.root / "server.log"
        log.unlink(missing_ok=True)
        server = Server(self.worker.binaries, data, log)
        try:
            server.start()
            admin = server.admin()
            there = [machine for machine in self.worker.load.everyone() if machine.label in self.promised.epochs]
            for machine in there:
                self.machine(admin, machine)
            for clone in self.worker.load.clones:
                if clone.name in self.promised.clones:
                    self.clone(server, clone)
            admin = server.admin()  # the server ends a connection that is silent for two seconds
            for label in sorted(self.promised.removed):
                if not is_removed(admin, label):
                    self.problems.append(f"{label}: was removed, and is there")
            self.agent(server, self.choose.choice(there))
            if server.admin().metrics().get("tidemark_history_diverged_total", 0):
                self.problems.append("an agent knew more than the server")
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            self.problems.append(f"{type(error).__name__}: {error}")
        finally:
            server.end()
        for line in log.read_text(errors="replace").splitlines():
            self.rebuilt += "event=index_rebuilt" in line
            if re.search(r"\b(error|critical)\b", line.split("event=")[0], re.I):
                self.problems.append(f"the server said: {line}")

    def machine(self, admin, machine):
        label, epochs = machine.label, self.promised.epochs[machine.label]
        disks = disks_of(admin, label)
        if disks is None:
            self.problems.append(f"{label}: enrolled, and not known")
            return
        there = points_of(admin, label)
        wanted = set(epochs)
        if machine.ladder and epochs:
            wanted = {max(epochs)} if max(there, default=0) < max(epochs) else set()
            wanted |= self.promised.pins[label]
        self.epochs += len(wanted)
        for epoch in sorted(wanted - there):
            self.problems.append(f"{label}: epoch {epoch} was acknowledged, and is not there")
        for epoch in self.chosen(there):
            got = read_point(admin, label, epoch, disks)
            self.points += got is not None
            if got is None and not (machine.ladder and is_dropped(admin, label, epoch)):
                self.problems.append(f"{label}: epoch {epoch} is listed, and cannot be read")
            elif got is not None and got != epochs.get(epoch, got):
                wrong = [disk for disk, is_there, was in zip(disks, got, epochs[epoch]) if is_there != was]
                self.problems.append(f"{label}: epoch {epoch} is not what was acknowledged: disks {wrong}, "
                                     f"{'as they were at another time' if got in machine.held else 'as they never were'}")
            elif got is not None and got not in machine.held:
                self.problems.append(f"{label}: epoch {epoch} is a mixture that never was")

    def clone(self, server, clone):
        with contextlib.closing(NbdClient(server.data / "nbd.sock", clone.export)) as client:
            digest = hashlib.sha256(client.read(0, client.size)).digest()
        self.clones += 1
        if digest not in clone.states[self.promised.clones[clone.name]:]:
            was = "as it was before that" if digest in clone.states else "as it never was"
            self.problems.append(f"{clone.export}: what was flushed is not there: the disk is {was}")

    def chosen(self, there):
        there = sorted(there)
        if self.everything or len(there) <= 6:
            return there
        return self.choose.sample(there[:-3], 3) + there[-3:]

    def agent(self, server, machine):
        """Goes on with the state that it had at the last acknowledgement before the cut."""
        state = self.worker.root / "state"
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(self.promised.states[machine.label], state)
        config = state / "agent.toml"
        config.write_text(re.sub(r'(?m)^server *=.*$', f'server = "{server.address}"', config.read_text()))
        synced = subprocess.run([self.worker.binaries / "tidemark-agent", "sync", "--once", "--json", "--state-dir", state],
                                capture_output=True, text=True, timeout=120)
        if synced.returncode != 0:
            self.problems.append(f"{machine.label}: its agent cannot go on: {synced.stdout} {synced.stderr}")
            return
        if re.search("diverged|alarm", synced.stderr, re.I):
            self.problems.append(f"{machine.label}: its agent raises an alarm: {synced.stderr}")
        epoch = json.loads(synced.stdout)["epoch"]
        admin = server.admin()
        got = read_point(admin, machine.label, epoch, disks_of(admin, machine.label))
        if got != machine.digests():
            self.problems.append(f"{machine.label}: epoch {epoch}, the first after the cut, is not what its disks hold")
        elif epoch <= max(self.promised.epochs[machine.label], default=0) and got != \
                self.promised.epochs[machine.label].get(epoch):
            self.problems.append(f"{machine.label}: the first epoch after the cut is {epoch}, not a new one")


class Worker(threading.Thread):
    """Takes cuts, in order of time, and checks the image of each."""

    def __init__(self, number, scratch, load, log, binaries, cuts, results, keep):
        super().__init__(daemon=True)
        self.root = scratch / f"worker{number}"
        self.root.mkdir()
        self.mount = self.root / "mnt"
        self.mount.mkdir()
        self.load, self.log, self.binaries, self.cuts, self.results, self.keep = load, log, binaries, cuts, results, keep
        run("cp", "--sparse=always", load.disk.base, self.root / "now.img")
        self.images = Images(log, os.open(self.root / "now.img", os.O_RDWR))

    def run(self):
        while True:
            try:
                number, cut, fate, seed = self.cuts.get_nowait()
            except queue.Empty:
                return
            try:
                self.results.put(self.one(number, cut, fate, seed))
            except Exception as error:
                self.results.put((cut, fate, None, 0, [f"cut {cut} ({fate}, seed {seed}): {type(error).__name__}: {error} "
                                                       f"{getattr(error, 'stderr', '')}"]))

    def one(self, number, cut, fate, seed):
        tail = self.images.forward(cut)
        path = self.root / "cut.img"
        image = clone(self.images.image, path)
        harmed = self.images.add_tail(image, tail, fate, seed)
        os.close(image)
        check = Check(self, Promised(self.load, self.log, cut), random.Random(seed), number % EVERYTHING_EVERY == 0)
        loop = run("losetup", "--find", "--show", "--sizelimit", DISK_SIZE - MARKS_SIZE, path)
        try:
            run("mount", "-o", "nouuid" if self.load.kind == "xfs" else "defaults", loop, self.mount)
            try:
                check.server(self.mount / "data")
            finally:
                unmount(self.mount)
        finally:
            run("losetup", "--detach", loop)
        problems = [f"cut {cut} ({fate}, seed {seed}): {problem}" for problem in check.problems]
        if problems and self.keep:
            shutil.copy(self.root / "server.log", self.keep / f"cut{cut}.server.log")
        return cut, fate, check, harmed, problems


def choose_cuts(log, count, seed):
    """Around flushes, those before all that much hangs on; behind acknowledgements; and anywhere."""
    choose, first, last = random.Random(seed), min(log.marks.values()), len(log.entries)
    flushes = [flush for flush in log.flushes() if flush >= first]
    heavy = [flush for before, flush in zip(flushes, flushes[1:]) if flush - before > 3] or flushes
    marks = list(log.marks.values())
    kinds = (lambda: choose.choice(heavy), lambda: choose.choice(flushes) + choose.choice((0, 1)),
             lambda: choose.choice(marks) + choose.choice((0, 0, 1, 2)), lambda: choose.randint(first, last))
    places = {last}
    while len(places) < min(count, last - first):
        places.add(min(last, choose.choices(kinds, (3, 2, 3, 2))[0]()))
    return [(number, cut, choose.choice(FATES), choose.randrange(1 << 31)) for number, cut in enumerate(sorted(places))]


def whole_log_problems(directory, load, log):
    """Is the log understood? All of it, applied, must be the disk as it was left."""
    image = directory / "whole.img"
    run("cp", "--sparse=always", load.disk.base, image)
    file = os.open(image, os.O_RDWR)
    for entry in log.entries:
        log.apply(entry, file)
    os.close(file)
    same = subprocess.run(["cmp", "-n", str(DISK_SIZE - MARKS_SIZE), image, load.disk.image], capture_output=True, text=True)
    return [] if same.returncode == 0 else [f"the log of writes is not what happened to the disk: {same.stdout}"]


def replay(root, load, arguments, seed, until_found=False):
    """Checks the cuts of a load. Figures and problems."""
    log = WriteLog(load.disk.log, DISK_SIZE - MARKS_SIZE)
    if set(log.marks) != set(range(len(load.disk.marks))):
        raise RuntimeError("marks are missing in the log of writes")
    scratch = Scratch(root)
    cuts, results = queue.Queue(), queue.Queue()
    chosen = choose_cuts(log, arguments.cuts, seed)
    for cut in chosen:
        cuts.put(cut)
    workers = [Worker(i, scratch.mount, load, log, arguments.bin, cuts, results, root) for i in range(arguments.jobs)]
    figures = {"cuts": 0, **{f"cuts_{fate}": 0 for fate in FATES}, "writes_lost_or_torn": 0, "epochs_expected": 0,
               "points_read": 0, "clones_read": 0, "indexes_rebuilt": 0}
    problems = []
    try:
        for worker in workers:
            worker.start()
        for _ in chosen:
            cut, fate, check, harmed, found = results.get()
            figures["cuts"] += 1
            figures[f"cuts_{fate}"] += 1
            figures["writes_lost_or_torn"] += harmed
            if check:
                figures["epochs_expected"] += check.epochs
                figures["points_read"] += check.points
                figures["clones_read"] += check.clones
                figures["indexes_rebuilt"] += check.rebuilt
            problems += found
            for problem in found:
                print(f"{'found' if until_found else 'LOST'}: {problem}", flush=True)
            if until_found and problems:
                break
        if not until_found:
            problems += whole_log_problems(scratch.mount, load, log)
    finally:
        while not cuts.empty():
            cuts.get_nowait()
        for worker in workers:
            if worker.ident:
                worker.join()
            os.close(worker.images.image)
        log.close()
        scratch.end()
    return log.counts() | figures, problems


def record(root, kind, arguments, seed, seconds, **lie):
    load = Load(root, kind, arguments.bin, seed, **lie)
    load.run(seconds)
    return load


def one_file_system(kind, arguments, seed):
    started, root = time.monotonic(), pathlib.Path(tempfile.mkdtemp(prefix=f"tidemark-powercut-{kind}-"))
    load = record(root, kind, arguments, seed, arguments.seconds)
    figures, problems = replay(root, load, arguments, seed)
    figures |= load.figures() | {"lost": len(problems), "seconds": round(time.monotonic() - started, 1)}
    if figures["flushes"] == 0:
        problems.append("no flush ever reached the disk: this run has shown nothing")
    print(f"{kind}: " + ", ".join(f"{name} {value}" for name, value in figures.items()), flush=True)
    if problems or arguments.keep:
        print(f"left in place: {root}")
    else:
        shutil.rmtree(root)
    return figures, problems


def planted(bug, kind, arguments, seed):
    """A server that lies must be found out."""
    root = pathlib.Path(tempfile.mkdtemp(prefix=f"tidemark-powercut-{bug}-"))
    load = record(root, kind, arguments, seed, min(arguments.seconds, 6),
                  program=arguments.liar, environment={"TIDEMARK_PLANTED_BUG": bug})
    figures, problems = replay(root, load, arguments, seed, until_found=True)
    print(f"planted {bug}: {'found' if problems else 'NOT FOUND'} after {figures['cuts']} cuts on {kind}", flush=True)
    shutil.rmtree(root)
    return bool(problems)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of the binaries")
    parser.add_argument("--liar", type=pathlib.Path, help="tidemarkd_planted; without it no bug is planted")
    parser.add_argument("--cuts", type=int, default=60, help="all file systems together")
    parser.add_argument("--fs", choices=("ext4", "xfs"), action="append", help="default: both")
    parser.add_argument("--seconds", type=float, default=12, help="of load on each file system")
    parser.add_argument("--jobs", type=int, default=2, help="images that are checked at a time")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--json", type=pathlib.Path, help="write the figures there")
    parser.add_argument("--keep", action="store_true", help="leave the files in place")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: it makes loop devices and mounts them")
    arguments.bin = arguments.bin.resolve()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 31)
    print(f"seed {seed}", flush=True)
    kinds = arguments.fs or ["ext4", "xfs"]
    arguments.cuts = max(1, arguments.cuts // len(kinds))
    figures, failed = {"seed": seed}, False
    for kind in kinds:
        figures[kind], problems = one_file_system(kind, arguments, seed)
        figures[kind]["problems"] = problems
        failed = failed or bool(problems)
    if arguments.liar:
        arguments.liar = arguments.liar.resolve()
        figures["planted_found"] = planted("log_unsynced", kinds[0], arguments, seed)
        failed = failed or not figures["planted_found"]
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
