#!/usr/bin/env python3
"""Databases as witnesses: SQLite and PostgreSQL commit on file systems that are protected while they work. Points are cloned,
mounted, and the databases started on them: whole, with every transaction that was committed before the cut, none that was begun
after it.

TIDEMARK_POINTS says how many points are looked at, and so how long it takes; `./dev databases N` does."""
import contextlib
import os
import pathlib
import pwd
import re
import shutil
import sqlite3
import subprocess
import threading
import time
import unittest

from harness import BIN, MIB, Case, main, run, seconds_of, wait_for

POSTGRES = max(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), default=pathlib.Path("/usr/lib/postgresql/bin"))
PROGRAMS = ("nbdfuse", "losetup", "mkfs.ext4", "mkfs.xfs", "xfs_repair", "e2fsck", "runuser", POSTGRES / "initdb", POSTGRES / "pg_amcheck",
            POSTGRES / "pgbench")
MISSING = [str(program) for program in PROGRAMS if shutil.which(program) is None]
POINTS = int(os.environ.get("TIDEMARK_POINTS", 4))
CLIENTS = 3
# pgbench reads the wall clock once, and counts from there.
SLACK = 0.002

# pgbench's own transaction, and which one it was.
TRANSACTION = r"""
\set n :n + 1
\set aid random(1, 100000 * :scale)
\set tid random(1, 10 * :scale)
\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = 1;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, 1, :aid, :delta, CURRENT_TIMESTAMP);
INSERT INTO done VALUES (:client_id, :n, repeat(md5(:n::text), 20));
END;
"""
CONFIG = """
listen_addresses = ''
shared_buffers = 16MB
max_wal_size = 8MB
min_wal_size = 2MB
checkpoint_timeout = 30s
autovacuum_naptime = 1s
"""


class Commits:
    """What a client was told: number n was committed, asked for at `begun`, told at `ended`."""

    def __init__(self):
        self.all = []

    def judge(self, case, what, present, cut):
        numbers = sorted(present)
        case.assertEqual(numbers, list(range(1, len(numbers) + 1)), f"{what}: there is a gap")
        for n, begun, ended in self.all:
            if ended < cut - SLACK:
                case.assertLessEqual(n, len(numbers), f"{what}: committed {cut - ended:.3f} s before the cut, and missing")
            if begun > cut + SLACK:
                case.assertGreater(n, len(numbers), f"{what}: begun {begun - cut:.3f} s after the cut, and present")


class Sqlite:
    def __init__(self, mode, path):
        self.mode, self.path, self.commits, self.stop = mode, path, Commits(), threading.Event()
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute(f"PRAGMA journal_mode = {mode}")
            db.executescript("CREATE TABLE done (n INTEGER PRIMARY KEY, text TEXT, copy TEXT); CREATE INDEX by_text ON done (text);")

    def work(self):
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as db:
            # With FULL a rollback journal's deletion, which is the commit, may be lost with the power: SQLite says so.
            db.execute("PRAGMA synchronous = EXTRA")
            db.execute("PRAGMA wal_autocheckpoint = 100")
            n = 0
            while not self.stop.is_set():
                n += 1
                begun = time.time()
                db.execute("BEGIN IMMEDIATE")
                db.execute("INSERT INTO done VALUES (?, ?, '')", (n, f"{n * 7919 % 100_003}" * (1 + n % 300)))
                db.execute("UPDATE done SET copy = text WHERE n > ?", (n - 5,))
                db.execute("COMMIT")
                self.commits.all.append((n, begun, time.time()))

    def check(self, case, path, cut):
        with contextlib.closing(sqlite3.connect(path)) as db:
            case.assertEqual(db.execute("PRAGMA integrity_check").fetchall(), [("ok",)], self.mode)
            case.assertEqual(db.execute("SELECT count(*) FROM done WHERE copy <> text").fetchone(), (0,), self.mode)
            self.commits.judge(case, f"SQLite, {self.mode}", [n for n, in db.execute("SELECT n FROM done")], cut)


