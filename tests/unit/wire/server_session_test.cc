#include "wire/server_session.h"

#include "tests/unit/wire/session_rig.h"

namespace tidemark::wire {
namespace {

using namespace rig;

// A server's session to which a test says what an agent would, right or wrong.
class ServerSessionTest : public testing::Test {
 protected:
  ManualClock clock{kStart};
  Store store;
  std::unique_ptr<Server> server;
  std::uint64_t number = 0;
  Hash128 previous;      // digest of the newest epoch
  EpochContent content;  // of the open one
  BlockEncoder encoder{machine_id()};

  void SetUp() override { connect(); }
  void connect(ServerSession::Limits limits = {limits::kSessionCreditMin}) {
    server = std::make_unique<Server>(store, clock, limits);
    number = 0;
  }
  // A frame that was not consumed keeps its number, so that it can be sent again.
  Status frame(FrameType type, std::span<const std::byte> payload, DiskId disk = DiskId(0)) {
    const Status status =
        server->session.on_frame({type, static_cast<std::uint32_t>(payload.size()), disk, number}, payload);
    if (status) ++number;
    return status;
  }
  Status say(FrameType type, const google::protobuf::MessageLite& message) {
    const std::string bytes = message.SerializeAsString();
    return frame(type, std::as_bytes(std::span(bytes)));
  }
  pb::Hello hello() {
    pb::Hello hello = Agent::hello();
    hello.set_protocol_version(1);
    hello.set_clock_us(clock.wall_us());
    return hello;
  }
  Status open_disk(const std::string& name = "vda", std::uint64_t size = 1_GiB) {
    return say(FrameType::open_disk, disk_request(name, size));
  }
  Status begin(std::uint64_t epoch, pb::EpochKind kind = pb::INITIAL) {
    content = {};
    return say(FrameType::epoch_begin, begin_request(epoch, kind, store.durable.disks));
  }
  Bytes payload(std::uint64_t epoch, std::uint64_t granule = 0, std::size_t granules = 1, std::uint32_t disk = 0) {
    encoder.start(DiskId(disk), EpochNumber(epoch));
    encoder.add(granule, Bytes(granules * limits::kGranuleSize, std::byte{0x5a}));
    return encoder.payload();
  }
  Status blocks(std::uint64_t epoch, std::uint64_t granule = 0) {
    const Bytes bytes = payload(epoch, granule);
    const Status status = frame(FrameType::blocks, bytes);
    if (status) content.add(encoder.summary());
    return status;
  }
  pb::EpochCommit commit_message(std::uint64_t epoch, std::int64_t cut = kStart) {
    pb::EpochCommit commit;
    commit.set_number(epoch);
    commit.set_cut_time_us(cut);
    commit.set_consistency(pb::CRASH);
    commit.set_blocks(content.blocks);
    commit.set_digest(hash_to_bytes(epoch_digest(previous, EpochNumber(epoch), cut, pb::CRASH, content)));
    return commit;
  }
  Status commit(std::uint64_t epoch) {
    const auto message = commit_message(epoch);
    const Status status = say(FrameType::epoch_commit, message);
    if (status) previous = checked_hash(message.digest());
    return status;
  }
  pb::Welcome last_welcome() {
    pb::Welcome welcome;
    for (const auto& [type, bytes] : server->sent)
      if (type == FrameType::welcome) welcome.ParseFromString(bytes);
    return welcome;
  }
  std::size_t sent(FrameType type) {
    return static_cast<std::size_t>(
        std::count_if(server->sent.begin(), server->sent.end(), [&](const auto& f) { return f.first == type; }));
  }
  // Hello, a disk, and a first epoch of one block that is durable.
  void first_epoch() {
    ASSERT_TRUE(say(FrameType::hello, hello()));
    ASSERT_TRUE(open_disk());
    ASSERT_TRUE(begin(1));
    ASSERT_TRUE(blocks(1));
    ASSERT_TRUE(commit(1));
    while (!store.pending.empty()) server->settle_one(false);
  }
  void expect_code(const Status& status, Code code) {
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, code) << status.error().message();
  }
};

TEST_F(ServerSessionTest, AnEpochGoesThroughAndIsAcknowledgedOnceDurable) {
  ASSERT_TRUE(say(FrameType::hello, hello()));
  EXPECT_TRUE(server->session.ready());
  ASSERT_TRUE(open_disk());
  ASSERT_TRUE(begin(1));
  ASSERT_TRUE(blocks(1));
  ASSERT_TRUE(commit(1));
  EXPECT_EQ(sent(FrameType::durable), 0u);
  while (!store.pending.empty()) server->settle_one(false);
  EXPECT_EQ(sent(FrameType::durable), 1u);
  EXPECT_EQ(store.durable.epochs.size(), 1u);
  EXPECT_EQ(store.durable.durable_digest, previous);
}

TEST_F(ServerSessionTest, HelloComesFirstAndOnce) {
  expect_code(say(FrameType::ping, pb::Ping()), Code::protocol);
  expect_code(open_disk(), Code::protocol);
  connect();
  ASSERT_TRUE(say(FrameType::hello, hello()));
  expect_code(say(FrameType::hello, hello()), Code::protocol);
}

TEST_F(ServerSessionTest, AVersionOfTheFutureIsUnsupportedWithARemedy) {
  pb::Hello future = hello();
  future.set_protocol_version(2);
  future.clear_fingerprint();  // a Hello of the future may look otherwise
  const auto status = say(FrameType::hello, future);
  expect_code(status, Code::unsupported);
  EXPECT_FALSE(status.error().remedy.empty());
}

TEST_F(ServerSessionTest, AStateOfAnotherMachineIsRefused) {
  pb::Hello foreign = hello();
  foreign.set_machine_id(machine_id(2).to_string());
  expect_code(say(FrameType::hello, foreign), Code::permission_denied);
  foreign.set_machine_id(machine_id(1).to_string());
  EXPECT_TRUE(say(FrameType::hello, foreign));
}

TEST_F(ServerSessionTest, WhatAdmitRefusesIsThePeersError) {
  server->refuse = Error{Code::quarantined, "web1", "its fingerprint changed", "an administrator decides"};
  expect_code(say(FrameType::hello, hello()), Code::quarantined);
  EXPECT_FALSE(server->session.ready());
}

TEST_F(ServerSessionTest, ARedirectSaysWhereAndEnds) {
  server->redirect = "other.example:7443";
  ASSERT_TRUE(say(FrameType::hello, hello()));
  EXPECT_EQ(last_welcome().redirect(), "other.example:7443");
  EXPECT_TRUE(server->session.closed());
}

TEST_F(ServerSessionTest, ReplayedLostAndReorderedFramesAreFound) {
  ASSERT_TRUE(say(FrameType::hello, hello()));
  for (const std::uint64_t wrong : {0u, 2u, 100u}) {
    EXPECT_EQ(server->session.on_frame({FrameType::ping, 0, DiskId(0), wrong}, {}).error().code, Code::protocol);
  }
  EXPECT_TRUE(server->session.on_frame({FrameType::ping, 0, DiskId(0), 1}, {}));
}

TEST_F(ServerSessionTest, WhatOnlyAServerSendsIsRefused) {
  ASSERT_TRUE(say(FrameType::hello, hello()));
  for (const FrameType type : {FrameType::welcome, FrameType::disk_opened, FrameType::durable, FrameType::credit,
                               FrameType::digest_reply, FrameType::throttle, FrameType::resend, FrameType::renew_reply,
                               FrameType::epoch_begun, FrameType::enroll_request, FrameType::enroll_reply})
    expect_code(frame(type, {}), Code::protocol);
}

TEST_F(ServerSessionTest, ControlFramesInTheWrongStateAreRefused) {
  ASSERT_TRUE(say(FrameType::hello, hello()));
  ASSERT_TRUE(open_disk());
  expect_code(commit(1), Code::protocol);  // never begun
  pb::EpochAbort abort;
  abort.set_number(1);
  expect_code(say(FrameType::epoch_abort, abort), Code::protocol);
  expect_code(begin(1, pb::DELTA), Code::protocol);  // a machine's first epoch
  expect_code(begin(1, pb::RESCAN), Code::protocol);
  ASSERT_TRUE(begin(5));
  expect_code(begin(6), Code::protocol);   // while one is open
  expect_code(commit(6), Code::protocol);  // not the open one
  expect_code(open_disk("vdb"), Code::protocol);
  expect_code(open_disk("vda", 2_GiB), Code::protocol);
  EXPECT_TRUE(open_disk("vda")) << "an unchanged disk may be announced again";
  ASSERT_TRUE(commit(5));
  expect_code(begin(5, pb::DELTA), Code::protocol);  // below the next
  EXPECT_TRUE(begin(6, pb::DELTA));
}

TEST_F(ServerSessionTest, AnEpochNamesKnownDisksWithTheirAnnouncedSizes) {
  ASSERT_TRUE(say(FrameType::hello, hello()));
  ASSERT_TRUE(open_disk());
  auto request = begin_request(1, pb::INITIAL, store.durable.disks);
  request.mutable_disks(0)->set_size(2_GiB);
  expect_code(say(FrameType::epoch_begin, request), Code::protocol);
  request.mutable_disks(0)->set_size(1_GiB);
  request.mutable_disks(0)->set_disk(9);
  expect_code(say(FrameType::epoch_begin, request), Code::protocol);
}

TEST_F(ServerSessionTest, ASixtyFifthDiskIsRefused) {
  ASSERT_TRUE(say(FrameType::hello, hello()));
  for (int i = 0; i < 64; ++i) ASSERT_TRUE(open_disk("vd" + std::to_string(i)));
  expect_code(open_disk("one-more"), Code::invalid_argument);
}

TEST_F(ServerSessionTest, BlocksMustBelongToTheOpenEpochADiskOfItAndTheMachine) {
  ASSERT_TRUE(say(FrameType::hello, hello()));
  ASSERT_TRUE(open_disk("vda", 10 * limits::kGranuleSize - 100));
  expect_code(blocks(1), Code::protocol);  // none open
  ASSERT_TRUE(begin(1));
  expect_code(blocks(2), Code::protocol);                                                 // another epoch
  expect_code(frame(FrameType::blocks, payload(1, 0, 1, 7), DiskId(7)), Code::protocol);  // unknown disk
  expect_code(frame(FrameType::blocks, payload(1, 0, 1, 7), DiskId(0)), Code::protocol);  // a disk under another's name
  expect_code(frame(FrameType::blocks, {}), Code::protocol);
  expect_code(blocks(1, 10), Code::protocol);  // beyond the disk
  EXPECT_TRUE(blocks(1, 9)) << "the last granule is a partial one";
  Bytes flipped = payload(1);
  flipped.back() ^= std::byte{1};
  expect_code(frame(FrameType::blocks, flipped), Code::protocol);
  BlockEncoder foreign(machine_id(2));
  foreign.start(DiskId(0), EpochNumber(1));
  foreign.add_zeroes(0, 1);
  expect_code(frame(FrameType::blocks, foreign.payload()), Code::protocol);
  EXPECT_EQ(server->session.open_content(), content) << "what was refused does not count";
}

TEST_F(ServerSessionTest, CreditBoundsWhatMayBeSentAndComesBack) {
  const Bytes one = payload(1);
  connect({static_cast<std::uint32_t>(2 * one.size() + 1)});
  ASSERT_TRUE(say(FrameType::hello, hello()));
  ASSERT_TRUE(open_disk());
  ASSERT_TRUE(begin(1));
  ASSERT_TRUE(blocks(1, 0));
  ASSERT_TRUE(blocks(1, 1));
  expect_code(blocks(1, 2), Code::protocol);
  store.settle();
  server->session.on_credit_returned(static_cast<std::uint32_t>(one.size()));
  EXPECT_EQ(sent(FrameType::credit), 1u);
  EXPECT_TRUE(blocks(1, 2));
}

TEST_F(ServerSessionTest, SmallCreditsAreGatheredWhileTheAgentCanSendAnything) {
  connect({limits::kSessionCreditMax});
  ASSERT_TRUE(say(FrameType::hello, hello()));
  ASSERT_TRUE(open_disk());
  ASSERT_TRUE(begin(1));
  for (std::uint64_t i = 0; i < 20; ++i) ASSERT_TRUE(blocks(1, i));
  for (std::uint64_t i = 0; i < 20; ++i) server->session.on_credit_returned(100);
  EXPECT_EQ(sent(FrameType::credit), 0u);
  server->session.on_credit_returned(limits::kSessionCreditMax / 8);
  EXPECT_EQ(sent(FrameType::credit), 1u);
}

TEST_F(ServerSessionTest, ACommitThatDoesNotMatchWhatCameCommitsNothing) {
  const auto refuses = [&](const std::function<void(pb::EpochCommit&)>& bend) {
    store = Store();
    previous = {};
    connect();
    ASSERT_TRUE(say(FrameType::hello, hello()));
    ASSERT_TRUE(open_disk());
    ASSERT_TRUE(begin(1));
    ASSERT_TRUE(blocks(1));
    pb::EpochCommit message = commit_message(1);
    bend(message);
    expect_code(say(FrameType::epoch_commit, message), Code::protocol);
    store.settle();
    EXPECT_TRUE(store.durable.epochs.empty());
    EXPECT_FALSE(store.durable.open) << "an initial sync that can never be committed must not stay open";
  };
  refuses([](pb::EpochCommit& commit) { commit.set_blocks(2); });
  refuses([](pb::EpochCommit& commit) { commit.set_digest(std::string(16, 'x')); });
  refuses([](pb::EpochCommit& commit) { commit.set_cut_time_us(kStart + 1); });
  refuses([](pb::EpochCommit& commit) { commit.set_consistency(pb::FILESYSTEM); });
}

TEST_F(ServerSessionTest, BusyConsumesNothingAndTheSameFrameGoesThroughLater) {
  ASSERT_TRUE(say(FrameType::hello, hello()));
  store.room = 0;
  expect_code(open_disk(), Code::busy);
  store.room = 1;
  ASSERT_TRUE(open_disk());
  ASSERT_TRUE(begin(1));
  for (int i = 0; i < 3; ++i) {
    expect_code(blocks(1), Code::busy);
    EXPECT_EQ(server->session.open_content(), EpochContent());
  }
  store.settle();
  ASSERT_TRUE(blocks(1));
  expect_code(say(FrameType::epoch_commit, commit_message(1)), Code::busy);
  EXPECT_EQ(server->session.open_epoch(), EpochNumber(1));
  store.settle();
  ASSERT_TRUE(commit(1));
  store.settle();
  EXPECT_EQ(store.durable.epochs.at(1).payloads.size(), 1u);
}

TEST_F(ServerSessionTest, ABusyAbortAtHelloLeavesTheHelloToBeHandedInAgain) {
  first_epoch();
  ASSERT_TRUE(begin(2, pb::DELTA));
  store.settle();
  connect();
  pb::Hello again = hello();
  again.set_durable_epoch(1);
  again.set_durable_digest(hash_to_bytes(previous));
  store.room = 0;
  expect_code(say(FrameType::hello, again), Code::busy);
  EXPECT_FALSE(server->session.ready());
  EXPECT_TRUE(server->sent.empty());
  store.room = 10;
  ASSERT_TRUE(say(FrameType::hello, again));
  EXPECT_EQ(last_welcome().next_epoch(), 3u);
}

TEST_F(ServerSessionTest, ADeltaThatWasCutOffIsAbortedBeforeWelcome) {
  first_epoch();
  ASSERT_TRUE(begin(2, pb::DELTA));
  ASSERT_TRUE(blocks(2));
  store.settle();
  connect();
  pb::Hello again = hello();
  again.set_durable_epoch(1);
  again.set_durable_digest(hash_to_bytes(previous));
  ASSERT_TRUE(say(FrameType::hello, again));
  EXPECT_EQ(server->calls, std::vector<std::string>{"abort 2"});
  EXPECT_FALSE(last_welcome().has_open_epoch());
  EXPECT_EQ(last_welcome().next_epoch(), 3u);
  EXPECT_TRUE(server->alarms.empty());
  ASSERT_TRUE(begin(3, pb::DELTA));
  ASSERT_TRUE(commit(3));
}

TEST_F(ServerSessionTest, AnInitialSyncResumesWithItsSum) {
  ASSERT_TRUE(say(FrameType::hello, hello()));
  ASSERT_TRUE(open_disk());
  ASSERT_TRUE(begin(1));
  ASSERT_TRUE(blocks(1, 0));
  const EpochContent before = content;
  store.settle();
  connect();
  ASSERT_TRUE(say(FrameType::hello, hello()));
  EXPECT_EQ(last_welcome().open_epoch().blocks(), 1u);
  expect_code(begin(2), Code::protocol);  // the open one comes first
  expect_code(begin(1, pb::RESCAN), Code::protocol);
  expect_code(open_disk("vdb"), Code::protocol);
  ASSERT_TRUE(begin(1));
  content = before;
  ASSERT_TRUE(blocks(1, 1));
  ASSERT_TRUE(commit(1));
  store.settle();
  EXPECT_EQ(store.durable.epochs.at(1).payloads.size(), 2u);
  EXPECT_EQ(std::count(server->calls.begin(), server->calls.end(), "begin 1"), 0) << "it is open in the store already";
}

TEST_F(ServerSessionTest, AnInitialSyncDoesNotResumeWithOtherDisksAndCanBeAborted) {
  ASSERT_TRUE(say(FrameType::hello, hello()));
  ASSERT_TRUE(open_disk());
  ASSERT_TRUE(open_disk("vdb"));
  ASSERT_TRUE(begin(1));
  store.settle();
  connect();
  ASSERT_TRUE(say(FrameType::hello, hello()));
  auto request = begin_request(1, pb::INITIAL, store.durable.disks);
  request.mutable_disks()->RemoveLast();
  expect_code(say(FrameType::epoch_begin, request), Code::protocol);
  pb::EpochAbort abort;
  abort.set_number(1);
  ASSERT_TRUE(say(FrameType::epoch_abort, abort));
  ASSERT_TRUE(open_disk("vdc"));
  expect_code(begin(1), Code::protocol);
  ASSERT_TRUE(begin(2));
}

TEST_F(ServerSessionTest, KnowingLessThanItAcknowledgedIsAnAlarmAndNoDeltaIsTaken) {
  first_epoch();
  connect();
  pb::Hello ahead = hello();
  ahead.set_durable_epoch(9);
  ahead.set_durable_digest(std::string(16, 'x'));
  ASSERT_TRUE(say(FrameType::hello, ahead));
  ASSERT_EQ(server->alarms.size(), 1u);
  EXPECT_EQ(server->alarms[0].code, Code::history_diverged);
  EXPECT_EQ(last_welcome().durable_epoch(), 1u) << "the Welcome tells the truth";
  expect_code(begin(10, pb::DELTA), Code::history_diverged);
  pb::Unchanged unchanged;
  unchanged.set_epoch(1);
  expect_code(say(FrameType::unchanged, unchanged), Code::history_diverged);
  ASSERT_TRUE(begin(10, pb::RESCAN));
  ASSERT_TRUE(commit(10));
  EXPECT_FALSE(server->session.history_diverged());
  EXPECT_TRUE(begin(11, pb::DELTA));
}

TEST_F(ServerSessionTest, AnotherContentUnderTheSameNumberIsAnAlarm) {
  first_epoch();
  connect();
  pb::Hello other = hello();
  other.set_durable_epoch(1);
  other.set_durable_digest(std::string(16, 'x'));
  ASSERT_TRUE(say(FrameType::hello, other));
  EXPECT_EQ(server->alarms.size(), 1u);
}

TEST_F(ServerSessionTest, AnAgentThatMissedADurableIsNoAlarm) {
  first_epoch();
  connect();
  ASSERT_TRUE(say(FrameType::hello, hello()));
  EXPECT_TRUE(server->alarms.empty());
  EXPECT_EQ(last_welcome().durable_epoch(), 1u);
  EXPECT_TRUE(begin(2, pb::DELTA));
}

TEST_F(ServerSessionTest, AnInitialSyncOfWhichLessIsThereThanWasAcknowledgedIsAnAlarmAndBeginsAnew) {
  ASSERT_TRUE(say(FrameType::hello, hello()));
  ASSERT_TRUE(open_disk());
  ASSERT_TRUE(begin(1));
  ASSERT_TRUE(blocks(1, 0));
  store.settle();
  connect();
  pb::Hello ahead = hello();
  *ahead.mutable_open_epoch() = *store.durable.open;
  ahead.mutable_open_epoch()->set_blocks(2);
  ASSERT_TRUE(say(FrameType::hello, ahead));
  EXPECT_EQ(server->alarms.size(), 1u);
  EXPECT_FALSE(last_welcome().has_open_epoch());
  expect_code(begin(1), Code::protocol);
  EXPECT_TRUE(begin(2));
}

TEST_F(ServerSessionTest, TimesAreTurnedIntoTheServersClockAndNeverLieInTheFuture) {
  constexpr std::int64_t kAhead = 3'600'000'000;  // the agent's clock goes an hour fast
  pb::Hello fast = hello();
  fast.set_clock_us(kStart + kAhead);
  ASSERT_TRUE(say(FrameType::hello, fast));
  EXPECT_EQ(server->session.clock_offset_us(), kAhead);
  ASSERT_TRUE(open_disk());
  clock.advance(std::chrono::seconds(10));
  ASSERT_TRUE(begin(1));
  const auto past = commit_message(1, kStart + kAhead + 4'000'000);
  ASSERT_TRUE(say(FrameType::epoch_commit, past));
  previous = checked_hash(past.digest());
  ASSERT_TRUE(begin(2, pb::DELTA));
  ASSERT_TRUE(say(FrameType::epoch_commit, commit_message(2, kStart + kAhead + 900'000'000)));
  EXPECT_EQ(server->times, (std::vector<WallMicros>{kStart + 4'000'000, kStart + 10'000'000}));
  ASSERT_TRUE(begin(3, pb::DELTA));
  expect_code(say(FrameType::epoch_commit, commit_message(3, -1)), Code::protocol);
  expect_code(say(FrameType::epoch_commit, commit_message(3, INT64_MAX)), Code::protocol);
}

TEST_F(ServerSessionTest, TheWayOfHelloIsNoDifferenceOfClocks) {
  pb::Hello late = hello();
  late.set_clock_us(kStart - 30'000);  // it was on its way for 30 ms
  ASSERT_TRUE(say(FrameType::hello, late));
  EXPECT_EQ(server->session.clock_offset_us(), 0);
  ASSERT_TRUE(open_disk());
  clock.advance(std::chrono::seconds(10));
  ASSERT_TRUE(begin(1));
  ASSERT_TRUE(say(FrameType::epoch_commit, commit_message(1, kStart + 4'000'000)));
  EXPECT_EQ(server->times, std::vector<WallMicros>{kStart + 4'000'000}) << "the moment that the agent took";
}

TEST_F(ServerSessionTest, AtMostSixteenCommitsWaitForDurable) {
  first_epoch();
  for (std::uint64_t epoch = 2; epoch < 18; ++epoch) {
    ASSERT_TRUE(begin(epoch, pb::DELTA));
    ASSERT_TRUE(commit(epoch));
  }
  ASSERT_TRUE(begin(18, pb::DELTA));
  expect_code(say(FrameType::epoch_commit, commit_message(18)), Code::protocol);
  while (!store.pending.empty()) server->settle_one(false);
  EXPECT_TRUE(commit(18));
}

TEST_F(ServerSessionTest, UnchangedIsForTheNewestDurableEpochOnly) {
  first_epoch();
  pb::Unchanged unchanged;
  unchanged.set_epoch(1);
  unchanged.set_as_of_us(kStart);
  EXPECT_TRUE(say(FrameType::unchanged, unchanged));
  EXPECT_EQ(server->calls.back(), "unchanged 1");
  unchanged.set_epoch(2);
  expect_code(say(FrameType::unchanged, unchanged), Code::protocol);
  unchanged.set_epoch(1);
  ASSERT_TRUE(begin(2, pb::DELTA));
  expect_code(say(FrameType::unchanged, unchanged), Code::protocol);
  ASSERT_TRUE(commit(2));
  expect_code(say(FrameType::unchanged, unchanged), Code::protocol);
}

TEST_F(ServerSessionTest, DigestRequestsAreBounded) {
  first_epoch();
  pb::DigestRequest request;
  request.set_epoch(1);
  request.set_chunks(4);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(say(FrameType::digest_request, request));
  expect_code(say(FrameType::digest_request, request), Code::protocol);
  pb::DigestReply reply;
  reply.set_sha256(std::string(128, 's'));
  server->session.on_digests(reply);
  EXPECT_EQ(sent(FrameType::digest_reply), 1u);
  EXPECT_TRUE(say(FrameType::digest_request, request));
  server->session.on_digests(reply);
  request.set_epoch(2);
  expect_code(say(FrameType::digest_request, request), Code::protocol);
  request.set_epoch(1);
  request.set_disk(3);
  expect_code(say(FrameType::digest_request, request), Code::protocol);
}

TEST_F(ServerSessionTest, AfterGoodbyeOrErrorNothingFollows) {
  ASSERT_TRUE(say(FrameType::hello, hello()));
  ASSERT_TRUE(say(FrameType::error, to_message({Code::io, "vda", "cannot be read", ""})));
  EXPECT_TRUE(server->session.closed());
  ASSERT_TRUE(server->session.peer_error());
  EXPECT_EQ(server->session.peer_error()->code, Code::io);
  expect_code(say(FrameType::ping, pb::Ping()), Code::protocol);
}

TEST_F(ServerSessionTest, PingProgressRenewAndThrottleDoWhatTheySay) {
  ASSERT_TRUE(say(FrameType::hello, hello()));
  pb::Ping ping;
  ping.set_token(77);
  ASSERT_TRUE(say(FrameType::ping, ping));
  EXPECT_EQ(server->sent.back().first, FrameType::pong);
  pb::Progress progress;
  progress.set_state("initial-sync");
  ASSERT_TRUE(say(FrameType::progress, progress));
  EXPECT_EQ(server->calls.back(), "progress initial-sync");
  progress.set_cause(std::string(2000, 'x'));
  expect_code(say(FrameType::progress, progress), Code::protocol);
  pb::RenewRequest renew;
  renew.set_csr_pem("pem");
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(say(FrameType::renew_request, renew));
  expect_code(say(FrameType::renew_request, renew), Code::protocol);
  server->session.throttle(50, "the disk is slow");
  EXPECT_EQ(server->sent.back().first, FrameType::throttle);
}

TEST_F(ServerSessionTest, ResendGoesOnlyToAgentsThatUnderstandIt) {
  pb::Resend resend;
  resend.add_ranges()->set_granules(1);
  EXPECT_FALSE(server->session.resend(resend)) << "too early";
  auto first = hello();
  first.clear_capabilities();
  ASSERT_TRUE(say(FrameType::hello, first));
  EXPECT_FALSE(server->session.resend(resend)) << "an older agent";
  EXPECT_EQ(server->sent.back().first, FrameType::welcome);
}

TEST_F(ServerSessionTest, ResendIsSentToWhoAskedForIt) {
  pb::Resend resend;
  resend.add_ranges()->set_granules(1);
  auto capable = hello();
  capable.add_capabilities("of the future");
  capable.add_capabilities(kCapabilityResend);
  ASSERT_TRUE(say(FrameType::hello, capable));
  EXPECT_TRUE(server->session.resend(resend));
  EXPECT_EQ(server->sent.back().first, FrameType::resend);
  ASSERT_TRUE(say(FrameType::goodbye, pb::Goodbye{}));
  EXPECT_FALSE(server->session.resend(resend));
}

TEST_F(ServerSessionTest, ThrottleIsBoundedCleanAndOnlyForThoseWhoAreWelcome) {
  const auto told = [&] {
    EXPECT_EQ(server->sent.back().first, FrameType::throttle);
    pb::Throttle throttle;
    EXPECT_TRUE(throttle.ParseFromString(server->sent.back().second));
    EXPECT_TRUE(check(throttle)) << "the other end would refuse it";
    return throttle;
  };
  server->session.throttle(50, "too early");
  EXPECT_TRUE(server->sent.empty());
  ASSERT_TRUE(say(FrameType::hello, hello()));
  server->session.throttle(3'600'000, "the disk\nis slow " + std::string(2000, 'x'));
  EXPECT_EQ(told().pause_ms(), kThrottlePauseMaxMs);
  server->session.throttle(0, {});
  EXPECT_EQ(told().pause_ms(), 0U);
  const auto before = server->sent.size();
  ASSERT_TRUE(say(FrameType::goodbye, pb::Goodbye{}));
  server->session.throttle(50, "too late");
  EXPECT_EQ(server->sent.size(), before);
}

}  // namespace
}  // namespace tidemark::wire
