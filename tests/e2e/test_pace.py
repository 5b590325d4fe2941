#!/usr/bin/env python3
"""What holds an agent up is said: the cap, the processor, a server that takes no more. And compression makes use of a slow way."""
import random
import re
import signal

from harness import KIB, MIB, Case, main, wait_for


class Pace(Case):
    def setUp(self):
        super().setUp()
        self.staging = self.server()

    def machine(self, name, options=()):
        """Its disk is of text, so that compression has something to do."""
        agent = self.agent(name)
        disk = agent.root / "vda.img"
        words = [bytes(random.Random(i).choices(b"abcdefghij ", k=5)) for i in range(300)]
        rng = random.Random(name)
        disk.write_bytes(b"".join(rng.choices(words, k=32 * MIB // 5))[:32 * MIB - 100])
        agent.disks.append(disk)
        agent.protect()
        for option in options:
            agent.set_option(option)
        return agent.start()

    def is_held_up_by(self, agent, what):
        wait_for(f"it to be held up by {what}", lambda: re.fullmatch(what, agent.status()["limited_by"]))

    def test_a_cap_is_told_and_compression_goes_up(self):
        agent = self.machine("capped", ["rate_limit_mib_s = 2"])
        self.is_held_up_by(agent, "rate-limit")
        wait_for("a point", lambda: self.staging.points("capped"))
        self.assert_logged(agent, r"epoch=1 .* zstd_level=[2-9]\b")
        self.assertEqual(self.export(self.staging, "capped"), agent.digests())

    def test_a_busy_processor_is_told(self):
        agent = self.machine("slow", ["zstd_level = 19"])
        self.is_held_up_by(agent, "cpu")
        agent.kill()

    def test_a_server_that_takes_no_more_is_told(self):
        agent = self.machine("waits", ["zstd_level = 0"])
        wait_for("some of it", lambda: self.staging.metric("received_block_bytes_total") > 64 * KIB)
        self.staging.process.send_signal(signal.SIGSTOP)
        try:
            self.is_held_up_by(agent, "network|server")
        finally:
            self.staging.process.send_signal(signal.SIGCONT)
        wait_for("a point", lambda: self.staging.points("waits"))


if __name__ == "__main__":
    main()
