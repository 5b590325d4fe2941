#!/usr/bin/env python3
"""Free space of mounted file systems, and swap, are not read: what was deleted before does not reach the server, the
points are whole all the same, and what was left out is noted.

Free space is told from what is read by a pattern that fills files which are deleted before the first sync.
"""
import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import random
import tempfile
import threading
import time

from harness import KIB, MIB, Case, main, needs_root, run, wait_for

CHUNK = 64 * KIB
# Seconds. A point's time is the agent's, put in the server's clock as well as the server knows the difference: to some ten
# milliseconds. What matters here are blocks that are missing for good.
MARGIN = 0.1
PATTERN = b"this was deleted before anybody asked; "
UNDISCARDED = ["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"]  # free space keeps what it held
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f", "--unsupported", "-m", "rmapbt=0"],
    "xfs-rmap": ["mkfs.xfs", "-q", "-f", "--unsupported", "-m", "rmapbt=1"],
}


def bytes_of(number, size):
    return random.Random(number).randbytes(size)


def chunks_of_pattern(content):
    """How many chunks hold nothing else. At the ends of free space, where a chunk is not free as a whole, it is read."""
    full = CHUNK // len(PATTERN) - 1
    return sum(content.count(PATTERN, at, at + CHUNK) >= full for at in range(0, len(content), CHUNK))


def differences(found, expected):
    """In words; none when there is none."""
    if len(found) != len(expected):
        return f"{len(found)} bytes, not {len(expected)}"
    blocks = [at // 4096 for at in range(0, len(found), 4096) if found[at:at + 4096] != expected[at:at + 4096]]
    zero = sum(not found[block * 4096:block * 4096 + 4096].strip(b"\0") for block in blocks)
    return f"{len(blocks)} of {(len(found) + 4095) // 4096} blocks, from {blocks[0]} on; {zero} of them are zero" if blocks else ""


def tree_of(place):
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(place.rglob("*")) if path.is_file()}


