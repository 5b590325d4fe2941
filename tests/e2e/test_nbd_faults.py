#!/usr/bin/env python3
"""NBD when something is wrong: damage, no space, a stopped partition, a machine that is removed, clients that hang; and file
systems that are made, filled and checked through other people's FUSE exports."""
import contextlib
import json
import os
import shutil
import subprocess
import time
import unittest

from harness import KIB, MIB, main, needs_root, run, sha256, wait_for
from test_nbd import MISSING, SIZE, NbdCase, Raw

EIO, EINVAL, ENOSPC, ESHUTDOWN = 5, 22, 28, 108


def segments(server):
    return sorted(server.data.glob("partition-*/log/*.segment"))


class Damage(NbdCase):
    def test_damage_is_an_error_of_the_reads_concerned_and_an_alarm(self):
        self.web1.make_disk("vdb.img", -2 * MIB, 5)  # incompressible: what is stored is what is on the disk
        self.web1.protect().sync()
        content = self.web1.disks[1].read_bytes()
        wanted = content[MIB + 8 * KIB:MIB + 9 * KIB]
        damaged = 0
        for path in segments(self.staging):
            at = path.read_bytes().find(wanted)
            if at >= 0:
                damaged += 1
                with open(path, "r+b") as file:
                    file.seek(at + 500)
                    file.write(bytes([wanted[500] ^ 1]))
                    os.fsync(file.fileno())
        self.assertEqual(damaged, 1, "the block is stored once")
        self.allow("damage", "damaged")
        before = self.staging.metric("^tidemark_damaged_reads_total")
        with contextlib.closing(Raw(self.socket)) as client:
            client.go("web1/vdb.img@latest")
            wrong = []
            for _ in range(2):  # also when blocks have been seen
                for offset in range(0, 2 * MIB, 4 * KIB):
                    client.send(0, offset, 4 * KIB)
                    if error := client.error():
                        self.assertEqual(error, EIO)
                        wrong.append(offset)
                    else:
                        self.assertEqual(client.take(4 * KIB), content[offset:offset + 4 * KIB], offset)
            self.assertIn(MIB + 8 * KIB, wrong)
            self.assertLessEqual(len(set(wrong)), 16, "one block of 64 KiB")
            client.send(0, 0, 2 * MIB)  # a large read over it fails as a whole
            self.assertEqual(client.error(), EIO)
        self.assertGreater(self.staging.metric("^tidemark_damaged_reads_total"), before)
        self.assert_logged(self.staging, "event=damage_found .*segment=")
        found = self.staging.cli("damage", "web1").json["damage"]
        self.assertEqual([one["disk_name"] for one in found], ["vdb.img"])
        self.assertTrue(wait_for("the alarm", lambda: self.staging.machine("web1")["alarm"]))


class Space(NbdCase):
    config = ('[retention]\nremoval_holdoff = "0s"\n[storage]\nsegment_size = "8MiB"\nreserve_segments = 2\n'
              'free_space_min = "24MiB"\nhigh_water = 1.0\nfull_water = 1.0\n')

    def server(self, *arguments, **options):
        self.mount_point = self.small_file_system("small", 160 * MIB)
        return super().server("small/data", *arguments, **options, partitions=1)

    @needs_root
    def test_a_full_disk_is_no_space_for_writers_and_goes_on_when_there_is_some(self):
        self.clone()
        filler = self.mount_point / "filler"
        space = os.statvfs(self.mount_point)
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - 26 * MIB)
        self.allow("clone cannot be written to", "cannot format a segment", "storage event=", "staging is behind")
        expected = bytearray(self.point.read_bytes())
        with contextlib.closing(Raw(self.socket)) as client:
            client.go("clone/check/vda.img")
            refused = None
            for i in range(400):  # more than there can be room for
                offset, data = (i * 256 * KIB) % SIZE, os.urandom(256 * KIB)
                client.send(1, offset, len(data), data=data)
                if refused := client.error():
                    break
                expected[offset:offset + len(data)] = data
                client.send(3, 0, 0)
                if refused := client.error():
                    break  # the write was taken, its flush was not: it is there, and is no promise
            self.assertEqual(refused, ENOSPC, f"after {i} writes")
            for offset in range(0, SIZE, MIB):  # and all of it can be read
                client.send(0, offset, MIB)
                self.assertEqual(client.error(), 0)
                self.assertEqual(client.take(MIB), expected[offset:offset + MIB], offset)
            filler.unlink()

            def written():
                client.send(1, 0, 4096, 1, b"\xaa" * 4096)  # FUA
                return client.error() == 0
            wait_for("writes to go on", written)
            expected[:4096] = b"\xaa" * 4096
        self.staging.restart()
        self.assertEqual(self.read(self.uri("clone/check/vda.img")), bytes(expected))


