#!/usr/bin/env python3
"""A staging disk that is full, or that stands still: whom it concerns is told exactly what is the matter, the others go
on, nothing acknowledged is lost, and when it is over the agents go on by themselves."""
import os
import re

from harness import MIB, Case, change, main, needs_root, run, wait_for

LIMITED = '[storage]\nsegment_size = "8MiB"\nreserve_segments = 2\nfree_space_min = "16MiB"\nhigh_water = 1.0\nfull_water = 1.0\n'
NO_SPACE = 'session_errors_total{code="no-space"}'


def available(path):
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize


class StagingDisk(Case):
    def running(self, name, server, size):
        """An agent at work, with a first point."""
        agent = self.agent(name, server, disks={"vda.img": size})
        agent.set_option("interval_s = 0.5")
        agent.start()
        wait_for(f"a first point of {name}", lambda: server.points(name))
        return agent

    def newest(self, server, name):
        return server.points(name)[0]["epoch"]

    def still_current(self, server, name):
        """It is told anew that the machine's newest point is what the machine holds."""
        before = server.machine(name)["unchanged_as_of"]
        wait_for(f"{name} to go on", lambda: server.machine(name)["unchanged_as_of"] != before)

    def connected_once(self, agent):
        self.assertEqual(len(re.findall("connected server=", agent.log())), 1, agent.log())

    @needs_root
    def test_a_full_disk_refuses_new_data_says_why_and_goes_on_when_there_is_space(self):
        mount = self.small_file_system("small", 128 * MIB)
        server = self.server("small/data", LIMITED, partitions=1)
        idle = self.running("idle", server, 2 * MIB)
        busy = self.running("busy", server, -2 * MIB)
        before = {agent.name: (self.newest(server, agent.name), agent.digests()) for agent in (idle, busy)}
        self.allow(r"not connected server=\S+ error=\"\S*partition-0000: its file system has")

        filler = mount / "filler"
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, available(mount) - 8 * MIB)
        wait_for("the server to see it", lambda: server.metric('^tidemark_directory_space_bytes.*available') < 16 * MIB)
        refusal = r"partition-0000.*file system has \d+ MiB left, .*16 MiB are to stay free"
        with self.tells(server, re.escape(NO_SPACE), f"session ended .*code=no-space.*{refusal}", by=None):
            change(busy.disks[0], 1)
            status = wait_for("the agent's status to say so", lambda: (s := busy.status())["cause"] and "space" in s["remedy"] and s)
        self.assertRegex(status["cause"], refusal)
        self.assertRegex(status["remedy"], "free space, remove machines")
        self.assertFalse(status["connected"])
        self.assert_logged(busy, f"not connected .*{refusal}.*free space, remove machines")
        told = wait_for("the administrator to be told", lambda: (m := server.machine("busy"))["state"] == "disconnected" and m)
        self.assertRegex(told["cause"], "MiB left")
        self.assertRegex(told["remedy"], "free space")

        self.still_current(server, "idle")
        self.connected_once(idle)
        for name, (epoch, digests) in before.items():
            self.assertEqual(self.newest(server, name), epoch)
            self.assertEqual(self.export(server, name), digests, "what was acknowledged can be read")

        filler.unlink()
        wait_for("a new point, by itself", lambda: self.newest(server, "busy") > before["busy"][0])
        self.assertEqual(self.export(server, "busy"), busy.digests())
        self.assertEqual(self.export(server, "busy", f"epoch:{before['busy'][0]}"), before["busy"][1])
        wait_for("the agent's status to be good again", lambda: (s := busy.status())["state"] == "continuous" and not s["cause"])
        self.connected_once(idle)
        for agent in (idle, busy):
            agent.stop()
        server.restart()
        self.assertEqual(self.export(server, "idle"), before["idle"][1], "after a kill too")
        self.assertEqual(self.export(server, "busy"), busy.digests())

    @needs_root
    def test_a_disk_that_fills_up_in_an_initial_sync_which_goes_on_later(self):
        """Also when there is more than free_space_min left, but no room for the log's next segment."""
        mount = self.small_file_system("small", 160 * MIB)
        server = self.server("small/data", LIMITED, partitions=1)
        web1 = self.agent("web1", server, disks={"vda.img": 2 * MIB})
        web1.sync()
        before = web1.digests()
        filler = mount / "filler"
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, 72 * MIB)
        self.allow("staging is behind, agents are asked to wait .*the staging disk is slow")  # so it may be, or the machine
        self.allow(r"warning storage: cannot format a segment directory=\S+ error=.*a new segment takes 8 and 16 are to stay free")
        big = self.agent("big", server, disks={"vda.img": -64 * MIB})
        with self.tells(server, re.escape(NO_SPACE), "session ended .*code=no-space.*MiB left", by=None):
            done = big.run("sync", "--once", "--retry-for", "1")
        self.assertEqual(done.status, 1, done)
        self.assert_error(done.error, r"partition-0000.*MiB left, .*are to stay free.*free space", "no-space")
        self.assertLessEqual(len(re.findall("cannot format a segment", server.log())), 1, "it is said once")
        self.assertEqual(server.points("big"), [])
        self.assertEqual(self.export(server, "web1"), before)
        filler.unlink()
        done = wait_for("the sync to go on", lambda: (d := big.run("sync", "--once", "--retry-for", "1")).status == 0 and d.json)
        self.assertTrue(done["epochs"][0]["resumed"], done)
        self.assertTrue(done["point"], done)
        self.assertEqual(self.export(server, "big"), big.digests())

    @needs_root
    def test_a_disk_that_stands_still_makes_agents_wait_and_tells_them_why(self):
        mount = self.small_file_system("small", 128 * MIB)
        server = self.server("small/data", LIMITED, partitions=1)
        web1 = self.running("web1", server, -4 * MIB)
        first = self.newest(server, "web1")
        self.allow("staging is behind, agents are asked to wait partition=0 sessions=1 why=\"the staging disk is slow")
        self.assertEqual(run(["fsfreeze", "--freeze", mount]).status, 0)
        self.addCleanup(run, ["fsfreeze", "--unfreeze", mount])
        with self.tells(server, "tidemark_throttles_total", "staging is behind.*staging disk is slow"):
            change(web1.disks[0], 1)
            status = wait_for("the agent's status to say so", lambda: (s := web1.status())["cause"] and s)
        self.assertRegex(status["cause"], "the server asks to wait: the staging disk is slow")
        self.assertIn("goes on by itself", status["remedy"])
        self.assertTrue(status["connected"])
        self.assertEqual(server.metric("tidemark_throttled_sessions"), 1)
        self.assertRegex(server.machine("web1")["cause"], "the staging disk is slow")
        self.assertEqual(self.newest(server, "web1"), first, "nothing is acknowledged meanwhile")
        self.assertEqual(run(["fsfreeze", "--unfreeze", mount]).status, 0)
        wait_for("a new point", lambda: self.newest(server, "web1") > first)
        wait_for("nobody to wait any more", lambda: server.metric("tidemark_throttled_sessions") == 0)
        wait_for("the agent's status to be good again", lambda: not web1.status()["cause"])
        self.assertFalse(server.machine("web1")["cause"])
        self.assert_logged(server, "staging keeps up again")
        self.assert_logged(web1, "the server asks to wait no more")
        self.assertEqual(self.export(server, "web1"), web1.digests())
        self.connected_once(web1)


if __name__ == "__main__":
    main()
