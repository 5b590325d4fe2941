"""What the crash loops and the power-cut rig are made of: the real server, and machines that change and synchronise
without pause and remember, outside the processes under test, what each epoch must hold.
"""
import contextlib
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
import threading
import time

from nbd_client import FUA, WRITE_ZEROES, NbdClient

START_SECONDS_MAX = 60
SYNC_SECONDS_MAX = 120
# Small segments that are emptied as soon as they are full, and nothing held back: everything the store does is done soon.
CONFIG = """[storage]
segment_size = "8MiB"
reserve_segments = 1
free_space_min = "64MiB"
settle_after = "1s"
[retention]
removal_holdoff = "0s"
"""


MKFS = {"ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"], "xfs": ["mkfs.xfs", "-q", "-f"]}
NARROW = ("--dense", "2s", "--rung", "4s:12s")  # a ladder that drops points all the time


def run(*command):
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout.strip()


def unmount(mount):
    """A killed process that had a ring lets go of its files a little later."""
    end = time.monotonic() + 30
    while subprocess.run(["umount", mount], capture_output=True).returncode != 0:
        if time.monotonic() > end:
            raise RuntimeError(f"{mount} cannot be unmounted")
        time.sleep(0.02)


class FileSystem:
    """An ext4 or XFS on a loop device, mounted at `mount`."""

    def __init__(self, root, kind, size):
        self.mount, self.loop = root / kind, None
        self.mount.mkdir()
        image = root / f"{kind}.img"
        with open(image, "wb") as file:
            file.truncate(size)
        run(*MKFS[kind], image)
        self.loop = run("losetup", "--find", "--show", "--direct-io=on", image)
        try:
            run("mount", self.loop, self.mount)
        except subprocess.CalledProcessError:
            run("losetup", "--detach", self.loop)
            raise

    def end(self):
        unmount(self.mount)
        run("losetup", "--detach", self.loop)


