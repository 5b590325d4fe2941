#!/usr/bin/env python3
"""Who takes how much, quotas, and a file system that fills up: machines are warned, slowed and paused with a reason, what
was acknowledged stays, and all goes on by itself when there is room."""
import os
import re

from harness import MIB, BIN, Case, main, needs_root, run, wait_for

AT_ONCE = '[retention]\nremoval_holdoff = "0s"\n'
BRIM = '[storage]\nsegment_size = "8MiB"\nreserve_segments = 2\nfree_space_min = "48MiB"\nhigh_water = 1.0\nfull_water = 1.0\n' + AT_ONCE
MARKS = '[storage]\nsegment_size = "8MiB"\nreserve_segments = 2\nfree_space_min = "8MiB"\nhigh_water = 0.6\nfull_water = 0.8\n'


def available(path):
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize


def rewrite(path, size, offset=0):
    """New random bytes, in place."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(os.urandom(size))


class Space(Case):
    def running(self, name, server, size, *options):
        agent = self.agent(name, server, disks={"vda.img": size})
        agent.set_option("interval_s = 0.2")
        for option in options:
            agent.set_option(option)
        return agent.start()

    def newest(self, server, name):
        return next((point["epoch"] for point in server.points(name)), 0)

    def space(self, server, name):
        return server.machine(name)["space"]

    def written(self, server, agent, size, offset=0):
        """A change of the disk that came to a point."""
        before = self.newest(server, agent.name)
        rewrite(agent.disks[0], size, offset)
        wait_for("a point of it", lambda: self.newest(server, agent.name) > before)
        wait_for("it to be whole", lambda: self.export(server, agent.name) == agent.digests())

    def test_a_quota_warns_pauses_and_resumes(self):
        server = self.server(config=AT_ONCE)
        web1 = self.running("web1", server, -8 * MIB)
        wait_for("a first point", lambda: server.points("web1"))
        wait_for("it to be counted", lambda: self.space(server, "web1")["stored_bytes"] > 8 * MIB)
        self.assertLess(self.space(server, "web1")["stored_bytes"], 9 * MIB)
        self.assertEqual(server.ask("machine", "quota", "web1", "16MiB")["note"], None)
        self.allow("quota nearly reached machine=web1", "quota reached: the machine is paused machine=web1")
        self.written(server, web1, 6 * MIB + 700_000)
        wait_for("a warning", lambda: self.space(server, "web1")["quota_state"] == "warning")
        wait_for("it to be shown", lambda: "nearly used up" in (server.machine("web1")["cause"] or ""))
        self.assertEqual(server.metric('short_of_space.*near_quota'), 1)
        self.assertEqual(server.machine("web1")["state"], "continuous")
        self.written(server, web1, 2 * MIB)
        wait_for("the pause", lambda: server.machine("web1")["state"] == "paused")
        self.assertRegex(server.machine("web1")["cause"], "its quota is used up: it stores .* of 16.0 MiB")
        self.assertEqual(server.metric('short_of_space.*over_quota'), 1)
        before = self.newest(server, "web1")
        points = len(server.points("web1"))
        rewrite(web1.disks[0], 3 * MIB)
        status = wait_for("the agent's status to say so", lambda: "quota" in ((s := web1.status())["cause"] or "") and s)
        self.assertRegex(status["cause"], "the server asks to wait: its quota is used up")
        self.assertTrue(status["connected"])
        self.assert_logged(server, "quota reached: the machine is paused machine=web1")
        human = run([BIN / "tidemark", "--data", server.data, "machines"]).out
        self.assertRegex(human, r"(?m)^web1 +paused .* 16 MiB, 1\d\d %")
        self.assertRegex(run([BIN / "tidemark", "--data", server.data, "space"]).out, r"(?m)^web1 .*16 MiB, 1\d\d % .*paused")
        self.assertEqual(self.newest(server, "web1"), before, "nothing new comes")
        self.assertEqual(len(server.points("web1")), points, "nothing goes")

        server.ask("machine", "quota", "web1", "40MiB")
        wait_for("it to go on by itself", lambda: self.newest(server, "web1") > before)
        wait_for("all of it", lambda: self.export(server, "web1") == web1.digests())
        wait_for("the agent's status to be good", lambda: not web1.status()["cause"])
        wait_for("the server's too", lambda: server.machine("web1")["state"] == "continuous")

        self.assertRegex(server.ask("machine", "quota", "web1", "10MiB")["note"], "stores more than that already")
        wait_for("the pause", lambda: server.machine("web1")["state"] == "paused")
        rewrite(web1.disks[0], 100_000)
        server.ask("machine", "quota", "web1", "17MiB")
        wait_for("the pause to stay", lambda: self.space(server, "web1")["quota_state"] == "full")
        before = self.newest(server, "web1")
        server.ask("ladder", "set", "web1", "--dense", "0s", "--rung", "1d:1d")
        wait_for("pruning to make room", lambda: self.newest(server, "web1") > before)
        self.assertEqual(self.export(server, "web1"), web1.digests())
        self.assertIn("quota.set", [entry["action"] for entry in server.ask("audit")["entries"]])

    def test_quotas_that_make_no_sense(self):
        server = self.server()
        self.agent("web1", server)
        for arguments, status, words in ((("web9", "1GiB"), 1, "no machine|no such machine"),
                                         (("web1", "lots"), 1, "not a size.*200GiB"),
                                         (("web1", "0"), 1, "out of bounds"),
                                         (("web1", "1KiB"), 1, "out of bounds"),
                                         (("web1", "-5GiB"), (1, 2), "size|argument|option"),
                                         (("web1",), 2, "SIZE")):
            done = server.cli("machine", "quota", *arguments)
            self.assertIn(done.status, status if isinstance(status, tuple) else (status,), done)
            self.assertRegex(done.err + done.out, words)
        self.assertEqual(self.space(server, "web1")["quota_bytes"], None)
        self.assertEqual(server.ask("machine", "quota", "web1", "none")["space"]["quota_bytes"], None)

    def full_and_back(self, kind):
        mount = self.small_file_system(kind, 320 * MIB, kind)
        server = self.server(f"{kind}/data", BRIM, partitions=1)
        self.allow(r"not connected server=\S+ error=\"\S*partition-0000: its file system has", "cannot format a segment",
                   "staging is behind", r"session ended error=")
        agents = [self.running(f"{kind}{i}", server, -12 * MIB) for i in (1, 2)]
        for agent in agents:
            wait_for("a first point", lambda: server.points(agent.name))
        refused = lambda: server.metric(r'session_errors_total\{code="no-space"\}')
        rounds = 0
        while not refused() and rounds < 40:
            rounds += 1
            before = {agent.name: self.newest(server, agent.name) for agent in agents}
            for agent in agents:
                rewrite(agent.disks[0], 12 * MIB)
            wait_for("points of it, or no more space",
                     lambda: refused() or all(self.newest(server, name) > epoch for name, epoch in before.items()))
        self.assertLess(rounds, 40)
        wait_for("the server to see it", lambda: server.metric("^tidemark_directory_space_bytes.*available") < 48 * MIB)
        acked = {agent.name: server.points(agent.name) for agent in agents}
        first = {name: self.export(server, name, f"epoch:{points[-1]['epoch']}") for name, points in acked.items()}
        self.assertGreater(sum(len(points) for points in acked.values()), 8)
        # An administrator can do everything, and so can pruning.
        server.ask("pin", f"{kind}1", "--at", f"epoch:{acked[f'{kind}1'][-1]['epoch']}", "--name", "first")
        for agent in agents:
            server.ask("ladder", "set", agent.name, "--dense", "0s", "--rung", "1d:1d")
        wait_for("the space to come back by itself", lambda: available(mount) > 70 * MIB)
        for agent in agents:
            before = self.newest(server, agent.name)
            rewrite(agent.disks[0], MIB)  # what it had may all have come before the disk was full
            wait_for(f"{agent.name} to go on", lambda: self.newest(server, agent.name) > before)
            wait_for("all of it", lambda: self.export(server, agent.name) == agent.digests())
        self.assertEqual(self.export(server, f"{kind}1", f"epoch:{acked[f'{kind}1'][-1]['epoch']}"), first[f"{kind}1"])
        for agent in agents:
            agent.stop()
        server.restart()
        for agent in agents:
            self.assertEqual(self.export(server, agent.name), agent.digests(), "after a kill too")
        server.stop()

    @needs_root
    def test_agents_fill_an_ext4_to_the_brim_and_pruning_frees_it(self):
        self.full_and_back("ext4")

    @needs_root
    def test_agents_fill_an_xfs_to_the_brim_and_pruning_frees_it(self):
        self.full_and_back("xfs")

    def filled_by_others(self, kind):
        mount = self.small_file_system(kind, 320 * MIB, kind)
        server = self.server(f"{kind}/data", BRIM, partitions=1)
        web1 = self.running("web1", server, -4 * MIB)
        wait_for("a first point", lambda: server.points("web1"))
        before = self.newest(server, "web1")
        digests = web1.digests()
        self.allow(r"not connected server=", "cannot format a segment", "staging is behind", "session ended",
                   "index_failed", "settling_failed", "seen time not written", "time not written", "audit log not written",
                   "segments_not_released", "checking_failed", "integrity_not_saved")
        filler = mount / "filler"
        with open(filler, "wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, max(available(mount), 1))
            except OSError:
                pass
            try:
                while file.write(bytes(MIB)):
                    pass
            except OSError:
                pass
        self.assertLess(available(mount), MIB)
        # Some of it may still be taken: the server looks about every second. What it took is a point or is not.
        rewrite(web1.disks[0], 2 * MIB)
        wait_for("the server to see it", lambda: server.metric("^tidemark_directory_space_bytes.*available") < MIB)
        told = lambda: "to stay free" in (web1.status()["cause"] or "")
        wait_for("the agent to be told, or done", lambda: told() or self.newest(server, "web1") > before)
        rewrite(web1.disks[0], 2 * MIB)
        wait_for("the agent to be told", told)
        # Longer than the index may wait with a flush.
        wait_for("the index to have wanted to be written out",
                 lambda: re.search("index_failed|index_recovered", server.log()) or server.metric("uptime_seconds") > 15)
        self.assertEqual(self.export(server, "web1", f"epoch:{before}"), digests, "what was acknowledged can be read")
        before = self.newest(server, "web1")
        self.export(server, "web1")
        done = server.cli("machine", "quota", "web1", "1GiB")
        self.assertIn(done.status, (0, 1), done)
        filler.unlink()
        wait_for("it to go on by itself", lambda: self.newest(server, "web1") > before)
        wait_for("all of it", lambda: self.export(server, "web1") == web1.digests())
        server.ask("machine", "quota", "web1", "1GiB")
        web1.stop()
        server.restart()
        self.assertEqual(self.export(server, "web1"), web1.digests())

    @needs_root
    def test_something_else_fills_an_ext4_to_zero(self):
        self.filled_by_others("ext4")

    @needs_root
    def test_something_else_fills_an_xfs_to_zero(self):
        self.filled_by_others("xfs")

    @needs_root
    def test_above_the_high_mark_the_fast_are_slowed_then_paused_and_the_small_go_on(self):
        mount = self.small_file_system("small", 400 * MIB)
        server = self.server("small/data", MARKS, partitions=1)
        self.allow("the staging file system is full")
        small = self.running("small", server, -1 * MIB)
        wait_for("a first point", lambda: server.points("small"))
        wait_for("its beginning to be forgotten", lambda: self.space(server, "small")["growth_bytes_per_s"] < 12_000)
        filler = mount / "filler"
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, 210 * MIB)
        fast = self.running("fast", server, -64 * MIB, "rate_limit_mib_s = 4")
        wait_for("the fast one to be slowed", lambda: (server.machine("fast")["space"]["held"]) == "slowed")
        told = server.machine("fast")
        self.assertRegex(told["cause"], r"it is slowed to .*/s: the staging file system is \d\d % full, and this machine grows by")
        status = wait_for("its agent's status to say so", lambda: "slowed to" in ((s := fast.status())["cause"] or "") and s)
        self.assertRegex(status["cause"], "the server asks to wait: it is slowed to")
        self.assertEqual(server.metric("short_of_space.*slowed"), 1)
        self.assertEqual(server.metric("tidemark_file_system_level"), 1)
        self.assertEqual(self.space(server, "small")["held"], None)
        human = run([BIN / "tidemark", "--data", server.data, "space"]).out
        self.assertRegex(human, r"(?m)^fast .*slowed to .*/s$")
        self.assertRegex(human, "above the high mark, 1 machines slowed, 0 paused")
        done = self.space(server, "fast")["stored_bytes"]

        with open(filler, "ab") as file:
            os.posix_fallocate(file.fileno(), 0, 290 * MIB)
        wait_for("the fast one to be paused", lambda: server.machine("fast")["state"] == "paused")
        self.assertRegex(server.machine("fast")["cause"], r"it is paused: the staging file system is \d\d % full")
        wait_for("its agent's status to say so", lambda: "it is paused" in (fast.status()["cause"] or ""))
        before = self.newest(server, "small")
        rewrite(small.disks[0], 4096)
        wait_for("the small one to go on", lambda: self.newest(server, "small") > before)
        self.assertEqual(server.points("fast"), [])
        self.assertLess(self.space(server, "fast")["stored_bytes"], done + 8 * MIB)

        filler.unlink()
        wait_for("the fast one to go on by itself", lambda: server.points("fast"))
        self.assertEqual(self.export(server, "fast"), fast.digests())
        wait_for("all to be well", lambda: server.metric("tidemark_file_system_level") == 0)
        wait_for("its state too", lambda: server.machine("fast")["state"] == "continuous")
        self.assertLessEqual(len(re.findall("the staging file system", server.log())), 8, "the log says each level once")


if __name__ == "__main__":
    main()
