#!/usr/bin/env python3
"""The main job of Tidemark, end to end, on this machine.

A staging server and a source machine with two disk images (a file system with a tree of files, a file system with a
SQLite database) are made in a temporary directory. The disks are protected, a recovery point is taken, files are changed
and deleted, a second point is taken; the server is killed with SIGKILL in the middle of the first sync. Then both points
are exported and proven against copies that were made at those moments.

Needs no root. As root, where loop devices work, the disks are mounted to change and to compare them; else debugfs does it.
"""
import argparse
import contextlib
import hashlib
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
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MIB = 1 << 20
FILES_DISK_MIB = 256
DATABASE_DISK_MIB = 96
ROWS = 120_000
SYNC_LIMIT_MIB = 24  # a second, for the first sync: so that there is a middle to kill the server in
DEADLINE = 120       # seconds, for anything that is waited for


class Failed(Exception):
    pass


def run(*command, stdin=None, ok=(0,), **options):
    """Runs a command to its end; its stdout. Fails with what it said."""
    done = subprocess.run([str(part) for part in command], input=stdin, capture_output=True, text=True, **options)
    if done.returncode not in ok:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise Failed(f"`{' '.join(map(str, command))}` ended with {done.returncode}: " + " | ".join(said[-5:]))
    return done.stdout


def say(text=""):
    print(text, flush=True)


def step(title):
    say(f"\n{title}")


def line(what, detail=""):
    say(f"   {what:<34}{detail}".rstrip())


