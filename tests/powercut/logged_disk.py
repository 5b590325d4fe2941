"""A disk whose every write, discard and flush is logged, in order (write_log.py reads it).

qemu-storage-daemon exports a `blklogwrites` node as a file by FUSE; a loop device on it makes a disk of it. Behind the part
that the loop device shows there is room for marks.
"""
import mmap
import os
import struct
import subprocess
import threading
import time

from parts import run, unmount  # of tests/crash

MARKS_SIZE = 1 << 20
LOG_SIZE = 64 << 30  # sparse


class LoggedDisk:
    """A disk of `size` bytes, the marks' place included, with a file system, mounted at `mount`; `base`, the image before
    the first logged write; `loop`, the device."""

    def __init__(self, root, size, mkfs):
        self.image, self.log, self.file = root / "disk.img", root / "writes.log", root / "disk"
        self.base, self.mount, self.size = root / "base.img", root / "mnt", size
        for path, length in ((self.image, size - MARKS_SIZE), (self.log, LOG_SIZE), (self.file, 0)):
            with open(path, "wb") as file:
                file.truncate(length)
        run(*mkfs, self.image)
        with open(self.image, "r+b") as file:
            file.truncate(size)
        run("cp", "--sparse=always", self.image, self.base)
        self.mount.mkdir()
        self.daemon = self.loop = None
        self.output = root / "qemu.log"
        self.lock, self.marks = threading.Lock(), []

    def start(self, *mount_options):
        with open(self.output, "ab") as output:
            self.daemon = subprocess.Popen(
                ["qemu-storage-daemon",
                 "--blockdev", f"driver=file,node-name=disk,filename={self.image},discard=unmap",
                 "--blockdev", f"driver=file,node-name=log,filename={self.log}",
                 "--blockdev", "driver=blklogwrites,node-name=logged,file=disk,log=log,discard=unmap",
                 "--export", f"fuse,id=disk,node-name=logged,mountpoint={self.file},writable=on"],
                stdout=output, stderr=output)
        end = time.monotonic() + 30
        while os.stat(self.file).st_size != self.size:
            if self.daemon.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"qemu-storage-daemon exports nothing; see {self.output}")
            time.sleep(0.01)
        # Not with direct I/O: the FUSE export of qemu 7.2 mixes up the data of writes that it is given at the same time.
        # Without, they come one after the other, and still at once: the kernel keeps nothing back of such a file.
        self.loop = run("losetup", "--find", "--show", "--direct-io=off", "--sizelimit", self.size - MARKS_SIZE, self.file)
        run("mount", *mount_options, self.loop, self.mount)
        self.marker = os.open(self.file, os.O_RDWR | os.O_DIRECT)
        self.sector = mmap.mmap(-1, 4096)

    def mark(self, *what):
        """In the log, behind everything that was reported as durable before this call."""
        with self.lock:
            self.sector[:8] = struct.pack("<Q", len(self.marks))
            os.pwrite(self.marker, self.sector, self.size - MARKS_SIZE)
            self.marks.append(what)

    def stop(self):
        if self.loop:
            if os.path.ismount(self.mount):
                unmount(self.mount)
            run("losetup", "--detach", self.loop)
            os.close(self.marker)
            self.loop = None
        if self.daemon:
            self.daemon.terminate()
            self.daemon.wait(60)
            self.daemon = None
