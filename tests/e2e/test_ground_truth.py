"""What the disk itself says: a source disk that logs every write (tests/powercut/logged_disk.py), a file system in use on
it, and the agent's points. Each must hold what the disk held at the moment of its cut, sector by sector: all that the log has up to
some entry; of the few requests behind it that were already on their way, any part; nothing else.

The test's own writers know little of what a file system writes and when: journal, metadata, write-back. The log knows.
"""
import array
import contextlib
import mmap
import os
import pathlib
import random
import shutil
import sqlite3
import struct
import sys
import tempfile
import threading
import time

from harness import BIN, MIB, Agent, Case, main, needs_root, run, seconds_of, wait_for

for folder in ("crash", "powercut"):
    sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / folder))
from logged_disk import MARKS_SIZE, LoggedDisk
from write_log import DISCARD, SECTOR, WriteLog

EXACT_CUTS = BIN.parent / "tests/exact_cuts"  # also an agent that can have bugs planted
QUEUE = 4  # requests that the device takes at a time
# Further ones wait for a place in the queue, one for each thread that writes: ours, the journal's, those that write back and
# discard. On a machine that was busy otherwise more than 16 were seen, and never more than 32.
ON_THEIR_WAY = QUEUE + 28
SIDE_BY_SIDE = 16  # entries of the log: the loop device writes a request segment by segment, and two at a time
POINTS = int(os.environ.get("TIDEMARK_POINTS", 30))
STAGING = '[storage]\nsegment_size = "8MiB"\nreserve_segments = 2\nfree_space_min = "16MiB"\nhigh_water = 1.0\nfull_water = 1.0\n'
CUT_WIDTH = 50e-6  # EbpfTracker::kCutWidthUs
BEAT = struct.Struct("<16sQ")
BEAT_MAGIC = b"tidemark a beat\0"


@contextlib.contextmanager
def past_the_cache(path):
    place = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        yield place
    finally:
        os.close(place)


