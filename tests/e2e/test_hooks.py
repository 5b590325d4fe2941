#!/usr/bin/env python3
"""Points that somebody asks for, applications that hooks hold for them, and the last point before a planned failover.

Hooks write down that they ran. What has to be still under way when something happens waits for a file, never for a time.
"""
import contextlib
import json
import os
import pathlib
import re
import shutil
import sqlite3
import threading
import unittest

from harness import DEADLINE, HERE, MIB, Case, change, main, needs_root, run, wait_for

HELD = ["pre-cut 10-db", "pre-cut 20-web", "post-cut 20-web", "post-cut 10-db"]


class WithHooks(Case):
    def setUp(self):
        super().setUp()
        self.staging = self.server()
        self.etc = self.directory / "etc"
        self.said = self.directory / "hooks.said"
        for stage in ("pre-cut", "post-cut"):
            (self.etc / f"{stage}.d").mkdir(parents=True)

    def agent_with_hooks(self, disks=None, **options):
        self.web1 = self.agent("web1", disks=disks or {"vda.img": 2 * MIB})
        for key, value in {"hooks": str(self.etc), "interval_s": 0.2, **options}.items():
            self.web1.set_option(f"{key} = {json.dumps(value)}")
        return self.web1

    def hook(self, stage, name, then="", mode=0o755):
        path = self.etc / f"{stage}.d" / name
        path.write_text(f'#!/bin/sh\necho "$TIDEMARK_STAGE {name} $TIDEMARK_EPOCH $TIDEMARK_RESULT" >> {self.said}\n{then}\n')
        path.chmod(mode)
        return path

    def two_applications(self):
        for name in ("10-db", "20-web"):
            self.hook("pre-cut", name)
            self.hook("post-cut", name)

    def ran(self):
        """Stage and name of the hooks that ran."""
        return [" ".join(line.split()[:2]) for line in self.lines()]

    def lines(self):
        return self.said.read_text().splitlines() if self.said.exists() else []

    def run_until_first_point(self):
        self.web1.start()
        wait_for("the first point", lambda: self.staging.points("web1"))

    def point_at(self, epoch):
        return next(point for point in self.staging.points("web1") if point["epoch"] == epoch)


