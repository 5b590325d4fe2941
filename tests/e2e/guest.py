"""A small real Linux disk, and the machine that boots it: Debian's cloud kernel, busybox, a boot loader in the disk's own first
sector. Made once and kept in build/guest; needs root, and the packages of `dev`'s guest list.

    image = guest.base_image()               # partition table, extlinux, ext4 root
    with guest.mounted(path) as root: ...    # what is on it
    with guest.Guest("-drive", ...) as machine:
        machine.wait_for("USERLAND READY")
        machine.command("uname -r")
"""
import contextlib
import fcntl
import functools
import hashlib
import os
import pathlib
import re
import selectors
import shutil
import subprocess
import tempfile
import time
import unittest

from harness import BIN, DEADLINE, HERE, MIB

CACHE = HERE.parent.parent / "build/guest"
PROGRAMS = ("qemu-system-x86_64", "extlinux", "busybox", "sfdisk", "cpio", "dpkg-deb", "apt-get", "mke2fs", "losetup")
SIZE, START = 96 * MIB, MIB
MODULES = ("virtio_pci", "virtio_blk", "virtio_net")  # and what they depend on
READY = "USERLAND READY"

INITRD = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in %s; do /bin/busybox insmod /modules/$module.ko; done
/bin/busybox mount -t ext4 %s /root
exec /bin/busybox switch_root /root /sbin/init
"""

INIT = f"""#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
ip link set lo up
ip link set eth0 up 2>/dev/null && ip addr add 10.0.2.15/24 dev eth0
# The console stays open from here on: one that is closed by the last who has it hangs up.
exec setsid sh -c 'exec < /dev/ttyS0 > /dev/ttyS0 2>&1; stty -echo; echo "{READY}"; while :; do read -r line && eval "$line"; done'
"""


def missing():
    """Why no guest can be made here; empty: it can."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    absent = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if os.geteuid() != 0:
        return "needs root, for loop devices"
    return f"not installed: {', '.join(absent)}" if absent else ""


