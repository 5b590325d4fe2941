#!/usr/bin/env python3
"""Recovery points and clones over NBD, and exports, beside qemu-nbd and fio on the same disk, alternating.

Points are of a disk of SIZE_MIB; over NBD both servers read with O_DIRECT, have a unix socket, and answer the same client
with the same options. usage: nbd.py --build DIR [--dir DIR] [--repetitions N] [--only TEXT] [--json FILE]
"""
import argparse
import contextlib
import http.client
import json
import os
import pathlib
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from measure import common

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "tests/crash"))
from nbd_client import NbdClient

MIB = 1 << 20
SIZE_MIB = 1024
POINTS, CHANGED = 60, 1000  # of the disk with history; blocks of 4 KiB written before each
SHORT = {"SIZE_MIB": 512, "POINTS": 20, "SECONDS": 2}  # where there is little time: instead of those
NEEDED = ("fio", "nbdcopy", "qemu-nbd", "qemu-img")
SECONDS = 4  # of one measurement that has no end of its own


class Failed(Exception):
    pass


def must(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=900, **options)
    if done.returncode != 0:
        raise Failed(f"{command[0]}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def row(name, samples, target, unit, at_most=False, note=""):
    return common.row(name, samples, target, unit, at_most, note)


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- the servers ---


class Tidemark:
    """A tidemarkd with one agent for each disk."""

    def __init__(self, build, directory):
        self.bin, self.directory, self.data = build / "bin", directory, directory / "data"
        must(self.bin / "tidemarkd", "init", self.data, "--partitions", 1, "--address", "127.0.0.1:7443")
        (directory / "config.toml").write_text('[retention]\nremoval_holdoff = "0s"\n')
        self.process = subprocess.Popen([self.bin / "tidemarkd", "run", "--data", self.data, "--listen", "127.0.0.1:0", "--config",
                                         directory / "config.toml"], stdout=subprocess.PIPE, text=True,
                                        stderr=open(directory / "server.log", "ab"))
        line = self.process.stdout.readline()
        if "serving on " not in line:
            raise Failed(f"tidemarkd did not start: {line!r}")
        self.address = line.split("serving on ")[1].split(",")[0]
        self.pid = self.process.pid

    def stop(self):
        self.process.terminate()
        self.process.wait(60)

    def cli(self, *arguments):
        return json.loads(must(self.bin / "tidemark", "--data", self.data, "--json", *arguments) or "null")

    def agent(self, name, *arguments):
        return must(self.bin / "tidemark-agent", *arguments, "--state-dir", self.directory / f"{name}-state", "--json")

    def protect(self, name, disk):
        self.agent(name, "enroll", self.address, "--token", self.cli("token", "create")["token"], "--name", name)
        self.agent(name, "protect", disk)
        self.sync(name)

    def sync(self, name):
        """And until the server has read back what it stored: that is not to happen beside a measurement."""
        self.agent(name, "sync", "--once")
        while not self.cli("points", name, "--limit", 1)["points"][0]["verified"]:
            time.sleep(0.1)

    def uri(self, export):
        return f"nbd+unix:///{export}?socket={self.data}/nbd.sock"


class QemuNbd:
    """As MEASURES has it: no cache, io_uring."""

    def __init__(self, directory, image, kind, *options):
        self.socket = directory / "qemu.sock"
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(["qemu-nbd", "-k", self.socket, "-f", kind, "--cache=none", "--aio=io_uring", "-e", "8", "-t",
                                         *options, image], stderr=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        for _ in range(500):
            if self.process.poll() is not None:
                raise Failed(f"qemu-nbd: {self.process.stderr.read()[-300:]}")
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.socket))
                return
            time.sleep(0.02)
        raise Failed("qemu-nbd does not listen")

    @property
    def uri(self):
        return f"nbd+unix:///?socket={self.socket}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)


# --- what clients do: each gives MiB a second or operations a second ---


def copy(uri):
    begin = time.monotonic()
    must("nbdcopy", "--no-extents", uri, "null:")
    return SIZE_MIB / (time.monotonic() - begin)


def fio_job(*options):
    """What fio says of its one job; in front of that it may say other things."""
    out = must("fio", "--name=n", "--output-format=json", *options)
    return json.loads(out[out.index("{\n"):])["jobs"][0]


def fio(uri, mode, *options):
    job = fio_job("--ioengine=nbd", f"--uri={uri}", f"--rw={mode}", f"--size={SIZE_MIB}m", "--time_based", f"--runtime={SECONDS}", *options)
    return job["write" if "write" in mode else "read"]["iops"]