class Application(WithHooks):
    def test_every_hook_in_its_turn(self):
        self.agent_with_hooks()
        self.two_applications()
        self.hook("pre-cut", ".hidden")
        self.hook("pre-cut", "10-db~")
        self.hook("pre-cut", "15-off", mode=0o644)
        self.run_until_first_point()
        self.assertEqual(self.ran(), [], "only for a point that is to be one of the application")
        done = self.web1.run("point", "--application")
        self.assertEqual(done.status, 0, done)
        self.assertEqual((done.json["consistency"], done.json["hooks_failure"]), ("application", ""))
        self.assertEqual(self.ran(), HELD)
        epoch = done.json["epoch"]
        self.assertEqual({line.split()[2] for line in self.lines()}, {str(epoch)})
        self.assertEqual([line.split()[3] for line in self.lines()[2:]], ["held", "held"])
        self.assertEqual(self.point_at(epoch)["consistency"], "application")
        self.assertEqual(self.export(self.staging, "web1", f"epoch:{epoch}"), self.web1.digests())
        status = wait_for("status", lambda: (s := self.web1.status())["application_point"] == epoch and s)
        self.assertEqual((status["application_point_time"], status["hooks_failure"], status["cause"]), (done.json["time"], "", ""))
        for name, why in ((r"\.hidden", "hidden"), ("10-db~", "a backup"), ("15-off", "not executable")):
            self.assert_logged(self.web1, f"hook skipped folder=.*pre-cut.d why=\"{name}: {why}")

    def test_a_point_of_its_own_although_nothing_changed(self):
        self.agent_with_hooks()
        self.two_applications()
        self.run_until_first_point()
        first, second = (self.web1.must("point", "--application")["epoch"] for _ in range(2))
        self.assertGreater(second, first)
        for epoch in (first, second):
            self.assertEqual(self.point_at(epoch)["consistency"], "application")

    def test_what_a_hook_says_is_logged(self):
        self.agent_with_hooks()
        self.hook("pre-cut", "10-db", "echo to stdout; echo to stderr >&2; printf 'without end'")
        self.run_until_first_point()
        self.web1.must("point", "--application")
        for text in ("to stdout", "to stderr", "without end"):
            self.assert_logged(self.web1, f'hook=pre-cut.d/10-db said="{text}"')

    def not_the_applications(self, why, ran):
        """A point all the same, and the reason wherever one looks."""
        self.allow("no application point")
        done = self.web1.run("point", "--application")
        self.assertEqual(done.status, 1, done)
        self.assertRegex(done.json["hooks_failure"], why)
        self.assertRegex(done.err, f"it is no application point: .*{why}")
        self.assertEqual(done.json["consistency"], "filesystem")
        self.assertEqual(self.point_at(done.json["epoch"])["consistency"], "filesystem")
        self.assertEqual(self.ran(), ran)
        status = wait_for("status", lambda: re.search(why, (s := self.web1.status())["hooks_failure"]) and s)
        self.assertRegex(status["cause"], why)
        wait_for("the server to be told", lambda: re.search(why, self.staging.machine("web1")["cause"]))
        self.assert_logged(self.web1, f"no application point epoch={done.json['epoch']} why=.*{why}")
        return done

    def test_one_that_fails(self):
        self.agent_with_hooks()
        self.two_applications()
        self.hook("pre-cut", "20-web", "exit 3")
        self.hook("pre-cut", "30-late")
        self.hook("post-cut", "30-late")
        self.hook("post-cut", "00-always")
        self.run_until_first_point()
        self.not_the_applications(r"pre-cut\.d/20-web: exit status 3", HELD + ["post-cut 00-always"])
        self.assertEqual([line.split()[3] for line in self.lines()[2:]], ["failed"] * 3)
        self.hook("post-cut", "00-always", "exit 9")
        self.allow("ALARM: a hook failed")
        self.web1.run("point", "--application")
        wait_for("both to be told", lambda: re.search("20-web: exit status 3.*still stand still: post-cut.d/00-always: exit status 9",
                                                      self.web1.status()["hooks_failure"]))
        self.hook("post-cut", "00-always")
        self.hook("pre-cut", "20-web")
        self.assertEqual(self.web1.must("point", "--application")["consistency"], "application")
        wait_for("the failure to be over", lambda: not self.web1.status()["cause"])

    def test_one_that_takes_too_long(self):
        self.agent_with_hooks(hook_limit_s=0.3)
        self.hook("pre-cut", "10-db", "sleep 10000")
        self.hook("post-cut", "10-db")
        self.run_until_first_point()
        self.not_the_applications(r"pre-cut\.d/10-db: time limit of 0\.3 s", ["pre-cut 10-db", "post-cut 10-db"])

    def test_one_that_cannot_be_executed(self):
        self.agent_with_hooks()
        self.hook("pre-cut", "10-db").write_bytes(b"\x7fELF is not what this is")
        self.run_until_first_point()
        self.not_the_applications(r"pre-cut\.d/10-db: exit status 126 \(it could not be executed\)", [])

    def test_ones_that_others_may_write_to(self):
        self.agent_with_hooks()
        self.two_applications()
        self.run_until_first_point()
        (self.etc / "pre-cut.d/20-web").chmod(0o777)
        self.not_the_applications(r"pre-cut\.d/20-web: is writable by others than root \(mode 0777\): no hook is run", [])
        (self.etc / "pre-cut.d/20-web").chmod(0o755)
        (self.etc / "post-cut.d").chmod(0o775)
        self.not_the_applications(r"post-cut\.d: is writable by others than root", [])
        (self.etc / "post-cut.d").chmod(0o755)
        self.etc.chmod(0o777)
        self.not_the_applications(r"etc: is writable by others than root", [])

    def test_none(self):
        self.agent_with_hooks()
        self.hook("post-cut", "10-db")
        self.run_until_first_point()
        self.not_the_applications(r"pre-cut\.d: has no hooks", [])

    def test_one_that_fails_to_let_go(self):
        self.agent_with_hooks()
        self.two_applications()
        self.hook("post-cut", "20-web", "exit 5")
        self.run_until_first_point()
        self.allow("ALARM: a hook failed, its application may still stand still")
        done = self.web1.run("point", "--application")
        self.assertEqual(done.status, 0, done)
        self.assertEqual((done.json["consistency"], done.json["post_hooks_failure"]), ("application", "post-cut.d/20-web: exit status 5"))
        self.assertEqual(self.ran(), HELD, "the others go on")
        wait_for("status", lambda: re.search("may still stand still: post-cut.d/20-web: exit status 5", self.web1.status()["cause"]))

    def test_on_a_schedule(self):
        self.agent_with_hooks(application_points_every_s=0.5)
        self.two_applications()
        self.web1.start()
        wait_for("two of them", lambda: sum(p["consistency"] == "application" for p in self.staging.points("web1")) >= 2)
        self.assertEqual(self.ran()[:8], HELD * 2)


