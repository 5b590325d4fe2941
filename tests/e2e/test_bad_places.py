#!/usr/bin/env python3
"""Bad data directories (damaged, foreign, of the future, restored from an old copy) and configurations that cannot be.
What sources can do is in test_sources.py, what becomes of a full staging disk in test_staging_disk.py.

Each case: one clear error that names what and what to do, nothing lost, and the rest goes on.
"""
import json
import os
import re
import shutil

from harness import BIN, MIB, Case, change, main, run, wait_for


class DataDirectories(Case):
    def setUp(self):
        super().setUp()
        self.staging = self.server(config='[storage]\nsegment_size = "8MiB"\n', partitions=2)
        self.web1 = self.agent("web1", disks={"vda.img": 4 * MIB})
        self.web1.sync()
        self.first = self.web1.digests()
        change(self.web1.disks[0], 1)
        self.web1.sync()
        self.second = self.web1.digests()
        self.number = self.staging.machine("web1")["partition"]

    def neighbour(self):
        """A machine of the other partition, with a point."""
        for i in range(64):
            agent = self.agent(f"neighbour{i}")
            if self.staging.machine(agent.name)["partition"] != self.number:
                agent.make_disk("vda.img", MIB, 7)
                agent.protect().sync()
                return agent
        self.fail("64 machines in one of two partitions")

    def goes_on(self, neighbour):
        change(neighbour.disks[0], 11)
        self.assertTrue(neighbour.sync()["point"])
        self.assertEqual(self.export(self.staging, neighbour.name), neighbour.digests())

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
        block["format"] += 2
        path.write_text(json.dumps(block))
        self.refuses(r"server\.json: data directory has format 3, this tidemarkd knows 2 \(run the newer tidemarkd")
        path.write_text(text)
        self.staging.start()
        self.assertEqual(self.export(self.staging, "web1"), self.second)

    def test_not_a_data_directory(self):
        self.staging.stop()
        empty = self.directory / "empty"
        empty.mkdir()
        self.staging.data, data = empty, self.staging.data
        self.refuses("empty: is not a data directory.*tidemarkd init")
        self.staging.data = data
        done = run([BIN / "tidemarkd", "init", data])
        self.assertEqual(done.status, 1, done)
        self.assertRegex(done.err, "data directory already")
        self.staging.start()
        self.assertEqual(self.export(self.staging, "web1"), self.second)

    def partition(self):
        return self.staging.data / f"partition-{self.number:04}"

    def not_served(self, state, what):
        """The server serves, but not this partition; it says so wherever an operator looks, and to the agent."""
        def decided():
            health = self.staging.cli("health")
            return not any(one["state"] in ("opening", "rebuilding") for one in health.json["partitions"]) and health
        health = wait_for("the partitions to serve, or not", decided)
        self.assertEqual(health.status, 1, health)
        states = [partition for partition in health.json["partitions"] if partition["state"] != "serving"]
        self.assertEqual([(partition["id"], partition["state"]) for partition in states], [(self.number, state)], health)
        self.assertRegex(states[0]["why"], what)
        self.assert_logged(self.staging, f"error partition not opened partition={self.number} state={state} .*{what}")
        self.assertEqual(self.staging.metric(rf'^tidemark_partition_state\{{partition="{self.number}",state="{state}"\}}'), 1)
        with self.tells(self.staging, r'^tidemark_refused_total\{reason="unavailable"\}', "session refused .*code=unavailable", by=None):
            refused = self.web1.run("sync", "--once", "--retry-for", "1")
        self.assertEqual(refused.status, 1, refused)
        self.assert_error(refused.error, f"holds this machine is {state}: .*{what}.*operator must look", "unavailable")

    def test_a_partition_of_another_server(self):
        neighbour = self.neighbour()
        partition = self.partition()
        other = self.server("other", partitions=2)
        other.stop()
        self.staging.stop()
        kept = self.directory / "kept"
        partition.rename(kept)
        shutil.copytree(other.data / partition.name, partition)
        what = "it belongs to server [0-9a-f]{32}, and this is server [0-9a-f]{32}"
        self.allow(f"partition not opened partition={self.number} state=stopped code=invalid-argument .*{what}")
        self.staging.start()
        self.not_served("stopped", what)
        self.goes_on(neighbour)
        self.staging.stop()
        shutil.rmtree(partition)
        kept.rename(partition)
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
        self.allow("error history diverged machine=", "error ALARM: the server's history diverged from what it acknowledged")
        change(self.web1.disks[0], 3)
        with self.tells(self.staging, "^tidemark_history_diverged_total", "history diverged machine=.*epoch 3.*the server's newest is epoch 2"):
            done = self.web1.sync()
        self.assertTrue(done["point"], done)
        self.assertTrue(any(epoch["kind"] == "rescan" for epoch in done["epochs"]) or done["kind"] == "rescan", done)
        self.assert_logged(self.web1, "ALARM: the server's history diverged .*epoch 3: it was acknowledged, but the server's newest is epoch 2")
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
        with self.tells(self.staging, r'^tidemark_refused_total\{reason="removed"\}', "session refused .*code=not-found .*does not know the machine"):
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
        self.allow("error verification found damage machine=web1 epoch=3 damaged=1$", "error export cut off disk=web1/vda.img code=corrupt",
                   'error damage found while digesting code=corrupt object="machine web1, disk 0" why="bytes 1048576 to 1114112 of epoch 3 ',
                   "error event=(damage_found|machine_damaged) ", "warning agent asked to send again", "warning the server lost data")
        verdict = self.staging.cli("verify", "web1", "--at", "latest")
        self.assertEqual(verdict.status, 1, verdict)
        self.assertFalse(verdict.json["ok"])
        self.assertRegex(json.dumps(verdict.json["damaged"]), "vda")
        out = self.directory / "out.img"
        export = self.staging.cli("export", "web1", "--at", "latest", "--output", out)
        self.assertEqual(export.status, 1, export)
        self.assertFalse(out.exists())
        self.assertEqual(self.export(self.staging, "web1", f"epoch:{epoch - 1}"), self.second, "another point is whole")
        self.assert_error(export.error, r"web1/vda\.img: the server broke off at byte \d+: it could not read what is stored there "
                                        r"\(`tidemark verify web1 --at epoch:3` names what is damaged", "corrupt")
        self.assert_logged(self.staging, "verification found damage machine=web1 epoch=3 damaged=1")
        self.assert_logged(self.staging, "export cut off disk=web1/vda.img code=corrupt .*bytes 1048576 to 1114112 of epoch 3 cannot be read")
        self.assertGreater(self.staging.metric("^tidemark_damaged_reads_total"), 0)
        change(self.web1.disks[0], 12)
        self.assertTrue(self.web1.sync()["point"], "and the machine goes on")

    def test_a_damaged_commit_header_below_the_durable_mark_fences_the_partition(self):
        neighbour = self.neighbour()
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
        self.allow(f"error partition not opened partition={self.number} state=fenced code=corrupt ",
                   "warning event=index_rebuil(t|d_began) .*")  # the last start's
        self.staging.start()
        self.not_served("fenced", r"(\.segment why=\"|\.segment: )is damaged at offset \d+: the commit there has a header with a wrong checksum")
        self.goes_on(neighbour)
        self.staging.stop()
        shutil.rmtree(self.partition())
        shutil.copytree(kept, self.partition())
        self.staging.start()
        self.assertEqual(self.export(self.staging, "web1"), self.second, "nothing was truncated meanwhile")

    def rebuilt(self, why):
        self.assert_logged(self.staging, f"warning event=index_rebuilt path=.*{self.partition().name}/index reason=\"{why}")
        wait_for("all partitions to serve", lambda: self.staging.cli("health").status == 0)
        self.assertEqual(self.staging.metric(rf'^tidemark_index_rebuilt\{{partition="{self.number}"\}}'), 1)
        self.assertEqual(self.staging.metric("^tidemark_index_rebuilt"), 1, "the other one was not")

    def test_a_lost_index_is_rebuilt_from_the_log(self):
        wait_for("the points to be verified", lambda: all(point["verified"] for point in self.staging.points("web1")))
        points = self.staging.points("web1")
        self.staging.stop()
        shutil.rmtree(self.partition() / "index")
        self.allow("warning event=index_rebuild_began path=", "warning event=index_rebuilt path=.* reason=\"it was missing\"")
        self.staging.start()
        self.rebuilt("it was missing")
        self.assertEqual(self.staging.points("web1"), points)
        self.assertEqual(self.export(self.staging, "web1"), self.second)
        self.assertEqual(self.export(self.staging, "web1", f"epoch:{points[1]['epoch']}"), self.first)
        change(self.web1.disks[0], 9)
        self.assertTrue(self.web1.sync()["point"])

    def test_a_damaged_index_is_found_and_nothing_wrong_is_served(self):
        self.staging.stop()
        for path in (self.partition() / "index").iterdir():
            if path.suffix == ".sst" or path.name.startswith("MANIFEST"):
                content = bytearray(path.read_bytes())
                for at in range(16, len(content), 64):
                    content[at] ^= 0x40
                path.write_bytes(content)
        self.allow("warning event=index_rebuild_began path=", "warning event=index_damaged path=", "warning event=index_rebuilt path=.* reason=\"it was damaged: ")
        self.staging.start()
        self.assert_logged(self.staging, f"event=index_damaged path=.*{self.partition().name}/index error=")
        self.rebuilt("it was damaged: ")
        self.assertEqual(self.export(self.staging, "web1"), self.second)
        self.assertEqual(self.export(self.staging, "web1", f"epoch:{self.staging.points('web1')[1]['epoch']}"), self.first)
        change(self.web1.disks[0], 9)
        self.assertTrue(self.web1.sync()["point"])


class Configurations(Case):
    def test_a_configuration_that_cannot_be_names_file_line_and_key(self):
        server = self.server(start=False)
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
