#!/usr/bin/env python3
"""The agent as a service of a Debian 12 with its own kernel: systemd starts it hardened as it is delivered, it tracks a busy virtio
disk, notices what goes to a SCSI disk past the block layer, is killed, goes on, and is removed without a trace. It tracks what device
mapper makes of a disk, too."""
import json
import os
import shutil
import time
import unittest

import guest
from harness import BIN, HERE, MIB, Case, main, run, sha256, wait_for

RELAY_ADDRESS = "10.0.2.100:7443"  # where the guest finds the server; nothing else is to be reached
DEPLOY = HERE.parent.parent / "deploy"
MISSING = guest.missing() or ", ".join(
    f"{program} is not installed" for program in ("mmdebstrap", "systemctl", "depmod", "qemu-img") if shutil.which(program) is None)
# Everything of the agent's on the root disk, and what it pins.
TRACES = "find / -xdev -name '*tidemark*' ; ls -A /sys/fs/bpf"


@unittest.skipIf(MISSING, MISSING)
class GuestAgent(Case):
    def setUp(self):
        super().setUp()
        self.staging = self.server()
        self.disk = self.directory / "data.img"
        self.scsi = self.directory / "scsi.img"
        for path, size in ((self.disk, 64 * MIB), (self.scsi, 8 * MIB)):
            with open(path, "wb") as file:
                file.truncate(size)
        root, self.kernel, self.initrd = guest.systemd_machine()
        self.root = self.directory / "root.qcow2"
        self.assertEqual(run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", root, "-F", "raw", self.root]).status, 0)
        self.delivered = self.directory / "delivered.img"
        tree = self.directory / "delivered"
        tree.mkdir()
        for path in (BIN / "tidemark-agent", DEPLOY / "tidemark-agent.service"):
            shutil.copy(path, tree)
        self.assertEqual(run(["mke2fs", "-q", "-t", "ext4", "-d", tree, self.delivered, "192m"]).status, 0)

    def machine(self):
        disks = [(self.root, "qcow2"), (self.disk, "raw"), (self.delivered, "raw")]
        relay = f"guestfwd=tcp:{RELAY_ADDRESS}-cmd:/bin/busybox nc 127.0.0.1 {self.staging.port}"
        return guest.Guest(*(word for file, kind in disks for word in ("-drive", f"file={file},format={kind},if=virtio,cache=none")),
                           "-device", "virtio-scsi-pci", "-drive", f"file={self.scsi},format=raw,if=none,cache=none,id=scsi",
                           "-device", "scsi-hd,drive=scsi,serial=SCSI1", "-kernel", self.kernel, "-initrd", self.initrd, "-append", "root=/dev/vda rw console=ttyS0 quiet "
                           "loglevel=3 systemd.show_status=0 panic=-1", "-netdev", f"user,id=net,restrict=on,{relay}",
                           "-device", "virtio-net-pci,netdev=net,romfile=", memory=512)

    def status(self, machine):
        return json.loads(machine.command("tidemark-agent status --json 2>&1"))

    def points(self):
        return [point for point in self.staging.points("web1") if point["consistency"] == "crash"]

    def wait_for_points(self, machine, count):
        newest = max((point["epoch"] for point in self.points()), default=0)
        try:
            wait_for(f"{count} more points", lambda: sum(point["epoch"] > newest for point in self.points()) >= count)
        except AssertionError as error:
            raise AssertionError(f"{error}; the agent said:\n{machine.command('journalctl -u tidemark-agent -o cat | tail -30')}") from None

    def install(self, machine):
        """Installed and enrolled as the unit's head says."""
        machine.wait_for(guest.READY)
        self.assertTrue(machine.command("uname -r").startswith("6.1."), "Debian 12's own kernel")
        self.assertEqual(machine.command("cat /proc/1/comm"), "systemd")
        self.assertEqual(machine.command(TRACES), "")
        machine.command("mkdir -p /mnt /data && mount -o ro /dev/vdc /mnt")
        machine.command("install /mnt/tidemark-agent /usr/bin && install -m 644 /mnt/tidemark-agent.service /etc/systemd/system")
        machine.command("umount /mnt && systemctl daemon-reload")
        machine.command(f"tidemark-agent enroll {RELAY_ADDRESS} --token {self.staging.token()} --name web1 2>&1")

    def test_as_a_service(self):
        with self.machine() as machine:
            self.install(machine)
            machine.command("modprobe -a virtio_scsi sd_mod && until [ -b /dev/sda ]; do sleep 0.1; done")
            machine.command("tidemark-agent protect /dev/vdb /dev/sda 2>&1")
            machine.command("mkfs.ext4 -q /dev/vdb && mount /dev/vdb /data")
            machine.command("systemctl enable --now tidemark-agent 2>&1")
            # Something that writes, for the whole time; in place, so that no block is ever free that was not so at first.
            machine.command("(n=0; while [ ! -e /run/stop ]; do n=$((n+1)); echo $n | dd of=/data/n conv=notrunc,fsync status=none; "
                            "sleep 0.02; done &)")
            self.wait_for_points(machine, 3)
            status = self.status(machine)
            self.assertEqual((status["tracking"], status["tracking_reason"]), ("ebpf", ""))
            self.assertEqual(machine.command("systemctl is-active tidemark-agent"), "active")
            # The free space of the file system was left out: what the unit's filter lets through is enough for that.
            self.assertRegex(machine.command("journalctl -u tidemark-agent -o cat | grep kind=INITIAL"), r"skipped_bytes=[1-9]\d{7}")

            # With few of root's powers, and filtered.
            pid = machine.command("systemctl show -p MainPID --value tidemark-agent")
            said = dict(line.split(":", 1) for line in machine.command(f"cat /proc/{pid}/status").splitlines())
            self.assertEqual((said["Seccomp"].strip(), said["NoNewPrivs"].strip()), ("2", "1"))
            powers = sum(1 << number for number in (2, 19, 21, 28))  # DAC_READ_SEARCH, SYS_PTRACE, SYS_ADMIN, LEASE
            self.assertEqual(int(said["CapEff"], 16), powers)

            # Hooks run under it as well, and what one may not, it is told.
            machine.command("mkdir -p /etc/tidemark-agent/pre-cut.d /etc/tidemark-agent/post-cut.d")
            for stage in ("pre-cut", "post-cut"):
                machine.command(f"printf '#!/bin/sh\\necho {stage} as $(id -u)\\n' > /etc/tidemark-agent/{stage}.d/10-app")
            machine.command("chmod 755 /etc/tidemark-agent/*.d/10-app")
            asked = json.loads(machine.command("tidemark-agent point --application --json 2> /dev/null"))
            self.assertEqual((asked["consistency"], asked["hooks_failure"], asked["post_hooks_failure"]), ("application", "", ""))
            said = machine.command("journalctl -u tidemark-agent -o cat | grep said=")
            self.assertRegex(said, r'(?s)hook=pre-cut\.d/10-app said="pre-cut as 0".*hook=post-cut\.d/10-app said="post-cut as 0"')

            # Killed at any moment, it is started again, and goes on where it was.
            mark = machine.command("journalctl -u tidemark-agent -o cat | wc -l")
            machine.command("systemctl kill -s KILL tidemark-agent")
            machine.command("until [ $(systemctl show -p NRestarts --value tidemark-agent) = 1 ] && systemctl -q is-active tidemark-agent; "
                            "do sleep 0.1; done")
            self.wait_for_points(machine, 3)
            again = self.status(machine)
            self.assertEqual(again["tracking_since"], status["tracking_since"], "the kernel went on marking")
            self.assertNotIn("everything is read", machine.command(f"journalctl -u tidemark-agent -o cat | tail -n +{mark}"))

            # What goes to a disk past the block layer cannot be marked: everything is compared then, and tracked again.
            mark = machine.command("journalctl -u tidemark-agent -o cat | wc -l")
            machine.command("head -c 4096 /dev/urandom > /run/block")
            # WRITE(10) of 8 sectors at sector 5000.
            machine.command("sg_raw -s 4096 -i /run/block /dev/sda 2a 00 00 00 13 88 00 00 08 00 2>&1")
            self.wait_for_points(machine, 3)
            self.assertIn("past the block layer", machine.command(f"journalctl -u tidemark-agent -o cat | tail -n +{mark}"))
            self.assertEqual(self.status(machine)["tracking"], "ebpf")

            # What is recovered is what was there.
            machine.command("touch /run/stop; sleep 1; sync; umount /data")
            since = time.time()
            wait_for("a point of now, or that nothing changed", lambda: self.fresh(machine, since))
            point = self.points()[0]["epoch"]
            verdict = self.staging.ask("verify", "web1", "--at", f"epoch:{point}")
            self.assertEqual(list(verdict["sha256"].values()), [sha256(self.scsi), sha256(self.disk)])
            with open(self.scsi, "rb") as file:
                file.seek(5000 * 512)
                self.assertNotEqual(file.read(4096), bytes(4096))

            # After its final point it is not started again.
            final = json.loads(machine.command("tidemark-agent point --final --json 2> /dev/null"))
            self.assertTrue(final["final"])
            machine.command("sleep 7")  # longer than RestartSec
            self.assertEqual(machine.command("systemctl show -p ActiveState -p Result -p NRestarts --value tidemark-agent").split(),
                             ["success", "1", "inactive"])

            # Removed as docs/agent.md says.
            machine.command("systemctl disable --now tidemark-agent 2>&1")
            machine.command("tidemark-agent untrack")
            machine.command("rm -r /usr/bin/tidemark-agent /etc/systemd/system/tidemark-agent.service /var/lib/tidemark-agent /etc/tidemark-agent")
            machine.command("systemctl daemon-reload; systemctl reset-failed; rm -rf /var/log/journal /run/log/journal/*/*tidemark*")
            self.assertEqual(machine.command(TRACES), "")
            self.assertEqual(machine.command("systemctl list-units --all --plain --no-legend '*tidemark*'"), "")

    def test_device_mapper(self):
        """Eight stretches of a disk, each of which takes a while to write. A write across two of them is cut in parts; when the first
        is remembered no more while it is under way, the cuts made meanwhile lose it."""
        stretch, across = 4096, "bs=512K count=1 iflag=fullblock oflag=direct,seek_bytes conv=notrunc status=none"  # sectors

        def table(places):
            return "".join(f"{i * stretch} {stretch} delay /dev/vdb {place * stretch} 0 /dev/vdb {place * stretch} 1500\\n"
                           for i, place in enumerate(places))

        with self.machine() as machine:
            self.install(machine)
            machine.command("modprobe -a dm_mod dm_delay")
            machine.command(f"printf '{table((0, 9, 2, 11, 4, 13, 6, 15))}' | dmsetup --noudevrules --noudevsync create mapped")
            machine.command("tidemark-agent protect /dev/dm-0 2>&1")
            machine.command("sed -i '1i interval_s = 0.3' /var/lib/tidemark-agent/agent.toml")
            machine.command("systemctl enable --now tidemark-agent 2>&1")
            wait_for("a point", self.points)
            self.assertEqual((self.status(machine)["tracking"], self.status(machine)["tracking_reason"]), ("ebpf", ""))
            for boundary in range(1, 8):
                at = boundary * stretch * 512 - (256 << 10)
                machine.command(f"dd if=/dev/urandom of=/dev/dm-0 seek={at} {across}")
            self.assert_same(machine)

            # Other places below, and nothing is written.
            before = self.shown(machine)
            machine.command("for i in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom bs=1M count=1 status=none; done > /dev/vdb; sync")
            machine.command(f"printf '{table((1, 0, 3, 2, 5, 4, 7, 6))}' | dmsetup --noudevrules --noudevsync load mapped")
            machine.command("dmsetup --noudevrules --noudevsync resume mapped")
            self.assert_same(machine)
            self.assertNotEqual(self.shown(machine), before)
            self.assertIn("device mapper shows something else", machine.command("journalctl -u tidemark-agent -o cat"))

    def assert_same(self, machine):
        """What the server has is what the mapped device shows, now that nothing is written to it."""
        since = time.time()
        wait_for("a point of now, or that nothing changed", lambda: self.fresh(machine, since))
        verdict = self.staging.ask("verify", "web1", "--at", f"epoch:{self.points()[0]['epoch']}")
        self.assertEqual(list(verdict["sha256"].values()), [self.shown(machine)])

    @staticmethod
    def shown(machine):
        return machine.command("dd if=/dev/dm-0 bs=1M iflag=direct status=none | sha256sum").split()[0]

    def fresh(self, machine, since):
        """The newest point, or the last look that found it unchanged, is of after `since`, by the guest's clock as by ours."""
        status = self.status(machine)
        newest = max(filter(None, (status["newest_point_time"], status["unchanged_as_of"])), default="")
        return newest > time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since + 1))


if __name__ == "__main__":
    main()