class Stopped(NbdCase):
    config = NbdCase.config + '[storage]\nsegment_size = "8MiB"\nreserve_segments = 2\nfree_space_min = "16MiB"\n'

    def server(self, *arguments, **options):
        self.home = self.small_file_system("home", 160 * MIB)
        return super().server(*arguments, **options, partitions=1, data_directories=[self.home / "tidemark"])

    @needs_root
    def test_a_partition_that_stops_ends_its_clients_and_serves_again_when_it_is_back(self):
        self.clone()
        self.allow("data directory failed", "partition stopped", "partition not opened", "clone cannot be written to",
                   "event=(checking_failed|integrity_not_saved) ")
        reader, writer = Raw(self.socket), Raw(self.socket)
        reader.go("web1/vda.img@latest")
        writer.go("clone/check/vda.img")
        self.assertEqual(run(["umount", "--lazy", self.home]).status, 0)
        try:
            for client in (reader, writer):
                with contextlib.closing(client), contextlib.suppress(EOFError, ConnectionResetError, BrokenPipeError):
                    end = time.monotonic() + 60
                    while time.monotonic() < end:
                        client.send(0, 0, 4096)
                        error = client.error()
                        if error == 0:
                            self.assertEqual(client.take(4096), self.point.read_bytes()[:4096])
                        else:
                            self.assertEqual(error, ESHUTDOWN)
                        time.sleep(0.1)
                    self.fail("it was not ended")
            self.assertNotEqual(self.staging.cli("health").status, 0)
            self.assertNotEqual(run(["nbdinfo", self.uri("web1/vda.img@latest")]).status, 0)
        finally:
            self.assertEqual(self.mount("home").status, 0)
        wait_for("it to serve again", lambda: self.staging.cli("health").status == 0)
        for name in ("web1/vda.img@latest", "clone/check/vda.img"):
            self.assertEqual(self.read(self.uri(name)), self.point.read_bytes())


class Removed(NbdCase):
    def test_a_machine_that_is_removed_while_a_point_of_it_is_read(self):
        other = self.agent("web2", disks={"vda.img": MIB})
        other.sync()
        with contextlib.closing(Raw(self.socket)) as client, contextlib.closing(Raw(self.socket)) as bystander:
            client.go("web1/vda.img@latest")
            bystander.go("web2/vda.img@latest")
            content, others = self.point.read_bytes(), other.disks[0].read_bytes()
            self.staging.ask("machine", "remove", "web1", "--confirm", "web1")

            def refused():
                client.send(0, 0, MIB)
                error = client.error()
                if error == 0:
                    self.assertEqual(client.take(MIB), content[:MIB], "what is read is right to the end")
                return error
            self.assertEqual(wait_for("reads to be refused", refused), EIO)
            bystander.send(0, 0, MIB)
            self.assertEqual(bystander.error(), 0)
            self.assertEqual(bystander.take(MIB), others)
        self.assertNotEqual(run(["nbdinfo", self.uri("web1/vda.img@latest")]).status, 0)
        wait_for("all to have left", lambda: self.staging.metric("tidemark_nbd_connections") == 0)