class Interrupted(WithHooks):
    """Between the first pre hook and the last post hook."""

    def hold(self):
        """An agent whose second pre hook goes on until `self.go` is there."""
        self.agent_with_hooks(hook_limit_s=600)
        self.two_applications()
        self.go, pid = self.directory / "go", self.directory / "pid"
        self.hook("pre-cut", "20-web", f"echo $$ > {pid}.new; mv {pid}.new {pid}\nwhile [ ! -e {self.go} ]; do sleep 0.05; done")
        self.run_until_first_point()
        self.asker = self.agent("asker", enroll=False)
        self.asker.state = self.web1.state
        self.asker.start("point", "--application")
        self.pid = int(wait_for("the second pre hook", lambda: pid.exists() and pid.read_text()))
        self.assertEqual(self.ran(), HELD[:2])

    def test_killed(self):
        self.hold()
        self.web1.kill()
        self.assert_error(self.asker.finish().error, "agent: it ended before the point was durable", "unavailable")
        wait_for("the hook to end with the agent", lambda: not pathlib.Path(f"/proc/{self.pid}").exists())
        self.assertEqual(self.ran(), HELD[:2])
        self.allow("an agent was killed while applications stood still")
        self.web1.start()
        wait_for("the post hooks", lambda: self.ran() == HELD)
        self.assertEqual([line.split()[-1] for line in self.lines()[2:]], ["killed", "killed"])
        self.web1.stop()
        self.web1.must("sync", "--once")
        self.assertEqual(self.ran(), HELD, "once")

    def test_killed_and_thawed(self):
        self.hold()
        self.web1.kill()
        self.assertEqual(self.asker.finish().status, 1)
        self.allow("an agent was killed while applications stood still")
        thawed = self.web1.must("thaw")
        self.assertEqual((thawed["released"], thawed["hooks_failed"]), (True, []))
        self.assertEqual(self.ran(), HELD)
        self.assertFalse(self.web1.must("thaw")["released"])

    def test_asked_to_stop(self):
        self.hold()
        self.allow("no application point")
        stopped = self.web1.stop()
        self.assertEqual(stopped.status, 0, stopped)
        self.assertEqual(self.ran(), HELD)
        self.assert_error(self.asker.finish().error, "asked to stop", "cancelled")

    def test_the_link_is_lost(self):
        self.hold()
        self.allow("not connected server=", "session ended", "not connected")
        self.staging.kill()
        self.go.touch()
        wait_for("the post hooks", lambda: self.ran()[:4] == HELD)
        self.assert_error(self.asker.finish().error, "not connected to the server", "unavailable")
        self.staging.start()
        wait_for("it to be back", lambda: self.web1.status()["connected"])
        self.assertEqual(self.web1.must("point", "--application")["consistency"], "application")

    def test_standing_still_for_too_long(self):
        """The reading takes longer than applications may stand still for: they go on, and it is no point of theirs."""
        size = 40 * MIB  # more than the agent reads ahead of the sending
        self.agent_with_hooks(disks={"vda.img": -size}, hold_limit_s=0.2)
        self.two_applications()
        self.run_until_first_point()
        self.web1.stop()
        self.web1.disks[0].write_bytes(os.urandom(size))
        self.web1.set_option("rate_limit_mib_s = 8")
        self.web1.set_option("application_points_every_s = 3600")
        self.allow("applications stood still for 0.2 s without a cut", "no application point")
        self.web1.start()
        wait_for("the failure", lambda: re.search("stand still for longer than 0.2 s", self.web1.status()["hooks_failure"]))
        self.assertEqual(self.ran(), HELD)


