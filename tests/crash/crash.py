#!/usr/bin/env python3
"""SIGKILL loops: kills the real server and the real agents under load, and proves that nothing acknowledged is lost.

Several machines, each with two disks (regular files), change and synchronise without pause; at seeded random moments
the server or an agent is killed, some of the time while the server settles, folds, drops points or makes its index
again, for its threads are named after that. What each disk held when a synchronisation began is kept here, outside the
processes under test, and is the only authority on what a point must contain. Rules, after kills of the server and in
full at the end:

  - every epoch that an agent reported as durable is there, and reads back byte for byte (of machines whose ladder thins
    their points out: the newest one);
  - every other point that is there equals what the machine's disks held together at the start of some synchronisation:
    whole, never a mixture;
  - a disk of a clone, which somebody writes to over NBD, is as it was after some write: after none before the last that
    was flushed or had FUA.

With --liar a server that answers flushes without doing anything must be found out by the last of these.

Prints kills, epochs_checked and lost; exit status 1 when anything was lost or wrong, or when no kill fell into one of
these works. A seed repeats the choices, not the kernel's timing.
"""
import argparse
import json
import pathlib
import random
import shutil
import sys
import tempfile
import threading
import time

from parts import NARROW, SYNC_SECONDS_MAX, CloneUser, FileSystem, Machine, Server, disks_of, is_dropped, points_of, read_point

DISK_SIZES = (6 * 1024 * 1024, 1024 * 1024 + 1536)  # the second one ends in a short granule
KILL_WINDOW_SECONDS = 0.6
WAIT_SECONDS_MAX = 15  # for a work to begin
FILE_SYSTEM_SIZE = 3 << 30
LIAR_KILLS_MAX = 40
WORKS = ("settle", "fold", "drop", "rebuild")


class Checker:
    def __init__(self, word):
        self.word, self.checked, self.lost, self.problems = word, set(), 0, []

    def problem(self, text):
        self.lost += 1
        self.problems.append(text)
        print(f"{self.word}: {text}", flush=True)

    def take(self, clones):
        for clone in clones:
            while clone.problems:
                self.problem(clone.problems.pop())

    def check(self, server, machine, everything):
        expected, admin = dict(machine.expected), server.admin()
        disks = disks_of(admin, machine.label)
        if not disks:
            if expected:
                self.problem(f"{machine.label}: no disks, though epochs were acknowledged")
            return
        there = points_of(admin, machine.label)
        missing = set(expected) - there
        if machine.ladder:
            missing = {epoch for epoch in missing if epoch > max(there, default=0)}
        for epoch in sorted(missing):
            self.problem(f"{machine.label}: epoch {epoch} was acknowledged and is not there")
        chosen = sorted(there) if everything else sorted(there)[-2:]
        for epoch in chosen:
            got = read_point(admin, machine.label, epoch, disks)
            if got is None:
                if not machine.ladder or not is_dropped(admin, machine.label, epoch):
                    self.problem(f"{machine.label}: epoch {epoch} is listed and cannot be read")
                continue
            if epoch in expected and got != expected[epoch]:
                self.problem(f"{machine.label}: epoch {epoch} is not what was acknowledged")
            elif got not in machine.held:
                self.problem(f"{machine.label}: epoch {epoch} is a mixture that never was")
            self.checked.add((machine.label, epoch))


class Killer:
    """Kills the server at a moment of its choice, and starts it again."""

    def __init__(self, server, choose):
        self.server, self.choose = server, choose
        self.works = dict.fromkeys(WORKS, 0)  # kills that fell into it
        self.kills = 0

    def kill(self):
        work = min(WORKS, key=self.works.get) if self.choose.random() < 0.5 else None
        if work == "rebuild":
            self._kill()
            self.server.lose_index()
            self.server.launch()
        if work:
            self._await(work)
        self._kill()
        self.server.start()

    def _await(self, work):
        end = time.monotonic() + WAIT_SECONDS_MAX
        while time.monotonic() < end and self.server.process.poll() is None:
            if f"td-{work}" in self.server.threads():
                return
            time.sleep(0.0005)

    def _kill(self):
        names = self.server.halt()
        self.server.kill()
        self.kills += 1
        for work in WORKS:
            self.works[work] += f"td-{work}" in names


