#!/usr/bin/env python3
"""Bad input from disks: sources that shrink, grow or disappear, a full staging disk, data directories that are damaged,
foreign, of the future or restored from an old copy, and configurations that cannot be.

Each case: one clear error that names what and what to do, nothing lost, and the rest goes on.
"""
import json
import os
import re
import shutil
import unittest

from harness import BIN, MIB, Agent, Case, change, fill, main, needs_root, run, sha256, wait_for

SLOW = ("--rate-limit", "8")


class Sources(Case):
    def setUp(self):
        super().setUp()
        self.staging = self.server()
        self.web1 = self.agent("web1", disks={"vda.img": -20 * MIB, "vdb.img": 1 * MIB})

    def in_the_middle(self, act):
        """Does something to the sources while an initial sync is under way."""
        mark = self.staging.metric("blocks_bytes|bytes_in|received_bytes")
        self.web1.start("sync", "--once", "--consistency", "any", *SLOW)
        wait_for("some of it to arrive", lambda: self.staging.metric("blocks_bytes|bytes_in|received_bytes") > mark + MIB)
        self.assertIsNone(self.web1.process.poll())
        act()
        return self.web1.finish()

    def recovers(self):
        done = self.web1.sync()
        self.assertTrue(done["point"], done)
        self.assertEqual(self.export(self.staging, "web1"), self.web1.digests())

    def no_false_point(self, before):
        """Whatever points there are hold what the disks held when they were untouched."""
        for point in self.staging.points("web1"):
            self.assertEqual(self.export(self.staging, "web1", f"epoch:{point['epoch']}"), before)

    def test_a_source_that_shrinks(self):
        self.allow("vda.img", "shr|size|short|end of")
        before = self.web1.digests()
        done = self.in_the_middle(lambda: os.truncate(self.web1.disks[0], 3 * MIB))
        if done.status != 0:
            self.assert_error(done.error, "vda.img.*(size|short|shr|smaller)")
        else:
            self.assertFalse(done.json["point"] and done.json["epoch"] == 1 and before != self.web1.digests())
        self.recovers()

    def test_a_source_that_grows(self):
        self.allow("vda.img", "grew|grown|size")
        self.in_the_middle(lambda: os.truncate(self.web1.disks[0], 24 * MIB))
        self.recovers()
        sizes = {disk["name"]: disk["size"] for disk in self.staging.machine("web1")["disks"]}
        self.assertEqual(sizes["vda.img"], 24 * MIB)

    def test_a_grown_source_keeps_its_older_points(self):
        self.web1.sync()
        before = self.web1.digests()
        epoch = self.staging.points("web1")[0]["epoch"]
        os.truncate(self.web1.disks[0], 22 * MIB)
        change(self.web1.disks[0], 4)
        self.recovers()
        self.assertEqual(self.export(self.staging, "web1", f"epoch:{epoch}"), before)

    def test_a_source_that_disappears(self):
        self.allow("vdb.img", "No such file|gone|not there|disappeared")
        self.web1.sync()
        before = self.web1.digests()
        away = self.directory / "away.img"
        self.web1.disks[1].rename(away)
        done = self.web1.run("sync", "--once", "--retry-for", "2")
        self.assertEqual(done.status, 1, done)
        self.assert_error(done.error, "vdb.img")
        self.no_false_point(before)
        away.rename(self.web1.disks[1])
        change(self.web1.disks[1], 8)
        self.recovers()

    def test_a_source_that_is_no_disk(self):
        for path, what in (("/nonexistent/x.img", "No such file|not.*exist|no such"), (self.directory, "neither a block device nor a regular file"), ("/dev/null", "/dev/null")):
            done = self.web1.run("protect", path)
            self.assertEqual(done.status, 1, f"{path}: {done}")
            self.assert_error(done.error, what)
        self.assertEqual(len(self.web1.must("protect", self.web1.disks[0])["disks"]), 2, "protecting twice changes nothing")

    @unittest.skipUnless(os.geteuid() == 0 and shutil.which("dmsetup"), "needs root and dmsetup, for a disk with bad sectors")
    def test_a_source_that_fails_to_read(self):
        name = f"tidemark-e2e-{os.getpid()}"
        table = "0 2048 zero\n2048 8 error\n2056 6136 zero\n"
        if run(["dmsetup", "create", name, "--table", table]).status != 0:
            self.skipTest("device mapper does not work here")
        self.addCleanup(run, ["dmsetup", "remove", "--retry", name])
        self.allow(name, "Input/output error|cannot read")
        self.web1.must("protect", f"/dev/mapper/{name}")
        done = self.web1.run("sync", "--once", "--retry-for", "2")
        self.assertEqual(done.status, 1, done)
        self.assert_error(done.error, "read.*1048576|Input/output")
        self.assertEqual(self.staging.points("web1"), [])
        self.web1.must("unprotect", f"/dev/mapper/{name}")
        self.recovers()

    def test_two_agents_on_one_state_directory(self):
        self.web1.start("sync", "--once", *SLOW)
        wait_for("the first to be at work", lambda: self.staging.machine("web1")["connected"])
        second = self.web1.run("sync", "--once")
        self.assertEqual(second.status, 1, second)
        self.assert_error(second.error, "lock|another|already|runs", "busy")
        self.assertEqual(self.web1.finish().status, 0)

    def test_an_agent_without_server_says_so(self):
        self.staging.stop()
        self.allow("refused", "unavailable|cannot be reached|connect")
        done = self.web1.run("sync", "--once", "--retry-for", "1")
        self.assertEqual(done.status, 1, done)
        self.assert_error(done.error, "refused|nothing listens", "unavailable")

    def test_an_agent_that_was_never_enrolled_says_so(self):
        stranger = self.agent("stranger", enroll=False)
        done = stranger.run("sync", "--once")
        self.assertEqual(done.status, 1, done)
        self.assert_error(done.error, "enrol")