def size(count):
    return f"{count / MIB:,.0f} MiB" if count >= 10 * MIB else f"{count / 1024:,.0f} KiB"


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_of(directory):
    """What a directory holds: {relative path: SHA-256 of a file, target of a link, "" of a directory}."""
    tree = {}
    for path in sorted(pathlib.Path(directory).rglob("*")):
        name = path.relative_to(directory).as_posix()
        if name.split("/")[0] == "lost+found":
            continue
        tree[name] = os.readlink(path) if path.is_symlink() else "" if path.is_dir() else sha256(path)
    return tree


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def work_directory():
    """A temporary directory on a file system that takes direct I/O, which the server's log is written with."""
    for parent in (os.environ.get("TMPDIR"), "/tmp", "/var/tmp"):
        if not parent or not os.access(parent, os.W_OK):
            continue
        directory = pathlib.Path(tempfile.mkdtemp(prefix="tidemark-demo-", dir=parent))
        try:
            os.close(os.open(directory / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
            (directory / "probe").unlink()
            return directory
        except OSError:
            shutil.rmtree(directory)
    raise Failed("none of $TMPDIR, /tmp and /var/tmp takes direct I/O; set TMPDIR to a directory on ext4 or XFS")


class Disk:
    """An ext4 file system in an image file."""

    def __init__(self, image, mount_point):
        self.image = image
        self.mount_point = mount_point

    @staticmethod
    def make(image, mebibytes, tree, mount_point):
        run("mke2fs", "-q", "-t", "ext4", "-E", "root_owner", "-d", tree, image, f"{mebibytes}M")
        return Disk(image, mount_point)

    @contextlib.contextmanager
    def mounted(self, options):
        """Mounts it and gives the place; gives None where that is not possible."""
        if os.geteuid() != 0:
            yield None
            return
        self.mount_point.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-o", f"loop,{options}", self.image, self.mount_point], capture_output=True)
        if done.returncode != 0:
            yield None
            return
        try:
            yield self.mount_point
        finally:
            run("umount", self.mount_point)

    def change(self, removed, written):
        """Removes files and writes others ({name in it: source path}). True when it was mounted for that."""
        with self.mounted("rw") as place:
            if place:
                for name in removed:
                    (place / name).unlink()
                for name, source in written.items():
                    (place / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, place / name)
                return True
        commands = [f"rm /{name}" for name in removed]
        for name, source in written.items():
            parent = os.path.dirname(name)
            if parent:
                commands.append(f"mkdir /{parent}")
            commands += [f"rm /{name}", f"write {source} /{name}"]
        run("debugfs", "-w", "-f", "-", self.image, stdin="\n".join(commands) + "\n")
        return False

    def content(self, scratch):
        """Its tree, and how it was read."""
        with self.mounted("ro,noload") as place:
            if place:
                return tree_of(place), "mounted"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        run("debugfs", "-R", f"rdump / {scratch}", self.image)
        return tree_of(scratch), "read with debugfs"

    def extract(self, name, to):
        to.unlink(missing_ok=True)
        run("debugfs", "-R", f"dump /{name} {to}", self.image)
        return to


class Demo:
    def __init__(self, binaries, directory):
        self.binaries = binaries
        self.directory = directory
        self.data = directory / "staging"
        self.state = directory / "agent"
        self.port = free_port()
        self.server = None
        self.sync = None
        self.started = time.monotonic()

    # --- the programs ---
    def tidemark(self, *arguments):
        return json.loads(run(self.binaries / "tidemark", "--data", self.data, "--json", *arguments))

    def agent(self, *arguments):
        return json.loads(run(self.binaries / "tidemark-agent", *arguments, "--state-dir", self.state, "--json"))

    def start_server(self):
        log = open(self.directory / "tidemarkd.log", "ab")
        self.server = subprocess.Popen(
            [self.binaries / "tidemarkd", "run", "--data", self.data, "--listen", f"127.0.0.1:{self.port}"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        log.close()
        self.wait("the server to serve", self.serves)

    def serves(self):
        if self.server.poll() is not None:
            raise Failed(f"tidemarkd ended with {self.server.returncode}")
        asked = subprocess.run([self.binaries / "tidemark", "--data", self.data, "health"], capture_output=True)
        return asked.returncode == 0

    @staticmethod
    def wait(what, condition):
        end = time.monotonic() + DEADLINE
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > end:
                raise Failed(f"waited {DEADLINE} s for {what}")
            time.sleep(0.05)

    def start_sync(self, *options):
        command = [self.binaries / "tidemark-agent", "sync", "--once", "--state-dir", self.state, "--json", *options]
        with open(self.directory / "agent.log", "ab") as log:
            self.sync = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)

    def finish_sync(self):
        try:
            out, _ = self.sync.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            raise Failed(f"the sync did not end within {DEADLINE} s")
        answer = json.loads(out or "{}")
        if self.sync.returncode != 0:
            raise Failed(f"tidemark-agent sync ended with {self.sync.returncode}: {out.strip()}")
        return answer

    def percent(self):
        machines = self.tidemark("machines")["machines"]
        return (machines[0].get("percent") or 0) if machines else 0

    # --- the story ---
    def make_server(self):
        step("1. A staging server")
        run(self.binaries / "tidemarkd", "init", self.data, "--partitions", "2", "--address", f"127.0.0.1:{self.port}")
        line("tidemarkd init", "a data directory with its certificate authority")
        self.start_server()
        line("tidemarkd run", f"serves on 127.0.0.1:{self.port}, TLS 1.3, certificates on both sides")

    def make_disks(self):
        step("2. A source machine with two disks")
        rng = random.Random(2)
        self.tree = self.directory / "tree"
        words = [bytes(rng.choices(range(97, 123), k=rng.randint(2, 9))) for _ in range(2000)]
        for number in range(600):
            path = self.tree / f"home/user{number % 12}/dir{number % 40}/file{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            length = rng.randint(100, 400_000)
            if number % 2:
                path.write_bytes(rng.randbytes(length))
            else:
                path.write_bytes(b" ".join(rng.choices(words, k=length // 6)))
        (self.tree / "home/latest").symlink_to("user1/dir1/file1")
        (self.tree / "empty").touch()
        self.files = Disk.make(self.directory / "files.img", FILES_DISK_MIB, self.tree, self.directory / "mount")
        total = sum(path.stat().st_size for path in self.tree.rglob("*") if path.is_file())
        line("files.img", f"{FILES_DISK_MIB} MiB, ext4: 602 files, {size(total)}")

        self.rows = self.directory / "rows"
        self.rows.mkdir()
        run("sqlite3", self.rows / "app.db",
            stdin="CREATE TABLE orders(id INTEGER PRIMARY KEY, customer TEXT, note BLOB);"
                  f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) "
                  "INSERT INTO orders SELECT i, 'customer ' || (i % 977), randomblob(120) FROM n;"
                  "CREATE INDEX by_customer ON orders(customer);")
        self.database = Disk.make(self.directory / "db.img", DATABASE_DISK_MIB, self.rows, self.directory / "mount")
        line("db.img", f"{DATABASE_DISK_MIB} MiB, ext4: a SQLite database of {ROWS:,} rows, "
                       f"{size((self.rows / 'app.db').stat().st_size)}")

        token = self.tidemark("token", "create", "--ttl", "10m")["token"]
        self.agent("enroll", f"127.0.0.1:{self.port}", "--token", token, "--name", "web1")
        self.agent("protect", self.files.image, self.database.image)
        line("tidemark-agent enroll, protect", "machine web1, with a one-time token")

    def first_point(self):
        step("3. The initial sync, and a server that dies in the middle of it")
        self.start_sync("--rate-limit", str(SYNC_LIMIT_MIB))

        def far_enough():
            if self.sync.poll() is not None:
                raise Failed("the sync ended before the server could be killed: " + (self.sync.stdout.read() or "").strip())
            percent = self.percent()
            return percent if percent >= 30 else None

        begun = time.monotonic()
        percent = self.wait("30 % of the initial sync", far_enough)
        os.kill(self.server.pid, signal.SIGKILL)
        self.server.wait()
        line(f"at {percent:.0f} %: kill -9 tidemarkd", f"after {time.monotonic() - begun:.1f} s")
        again = time.monotonic()
        self.start_server()
        line("tidemarkd run", f"recovered and serving {time.monotonic() - again:.1f} s later; the agent comes back by itself")
        done = self.finish_sync()
        seconds = time.monotonic() - begun
        rest = sum(epoch.get("sent_bytes") or 0 for epoch in done.get("epochs") or [done])
        looked = (FILES_DISK_MIB + DATABASE_DISK_MIB) * MIB
        line("the sync is through", f"{size(looked)} of disks, {seconds:.1f} s, {looked / MIB / seconds:,.0f} MiB/s; "
                                    f"{size(rest)} sent after the kill: it resumed")
        self.keep_moment("first", done)

    def second_point(self):
        step("4. Life goes on: files change and are deleted")
        removed, written = [], {}
        for number in (0, 1, 7, 42, 300, 599):
            name = f"home/user{number % 12}/dir{number % 40}/file{number}"
            (self.tree / name).unlink()
            removed.append(name)
        rng = random.Random(4)
        for number in (2, 3, 100):
            name = f"home/user{number % 12}/dir{number % 40}/file{number}"
            (self.tree / name).write_bytes(rng.randbytes(50_000))
            written[name] = self.tree / name
        (self.tree / "news").mkdir()
        (self.tree / "news/today").write_bytes(rng.randbytes(3 * MIB))
        written["news/today"] = self.tree / "news/today"
        was_mounted = self.files.change(removed, written)
        line("files.img", f"{len(removed)} files deleted, {len(written) - 1} rewritten, 1 new "
                          f"({'mounted' if was_mounted else 'with debugfs'})")
        run("sqlite3", self.rows / "app.db", stdin="DELETE FROM orders WHERE id % 3 = 0; UPDATE orders SET customer = 'x' WHERE id < 500;")
        self.database.change([], {"app.db": self.rows / "app.db"})
        line("db.img", "every third row deleted, 499 updated")
        begun = time.monotonic()
        self.start_sync()
        done = self.finish_sync()
        seconds = time.monotonic() - begun
        line("the second sync", f"{size(done.get('compared_bytes') or 0)} compared, {size(done.get('changed_bytes') or 0)} changed, "
                                f"{size(done.get('sent_bytes') or 0)} sent, {seconds:.1f} s")
        self.keep_moment("second", done)

    def keep_moment(self, name, sync):
        """Remembers what the disks hold now, outside of Tidemark."""
        if not sync.get("point"):
            raise Failed(f"the {name} sync gave no recovery point: {sync.get('reason')}")
        copies = self.directory / name
        copies.mkdir()
        for disk in (self.files, self.database):
            run("cp", "--sparse=always", "--reflink=auto", disk.image, copies / disk.image.name)
        self.moments = {**getattr(self, "moments", {}), name: {
            "epoch": sync["epoch"], "copies": copies, "tree": tree_of(self.tree),
            "rows": run("sqlite3", self.rows / "app.db", "SELECT count(*), sum(id) FROM orders").strip()}}
        point = self.tidemark("points", "web1", "--limit", "1")["points"][0]
        if point["epoch"] != sync["epoch"]:
            raise Failed(f"the newest point is epoch {point['epoch']}, not {sync['epoch']}")
        line("recovery point", f"epoch {point['epoch']} of {point['time']}, {point['consistency']}-consistent")

    def prove(self, number, name):
        moment = self.moments[name]
        step(f"{number}. The machine as it was at the {name} point")
        out = self.directory / f"recovered-{name}"
        begun = time.monotonic()
        manifest = self.tidemark("export", "web1", "--at", f"epoch:{moment['epoch']}", "--output", f"{out}/")
        seconds = time.monotonic() - begun
        total = sum(disk["size"] for disk in manifest["disks"])
        used = sum(os.stat(disk["file"]).st_blocks * 512 for disk in manifest["disks"])
        line("tidemark export", f"{size(total)} in {seconds:.1f} s, {total / MIB / seconds:,.0f} MiB/s; {size(used)} on disk")
        for disk in manifest["disks"]:
            digest, wanted = sha256(disk["file"]), sha256(moment["copies"] / disk["name"])
            if not digest == wanted == disk["sha256"]:
                raise Failed(f"{disk['name']} at the {name} point: SHA-256 {digest}, its copy has {wanted}, the manifest says {disk['sha256']}")
        line("SHA-256", "both disks equal the copies made at that moment")
        exported = {disk["name"]: Disk(pathlib.Path(disk["file"]), self.directory / "mount") for disk in manifest["disks"]}
        for disk in exported.values():
            run("e2fsck", "-fn", disk.image)
        line("e2fsck -fn", "both file systems clean")
        tree, how = exported["files.img"].content(self.directory / "scratch")
        if tree != moment["tree"]:
            different = sorted(set(tree.items()) ^ set(moment["tree"].items()))[:5]
            raise Failed(f"the files at the {name} point differ: {different}")
        line("the tree of files", f"{len(tree)} entries, {how}, all as they were")
        database = exported["db.img"].extract("app.db", self.directory / "recovered.db")
        checked = run("sqlite3", database, "PRAGMA integrity_check").strip()
        rows = run("sqlite3", database, "SELECT count(*), sum(id) FROM orders").strip()
        if checked != "ok" or rows != moment["rows"]:
            raise Failed(f"the database at the {name} point: integrity_check says {checked}, {rows} instead of {moment['rows']}")
        line("PRAGMA integrity_check", f"ok, {int(rows.split('|')[0]):,} rows")
        verdict = self.tidemark("verify", "web1", "--at", f"epoch:{moment['epoch']}")
        if verdict["ok"] is not True:
            raise Failed(f"tidemark verify: {verdict}")
        line("tidemark verify", "every stored block is what was stored")

    def tell_how_to_go_on(self):
        tool = f"{self.binaries / 'tidemark'} --data {self.data}"
        step("The server keeps running. Go on with:")
        for command in (f"{tool} machines", f"{tool} points web1", f"{tool} export web1 --at latest --output {self.directory}/again/",
                        f"{self.binaries / 'tidemark-agent'} sync --once --state-dir {self.state}"):
            say(f"   {command}")
        say(f"   tail -f {self.directory}/tidemarkd.log")
        say(f"Stop and remove everything:\n   kill {self.server.pid} && rm -rf {self.directory}")

    def play(self):
        self.make_server()
        self.make_disks()
        self.first_point()
        self.second_point()
        self.prove(5, "first")
        self.prove(6, "second")

    def end(self):
        for process in (self.sync, self.server):
            if process and process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def show_logs(self):
        for name in ("tidemarkd.log", "agent.log"):
            path = self.directory / name
            if path.exists() and path.stat().st_size:
                tail = path.read_text(errors="replace").splitlines()[-15:]
                print(f"--- the end of {name}", *tail, sep="\n", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave the server running and say how to go on")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin", help="where the programs are")
    options = parser.parse_args()
    binaries = options.bin.resolve()
    for program in ("tidemarkd", "tidemark-agent", "tidemark"):
        if not os.access(binaries / program, os.X_OK):
            sys.exit(f"demo: {binaries / program}: there is no such program (build it with `./dev build`)")
    for program in ("mke2fs", "debugfs", "e2fsck", "sqlite3"):
        if not shutil.which(program):
            sys.exit(f"demo: {program}: not installed (`./dev setup` installs what is missing)")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    demo, kept = None, False
    try:
        directory = work_directory()
        demo = Demo(binaries, directory)
        say(f"Tidemark: a machine with two disks, protected, changed, and recovered as it was at two moments.\nAll of it in {directory}")
        demo.play()
        say(f"\nBoth points are, byte for byte, the machine as it was. {time.monotonic() - demo.started:.0f} s in all.")
        if options.keep:
            demo.tell_how_to_go_on()
            kept = True
    except (Failed, OSError, KeyError, ValueError) as error:
        print(f"demo: {error if isinstance(error, Failed) else repr(error)}", file=sys.stderr)
        if demo:
            demo.show_logs()
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 1
    finally:
        if demo and not kept:
            demo.end()
            shutil.rmtree(demo.directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
