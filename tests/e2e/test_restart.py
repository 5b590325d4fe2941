#!/usr/bin/env python3
"""SIGKILL in the middle: of the server, of the agent. The work resumes, and nothing acknowledged is lost."""
import os

from harness import MIB, Case, change, main, wait_for

RECEIVED = "received_block_bytes_total"
SLOW = ("--rate-limit", "8")  # MiB a second, so that there is a middle


class Restart(Case):
    def percent(self, server, machine):
        found = [m for m in server.ask("machines")["machines"] if m["name"] == machine]
        return (found[0].get("percent") or 0) if found else 0

    def start_slow_sync(self, server, agent, *options):
        agent.start("sync", "--once", *SLOW, *options)

        def underway():
            self.assertIsNone(agent.process.poll(), f"the sync ended early: {agent.log()[-2000:]}")
            return self.percent(server, agent.name) >= 20
        wait_for("a fifth of the sync", underway)

    def test_server_killed_in_the_initial_sync(self):
        server = self.server()
        web1 = self.agent("web1", disks={"vda.img": -24 * MIB, "vdb.img": -4 * MIB})
        self.start_slow_sync(server, web1)
        server.restart()
        done = web1.finish()
        self.assertEqual(done.status, 0, done)
        self.assertTrue(done.json["point"], done)
        self.assertTrue(any(epoch.get("resumed") for epoch in [done.json, *done.json["epochs"]]), done)
        first = done.json["epochs"][0]
        self.assertEqual(first["resumed_bytes"] + first["compared_bytes"], 28 * MIB)
        self.assertGreater(first["resumed_bytes"], 0)
        self.assertGreaterEqual(first["sent_bytes"], 28 * MIB, "what was sent before the cut counts")
        self.assertEqual(first["changed_bytes"], first["compared_bytes"], "what was durable is not sent again")
        self.assertEqual(self.export(server, "web1"), web1.digests())

    def test_server_killed_in_a_later_sync_keeps_every_point(self):
        server = self.server()
        web1 = self.agent("web1", disks={"vda.img": 20 * MIB})
        web1.sync()
        first = (web1.sync()["epoch"], web1.digests())
        with open(web1.disks[0], "r+b") as disk:
            disk.write(os.urandom(18 * MIB))
        web1.start("sync", "--once", *SLOW)
        mark = server.metric(RECEIVED)
        wait_for("some of it to arrive", lambda: server.metric(RECEIVED) > mark + 2 * MIB)
        self.assertIsNone(web1.process.poll())
        server.restart()
        self.assertEqual(self.export(server, "web1", "latest"), first[1], "the open epoch never was")
        done = web1.finish()
        self.assertEqual(done.status, 0, done)
        self.assertEqual(self.export(server, "web1"), web1.digests())
        self.assertEqual(self.export(server, "web1", f"epoch:{first[0]}"), first[1])

    def test_agent_killed_in_the_initial_sync(self):
        server = self.server()
        web1 = self.agent("web1", disks={"vda.img": -40 * MIB})  # far more than what is read ahead
        self.start_slow_sync(server, web1)
        web1.kill()
        wait_for("the server to notice", lambda: not server.machine("web1")["connected"])
        self.assertEqual(server.points("web1", "--fuzzy"), [], "half an epoch is none")
        # It goes on where it was, and so do its figures: they count the whole, not what came after the cut.
        web1.start("sync", "--once", *SLOW)
        pid = web1.process.pid

        def under_way():
            status = web1.status()
            return status["pid"] == pid and status["rate_bytes_per_second"] and status["eta_seconds"] is not None and status
        status = wait_for("its progress", under_way)
        self.assertEqual(status["total_bytes"], 40 * MIB)
        self.assertGreaterEqual(status["percent"], 20)
        self.assertAlmostEqual(status["percent"], 100 * status["done_bytes"] / (40 * MIB), places=3)
        left = (status["total_bytes"] - status["done_bytes"]) / status["rate_bytes_per_second"]
        self.assertAlmostEqual(status["eta_seconds"], left, delta=1)
        self.assertGreaterEqual(self.percent(server, "web1"), 20, "the server says the same")
        done = web1.finish().json
        first = done["epochs"][0]
        self.assertTrue(first["resumed"], done)
        self.assertGreater(first["resumed_bytes"], 0)
        self.assertEqual(first["resumed_bytes"] + first["compared_bytes"], 40 * MIB)
        self.assertGreaterEqual(first["sent_bytes"], first["compared_bytes"])
        self.assertTrue(done["point"], done)
        self.assertEqual(self.export(server, "web1"), web1.digests())

    def test_agent_killed_in_a_later_sync(self):
        server = self.server()
        web1 = self.agent("web1", disks={"vda.img": 20 * MIB})
        web1.sync()
        first = web1.digests()
        with open(web1.disks[0], "r+b") as disk:
            disk.write(os.urandom(18 * MIB))
        mark = server.metric(RECEIVED)
        web1.start("sync", "--once", *SLOW)
        wait_for("some of it to arrive", lambda: server.metric(RECEIVED) > mark + 2 * MIB)
        web1.kill()
        self.assertEqual(self.export(server, "web1"), first)
        web1.sync()
        self.assertEqual(self.export(server, "web1"), web1.digests())
        self.assertEqual(len(server.points("web1")), 2)

    def test_both_killed_over_and_over(self):
        server = self.server()
        web1 = self.agent("web1", disks={"vda.img": 6 * MIB})
        expected = {}
        for round_number in range(6):
            change(web1.disks[0], round_number, pieces=20)
            digests = web1.digests()
            web1.start("sync", "--once")
            if round_number % 3 == 0:
                server.restart()
            elif round_number % 3 == 1:
                web1.kill()
                web1.start("sync", "--once")
            done = web1.finish()
            self.assertEqual(done.status, 0, done)
            expected[done.json["epoch"]] = digests
        server.restart()
        for epoch, digests in expected.items():
            self.assertEqual(self.export(server, "web1", f"epoch:{epoch}"), digests, f"epoch {epoch}")

    def test_a_second_server_on_the_same_directory_is_refused(self):
        server = self.server()
        from harness import Server
        second = Server(self, server.data, server.port + 1 if server.port < 65000 else server.port - 1)
        second.log_path = self.directory / "second.log"  # what it says is not of this test's servers
        ended = second.try_start()
        self.assertIsNotNone(ended, "two servers run on one directory")
        self.assertNotEqual(ended.status, 0)
        self.assertRegex(ended.err, r"lock|another|already")
        self.assertTrue(server.ask("health")["ok"], "the first one goes on")


if __name__ == "__main__":
    main()