class Postgres:
    """A cluster in a directory, which belongs to `postgres`."""

    def __init__(self, case, data, sockets):
        self.case, self.data, self.sockets = case, data, sockets

    def as_postgres(self, program, *arguments, check=True, **options):
        done = subprocess.run(["runuser", "-u", "postgres", "--", str(POSTGRES / program), *map(str, arguments)], cwd="/", text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **options)
        if check:
            self.case.assertEqual(done.returncode, 0, f"{program} {arguments}: {done.stdout[-3000:]}\n{self.log()[-3000:]}")
        return done.stdout

    def log(self):
        path = self.sockets / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self):
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # of the process that the clone does not have
        self.as_postgres("pg_ctl", "start", "--wait", "--silent", "-D", self.data, "-l", self.sockets / "log", "-o", f"-k {self.sockets}")

    def stop(self):
        self.as_postgres("pg_ctl", "stop", "--wait", "--silent", "-m", "fast", "-D", self.data)

    def ask(self, sql):
        out = self.as_postgres("psql", "-h", self.sockets, "-d", "postgres", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql)
        return [line.split("|") for line in out.splitlines()]

    def check(self, commits, cut):
        self.start()
        try:
            # Every table and every index against its table.
            self.as_postgres("pg_amcheck", "-h", self.sockets, "-d", "postgres", "--heapallindexed", "--parent-check")
            sums = self.ask("SELECT sum(abalance) FROM pgbench_accounts UNION ALL SELECT sum(tbalance) FROM pgbench_tellers UNION ALL "
                            "SELECT sum(bbalance) FROM pgbench_branches UNION ALL SELECT coalesce(sum(delta), 0) FROM pgbench_history")
            self.case.assertEqual(len({value for value, in sums}), 1, f"transactions are there in part: {sums}")
            for client in range(CLIENTS):
                present = [int(n) for n, in self.ask(f"SELECT n FROM done WHERE client = {client}")]
                commits[client].judge(self.case, f"PostgreSQL, client {client}", present, cut)
        finally:
            self.stop()


