#include "storage/uring_queue.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>

#include "base/aligned_buffer.h"
#include "base/random.h"
#include "storage/log.h"
#include "storage/recovery.h"
#include "storage/segment_keeper.h"
#include "storage/system_files.h"

namespace tidemark::storage {
namespace {

struct Done final : IoCompletion {
  void on_io_done(int r) override {
    result = r;
    if (then) then();
  }
  std::optional<int> result;
  std::function<void()> then;
};

struct UringQueueTest : ::testing::Test {
  UringQueueTest() {
    directory = (std::filesystem::temp_directory_path() / "tidemark-uring-XXXXXX").string();
    EXPECT_NE(::mkdtemp(directory.data()), nullptr);
    file = std::move(*system_files().open(directory + "/file", OpenMode::create, true));
  }
  ~UringQueueTest() override {
    file.reset();
    std::filesystem::remove_all(directory);
  }
  std::unique_ptr<IoQueue> make(std::uint32_t entries) {
    auto made = make_uring_queue(entries);
    EXPECT_TRUE(made) << made.error().message();
    return std::move(*made);
  }
  // As the loop does it: sleeps on the eventfd, reads it, reaps.
  static std::size_t wake(IoQueue& queue) {
    pollfd waiting{queue.event_fd(), POLLIN, 0};
    EXPECT_EQ(::poll(&waiting, 1, 60'000), 1) << "no wake-up";
    std::uint64_t count = 0;
    EXPECT_EQ(::read(queue.event_fd(), &count, sizeof count), static_cast<ssize_t>(sizeof count));
    return queue.reap();
  }

  std::string directory;
  std::unique_ptr<File> file;
};

TEST_F(UringQueueTest, WritesAndReadsThroughTheEventfd) {
  const auto queue = make(8);
  AlignedBuffer out(64_KiB), in(64_KiB);
  Random random(1);
  random.fill(out.span());
  Done wrote, read;
  queue->write_durable(*file, 4096, out.span(), wrote);
  EXPECT_EQ(queue->reap(), 0U) << "nothing runs before submit";
  queue->submit();
  while (!wrote.result) wake(*queue);
  EXPECT_EQ(wrote.result, 65536);
  queue->read(*file, 4096, in.span(), read);
  queue->submit();
  while (!read.result) wake(*queue);
  EXPECT_EQ(read.result, 65536);
  EXPECT_EQ(std::memcmp(in.data(), out.data(), out.size()), 0);
  EXPECT_EQ(queue->in_flight(), 0U);
}

TEST_F(UringQueueTest, NoWakeUpIsLostOverManyTurns) {
  const auto queue = make(8);
  AlignedBuffer block(4096);
  std::memset(block.data(), 1, block.size());
  for (int turn = 0; turn < 300; ++turn) {
    Done done[3];
    for (std::uint64_t i = 0; i < 3; ++i) queue->write_durable(*file, i * 4096, block.span(), done[i]);
    queue->submit();
    while (queue->in_flight() > 0) wake(*queue);
    for (const Done& each : done) ASSERT_EQ(each.result, 4096);
  }
}

TEST_F(UringQueueTest, MoreThanTheQueueHoldsWaitsItsTurn) {
  const auto queue = make(4);
  AlignedBuffer block(4096);
  std::memset(block.data(), 7, block.size());
  std::vector<Done> done(100);
  for (std::uint64_t i = 0; i < done.size(); ++i) queue->write_durable(*file, i * 4096, block.span(), done[i]);
  EXPECT_EQ(queue->in_flight(), done.size());
  queue->submit();
  while (queue->in_flight() > 0) queue->wait();
  for (const Done& each : done) EXPECT_EQ(each.result, 4096);
  EXPECT_EQ(file->size().value(), done.size() * 4096);
}

TEST_F(UringQueueTest, ACompletionMayQueueTheNext) {
  const auto queue = make(8);
  AlignedBuffer block(4096);
  std::memset(block.data(), 7, block.size());
  Done first, second;
  first.then = [&] { queue->write_durable(*file, 4096, block.span(), second); };
  queue->write_durable(*file, 0, block.span(), first);
  while (queue->in_flight() > 0) queue->wait();
  EXPECT_EQ(second.result, 4096);
}

TEST_F(UringQueueTest, ErrorsComeThroughTheCompletion) {
  const auto queue = make(8);
  const auto read_only = system_files().open(directory + "/file", OpenMode::read, true);
  AlignedBuffer block(4096);
  Done write, read;
  queue->write_durable(**read_only, 0, block.span(), write);
  queue->read(*file, 1_MiB, block.span(), read);
  while (queue->in_flight() > 0) queue->wait();
  EXPECT_EQ(write.result, -EBADF);
  EXPECT_EQ(read.result, 0) << "beyond the end";
  EXPECT_EQ(queue->wait(), 0U) << "with nothing in flight it does not block";
}

// The whole lower half on the kernel's files: append, durable, recover.
TEST_F(UringQueueTest, TheLogOnRealFilesIsRecoveredAsItWasReported) {
  spdlog::set_level(spdlog::level::err);
  struct Listener final : Log::Listener {
    void on_durable(CommitInfo&& commit) override { commits.push_back(std::move(commit)); }
    void on_stopped(const Error& why) override { ADD_FAILURE() << why.message(); }
    std::vector<CommitInfo> commits;
  } listener;
  const std::string log_directory = directory + "/log";
  ASSERT_TRUE(system_files().make_directory(log_directory));
  const auto queue = make(64);
  RecoveryResult recovered;
  std::vector<CommitInfo> replayed;
  constexpr PartitionId kPartition{2};
  constexpr std::uint32_t kSalt = 99;
  const auto recover = [&] {
    replayed.clear();
    RecoveryOptions options;
    options.partition = kPartition;
    options.salt = kSalt;
    auto result = recover_log(system_files(), log_directory, options, [&](CommitInfo&& commit) -> Status {
      replayed.push_back(std::move(commit));
      return {};
    });
    ASSERT_TRUE(result) << result.error().message();
    recovered = std::move(*result);
  };
  recover();
  Random random(4);
  for (int life = 0; life < 3; ++life) {
    SegmentKeeperOptions options;
    options.directory = log_directory;
    options.segment_size = limits::kSegmentSizeMin;
    options.last_id = recovered.segment_max;
    options.live = recovered.segments;
    auto keeper = SegmentKeeper::open(system_files(), options);
    ASSERT_TRUE(keeper) << keeper.error().message();
    LogOptions log_options;
    log_options.partition = kPartition;
    log_options.salt = kSalt;
    log_options.incarnation = recovered.incarnation_max.next();
    std::optional<Log> running;
    Log& log = running.emplace(log_options, *queue, **keeper, Clock::system(), recovered.tail, listener);
    std::vector<std::byte> payload(300'000);
    random.fill(payload);
    for (int i = 0; i < 60;) {
      // A control record, however long: its bytes are read back whole by the comparison below.
      if (log.append(RecordType::machine, MachineId(), DiskId(0),
                     std::span(payload).first(1 + random.below(payload.size()))))
        ++i;
      log.end_turn();
      queue->submit();
      if (queue->reap() == 0) ::usleep(100);
    }
    while (log.durable_lsn() < log.last_lsn()) {
      log.end_turn();
      queue->submit();
      if (queue->wait() == 0) ::usleep(100);
    }
    log.on_idle();
    while (queue->in_flight() > 0) queue->wait();
    const Lsn last = log.last_lsn();
    running.reset();
    keeper->reset();  // nobody else touches the directory while it is recovered
    recover();
    EXPECT_EQ(replayed, listener.commits);
    EXPECT_EQ(recovered.tail.last_lsn, last);
  }
  EXPECT_EQ(recovered.tail.last_lsn, Lsn(180));
}

}  // namespace
}  // namespace tidemark::storage