class Hanging(NbdCase):
    def test_clients_that_hang_are_ended_and_slow_ones_are_not(self):
        self.clone()
        greeted, half_option, half_request, half_write, deaf = hanging = [Raw(self.socket) for _ in range(5)]
        greeted.take(18)
        half_option.take(18)
        half_option.sock.sendall(b"\0\0\0\3IHAVE")
        for client in (half_request, half_write, deaf):
            client.go("clone/check/vda.img")
        half_request.sock.sendall(Raw.request(0, 0, 4096)[:9])
        half_write.send(1, 0, MIB, data=bytes(1000))
        deaf.sock.sendall(b"".join(Raw.request(0, 0, MIB) for _ in range(100)))
        content = self.point.read_bytes()
        with contextlib.closing(Raw(self.socket)) as slow:
            slow.go("web1/vda.img@latest")
            slow.send(0, 0, SIZE)
            self.assertEqual(slow.error(), 0)
            got, begin = b"", time.monotonic()
            while self.staging.metric("tidemark_nbd_connections") > 1 or len(got) < SIZE:
                if len(got) < SIZE:
                    got += slow.take(min(SIZE - len(got), 64 * KIB))  # 38 s in all, never 30 without a byte
                self.assertLess(time.monotonic() - begin, 120, "those that hang are still there")
                time.sleep(0.3)
            self.assertEqual(got, content)
        for client in hanging:
            client.close()
        self.assert_logged(self.staging, "the handshake took too long")
        self.assert_logged(self.staging, "a request was begun and not finished")
        self.assert_logged(self.staging, "does not take its answers")
        with contextlib.closing(Raw(self.socket)) as client:
            client.go("clone/check/vda.img")
            client.send(0, 0, MIB)
            self.assertEqual(client.error(), 0)
            self.assertEqual(client.take(MIB), content[:MIB], "half a write was no write")


