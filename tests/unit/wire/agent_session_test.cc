#include "wire/agent_session.h"

#include "tests/unit/wire/session_rig.h"

namespace tidemark::wire {
namespace {

using namespace rig;

// An agent's session to which a test says what a server would, right or wrong.
class AgentSessionTest : public testing::Test {
 protected:
  ManualClock clock{kStart};
  std::unique_ptr<Agent> agent;
  std::uint64_t number = 0;
  BlockEncoder encoder{machine_id()};

  void SetUp() override { connect(); }
  void connect(AgentMemory memory = {}) {
    agent = std::make_unique<Agent>(std::move(memory), clock);
    agent->session.start(Agent::hello());
    number = 0;
  }
  Status frame(FrameType type, std::span<const std::byte> payload) {
    return agent->session.on_frame({type, static_cast<std::uint32_t>(payload.size()), DiskId(0), number++}, payload);
  }
  Status say(FrameType type, const google::protobuf::MessageLite& message) {
    const std::string bytes = message.SerializeAsString();
    return frame(type, std::as_bytes(std::span(bytes)));
  }
  pb::Welcome welcome(std::uint64_t durable = 0, Hash128 digest = {}) {
    pb::Welcome welcome;
    welcome.set_protocol_version(1);
    welcome.set_durable_epoch(durable);
    if (durable != 0) welcome.set_durable_digest(hash_to_bytes(digest));
    welcome.set_next_epoch(durable + 1);
    welcome.set_credit(limits::kSessionCreditMin);
    welcome.set_payload_max(limits::kFramePayloadMax);
    auto* disk = welcome.add_disks();
    disk->set_identity("serial-vda");
    disk->set_name("vda");
    disk->set_size(1_GiB);
    return welcome;
  }
  Status begin(std::uint64_t epoch, pb::EpochKind kind = pb::INITIAL) {
    return agent->session.begin_epoch(begin_request(epoch, kind, agent->session.disks()));
  }
  Status blocks(std::uint64_t granule = 0) {
    encoder.start(DiskId(0), *agent->session.open_epoch());
    encoder.add(granule, Bytes(limits::kGranuleSize, std::byte{0x5a}));
    return agent->session.send_blocks(DiskId(0), encoder.payload(), encoder.summary());
  }
  Status durable(std::uint64_t epoch, const Hash128& digest) {
    pb::Durable message;
    message.set_epoch(epoch);
    message.set_digest(hash_to_bytes(digest));
    return say(FrameType::durable, message);
  }
  static pb::OpenEpoch open(std::uint64_t epoch, std::uint64_t blocks, Hash128 sum = {1, 2}) {
    pb::OpenEpoch open;
    open.set_number(epoch);
    open.set_kind(pb::INITIAL);
    open.set_blocks(blocks);
    open.set_sum(hash_to_bytes(sum));
    return open;
  }
  void expect_code(const Status& status, Code code) {
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, code) << status.error().message();
  }
};

TEST_F(AgentSessionTest, WishesBeforeWelcomeHaveNoEffect) {
  EXPECT_FALSE(agent->session.ready());
  expect_code(begin(1), Code::unavailable);
  expect_code(agent->session.open_disk(disk_request("vda")), Code::unavailable);
  EXPECT_EQ(agent->sent, std::vector<FrameType>{FrameType::hello});
}

TEST_F(AgentSessionTest, WelcomeComesFirstAndOnceAndInOrder) {
  expect_code(say(FrameType::pong, pb::Pong()), Code::protocol);
  connect();
  ASSERT_TRUE(say(FrameType::welcome, welcome()));
  expect_code(say(FrameType::welcome, welcome()), Code::protocol);
  number = 5;
  expect_code(say(FrameType::pong, pb::Pong()), Code::protocol);
}

TEST_F(AgentSessionTest, AServerOfTheFutureIsUnsupported) {
  pb::Welcome future = welcome();
  future.set_protocol_version(2);
  expect_code(say(FrameType::welcome, future), Code::unsupported);
}

TEST_F(AgentSessionTest, ARefusalAndARedirectAreTold) {
  ASSERT_TRUE(say(FrameType::error, to_message({Code::quarantined, "web1", "its fingerprint changed", ""})));
  ASSERT_EQ(agent->errors.size(), 1u);
  EXPECT_EQ(agent->errors[0].code, Code::quarantined);
  EXPECT_TRUE(agent->session.closed());
  connect();
  pb::Welcome elsewhere;
  elsewhere.set_protocol_version(1);
  elsewhere.set_redirect("other.example:7443");
  ASSERT_TRUE(say(FrameType::welcome, elsewhere));
  EXPECT_EQ(agent->welcomes, 1);
  EXPECT_FALSE(agent->session.ready());
  EXPECT_EQ(agent->session.welcome().redirect(), "other.example:7443");
}

TEST_F(AgentSessionTest, WhatOnlyAnAgentSendsIsRefused) {
  ASSERT_TRUE(say(FrameType::welcome, welcome()));
  for (const FrameType type : {FrameType::hello, FrameType::blocks, FrameType::epoch_commit, FrameType::enroll_reply}) {
    expect_code(frame(type, {}), Code::protocol);
  }
}

TEST_F(AgentSessionTest, ADurableThatWasMissedIsAdopted) {
  connect({EpochNumber(3), {3, 3}, std::nullopt, {{EpochNumber(4), {4, 4}}, {EpochNumber(5), {5, 5}}}});
  ASSERT_TRUE(say(FrameType::welcome, welcome(4, {4, 4})));
  EXPECT_TRUE(agent->alarms.empty());
  EXPECT_EQ(agent->durable, std::vector<EpochNumber>{EpochNumber(4)});
  EXPECT_EQ(agent->session.memory().durable_epoch, EpochNumber(4));
  EXPECT_FALSE(agent->session.adopted_unknown());
  EXPECT_TRUE(begin(5, pb::DELTA));
}

TEST_F(AgentSessionTest, ANewerEpochThatItNeverSentIsAdoptedAndSaidSo) {
  connect({EpochNumber(3), {3, 3}, std::nullopt, {}});
  ASSERT_TRUE(say(FrameType::welcome, welcome(4, {4, 4})));
  EXPECT_TRUE(agent->alarms.empty());
  EXPECT_TRUE(agent->session.adopted_unknown());
}

TEST_F(AgentSessionTest, AServerThatKnowsLessOrOtherIsAnAlarmAndOnlyARescanGoesOn) {
  struct Case {
    std::uint64_t durable;
    Hash128 digest;
  };
  for (const Case& other : {Case{5, {5, 5}}, Case{7, {7, 8}}, Case{0, {}}}) {
    const AgentMemory memory{EpochNumber(7), {7, 7}, std::nullopt, {}};
    connect(memory);
    ASSERT_TRUE(say(FrameType::welcome, welcome(other.durable, other.digest)));
    ASSERT_EQ(agent->alarms.size(), 1u);
    EXPECT_EQ(agent->alarms[0].code, Code::history_diverged);
    EXPECT_TRUE(agent->session.ready());
    EXPECT_TRUE(agent->session.diverged());
    EXPECT_EQ(agent->session.memory().durable_epoch, EpochNumber(7)) << "kept until a rescan is durable";
    EXPECT_EQ(agent->session.next_epoch(), EpochNumber(8)) << "past everything ever acknowledged";
    expect_code(agent->session.unchanged(kStart), other.durable == 0 ? Code::invalid_argument : Code::history_diverged);
    expect_code(begin(8, pb::DELTA), other.durable == 0 ? Code::invalid_argument : Code::history_diverged);
    ASSERT_TRUE(begin(8, other.durable == 0 ? pb::INITIAL : pb::RESCAN));
    ASSERT_TRUE(agent->session.commit_epoch(kStart, pb::CRASH));
    EXPECT_FALSE(agent->session.diverged());
    const Hash128 digest = epoch_digest(other.digest, EpochNumber(8), kStart, pb::CRASH, {});
    ASSERT_TRUE(durable(8, digest));
    EXPECT_EQ(agent->session.memory().durable_epoch, EpochNumber(8));
    EXPECT_EQ(agent->session.memory().durable_digest, digest);
  }
}

TEST_F(AgentSessionTest, AnotherContentThanWasSentUnderANumberIsAnAlarm) {
  connect({EpochNumber(3), {3, 3}, std::nullopt, {{EpochNumber(4), {4, 4}}}});
  ASSERT_TRUE(say(FrameType::welcome, welcome(4, {4, 9})));
  EXPECT_EQ(agent->alarms.size(), 1u);
}

TEST_F(AgentSessionTest, AnInitialSyncResumesWithTheServersSum) {
  connect({{}, {}, open(1, 10), {}});
  pb::Welcome resume = welcome();
  *resume.mutable_open_epoch() = open(1, 12, {7, 7});
  resume.set_next_epoch(2);
  ASSERT_TRUE(say(FrameType::welcome, resume));
  EXPECT_TRUE(agent->alarms.empty());
  ASSERT_TRUE(agent->session.resumable_epoch());
  expect_code(begin(2), Code::invalid_argument);
  expect_code(agent->session.open_disk(disk_request("vdb")), Code::invalid_argument);
  ASSERT_TRUE(begin(1));
  EXPECT_EQ(agent->session.open_content(), (EpochContent{12, {7, 7}}));
}

TEST_F(AgentSessionTest, LessOfAnInitialSyncThanWasAcknowledgedIsAnAlarmAndItIsAborted) {
  auto positioned = open(1, 10);
  auto* position = positioned.add_positions();
  position->set_granule(100);
  auto behind = positioned;
  behind.mutable_positions(0)->set_granule(99);
  behind.set_blocks(11);
  for (const auto& has : {std::optional(open(1, 9)), std::optional(open(1, 10, {9, 9})), std::optional(open(2, 50)),
                          std::optional<pb::OpenEpoch>(), std::optional(behind)}) {
    connect({{}, {}, positioned, {}});
    pb::Welcome resume = welcome();
    if (has) *resume.mutable_open_epoch() = *has;
    resume.set_next_epoch(5);
    ASSERT_TRUE(say(FrameType::welcome, resume));
    EXPECT_EQ(agent->alarms.size(), 1u);
    EXPECT_FALSE(agent->session.resumable_epoch());
    EXPECT_EQ(std::count(agent->sent.begin(), agent->sent.end(), FrameType::epoch_abort), has ? 1 : 0);
    EXPECT_TRUE(begin(5));
  }
}

TEST_F(AgentSessionTest, AcknowledgementsAreCheckedAgainstWhatWasSent) {
  const auto prepare = [&] {
    connect({EpochNumber(3), {3, 3}, std::nullopt, {}});
    ASSERT_TRUE(say(FrameType::welcome, welcome(3, {3, 3})));
    ASSERT_TRUE(begin(4, pb::DELTA));
    ASSERT_TRUE(blocks());
    ASSERT_TRUE(agent->session.commit_epoch(kStart, pb::CRASH));
  };
  prepare();
  expect_code(durable(5, {1, 1}), Code::protocol);  // never committed
  prepare();
  expect_code(durable(4, {1, 1}), Code::protocol);  // other content
  prepare();
  expect_code(durable(2, {2, 2}), Code::protocol);  // less than before
  prepare();
  expect_code(durable(3, {3, 4}), Code::protocol);  // changed its mind
  prepare();
  const Hash128 digest = agent->session.memory().unacknowledged.at(0).digest;
  EXPECT_TRUE(durable(4, digest));
  EXPECT_TRUE(agent->session.memory().unacknowledged.empty());
}

TEST_F(AgentSessionTest, ProgressOfTheOpenEpochIsRememberedAndChecked) {
  ASSERT_TRUE(say(FrameType::welcome, welcome()));
  ASSERT_TRUE(begin(1));
  ASSERT_TRUE(blocks(0));
  const EpochContent one = agent->session.open_content();
  ASSERT_TRUE(blocks(1));
  pb::Durable message;
  *message.mutable_open_epoch() = open(1, one.blocks, one.sum);
  ASSERT_TRUE(say(FrameType::durable, message));
  ASSERT_EQ(agent->progress.size(), 1u);
  EXPECT_EQ(agent->session.memory().open_epoch->blocks(), 1u);
  *message.mutable_open_epoch() = open(1, 3);
  expect_code(say(FrameType::durable, message), Code::protocol);  // more than was sent
  *message.mutable_open_epoch() = open(1, 0);
  expect_code(say(FrameType::durable, message), Code::protocol);  // less than before
  *message.mutable_open_epoch() = open(1, 2, {9, 9});
  expect_code(say(FrameType::durable, message), Code::protocol);  // something else
  *message.mutable_open_epoch() = open(8, 2, {9, 9});
  EXPECT_TRUE(say(FrameType::durable, message)) << "of an epoch that is not open any more: the two crossed";
}

TEST_F(AgentSessionTest, EpochsArePipelinedUpToSixteenUnacknowledgedCommits) {
  ASSERT_TRUE(say(FrameType::welcome, welcome(3, {3, 3})));
  for (std::uint64_t epoch = 4; epoch < 20; ++epoch) {
    ASSERT_TRUE(begin(epoch, pb::DELTA));
    ASSERT_TRUE(agent->session.commit_epoch(kStart, pb::CRASH));
  }
  ASSERT_TRUE(begin(20, pb::DELTA));
  expect_code(agent->session.commit_epoch(kStart, pb::CRASH), Code::busy);
  expect_code(agent->session.unchanged(kStart), Code::invalid_argument);
  ASSERT_TRUE(durable(4, agent->session.memory().unacknowledged.front().digest));
  EXPECT_TRUE(agent->session.commit_epoch(kStart, pb::CRASH));
  expect_code(agent->session.unchanged(kStart), Code::busy);
}

TEST_F(AgentSessionTest, CreditIsNeverOverdrawn) {
  pb::Welcome poor = welcome();
  poor.set_credit(100);
  ASSERT_TRUE(say(FrameType::welcome, poor));
  expect_code(agent->session.send_blocks(DiskId(0), Bytes(10), {}), Code::invalid_argument);  // no epoch
  ASSERT_TRUE(begin(1));
  ASSERT_TRUE(blocks(0));
  expect_code(blocks(1), Code::busy);
  EXPECT_EQ(agent->session.open_content().blocks, 1u);
  pb::Credit credit;
  credit.set_bytes(1000);
  ASSERT_TRUE(say(FrameType::credit, credit));
  EXPECT_TRUE(blocks(1));
  credit.set_bytes(UINT32_MAX);
  expect_code(say(FrameType::credit, credit), Code::protocol);
}

TEST_F(AgentSessionTest, AnswersThatNobodyAskedForAreRefused) {
  const auto refuses = [&](FrameType type, const google::protobuf::MessageLite& message) {
    connect();
    ASSERT_TRUE(say(FrameType::welcome, welcome()));
    expect_code(say(type, message), Code::protocol);
  };
  pb::DiskOpened opened;
  opened.set_identity("serial-vdb");
  opened.set_size(1);
  refuses(FrameType::disk_opened, opened);
  pb::EpochBegun begun;
  begun.set_number(1);
  refuses(FrameType::epoch_begun, begun);
  pb::DigestReply digests;
  digests.set_sha256(std::string(32, 's'));
  refuses(FrameType::digest_reply, digests);
  pb::RenewReply renewed;
  renewed.set_certificate_pem("pem");
  refuses(FrameType::renew_reply, renewed);
}

TEST_F(AgentSessionTest, DisksAreOpenedBetweenEpochsAndAnsweredInOrder) {
  ASSERT_TRUE(say(FrameType::welcome, welcome()));
  ASSERT_TRUE(agent->session.open_disk(disk_request("vdb")));
  expect_code(begin(1), Code::busy);
  pb::DiskOpened opened;
  opened.set_disk(1);
  opened.set_identity("serial-vdb");
  opened.set_size(1_GiB);
  ASSERT_TRUE(say(FrameType::disk_opened, opened));
  ASSERT_EQ(agent->session.disks().size(), 2u);
  EXPECT_EQ(agent->session.disks()[1].name(), "vdb");
  ASSERT_TRUE(begin(1));
  expect_code(agent->session.open_disk(disk_request("vdb", 2_GiB)), Code::invalid_argument);
  EXPECT_TRUE(agent->session.open_disk(disk_request("vdb")));
  ASSERT_TRUE(agent->session.abort_epoch("a disk grew"));
  EXPECT_TRUE(agent->session.open_disk(disk_request("vdb", 2_GiB)));
}

TEST_F(AgentSessionTest, TextsAreCleanedBeforeTheyAreSent) {
  ASSERT_TRUE(say(FrameType::welcome, welcome()));
  pb::Progress progress;
  progress.set_cause(std::string(5000, '\n'));
  agent->session.progress(progress);
  agent->session.goodbye("so\x1b[31m long");
  EXPECT_TRUE(agent->session.closed());
  Store store;
  Server server(store, clock);
  HeapPayloadPool pool(1_MiB);
  Inbox inbox(pool);
  const Status status = inbox.deliver(agent->out, SIZE_MAX, server.session);
  EXPECT_TRUE(status) << status.error().message();
  EXPECT_TRUE(server.session.closed());
}

TEST_F(AgentSessionTest, ResendIsHandedOnAndNonsenseRefused) {
  ASSERT_TRUE(say(FrameType::welcome, welcome()));
  pb::Resend resend;
  auto* range = resend.add_ranges();
  range->set_disk(3);
  range->set_first_granule(16);
  range->set_granules(16);
  ASSERT_TRUE(say(FrameType::resend, resend));
  ASSERT_TRUE(say(FrameType::resend, pb::Resend{})) << "nothing is wanted any more";
  ASSERT_EQ(agent->resends.size(), 2U);
  EXPECT_EQ(agent->resends[0].ranges(0).first_granule(), 16U);
  range->set_granules(0);
  const auto refused = say(FrameType::resend, resend);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::protocol);
}

TEST_F(AgentSessionTest, ThrottleIsHandedOnAndOneWithoutEndRefused) {
  ASSERT_TRUE(say(FrameType::welcome, welcome()));
  pb::Throttle throttle;
  throttle.set_pause_ms(3000);
  throttle.set_reason("the staging disk is slow");
  ASSERT_TRUE(say(FrameType::throttle, throttle));
  ASSERT_TRUE(say(FrameType::throttle, pb::Throttle{}));
  ASSERT_EQ(agent->throttles.size(), 2U);
  EXPECT_EQ(agent->throttles[0], std::make_pair(3000U, std::string("the staging disk is slow")));
  EXPECT_EQ(agent->throttles[1].first, 0U) << "it may go on";
  throttle.set_pause_ms(kThrottlePauseMaxMs + 1);
  const auto refused = say(FrameType::throttle, throttle);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::protocol);
}

}  // namespace
}  // namespace tidemark::wire