class Asking(WithHooks):
    def test_a_point_of_now(self):
        self.agent_with_hooks(interval_s=3600)
        self.run_until_first_point()
        first = self.staging.points("web1")[0]["epoch"]
        same = self.web1.must("point")
        self.assertGreater(same["epoch"], first, "one of its own, although nothing changed")
        change(self.web1.disks[0], 3)
        done = self.web1.must("point")
        self.assertEqual(done["consistency"], "filesystem")
        self.assertEqual(self.point_at(done["epoch"])["consistency"], "filesystem")
        self.assertEqual(self.export(self.staging, "web1", f"epoch:{done['epoch']}"), self.web1.digests())

    def test_in_words(self):
        self.agent_with_hooks(interval_s=3600)
        self.run_until_first_point()
        done = run([part for part in self.web1.command("point") if part != "--json"])
        self.assertRegex(done.out, r"^epoch \d+ of 20\S+Z: filesystem consistent point, durable\n$")

    def test_nobody_to_ask(self):
        self.agent_with_hooks()
        self.assert_error(self.web1.run("point").error, "no agent runs here.*tidemark-agent run", "unavailable")

    def test_a_sync_is_not_asked(self):
        self.agent_with_hooks(disks={"vda.img": -8 * MIB})
        self.web1.start("sync", "--once", "--rate-limit", "2")
        wait_for("it to be at work", lambda: self.staging.machine("web1")["connected"])
        asker = self.agent("asker", enroll=False)
        asker.state = self.web1.state
        self.assert_error(asker.run("point").error, "a `sync` is at work here", "busy")
        self.assertEqual(self.web1.finish().status, 0)

    def test_not_connected(self):
        self.agent_with_hooks()
        self.run_until_first_point()
        self.allow("not connected server=")
        self.staging.stop()
        wait_for("it to notice", lambda: self.web1.status()["state"] == "disconnected")
        self.assert_error(self.web1.run("point").error, "not connected to the server: .*nothing listens|refused", "unavailable")
        self.staging.start()
        wait_for("it to be back", lambda: self.web1.status()["connected"])
        self.web1.must("point")

    def test_the_time_is_up_in_an_initial_sync(self):
        self.agent_with_hooks(disks={"vda.img": -48 * MIB}, rate_limit_mib_s=0.25)
        self.web1.start()
        wait_for("it to be at work", lambda: (s := self.web1.status())["state"] == "initial-sync" and s["done_bytes"])
        done = self.web1.run("point", "--timeout", "5")
        self.assert_error(done.error, "point: none within 5 s: the agent's state is initial-sync, .* of 48.0 MiB", "timed-out")
        self.assertIn("waiting: the agent's state is initial-sync", done.err)
        self.assertFalse((self.web1.state / "point.request").exists(), "it is taken back")

    def test_a_disk_is_away(self):
        self.agent_with_hooks()
        self.run_until_first_point()
        self.allow("no epoch: a disk failed")
        self.web1.disks[0].rename(self.directory / "away.img")
        self.assert_error(self.web1.run("point").error, r"vda\.img: .*No such file", "not-found")

    def test_one_at_a_time(self):
        self.agent_with_hooks()
        go = self.directory / "go"
        self.hook("pre-cut", "10-db", f"while [ ! -e {go} ]; do sleep 0.05; done")
        self.run_until_first_point()
        asker = self.agent("asker", enroll=False)
        asker.state = self.web1.state
        asker.start("point", "--application")
        wait_for("the hook", self.ran)
        self.assert_error(self.web1.run("point").error, "somebody else is asking", "busy")
        go.touch()
        self.assertEqual(asker.finish().status, 0)

    def test_a_request_of_before_the_start(self):
        self.agent_with_hooks()
        (self.web1.state / "point.request").write_text('{"id": "1", "agent": 1, "application": false, "final": true, "timeout_ms": 60000}')
        self.run_until_first_point()
        self.assert_logged(self.web1, "a point that was asked for before this start is not made")
        self.web1.must("point")
        self.assertIsNone(self.web1.process.poll())

    def test_a_request_that_is_none(self):
        self.agent_with_hooks()
        self.run_until_first_point()
        self.allow("a request for a point is ignored")
        (self.web1.state / "point.request").write_text("{")
        self.assert_logged(self.web1, 'a request for a point is ignored why=".*point.request: is no request')
        self.web1.must("point")