def write_through(uri, seconds=None):
    """qemu-img bench: 4 KiB writes with FUA, 32 in flight."""
    count = 4000
    out = must("qemu-img", "bench", "-f", "raw", "-w", "-t", "writethrough", "-c", count, "-d", 32, "-s", 4096, "-S", 135168, uri)
    return count / float(out.split("Run completed in ")[1].split()[0])


def pairs(repetitions, ours, theirs):
    """Alternating; gives the ratios, and both sides' medians as a note. Either side: () -> (rate, server's CPU seconds)."""
    samples, both = [], ([], [], [], [])
    for i in range(repetitions):
        order = (ours, theirs) if i % 2 == 0 else (theirs, ours)
        results = {side: side() for side in order}
        samples.append(results[ours][0] / results[theirs][0])
        for at, side in ((0, ours), (1, theirs)):
            both[at].append(results[side][0])
            both[at + 2].append(results[side][1])
    rate, peer, cpu, peer_cpu = (statistics.median(values) for values in both)
    return samples, f"{rate:.0f} to {peer:.0f} a second; server CPU {cpu:.2f} s to {peer_cpu:.2f} s"


def counted(pid, work):
    before = cpu_seconds(pid)
    rate = work()
    return rate, cpu_seconds(pid) - before


# --- the disks ---


def make_disk(path, kind):
    rng = random.Random(kind)
    with open(path, "wb") as file:
        for _ in range(SIZE_MIB):
            if kind == "compressible":  # two to one: half of each 4 KiB says nothing new
                file.write(b"".join(rng.randbytes(2048) + bytes(2048) for _ in range(256)))
            else:
                file.write(rng.randbytes(MIB))
        os.fsync(file.fileno())


