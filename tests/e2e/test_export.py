#!/usr/bin/env python3
"""Export of points through the real binaries: resumed, to block devices, brought up to date; and what changed between two."""
import contextlib
import json
import os
import shutil
import signal
import subprocess

from harness import BIN, KIB, MIB, AdminSocket, Case, change, main, needs_root, run, sha256, wait_for

GRANULE = 4 * KIB


def changed_granules(before, after):
    """Which granules of two images differ, one read here."""
    size = max(len(before), len(after))
    return {at for at in range(0, size, GRANULE) if before[at:at + GRANULE] != after[at:at + GRANULE]}


class Export(Case):
    def setUp(self):
        super().setUp()
        self.staging = self.server(config='[retention]\nremoval_holdoff = "0s"\n')
        self.web1 = self.agent("web1", disks={"vda.img": -24 * MIB, "vdb.img": 3 * MIB + 1536})
        self.disk = self.web1.disks[0]
        self.web1.sync()
        self.out = self.directory / "out"
        self.out.mkdir()

    def newest(self):
        return self.staging.points("web1")[0]["epoch"]

    def export_options(self, *options, at="latest", disk="vda.img", output=None):
        return ["export", "web1", "--at", at, "--disk", disk, "--output", str(output or self.out / "a.img"), *options]

    def failed(self, *arguments):
        done = self.staging.cli(*arguments)
        self.assertEqual(done.status, 1, f"{arguments}: {done}")
        return done.error

    def begin(self, *arguments):
        process = subprocess.Popen([str(BIN / "tidemark"), "--data", str(self.staging.data), "--json", *arguments],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        return process

    def fetched(self):
        """Bytes that an export fetches are those that the server's threads write."""
        with open(f"/proc/{self.staging.process.pid}/io") as io:
            return int(next(line for line in io if line.startswith("wchar")).split()[1])

    def interrupted_export(self, end):
        """An export that `end` ends when some pieces are there."""
        state = self.out / ".a.img.tidemark-partial.state"
        process = self.begin(*self.export_options("--threads", "1"))
        wait_for("two pieces", lambda: state.exists() and state.read_text().count("\n") >= 3 or process.poll() is not None)
        if process.poll() is None:
            end(process)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said, state

    def test_a_killed_export_goes_on(self):
        status, _, state = self.interrupted_export(lambda process: process.kill())
        if status == 0:
            self.skipTest("the export was through before it could be killed")
        self.assertEqual([path.name for path in self.out.iterdir() if not path.name.startswith(".")], [])
        partial = self.out / ".a.img.tidemark-partial"
        pieces = [int(line.split()[0]) for line in state.read_text().splitlines()[1:] if len(line.split()) == 2]
        # What is damaged meanwhile is noticed and fetched again.
        with open(partial, "r+b") as file:
            file.seek(pieces[0] * 4 * MIB + 12345)
            file.write(b"x")
        with open(state, "a") as file:
            file.write("99999 123")  # a line that was cut off
        self.staging.ask(*self.export_options())
        self.assertEqual(sha256(self.out / "a.img"), sha256(self.disk))
        self.assertEqual(sorted(path.name for path in self.out.iterdir()), ["a.img", "a.img.manifest.json"])

    def test_one_that_was_asked_to_stop_says_how_to_go_on(self):
        status, said, _ = self.interrupted_export(lambda process: process.send_signal(signal.SIGINT))
        if status == 0:
            self.skipTest("the export was through before it could be stopped")
        error = json.loads(said)["error"]
        self.assertEqual(error["code"], "cancelled")
        self.assertIn("goes on where", error["remedy"])
        # Another point is not mixed with what is there.
        change(self.disk, 5)
        self.web1.sync()
        self.staging.ask(*self.export_options())
        self.assertEqual(sha256(self.out / "a.img"), sha256(self.disk))

    def test_the_manifest_tells_of_it(self):
        made = self.staging.ask(*self.export_options())
        manifest = json.loads((self.out / "a.img.manifest.json").read_text())
        self.assertEqual(manifest["disks"][0]["sha256"], sha256(self.disk))
        self.assertEqual((manifest["disks"][0]["file"], manifest["epoch"], manifest["machine_id"]), ("a.img", self.newest(), self.web1.id))
        self.assertEqual(made["manifest"], str(self.out / "a.img.manifest.json"))
        self.assertEqual(self.failed(*self.export_options())["code"], "already-exists")

    def test_diff_is_what_differs(self):
        before, first = self.disk.read_bytes(), self.newest()
        change(self.disk, 7)
        with open(self.disk, "r+b") as file:
            file.seek(MIB)
            file.write(bytes(64 * KIB))
        self.web1.sync()
        after, last = self.disk.read_bytes(), self.newest()
        for options in ((), ("--written",)):
            told = self.staging.ask("diff", "web1", f"epoch:{first}", "latest", *options)
            granules = {at for one in told["ranges"] if one["disk"] == 0
                        for at in range(one["offset"], one["offset"] + one["length"], GRANULE)}
            if options:  # the agent may send more than what changed: what stands around it
                self.assertLessEqual(changed_granules(before, after), granules)
            else:
                self.assertTrue(granules == changed_granules(before, after), "ranges that differ, and no others")
            self.assertEqual(told["changed_bytes"], len(granules) * GRANULE)
            self.assertEqual([one["disk"] for one in told["ranges"] if one["disk"] != 0], [], "the other disk did not change")
        turned = self.staging.ask("diff", "web1", f"epoch:{last}", f"epoch:{first}", "--disk", "vda.img")
        self.assertEqual((turned["from"], turned["to"]), (first, last))
        human = run([BIN / "tidemark", "--data", self.staging.data, "diff", "web1", f"epoch:{first}", "latest"])
        self.assertRegex(human.out, r"(?m)^vda.img: .* changed between epoch \d+ and epoch \d+$")
        self.assertEqual(self.staging.ask("diff", "web1", "latest", "latest")["ranges"], [])
        # What was written and is what it was before: written, not changed.
        written = self.staging.ask("diff", "web1", f"epoch:{first}", "latest", "--written")["changed_bytes"]
        with open(self.disk, "r+b") as file:
            file.write(before)
        self.web1.sync()
        self.assertEqual(self.staging.ask("diff", "web1", f"epoch:{first}", "latest")["changed_bytes"], 0)
        self.assertEqual(self.staging.ask("diff", "web1", f"epoch:{first}", "latest", "--written")["changed_bytes"], written)
        self.assertEqual(self.failed("diff", "web1", "epoch:1", "latest", "--disk", "vdz")["code"], "not-found")
        self.assertEqual(self.failed("diff", "web9", "epoch:1", "latest")["code"], "not-found")

    def test_an_export_is_brought_up_to_date(self):
        first = self.newest()
        self.staging.ask("export", "web1", "--at", "latest", "--output", f"{self.out}/web1/")
        for seed in range(3):
            change(self.disk, 20 + seed)
            change(self.web1.disks[1], 30 + seed)
            self.web1.sync()
        update = ["export", "web1", "--at", "latest", "--output", f"{self.out}/web1/", "--changed-since", f"epoch:{first}"]
        before = self.fetched()
        made = self.staging.ask(*update)
        self.assertLess(self.fetched() - before, 8 * MIB, "more than what changed was sent")
        self.assertEqual({disk["name"]: sha256(disk["file"]) for disk in made["disks"]}, self.web1.digests())
        manifest = json.loads((self.out / "web1/manifest.json").read_text())
        self.assertEqual((manifest["epoch"], "updating" in manifest), (self.newest(), False))
        self.assertEqual(sorted(path.name for path in (self.out / "web1").iterdir()), ["manifest.json", "vda.img", "vdb.img"])
        # It is of that point now, and not of the first one any more.
        self.assertRegex(self.failed(*update)["what"], f"export of epoch {self.newest()}, not of epoch {first}")

    def test_what_is_not_the_export_that_it_says_is_not_touched(self):
        first = self.newest()
        self.staging.ask(*self.export_options())
        change(self.disk, 40)
        self.web1.sync()
        image, manifest = self.out / "a.img", self.out / "a.img.manifest.json"
        with open(image, "r+b") as file:
            file.seek(20 * MIB)
            file.write(b"written to by a guest")
        digest, text = sha256(image), manifest.read_text()
        error = self.failed(*self.export_options("--changed-since", f"epoch:{first}"))
        self.assertRegex(error["what"], "was changed since it was exported")
        self.assertEqual((sha256(image), manifest.read_text()), (digest, text))
        manifest.unlink()
        self.assertRegex(self.failed(*self.export_options("--changed-since", f"epoch:{first}"))["what"], "no manifest")

    def test_an_interrupted_update_says_what_it_is_and_goes_on(self):
        first = self.newest()
        self.staging.ask(*self.export_options())
        for piece in range(6):
            with open(self.disk, "r+b") as file:
                file.seek(piece * 4 * MIB + 777)
                file.write(os.urandom(5000))
        self.web1.sync()
        second = self.newest()
        manifest = self.out / "a.img.manifest.json"
        update = self.export_options("--changed-since", f"epoch:{first}", "--threads", "1")
        # As a kill at the worst moment leaves it: some pieces are new, the manifest says so.
        process = self.begin(*update)
        wait_for("the update to begin", lambda: "updating" in manifest.read_text() or process.poll() is not None)
        process.kill()
        process.communicate(timeout=60)
        if "updating" not in manifest.read_text():
            self.skipTest("the update was through before it could be killed")
        change(self.disk, 50)
        self.web1.sync()
        self.assertRegex(self.failed(*update)["what"], f"being brought to epoch {second}")
        made = self.staging.ask(*self.export_options("--changed-since", f"epoch:{first}", at=f"epoch:{second}"))
        verdict = self.staging.ask("verify", "web1", "--at", f"epoch:{second}")
        self.assertEqual(made["disks"][0]["sha256"], verdict["sha256"]["vda.img"])
        self.assertEqual(sha256(self.out / "a.img"), verdict["sha256"]["vda.img"])
        self.assertEqual(sorted(path.name for path in self.out.iterdir()), ["a.img", "a.img.manifest.json"])

    def ask_api(self, method, path):
        connection = AdminSocket(self.staging.data / "admin.sock")
        with contextlib.closing(connection):
            connection.request(method, path, body="{}" if method != "DELETE" else None)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or "null")

    def test_a_point_is_held_while_its_client_says_so(self):
        for seed in range(3):
            change(self.disk, 70 + seed)
            self.web1.sync()
        oldest, held, dropped, newest = sorted(point["epoch"] for point in self.staging.points("web1"))
        status, hold = self.ask_api("POST", f"/v1/machines/web1/points/epoch:{held}/hold")
        self.assertEqual((status, hold["epoch"]), (200, held))
        for epoch in (held, dropped):
            self.staging.ask("point", "remove", "web1", "--at", f"epoch:{epoch}")
        epochs = lambda: {point["epoch"] for point in self.staging.points("web1")}
        wait_for("the other point to go", lambda: dropped not in epochs())
        self.assertEqual(epochs(), {oldest, held, newest})
        self.assertEqual(self.ask_api("PUT", f"/v1/holds/{hold['hold']}")[0], 200)
        self.assertEqual(self.ask_api("DELETE", f"/v1/holds/{hold['hold']}")[0], 204)
        wait_for("it to go", lambda: held not in epochs())
        self.assertEqual(self.ask_api("PUT", f"/v1/holds/{hold['hold']}")[0], 404)

    def test_formats_of_others(self):
        if shutil.which("qemu-img") is None:
            self.skipTest("qemu-img is not installed")
        for kind in ("qcow2", "vmdk", "vhdx"):
            made = self.staging.ask("export", "web1", "--at", "latest", "--format", kind, "--output", f"{self.out}/{kind}/")
            self.assertEqual({disk["name"] for disk in made["disks"]}, {"vda.img", "vdb.img"})
            for disk, source in zip(made["disks"], self.web1.disks):
                self.assertTrue(disk["file"].endswith("." + kind), disk)
                self.assertEqual(disk["sha256"], sha256(disk["file"]))
                compared = run(["qemu-img", "compare", "-f", "raw", "-F", kind, source, disk["file"]])
                self.assertEqual(compared.status, 0, compared)
                if kind == "qcow2":
                    checked = run(["qemu-img", "check", disk["file"]])
                    self.assertEqual(checked.status, 0, checked)

    def test_without_qemu_img_it_says_what_to_install(self):
        empty = self.directory / "empty"
        empty.mkdir()
        done = run([BIN / "tidemark", "--data", self.staging.data, "--json", *self.export_options("--format", "qcow2")],
                   env={"PATH": str(empty)})
        if shutil.which("qemu-img", path="/usr/sbin:/sbin"):
            self.skipTest("qemu-img stands where programs of administrators do")
        self.assertEqual(done.status, 1)
        self.assertIn("apt install qemu-utils", done.error["remedy"])
        self.assertEqual(list(self.out.iterdir()), [])

    @needs_root
    def test_to_a_block_device(self):
        backing = self.directory / "device"
        with open(backing, "wb") as file:
            file.truncate(32 * MIB)
        device = self.loop_device(backing)
        made = run([BIN / "tidemark", "--data", self.staging.data, "--json", *self.export_options(output=device)], cwd=self.out)
        self.assertEqual(made.status, 0, made)
        with open(device, "rb") as file:
            self.assertEqual(file.read(24 * MIB), self.disk.read_bytes())
        manifest = json.loads((self.out / f"{device.name}.manifest.json").read_text())
        self.assertEqual(manifest["disks"][0]["file"], str(device))
        # There is something on it now.
        again = [BIN / "tidemark", "--data", self.staging.data, "--json", *self.export_options(output=device)]
        self.assertRegex(run(again, cwd=self.out).error["what"], "something on it")
        # And with --force all of it is what the point has, zeroes too.
        small = [BIN / "tidemark", "--data", self.staging.data, "--json", *self.export_options(disk="vdb.img", output=device), "--force"]
        self.assertEqual(run(small, cwd=self.out).status, 0)
        with open(device, "rb") as file:
            self.assertEqual(file.read(3 * MIB + 1536), self.web1.disks[1].read_bytes())
        # Incrementally.
        first = self.newest()
        change(self.web1.disks[1], 60)
        self.web1.sync()
        update = run([*small[:-1], "--changed-since", f"epoch:{first}"], cwd=self.out)
        self.assertEqual(update.status, 0, update)
        with open(device, "rb") as file:
            self.assertEqual(file.read(3 * MIB + 1536), self.web1.disks[1].read_bytes())
        # Mounted, or too small.
        run(["mke2fs", "-q", "-F", device])
        mount = self.directory / "mounted"
        mount.mkdir()
        self.assertEqual(run(["mount", device, mount]).status, 0)
        self.mounts.append(mount)
        self.assertEqual(run([*again, "--force"], cwd=self.out).error["code"], "busy")
        tiny = self.directory / "tiny"
        with open(tiny, "wb") as file:
            file.truncate(MIB)
        done = run([BIN / "tidemark", "--data", self.staging.data, "--json", *self.export_options(output=self.loop_device(tiny)), "--force"], cwd=self.out)
        self.assertEqual(done.error["code"], "no-space", done)


if __name__ == "__main__":
    main()