class FullDisk(Case):
    @needs_root
    def test_a_full_staging_disk_refuses_new_data_and_keeps_the_old(self):
        image, mount = self.directory / "small.ext4", self.directory / "small"
        mount.mkdir()
        with open(image, "wb") as file:
            file.truncate(160 * MIB)
        self.assertEqual(run(["mke2fs", "-q", "-t", "ext4", "-m", "0", image]).status, 0)
        if run(["mount", "-o", "loop", image, mount]).status != 0:
            self.skipTest("loop devices do not work here")
        self.addCleanup(lambda: run(["umount", mount]))
        config = '[storage]\nsegment_size = "8MiB"\nreserve_segments = 2\nfree_space_min = "16MiB"\n'
        (self.directory / "small.toml").write_text(config)
        from harness import Server, free_port
        server = Server(self, mount / "data", free_port(), self.directory / "small.toml").init(1)
        server.log_path = self.directory / "small.log"
        self.servers.append(server)
        server.start()
        self.addCleanup(lambda: server.process and server.stop())
        web1 = self.agent("web1", server, disks={"vda.img": 4 * MIB})
        web1.sync()
        before = web1.digests()
        self.allow("space|full|no_space|no-space|busy|room", "stalled|throttle|retry|again|connection|server")
        web2 = self.agent("web2", server)
        path = web2.root / "big.img"
        with open(path, "wb") as file:
            for _ in range(200):
                file.write(os.urandom(MIB))
        web2.disks.append(path)
        web2.protect().start("sync", "--once", "--retry-for", "5")
        wait_for("somebody to say that the disk is full",
                 lambda: re.search("space|full", server.log() + web2.log(), re.I) or web2.process.poll() is not None)
        self.assert_logged(server, "space|full")
        machine = server.machine("web2")
        self.assertEqual(server.points("web2"), [])
        self.assertGreater(server.metric("space|free"), 0)
        self.assertEqual(self.export(server, "web1"), before, "what was acknowledged can be read")
        web2.kill()
        del machine
        server.kill()
        server.start()
        self.assertEqual(self.export(server, "web1"), before, "after a restart too")