class AdminSocket(http.client.HTTPConnection):
    """The admin API of the server, over its unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def fetch(self, target, missing_ok=False, epoch=None):
        """`epoch`: only if the answer is of this one, and not of the newest point before it."""
        self.request("GET", target)
        response = self.getresponse()
        body = response.read()
        if missing_ok and response.status == 404 or epoch and response.getheader("Tidemark-Epoch") not in (None, str(epoch)):
            return None
        if response.status != 200:
            raise RuntimeError(f"GET {target}: {response.status} {body[:300]!r}")
        return body

    def await_openings(self, seconds=300):
        """Until no partition is being opened any more: one whose index is made again takes its time."""
        end = time.monotonic() + seconds
        while True:
            self.request("GET", "/v1/health")
            body = self.getresponse().read()
            if not any(partition["state"] in ("opening", "rebuilding") for partition in json.loads(body)["partitions"]):
                return self
            if time.monotonic() > end:
                raise RuntimeError(f"partitions are still being opened after {seconds} s: {body[:300]!r}")
            time.sleep(0.05)

    def metrics(self):
        """{name: sum over all labels}"""
        values = {}
        for line in self.fetch("/metrics").decode().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = name.split("{")[0]
                values[name] = values.get(name, 0) + float(value)
        return values


class Server:
    """tidemarkd on a data directory. `program`: another one than the real tidemarkd, with its environment."""

    def __init__(self, binaries, data, log, address="127.0.0.1:0", program=None, environment=None):
        self.binaries, self.data, self.log, self.address = binaries, data, open(log, "ab"), address
        self.program, self.environment = program or binaries / "tidemarkd", environment
        self.config = pathlib.Path(log).with_suffix(".toml")
        self.config.write_text(CONFIG)
        self.process = None

    def init(self):
        subprocess.run([self.binaries / "tidemarkd", "init", self.data, "--partitions", "2", "--address", "127.0.0.1:7443"],
                       check=True, stdout=self.log, stderr=self.log)

    def launch(self):
        self.process = subprocess.Popen(
            [self.program, "run", "--data", self.data, "--listen", self.address, "--config", self.config],
            stdout=subprocess.PIPE, stderr=self.log, text=True, env={**os.environ, **(self.environment or {})})

    def await_start(self):
        watchdog = threading.Timer(START_SECONDS_MAX, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        if "serving on " not in line:
            raise RuntimeError(f"tidemarkd did not start, it said: {line!r}; see {self.log.name}")
        self.address = line.split("serving on ")[1].split(",")[0].strip()

    def start(self):
        self.launch()
        self.await_start()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self._gone()

    def stop(self):
        self.process.terminate()
        self._gone()
        return self.process.returncode

    def _gone(self):
        self.process.wait(timeout=60)
        self.process.stdout.close()

    def end(self):
        """Whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.log.close()

    def lose_index(self):
        """Of a server that does not run: its next start has to make the indexes again."""
        for index in sorted(self.data.glob("partition-*/index")):
            gone = index.with_name("index.gone")
            index.rename(gone)
            directory = os.open(index.parent, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
            shutil.rmtree(gone)

    def halt(self):
        """Stops every thread where it is, for a SIGKILL, and tells what they were named after."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return self.threads()

    def threads(self):
        """Names of its threads: they are named after what they do (base/thread_task.h)."""
        names = set()
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").glob("*"):
            try:
                names.add((task / "comm").read_text().strip())
            except OSError:
                pass  # it ended meanwhile
        return names

    def admin(self):
        return AdminSocket(self.data / "admin.sock").await_openings()

    def cli(self, *arguments, check=True):
        return subprocess.run([self.binaries / "tidemark", *map(str, arguments), "--json", "--socket",
                               self.data / "admin.sock"], check=check, capture_output=True, text=True)


class Machine(threading.Thread):
    """Changes its disks and synchronises them, over and over, and remembers what every epoch must hold."""

    def __init__(self, label, server, root, seed, stopping, sizes, ladder=None, changes=(1, 12)):
        super().__init__(name=label, daemon=True)
        self.label, self.server, self.stopping, self.sizes = label, server, stopping, sizes
        self.ladder, self.changes = ladder, changes
        self.random = random.Random(f"{seed} {label}")
        self.root = root / self.label
        self.root.mkdir()
        self.state = self.root / "state"
        self.disks = [self.root / f"disk{i}.img" for i in range(len(sizes))]
        for disk, size in zip(self.disks, sizes):
            disk.write_bytes(bytes(size))
        self.log = open(self.root / "agent.log", "ab")
        self.expected = {}    # epoch that was acknowledged -> digests of the disks
        self.held = set()     # digests of the disks at the start of every synchronisation
        self.agent = None     # the process that is synchronising now
        self.lock = threading.Lock()
        self.failure = None
        self.syncs = 0

    def tool(self, *arguments):
        return [self.server.binaries / "tidemark-agent", *arguments, "--state-dir", self.state]

    def enroll(self):
        token = json.loads(self.server.cli("token", "create").stdout)["token"]
        subprocess.run(self.tool("enroll", self.server.address, "--token", token, "--name", self.label),
                       check=True, stdout=self.log, stderr=self.log)
        subprocess.run(self.tool("protect", *self.disks), check=True, stdout=self.log, stderr=self.log)
        if self.ladder:
            self.server.cli("ladder", "set", self.label, *self.ladder)

    def change_disks(self):
        for disk, size in zip(self.disks, self.sizes):
            with open(disk, "r+b") as f:
                for _ in range(self.random.randint(*self.changes)):
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

    def acknowledged(self, epoch, digests):
        self.expected[epoch] = digests

    def step(self):
        self.change_disks()
        digests = self.digests()
        self.held.add(digests)
        report = self.sync_once()
        if report is not None and report.get("point"):
            self.acknowledged(report["epoch"], digests)

    def run(self):
        try:
            while not self.stopping.is_set():
                self.step()
        except Exception as error:  # reported by the main thread, which ends the run
            self.failure = error

    def kill_agent(self):
        with self.lock:
            if self.agent is None or self.agent.poll() is not None:
                return False
            self.agent.send_signal(signal.SIGKILL)
            return True


class CloneUser(threading.Thread):
    """Makes a clone of a machine's newest point, writes to a disk of it over NBD, one request after the other, and
    remembers what the disk holds after each.

    `states` has digests of the disk: after `flushed` of them all that was written before is promised to be durable. What a
    death of the server leaves is one of those from there on, for what was not flushed goes as a whole, from some moment
    on; whenever the server is back that is looked at, and the writing goes on from there.
    """

    def __init__(self, name, machine, server, seed, stopping):
        super().__init__(name=name, daemon=True)
        self.machine, self.server, self.stopping = machine, server, stopping
        self.random = random.Random(f"{seed} {name}")
        self.export = f"clone/{name}/disk1"
        self.content, self.states, self.flushed = None, [], 0
        self.writes = self.flushes = self.checks = self.undone = 0
        self.problems, self.failure = [], None

    def promised(self):
        """What was written up to now survives whatever happens."""
        self.flushed = len(self.states) - 1
        self.flushes += 1

    def run(self):
        try:
            while not self.stopping.is_set() and not self.problems:
                try:
                    self.use()
                except OSError:  # the server is away
                    self.stopping.wait(0.05)
        except Exception as error:  # reported by the main thread, which ends the run
            self.failure = error

    def use(self):
        if self.content is None:
            # It may be there although the answer did not come.
            self.server.cli("clone", "create", self.machine, "--at", "latest", "--name", self.name, check=False)
            self.created()
        with contextlib.closing(NbdClient(self.server.data / "nbd.sock", self.export)) as client:
            self.look(client.read(0, client.size))
            while not self.stopping.is_set():
                self.write(client)

    def created(self):
        with contextlib.closing(NbdClient(self.server.data / "nbd.sock", self.export)) as client:
            self.content = bytearray(client.read(0, client.size))
        self.states = [hashlib.sha256(self.content).digest()]

    def look_again(self):
        if self.content is not None:
            with contextlib.closing(NbdClient(self.server.data / "nbd.sock", self.export)) as client:
                self.look(client.read(0, client.size))

    def look(self, there):
        digest = hashlib.sha256(there).digest()
        if digest not in self.states[self.flushed:]:
            was = "as it was before that" if digest in self.states else "as it never was"
            self.problems.append(f"{self.export}: what was flushed is not there: the disk is {was}")
            return
        kept = len(self.states) - self.states[::-1].index(digest)
        self.checks += 1
        self.undone += len(self.states) - kept
        del self.states[kept:]
        self.content, self.flushed = bytearray(there), kept - 1

    def write(self, client):
        size = len(self.content)
        length = self.random.choice((512, 4096, 4096, 65536, 300_000))
        offset = self.random.randrange(0, size - 512)
        length = min(length, size - offset)
        kind, durable = self.random.random(), self.random.random() < 0.2
        data = bytes(length) if kind < 0.2 else self.random.randbytes(length)
        self.content[offset:offset + length] = data
        self.states.append(hashlib.sha256(self.content).digest())  # it may be done when the answer does not come
        if kind < 0.2:
            client.ask(WRITE_ZEROES, offset, length, flags=FUA if durable else 0)
        else:
            client.write(offset, data, FUA if durable else 0)
        self.writes += 1
        if not durable and self.random.random() < 0.2:
            client.flush()
            durable = True
        if durable:
            self.promised()
        time.sleep(self.random.random() * 0.01)


def read_point(admin, machine, epoch, disks):
    """Digests of a point's disks; None when the point is not there."""
    digests = []
    for disk in disks:
        data = admin.fetch(f"/v1/machines/{machine}/points/epoch:{epoch}/disks/{disk}/data", missing_ok=True,
                           epoch=epoch)
        if data is None:
            return None
        digests.append(hashlib.sha256(data).hexdigest())
    return tuple(digests)


def disks_of(admin, machine):
    """Numbers of its disks; None when the server does not know the machine."""
    body = admin.fetch(f"/v1/machines/{machine}", missing_ok=True)
    return None if body is None else sorted(disk["disk"] for disk in json.loads(body)["disks"])


def points_of(admin, machine):
    return {point["epoch"] for point in json.loads(admin.fetch(f"/v1/machines/{machine}/points?limit=100000"))["points"]}


def is_dropped(admin, machine, epoch):
    """Of a point that cannot be read: its ladder has dropped it since it was listed."""
    end = time.monotonic() + 30
    while epoch in points_of(admin, machine):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def is_removed(admin, machine):
    """Of a machine whose removal was acknowledged, with no time in which it could be taken back: soon it is gone."""
    end = time.monotonic() + 30
    while admin.fetch(f"/v1/machines/{machine}", missing_ok=True) is not None:
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
