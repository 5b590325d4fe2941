#!/usr/bin/env python3
"""/metrics: every name that docs/operating.md gives is there, and what a load does shows in the numbers."""
import re
import unittest

from harness import BIN, HERE, Case, main, run, wait_for

NAME = re.compile(r"tidemark_[a-z0-9_]+")
KINDS = ("_bucket", "_sum", "_count")  # of a histogram


class Metrics(Case):
    def bases(self, values):
        names = {name.split("{")[0] for name in values}
        return names | {name.removesuffix(kind) for name in names for kind in KINDS if name.endswith(kind)}

    def load(self, staging, *options):
        done = run([BIN / "tidemark-bench", "load", "--server", staging.address, "--socket", staging.data / "admin.sock", "--quiet",
                    "--ramp", 0.1, "--seconds", 1, *options])
        self.assertEqual(done.status, 0, done)

    def test_what_the_manual_names_is_there(self):
        staging = self.server()
        self.load(staging, "--profile", "random4k", "--machines", 2)
        there = self.bases(staging.metrics())
        named = set(NAME.findall((HERE.parent.parent / "docs/operating.md").read_text()))
        self.assertGreater(len(named), 40)
        self.assertEqual(named - there, set())

    def test_a_load_shows(self):
        staging = self.server()
        before = staging.metrics()
        self.load(staging, "--profile", "random4k", "--machines", 4, "--blocks-per-epoch", 16)
        # Durable before the load ended; the index follows.
        wait_for("the index", lambda: staging.metric("tidemark_index_lag_bytes") == 0)
        after = staging.metrics()
        value = lambda name, of=after: sum(v for n, v in of.items() if n == name or n.startswith(name + "{"))
        grown = lambda name: value(name) - value(name, before)
        epochs = grown("tidemark_epochs_durable_total")
        self.assertGreater(epochs, 4)  # each machine's first is empty
        self.assertGreater(grown("tidemark_received_block_bytes_total"), (epochs - 4) * 16 * 4096)
        self.assertGreater(grown("tidemark_log_payload_bytes_total"), grown("tidemark_received_block_bytes_total"))
        # Every commit has a size and a number of records; every epoch was acknowledged after some time.
        for histogram in ("tidemark_log_commit_bytes", "tidemark_log_commit_records"):
            self.assertEqual(value(f"{histogram}_count"), value("tidemark_log_commits_total"))
            whole = sum(v for n, v in after.items() if n.startswith(f"{histogram}_bucket{{") and 'le="+Inf"' in n)
            self.assertEqual(whole, value("tidemark_log_commits_total"))
        self.assertEqual(value("tidemark_log_commit_records_sum"), value("tidemark_log_records_total"))
        self.assertGreaterEqual(value("tidemark_log_commit_bytes_sum"), 4096 * value("tidemark_log_commits_total"))
        self.assertEqual(value("tidemark_ack_seconds_count"), value("tidemark_epochs_durable_total"))
        self.assertGreater(value("tidemark_ack_seconds_sum"), 0)
        # The shards are a part of the process.
        self.assertGreater(grown("tidemark_process_cpu_seconds_total"), 0)
        self.assertGreaterEqual(value("tidemark_process_cpu_seconds_total") + 0.1, value("tidemark_shard_cpu_seconds_total"))
        self.assertGreater(value("tidemark_process_resident_bytes"), 1 << 20)
        purposes = {re.search('purpose="([^"]*)"', name)[1] for name in after if name.startswith("tidemark_memory_bytes{")}
        self.assertEqual(purposes, {"index", "commit_buffers", "commit_buffers_limit", "frame_buffers", "nbd_requests", "nbd_cache"})
        self.assertGreater(value("tidemark_ring_operations_max"), 0)

    def test_sessions_have_credit(self):
        staging = self.server()
        web1 = self.agent("web1", disks={"vda.img": 1 << 20})
        web1.sync()
        self.assertEqual(staging.metric("tidemark_credit_bytes"), 0)
        web1.start()
        wait_for("the session", lambda: staging.metric("tidemark_sessions{") == 1)
        self.assertGreater(staging.metric('tidemark_credit_bytes.*what="granted"'), 1 << 20)


if __name__ == "__main__":
    main()
