#!/usr/bin/env python3
"""Encryption at rest: nothing of a machine's data stands in the data directory, points come back byte for byte, and no start goes on without its master key."""
import os
import pathlib
import random
import re
import shutil
import time

from harness import BIN, MIB, Case, change, main, run, wait_for

MARKER = b"TIDEMARK-PLAINTEXT-MARKER-3141592653589793"
CONFIG = """
[storage]
segment_size = "8MiB"
settle_after = "0s"
encryption = {}
master_key_file = "{}"
[retention]
removal_holdoff = "0s"
"""


def mark(path, seed):
    """Writes the marker all over an image: into stretches that compress and into others that do not."""
    rng = random.Random(seed)
    size = os.path.getsize(path)
    with open(path, "r+b") as disk:
        for position in range(0, size - 65536, 131072):
            disk.seek(position)
            filler = rng.randbytes(512) if rng.random() < 0.5 else b"x" * 512
            disk.write(b"".join(filler + MARKER for _ in range(20)))


class Encryption(Case):
    def encrypted(self, on=True, start=True):
        self.key = self.directory / "elsewhere" / "master.key"
        self.key.parent.mkdir()
        server = self.server(config=CONFIG.format(str(on).lower(), self.key), start=False)
        if on:
            done = self.key_command(server, "init")
            self.assertEqual(done.status, 0, done)
        return server.start() if start else server

    def key_command(self, server, what):
        return run([BIN / "tidemarkd", "key", what, "--data", server.data, "--config", server.config])

    def files_with(self, server, what):
        found = []
        for path in pathlib.Path(server.data).rglob("*"):
            try:
                if path.is_file() and what in path.read_bytes():
                    found.append(str(path.relative_to(server.data)))
            except FileNotFoundError:
                pass  # a running server renames and removes
        return found

    def key_ids(self):
        return [line.split()[1] for line in self.key.read_text().splitlines() if line.startswith("key ")]

    def refused(self, server, pattern):
        ended = server.try_start()
        self.assertIsNotNone(ended, "it serves")
        self.assertNotEqual(ended.status, 0)
        self.assertRegex(ended.err, pattern)
        return ended

    def snapshot(self, server):
        return {str(path): path.stat().st_mtime_ns for path in pathlib.Path(server.data).rglob("*") if path.is_file() and path.name != "lock"}

    def points_of(self, server, web1, count, first=0):
        moments = []
        for seed in range(first, first + count):
            mark(web1.disks[0], seed)
            change(web1.disks[0], seed, pieces=40)
            done = web1.sync()
            moments.append((done["epoch"], web1.digests()))
        return moments

    def expect(self, server, moments):
        for epoch, digests in moments:
            self.assertEqual(self.export(server, "web1", f"epoch:{epoch}"), digests, f"epoch {epoch}")

    def test_nothing_stands_in_the_clear_and_everything_comes_back(self):
        server = self.encrypted()
        web1 = self.agent("web1", disks={"vda.img": 12 * MIB})
        # What no point shows any more when it settles: segments that are nearly all live stay in the log.
        first = web1.sync()["epoch"]
        web1.disks[0].write_bytes(random.Random(99).randbytes(12 * MIB))
        moments = self.points_of(server, web1, 4)
        server.ask("point", "remove", "web1", "--at", f"epoch:{first}")
        self.expect(server, moments)
        wait_for("cold segments", lambda: list(pathlib.Path(server.data).glob("partition-*/cold/*.segment")))
        self.assertEqual(self.files_with(server, MARKER), [])
        self.expect(server, moments)
        server.restart()  # by SIGKILL
        self.expect(server, moments)
        moments += self.points_of(server, web1, 1, first=10)
        self.assertEqual(server.stop(), 0)
        self.assertEqual(self.files_with(server, MARKER), [])
        shutil.rmtree(next(path.parent for path in pathlib.Path(server.data).glob("partition-*/index/CURRENT")))
        self.allow("event=index_rebuil")
        server.start()
        self.expect(server, moments)

    def test_the_same_data_is_found_without_encryption_and_after_it_was_switched_on_no_more_is_added(self):
        server = self.encrypted(on=False)
        web1 = self.agent("web1", disks={"vda.img": 4 * MIB})
        moments = self.points_of(server, web1, 1)
        self.assertNotEqual(self.files_with(server, MARKER), [], "or the test above proves nothing")
        self.assertEqual(server.stop(), 0)
        pathlib.Path(server.config).write_text(CONFIG.format("true", self.key))
        self.refused(server, r"master\.key.*missing.*tidemarkd key init")
        self.assertEqual(self.key_command(server, "init").status, 0)
        server.start()
        later = b"LATER-" + MARKER
        with open(web1.disks[0], "r+b") as disk:
            disk.seek(MIB)
            disk.write(later * 500)
        done = web1.sync()
        moments.append((done["epoch"], web1.digests()))
        self.expect(server, moments)
        self.assertEqual(self.files_with(server, later), [])
        self.assertEqual(server.stop(), 0)

    def test_without_its_master_key_nothing_starts_and_nothing_changes(self):
        server = self.encrypted()
        web1 = self.agent("web1", disks={"vda.img": 4 * MIB})
        moments = self.points_of(server, web1, 2)
        self.assertEqual(server.stop(), 0)
        right = self.key.read_text()
        key_id = self.key_ids()[0]
        before = self.snapshot(server)
        self.key.unlink()
        self.refused(server, rf"{re.escape(str(self.key))}: .*missing.*{key_id}.*nothing was changed")
        self.assertEqual(self.key_command(server, "init").status, 1, "a new key would be no help, and take its place")
        other = self.server("other", config=CONFIG.format("true", self.directory / "other.key"), start=False)
        self.assertEqual(self.key_command(other, "init").status, 0)
        shutil.copy(self.directory / "other.key", self.key)
        self.refused(server, rf"{re.escape(str(self.key))}: .*{key_id}.*this file has [0-9a-f]{{16}}")
        self.assertEqual(self.key_command(server, "check").status, 1)
        self.key.write_text(right.replace(right[-80:-70], "0123456789"))
        self.key.chmod(0o600)
        self.refused(server, r"master\.key:\d+: ")
        self.key.write_text(right)
        self.key.chmod(0o640)
        self.refused(server, r"mode 0640.*chmod 0600")
        self.assertEqual(self.snapshot(server), before)
        self.key.chmod(0o600)
        self.assertEqual(self.key_command(server, "check").status, 0)
        server.start()
        self.expect(server, moments)

    def test_a_master_key_is_rotated_and_the_old_one_retired(self):
        server = self.encrypted()
        web1 = self.agent("web1", disks={"vda.img": 4 * MIB})
        moments = self.points_of(server, web1, 2)
        old = self.key_ids()[0]
        done = self.key_command(server, "rotate")
        self.assertEqual(done.status, 0, done)
        self.assertRegex(done.out, "KEEP A COPY")
        self.assertEqual(self.key_ids()[1], old)
        done = self.key_command(server, "retire")
        self.assertEqual(done.status, 1, "it is in use until the next start")
        self.assertRegex(done.err, rf"{old}.*start tidemarkd")
        # Ended by SIGKILL wherever it is, a few times.
        for delay in (0, 0.01, 0.05, 0.2):
            server.restart()
            time.sleep(delay)
        server.restart()
        self.assert_logged(server, f"event=master_key_in_use .*key={self.key_ids()[0]}")
        wait_for("the old key to be of no use", lambda: self.key_command(server, "retire").status == 0)
        self.assertEqual(len(self.key_ids()), 1)
        self.assertNotEqual(self.key_ids()[0], old)
        self.expect(server, moments)
        moments += self.points_of(server, web1, 1, first=7)
        self.assertEqual(server.stop(), 0)
        server.start()
        self.expect(server, moments)


if __name__ == "__main__":
    main()