class Final(WithHooks):
    def test_the_agent_ends_with_its_last_point(self):
        self.agent_with_hooks()
        self.two_applications()
        self.run_until_first_point()
        change(self.web1.disks[0], 9)
        asker = self.agent("asker", enroll=False)
        asker.state = self.web1.state
        done = asker.must("point", "--final", "--application")
        ended = self.web1.finish()
        self.assertEqual(ended.status, 0, ended)
        self.assertEqual((done["final"], done["consistency"]), (True, "application"))
        self.assertEqual(self.ran(), HELD)
        points = self.staging.points("web1")
        self.assertEqual(max(point["epoch"] for point in points), done["epoch"], "nothing after it")
        self.assertEqual(self.export(self.staging, "web1"), self.web1.digests())
        status = self.web1.status()
        self.assertEqual((status["running"], status["state"]), (False, "stopped"))
        self.assertRegex(status["cause"], f"the final point was made, epoch {done['epoch']}")
        # It can be taken up again.
        self.web1.start()
        wait_for("it to go on", lambda: self.web1.status()["state"] == "continuous")

    def test_not_without_the_applications_word(self):
        self.agent_with_hooks()
        self.hook("pre-cut", "10-db", "exit 1")
        self.run_until_first_point()
        self.allow("no application point")
        done = self.web1.run("point", "--final", "--application")
        self.assertEqual(done.status, 1, done)
        self.assertEqual((done.json["final"], done.json["consistency"]), (False, "filesystem"))
        self.assertIn("it is not the final one, for it is not what was asked for: the agent goes on", done.err)
        self.web1.must("point")
        self.assertIsNone(self.web1.process.poll())

    def test_the_unit_does_not_start_it_again(self):
        unit = (HERE.parent.parent / "deploy/tidemark-agent.service").read_text()
        self.assertIn("\nRestart=on-failure\n", unit, "exit 0 is for good")


