#!/usr/bin/env python3
"""Sources that shrink, grow, disappear or fail to read, above all in the middle of an epoch.

Each: the disk, the place and the remedy are named by the agent (log and status); the server gives the open epoch up,
says so in a line and counts it; nothing that is not whole is committed, older points stay, other machines go on; and
when the source is well again, so is the machine.
"""
import os
import random
import re

from harness import MIB, Case, change, main, needs_root, run, wait_for

RECEIVED = "received_block_bytes_total"
ABORTED = "epochs_aborted_total"


class Sources(Case):
    def setUp(self):
        super().setUp()
        self.staging = self.server()
        self.web1 = self.agent("web1", disks={"vda.img": -20 * MIB, "vdb.img": 1 * MIB})
        self.other = self.agent("other", disks={"vda.img": 1 * MIB})
        self.other.set_option("interval_s = 0.5")
        self.other.start()
        wait_for("the other machine's point", lambda: self.staging.points("other"))

    def tearDown(self):
        before = self.staging.machine("other")["unchanged_as_of"]
        wait_for("the other machine to go on", lambda: self.staging.machine("other")["unchanged_as_of"] != before)
        self.assertEqual(len(re.findall("connected server=", self.other.log())), 1, "its session was disturbed")

    def begin(self, agent=None, sent=2 * MIB):
        """The agent runs, slowly; returns when some of its disks has arrived."""
        agent = agent or self.web1
        agent.set_option("rate_limit_mib_s = 8")
        agent.set_option("interval_s = 0.5")
        mark = self.staging.metric(RECEIVED)
        agent.start()
        wait_for("some of it to arrive", lambda: self.staging.metric(RECEIVED) > mark + sent)
        self.assertIsNone(agent.process.poll())

    def comes_whole(self, more_than=0):
        """A point of what the disks hold now."""
        wait_for("a new point", lambda: len(self.staging.points("web1")) > more_than)
        self.assertEqual(self.export(self.staging, "web1"), self.web1.digests())

    def no_half(self, digests, count=1):
        """The older points are all there is, and hold what they held."""
        self.assertEqual(len(self.staging.points("web1")), count)
        self.assertEqual(self.export(self.staging, "web1"), digests)

    def stalls(self, what, remedy):
        status = wait_for("the agent to say that it stalls", lambda: (s := self.web1.status())["state"] == "stalled" and s)
        self.assertRegex(status["cause"], what)
        self.assertRegex(status["remedy"], remedy)
        self.assert_logged(self.web1, f"error no epoch: a disk failed error=.*{what}.*{remedy}")
        seen = wait_for("the server to be told", lambda: (m := self.staging.machine("web1"))["state"] == "stalled" and m)
        self.assertRegex(seen["cause"], what)
        self.assertTrue(seen["connected"])

    def test_one_that_shrinks_in_the_middle(self):
        with self.tells(self.staging, ABORTED, r"epoch aborted .*vda\.img: (ends at or before byte|its size changed)"):
            self.begin()
            os.truncate(self.web1.disks[0], 3 * MIB)
            self.assert_logged(self.web1, r"disk changed, the epoch begins anew why=.*vda\.img: (ends at or before|its size changed).*opened anew")
        self.comes_whole()
        sizes = {disk["name"]: disk["size"] for disk in self.staging.machine("web1")["disks"]}
        self.assertEqual(sizes["vda.img"], 3 * MIB)

    def test_one_that_grows_in_the_middle(self):
        with self.tells(self.staging, ABORTED, r"epoch aborted .*vda\.img: its size changed from 20971520 to 23068672"):
            self.begin()
            os.truncate(self.web1.disks[0], 22 * MIB)
            self.assert_logged(self.web1, r"disk changed, the epoch begins anew why=.*vda\.img: its size changed from 20971520 to 23068672")
        self.comes_whole()
        sizes = {disk["name"]: disk["size"] for disk in self.staging.machine("web1")["disks"]}
        self.assertEqual(sizes["vda.img"], 22 * MIB)

    def test_one_that_grew_keeps_its_older_points(self):
        self.web1.sync()
        before = self.web1.digests()
        epoch = self.staging.points("web1")[0]["epoch"]
        os.truncate(self.web1.disks[0], 22 * MIB)
        change(self.web1.disks[0], 4)
        self.assertTrue(self.web1.sync()["point"])
        self.assertEqual(self.export(self.staging, "web1"), self.web1.digests())
        self.assertEqual(self.export(self.staging, "web1", f"epoch:{epoch}"), before)

    def test_one_that_disappears_in_the_middle(self):
        self.web1.sync()
        before = self.web1.digests()
        self.web1.disks[0].write_bytes(random.Random(7).randbytes(20 * MIB))
        self.allow(r"no epoch: a disk failed error=.*vda\.img: .*No such file")
        away = self.directory / "away.img"
        with self.tells(self.staging, ABORTED, r"epoch aborted .*vda\.img: .*No such file", by=None):
            self.begin()
            self.web1.disks[0].rename(away)
            self.stalls(r"vda\.img: .*No such file", "put it back or attach it again, or take it off the list with `unprotect`")
        self.no_half(before)
        away.rename(self.web1.disks[0])
        self.comes_whole(more_than=1)

    def test_one_that_is_away_when_an_epoch_is_due(self):
        self.web1.sync()
        before = self.web1.digests()
        away = self.directory / "away.img"
        self.web1.disks[1].rename(away)
        done = self.web1.run("sync", "--once", "--retry-for", "2")
        self.assertEqual(done.status, 1, done)
        self.assert_error(done.error, r"vdb\.img: .*No such file.*put it back", "not-found")
        self.no_half(before)
        away.rename(self.web1.disks[1])
        change(self.web1.disks[1], 8)
        self.assertTrue(self.web1.sync()["point"])
        self.assertEqual(self.export(self.staging, "web1"), self.web1.digests())

    @needs_root
    def test_one_that_fails_to_read_in_the_middle(self):
        """A loop device whose backing file lost its end: the device keeps its size, and reads there give EIO."""
        backing = self.directory / "backing.img"
        backing.write_bytes(random.Random(1).randbytes(32 * MIB))
        device = self.loop_device(backing)
        self.web1.must("unprotect", *self.web1.disks)
        self.web1.disks = [device]
        self.web1.protect().sync()
        before = self.web1.digests()
        content = random.Random(2).randbytes(32 * MIB)
        with open(backing, "r+b") as file:
            file.write(content)
        failing = 28 * MIB
        self.allow(rf"no epoch: a disk failed error=\"{device}: cannot read 4096 bytes at {failing}: Input/output error")
        with self.tells(self.staging, ABORTED, f"epoch aborted .*{device}: cannot read 4096 bytes at {failing}: Input/output error", by=None):
            self.begin()
            os.truncate(backing, failing)
            self.stalls(f"{device}: cannot read 4096 bytes at {failing}: Input/output error", "look for disk errors in the kernel's log")
        self.no_half(before)
        with open(backing, "r+b") as file:  # the sectors can be read again
            file.seek(failing)
            file.write(content[failing:])
        self.comes_whole(more_than=1)

    def test_one_that_is_no_disk(self):
        for path, what, code in (("/nonexistent/x.img", "No such file", "not-found"),
                                 (self.directory, "neither a block device nor a regular file", "invalid-argument"),
                                 ("/dev/null", "/dev/null: neither a block device nor a regular file", "invalid-argument")):
            done = self.web1.run("protect", path)
            self.assertEqual(done.status, 1, f"{path}: {done}")
            self.assert_error(done.error, what, code)
        self.assertEqual(len(self.web1.must("protect", self.web1.disks[0])["disks"]), 2, "protecting twice changes nothing")


class Agents(Case):
    def setUp(self):
        super().setUp()
        self.staging = self.server()
        self.web1 = self.agent("web1", disks={"vda.img": -8 * MIB})

    def test_two_on_one_state_directory(self):
        self.web1.start("sync", "--once", "--rate-limit", "8")
        wait_for("the first to be at work", lambda: self.staging.machine("web1")["connected"])
        second = self.web1.run("sync", "--once")
        self.assertEqual(second.status, 1, second)
        self.assert_error(second.error, "lock|another|already|runs", "busy")
        self.assertEqual(self.web1.finish().status, 0)

    def test_one_without_server_says_so(self):
        self.staging.stop()
        done = self.web1.run("sync", "--once", "--retry-for", "1")
        self.assertEqual(done.status, 1, done)
        self.assert_error(done.error, "refused|nothing listens", "unavailable")

    def test_one_that_was_never_enrolled_says_so(self):
        stranger = self.agent("stranger", enroll=False)
        done = stranger.run("sync", "--once")
        self.assertEqual(done.status, 1, done)
        self.assert_error(done.error, "not enrolled.*tidemark-agent enroll", "not-found")


if __name__ == "__main__":
    main()
