#!/usr/bin/env python3
"""ext4 and XFS, each on a device of its own: what of the store touches files, and the server's data directory there."""
import os

from harness import BIN, MIB, Case, change, main, needs_root, run

STORAGE_TEST = BIN.parent / "tests/storage_test"
# Of the store's tests those that use files of the kernel, all within TMPDIR.
ON_FILES = ("UringQueueTest.*", "SystemFilesTest.*", "SegmentKeeper.*", "IndexTest.*", "PartitionOnTheKernel.*")
CONFIG = '[storage]\nsegment_size = "8MiB"\nreserve_segments = 1\nfree_space_min = "16MiB"\n'


@needs_root
class FileSystems(Case):
    def each(self):
        for kind in ("ext4", "xfs"):
            yield kind, self.small_file_system(kind, 512 * MIB, kind)

    def test_the_stores_own_tests_on_files(self):
        if not os.access(STORAGE_TEST, os.X_OK):
            self.skipTest(f"{STORAGE_TEST} is not built")
        for kind, mount in self.each():
            done = run([STORAGE_TEST, "--gtest_brief=1", "--gtest_filter=" + ":".join(ON_FILES)],
                       env={**os.environ, "TMPDIR": str(mount)})
            self.assertEqual(done.status, 0, f"on {kind}: {done.out[-3000:]}{done.err[-3000:]}")
            self.assertNotIn("SKIPPED", done.out, f"on {kind}")
            self.assertEqual(sorted(set(os.listdir(mount)) - {"lost+found"}), [], "they leave nothing behind")

    def test_a_machine_is_protected_and_recovered(self):
        for kind, mount in self.each():
            server = self.server(f"{kind}/{kind}", config=CONFIG)
            agent = self.agent(f"web-{kind}", server, disks={"vda.img": 8 * MIB})
            held = {}
            for seed in range(3):
                change(agent.disks[0], seed)
                held[agent.sync()["epoch"]] = agent.digests()
            server.restart()
            for epoch, digests in held.items():
                self.assertEqual(self.export(server, agent.name, f"epoch:{epoch}"), digests)


if __name__ == "__main__":
    main()
