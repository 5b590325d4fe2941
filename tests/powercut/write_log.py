"""Reads what was written to a block device, in the format of the kernel's dm-log-writes (admin-guide/device-mapper/
log-writes), as qemu's blklogwrites writes it: a superblock in the first sector, then for each request a sector that
tells of it and its data.

A request was logged when it was submitted, in that order. So a flush here covers every write before it, where a real disk
need not have had those that were still under way: every image that is made of a log is possible, but not every
possible one is made.
"""
import dataclasses
import os
import random
import struct

SECTOR = 512
MAGIC, VERSION = 0x6A736677736872, 1
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
CHUNK = 4 << 20


@dataclasses.dataclass(frozen=True)
class Entry:
    offset: int  # in bytes, on the device
    size: int
    flags: int
    data: int    # where its data stands in the log; 0: it has none


class WriteLog:
    """The log of a device, once nothing is added to it any more. `mark_from`: writes from this offset on are no writes but
    marks; they hold one number each, and what it means is the writer's affair."""

    def __init__(self, path, mark_from):
        self.file = os.open(path, os.O_RDONLY)
        magic, version, count, self.sector = struct.unpack("<QQQI", os.pread(self.file, 28, 0))
        if magic != MAGIC or version != VERSION:
            raise RuntimeError(f"{path}: this is no log of writes (magic {magic:#x}, version {version})")
        self.entries, self.marks = [], {}  # marks: number -> how many entries there were before
        end, at = os.fstat(self.file).st_size, self.sector
        # The superblock is written at each flush; what follows the last one may be there as well.
        while at + self.sector <= end:
            sector, sectors, flags, length = struct.unpack("<QQQQ", os.pread(self.file, 32, at))
            if sectors == 0 and flags == 0 and len(self.entries) + len(self.marks) >= count:
                break
            at += self.sector
            entry = Entry(sector * self.sector, sectors * self.sector, flags, 0 if flags & DISCARD else at)
            if not flags & DISCARD:
                at += max(entry.size, length if flags & MARK else 0)
            if entry.offset >= mark_from and entry.size:
                self.marks[struct.unpack("<Q", os.pread(self.file, 8, entry.data))[0]] = len(self.entries)
            else:
                self.entries.append(entry)
        if len(self.entries) + len(self.marks) < count:
            raise RuntimeError(f"{path}: it ends after {len(self.entries)} of {count} entries")

    def close(self):
        os.close(self.file)

    def flushes(self):
        """Indexes of the requests that say that what was written before is to be durable."""
        return [i for i, entry in enumerate(self.entries) if entry.flags & FLUSH]

    def counts(self):
        writes = [entry for entry in self.entries if entry.size and not entry.flags & DISCARD]
        return {"writes": len(writes), "written_bytes": sum(entry.size for entry in writes),
                "flushes": len(self.flushes()), "fua": sum(bool(entry.flags & FUA) for entry in writes),
                "discards": sum(bool(entry.flags & DISCARD) for entry in self.entries)}

    def apply(self, entry, image):
        """All of it."""
        if entry.flags & DISCARD:
            self._zero(entry, image)  # a disk may give anything there; loop devices give zeroes
            return
        for at in range(0, entry.size, CHUNK):
            os.pwrite(image, os.pread(self.file, min(CHUNK, entry.size - at), entry.data + at), entry.offset + at)

    def apply_torn(self, entry, image, choose):
        """Some of its sectors: those up to one, those from one on, or any."""
        if entry.flags & DISCARD:
            return
        count = entry.size // SECTOR
        kind, at = choose.random(), choose.randrange(count + 1)
        kept = [i < at if kind < 0.4 else i >= at if kind < 0.6 else choose.random() < 0.5 for i in range(count)]
        data = os.pread(self.file, entry.size, entry.data)
        for i, keep in enumerate(kept):
            if keep:
                os.pwrite(image, data[i * SECTOR:(i + 1) * SECTOR], entry.offset + i * SECTOR)

    @staticmethod
    def _zero(entry, image):
        for at in range(0, entry.size, CHUNK):
            os.pwrite(image, bytes(min(CHUNK, entry.size - at)), entry.offset + at)


class Images:
    """The device's content after ever more of its log, in one image that goes forward in time."""

    def __init__(self, log, image):
        self.log, self.image, self.applied = log, image, 0
        self.durable = [0]  # for each number of entries: how many of them a flush has made durable
        last = 0
        for i, entry in enumerate(log.entries):
            if entry.flags & FLUSH:
                last = i  # what was before it; it may carry data itself, which it does not cover
            self.durable.append(last)

    def forward(self, cut):
        """The image holds exactly what is sure to be there when the power fails after `cut` entries. The rest of these
        is the tail: gives their indexes."""
        sure = self.durable[cut]
        while self.applied < sure:
            self.log.apply(self.log.entries[self.applied], self.image)
            self.applied += 1
        return range(sure, cut)

    def add_tail(self, image, tail, fate, seed):
        """What the disk's cache gave back of the tail: all, none, some, or some of it torn. Gives how many writes are
        lost or torn."""
        choose, harmed = random.Random(seed), 0
        for i in tail:
            entry = self.log.entries[i]
            if not entry.size:
                continue
            dice = choose.random()
            if fate == "all" or entry.flags & FUA or (fate == "some" and dice < 0.5) or (fate == "torn" and dice < 0.4):
                self.log.apply(entry, image)
                continue
            harmed += 1
            if fate == "torn" and dice < 0.75:
                self.log.apply_torn(entry, image, choose)
        return harmed