@unittest.skipIf(MISSING, f"not installed: {MISSING}")
class Together(NbdCase):
    def test_two_clients_of_one_clone_see_what_the_other_wrote(self):
        uri = self.clone()
        self.assertIn('"can_multi_conn": true', self.well("nbdinfo", "--json", uri))
        half = SIZE // 2
        job = lambda offset, *more: ["fio", "--name=v", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k", f"--offset={offset}",
                                     f"--size={half}", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randrepeat=1",
                                     f"--randseed={offset + 1}", "--fsync=64", *more]
        both = [subprocess.Popen(job(offset), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for offset in (0, half)]
        for one in both:
            said, _ = one.communicate(timeout=90)
            self.assertEqual(one.returncode, 0, said)
        for offset in (half, 0):  # by another client, of the other's half
            self.well(*job(offset, "--verify_only"))
        # Many connections of one client, each with a part of the disk.
        new = self.directory / "new.img"
        new.write_bytes(os.urandom(SIZE))
        self.well("nbdcopy", "--connections=8", "--flush", new, uri)
        out = self.directory / "out.img"
        self.well("nbdcopy", "--connections=8", uri, out)
        self.assertEqual(sha256(out), sha256(new))

    def test_one_connection_sees_what_another_has_been_answered(self):
        self.clone()
        with contextlib.closing(Raw(self.socket)) as first, contextlib.closing(Raw(self.socket)) as second:
            for client in (first, second):
                client.go("clone/check/vda.img")
            for i in range(200):
                writer, reader = (first, second) if i % 2 else (second, first)
                data = bytes([i + 1]) * 700  # within and across granules
                writer.send(1, i * 500, len(data), data=data)
                self.assertEqual(writer.error(), 0)
                reader.send(0, i * 500, len(data))
                self.assertEqual(reader.error(), 0)
                self.assertEqual(reader.take(len(data)), data, i)

    def test_qemu_img_map_tells_of_the_holes_there_are(self):
        content = self.point.read_bytes()
        extents = json.loads(self.well("qemu-img", "map", "--output=json", "-f", "raw", self.uri("web1/vda.img@latest")))
        at = zero = 0
        for extent in extents:
            self.assertEqual(extent["start"], at)
            at += extent["length"]
            if extent["zero"]:
                zero += extent["length"]
                self.assertFalse(any(content[extent["start"]:at]), extent)
        self.assertEqual(at, SIZE)
        blocks = sum(not any(content[i:i + 64 * KIB]) for i in range(0, SIZE, 64 * KIB))
        self.assertGreater(blocks, 0)
        self.assertGreaterEqual(zero, blocks * 64 * KIB, "what an agent sends as zeroes is known as such")


@unittest.skipIf(MISSING, f"not installed: {MISSING}")
class FileSystems(NbdCase):
    """Made, mounted, filled and checked on a clone, through what others make a file of it."""

    def setUp(self):
        super().setUp()
        if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
            self.skipTest("needs root and FUSE")
        disk = self.web1.root / "large.img"
        with open(disk, "wb") as file:
            file.truncate(400 * MIB)
        self.web1.disks.append(disk)
        self.web1.protect().sync()
        self.staging.ask("clone", "create", "web1", "--at", "latest", "--name", "check")
        self.file = self.directory / "fuse" / "disk"
        self.file.parent.mkdir()

    @contextlib.contextmanager
    def nbdfuse(self):
        served = subprocess.Popen(["nbdfuse", self.file, self.uri("clone/check/large.img")])
        try:
            wait_for("nbdfuse to serve", lambda: self.file.exists() or served.poll() is not None)
            yield self.file
        finally:
            run(["umount", self.file.parent])
            served.wait(60)

    @contextlib.contextmanager
    def qemu_storage_daemon(self):
        self.file.touch()
        daemon = subprocess.Popen(
            ["qemu-storage-daemon", "--blockdev", f"driver=nbd,node-name=clone,server.type=unix,server.path={self.socket},"
             "export=clone/check/large.img", "--export", f"type=fuse,id=file,node-name=clone,mountpoint={self.file},writable=on"])
        try:
            wait_for("it to serve", lambda: self.file.stat().st_size == 400 * MIB or daemon.poll() is not None)
            yield self.file
        finally:
            daemon.terminate()
            daemon.wait(60)

    def fill(self, kind, file):
        loop = self.loop_device(file)
        where = self.directory / "mounted"
        where.mkdir(exist_ok=True)
        try:
            self.well(f"mkfs.{kind}", "-q", "-F" if kind == "ext4" else "-f", loop)
            self.well("mount", "-o", "discard", loop, where)
            try:
                for i in range(120):
                    (where / f"{i}").mkdir()
                    (where / f"{i}/data").write_bytes(os.urandom(37 * KIB + i))
                for i in range(0, 120, 3):
                    shutil.rmtree(where / f"{i}")
                self.well("fstrim", where)
                (where / "large").write_bytes(os.urandom(9 * MIB))
                digests = {path.relative_to(where): sha256(path) for path in where.rglob("*") if path.is_file()}
            finally:
                self.well("umount", where)
            return digests
        finally:
            run(["losetup", "--detach", loop])

    def check(self, kind, file, digests):
        self.well(*(["e2fsck", "-fn"] if kind == "ext4" else ["xfs_repair", "-n", "-f"]), file)
        loop = self.loop_device(file)
        where = self.directory / "mounted"
        try:
            self.well("mount", "-o", "ro", loop, where)
            try:
                self.assertEqual({path.relative_to(where): sha256(path) for path in where.rglob("*") if path.is_file()}, digests)
            finally:
                self.well("umount", where)
        finally:
            run(["losetup", "--detach", loop])

    def made_filled_and_checked(self, kind, serve):
        for program in (f"mkfs.{kind}", "losetup", "e2fsck" if kind == "ext4" else "xfs_repair"):
            if shutil.which(program) is None:
                self.skipTest(f"{program} is not installed")
        with serve() as file:
            digests = self.fill(kind, file)
        self.staging.restart()
        with serve() as file:
            self.check(kind, file, digests)
        wait_for("it to have left", lambda: self.staging.metric("tidemark_nbd_connections") == 0)
        image = self.directory / "image"
        self.well("nbdcopy", self.uri("clone/check/large.img"), image)
        self.check(kind, image, digests)

    def test_ext4_through_nbdfuse(self):
        self.made_filled_and_checked("ext4", self.nbdfuse)

    def test_xfs_through_nbdfuse(self):
        self.made_filled_and_checked("xfs", self.nbdfuse)

    def test_xfs_through_qemu_storage_daemon(self):
        if shutil.which("qemu-storage-daemon") is None:
            self.skipTest("qemu-storage-daemon is not installed")
        self.made_filled_and_checked("xfs", self.qemu_storage_daemon)


if __name__ == "__main__":
    main()