def loop(root, kind, kills_wanted, arguments, seed, word="LOST", **lie):
    """One server, killed so often. Figures and what was wrong."""
    started, stopping, checker, choose = time.monotonic(), threading.Event(), Checker(word), random.Random(f"{seed} {kind}")
    root.mkdir()
    file_system = FileSystem(root, kind, FILE_SYSTEM_SIZE) if kind != "none" else None
    server = Server(arguments.bin, (file_system.mount if file_system else root) / "data", root / "server.log", **lie)
    killer, kills_agent = Killer(server, choose), 0
    machines = [Machine(f"machine{i}", server, root, seed, stopping, DISK_SIZES, ladder=NARROW if i % 2 else None)
                for i in range(arguments.machines)]
    clones = [CloneUser(f"clone{i}", machine.label, server, seed, stopping) for i, machine in enumerate(machines[:2])]
    try:
        server.init()
        server.start()
        for machine in machines:
            machine.enroll()
        for thread in (*machines, *clones):
            thread.start()
        checked_at = 0
        while killer.kills + kills_agent < kills_wanted and not checker.lost:
            time.sleep(choose.random() * KILL_WINDOW_SECONDS)
            if choose.random() < 0.5:
                killer.kill()
                if killer.kills >= checked_at + 4:
                    checked_at = killer.kills
                    checker.check(server, choose.choice(machines), everything=False)
            elif choose.choice(machines).kill_agent():
                kills_agent += 1
            checker.take(clones)
            raise_failure((*machines, *clones))
        stopping.set()
        for thread in (*machines, *clones):
            thread.join(timeout=SYNC_SECONDS_MAX)
        raise_failure((*machines, *clones))
        # The end in full, after one more unclean restart.
        killer.kill()
        for machine in machines:
            checker.check(server, machine, everything=True)
        for clone in clones:
            clone.look_again()
        checker.take(clones)
        cold = server.admin().metrics().get("tidemark_cold_segments", 0)
        code = server.stop()
        if code != 0:
            checker.problem(f"the server ended with status {code} when it was asked to stop")
    finally:
        stopping.set()
        for machine in machines:
            machine.kill_agent()
        server.end()
        if file_system:
            file_system.end()
    acknowledged = sum(len(machine.expected) for machine in machines)
    if acknowledged < kills_wanted // 4:
        checker.problem(f"only {acknowledged} epochs were acknowledged: this run has shown nothing")
    if sum(clone.flushes for clone in clones) < kills_wanted // 4:
        checker.problem("hardly anything was flushed to a clone: of that this run has shown nothing")
    for work, kills in killer.works.items():
        if kills == 0 and kills_wanted >= 50:
            checker.problem(f"no kill fell into a {work}: of that this run has shown nothing")
    figures = {"kills": killer.kills + kills_agent, "kills_server": killer.kills, "kills_agent": kills_agent,
               **{f"kills_in_{work}": kills for work, kills in killer.works.items()},
               "syncs": sum(machine.syncs for machine in machines), "epochs_acknowledged": acknowledged,
               "epochs_checked": len(checker.checked), "clone_writes": sum(clone.writes for clone in clones),
               "clone_flushes": sum(clone.flushes for clone in clones), "clone_checks": sum(clone.checks for clone in clones),
               "clone_writes_undone": sum(clone.undone for clone in clones), "lost": checker.lost, "cold_segments": int(cold),
               "seconds": round(time.monotonic() - started, 1)}
    return figures, checker.problems


def raise_failure(threads):
    for thread in threads:
        if thread.failure:
            raise thread.failure


def planted(root, arguments, seed):
    """A server that lies must be found out."""
    bug = "flush_ignored"
    _, problems = loop(root / bug, "none", LIAR_KILLS_MAX, arguments, seed, word="found", program=arguments.liar.resolve(),
                       environment={"TIDEMARK_PLANTED_BUG": bug})
    found = any("what was flushed" in problem for problem in problems)
    print(f"planted {bug}: {'found' if found else 'NOT FOUND'}", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of the binaries")
    parser.add_argument("--liar", type=pathlib.Path, help="tidemarkd_planted; without it no bug is planted")
    parser.add_argument("--kills", type=int, default=50, help="all file systems together")
    parser.add_argument("--machines", type=int, default=3)
    parser.add_argument("--fs", choices=("none", "ext4", "xfs"), action="append",
                        help="file system of its own for the data directory, on a loop device (needs root); may be given "
                             "more than once; default: none")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--json", type=pathlib.Path, help="write the figures there")
    parser.add_argument("--keep", action="store_true", help="leave the files in place")
    arguments = parser.parse_args()
    arguments.bin = arguments.bin.resolve()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 31)
    root = pathlib.Path(tempfile.mkdtemp(prefix="tidemark-crash-"))
    print(f"seed {seed}, {arguments.kills} kills, {arguments.machines} machines, files in {root}", flush=True)
    kinds, results, failed = arguments.fs or ["none"], {"seed": seed}, False
    for kind in kinds:
        figures, problems = loop(root / kind, kind, arguments.kills // len(kinds), arguments, seed)
        failed = failed or bool(problems)
        print(f"file system: {kind}")
        for name, value in figures.items():
            print(f"  {name}: {value}")
        results[kind] = figures | {"problems": problems}
    if arguments.liar:
        results["planted_found"] = planted(root, arguments, seed)
        failed = failed or not results["planted_found"]
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    if failed or arguments.keep:
        print(f"left in place: {root}")
    else:
        shutil.rmtree(root)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
