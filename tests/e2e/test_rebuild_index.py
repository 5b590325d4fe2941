#!/usr/bin/env python3
"""`tidemarkd rebuild-index`, and what a server does without an index: points, pins, ladders, removals and zeroes are the
same before and after, byte for byte; killed at any moment, nothing is lost and the next try goes well."""
import random
import re
import shutil
import subprocess
import time

from harness import BIN, MIB, Case, change, main, run, wait_for

CONFIG = '''[storage]
segment_size = "8MiB"
reserve_segments = 2
settle_after = "0s"
[retention]
removal_holdoff = "0s"
'''


class RebuildIndex(Case):
    def setUp(self):
        super().setUp()
        self.staging = self.server(config=CONFIG, partitions=2)
        self.web1 = self.agent("web1", disks={"vda.img": 6 * MIB, "vdb.img": -3 * MIB})
        self.web2 = self.agent("web2", disks={"vda.img": 3 * MIB})
        gone = self.agent("gone", disks={"vda.img": MIB})
        gone.sync()
        self.web2.sync()
        images = {}
        for i in range(8):
            change(self.web1.disks[0], i)
            with open(self.web1.disks[1], "r+b") as disk:  # zeroes over what was there
                disk.seek(i * 200_000)
                disk.write(bytes(150_000))
            self.web1.sync()
            images[self.staging.points("web1")[0]["epoch"]] = self.web1.digests()
        epochs = sorted(images)
        self.staging.ask("pin", "web1", "--at", f"epoch:{epochs[2]}", "--name", "before", "--reason", "trial")
        self.staging.ask("ladder", "set", "web2", "--preset", "60")
        self.staging.ask("machine", "remove", "gone", "--confirm", "gone")
        self.staging.ask("point", "remove", "web1", "--at", f"epoch:{epochs[4]}")
        wait_for("what was removed to be gone", lambda: self.staging.metric("tidemark_points_dropped_total") >= 1 and
                 [one["name"] for one in self.staging.ask("machines")["machines"]] == ["web1", "web2"])
        wait_for("the removal to be done with", lambda: self.staging.ask("ladder", "show", "web1")["removals"] == [])
        # Enough comes after it for the first segments to settle, with enough in them that no point shows any more.
        bulk = self.agent("bulk", disks={"vda.img": -20 * MIB})
        for i in range(2):
            bulk.disks[0].write_bytes(random.Random(i).randbytes(20 * MIB))
            bulk.sync()
        first = min(point["epoch"] for point in self.staging.points("bulk"))
        self.staging.ask("point", "remove", "bulk", "--at", f"epoch:{first}")
        wait_for("bulk's first point to be gone", lambda: len(self.staging.points("bulk")) == 1)
        wait_for("its removal to be done with", lambda: self.staging.ask("ladder", "show", "bulk")["removals"] == [])
        wait_for("something to settle", lambda: self.staging.metric("tidemark_cold_segments") >= 1)
        del images[epochs[4]]
        self.images = images
        self.before = self.told()

    def told(self):
        """Everything an operator can ask about what is kept, with the bytes of all points."""
        told = {}
        for machine in self.staging.ask("machines")["machines"]:
            name = machine["name"]
            ladder = self.staging.ask("ladder", "show", name)
            points = self.staging.points(name)
            for point in points:
                # What was received in an epoch is summed up of the records that are left of it; it is verified some time later.
                for volatile in ("holds", "expires", "plain_bytes", "stored_bytes", "verified"):
                    point.pop(volatile)
            told[name] = {"points": points, "pins": ladder["pins"], "ladder": ladder["ladder"], "removals": ladder["removals"],
                          "disks": machine["disks"], "id": machine["id"], "durable": machine["durable_epoch"],
                          "bytes": {point["epoch"]: self.export(self.staging, name, f"epoch:{point['epoch']}") for point in points}}
        return told

    def same(self):
        self.assertEqual(self.told(), self.before)
        for epoch, digests in self.images.items():
            self.assertEqual(self.before["web1"]["bytes"][epoch], digests)

    def goes_on(self):
        for agent in (self.web1, self.web2):
            change(agent.disks[0], 99)
            self.assertTrue(agent.sync()["point"])
            self.assertEqual(self.export(self.staging, agent.name), agent.digests())

    def rebuild(self, *options):
        return run([BIN / "tidemarkd", "rebuild-index", "--data", self.staging.data, *options])

    def indexes(self):
        return sorted(self.staging.data.glob("partition-*/index"))

    def damage(self):
        for index in self.indexes():
            for path in index.iterdir():
                if path.suffix == ".sst" or path.name.startswith("MANIFEST"):
                    content = bytearray(path.read_bytes())
                    for at in range(16, len(content), 64):
                        content[at] ^= 0x40
                    path.write_bytes(content)

    def test_not_while_the_server_runs(self):
        for options in ((), ("--check",)):
            done = self.rebuild(*options)
            self.assertEqual(done.status, 1, done)
            self.assertRegex(done.err, "a tidemarkd serves this data directory.*stop it first")
        self.staging.stop()
        done = self.rebuild("--partition", "7")
        self.assertEqual(done.status, 2, done)
        self.assertRegex(done.err, "--partition: is 7.*there are 0 to 1")
        done = self.rebuild("--partition", "1")
        self.assertEqual(done.status, 0, done)
        self.assertRegex(done.out, r"^partition 1: \d+ machines, \d+ epochs, from \d+ commits .* the new index is in place\n$")

    def test_sound_missing_and_damaged_ones(self):
        self.staging.stop()
        done = self.rebuild("--check")
        self.assertEqual(done.status, 0, done)
        self.assertEqual(len(re.findall("(?m)^partition [01]: the index shows the same$", done.out)), 2, done)
        done = self.rebuild()
        self.assertEqual(done.status, 0, done)
        self.assertEqual(self.rebuild("--check").status, 0)
        self.staging.start()
        self.same()

        self.staging.stop()
        for index in self.indexes():
            shutil.rmtree(index)
        done = self.rebuild("--check")
        self.assertEqual(done.status, 1, done)
        self.assertRegex(done.out, "partition 0: differs: there is no index")
        self.assertEqual(self.indexes(), [], "a check changes nothing")
        self.assertEqual(self.rebuild().status, 0)
        self.staging.start()
        self.same()

        self.staging.stop()
        self.damage()
        done = self.rebuild("--check")
        self.assertEqual(done.status, 1, done)
        self.assertRegex(done.out, "partition 0: differs: .*(orrupt|checksum)")
        self.assertEqual(self.rebuild().status, 0)
        self.staging.start()
        self.assertEqual(self.staging.metric("^tidemark_index_rebuilt"), 0, "the server found them whole")
        self.same()
        self.goes_on()

    def test_a_bad_block_that_is_only_met_later_on_makes_the_index_anew(self):
        self.allow("the index cannot", "warning event=index_", "error index is damaged", "error partition stopped", "error event=index_failed",
                   "event=settling_failed", "event=checking_failed", "error export cut off")
        scattered = self.agent("scattered", disks={"vda.img": -64 * MIB})
        for turn in range(3):  # so that most of the index tells where blocks stand, and is not read by opening it
            chance = random.Random(turn)
            with open(scattered.disks[0], "r+b") as disk:
                for granule in chance.sample(range(64 * MIB // 4096), 6000):
                    disk.seek(granule * 4096)
                    disk.write(chance.randbytes(4096))
            scattered.sync()
        self.before = self.told()
        # What reading met; or, where all that was asked for was in memory, what the next start met.
        met = r"error index is damaged: it is made again|warning event=index_damaged"
        for _ in range(4):
            if re.search(met, self.staging.log()):
                break
            # It serves, with nothing of the index in memory but what it needs to; then the bytes change under it.
            self.staging.stop()
            self.staging.start()
            wait_for("it to serve", lambda: self.staging.cli("health").status == 0)
            for index in self.indexes():
                for path in index.glob("*.sst"):
                    with open(path, "r+b") as file:
                        for at in range(0, path.stat().st_size * 3 // 4, 200):  # in every block of data
                            file.seek(at)
                            file.write(b"damaged")

            def all_read():
                """No point is said to be damaged; where the server found the index damaged it says so, and serves again."""
                for name, told in self.before.items():
                    for epoch in told["bytes"]:
                        done = self.staging.cli("verify", name, "--at", f"epoch:{epoch}")
                        self.assertNotRegex(done.out + done.err, "blocks? of it (is|are) damaged")
                        if done.status != 0:
                            return False
                return self.staging.cli("health").status == 0
            wait_for("every point to be read", all_read)
            self.assertEqual(self.staging.ask("damage")["damage"], [])
            self.same()
        self.assert_logged(self.staging, met)
        self.assert_logged(self.staging, r"warning event=index_rebuilt path=\S* reason=\"it was damaged: ")
        self.goes_on()

    def test_killed_in_the_middle_the_old_one_is_kept_and_the_next_try_goes_well(self):
        self.staging.stop()
        started = time.monotonic()
        self.assertEqual(self.rebuild().status, 0)
        whole = time.monotonic() - started
        for i in range(8):
            process = subprocess.Popen([str(BIN / "tidemarkd"), "rebuild-index", "--data", str(self.staging.data)],
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(whole * (i + 1) / 9)
            process.kill()
            process.wait()
            self.assertEqual(len(self.indexes()), 2)
        self.staging.start()
        self.assertEqual(self.staging.metric("^tidemark_index_rebuilt"), 0, "none was lost by it")
        self.assertEqual([str(path) for path in self.staging.data.glob("partition-*/index.*")], [], "what was begun is gone")
        self.same()
        self.staging.stop()
        for index in self.indexes():
            shutil.rmtree(index)
        process = subprocess.Popen([str(BIN / "tidemarkd"), "rebuild-index", "--data", str(self.staging.data)],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(whole / 3)
        process.kill()
        process.wait()
        self.assertEqual(self.rebuild().status, 0)
        self.staging.start()
        self.same()
        self.goes_on()

    def test_a_server_without_an_index_says_so_and_killed_meanwhile_begins_again(self):
        self.allow("warning event=index_", )
        self.staging.stop()
        for index in self.indexes():
            shutil.rmtree(index)
        for i in range(4):
            process = subprocess.Popen([str(part) for part in self.staging.command()], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
            time.sleep(0.05 * (i + 1))
            process.kill()
            process.wait()
        for index in self.indexes():  # whatever became of them
            shutil.rmtree(index)
        self.staging.start()
        wait_for("all partitions to serve", lambda: self.staging.cli("health").status == 0)
        for partition in self.staging.data.glob("partition-*"):
            self.assert_logged(self.staging, rf"warning event=index_rebuild_began path=\S*{partition.name}/index segments_to_read=\d+")
            self.assert_logged(self.staging, rf"warning event=index_rebuilt path=\S*{partition.name}/index reason=\"it was missing\"")
        self.assertEqual(self.staging.metric("^tidemark_index_rebuilt"), 2)
        self.assertEqual(self.staging.metric("^tidemark_index_rebuild_ratio"), 2)
        self.same()
        self.goes_on()


if __name__ == "__main__":
    main()
