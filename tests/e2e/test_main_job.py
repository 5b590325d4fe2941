#!/usr/bin/env python3
"""The main job: a machine's disks are protected, points are taken, and any of them comes back byte for byte."""
import json
import os
import re
import shutil
import time

from harness import MIB, Case, change, main, sha256, wait_for


class MainJob(Case):
    def test_points_come_back_as_the_disks_were_at_each_of_them(self):
        server = self.server()
        # The second disk's last granule is a short one.
        web1 = self.agent("web1", disks={"vda.img": 12 * MIB, "vdb.img": 3 * MIB + 1536})
        moments = []
        for seed in range(3):
            if seed:
                change(web1.disks[0], seed)
                change(web1.disks[1], seed + 100)
            done = web1.sync()
            self.assertTrue(done["point"], done)
            moments.append((done["epoch"], web1.digests()))
        points = server.points("web1")
        self.assertEqual([point["epoch"] for point in points], [epoch for epoch, _ in reversed(moments)])
        for epoch, digests in moments:
            self.assertEqual(self.export(server, "web1", f"epoch:{epoch}"), digests, f"epoch {epoch}")
            verdict = server.ask("verify", "web1", "--at", f"epoch:{epoch}")
            self.assertTrue(verdict["ok"], verdict)
            self.assertEqual(verdict["sha256"], digests)
        self.assertEqual(self.export(server, "web1", "latest"), moments[-1][1])
        self.assertEqual(self.export(server, "web1", points[1]["time"]), moments[1][1], "a time means the point at it")
        self.assertEqual(server.stop(), 0)

    def test_all_points_are_there_after_a_restart(self):
        server = self.server()
        web1 = self.agent("web1", disks={"vda.img": 4 * MIB})
        web1.sync()
        first = web1.digests()
        change(web1.disks[0], 1)
        web1.sync()
        wait_for("the points to be verified", lambda: all(point["verified"] for point in server.points("web1")))
        before = server.points("web1")
        self.assertEqual(server.stop(), 0, "SIGTERM ends it in order")
        server.start()
        self.assertEqual(server.points("web1"), before)
        self.assertEqual(self.export(server, "web1", f"epoch:{before[1]['epoch']}"), first)
        self.assertEqual(self.export(server, "web1"), web1.digests())

    def test_an_unchanged_machine_writes_nothing_and_its_point_stays_current(self):
        server = self.server()
        web1 = self.agent("web1", disks={"vda.img": 4 * MIB})
        first = web1.sync()
        again = web1.sync()
        self.assertTrue(again["unchanged"], again)
        self.assertEqual(again["epoch"], first["epoch"])
        self.assertEqual(len(server.points("web1")), 1)

    def test_only_differences_travel(self):
        self.server()
        web1 = self.agent("web1", disks={"vda.img": 16 * MIB})
        web1.sync()
        with open(web1.disks[0], "r+b") as disk:
            disk.seek(5 * MIB)
            disk.write(os.urandom(4096))
        done = web1.sync()
        self.assertLess(done["changed_bytes"], 256 * 1024, done)
        self.assertGreaterEqual(done["changed_bytes"], 4096)

    def test_machines_live_side_by_side(self):
        server = self.server()
        machines = [self.agent(f"web{i}", disks={"vda.img": 2 * MIB}) for i in range(4)]
        for i, machine in enumerate(machines):
            change(machine.disks[0], 50 + i)
            machine.start("sync", "--once")
        for machine in machines:
            done = machine.finish()
            self.assertEqual(done.status, 0, done)
        for machine in machines:
            self.assertEqual(self.export(server, machine.name), machine.digests())
        self.assertEqual({machine["name"] for machine in server.ask("machines")["machines"]}, {"web0", "web1", "web2", "web3"})

    def test_a_running_agent_keeps_points_coming_and_says_how_it_is(self):
        server = self.server()
        web1 = self.agent("web1", disks={"vda.img": 2 * MIB})
        web1.set_option('interval_s = 1')
        web1.start()
        wait_for("a first point", lambda: server.points("web1"))
        change(web1.disks[0], 7)
        digests = web1.digests()
        wait_for("a second point", lambda: len(server.points("web1")) >= 2)
        self.assertEqual(self.export(server, "web1"), digests)
        machine = wait_for("the state continuous", lambda: (m := server.machine("web1"))["state"] == "continuous" and m)
        self.assertTrue(machine["connected"])
        done = web1.stop()
        self.assertEqual(done.status, 0, "SIGTERM ends the agent in order")
        wait_for("the machine to count as disconnected", lambda: not server.machine("web1")["connected"])

    def test_a_source_written_to_while_it_is_read_gives_no_point(self):
        server = self.server()
        web1 = self.agent("web1", disks={"vda.img": 8 * MIB})
        with open(web1.disks[0], "r+b"):  # open for writing all along
            done = web1.run("sync", "--once", "--consistency", "any")
            self.assertEqual(done.status, 0, done)
            self.assertFalse(done.json["point"])
            self.assertEqual(done.json["consistency"], "fuzzy")
            self.assertIn("vda.img", done.json["reason"])
            self.assertEqual(server.points("web1"), [])
            self.assertEqual(len(server.points("web1", "--fuzzy")), 1)
        web1.sync()
        self.assertEqual(self.export(server, "web1"), web1.digests())

    def test_a_removed_machine_is_gone_and_its_name_free(self):
        server = self.server(config='[retention]\nremoval_holdoff = "0s"\n')
        web1 = self.agent("web1", disks={"vda.img": 1 * MIB})
        web1.sync()
        server.ask("machine", "remove", "web1", "--confirm", "web1")
        self.assertEqual(server.ask("machines")["machines"], [])
        with self.tells(server, r'^tidemark_refused_total\{reason="removed"\}', "session refused .*code=(permission-denied|not-found)"):
            refused = web1.run("sync", "--once", "--retry-for", "2")
        self.assertEqual(refused.status, 1, refused)
        self.assert_error(refused.error, r"removed|does not know the machine")
        again = self.agent("web1b", disks={"vda.img": 1 * MIB}, enroll=False)
        again.name = "web1"
        again.enroll().protect().sync()
        self.assertEqual(self.export(server, "web1"), again.digests())

    def test_metrics_tell_of_the_work(self):
        server = self.server()
        web1 = self.agent("web1", disks={"vda.img": 2 * MIB})
        web1.sync()
        metrics = server.metrics()
        self.assertTrue(all(re.match(r"(tidemark|process)_", name) for name in metrics), list(metrics)[:5])
        self.assertGreater(server.metric(r"epochs?.*durable|epochs_durable"), 0)


if __name__ == "__main__":
    main()
