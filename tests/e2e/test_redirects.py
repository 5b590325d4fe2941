#!/usr/bin/env python3
"""A server that sends a machine elsewhere, in its Welcome: the agent goes there, but not in circles and not to strangers."""
import re

import rawwire
from harness import MIB, Case, change, main, wait_for


class Redirects(Case):
    def setUp(self):
        super().setUp()
        self.staging = self.server()
        self.web1 = self.agent("web1", disks={"vda.img": 1 * MIB})

    def redirector(self, target=""):
        made = rawwire.Redirector(self.staging.data / "authority", target)
        self.addCleanup(made.close)
        return made

    def begin_at(self, address):
        self.web1.set_option(f'server = "{address}"')

    def test_a_machine_goes_where_it_is_sent(self):
        far = self.redirector(self.staging.address)
        near = self.redirector(far.address)
        self.begin_at(near.address)
        self.web1.set_option("interval_s = 0.2")
        self.web1.start()
        wait_for("a point where it was sent", lambda: self.staging.points("web1"))
        wait_for("the status to name it", lambda: self.web1.status()["server"] == self.staging.address)
        self.assert_logged(self.web1, f"redirected from={near.address} to={far.address}\n(.*\n)*.*redirected from={far.address} to={self.staging.address}")
        self.assertEqual((near.hellos, far.hellos), (1, 1))
        # Every connection begins anew at the first one.
        self.allow(rf'warning not connected server=\S+ error="{self.staging.address}: ')
        self.staging.restart()
        change(self.web1.disks[0], 1)
        wait_for("a second point", lambda: len(self.staging.points("web1")) >= 2)
        self.assertEqual(self.export(self.staging, "web1"), self.web1.digests())
        self.assertGreaterEqual(near.hellos, 2)

    def test_servers_that_send_it_in_circles_are_told_apart(self):
        one, other = self.redirector(), self.redirector()
        one.target, other.target = other.address, one.address
        self.begin_at(one.address)
        done = self.web1.run("sync", "--once", "--retry-for", "0")
        self.assertEqual(done.status, 1, done)
        self.assert_error(done.error, f"{one.address}: the servers send this machine from one to the next without end: "
                                      f"{one.address}, {other.address}, {one.address}, .*operator must settle", "unavailable")
        self.assertLessEqual(one.hellos + other.hellos, 6, "it does not go on in circles")
        # One that runs says so, waits longer and longer, and gets there when it is mended.
        self.allow("not connected server=.*from one to the next without end")
        self.web1.start()
        status = wait_for("the status to say so", lambda: (s := self.web1.status())["state"] == "disconnected" and s)
        self.assertRegex(status["cause"], "from one to the next without end")
        self.assertRegex(status["remedy"], "tried again by itself")
        self.assert_logged(self.web1, "not connected server=.*without end.*retry_ms=")
        other.target = self.staging.address
        wait_for("a point", lambda: self.staging.points("web1"))
        self.assertEqual(self.export(self.staging, "web1"), self.web1.digests())

    def test_a_stranger_is_not_believed_and_nobody_at_home_is_said(self):
        stranger = self.server("other")
        near = self.redirector(stranger.address)
        self.begin_at(near.address)
        with self.tells(stranger, 'refused_total{reason="handshake_failed"}'.replace("{", r"\{").replace("}", r"\}"), "handshake failed", by=None):
            done = self.web1.run("sync", "--once", "--retry-for", "1")
        self.assertEqual(done.status, 1, done)
        self.assert_error(done.error, "authority")
        stranger.stop()
        done = self.web1.run("sync", "--once", "--retry-for", "0")
        self.assertEqual(done.status, 1, done)
        self.assert_error(done.error, re.escape(stranger.address), "unavailable")
        near.target = self.staging.address
        self.assertTrue(self.web1.sync()["point"], "the way home is free")


if __name__ == "__main__":
    main()