def must(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise AssertionError(f"{command}: {done.stderr}")
    return done.stdout.strip()


def fetch(*command, **options):
    """What needs Debian's package servers: without them there is no guest to try."""
    try:
        must(*command, **options)
    except AssertionError as why:
        raise unittest.SkipTest(f"a guest's packages could not be fetched: {why}") from None


@contextlib.contextmanager
def mounted(image):
    """The root file system of an image, mounted."""
    loop = must("losetup", "--find", "--show", "--offset", START, "--sizelimit", SIZE - START, image)
    try:
        with tempfile.TemporaryDirectory(prefix="tidemark-guest-") as root:
            must("mount", loop, root)
            try:
                yield pathlib.Path(root)
            finally:
                must("umount", root)
    finally:
        must("losetup", "--detach", loop)


def made_by_one(make):
    """Tests run side by side: who comes second waits, and finds what the first has made."""
    @functools.wraps(make)
    def with_lock():
        CACHE.mkdir(parents=True, exist_ok=True)
        with open(CACHE / f"{make.__name__}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return make()
    return with_lock


@made_by_one
def kernel():
    """The kernel package, unpacked: (vmlinuz, directory of modules)."""
    tree = CACHE / "kernel"
    if not tree.exists():
        depends = must("apt-cache", "depends", "linux-image-cloud-amd64")
        package = re.search(r"Depends: (linux-image-\S+)", depends).group(1)
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            fetch("apt-get", "-o", "APT::Sandbox::User=root", "download", package, cwd=work)
            [deb] = pathlib.Path(work).glob("*.deb")
            must("dpkg-deb", "-x", deb, pathlib.Path(work) / "tree")
            os.rename(pathlib.Path(work) / "tree", tree)
    [vmlinuz] = (tree / "boot").glob("vmlinuz-*")
    return vmlinuz, tree / "lib/modules" / vmlinuz.name.removeprefix("vmlinuz-")


def with_dependencies(modules, names):
    """Files of kernel modules, each behind those it needs."""
    order = []
    for name in names:
        [found] = [path for path in modules.rglob("*.ko") if path.stem.replace("-", "_") == name]
        depends = re.search(rb"\0depends=([^\0]*)\0", found.read_bytes()).group(1).decode()
        for path in [*with_dependencies(modules, [one for one in depends.split(",") if one]), found]:
            if path not in order:
                order.append(path)
    return order


def make_initrd(work, modules, root="/dev/vda1"):
    tree = work / "initrd"
    for name in ("bin", "dev", "root", "modules"):
        (tree / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    files = with_dependencies(modules, MODULES)
    for path in files:
        shutil.copy(path, tree / "modules")
    (tree / "init").write_text(INITRD % (" ".join(path.stem for path in files), root))
    (tree / "init").chmod(0o755)
    must("sh", "-c", f"find . | cpio -o -H newc --quiet > {work}/initrd.img", cwd=tree)
    return work / "initrd.img"


def fill_root(root, vmlinuz, initrd):
    for name in ("bin", "sbin", "boot", "proc", "sys", "dev", "run", "tmp", "var", "etc", "root"):
        (root / name).mkdir()
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in must("busybox", "--list").split():
        if not (root / "bin" / applet).exists():
            (root / "bin" / applet).symlink_to("busybox")
    (root / "sbin/init").write_text(INIT)
    (root / "sbin/init").chmod(0o755)
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    shutil.copy(vmlinuz, root / "boot/vmlinuz")
    shutil.copy(initrd, root / "boot/initrd.img")
    (root / "boot/extlinux.conf").write_text(
        "DEFAULT linux\nPROMPT 0\nTIMEOUT 1\nLABEL linux\n  KERNEL /boot/vmlinuz\n"
        "  APPEND initrd=/boot/initrd.img root=/dev/vda1 console=ttyS0 quiet panic=-1\n")
    must("extlinux", "--install", root / "boot")


@made_by_one
def base_image():
    """A disk that boots. Not to be written to: copy it."""
    image = CACHE / "base.img"
    if image.exists() and image.stat().st_mtime > pathlib.Path(__file__).stat().st_mtime:
        return image
    vmlinuz, modules = kernel()
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        work = pathlib.Path(name)
        disk = work / "disk"
        with open(disk, "wb") as file:
            file.truncate(SIZE)
        must("sfdisk", "-q", disk, input=f"start={START // 512}, type=83, bootable\n")
        with open(disk, "r+b") as file:
            file.write(pathlib.Path("/usr/lib/EXTLINUX/mbr.bin").read_bytes()[:440])
        # What extlinux can read.
        must("mke2fs", "-q", "-t", "ext4", "-O", "^64bit,^metadata_csum,^metadata_csum_seed,^orphan_file", "-E", f"offset={START}", disk,
             f"{(SIZE - START) // 1024}k")
        with mounted(disk) as root:
            fill_root(root, vmlinuz, make_initrd(work, modules))
        os.rename(disk, image)
    return image


# A machine with systemd, which boots from a kernel that it is given.
SYSTEMD_SIZE = 768 * MIB
SYSTEMD_PACKAGES = ("systemd-sysv", "udev", "util-linux", "e2fsprogs", "iproute2", "kmod", "libspdlog1.10", "libfmt9", "libprotobuf32",
                    "libbpf1", "libzstd1", "libssl3", "libxxhash0", "libtomlplusplus3", "sg3-utils", "dmsetup")
# What an emulated machine is quicker without.
SYSTEMD_WITHOUT = ("serial-getty@ttyS0.service", "getty@tty1.service", "getty-static.service", "timers.target", "e2scrub_reap.service",
                   "systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket")
CONSOLE = f"""#!/bin/sh
ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0
exec < /dev/ttyS0 > /dev/ttyS0 2>&1
stty -echo
echo "{READY}"
while :; do read -r line && eval "$line"; done
"""
CONSOLE_UNIT = """[Service]
ExecStart=/usr/local/sbin/console
[Install]
WantedBy=multi-user.target
"""


@made_by_one
def systemd_machine():
    """(root disk, kernel, initrd). The disk is not to be written to: put a snapshot on it. Takes a minute or more the first time."""
    image, initrd = CACHE / "systemd.img", CACHE / "systemd-initrd.img"
    vmlinuz, modules = kernel()
    if image.exists() and image.stat().st_mtime > pathlib.Path(__file__).stat().st_mtime:
        return image, vmlinuz, initrd
    packages = ",".join(SYSTEMD_PACKAGES)
    tree = CACHE / f"systemd-{hashlib.sha256(packages.encode()).hexdigest()[:12]}.tar"
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        work = pathlib.Path(name)
        if not tree.exists():
            fetch("mmdebstrap", "--variant=minbase", f"--include={packages}", "--dpkgopt=path-exclude=/usr/share/doc/*",
                 "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*", "bookworm", work / "root.tar")
            os.rename(work / "root.tar", tree)
        with open(work / "disk", "wb") as file:
            file.truncate(SYSTEMD_SIZE)
        must("mke2fs", "-q", "-t", "ext4", work / "disk")
        root = work / "root"
        root.mkdir()
        must("mount", "-o", "loop", work / "disk", root)
        try:
            must("tar", "-xf", tree, "-C", root)
            (root / "usr/lib/modules").mkdir()
            must("cp", "-a", modules, root / "usr/lib/modules")
            must("depmod", "-b", root, modules.name)
            (root / "usr/local/sbin/console").write_text(CONSOLE)
            (root / "usr/local/sbin/console").chmod(0o755)
            (root / "etc/systemd/system/console.service").write_text(CONSOLE_UNIT)
            (root / "etc/machine-id").write_text("fedcba9876543210fedcba9876543210\n")
            must("systemctl", "--root", root, "enable", "console.service")
            must("systemctl", "--root", root, "mask", *SYSTEMD_WITHOUT)
        finally:
            must("umount", root)
        make_initrd(work, modules, "/dev/vda")
        os.rename(work / "initrd.img", initrd)
        os.rename(work / "disk", image)
    return image, vmlinuz, initrd


def install_agent(root):
    """The agent and the libraries it needs, for a guest that protects itself."""
    (root / "usr/bin").mkdir(parents=True, exist_ok=True)
    shutil.copy(BIN / "tidemark-agent", root / "usr/bin")
    must("strip", root / "usr/bin/tidemark-agent")
    for line in must("ldd", BIN / "tidemark-agent").splitlines():
        found = re.search(r"(/\S+) \(0x", line)
        if found:
            to = root / found.group(1).lstrip("/")
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(os.path.realpath(found.group(1)), to)


class Guest:
    """A qemu without KVM, with a serial console that a shell answers."""

    def __init__(self, *options, memory=256):
        self.command_line = ["qemu-system-x86_64", "-machine", "pc,accel=tcg", "-cpu", "max", "-m", str(memory), "-display", "none",
                             "-monitor", "none", "-no-reboot", "-serial", "stdio", "-nodefaults", *map(str, options)]
        self.console = ""

    def __enter__(self):
        self.started = time.monotonic()
        self.process = subprocess.Popen(self.command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.selector.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()

    def wait_for(self, pattern, since=0, deadline=4 * DEADLINE):
        """The console's text from `since` on matches; gives the match. Seconds since the start are in `at`."""
        end = time.monotonic() + deadline
        while True:
            found = re.search(pattern, self.console[since:])
            if found:
                self.at = time.monotonic() - self.started
                return found
            if time.monotonic() > end or self.process.poll() is not None:
                self.console += (self.process.stdout.read() or b"").decode(errors="replace")
                raise AssertionError(f"no {pattern!r} on the console, which said:\n{self.console[-3000:]}")
            if self.selector.select(1):
                self.console += (self.process.stdout.read() or b"").decode(errors="replace")

    def command(self, line):
        """What a command in the guest says; it must go well."""
        since = len(self.console)
        with contextlib.suppress(BrokenPipeError):  # one that is gone is told of below, with its last words
            self.process.stdin.write(f"{line}; echo \"status $?\" end\n".encode())
            self.process.stdin.flush()
        found = self.wait_for(r"(?s)(.*?)status (\d+) end", since)
        if found.group(2) != "0":
            raise AssertionError(f"{line}: {found.group(1)}")
        return found.group(1).replace("\r", "").strip()
