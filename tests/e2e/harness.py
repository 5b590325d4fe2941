"""What every end-to-end test stands on: a staging server and agents, as real processes in a temporary directory.

    class TestSomething(Case):
        def test_behaviour(self):
            server = self.server()
            web1 = self.agent("web1", disks={"vda.img": 4 * MIB})
            ...

Nothing waits for a fixed time: wait_for() polls with a generous deadline. When a test ends, every line of WARN, ERROR or
CRITICAL in a log that the test did not allow (self.allow) fails it, and so does a process that died by itself or a
sanitizer's report.
"""
import calendar
import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

KIB, MIB = 1 << 10, 1 << 20
DEADLINE = int(os.environ.get("TIDEMARK_DEADLINE", 90))  # seconds, for anything that is waited for; never reached on a machine that makes progress
HERE = pathlib.Path(__file__).resolve().parent


def _binaries():
    given = os.environ.get("TIDEMARK_BIN")
    return pathlib.Path(given) if given else HERE.parent.parent / "build/release/bin"


BIN = _binaries()
# Where the programs of a sanitizer build report to; others do not look at it.
SANITIZERS = {name: os.environ.get(name, "") for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS")}
TROUBLE = re.compile(r"^\S*\d\d:\d\d:\d\d\S* (\[?(warning|warn|error|critical)\]?)\b", re.I)


def wait_for(what, condition, deadline=DEADLINE):
    """Polls until `condition()` is true and returns what it gave."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline} s for {what}")
        time.sleep(0.02)


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seconds_of(text):
    """Of a time with microseconds in UTC, exactly as far as a float goes."""
    whole, fraction = re.fullmatch(r"(.*?)(\.\d+)?Z", text).groups()
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(fraction or 0)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fill(path, size, seed=0, zero_share=0.3):
    """A disk image of random, compressible and zero stretches; the seed repeats it."""
    rng = random.Random(seed)
    with open(path, "wb") as file:
        file.truncate(size)
        position = 0
        while position < size:
            length = min(rng.choice((4096, 20480, 65536, 300_000)), size - position)
            kind = rng.random()
            if kind >= zero_share:
                file.seek(position)
                file.write(rng.randbytes(length) if kind > 0.6 else (rng.randbytes(32) * (length // 32 + 1))[:length])
            position += length


def change(path, seed, pieces=8):
    """Overwrites a few stretches of an image in place."""
    rng = random.Random(seed)
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        for _ in range(pieces):
            length = min(rng.choice((512, 4096, 50_000)), size)
            file.seek(rng.randrange(0, size - length + 1))
            file.write(rng.randbytes(length))


class Ended:
    """A program that ran to its end: exit status, its JSON (or None), stdout, stderr."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err
        try:
            self.json = json.loads(out) if out.strip() else None
        except ValueError:
            self.json = None

    @property
    def error(self):
        """The error object that --json printed."""
        return (self.json or {}).get("error") or {}

    def __repr__(self):
        return f"exit {self.status}\nstdout: {self.out.strip()[-2000:]}\nstderr: {self.err.strip()[-2000:]}"


def run(command, timeout=DEADLINE, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout,
                          stdin=subprocess.DEVNULL, **options)
    return Ended(done.returncode, done.stdout, done.stderr)


class AdminSocket(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=DEADLINE)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Server:
    """One data directory and the tidemarkd that serves it."""

    def __init__(self, case, data, port, config=None, host="127.0.0.1"):
        self.case, self.data, self.port, self.config, self.host = case, pathlib.Path(data), port, config, host
        self.log_path = case.directory / f"{self.data.name}.log"
        self.process = None

    @property
    def address(self):
        return f"{self.host}:{self.port}"

    def init(self, partitions=2, data_directories=()):
        disks = [argument for directory in data_directories for argument in ("--data-directory", directory)]
        done = run([BIN / "tidemarkd", "init", self.data, "--partitions", partitions, "--address", self.address, *disks])
        self.case.assertEqual(done.status, 0, done)
        return self

    def command(self):
        command = [BIN / "tidemarkd", "run", "--data", self.data, "--listen", self.address]
        return command + (["--config", self.config] if self.config else [])

    def start(self):
        log = open(self.log_path, "ab")
        self.process = subprocess.Popen([str(part) for part in self.command()], stdout=subprocess.PIPE, stderr=log,
                                        stdin=subprocess.DEVNULL, text=True)
        log.close()
        line = self.process.stdout.readline()
        if "serving on" not in line:
            self.process.wait()
            raise AssertionError(f"tidemarkd did not start: exit {self.process.returncode}, it said {line!r}\n{self.log()[-3000:]}")
        return self

    def try_start(self):
        """For a server that is not expected to serve: what it said and its exit status, or None if it serves."""
        log = open(self.log_path, "ab")
        mark = log.tell()
        self.process = subprocess.Popen([str(part) for part in self.command()], stdout=subprocess.PIPE, stderr=log,
                                        stdin=subprocess.DEVNULL, text=True)
        log.close()
        line = self.process.stdout.readline()
        if "serving on" in line:
            return None
        out = line + self.process.stdout.read()
        status = self.process.wait(DEADLINE)
        self.process.stdout.close()
        self.process = None
        return Ended(status, out, self.log_path.read_text()[mark:])

    def stop(self):
        if self.process:
            self.process.terminate()
            self._gone(DEADLINE)
            return self.status

    def kill(self):
        self.process.kill()
        self._gone(DEADLINE)

    def _gone(self, timeout):
        self.status = self.process.wait(timeout)
        self.process.stdout.close()
        self.process = None

    def restart(self):
        self.kill()
        return self.start()

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    # --- asking it ---
    def cli(self, *arguments, timeout=DEADLINE):
        return run([BIN / "tidemark", "--data", self.data, "--json", *arguments], timeout)

    def ask(self, *arguments):
        """The JSON of a `tidemark` command that must go well."""
        done = self.cli(*arguments)
        self.case.assertEqual(done.status, 0, f"tidemark {arguments}: {done}")
        return done.json

    def token(self, *options):
        return self.ask("token", "create", "--ttl", "10m", *options)["token"]

    def machine(self, name):
        return self.ask("machine", "show", name)

    def points(self, name, *options):
        return self.ask("points", name, *options)["points"]

    def metrics(self):
        """{"name{labels}": value}"""
        connection = AdminSocket(self.data / "admin.sock")
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        values = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                values[name] = float(value)
        return values

    def metric(self, pattern):
        """Sum of all metrics whose name{labels} matches."""
        return sum(value for name, value in self.metrics().items() if re.search(pattern, name))


class Agent:
    """One source machine: its state directory and its disks, which are image files."""

    def __init__(self, case, server, name, state=None):
        self.case, self.server, self.name = case, server, name
        self.root = case.directory / name
        self.root.mkdir(exist_ok=True)
        self.state = state or self.root / "state"
        self.log_path = self.root / "agent.log"
        self.disks = []
        self.process = None

    def command(self, *arguments):
        return [str(part) for part in (BIN / "tidemark-agent", *arguments, "--state-dir", self.state, "--json")]

    def run(self, *arguments, timeout=DEADLINE):
        done = run(self.command(*arguments), timeout)
        with open(self.log_path, "a") as log:
            log.write(done.err)
        return done

    def must(self, *arguments):
        done = self.run(*arguments)
        self.case.assertEqual(done.status, 0, f"tidemark-agent {arguments}: {done}")
        return done.json

    def enroll(self, token=None, *options):
        self.must("enroll", self.server.address, "--token", token or self.server.token(), "--name", self.name, *options)
        return self

    def make_disk(self, name, size, seed=0):
        path = self.root / name
        if size < 0:  # incompressible, so that a rate limit gives it a known duration
            path.write_bytes(random.Random(seed).randbytes(-size))
        else:
            fill(path, size, seed)
        self.disks.append(path)
        return path

    def protect(self):
        self.must("protect", *self.disks)
        return self

    def set_option(self, line):
        """Adds a line to agent.toml, before its first section or key of the same name."""
        config = self.state / "agent.toml"
        key = line.split("=")[0].strip()
        text = config.read_text() if config.exists() else ""
        kept = [old for old in text.splitlines() if not re.match(rf"\s*{re.escape(key)}\s*=", old)]
        config.write_text("\n".join([line, *kept]) + "\n")

    def sync(self, *options):
        """One `sync --once` that must end well."""
        return self.must("sync", "--once", *options)

    def start(self, *arguments):
        """`run`, or another command that goes on; see finish()."""
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command(*(arguments or ("run",))), stdout=subprocess.PIPE, stderr=log,
                                            stdin=subprocess.DEVNULL, text=True)
        return self

    def finish(self, timeout=DEADLINE):
        out, _ = self.process.communicate(timeout=timeout)
        status, self.process = self.process.returncode, None
        return Ended(status, out, self.log()[-4000:])

    def stop(self):
        if self.process:
            self.process.terminate()
            return self.finish()

    def kill(self):
        self.process.kill()
        return self.finish()

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def status(self):
        return self.must("status")

    def digests(self):
        return {path.name: sha256(path) for path in self.disks}

    @property
    def id(self):
        return self.server.machine(self.name)["id"]