class DataDirectories(Case):
    def setUp(self):
        super().setUp()
        self.staging = self.server(config='[storage]\nsegment_size = "8MiB"\n', partitions=1)
        self.web1 = self.agent("web1", disks={"vda.img": 4 * MIB})
        self.web1.sync()
        self.first = self.web1.digests()
        change(self.web1.disks[0], 1)
        self.web1.sync()
        self.second = self.web1.digests()

    def refuses(self, what):
        ended = self.staging.try_start()
        self.assertIsNotNone(ended, "the server serves")
        self.assertNotIn(ended.status, (0, -6, -11), ended)
        self.assertRegex(ended.err, what)
        self.assertRegex(ended.err, r"\(.+\)|remedy", "it says what to do")
        return ended

    def test_a_newer_format(self):
        self.staging.stop()
        path = self.staging.data / "server.json"
        text = path.read_text()
        block = json.loads(text)
        block["format"] += 1
        path.write_text(json.dumps(block))
        self.allow("format")
        self.refuses("format 2.*knows 1")
        path.write_text(text)
        self.staging.start()
        self.assertEqual(self.export(self.staging, "web1"), self.second)

    def test_not_a_data_directory(self):
        self.staging.stop()
        empty = self.directory / "empty"
        empty.mkdir()
        self.staging.data, data = empty, self.staging.data
        self.allow("data directory")
        self.refuses("not a data directory.*tidemarkd init")
        self.staging.data = data
        done = run([BIN / "tidemarkd", "init", data])
        self.assertEqual(done.status, 1, done)
        self.assertRegex(done.err, "data directory already")
        self.staging.start()
        self.assertEqual(self.export(self.staging, "web1"), self.second)

    def partition(self):
        return next(path for path in self.staging.data.iterdir() if path.name.startswith("partition-"))

    def fenced(self, what):
        """The server serves, but not this partition; it says so wherever an operator looks."""
        health = self.staging.cli("health")
        self.assertEqual(health.status, 1, health)
        states = [partition for partition in health.json["partitions"] if partition["state"] != "serving"]
        self.assertEqual(len(states), 1, health)
        self.assertRegex(states[0]["why"], what)
        self.assert_logged(self.staging, what)
        refused = self.web1.run("sync", "--once", "--retry-for", "1")
        self.assertEqual(refused.status, 1, refused)
        return states[0]

    def start_in_any_way(self):
        ended = self.staging.try_start()
        return ended

    def test_a_partition_of_another_server(self):
        other = self.server("other", partitions=1)
        other.stop()
        self.staging.stop()
        ours, theirs = self.partition(), other.data / self.partition().name
        kept = self.directory / "kept"
        ours.rename(kept)
        shutil.copytree(theirs, ours)
        self.allow("partition|server|another", "unavailable|stopped|connect|refused")
        ended = self.start_in_any_way()
        if ended:
            self.assertRegex(ended.err, "server")
        else:
            self.fenced("server")
            self.staging.stop()
        shutil.rmtree(ours)
        kept.rename(ours)
        self.staging.start()
        self.assertEqual(self.export(self.staging, "web1"), self.second)

    def test_restored_from_an_old_copy(self):
        """The server then knows less than it once acknowledged: an alarm and a rescan, never a quiet resume."""
        self.staging.stop()
        copy = self.directory / "copy"
        shutil.copytree(self.staging.data, copy, ignore=lambda *_: {"admin.sock"})
        self.staging.start()
        change(self.web1.disks[0], 2)
        self.web1.sync()
        self.staging.stop()
        shutil.rmtree(self.staging.data)
        shutil.copytree(copy, self.staging.data)
        self.staging.start()
        self.assertEqual(self.export(self.staging, "web1"), self.second)
        self.allow("history.diverged|diverged", "knows less|rescan|alarm|lost|less than")
        change(self.web1.disks[0], 3)
        done = self.web1.sync()
        self.assertTrue(done["point"], done)
        self.assertTrue(any(epoch["kind"] == "rescan" for epoch in done["epochs"]) or done["kind"] == "rescan", done)
        self.assert_logged(self.staging, "history diverged")
        self.assertGreater(self.staging.metric("diverged"), 0)
        self.assertTrue(re.search("less|diverged|history", self.web1.log(), re.I), "the agent raises the alarm as well")
        self.assertEqual(self.export(self.staging, "web1"), self.web1.digests())

    def test_a_machine_that_an_old_copy_does_not_know(self):
        self.staging.stop()
        copy = self.directory / "copy"
        shutil.copytree(self.staging.data, copy, ignore=lambda *_: {"admin.sock"})
        self.staging.start()
        late = self.agent("late", disks={"vda.img": MIB})
        late.sync()
        self.staging.stop()
        shutil.rmtree(self.staging.data)
        shutil.copytree(copy, self.staging.data)
        self.staging.start()
        self.allow("does not know")
        done = late.run("sync", "--once", "--retry-for", "1")
        self.assertEqual(done.status, 1, done)
        self.assert_error(done.error, "does not know the machine", "not-found")

    def log_segments(self):
        return sorted((self.partition() / "log").iterdir())

    def damage(self, needle_from):
        """Flips a bit in the stored bytes of the first disk block of `needle_from`, wherever the log has it."""
        needle = needle_from[:512]
        for segment in self.log_segments():
            content = segment.read_bytes()
            at = content.find(needle)
            if at >= 0:
                with open(segment, "r+b") as file:
                    file.seek(at + 100)
                    file.write(bytes([content[at + 100] ^ 1]))
                return segment
        self.fail("the data was not found in the log")

    def test_damaged_data_is_named_and_never_served(self):
        # Incompressible, so that it stands in the log as it is.
        with open(self.web1.disks[0], "r+b") as disk:
            disk.seek(1 * MIB)
            content = os.urandom(65536)
            disk.write(content)
        self.web1.sync()
        epoch = self.staging.points("web1")[0]["epoch"]
        self.staging.stop()
        self.damage(content)
        self.staging.start()
        self.allow("damage|corrupt|hash")
        verdict = self.staging.cli("verify", "web1", "--at", "latest")
        self.assertEqual(verdict.status, 1, verdict)
        self.assertFalse(verdict.json["ok"])
        self.assertRegex(json.dumps(verdict.json["damaged"]), "vda")
        out = self.directory / "out.img"
        export = self.staging.cli("export", "web1", "--at", "latest", "--output", out)
        self.assertEqual(export.status, 1, export)
        self.assertFalse(out.exists())
        self.assertEqual(self.export(self.staging, "web1", f"epoch:{epoch - 1}"), self.second, "another point is whole")
        self.assert_logged(self.staging, "damage|corrupt")
        self.assertGreater(self.staging.metric("damaged"), 0)

    def test_a_damaged_commit_header_below_the_durable_mark_fences_the_partition(self):
        self.staging.stop()
        shutil.rmtree(self.partition() / "index")  # so that the log is read from its start
        segments = [segment for segment in self.log_segments() if b"TDMC" in segment.read_bytes()]
        content = segments[0].read_bytes()
        headers = [match.start() for match in re.finditer(b"TDMC", content) if match.start() % 4096 == 0]
        self.assertGreater(len(headers), 2)
        kept = self.directory / "kept"
        shutil.copytree(self.partition(), kept)
        with open(segments[0], "r+b") as file:
            file.seek(headers[1] + 20)
            file.write(bytes([content[headers[1] + 20] ^ 1]))
        self.allow("partition not opened|corrupt|fenced|damage|break|broken", "unavailable|connect|refused", "index")
        self.assertIsNone(self.start_in_any_way(), "the server serves what is whole")
        self.assertEqual(self.fenced("corrupt|break|broken|damage|log")["state"], "fenced")
        self.staging.stop()
        shutil.rmtree(self.partition())
        shutil.copytree(kept, self.staging.data / "partition-0000")
        self.staging.start()
        self.assertEqual(self.export(self.staging, "web1"), self.second, "nothing was truncated meanwhile")

    def test_a_lost_index_is_rebuilt_from_the_log(self):
        points = self.staging.points("web1")
        self.staging.stop()
        shutil.rmtree(self.partition() / "index")
        self.allow("index")
        self.staging.start()
        self.assertEqual(self.staging.points("web1"), points)
        self.assertEqual(self.export(self.staging, "web1"), self.second)
        self.assertEqual(self.export(self.staging, "web1", f"epoch:{points[1]['epoch']}"), self.first)
        change(self.web1.disks[0], 9)
        self.assertTrue(self.web1.sync()["point"])

    def test_a_damaged_index_is_found_and_nothing_wrong_is_served(self):
        self.staging.stop()
        kept = self.directory / "kept"
        shutil.copytree(self.partition(), kept)
        for path in (self.partition() / "index").iterdir():
            if path.suffix == ".sst" or path.name.startswith("MANIFEST"):
                content = bytearray(path.read_bytes())
                for at in range(16, len(content), 64):
                    content[at] ^= 0x40
                path.write_bytes(content)
        self.allow("index|corrupt|partition not opened|damage", "unavailable|connect|refused")
        ended = self.start_in_any_way()
        if ended:
            self.assertRegex(ended.err, "index|corrupt")
        elif self.staging.cli("health").status != 0:
            self.fenced("index|corrupt")
            self.staging.stop()
        else:  # rebuilt by itself
            self.assertEqual(self.export(self.staging, "web1"), self.second)
            self.staging.stop()
        self.assert_logged(self.staging, "index|corrupt")
        shutil.rmtree(self.partition() / "index")  # the remedy
        self.staging.start()
        self.assertEqual(self.export(self.staging, "web1"), self.second)