class Load:
    """A file system in use: small files that come and go, a database, direct writes and holes, until it is told to stop.
    Every some milliseconds a beat: a sector that is written over, with the times before and after."""

    def __init__(self, mount, seed):
        self.mount, self.seed, self.stopping = mount, seed, threading.Event()
        self.beats, self.failures, self.rounds = [], [], {}
        self.threads = [threading.Thread(target=self.keep_on, args=(work,), daemon=True)
                        for work in (self.files, self.database, self.direct, self.beat)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        if self.failures:
            raise self.failures[0]

    def keep_on(self, work):
        try:
            with contextlib.closing(work(random.Random(f"{self.seed} {work.__name__}"))) as rounds:
                for self.rounds[work.__name__], _ in enumerate(rounds, 1):
                    if self.stopping.wait(0.003):
                        return
        except Exception as error:  # told when the load ends
            self.failures.append(error)

    def files(self, choose):
        while True:
            path = self.mount / f"file{choose.randrange(40)}"
            with open(path.with_suffix(".new"), "wb") as file:
                file.write(choose.randbytes(choose.choice((300, 5000, 70_000))))
                if choose.random() < 0.5:
                    file.flush()
                    os.fsync(file.fileno())
            os.rename(path.with_suffix(".new"), path)
            if choose.random() < 0.3:
                path.unlink()
            yield

    def database(self, choose):
        with contextlib.closing(sqlite3.connect(self.mount / "rows.db", isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = DELETE")
            database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, what BLOB)")
            for number in range(1 << 30):
                database.execute("INSERT OR REPLACE INTO rows VALUES (?, ?)", (number % 500, choose.randbytes(200)))
                yield

    def direct(self, choose):
        """Over written blocks of a file again and again, past the page cache, and holes into another."""
        buffer = mmap.mmap(-1, 64 << 10)
        with open(self.mount / "direct", "wb") as file:
            file.write(bytes(4 * MIB))
            os.fsync(file.fileno())
        with past_the_cache(self.mount / "direct") as place:
            for turn in range(1 << 30):
                size = choose.choice((512, 4096, 4096, 16384, 65536))
                buffer[:size] = choose.randbytes(size)
                at = choose.randrange((4 * MIB - size) // 512) * 512
                os.pwritev(place, [memoryview(buffer)[:size]], at)
                if turn % 20 == 19:
                    run(["fallocate", "--punch-hole", "--offset", at // 4096 * 4096, "--length", 65536, self.mount / "direct"])
                yield

    def beat(self, _):
        with open(self.mount / "beat", "wb") as file:
            file.write(bytes(4096))
            os.fsync(file.fileno())
        sector = mmap.mmap(-1, 4096)
        with past_the_cache(self.mount / "beat") as place:
            for number in range(1 << 30):
                sector[:BEAT.size] = BEAT.pack(BEAT_MAGIC, number)
                before = time.time()
                os.pwritev(place, [memoryview(sector)[:512]], 0)
                self.beats.append((before, time.time()))
                yield


class Truth:
    """What a disk may have held: for each sector that was written to, what it held after which entries of the log."""

    def __init__(self, disk, beats):
        log = WriteLog(disk.log, disk.size - MARKS_SIZE)
        with open(disk.base, "rb") as file:
            self.base = file.read(disk.size - MARKS_SIZE)
        self.entries, self.versions, self.beats = len(log.entries), {}, beats
        # Entries that follow each other on the disk, and nearly in the log, are one request.
        self.request, self.begins, ends = array.array("q"), array.array("q"), {}  # of each entry; of each request
        for i, entry in enumerate(log.entries):
            last = ends.pop(entry.offset, None)
            if last is None or i - last > SIDE_BY_SIDE:
                self.begins.append(i)
                self.request.append(len(self.begins) - 1)
            else:
                self.request.append(self.request[last])
            ends[entry.offset + entry.size] = i
        self.beat_at = {}  # number -> its entry
        for i, entry in enumerate(log.entries):
            data = bytes(entry.size) if entry.flags & DISCARD else os.pread(log.file, entry.size, entry.data)
            for at in range(0, entry.size, SECTOR):
                number, piece = (entry.offset + at) // SECTOR, data[at:at + SECTOR]
                known = self.versions.get(number)
                if known is None:
                    known = self.versions[number] = [(0, hash(self.base[number * SECTOR:(number + 1) * SECTOR]))]
                known.append((i + 1, hash(piece)))
                if piece.startswith(BEAT_MAGIC):
                    self.beat_at[BEAT.unpack_from(piece)[1]] = i
        self.counts = log.counts()
        log.close()

    def moments(self, cut):
        """The first and the last number of entries that the disk may have done at that time, by the beats."""
        first, last = 0, self.entries
        for number, (before, after) in enumerate(self.beats):
            if number not in self.beat_at:
                continue
            if after < cut:
                first = max(first, self.beat_at[number] + 1)
            elif before > cut + CUT_WIDTH:
                last = min(last, self.beat_at[number])
                break
        return first, last

    def judge(self, image, cut):
        """How many entries the image holds: the first and the last number that fits; and what is wrong, or None."""
        done, wrong = self.judge_with(image, cut, ON_THEIR_WAY)
        if wrong:
            for more in (2, 4, 16, 256):
                if not self.judge_with(image, cut, more * ON_THEIR_WAY)[1]:
                    return done, f"{wrong} (with {more * ON_THEIR_WAY} requests on their way it would be)"
        return done, wrong

    def judge_with(self, image, cut, on_their_way):
        fits = array.array("q", bytes(8 * (self.entries + 2)))  # differences: at how many sectors a number fits, less the one before
        for number, versions in self.versions.items():
            held = hash(image[number * SECTOR:(number + 1) * SECTOR])
            end = -1  # of what was added last
            for i, (since, content) in enumerate(versions):
                if content != held:
                    continue
                upto = versions[i + 1][0] if i + 1 < len(versions) else self.entries + 1  # one past
                # One that is on its way may be there already: before `since` entries are done.
                earliest = self.begins[max(self.request[since - 1] - on_their_way + 1, 0)] if since else 0
                begin = max(min(earliest, since), end)
                if begin < upto:
                    fits[begin] += 1
                    fits[upto] -= 1
                    end = upto
        total, best, fitting = 0, 0, []
        for done in range(self.entries + 1):
            total += fits[done]
            best = max(best, total)
            if total == len(self.versions):
                fitting.append(done)
        for at in range(0, len(self.base), 1 << 20):  # nobody ever wrote there
            if image[at:at + (1 << 20)] != self.base[at:at + (1 << 20)]:
                for number in range(at // SECTOR, (at + (1 << 20)) // SECTOR):
                    if number not in self.versions and image[number * SECTOR:(number + 1) * SECTOR] != self.base[number * SECTOR:(number + 1) * SECTOR]:
                        return None, f"sector {number} differs, and nobody ever wrote there"
        if not fitting:
            return None, f"it is no moment of the disk: at most {best} of {len(self.versions)} written sectors agree on one"
        first, last = self.moments(cut)
        if fitting[-1] < first or fitting[0] > last:
            return None, f"it is another moment than its own: {fitting[0]} to {fitting[-1]} entries fit, and {first} to {last} were done then"
        return (fitting[0], fitting[-1]), None


class PlantedAgent(Agent):
    """The same agent with a bug in it."""
    bug = None

    def command(self, *arguments):
        if arguments == ("run",):
            return [str(part) for part in (EXACT_CUTS, "--agent", self.state, "--bug", self.bug)]
        return super().command(*arguments)


class AgentBehindALink(Agent):
    """In a network namespace of its own."""
    namespace = None

    def command(self, *arguments):
        inside = ["nsenter", f"--net=/run/netns/{self.namespace}"] if arguments == ("run",) else []
        return inside + super().command(*arguments)


class GroundTruth(Case):
    MKFS = {"ext4": ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
            "xfs": ("mkfs.xfs", "-q", "-f", "--unsupported")}

    def setUp(self):
        super().setUp()
        for program in ("qemu-storage-daemon", "losetup", "mkfs.ext4", "mkfs.xfs"):
            if shutil.which(program) is None:
                self.skipTest(f"{program} is not installed")

    def prepare(self, kind, server, agent_class=Agent):
        """A logged disk, mounted, and an agent that protects it and is not started yet."""
        self.kind, self.name, self.staging = kind, f"{kind}-{len(self.agents)}", server
        self.root = pathlib.Path(tempfile.mkdtemp(dir=self.directory, prefix=f"{kind}-"))
        self.disk = LoggedDisk(self.root, 96 * MIB, self.MKFS[kind])
        self.addCleanup(self.disk.stop)
        self.disk.start("-o", "discard")
        (pathlib.Path("/sys/block") / self.disk.loop.removeprefix("/dev/") / "queue/nr_requests").write_text(str(QUEUE))
        self.source = agent_class(self, server, self.name)
        self.agents.append(self.source)
        self.source.enroll()
        self.source.disks.append(self.disk.loop)
        self.source.protect()
        for option in ('tracking = "ebpf"', "interval_s = 0.2", "freeze = false"):
            self.source.set_option(option)

    def load(self, seed):
        self.busy = Load(self.disk.mount, f"{self.kind} {seed}")
        return self.busy

    def exact(self):
        return [point for point in self.staging.points(self.name) if point["consistency"] == "crash"]

    def wait_for_points(self, count, deadline=300):
        """So many newer ones than there are."""
        newest = max((point["epoch"] for point in self.exact()), default=0)
        wait_for(f"{count} more points of a busy {self.kind}",
                 lambda: self.busy.failures or sum(point["epoch"] > newest for point in self.exact()) >= count, deadline)

    def judged(self, most=1000):
        """When the load is over: from the oldest on, what each point holds, and what is wrong with it. Of more than `most`
        points some are passed over."""
        self.source.stop()
        self.disk.stop()
        truth = Truth(self.disk, self.busy.beats)
        self.assertGreater(len(truth.beat_at), 20, "the load wrote next to nothing")
        for what in ("writes", "flushes", "discards"):
            self.assertGreater(truth.counts[what], 0, truth.counts)
        points = self.exact()[::-1]
        print(f"{self.kind}: {len(points)} points of {truth.counts}, {self.busy.rounds}")
        before = 0
        for point in points[::-(-len(points) // most)]:
            out = self.root / "point"
            shutil.rmtree(out, ignore_errors=True)
            [exported] = self.staging.ask("export", self.name, "--at", f"epoch:{point['epoch']}", "--output", f"{out}/")["disks"]
            done, wrong = truth.judge(pathlib.Path(exported["file"]).read_bytes(), seconds_of(point["time"]))
            if not wrong and done[1] < before:
                wrong = f"it holds {done[1]} entries at most, and the point before had {before}"
            before = done[0] if done else before
            yield point, done, wrong

    def check(self, most=1000):
        moments = set()
        for point, done, wrong in self.judged(most):
            self.assertIsNone(wrong, point)
            moments.add(done)
        return moments


@needs_root
class TestPoints(GroundTruth):
    def points_of(self, kind, agent_class=Agent, attempt=0):
        self.prepare(kind, self.server(f"data{attempt}"), agent_class)
        with self.load(f"{POINTS} {attempt}"):
            self.source.start()
            self.wait_for_points(POINTS)

    def test_ext4(self):
        self.points_of("ext4")
        self.assertGreater(len(self.check()), POINTS / 2, "the points are the same again and again")

    def test_xfs(self):
        self.points_of("xfs")
        self.assertGreater(len(self.check()), POINTS / 2, "the points are the same again and again")

    def test_a_bug_in_the_agent_is_found(self):
        """Else the above have shown nothing."""
        if not EXACT_CUTS.exists():
            self.skipTest(f"{EXACT_CUTS} is not built")
        PlantedAgent.bug = os.environ.get("TIDEMARK_BUG", "in_flight_forgotten")
        for attempt in range(5):  # whether a point shows it is left to chance
            self.points_of("ext4", PlantedAgent, attempt)
            if any(wrong for _, _, wrong in self.judged()):
                return
        self.fail("every point was a moment of the disk")


@needs_root
class TestInterruptions(GroundTruth):
    """Whatever happens to an agent, its link and its server while the disk is written to: it goes on with what is missing, without
    reading everything again, and every point there is was a moment of the disk."""

    def begin(self):
        self.source.start()
        # A write that was under way when the tracking began may be missed, and makes it begin anew: not later than this.
        status = wait_for("three points", lambda: ((s := self.source.status())["newest_point"] or 0) >= 3
                          and s["updated"] > s["newest_point_time"] and s)
        self.since, self.whole_reads = status["tracking_since"], self.source.log().count("everything is read")

    def went_on(self):
        status = self.source.status()
        self.assertEqual((status["tracking"], status["tracking_since"]), ("ebpf", self.since))
        self.assertEqual(self.source.log().count("everything is read"), self.whole_reads, "nothing was to be read again")

    def test_an_agent_that_is_killed_a_hundred_times(self):
        self.prepare("ext4", self.server())
        choose = random.Random(100)
        with self.load("killed"):
            self.begin()
            for number in range(100):
                self.source.kill()
                self.source.start()
                if number % 10 == 9:
                    self.wait_for_points(1)
                else:
                    time.sleep(choose.uniform(0.02, 0.5))
            self.wait_for_points(5)
            self.went_on()
        self.check(most=40)

    def test_a_link_that_is_cut(self):
        for program in ("ip", "nsenter"):
            if shutil.which(program) is None:
                self.skipTest(f"{program} is not installed")
        name = f"tm{os.getpid()}"
        self.must("ip", "netns", "add", name)
        self.addCleanup(run, ["ip", "netns", "delete", name])  # and the link with it
        self.must("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        self.must("ip", "address", "add", "10.213.0.1/30", "dev", name)
        self.must("ip", "link", "set", name, "up")
        for words in (("address", "add", "10.213.0.2/30", "dev", "eth0"), ("link", "set", "eth0", "up")):
            self.must("nsenter", f"--net=/run/netns/{name}", "ip", *words)
        AgentBehindALink.namespace = name
        self.prepare("ext4", self.server(host="10.213.0.1"), AgentBehindALink)
        self.allow("not connected", "session ended")
        with self.load("cut"):
            self.begin()
            for seconds in (0.3, 1, 4, 0.3, 12):
                self.must("ip", "link", "set", name, "down")
                time.sleep(seconds)
                self.must("ip", "link", "set", name, "up")
                self.wait_for_points(2)
            self.went_on()
        self.check(most=30)

    def test_a_server_that_is_killed(self):
        self.prepare("xfs", self.server())
        self.allow("not connected", "session ended")
        with self.load("server"):
            self.begin()
            for _ in range(6):
                self.staging.kill()
                time.sleep(0.5)
                self.staging.start()
                self.wait_for_points(2)
            self.went_on()
        self.check(most=30)

    def test_a_staging_disk_that_is_full(self):
        mount = self.small_file_system("small", 512 * MIB)
        self.prepare("ext4", self.server("small/data", STAGING, partitions=1))
        self.allow("not connected", "session ended", "space")
        with self.load("full"):
            self.begin()
            space = os.statvfs(mount)
            with open(mount / "filler", "wb") as file:
                os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - 8 * MIB)
            status = wait_for("the agent to say so", lambda: (s := self.source.status())["cause"] and "space" in s["remedy"] and s)
            self.assertFalse(status["connected"])
            time.sleep(3)  # the disk is written to meanwhile
            os.unlink(mount / "filler")
            self.wait_for_points(3)
            self.went_on()
        self.check(most=30)

    def must(self, *command):
        self.assertEqual(run(command).status, 0, command)


if __name__ == "__main__":
    main()