class Rig:
    def __init__(self, build, root, short):
        self.short = short
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="nbd-", dir=root))
        self.tidemark = Tidemark(build, self.directory)
        self.images = {}

    def disk(self, kind):
        """A machine of this name with a disk of this kind, protected."""
        if kind not in self.images:
            image = self.directory / f"{kind}.img"
            make_disk(image, kind)
            self.tidemark.protect(kind, image)
            self.images[kind] = image
        return self.images[kind]

    def history(self):
        """The random disk with POINTS points, and a qcow2 with as many snapshots of the same contents."""
        image, qcow2 = self.disk("history"), self.directory / "history.qcow2"
        if qcow2.exists():
            return image, qcow2
        must("qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, qcow2)
        rng = random.Random(60)
        for i in range(POINTS):
            writes = [(rng.randrange(SIZE_MIB * 256) * 4096, rng.randbytes(4096)) for _ in range(CHANGED)]
            must("qemu-img", "snapshot", "-c", f"s{i}", qcow2)
            with open(image, "r+b") as file:
                for offset, data in writes:
                    file.seek(offset)
                    file.write(data)
            with QemuNbd(self.directory, qcow2, "qcow2") as peer, contextlib.closing(NbdClient(peer.socket)) as client:
                for offset, data in writes:
                    client.write(offset, data)
                client.flush()
            self.tidemark.agent("history", "sync", "--once")
        self.tidemark.sync("history")
        return image, qcow2

    def stop(self):
        self.tidemark.stop()
        shutil.rmtree(self.directory)


# --- the measurements ---


def reads(rig, repetitions, export, peer_image, kind, work, *peer_options):
    tidemark = rig.tidemark
    with QemuNbd(rig.directory, peer_image, kind, "-r", *peer_options) as peer:
        return pairs(repetitions, lambda: counted(tidemark.pid, lambda: work(tidemark.uri(export))),
                     lambda: counted(peer.pid, lambda: work(peer.uri)))


def sequential(rig, repetitions):
    image = rig.disk("random")
    name = "random/disk0@latest"
    ratios, note = reads(rig, repetitions, name, image, "raw", copy)
    yield row("NBD: a point in a row (nbdcopy), over qemu-nbd on a raw file", ratios, 0.9, "ratio", note="MiB " + note)
    for block, depth in (("1m", 4),) if rig.short else (("1m", 4), ("64k", 1)):
        ratios, note = reads(rig, repetitions, name, image, "raw",
                             lambda uri: fio(uri, "read", f"--bs={block}", f"--iodepth={depth}"))
        yield row(f"NBD: a point in a row (fio, {block}, {depth} in flight), over qemu-nbd on a raw file", ratios, 0.9, "ratio", note=note)


def random_reads(rig, repetitions):
    if rig.short:
        return
    image = rig.disk("random")
    ratios, note = reads(rig, repetitions, "random/disk0@latest", image, "raw",
                         lambda uri: fio(uri, "randread", "--bs=4k", "--iodepth=16"))
    yield row("NBD: random 4 KiB of a point without history, over qemu-nbd on a raw file", ratios, None, "ratio", note=note)


def history(rig, repetitions):
    _, qcow2 = rig.history()
    points = rig.tidemark.cli("points", "history")["points"]
    work = lambda uri: fio(uri, "randread", "--bs=4k", "--iodepth=16")
    ratios, note = reads(rig, repetitions, "history/disk0@latest", qcow2, "qcow2", work)
    yield row(f"NBD: random 4 KiB of the newest of {len(points)} points, over qemu-nbd on a qcow2 with {POINTS} snapshots", ratios, 1.0,
              "ratio", note=note)
    if not rig.short:
        middle = points[len(points) // 2]["epoch"]
        ratios, note = reads(rig, repetitions, f"history/disk0@epoch:{middle}", qcow2, "qcow2", work, "-l", f"s{POINTS // 2}")
        yield row(f"NBD: random 4 KiB of a point in the middle of {len(points)}, over qemu-nbd on that snapshot", ratios, 1.0, "ratio",
                  note=note)
    ratios, note = reads(rig, repetitions, "history/disk0@latest", qcow2, "qcow2", copy)
    yield row(f"NBD: the newest of {len(points)} points in a row (nbdcopy), over qemu-nbd on a qcow2 with {POINTS} snapshots", ratios, 0.9,
              "ratio", note="MiB " + note)


def compressed(rig, repetitions):
    image = rig.disk("compressible")
    if not rig.short:
        ratios, note = reads(rig, repetitions, "compressible/disk0@latest", image, "raw", copy)
        yield row("NBD: a point compressed 2:1 in a row (nbdcopy), over qemu-nbd on a raw file", ratios, None, "ratio", note="MiB " + note)
    packed = rig.directory / "compressed.qcow2"
    must("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", image, packed)
    ratios, note = reads(rig, repetitions, "compressible/disk0@latest", packed, "qcow2", copy)
    yield row("NBD: a point compressed 2:1 in a row (nbdcopy), over qemu-nbd on a qcow2 compressed with zstd", ratios, 0.9, "ratio",
              note="MiB " + note)


def clone_writes(rig, repetitions):
    image = rig.disk("random")
    tidemark = rig.tidemark
    overlay, raw = rig.directory / "overlay.qcow2", rig.directory / "written.img"
    number = 0

    def ours(work):
        nonlocal number
        number += 1
        tidemark.cli("clone", "create", "random", "--at", "latest", "--name", f"w{number}")
        result = counted(tidemark.pid, lambda: work(tidemark.uri(f"clone/w{number}/disk0")))
        for _ in range(100):
            with contextlib.suppress(Failed):
                tidemark.cli("clone", "drop", f"w{number}")
                break
            time.sleep(0.05)
        return result

    def qcow2(work):
        overlay.unlink(missing_ok=True)
        must("qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "raw", overlay)
        with QemuNbd(rig.directory, overlay, "qcow2") as peer:
            return counted(peer.pid, lambda: work(peer.uri))

    def plain(work):
        if not raw.exists():
            shutil.copy(image, raw)
        with QemuNbd(rig.directory, raw, "raw") as peer:
            return counted(peer.pid, lambda: work(peer.uri))

    kinds = (("no flush", lambda uri: fio(uri, "randwrite", "--bs=4k", "--iodepth=32", "--end_fsync=1")),
             ("a flush after every 32", lambda uri: fio(uri, "randwrite", "--bs=4k", "--iodepth=32", "--fsync=32")),
             ("FUA", write_through))
    for what, work in kinds:
        peers = (("a qcow2 over the raw file", qcow2, 1.0), ("a raw file", plain, None))
        for peer, other, target in peers[:1] if rig.short else peers:
            ratios, note = pairs(repetitions, lambda: ours(work), lambda: other(work))
            yield row(f"NBD: 4 KiB writes to a clone, 32 in flight, {what}, over qemu-nbd on {peer}", ratios, target, "ratio", note=note)


def export(rig, repetitions):
    """Against fio reading as many bytes as are stored for the disk, 1 MiB and 4 in flight; and, for the disk's own limit, against
    fio that writes meanwhile what the export writes."""
    options = ("--bs=1m", "--iodepth=4", "--direct=1", "--ioengine=io_uring")
    for kind, stored in (("random", 1.0), ("compressible", 0.5)):
        image = rig.disk(kind)
        size = int(SIZE_MIB * stored)

        def ours(out):
            for path in out.parent.glob(out.name + "*"):
                path.unlink()
            begin = time.monotonic()
            rig.tidemark.cli("export", kind, "--at", "latest", "--output", out)
            return size / (time.monotonic() - begin)

        def reading():
            return fio_job(f"--filename={image}", "--rw=read", *options, f"--size={size}m")["read"]["bw_bytes"] / MIB, 0

        def reading_and_writing():
            written = rig.directory / "written.img"
            written.unlink(missing_ok=True)
            out = must("fio", "--output-format=json", *options, "--name=reads", f"--filename={image}", "--rw=read", f"--size={size}m",
                       "--name=writes", f"--filename={written}", "--rw=write", f"--size={SIZE_MIB}m", "--end_fsync=1")
            jobs = json.loads(out[out.index("{\n"):])["jobs"]
            return size / (max(job["job_runtime"] for job in jobs) / 1000), 0

        out = rig.directory / "exported.img"
        what = f"export to raw, {kind}: stored bytes a second, over fio reading as many"
        for also, place, peer, target in (("", out, reading, 0.8), (", and writing what is exported", out, reading_and_writing, None),
                                          (", exported into memory", pathlib.Path("/dev/shm") / f"tidemark-{os.getpid()}.img", reading, None)):
            if target is None and rig.short:
                continue
            try:
                ratios, note = pairs(repetitions, lambda: counted(rig.tidemark.pid, lambda: ours(place)), peer)
            finally:
                for path in place.parent.glob(place.name + "*"):
                    path.unlink()
            yield row(what + also, ratios, target, "ratio", note="MiB " + note)


class Admin(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def first_byte(rig, repetitions):
    """From the request that makes a clone to the first byte of it over NBD, connecting included."""
    rig.disk("random")
    samples = []
    admin = Admin(rig.tidemark.data / "admin.sock")
    for i in range(10 * repetitions):
        begin = time.monotonic()
        admin.request("POST", "/v1/machines/random/clones", json.dumps({"at": "latest", "name": f"first{i}"}))
        answer = admin.getresponse()
        answer.read()
        if answer.status >= 300:
            raise Failed(f"clone create: {answer.status}")
        client = NbdClient(rig.tidemark.data / "nbd.sock", f"clone/first{i}/disk0")
        client.read(4096 * i, 1)
        samples.append(1000 * (time.monotonic() - begin))
        client.disconnect()
    admin.close()
    yield row("from `clone create` to its first byte over NBD", samples, 20, "ms", at_most=True)


def boot(rig, repetitions):
    """From the start of qemu to userland, from a clone over our NBD and from the same image served by qemu-nbd."""
    sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "tests/e2e"))
    import guest
    if guest.missing():
        raise Failed(guest.missing())
    image = rig.directory / "guest.img"
    shutil.copy(guest.base_image(), image)
    rig.tidemark.protect("guest", image)
    rig.tidemark.cli("clone", "create", "guest", "--at", "latest", "--name", "boots")

    def until_userland(uri):
        with guest.Guest("-drive", f"file={uri},format=raw,if=virtio") as machine:
            machine.wait_for(guest.READY)
            return 1 / machine.at

    with QemuNbd(rig.directory, image, "raw") as peer:
        ratios, note = pairs(repetitions, lambda: counted(rig.tidemark.pid, lambda: until_userland(rig.tidemark.uri("clone/boots/disk0"))),
                             lambda: counted(peer.pid, lambda: until_userland(peer.uri)))
    yield row("a guest boots from a clone: time to userland over that from qemu-nbd on a raw file", [1 / ratio for ratio in ratios], 1.1,
              "ratio", at_most=True)


def measurements(build, root, repetitions, only="", short=False):
    """Rows, as run.py has them; `short`: those that have a target, of smaller disks."""
    if short:
        globals().update(SHORT)
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing:
        yield common.missing("NBD", None, "", f"{', '.join(missing)} not installed")
        return
    rig = Rig(build, root, short)
    try:
        for measure in (first_byte, sequential, random_reads, compressed, history, clone_writes, export, boot):
            if only not in measure.__name__:
                continue
            try:
                yield from measure(rig, repetitions)
            except (Failed, OSError, subprocess.TimeoutExpired) as why:
                yield common.missing(f"NBD: {measure.__name__}", None, "", why)
    finally:
        rig.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("/var/tmp"), help="where the data goes")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", default="", help="measurements whose name contains this")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    rows = []
    for one in measurements(arguments.build.resolve(), arguments.dir, arguments.repetitions, arguments.only):
        rows.append(one)
        if one["value"] is None:
            print(f"{one['row']}: {one['note']}", flush=True)
            continue
        verdict = f"target {one['target']}: {'holds' if one['holds'] else 'DOES NOT HOLD'}" if one["target"] else "no target"
        print(f"{one['row']}: {one['value']} {one['unit']} ({one['spread'][0]} to {one['spread'][1]}, {one['samples']} samples), "
              f"{verdict} ({one['note']})", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