class Case(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        for program in ("tidemarkd", "tidemark-agent", "tidemark"):
            self.assertTrue(os.access(BIN / program, os.X_OK), f"{BIN / program} is missing: build first, or set TIDEMARK_BIN")
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="tidemark-e2e-"))
        # The file system of the machine that the tests run on may be full, and its disk slow.
        self.allowed = ["the staging file system fills up", 'staging is behind, .*why="the staging disk is slow']
        self.servers, self.agents, self.mounts, self.loops = [], [], [], []
        for name, options in SANITIZERS.items():
            os.environ[name] = f"{options}:log_path={self.directory}/sanitizer"
        self.addCleanup(self._clean)

    def allow(self, *patterns):
        """WARN and ERROR lines that match are part of this test."""
        self.allowed += patterns

    def server(self, name="data", config=None, partitions=2, start=True, data_directories=(), host="127.0.0.1"):
        if isinstance(config, str):
            path = self.directory / f"{name.replace('/', '-')}.toml"
            path.write_text(config)
            config = path
        server = Server(self, self.directory / name, free_port(), config, host).init(partitions, data_directories)
        self.servers.append(server)
        return server.start() if start else server

    def agent(self, name, server=None, disks=None, enroll=True):
        agent = Agent(self, server or self.servers[0], name)
        self.agents.append(agent)
        for seed, (disk, size) in enumerate((disks or {}).items()):
            agent.make_disk(disk, size, seed)  # a size below zero: incompressible
        if enroll:
            agent.enroll()
            if agent.disks:
                agent.protect()
        return agent

    def export(self, server, machine, at="latest"):
        """Exports a point and gives {disk name: SHA-256 of the file}, having checked the manifest."""
        out = pathlib.Path(tempfile.mkdtemp(dir=self.directory, prefix="export-"))
        manifest = server.ask("export", machine, "--at", at, "--output", f"{out}/")
        digests = {}
        for disk in manifest["disks"]:
            digests[disk["name"]] = sha256(disk["file"])
            self.assertEqual(digests[disk["name"]], disk["sha256"], "the manifest states another digest than the file has")
            self.assertEqual(os.path.getsize(disk["file"]), disk["size"])
        shutil.rmtree(out)
        return digests

    def assert_error(self, error, what, code=None):
        """One clear error: a code, an object, what is wrong, and what to do."""
        self.assertTrue(error, f"no error was told ({what})")
        self.assertRegex(f"{error.get('object')}: {error.get('what')} ({error.get('remedy')})", what)
        if code:
            self.assertEqual(error.get("code"), code, error)

    def assert_logged(self, process, pattern, since=0):
        """A line of the log, from byte `since` on, matches."""
        wait_for(f"a log line like {pattern}", lambda: re.search(pattern, process.log()[since:], re.I))

    @contextlib.contextmanager
    def tells(self, server, metric, line, by=1):
        """What happens inside is counted `by` times (None: at least once) by the metrics that match, and logged."""
        before, mark = server.metric(metric), len(server.log())
        yield
        wait_for(f"{metric} to rise", lambda: server.metric(metric) >= before + (by or 1))
        if by:
            self.assertEqual(server.metric(metric) - before, by, metric)
        self.assert_logged(server, line, mark)

    def small_file_system(self, name, size, kind="ext4"):
        """A file system of this size (a loop device on a file), mounted at `name` in the test's directory. Needs root."""
        image, mount = self.directory / f"{name}.image", self.directory / name
        mount.mkdir()
        with open(image, "wb") as file:
            file.truncate(size)
        make = ["mke2fs", "-q", "-t", "ext4", "-m", "0"] if kind == "ext4" else [f"mkfs.{kind}", "-q"]
        if shutil.which(make[0]) is None:
            self.skipTest(f"{make[0]} is not installed")
        self.assertEqual(run([*make, image]).status, 0)
        if self.mount(name).status != 0:
            self.skipTest("loop devices do not work here")
        self.mounts.append(mount)
        return mount

    def mount(self, name, options="loop"):
        """Mounts again what small_file_system made."""
        return run(["mount", "-o", options, self.directory / f"{name}.image", self.directory / name])

    def loop_device(self, backing):
        """A block device on a file. Needs root."""
        made = run(["losetup", "--find", "--show", backing])
        if made.status != 0:
            self.skipTest("loop devices do not work here")
        device = pathlib.Path(made.out.strip())
        self.loops.append(device)
        return device

    def _clean(self):
        problems = []
        for process in [*self.agents, *self.servers]:
            if process.process is None:
                continue
            if process.process.poll() is not None:
                problems.append(f"{process.process.args[0]} ended by itself with {process.process.returncode}")
                problems += [f"its last line: {line}" for line in process.log().splitlines()[-3:]]
            process.process.terminate()
            try:
                process.process.wait(30)
            except subprocess.TimeoutExpired:
                problems.append(f"{process.process.args[0]} did not end within 30 s of SIGTERM")
                process.process.kill()
                process.process.wait()
            process.process.stdout.close()
        for agent in self.agents:  # tracking outlives an agent
            run([BIN / "tidemark-agent", "untrack", "--state-dir", agent.state])
        for process in [*self.servers, *self.agents]:
            for line in process.log().splitlines():
                if TROUBLE.match(line) and not any(re.search(pattern, line) for pattern in self.allowed):
                    problems.append(f"{process.log_path.name}: {line}")
        for report in sorted(self.directory.glob("sanitizer.*")):
            problems.append(report.read_text(errors="replace")[:6000])
        for mount in self.mounts:
            run(["umount", mount])
        for loop in self.loops:
            run(["losetup", "--detach", loop])
        failed = problems or any(error for _, error in getattr(self._outcome, "errors", []) or [])
        result = getattr(self._outcome, "result", None)
        failed = failed or (result and any(test is self for test, _ in [*result.failures, *result.errors]))
        if failed and os.environ.get("TIDEMARK_KEEP"):
            print(f"\nkept: {self.directory}", file=sys.stderr)
        else:
            shutil.rmtree(self.directory, ignore_errors=True)
        if problems:
            self.fail("unexpected trouble:\n  " + "\n  ".join(problems[:20]))


def needs_root(test):
    return unittest.skipUnless(os.geteuid() == 0, "needs root, to mount a small file system")(test)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    unittest.main(verbosity=2)
