#!/usr/bin/env python3
"""Partitions on several disks: one that fails takes its own machines with it and no others, says so wherever an operator
looks, and comes back without a restart. Real file systems, ext4 and XFS."""
import fcntl
import os
import re
import struct
import time

from harness import BIN, MIB, Case, change, main, run, wait_for

CONFIG = '[storage]\nsegment_size = "8MiB"\nreserve_segments = 2\nfree_space_min = "16MiB"\n'
FS_IOC_SHUTDOWN = 0x8004587D  # every file operation fails with EIO from now on, as when the disk was pulled
NO_LOG_FLUSH = 2


def shut_down(mount):
    descriptor = os.open(mount, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    finally:
        os.close(descriptor)


class DataDirectories(Case):
    def setUp(self):
        super().setUp()
        if os.geteuid() != 0:
            self.skipTest("needs root, to mount small file systems")
        self.mounted = [self.small_file_system("one", 160 * MIB), self.small_file_system("two", 400 * MIB, "xfs")]
        self.homes = [mount / "tidemark" for mount in self.mounted]
        self.staging = self.server(config=CONFIG, partitions=2, data_directories=self.homes)
        self.machines = {}  # by directory
        for i in range(16):
            if len(self.machines) == 2:
                break
            agent = self.agent(f"web{i}")
            home = self.home_of(agent)
            if home in self.machines:
                continue
            agent.make_disk("vda.img", 2 * MIB, i)
            agent.protect().sync()
            self.machines[home] = agent
        self.assertEqual(len(self.machines), 2, "new machines go to both disks")

    def home_of(self, agent):
        partition = self.staging.machine(agent.name)["partition"]
        path = next(one["directory"] for one in self.staging.ask("health")["partitions"] if one["id"] == partition)
        return self.homes.index(type(self.homes[0])(path))

    def goes_on(self, agent):
        """Its next point is taken, and is exact."""
        change(agent.disks[0], time.monotonic_ns())
        self.assertTrue(agent.sync()["point"])
        self.assertEqual(self.export(self.staging, agent.name), agent.digests())

    def failed(self, which, what):
        """The directory is said to have failed, with its partition; the other serves."""
        def told():
            health = self.staging.cli("health").json
            stopped = any(one["state"] == "stopped" for one in health["partitions"])
            return stopped and any(one["state"] == "failed" for one in health["directories"]) and health
        health = wait_for("the server to see it", told)
        states = {one["path"]: one for one in health["directories"]}
        self.assertEqual(states[str(self.homes[which])]["state"], "failed", health)
        self.assertRegex(states[str(self.homes[which])]["why"], what)
        self.assertEqual(states[str(self.homes[1 - which])]["state"], "well", health)
        by_home = {one["directory"]: one for one in health["partitions"]}
        self.assertEqual(by_home[str(self.homes[which])]["state"], "stopped", health)
        self.assertEqual(by_home[str(self.homes[1 - which])]["state"], "serving", health)
        self.assertEqual(self.staging.metric(rf'^tidemark_directory_well\{{directory="{self.homes[which]}"'), 0)
        self.assertEqual(self.staging.metric(rf'^tidemark_directory_well\{{directory="{self.homes[1 - which]}"'), 1)
        human = run([BIN / "tidemark", "--data", self.staging.data, "health"])
        self.assertRegex(human.out, rf"(?m)^{re.escape(str(self.homes[which]))} +failed ")
        self.assert_logged(self.staging, f"error data directory failed directory={self.homes[which]} .*{what}")
        refused = self.machines[which].run("sync", "--once", "--retry-for", "1")
        self.assertEqual(refused.status, 1, refused)
        self.assert_error(refused.error, "holds this machine is stopped: .*operator must look", "unavailable")
        self.goes_on(self.machines[1 - which])

    def back(self, which):
        wait_for("all partitions to serve again", lambda: self.staging.cli("health").status == 0)
        for agent in self.machines.values():
            self.goes_on(agent)

    def trouble(self, which):
        self.allow(f"error data directory failed directory={self.homes[which]} ", "error partition stopped partition=",
                   "error partition not opened partition=.* state=stopped ",
                   "warning event=(checking_failed|integrity_not_saved) ")

    def mount_again(self, which, options="loop"):
        self.assertEqual(self.mount(self.mounted[which].name, options).status, 0)

    def unmount(self, which, *options):
        self.assertEqual(run(["umount", *options, self.mounted[which]]).status, 0)

    def test_one_that_is_not_mounted_at_start_is_not_made_anew_and_comes_back_by_itself(self):
        for which in (0, 1):
            with self.subTest(directory=self.mounted[which].name):
                self.trouble(which)
                self.staging.stop()
                self.unmount(which)
                self.staging.start()
                self.failed(which, "the data directory is not there: it has no data-directory.json.*is its disk mounted")
                self.assertEqual(os.listdir(self.mounted[which]), [], "nothing is put where the disk should be")
                self.mount_again(which)
                self.back(which)

    def test_one_that_is_unmounted_while_it_serves(self):
        self.trouble(1)
        self.unmount(1, "--lazy")
        self.failed(1, "the data directory is not there")
        self.assertIn(self.machines[1].name, [one["name"] for one in self.staging.ask("machines")["machines"]])
        self.mount_again(1)
        self.back(1)

    def test_one_whose_disk_fails_while_it_serves(self):
        for which in (0, 1):
            with self.subTest(directory=self.mounted[which].name):
                self.trouble(which)
                self.allow("warning event=", "error event=", "warning storage: cannot (format|put a segment on deck)",
                           "error index cannot", "staging is behind", "error partition not closed well",
                           "error damage found while digesting code=io ")
                shut_down(self.mounted[which])
                change(self.machines[which].disks[0], 5)
                self.machines[which].run("sync", "--once", "--retry-for", "1")
                self.failed(which, "Input/output error|Structure needs cleaning|is not there|read-only")
                self.unmount(which, "--lazy")
                self.mount_again(which)
                self.back(which)

    def test_one_that_is_read_only_or_another_servers(self):
        self.trouble(0)
        self.staging.stop()
        self.unmount(0)
        self.mount_again(0, "loop,ro")
        self.staging.start()
        self.failed(0, "read-only")
        self.staging.stop()
        self.unmount(0)

        other = self.server("other", partitions=1, start=False, data_directories=[self.directory / "elsewhere/tidemark"])
        self.servers.remove(other)
        self.assertEqual(run(["mount", "--bind", self.directory / "elsewhere", self.mounted[0]]).status, 0)
        self.staging.start()
        self.failed(0, "it belongs to server [0-9a-f]{32}, and this is server [0-9a-f]{32}")
        self.unmount(0)
        self.mount_again(0)
        self.back(0)

    def test_a_full_one_refuses_and_the_other_goes_on_and_gets_the_new_machines(self):
        self.allow("not connected server=", "warning storage: cannot format a segment", "staging is behind",
                   "warning the staging file system is full: the fastest growing machines are paused",
                   "warning event=integrity_not_saved ", "error event=index_failed doing=apply .*free space on its file system")
        with open(self.mounted[0] / "filler", "wb") as file:
            space = os.statvfs(self.mounted[0])
            os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - 4 * MIB)
        small, large = self.machines[0], self.machines[1]
        wait_for("the server to see it", lambda: self.staging.metric(
            rf'^tidemark_directory_space_bytes\{{directory="{self.homes[0]}",what="available"') < 8 * MIB)
        change(small.disks[0], 3)
        refused = small.run("sync", "--once", "--retry-for", "1")
        self.assertEqual(refused.status, 1, refused)
        self.assert_error(refused.error, "MiB left, .*are to stay free", "no-space")
        self.goes_on(large)
        for name in ("new1", "new2", "new3"):
            self.assertEqual(self.home_of(self.agent(name)), 1)
        (self.mounted[0] / "filler").unlink()
        wait_for("space to be seen", lambda: small.run("sync", "--once", "--retry-for", "1").status == 0)
        self.goes_on(small)

    def test_a_disk_that_is_added_gets_new_machines_and_moves_none(self):
        third = self.small_file_system("three", 600 * MIB)
        add = [BIN / "tidemarkd", "add-directory", "--data", self.staging.data]
        busy = run([*add, third / "tidemark"])
        self.assertEqual(busy.status, 1, busy)
        self.assertRegex(busy.err, "a tidemarkd serves this data directory.*stop it first")
        before = {agent.name: self.staging.machine(agent.name)["partition"] for agent in self.machines.values()}
        self.staging.stop()
        done = run([*add, third / "tidemark", "--partitions", "2"])
        self.assertEqual(done.status, 0, done)
        self.assertRegex(done.out, "with 2 partitions, 4 in all")
        self.homes.append(third / "tidemark")
        self.staging.start()
        for agent in self.machines.values():
            self.assertEqual(self.staging.machine(agent.name)["partition"], before[agent.name])
            self.goes_on(agent)
        late = self.agent("late", disks={"vda.img": MIB})
        self.assertEqual(self.home_of(late), 2, "there is most room")
        self.goes_on(late)
        later = self.agent("later", disks={"vda.img": MIB})
        self.assertNotEqual(self.staging.machine("later")["partition"], self.staging.machine("late")["partition"])
        self.staging.restart()
        self.goes_on(late)
        self.goes_on(later)

        # Mounted at another place: told once, and it goes on there.
        self.staging.stop()
        self.assertEqual(run(["umount", third]).status, 0)
        moved = self.directory / "moved"
        moved.mkdir()
        self.assertEqual(run(["mount", "-o", "loop", self.directory / "three.image", moved]).status, 0)
        self.mounts.append(moved)
        done = run([*add, moved / "tidemark"])
        self.assertEqual(done.status, 0, done)
        self.staging.start()
        self.goes_on(late)

    def test_a_partition_that_stopped_is_opened_again_by_command(self):
        self.trouble(0)
        partition = self.staging.machine(self.machines[0].name)["partition"]
        self.staging.stop()
        superblock = self.homes[0] / f"partition-{partition:04}" / "partition"
        superblock.rename(superblock.with_name("kept"))
        self.staging.start()
        self.assertEqual(self.staging.cli("health").status, 1)
        self.assertEqual(self.staging.cli("partition", "open", "77").error["code"], "not-found")
        self.assertEqual(self.staging.cli("partition", "open", str(1 - partition)).error["code"], "already-exists")
        superblock.with_name("kept").rename(superblock)
        self.staging.ask("partition", "open", str(partition))
        self.back(0)
        self.assertIn("partition.open", [entry["action"] for entry in self.staging.ask("audit")["entries"]])


if __name__ == "__main__":
    main()
