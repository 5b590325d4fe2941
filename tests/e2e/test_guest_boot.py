#!/usr/bin/env python3
"""A real Linux machine is protected, spoiled, and boots again from a clone of its last good point, over NBD."""
import shutil
import unittest

import guest
from harness import MIB, Case, main, sha256, wait_for

RELAY_ADDRESS = "10.0.2.100:7443"  # where the guest finds the server; nothing else is to be reached


@unittest.skipIf(guest.missing(), guest.missing())
class GuestBoot(Case):
    def setUp(self):
        super().setUp()
        self.staging = self.server()
        self.disk = self.directory / "web1.img"
        shutil.copy(guest.base_image(), self.disk)
        self.web1 = self.agent("web1")
        with guest.mounted(self.disk) as root:
            guest.install_agent(root)
            # The machine carries its agent's key, as a real one does. In the guest's network the server has another address.
            state = root / "var/lib/tidemark-agent"
            shutil.copytree(self.web1.state, state)
            for path in state.rglob("*"):
                if path.is_file() and self.staging.address.encode() in path.read_bytes():
                    path.write_bytes(path.read_bytes().replace(self.staging.address.encode(), RELAY_ADDRESS.encode()))
            (root / "var/data").write_text("what the machine is for\n")
        self.web1.disks.append(self.disk)
        self.web1.protect().sync()
        self.good = self.staging.points("web1")[0]["epoch"]
        self.digest = sha256(self.disk)

    def spoil(self):
        with open(self.disk, "r+b") as file:  # boot sector, partition table, the beginning of the file system
            file.write(b"\xff" * 3 * MIB)
        self.web1.sync()

    def guest_network(self):
        relay = f"guestfwd=tcp:{RELAY_ADDRESS}-cmd:/bin/busybox nc 127.0.0.1 {self.staging.port}"
        return ["-netdev", f"user,id=net,restrict=on,{relay}", "-device", "virtio-net-pci,netdev=net,romfile="]

    def test_a_clone_of_the_last_good_point_boots_and_is_kept_apart(self):
        self.spoil()
        self.staging.ask("clone", "create", "web1", "--at", f"epoch:{self.good}", "--name", "drill")
        uri = f"nbd+unix:///clone/drill/disk0?socket={self.staging.data}/nbd.sock"
        # What the guest writes goes to its clone.
        with guest.Guest("-drive", f"file={uri},format=raw,if=virtio", *self.guest_network()) as machine:
            machine.wait_for(guest.READY)
            self.assertIn("what the machine is for", machine.command("cat /var/data"))
            machine.command("echo written in the drill > /var/data; sync")
            self.assertIn("written in the drill", machine.command("cat /var/data"))

            # An agent that starts in the booted clone has the original's key, and not its fingerprint.
            before = self.staging.machine("web1")
            machine.command("tidemark-agent protect /dev/vda --state-dir /var/lib/tidemark-agent")
            machine.command("(tidemark-agent run --state-dir /var/lib/tidemark-agent > /run/agent.log 2>&1 &)")
            self.allow("quarantine", "fingerprint")
            try:
                wait_for("the clone to be quarantined", lambda: self.staging.machine("web1")["quarantine"])
            except AssertionError as error:
                said = machine.command("cat /run/agent.log; ip addr")
                raise AssertionError(f"{error}; its agent said:\n{said[-2000:]}") from None
            after = self.staging.machine("web1")
            self.assertEqual(after["durable_epoch"], before["durable_epoch"], "nothing was added to the original's history")
            self.assertEqual(machine.command("until grep -iq quarantin /run/agent.log; do sleep 1; done; echo told"), "told")
        # The original goes on, and the point is what it was.
        with open(self.disk, "r+b") as file:
            file.write(b"more")
        self.web1.sync()
        self.assertGreater(self.staging.points("web1")[0]["epoch"], self.good)
        verdict = self.staging.ask("verify", "web1", "--at", f"epoch:{self.good}")
        self.assertEqual(verdict["sha256"]["web1.img"], self.digest)
        # The clone has what its guest wrote and synced, whatever becomes of guest and server.
        self.staging.restart()
        with guest.Guest("-drive", f"file={uri},format=raw,if=virtio") as machine:
            machine.wait_for(guest.READY)
            self.assertIn("written in the drill", machine.command("cat /var/data"))
            machine.command("sync; mount -o remount,ro /")
        drilled = self.directory / "drilled.img"
        self.staging.ask("export", "clone:drill", "--at", "latest", "--output", drilled)
        self.assertNotEqual(sha256(drilled), self.digest)
        with guest.mounted(drilled) as root:
            self.assertIn("written in the drill", (root / "var/data").read_text())
        self.assertEqual(self.staging.ask("verify", "web1", "--at", f"epoch:{self.good}")["sha256"]["web1.img"], self.digest)
        wait_for("the guest to have left", lambda: self.staging.metric("tidemark_nbd_connections") == 0)
        self.staging.ask("clone", "drop", "drill")


if __name__ == "__main__":
    main()
