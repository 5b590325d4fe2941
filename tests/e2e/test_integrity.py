#!/usr/bin/env python3
"""What is stored is read back and checked; damage is found, told, never served, and sent again by the agent."""
import json
import os

from harness import BIN, MIB, Case, change, main, run, wait_for


class Integrity(Case):
    def machine_with_points(self, count=2, config=None):
        """A server, and a machine with incompressible data, so that what is stored is what is on the disk."""
        self.staging = self.server(config=config)
        self.web1 = self.agent("web1", disks={"vda.img": -2 * MIB})
        self.moments = []
        for i in range(count):
            if i:
                with open(self.web1.disks[0], "r+b") as disk:  # far from what is damaged below
                    disk.seek(MIB + i * 65536)
                    disk.write(os.urandom(4096))
            done = self.web1.sync()
            self.moments.append((done["epoch"], self.web1.digests()))
        return self.staging

    def verified(self):
        return [point["epoch"] for point in self.staging.points("web1") if point["verified"]]

    def wait_verified(self):
        wait_for("all points to be verified", lambda: len(self.verified()) == len(self.staging.points("web1")))

    def rot(self, offset, folder):
        """Flips a byte of what is stored of the disk at this offset, in the files below `folder` of the partitions."""
        content = self.web1.disks[0].read_bytes()[offset:offset + 512]
        found = 0
        for path in self.staging.data.glob(f"partition-*/{folder}/*.segment"):
            at = path.read_bytes().find(content)
            if at < 0:
                continue
            with open(path, "r+b") as segment:
                segment.seek(at + 100)
                byte = segment.read(1)[0]
                segment.seek(at + 100)
                segment.write(bytes([byte ^ 0x40]))
                segment.flush()
                os.fsync(segment.fileno())
            found += 1
        self.assertEqual(found, 1, "the block is stored once")

    def damage(self):
        return self.staging.cli("damage", "web1").json["damage"]

    def allow_damage(self):
        self.allow("damage", "damaged", "the server lost data")

    def check_damage(self, offset, points, cold):
        """The list names the one block with this byte, and how many points show it."""
        found = self.damage()
        self.assertEqual(len(found), 1, found)
        one = found[0]
        self.assertEqual((one["machine"], one["disk_name"], one["cold"]), ("web1", "vda.img", cold), one)
        self.assertLessEqual(one["offset"], offset)
        self.assertGreater(one["offset"] + one["length"], offset)
        self.assertLessEqual(one["length"], 65536)
        self.assertEqual(one["points"], points, one)
        self.assertEqual(one["first_epoch"], self.moments[0][0], one)
        return one

    def check_healed(self, epochs_before):
        """The newest point is what the disk holds, and sound; older ones are refused in clear words."""
        self.assertEqual(self.export(self.staging, "web1"), self.web1.digests())
        healed = wait_for("the damage to be healed", lambda: [d for d in self.damage() if d["state"] == "healed"])
        self.assertEqual(healed[0]["last_epoch"], epochs_before[-1])
        self.assertEqual(self.staging.cli("damage", "web1").status, 0, "what is healed is no alarm")
        machine = wait_for("the alarm to end", lambda: not (m := self.staging.machine("web1"))["alarm"] and m)
        self.assertFalse(machine["damage"]["newest"])
        newest = self.staging.points("web1")[0]["epoch"]
        self.assertNotIn(newest, epochs_before)
        wait_for("the newest point to be verified", lambda: newest in self.verified())
        for epoch in epochs_before:
            self.assertNotIn(epoch, self.verified())
            out = self.directory / f"old-{epoch}.img"
            refused = self.staging.cli("export", "web1", "--at", f"epoch:{epoch}", "--disk", "vda.img", "--output", out)
            self.assertEqual(refused.status, 1, refused)
            self.assertFalse(out.exists())
            verdict = self.staging.cli("verify", "web1", "--at", f"epoch:{epoch}")
            self.assertEqual(verdict.status, 1, verdict)
            self.assertIn("segment", json.dumps(verdict.json["damaged"]))

    def test_rot_under_a_running_server_is_found_told_and_healed_by_its_running_agent(self):
        server = self.machine_with_points()
        self.wait_verified()
        self.assertEqual(server.cli("damage").status, 0)
        self.assertGreater(server.metric("^tidemark_verified_blocks_total"), 0)
        self.allow_damage()
        self.rot(300_000, "log")
        with self.tells(server, "^tidemark_damage_found_total", "event=damage_found .*segment="):
            server.ask("scrub", "start")
        wait_for("the points to be known", lambda: self.damage() and self.damage()[0]["state"] == "damaged")
        self.check_damage(300_000, 2, cold=False)
        self.assertEqual(server.cli("damage").status, 1, "not healed yet")
        self.assertEqual(self.verified(), [])
        machine = wait_for("the alarm", lambda: (m := server.machine("web1"))["alarm"] and m)
        self.assertTrue(machine["damage"]["newest"])
        self.assertEqual(machine["damage"]["points"], 2)
        human = run([BIN / "tidemark", "--data", server.data, "damage"])
        self.assertRegex(human.out, r"web1 +vda\.img +\d+ +65536 +to be sent again +2: epoch \d+ and all after it")
        self.assertEqual(server.metric(r'^tidemark_machines_damaged\{affected="newest"|^tidemark_machines_damaged\{.*newest'), 1)
        scrub = wait_for("the scrub to end", lambda: not (s := server.ask("scrub", "status"))["running"] and s)
        self.assertEqual(scrub["last_damaged"], 1)
        self.assertGreaterEqual(scrub["last_bytes"], 2 * MIB)
        self.assertEqual(server.metric("^tidemark_scrubs_total"), 2, "one a partition")
        # Nothing changes on the machine: that the block comes again is the server's wish alone.
        epochs = [epoch for epoch, _ in self.moments]
        self.web1.set_option("interval_s = 1")
        with self.tells(server, "^tidemark_resends_total", "asked to send again", by=None):
            self.web1.start()
        wait_for("a new point", lambda: len(server.points("web1")) == 3)
        self.assert_logged(self.web1, "the server lost data")
        wait_for("it to be healed", lambda: self.damage()[0]["state"] == "healed")
        self.web1.stop()
        self.check_healed(epochs)
        self.assertEqual(server.metric("^tidemark_damaged_blocks"), 1, "older points still need it")

    def test_rot_in_a_stopped_server_is_found_by_who_reads_it_and_healed_at_the_next_sync(self):
        server = self.machine_with_points()
        self.wait_verified()
        self.allow_damage()
        self.assertEqual(server.stop(), 0)
        self.rot(700_000, "log")
        server.start()
        out = self.directory / "damaged.img"
        refused = server.cli("export", "web1", "--at", "latest", "--disk", "vda.img", "--output", out)
        self.assertEqual(refused.status, 1, refused)
        self.assertFalse(out.exists(), "damaged data is never handed out")
        wait_for("the points to be known", lambda: self.damage() and self.damage()[0]["state"] == "damaged")
        self.check_damage(700_000, 2, cold=False)
        self.assertEqual(server.stop(), 0)
        server.start()
        self.assertEqual(len(self.damage()), 1, "it is remembered")
        done = self.web1.sync()
        self.assertTrue(done["committed"] if "committed" in done else not done["unchanged"], done)
        self.check_healed([epoch for epoch, _ in self.moments])

    def test_rot_in_a_cold_segment(self):
        server = self.machine_with_points(config='[storage]\nsettle_after = "0s"\nsegment_size = "8MiB"\n')
        server.restart()  # what the log is written to now is a new segment: the one before can be settled
        change(self.web1.disks[0], 7)
        self.web1.sync()
        wait_for("cold segments", lambda: server.metric("^tidemark_cold_segments") > 0)
        wait_for("all that was settled to be verified", lambda: len(self.verified()) == 3)
        self.allow_damage()
        content = self.web1.disks[0].read_bytes()
        cold = b"".join(path.read_bytes() for path in server.data.glob("partition-*/cold/*.segment"))
        offset = next(at for at in range(0, MIB, 65536) if cold.count(content[at:at + 512]) == 1)
        self.rot(offset, "cold")
        server.ask("scrub", "start")
        wait_for("the points to be known", lambda: self.damage() and self.damage()[0]["state"] == "damaged")
        one = self.damage()[0]
        self.assertTrue(one["cold"], one)
        self.assertLessEqual(one["offset"], offset)
        self.web1.sync()
        self.assertEqual(self.export(server, "web1"), self.web1.digests())
        wait_for("it to be healed", lambda: self.damage()[0]["state"] == "healed")

    def test_a_scrub_is_told_of_and_can_be_stopped(self):
        server = self.machine_with_points(1, config='[storage]\nscrub_rate = "1MiB"\nscrub_interval = "3d"\n')
        status = server.ask("scrub", "status")
        self.assertFalse(status["running"])
        self.assertEqual((status["rate_bytes_per_s"], status["interval_seconds"]), (MIB, 3 * 86400))
        self.assertIsNone(status["last_completed"])
        wait_for("the next one to have its time", lambda: server.ask("scrub", "status")["next"])
        self.assertTrue(server.ask("scrub", "start")["running"])
        server.ask("scrub", "stop")
        wait_for("it to stop", lambda: not server.ask("scrub", "status")["running"])
        actions = [entry["action"] for entry in server.ask("audit")["entries"]]
        self.assertEqual(actions[-2:], ["scrub.start", "scrub.stop"])
        server.ask("scrub", "start")
        done = wait_for("it to come to its end", lambda: server.ask("scrub", "status")["last_completed"] and server.ask("scrub", "status"))
        self.assertEqual(done["last_damaged"], 0)
        self.assertGreaterEqual(done["last_bytes"], 2 * MIB)


if __name__ == "__main__":
    main()