class FreeSpaceCase(Case):
    def make_image(self, name, size):
        image = self.directory / f"{name}.image"
        with open(image, "wb") as file:
            file.truncate(size)
        return image

    def mounted(self, device, name, kind):
        place = self.directory / f"{name}.mounted"
        place.mkdir()
        self.must_run(*(MAKE.get(kind) or UNDISCARDED), device)
        self.must_run("mount", device, place)
        self.mounts.append(place)
        return place

    def must_run(self, *command):
        done = run(command)
        self.assertEqual(done.status, 0, f"{command}: {done}")
        return done.out.strip()

    def fill_and_delete(self, place, kept=12, deleted=12, size=2 * MIB):
        """Files that stay, each beside one that is full of the pattern and goes."""
        for number in range(max(kept, deleted)):
            if number < kept:
                (place / f"kept-{number}").write_bytes(bytes_of(number, size))
            if number < deleted:
                (place / f"deleted-{number}").write_bytes((PATTERN * (size // len(PATTERN) + 1))[:size])
        os.sync()
        for number in range(deleted):
            (place / f"deleted-{number}").unlink()

    @contextlib.contextmanager
    def exported(self, server, machine, at="latest"):
        """The files of a point, by disk."""
        out = pathlib.Path(tempfile.mkdtemp(dir=self.directory, prefix="export-"))
        manifest = server.ask("export", machine, "--at", at, "--output", f"{out}/")
        yield {disk["name"]: pathlib.Path(disk["file"]) for disk in manifest["disks"]}
        run(["rm", "-r", out])

    @contextlib.contextmanager
    def recovered(self, image, kind, options=""):
        """What a crashed machine would find on the image; sound once that is done."""
        xfs = kind.startswith("xfs")
        place = pathlib.Path(tempfile.mkdtemp(dir=self.directory, prefix="recovered-"))
        self.must_run("mount", "-o", "loop" + (",nouuid" if xfs else "") + options, image, place)
        try:
            yield place
        finally:
            self.must_run("umount", place)
        self.must_run(*(["xfs_repair", "-n", image] if xfs else ["e2fsck", "-fn", image]))

    def unread(self, agent):
        """{identity: [(first chunk, count)]} of the list that the agent keeps."""
        body = (agent.state / "unread").read_text().rsplit("\nsha256 ", 1)[0]
        return {bytes.fromhex(disk["identity_hex"]).decode(): list(zip(disk["ranges"][::2], disk["ranges"][1::2]))
                for disk in json.loads(body)["disks"]}

    def protect(self, name, device, *options):
        agent = self.agent(name)
        agent.disks.append(device)
        agent.protect()
        for option in options:
            agent.set_option(option)
        return agent


@needs_root
class FreeSpace(FreeSpaceCase):
    def test_what_was_deleted_does_not_travel(self):
        server = self.server()
        for kind in MAKE:
            for tracking in ("digests", "ebpf"):
                with self.subTest(kind=kind, tracking=tracking):
                    name = f"{kind}-{tracking}"
                    image = self.make_image(name, 192 * MIB)
                    device = self.loop_device(image)
                    place = self.mounted(device, name, kind)
                    self.fill_and_delete(place)
                    agent = self.protect(name, device, f'tracking = "{tracking}"')
                    done = agent.sync()
                    initial = done["epochs"][0]
                    self.assertTrue(done["point"], done)
                    self.assertGreater(initial["skipped_bytes"], 96 * MIB)
                    self.assertLess(initial["skipped_bytes"], 192 * MIB - 24 * MIB)
                    if len(done["epochs"]) == 1:
                        self.assertLess(initial["sent_bytes"], 24 * MIB + 8 * MIB)
                    with self.exported(server, name) as disks:
                        content = disks[device.name].read_bytes()
                        self.assertEqual(chunks_of_pattern(content), 0)
                        # What differs is noted.
                        noted = self.unread(agent)[f"loop:{image}"]
                        source = device.read_bytes()
                        left = [at // CHUNK for at in range(0, len(source), CHUNK) if chunks_of_pattern(source[at:at + CHUNK])]
                        self.assertGreater(len(left), 12 * 2 * MIB // CHUNK // 2)
                        for chunk in left:
                            self.assertTrue(any(first <= chunk < first + count for first, count in noted), f"chunk {chunk}")
                        with self.recovered(disks[device.name], kind) as found:
                            self.assertEqual(tree_of(found), tree_of(place))
                    # Everything, when that is wanted.
                    agent.set_option("skip_free_space = false")
                    run([*agent.command("untrack")])
                    whole = agent.sync()
                    self.assertEqual(whole["skipped_bytes"], 0)
                    with self.exported(server, name) as disks:
                        self.assertGreater(chunks_of_pattern(disks[device.name].read_bytes()), 12 * 2 * MIB // CHUNK // 2)
                    self.assertEqual(self.unread(agent)[f"loop:{image}"], [])
                    self.must_run("umount", place)
                    self.mounts.remove(place)

    def test_a_disk_with_partitions_and_swap(self):
        server = self.server()
        image = self.make_image("disk", 192 * MIB)
        with open(image, "r+b") as file:
            for _ in range(192):
                file.write((PATTERN * (MIB // len(PATTERN) + 1))[:MIB])
        device = self.loop_device(image)
        # Begins and lengths in sectors; none at a multiple of a chunk.
        begin = {"ext4": 2056, "swap": 2056 + 163840, "rest": 2056 + 163840 + 65536}
        for number, (name, sectors) in enumerate((("ext4", 163840), ("swap", 65536), ("rest", 131072)), 1):
            self.must_run("addpart", device, number, begin[name], sectors)
        # They would outlive the device. What is mounted is unmounted last, so by hand here.
        self.addCleanup(lambda: [run(["umount", self.directory / "disk.mounted"]), *(run(["delpart", device, n]) for n in (1, 2, 3))])
        partition = {name: f"{device}p{number}" for number, name in enumerate(begin, 1)}
        wait_for("the partitions", lambda: all(os.path.exists(path) for path in partition.values()))
        self.must_run("mkswap", partition["swap"])
        if run(["swapon", partition["swap"]]).status != 0:
            self.skipTest("no swapping here")
        self.addCleanup(run, ["swapoff", partition["swap"]])
        place = self.mounted(partition["ext4"], "disk", "ext4-undiscarded")
        self.fill_and_delete(place, size=MIB)
        agent = self.protect("web1", device)
        done = agent.sync()
        self.assertTrue(done["point"], done)
        self.assertGreater(done["skipped_bytes"], 32 * MIB + 40 * MIB)
        with self.exported(server, "web1") as disks:
            content = disks[device.name].read_bytes()
            at = {name: sector * 512 for name, sector in begin.items()}
            # Some is set aside for files to come: it is not free.
            self.assertLess(chunks_of_pattern(content[at["ext4"]:at["swap"]]), 4 * MIB // CHUNK)
            self.assertGreater(chunks_of_pattern(device.read_bytes()[at["ext4"]:at["swap"]]), 40 * MIB // CHUNK)
            swap = content[at["swap"]:at["rest"]]
            self.assertEqual(swap[:CHUNK], pathlib.Path(partition["swap"]).read_bytes()[:CHUNK])
            self.assertIn(b"SWAPSPACE2", swap[:CHUNK])
            self.assertEqual(swap[2 * CHUNK:31 * MIB].strip(b"\0"), b"")
            self.assertGreater(chunks_of_pattern(content[at["rest"]:]), 64 * 16 - 2, "a partition that is not in use is read whole")
            part = self.directory / "part"
            part.write_bytes(content[at["ext4"]:at["swap"]])
            with self.recovered(part, "ext4") as found:
                self.assertEqual(tree_of(found), tree_of(place))
        # A partition of its own is a disk like any other.
        agent = self.protect("web2", pathlib.Path(partition["swap"]))
        self.assertGreater(agent.sync()["skipped_bytes"], 31 * MIB)
        run(["swapoff", partition["swap"]])
        self.assertEqual(agent.sync()["skipped_bytes"], 0)


class Writer(threading.Thread):
    """Makes, renames, overwrites and deletes files, and notes what is durable, and from when to when."""

    def __init__(self, place, seed):
        super().__init__()
        self.place, self.random, self.ending = place, random.Random(seed), threading.Event()
        place.mkdir()
        self.held = {}    # name: (number, size), now
        self.spans = []   # [name, number, size, durable since, until what time]; the last is None while it lasts

    def run(self):
        number = 0
        while not self.ending.is_set():
            number += 1
            kind = self.random.random()
            if len(self.held) < 4 or (len(self.held) < 24 and kind < 0.5):
                self.make(f"f{number}", number)
            elif kind < 0.6:
                self.make(self.random.choice(list(self.held)), number)
            elif kind < 0.7:
                self.rename(self.random.choice(list(self.held)), f"r{number}")
            else:
                self.end(name := self.random.choice(list(self.held)))
                del self.held[name]
                (self.place / name).unlink()
            time.sleep(self.random.random() / 25)

    def make(self, name, number):
        """A new file, or a new one in the place of an old one; sometimes it is made durable."""
        size = self.random.choice((3000, 70_000, 200_000, 400_000))
        new = self.place / ".new"
        with open(new, "wb") as file:
            file.write(bytes_of(number, size))
            file.flush()
            durable = self.random.random() < 0.5
            if durable:
                os.fsync(file.fileno())
        self.end(name)
        new.rename(self.place / name)
        self.held[name] = (number, size)
        if durable:
            self.sync_folder()
            self.spans.append([name, number, size, time.time(), None])

    def rename(self, old, new):
        self.end(old)
        (self.place / old).rename(self.place / new)
        self.held[new] = self.held.pop(old)

    def sync_folder(self):
        folder = os.open(self.place, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def end(self, name):
        for span in self.spans:
            if span[0] == name and span[4] is None:
                span[4] = time.time()

    def stop(self):
        self.ending.set()
        self.join()


@needs_root
class FirstPointUnderLoad(FreeSpaceCase):
    """With tracking, while files come and go: the first point is what a crash would have left at that moment."""

    def test_it_holds_what_was_durable(self):
        for kind in os.environ.get("TIDEMARK_KINDS", " ".join(MAKE)).split():
            for seed in range(int(os.environ.get("TIDEMARK_ROUNDS", 1))):  # more on demand
                with self.subTest(kind=kind, seed=seed):
                    self.round(kind, seed)

    def round(self, kind, seed):
        self.allow("no recovery point for", "epoch not aborted")  # where much else goes on
        name = f"{kind}-{seed}"
        server = self.server(f"data-{name}")
        device = self.loop_device(self.make_image(name, 256 * MIB))
        place = self.mounted(device, name, kind)
        self.fill_and_delete(place, kept=8, deleted=40)
        writers = [Writer(place / f"w{number}", seed * 10 + number) for number in range(2)]
        for writer in writers:
            writer.start()
        agent = self.agent(name, server)
        agent.disks.append(device)
        agent.protect()
        for option in ('tracking = "ebpf"', "freeze = false", "interval_s = 0.3", "rate_limit_mib_s = 24"):
            agent.set_option(option)
        try:
            time.sleep(1)
            agent.start()
            wait_for("some points", lambda: len(server.points(name)) >= 3)
            agent.stop()
        finally:
            for writer in writers:
                writer.stop()
        first = server.points(name)[-1]
        self.assertRegex(agent.log(), r"kind=INITIAL .*skipped_bytes=[1-9]\d{7}")
        for point in (first, server.points(name)[0]):
            cut = datetime.datetime.fromisoformat(point["time"].replace("Z", "+00:00")).timestamp()
            with self.exported(server, name, f"epoch:{point['epoch']}") as disks, self.recovered(disks[device.name], kind) as found:
                for number in range(8):
                    self.assertEqual((found / f"kept-{number}").read_bytes(), bytes_of(number, 2 * MIB))
                checked = 0
                for writer in writers:
                    for file, number, size, since, until in writer.spans:
                        if since < cut - MARGIN and (until is None or until > cut + MARGIN):
                            path = found / writer.place.name / file
                            self.assertTrue(path.exists(), f"{path}, durable {cut - since} s before the cut")
                            self.assertEqual(differences(path.read_bytes(), bytes_of(number, size)), "",
                                             f"{path}, durable {cut - since} s before the cut, epoch {point['epoch']}")
                            checked += 1
                self.assertGreater(checked, 0)
        agent.run("untrack")
        self.must_run("umount", place)
        self.mounts.remove(place)


if __name__ == "__main__":
    main()
