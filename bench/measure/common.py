"""What measurements share: rows, a server of their own, and what the kernel says of a process."""
import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import tempfile
import time

GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10


class NotMeasured(Exception):
    """Why a row has no value."""


@dataclasses.dataclass
class Run:
    build: pathlib.Path
    root: pathlib.Path  # an empty directory, on the disk that is measured
    repetitions: int
    full: bool
    trace: pathlib.Path | None
    fleet: int = 10_000  # machines in the largest measurement

    @property
    def few(self):
        """Repetitions of what takes half a minute, or whose one sample is the percentile of thousands."""
        return max(1, self.repetitions // 2)


def row(name, samples, target, unit, at_most=True, note=""):
    """One line of the table. `target` None: the row has none, and stands for itself."""
    value = statistics.median(samples)
    holds = None if target is None else bool(value <= target if at_most else value >= target)
    return {"row": name, "value": round(value, 4), "target": target, "unit": unit, "samples": len(samples),
            "spread": [round(min(samples), 4), round(max(samples), 4)], "at_most": at_most, "holds": holds, "note": note}


def missing(name, target, unit, why, at_most=True):
    return {"row": name, "value": None, "target": target, "unit": unit, "samples": 0, "spread": None, "at_most": at_most,
            "holds": None, "note": f"not measured: {why}"}


def need(program):
    if shutil.which(program) is None:
        raise NotMeasured(f"{program} is not installed")


def json_of(command, partial=False, **options):
    """`partial`: also of a program that could not do all, and says so in what it prints."""
    options.setdefault("timeout", 300)
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    if result.returncode != 0 and not (partial and "{" in result.stdout):
        raise NotMeasured(f"{pathlib.Path(command[0]).name}: {(result.stderr + result.stdout).strip()[-300:]}")
    return json.loads(result.stdout[result.stdout.index("{"):])


def benchmarks(run, program, *options, **more):
    """The results of a program of the benchmark library, by name."""
    report = json_of([run.build / "bench" / program, "--benchmark_format=json", *options],
                     env=os.environ | {"TIDEMARK_BENCH_DIR": str(run.root)}, **more)
    return {result["name"]: result for result in report["benchmarks"]}


def fio(directory, *options, size="512m"):
    """A job of fio on a file in `directory`; its JSON."""
    need("fio")
    return json_of(["fio", "--name=w", f"--filename={directory}/fio.img", f"--size={size}", "--direct=1", "--ioengine=io_uring",
                    "--output-format=json", *options])["jobs"][0]


def need_space(run, gib):
    space = os.statvfs(run.root)
    if space.f_bavail * space.f_frsize < gib * GIB:
        raise NotMeasured(f"needs {gib} GiB free in {run.root}")


def written_by(pid):
    with open(f"/proc/{pid}/io") as counters:
        return int(next(line for line in counters if line.startswith("write_bytes")).split()[1])


def cpu_of(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_of(pid):
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class Server:
    """A tidemarkd of its own for one measurement."""

    def __init__(self, build, directory, partitions=2, config=""):
        self.build, self.data = build, directory / "data"
        subprocess.run([build / "bin/tidemarkd", "init", self.data, "--partitions", str(partitions), "--address", "127.0.0.1:7443"],
                       check=True, stdout=subprocess.DEVNULL)
        self.config = directory / "config.toml"
        self.config.write_text(config)
        self.log_path = directory / "server.log"
        self.log = open(self.log_path, "ab")
        self.start()

    def start(self):
        self.process = subprocess.Popen([self.build / "bin/tidemarkd", "run", "--data", self.data, "--listen", "127.0.0.1:0",
                                         "--config", self.config],
                                        stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        if "serving on " not in line:
            raise NotMeasured(f"tidemarkd did not start: {line!r}")
        self.address = line.split("serving on ")[1].split(",")[0]
        self.pid = self.process.pid

    def command(self, command, *options):
        return [str(part) for part in (self.build / "bin/tidemark-bench", command, "--server", self.address, "--socket",
                                       self.data / "admin.sock", "--server-pid", self.pid, "--quiet", "--json", "-", *options)]

    def begin_load(self, *options):
        """A load that goes on beside what is measured; returns when its machines are connected."""
        tool = subprocess.Popen(self.command("load", *options), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        said = ""
        while "connected " not in said:
            line = tool.stderr.readline()
            if not line:
                raise NotMeasured(f"the load did not start: {said[-300:]}")
            said += line
        return tool

    def bench(self, command, *options, on=None):
        """Runs tidemark-bench; `on` maps beginnings of lines that it says to functions, called when they come."""
        tool = subprocess.Popen(self.command(command, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        said = ""
        for line in tool.stderr:
            said += line
            for beginning, call in (on or {}).items():
                if line.startswith(beginning):
                    call()
        output = tool.stdout.read()
        if tool.wait(timeout=400) != 0:
            raise NotMeasured(f"tidemark-bench {command}: " + (why_of(output) or said).strip()[-300:])
        return json.loads(output)

    def load(self, *options, on=None):
        return self.bench("load", *options, on=on)

    def cli(self, *arguments, timeout=300):
        return subprocess.run([str(part) for part in (self.build / "bin/tidemark", "--data", self.data, "--json", *arguments)],
                              capture_output=True, text=True, timeout=timeout)

    def healthy(self):
        return self.cli("health").returncode == 0

    def metric(self, name):
        """Over all labels."""
        with contextlib.closing(AdminSocket(self.data / "admin.sock")) as connection:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def settle_down(self):
        """Until the segments that are formatted in advance are there: a server that has run for a while has them."""
        quiet, last = 0, -1
        for _ in range(200):
            now = written_by(self.pid)
            quiet = quiet + 1 if now - last < 64 * KIB else 0
            if quiet >= 5:
                return
            last = now
            time.sleep(0.1)

    def log_of(self, since):
        with open(self.log_path) as log:
            log.seek(since)
            return log.read()

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=60)


def why_of(output):
    """The first error of a report."""
    try:
        report = json.loads(output)
    except ValueError:
        return output
    return report.get("first_error") or str(report.get("verified", ""))


class AdminSocket(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=30)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def ask(admin_socket, method, path, body=None):
    """The JSON that the admin API answers; None when it refused."""
    with contextlib.closing(AdminSocket(admin_socket)) as connection:
        connection.request(method, path, json.dumps(body) if body is not None else None)
        answer = connection.getresponse()
        text = answer.read()
        return json.loads(text) if answer.status < 300 else None


@contextlib.contextmanager
def server(run, **options):
    directory = pathlib.Path(tempfile.mkdtemp(dir=run.root))
    running = Server(run.build, directory, **options)
    try:
        running.settle_down()
        yield running
    finally:
        running.stop()
        shutil.rmtree(directory)


def end(tool):
    tool.kill()
    tool.wait()