@unittest.skipIf(MISSING, f"not installed: {', '.join(MISSING)}")
@unittest.skipUnless(os.geteuid() == 0, "needs root, for loop devices")
class Databases(Case):
    def setUp(self):
        super().setUp()
        os.chmod(self.directory, 0o711)  # the databases run as another user
        self.sockets = pathlib.Path(self.enter(self.scratch()))
        self.user = pwd.getpwnam("postgres")

    def enter(self, context):
        value = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return value

    @contextlib.contextmanager
    def scratch(self):
        """Short: a socket's path has 107 bytes."""
        path = pathlib.Path(run(["mktemp", "-d", "/tmp/tidemark-pg-XXXXXX"]).out.strip())
        shutil.chown(path, "postgres")
        try:
            yield path
        finally:
            shutil.rmtree(path)

    def file_system(self, name, size, kind, options):
        image, place = self.directory / f"{name}.image", self.directory / name
        with open(image, "wb") as file:
            file.truncate(size)
        device = self.loop_device(image)
        self.assertEqual(run([f"mkfs.{kind}", *options, device]).status, 0)
        place.mkdir()
        self.assertEqual(run(["mount", device, place]).status, 0)
        self.mounts.append(place)
        return device, place

    def begin_postgres(self, place):
        data = place / "pg"
        data.mkdir()
        shutil.chown(data, "postgres")
        postgres = Postgres(self, data, self.sockets)
        postgres.as_postgres("initdb", "-D", data, "--wal-segsize=1", "--data-checksums", "--locale=C", "--encoding=UTF8", "--auth=trust")
        with open(data / "postgresql.conf", "a") as file:
            file.write(CONFIG)
        postgres.start()
        postgres.ask("CREATE EXTENSION amcheck; CREATE TABLE done (client int, n int, text text, PRIMARY KEY (client, n))")
        postgres.as_postgres("pgbench", "-h", self.sockets, "-i", "-s", "1", "-q", "postgres")
        os.sync()  # what was not made durable by anybody, its configuration for one, may be missing at a point
        return postgres

    @contextlib.contextmanager
    def load(self, postgres, databases):
        script = self.sockets / "script"
        script.write_text(TRANSACTION)
        threads = [threading.Thread(target=database.work) for database in databases]
        pgbench = subprocess.Popen(
            ["runuser", "-u", "postgres", "--", POSTGRES / "pgbench", "-h", self.sockets, "-n", "-f", script, "-D", "n=0", "-D", "scale=1",
             "-c", str(CLIENTS), "-T", "100000", "-l", "--log-prefix", self.sockets / "transactions", "postgres"],
            cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        for thread in threads:
            thread.start()
        try:
            yield
            self.assertIsNone(pgbench.poll(), "pgbench ended by itself")
        finally:
            for database in databases:
                database.stop.set()
            for thread in threads:
                thread.join()
            # Its log is complete when it ends in order: when its connections end.
            with contextlib.suppress(AssertionError):
                postgres.stop()
            pgbench.wait()
            pgbench.stderr.close()

    def commits_of_pgbench(self):
        commits = [Commits() for _ in range(CLIENTS)]
        for path in self.sockets.glob("transactions.*"):
            for line in path.read_text().splitlines():
                client, number, microseconds, _, seconds, more = line.split()[:6]
                ended = int(seconds) + int(more) / 1e6
                commits[int(client)].all.append((int(number), ended - int(microseconds) / 1e6, ended))
        return commits

    @contextlib.contextmanager
    def cloned(self, epoch):
        """The disks of a point, mounted and writable: their directories."""
        name = f"check-{epoch}"
        self.server_.ask("clone", "create", "db1", "--at", f"epoch:{epoch}", "--name", name)
        with contextlib.ExitStack() as stack:
            stack.callback(self.server_.ask, "clone", "drop", name)
            stack.callback(wait_for, "nbdfuse to leave", lambda: self.server_.metric("tidemark_nbd_connections") == 0)
            places = []
            for disk, kind in ((0, "ext4"), (1, "xfs")):
                served, place = self.directory / f"{name}-{disk}.d", self.directory / f"{name}-{disk}"
                served.mkdir()
                place.mkdir()
                fuse = subprocess.Popen(["nbdfuse", served / "disk", f"nbd+unix:///clone/{name}/disk{disk}?socket={self.server_.data}/nbd.sock"])
                stack.callback(fuse.wait)
                stack.callback(run, ["umount", served])
                wait_for("nbdfuse", lambda: (served / "disk").exists())
                device = run(["losetup", "--find", "--show", served / "disk"]).out.strip()
                stack.callback(run, ["losetup", "--detach", device])
                done = run(["mount", *(["-o", "nouuid"] if kind == "xfs" else []), device, place])
                self.assertEqual(done.status, 0, f"epoch {epoch}: {done}")
                stack.callback(self.unmount_and_check, kind, device, place)
                places.append(place)
            yield places

    def unmount_and_check(self, kind, device, place):
        self.assertEqual(run(["umount", place]).status, 0)
        done = run(["e2fsck", "-fn", device] if kind == "ext4" else ["xfs_repair", "-n", device])
        self.assertEqual(done.status, 0, f"{kind}: {done}")

    def test_points_hold_what_was_committed(self):
        disk_a, ext4 = self.file_system("a", 256 * MIB, "ext4", ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
        disk_b, xfs = self.file_system("b", 128 * MIB, "xfs", ["-q", "-f", "--unsupported"])
        self.server_ = self.server()
        agent = self.agent("db1")
        agent.disks += [disk_a, disk_b]
        agent.protect()
        agent.set_option('tracking = "ebpf"')
        agent.set_option("interval_s = 0.5")
        postgres = self.begin_postgres(ext4)
        databases = [Sqlite("wal", xfs / "wal.db"), Sqlite("delete", ext4 / "delete.db")]
        agent.start()
        # The writers may keep the disk busy for longer than a round of reading takes: such a cut is told, and is no point.
        # The moment of a cut is what the agent says: the server's account of it has the way of the first message in it.
        cuts = {}
        def look():
            status = agent.status()
            if status["durable_consistency"] == "crash" and status["newest_point"] == status["durable_epoch"]:
                cuts[status["newest_point"]] = seconds_of(status["newest_point_time"])
            return len(cuts) >= POINTS + 1
        with self.load(postgres, databases):
            wait_for("the first point", lambda: agent.status()["newest_point"])
            wait_for(f"{POINTS + 1} points", look, deadline=120 + 10 * POINTS)
        agent.stop()
        self.assertNotEqual(self.commits_of_pgbench()[0].all, [])
        self.assertGreater(len(databases[0].commits.all), 10)
        looked_at = sorted(cuts.items())[-POINTS:]
        for epoch, cut in looked_at:
            with self.subTest(epoch=epoch), self.cloned(epoch) as (a, b):
                for database in databases:
                    database.check(self, (b if database.mode == "wal" else a) / database.path.name, cut)
                Postgres(self, a / "pg", self.sockets).check(self.commits_of_pgbench(), cut)
        print(f"{len(looked_at)} points looked at; commits: "
              f"{sum(len(one.all) for one in self.commits_of_pgbench())} of PostgreSQL, {[len(one.commits.all) for one in databases]} of SQLite")


if __name__ == "__main__":
    main()