class Configurations(Case):
    def test_a_configuration_that_cannot_be_names_file_line_and_key(self):
        server = self.server(start=False)
        self.allow("tidemarkd")
        for text, what in (("[server]\nlisten = \"127.0.0.1:0\"\n[storage]\nsegment_sise = 1\n", r":4.*segment_sise.*not a known key"),
                           ("[wal]\nx = 1\n", "wal.*not a known"),
                           ("[limits]\nsessions = \"many\"\n", r":2.*sessions"),
                           ("[limits]\nsessions = 0\n", r":2.*sessions.*0"),
                           ("[storage]\nsegment_size = \"3GiB\"\n", r":2.*segment_size.*3"),
                           ("[storage]\nsegment_size = \"8388609\"\n", r":2.*segment_size"),
                           ("[server]\nlisten = \"nowhere\"\n", r":2.*listen.*nowhere"),
                           ("[server]\nlog_level = \"loud\"\n", r":2.*log_level.*loud"),
                           ("[server\n", ":1"), ("listen = 3\n", "listen")):
            path = self.directory / "bad.toml"
            path.write_text(text)
            done = run([BIN / "tidemarkd", "run", "--data", server.data, "--config", path])
            self.assertIn(done.status, (1, 2), f"{text}: {done}")
            self.assertRegex(done.err, re.escape(str(path)), text)
            self.assertRegex(done.err, what)
        done = run([BIN / "tidemarkd", "run", "--data", server.data, "--config", self.directory / "missing.toml"])
        self.assertIn(done.status, (1, 2))
        self.assertIn("missing.toml", done.err)

    def test_wrong_arguments_of_tidemarkd(self):
        for arguments in ([], ["bogus"], ["init"], ["run"], ["init", self.directory / "x", "--partitions", "0"],
                          ["init", self.directory / "x", "--address", "nowhere:99999"]):
            done = run([BIN / "tidemarkd", *arguments])
            self.assertIn(done.status, (1, 2), f"{arguments}: {done}")
            self.assertRegex(done.err, "^tidemarkd: ")
        self.assertFalse((self.directory / "x" / "server.json").exists())

    def test_an_address_in_use_is_said_so(self):
        server = self.server()
        other = self.server("other", start=False)
        other.port = server.port
        self.allow("in use|Address already")
        ended = other.try_start()
        self.assertIsNotNone(ended)
        self.assertRegex(ended.err, f"{server.port}.*in use|in use.*{server.port}")
        self.assertTrue(server.ask("health")["ok"])

    def test_an_agents_configuration_that_cannot_be(self):
        self.server()
        web1 = self.agent("web1", disks={"vda.img": MIB})
        config = web1.state / "agent.toml"
        good = config.read_text()
        for line, what in (("intervall_s = 3", "intervall_s"), ("interval_s = \"often\"", "interval_s"), ("interval_s = -1", "interval_s"),
                           ("zstd_level = 99", "zstd_level")):
            config.write_text(line + "\n" + good)
            done = web1.run("sync", "--once")
            self.assertIn(done.status, (1, 2), f"{line}: {done}")
            self.assertRegex(done.err, rf"agent\.toml.*{what}")
        config.write_text(good)
        web1.sync()


if __name__ == "__main__":
    main()
