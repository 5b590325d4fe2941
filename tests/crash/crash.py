#!/usr/bin/env python3
"""SIGKILL loops: kills the real server and the real agents under load, and proves that nothing acknowledged is lost.

Several machines, each with two disks (regular files), change and synchronise without pause; at seeded random moments
the server or an agent is killed. What each disk held when a synchronisation began is kept here, outside the processes
under test, and is the only authority on what a point must contain. Rules, after every kill of the server and in full at the end:

  - every epoch that an agent reported as durable is there, and reads back byte for byte;
  - every other point that is there equals what the machine's disks held together at the start of some synchronisation:
    whole, never a mixture.

Prints kills, epochs_checked and lost; exit status 1 when anything was lost or wrong. A seed repeats the choices, not
the kernel's timing.
"""
import argparse
import hashlib
import http.client
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

DISK_SIZES = (6 * 1024 * 1024, 1024 * 1024 + 1536)  # the second one ends in a short granule
START_SECONDS_MAX = 60
SYNC_SECONDS_MAX = 120
KILL_WINDOW_SECONDS = 0.6


class AdminSocket(http.client.HTTPConnection):
    """The admin API of the server, over its unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def fetch(self, target):
        self.request("GET", target)
        response = self.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"GET {target}: {response.status} {body[:300]!r}")
        return body


class Server:
    def __init__(self, binaries, root):
        self.binaries, self.data, self.log = binaries, root / "data", open(root / "server.log", "ab")
        self.address = "127.0.0.1:0"
        subprocess.run([binaries / "tidemarkd", "init", self.data, "--partitions", "2", "--address", "127.0.0.1:7443"],
                       check=True, stdout=self.log, stderr=self.log)
        # Small segments that are emptied as soon as they are full: kills fall into settling as well.
        self.config = root / "tidemarkd.toml"
        self.config.write_text('[storage]\nsegment_size = "8MiB"\nsettle_after = "1s"\n')
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [self.binaries / "tidemarkd", "run", "--data", self.data, "--listen", self.address,
             "--config", self.config],
            stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        if "serving on " not in line:
            raise RuntimeError(f"tidemarkd did not start, it said: {line!r}; see {self.log.name}")
        self.address = line.split("serving on ")[1].split(",")[0].strip()

    def kill_and_restart(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.start()

    def admin(self):
        return AdminSocket(self.data / "admin.sock")

    def stop(self):
        self.process.terminate()
        return self.process.wait(timeout=60)


class Machine(threading.Thread):
    """Changes its disks and synchronises them, over and over, and remembers what every epoch must hold."""

    def __init__(self, number, server, binaries, root, seed, stopping):
        super().__init__(name=f"machine{number}", daemon=True)
        self.label, self.server, self.binaries, self.stopping = f"machine{number}", server, binaries, stopping
        self.random = random.Random(seed * 1000 + number)
        self.root = root / self.label
        self.root.mkdir()
        self.state = self.root / "state"
        self.disks = [self.root / f"disk{i}.img" for i in range(len(DISK_SIZES))]
        for disk, size in zip(self.disks, DISK_SIZES):
            disk.write_bytes(bytes(size))
        self.log = open(self.root / "agent.log", "ab")
        self.expected = {}    # epoch that was acknowledged -> digests of the disks
        self.held = set()     # digests of the disks at the start of every synchronisation
        self.agent = None     # the process that is synchronising now
        self.lock = threading.Lock()
        self.failure = None
        self.syncs = 0

    def tool(self, *arguments):
        return [self.binaries / "tidemark-agent", *arguments, "--state-dir", self.state]

    def enroll(self, token):
        subprocess.run(self.tool("enroll", self.server.address, "--token", token, "--name", self.label),
                       check=True, stdout=self.log, stderr=self.log)
        subprocess.run(self.tool("protect", *self.disks), check=True, stdout=self.log, stderr=self.log)

    def change_disks(self):
        for disk, size in zip(self.disks, DISK_SIZES):
            with open(disk, "r+b") as f:
                for _ in range(self.random.randint(1, 12)):
                    length = self.random.choice((512, 4096, 4096, 65536, 300_000))
                    offset = self.random.randrange(0, size - 512)
                    length = min(length, size - offset)
                    f.seek(offset)
                    kind = self.random.random()
                    f.write(bytes(length) if kind < 0.2 else
                            self.random.randbytes(64) * (length // 64 + 1) if kind < 0.5 and length >= 4096 else
                            self.random.randbytes(length))
                    f.truncate(size)

    def digests(self):
        return tuple(hashlib.sha256(disk.read_bytes()).hexdigest() for disk in self.disks)

    def sync_once(self):
        with self.lock:
            self.agent = subprocess.Popen(self.tool("sync", "--once", "--json"), stdout=subprocess.PIPE,
                                          stderr=self.log, text=True)
        out, _ = self.agent.communicate(timeout=SYNC_SECONDS_MAX)
        self.syncs += 1
        if self.agent.returncode != 0:
            return None
        return json.loads(out)

    def run(self):
        try:
            while not self.stopping.is_set():
                self.change_disks()
                digests = self.digests()
                self.held.add(digests)
                report = self.sync_once()
                if report is not None and report.get("point"):
                    self.expected[report["epoch"]] = digests
        except Exception as error:  # reported by the main thread, which ends the run
            self.failure = error

    def kill_agent(self):
        with self.lock:
            if self.agent is None or self.agent.poll() is not None:
                return False
            self.agent.send_signal(signal.SIGKILL)
            return True


def read_point(admin, machine, epoch, disks):
    return tuple(hashlib.sha256(admin.fetch(f"/v1/machines/{machine}/points/epoch:{epoch}/disks/{disk}/data")).hexdigest()
                 for disk in disks)


class Checker:
    def __init__(self):
        self.checked, self.lost, self.problems = set(), 0, []

    def problem(self, text):
        self.lost += 1
        self.problems.append(text)
        print(f"LOST: {text}", flush=True)

    def check(self, server, machine, everything):
        expected, admin = dict(machine.expected), server.admin()
        info = json.loads(admin.fetch(f"/v1/machines/{machine.label}"))
        disks = sorted((d["disk"] for d in info["disks"]))
        if not disks:
            if expected:
                self.problem(f"{machine.label}: no disks, though epochs were acknowledged")
            return
        points = json.loads(admin.fetch(f"/v1/machines/{machine.label}/points?limit=100000"))["points"]
        there = {point["epoch"] for point in points}
        for epoch in sorted(set(expected) - there):
            self.problem(f"{machine.label}: epoch {epoch} was acknowledged and is not there")
        chosen = sorted(there) if everything else sorted(there)[-2:]
        for epoch in chosen:
            got = read_point(admin, machine.label, epoch, disks)
            if epoch in expected and got != expected[epoch]:
                self.problem(f"{machine.label}: epoch {epoch} is not what was acknowledged")
            elif got not in machine.held:
                self.problem(f"{machine.label}: epoch {epoch} is a mixture that never was")
            self.checked.add((machine.label, epoch))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of the binaries")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--machines", type=int, default=3)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--json", type=pathlib.Path, help="write the figures there")
    parser.add_argument("--keep", action="store_true", help="leave the files in place")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 31)
    choose = random.Random(seed)
    root = pathlib.Path(tempfile.mkdtemp(prefix="tidemark-crash-"))
    print(f"seed {seed}, {arguments.kills} kills, {arguments.machines} machines, files in {root}", flush=True)

    started, stopping, checker = time.monotonic(), threading.Event(), Checker()
    kills = {"server": 0, "agent": 0}
    server = Server(arguments.bin.resolve(), root)
    machines = [Machine(i, server, arguments.bin.resolve(), root, seed, stopping) for i in range(arguments.machines)]
    try:
        for machine in machines:
            token = subprocess.run([arguments.bin / "tidemark", "token", "create", "--json", "--socket",
                                    server.data / "admin.sock"], check=True, capture_output=True, text=True).stdout
            machine.enroll(json.loads(token)["token"])
        for machine in machines:
            machine.start()
        while sum(kills.values()) < arguments.kills:
            time.sleep(choose.random() * KILL_WINDOW_SECONDS)
            if choose.random() < 0.5:
                server.kill_and_restart()
                kills["server"] += 1
                if kills["server"] % 4 == 0:
                    checker.check(server, choose.choice(machines), everything=False)
            elif choose.choice(machines).kill_agent():
                kills["agent"] += 1
            for machine in machines:
                if machine.failure:
                    raise machine.failure
            if checker.lost:
                break
        stopping.set()
        for machine in machines:
            machine.join(timeout=SYNC_SECONDS_MAX)
            if machine.failure:
                raise machine.failure
        # The end in full, after one more unclean restart.
        server.kill_and_restart()
        kills["server"] += 1
        for machine in machines:
            checker.check(server, machine, everything=True)
        cold = sum(float(line.split()[-1]) for line in server.admin().fetch("/metrics").decode().splitlines()
                   if line.startswith("tidemark_cold_segments{"))
        code = server.stop()
        if code != 0:
            checker.problem(f"the server ended with status {code} when it was asked to stop")
        acknowledged = sum(len(machine.expected) for machine in machines)
        if acknowledged < arguments.kills // 4:
            checker.problem(f"only {acknowledged} epochs were acknowledged: this run has shown nothing")
        figures = {"kills": sum(kills.values()), "kills_server": kills["server"], "kills_agent": kills["agent"],
                   "syncs": sum(machine.syncs for machine in machines), "epochs_acknowledged": acknowledged,
                   "epochs_checked": len(checker.checked), "lost": checker.lost, "seed": seed,
                   "cold_segments": int(cold),
                   "seconds": round(time.monotonic() - started, 1)}
        for name, value in figures.items():
            print(f"{name}: {value}")
        if arguments.json:
            arguments.json.write_text(json.dumps(figures | {"problems": checker.problems}, indent=2) + "\n")
    finally:
        stopping.set()
        for machine in machines:
            machine.kill_agent()
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
    if checker.lost or arguments.keep:
        print(f"left in place: {root}")
    else:
        shutil.rmtree(root)
    return 1 if checker.lost else 0


if __name__ == "__main__":
    sys.exit(main())