@needs_root
class MountedDisk(WithHooks):
    """What hooks wrote, and nothing flushed, is in the point; what came after is not."""

    def mounted(self, tracking):
        image, self.place = self.directory / "disk.image", self.directory / "mnt"
        with open(image, "wb") as file:
            file.truncate(32 * MIB)
        device = self.loop_device(image)
        self.assertEqual(run(["mkfs.ext4", "-q", device]).status, 0)
        self.place.mkdir()
        self.assertEqual(run(["mount", device, self.place]).status, 0)
        self.mounts.append(self.place)
        self.web1 = self.agent("web1")
        self.web1.disks = [device]
        self.web1.protect()
        for line in (f'hooks = "{self.etc}"', f'tracking = "{tracking}"', "interval_s = 0.2"):
            self.web1.set_option(line)
        self.hook("pre-cut", "10-db", f"echo before $TIDEMARK_EPOCH > {self.place}/before")
        self.hook("post-cut", "10-db", f"echo after $TIDEMARK_EPOCH > {self.place}/after")
        self.run_until_first_point()

    def inside(self, epoch, name):
        out = self.directory / f"out-{epoch}-{name}"
        manifest = self.staging.ask("export", "web1", "--at", f"epoch:{epoch}", "--output", f"{out}/")
        text = run(["debugfs", "-R", f"cat /{name}", manifest["disks"][0]["file"]]).out
        shutil.rmtree(out)
        return text.strip()

    def check(self, tracking):
        self.mounted(tracking)
        wait_for("it to say how", lambda: self.web1.status()["tracking"] == tracking)
        epochs = []
        for _ in range(2):
            done = self.web1.must("point", "--application")
            self.assertEqual(done["consistency"], "application", done)
            epochs.append(done["epoch"])
            self.assertEqual(self.inside(done["epoch"], "before"), f"before {done['epoch']}")
        self.assertEqual(self.inside(epochs[0], "after"), "")
        self.assertEqual(self.inside(epochs[1], "after"), f"after {epochs[0]}")
        (self.place / "last").write_text("word")
        asker = self.agent("asker", enroll=False)
        asker.state = self.web1.state
        done = asker.must("point", "--final")
        self.assertEqual(self.web1.finish().status, 0)
        self.assertEqual(done["consistency"], "filesystem")
        self.assertEqual(self.inside(done["epoch"], "last"), "word")

    @unittest.skipIf(shutil.which("sqlite3") is None, "sqlite3 is not installed")
    def test_the_example_of_the_manual(self):
        """A busy database stands still: no transaction is under way in the point."""
        self.mounted("ebpf")
        database = self.place / "app.db"
        manual = (HERE.parent.parent / "docs/agent.md").read_text()
        for stage in ("pre-cut", "post-cut"):
            (self.etc / f"{stage}.d/10-db").unlink()
            example = re.search(rf"(    #!/bin/sh\n    # {stage}\.d/20-app.*?)\n\n", manual, re.S)[1]
            script = re.sub("^    ", "", example, flags=re.M).replace("/srv/app.db", str(database)).replace("/run/", f"{self.directory}/")
            path = self.etc / f"{stage}.d/20-app"
            path.write_text(script + "\n")
            path.chmod(0o755)
        connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False, timeout=DEADLINE)
        self.addCleanup(connection.close)  # or its file system could not be unmounted
        connection.execute("CREATE TABLE t (n INTEGER)")
        over = threading.Event()

        def write():
            while not over.wait(0.01):  # whoever polls for the lock has to have a chance
                connection.execute("INSERT INTO t VALUES (1)")
        writer = threading.Thread(target=write)
        writer.start()
        try:
            epochs = [self.web1.must("point", "--application") for _ in range(3)]
            rows = connection.execute("SELECT count(*) FROM t").fetchone()[0]
            wait_for("the writer to go on", lambda: connection.execute("SELECT count(*) FROM t").fetchone()[0] > rows)
        finally:
            over.set()
            writer.join()
        for done in epochs:
            self.assertEqual((done["consistency"], done["post_hooks_failure"]), ("application", ""), done)
            out = self.directory / f"out-{done['epoch']}"
            manifest = self.staging.ask("export", "web1", "--at", f"epoch:{done['epoch']}", "--output", f"{out}/")
            disk = manifest["disks"][0]["file"]
            self.assertNotIn("app.db-journal", run(["debugfs", "-R", "ls -p /", disk]).out)
            run(["debugfs", "-R", f"dump /app.db {out}/app.db", disk])
            with contextlib.closing(sqlite3.connect(f"{out}/app.db")) as copy:
                self.assertEqual(copy.execute("PRAGMA integrity_check").fetchone()[0], "ok")

    def test_tracked(self):
        self.check("ebpf")

    def test_compared(self):
        self.check("digests")


if __name__ == "__main__":
    main()
