#!/usr/bin/env python3
"""The agent's audit: in quiet time it compares the disks with the replica, says since when all is proven, and finds and repairs
what was written past the block layer, where no tracking sees it."""
import os
import re

from harness import MIB, Case, main, needs_root, wait_for

ALARM = r"ALARM: audit: .*differed from the replica although no write was seen"


class Audit(Case):
    @needs_root
    def test_what_was_written_unseen_is_found_told_and_repaired(self):
        staging = self.server()
        web1 = self.agent("web1", disks={"vda.img": -8 * MIB})
        backing = web1.disks[0]
        device = self.loop_device(backing)
        web1.must("unprotect", backing)
        web1.must("protect", device)
        web1.set_option('tracking = "ebpf"')
        web1.set_option("audit_days = 0.00005")  # a pass in 4 s
        web1.set_option("interval_s = 0.3")
        web1.start()
        first = wait_for("a point", lambda: web1.status().get("newest_point_time"))
        proven = wait_for("a pass", lambda: (at := web1.status()["proven_as_of"]) and at > first and at)
        self.assertEqual(len(staging.points("web1")), 1, "comparing makes no points")
        self.assertEqual(web1.status()["differences"], 0)

        self.allow(ALARM)
        with open(backing, "r+b") as file:  # past the device
            file.seek(3 * MIB + 5 * 4096)
            file.write(b"unseen" * 700)
            file.flush()
            os.fsync(file.fileno())
        self.assert_logged(web1, ALARM)
        wait_for("the repaired point", lambda: len(staging.points("web1")) == 2)
        name = os.path.basename(device)
        self.assertEqual(self.export(staging, "web1")[name], web1.digests()[backing.name])
        status = web1.status()
        self.assertEqual(status["differences"], 1)
        self.assertRegex(status["difference"], f"{device}: 65536 bytes at {3 * MIB}.*recovery points from .* may be wrong there")
        seen = wait_for("the server to be told", lambda: (m := staging.machine("web1"))["differences"] == 1 and m)
        self.assertTrue(seen["alarm"])
        self.assertRegex(seen["cause"], "1 blocks differed from the source")
        # Repaired: the passes after it find nothing more, also those of the next agent.
        wait_for("a whole pass since", lambda: web1.status()["proven_as_of"] > status["difference_time"])
        web1.stop()
        web1.start()
        wait_for("the next agent's pass", lambda: web1.status()["proven_as_of"] > status["difference_time"] and web1.status()["connected"])
        self.assertEqual(web1.status()["differences"], 1)
        self.assertEqual(len(re.findall(ALARM, web1.log())), 1)
        self.assertGreater(staging.machine("web1")["proven_as_of"], proven)


if __name__ == "__main__":
    main()
