#!/usr/bin/env python3
"""One file of a recovery point with two commands: tidemark mount, tidemark unmount."""
import os
import pathlib
import shutil
import signal
import subprocess
import unittest

from harness import BIN, MIB, Case, main, needs_root, run, wait_for

MISSING = [program for program in ("nbdfuse", "sfdisk", "mkfs.xfs", "losetup", "partx") if shutil.which(program) is None]
RUN = pathlib.Path("/run/tidemark-mount")


def partitioned(disk, *parts):
    lines = "\n".join(parts or ("start=2048, type=83",))
    subprocess.run(["sfdisk", "-q", disk], input=lines, text=True, check=True)


@unittest.skipIf(MISSING, f"not installed: {MISSING}")
class OneFileBack(Case):
    def setUp(self):
        super().setUp()
        self.staging = self.server()
        self.where = self.directory / "point"
        self.where.mkdir()
        self.mounts.append(self.where)

    def well(self, *command, **options):
        done = run(command, **options)
        self.assertEqual(done.status, 0, f"{command}: {done}")
        return done.out

    def make_file_system(self, disk, kind, offset=0, size=None):
        loop = self.loop_device_at(disk, offset, size)
        self.well(f"mkfs.{kind}", "-q", "-F" if kind == "ext4" else "-f", loop)
        return loop

    def loop_device_at(self, disk, offset, size=None):
        loop = self.well("losetup", "--find", "--show", "--offset", offset, *(["--sizelimit", size] if size else []), disk).strip()
        self.loops.append(pathlib.Path(loop))
        return loop

    def crashed(self, name, kind, size, offset=0):
        """A machine with a disk as a crash leaves it: a file that is only in the journal of a file system that is mounted."""
        agent = self.agent(name)
        disk = agent.root / "vda.img"
        with open(disk, "wb") as file:
            file.truncate(size)
        if offset:
            partitioned(disk)
        loop = self.make_file_system(disk, kind, offset)
        where = self.directory / f"{name}-live"
        where.mkdir()
        self.well("mount", loop, where)
        try:
            (where / "notes.txt").write_text(f"the notes of {name}\n")
            os.sync()
            with open(where / "later.txt", "w") as file:
                file.write("later\n")
                file.flush()
                os.fsync(file.fileno())
            agent.disks.append(pathlib.Path(shutil.copy(disk, agent.root / "crashed.img")))
        finally:
            run(["umount", where])
        agent.protect().sync()
        return agent

    def assert_nothing_is_left(self):
        self.assertFalse(os.path.ismount(self.where))
        self.assertEqual(self.staging.ask("clone", "list")["clones"], [])
        self.assertEqual([path for path in RUN.glob("*") if path.is_dir()], [])
        wait_for("nbdfuse to have left", lambda: self.staging.metric("tidemark_nbd_connections") == 0)
        self.assertNotIn(str(RUN), self.well("losetup", "--list", "--noheadings", "--output", "BACK-FILE"))

    def refused(self, *arguments):
        done = self.staging.cli(*arguments)
        self.assertEqual(done.status, 1, done)
        self.assert_nothing_is_left()
        return done.error

    @needs_root
    def test_of_whole_disks_and_partitions_ext4_and_xfs(self):
        for name, kind, size, offset in (("ext4", "ext4", 32 * MIB, 0), ("ext4part", "ext4", 32 * MIB, MIB),
                                         ("xfs", "xfs", 320 * MIB, 0), ("xfspart", "xfs", 321 * MIB, MIB)):
            with self.subTest(name):
                self.crashed(name, kind, size, offset)
                before = self.staging.ask("verify", name, "--at", "latest")["sha256"]
                told = self.staging.ask("mount", name, self.where, "--at", "latest")
                self.assertEqual((told["type"], told["partition"], told["directory"]), (kind, 1 if offset else 0, str(self.where)))
                self.assertEqual((self.where / "notes.txt").read_text(), f"the notes of {name}\n")
                self.assertEqual((self.where / "later.txt").read_text(), "later\n", "the journal was not replayed")
                with self.assertRaises(OSError):
                    (self.where / "new").write_text("no")
                [clone] = self.staging.ask("clone", "list")["clones"]
                self.assertEqual((clone["name"], clone["parent"]), (told["clone"], name))
                self.staging.ask("unmount", self.where)
                self.assert_nothing_is_left()
                self.assertEqual(self.staging.ask("verify", name, "--at", "latest")["sha256"], before)

    @needs_root
    def test_what_stands_in_the_way_is_said_and_nothing_is_left(self):
        agent = self.crashed("web1", "ext4", 32 * MIB)
        self.assertRegex(self.refused("mount", "web1", self.directory / "nowhere", "--at", "latest")["what"], "no directory")
        self.assertEqual(self.refused("mount", "web9", self.where, "--at", "latest")["code"], "not-found")
        self.assertEqual(self.refused("mount", "web1", self.where, "--at", "latest", "--disk", "sdz")["code"], "not-found")
        self.assertEqual(self.refused("mount", "web1", self.where, "--at", "latest", "--partition", "3")["code"], "not-found")
        self.assertRegex(self.refused("unmount", self.where)["what"], "no recovery point is mounted")
        (self.where / "there").touch()
        self.assertRegex(self.refused("mount", "web1", self.where, "--at", "latest")["what"], "not empty")
        (self.where / "there").unlink()
        empty = self.directory / "empty"
        empty.mkdir()
        command = [BIN / "tidemark", "--data", self.staging.data, "--json", "mount", "web1", self.where, "--at", "latest"]
        without = run(command, env={"PATH": str(empty)})
        self.assertEqual((without.status, without.error["object"]), (1, "nbdfuse"))
        self.assertIn("apt install", without.error["remedy"])
        # Several disks, several file systems, none.
        several = agent.root / "several.img"
        with open(several, "wb") as file:
            file.truncate(48 * MIB)
        partitioned(several, "start=2048, size=32768, type=83", "start=34816, size=32768, type=83", "type=83")
        for start in (MIB, 17 * MIB):
            loop = self.make_file_system(several, "ext4", start, 16 * MIB)
            self.well("losetup", "--detach", loop)  # nothing but the agent has it open from here on
            self.loops.remove(pathlib.Path(loop))
            wait_for("the loop device to let go", lambda: not run(["losetup", "--associated", several]).out)
        agent.disks.append(several)
        agent.protect().sync()
        self.assertRegex(self.refused("mount", "web1", self.where, "--at", "latest")["what"], "several disks")
        options = ("mount", "web1", self.where, "--at", "latest", "--disk", "several.img")
        self.assertRegex(self.refused(*options)["remedy"], r"--partition N: 1 \(ext4.*2 \(ext4.*3 \(nothing known")
        self.assertEqual(self.refused(*options, "--partition", "3")["code"], "unsupported")
        self.staging.ask(*options, "--partition", "2")
        # In use, it stays; the second time it goes.
        with os.scandir(self.where):
            self.assertEqual(self.staging.cli("unmount", self.where).error["code"], "busy")
            self.assertTrue(os.path.ismount(self.where))
        self.staging.ask("unmount", self.where)
        self.assert_nothing_is_left()

    @needs_root
    def test_a_mount_whose_server_or_nbdfuse_died_can_be_ended(self):
        self.crashed("web1", "ext4", 32 * MIB)
        told = self.staging.ask("mount", "web1", self.where, "--at", "latest")
        os.kill(int((RUN / told["clone"] / "pid").read_text()), signal.SIGKILL)
        wait_for("it to have left", lambda: self.staging.metric("tidemark_nbd_connections") == 0)
        self.staging.ask("unmount", self.where)
        self.assert_nothing_is_left()
        self.staging.ask("mount", "web1", self.where, "--at", "latest")
        self.staging.restart()
        self.staging.ask("unmount", self.where)
        self.assert_nothing_is_left()


if __name__ == "__main__":
    main()
