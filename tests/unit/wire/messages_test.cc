#include "wire/messages.h"

#include <gtest/gtest.h>

#include <cstring>

namespace tidemark::wire {
namespace {

TEST(Messages, AFrameComesBackAsTheMessageItWas) {
  pb::EpochAbort abort;
  abort.set_number(7);
  abort.set_reason("the disk went away");
  const auto frame = encode_control_frame(FrameType::epoch_abort, 12, abort);
  ASSERT_TRUE(frame);
  const auto header = decode_frame_header(std::span(*frame).first<limits::kFrameHeaderSize>());
  ASSERT_TRUE(header);
  EXPECT_EQ(header->number, 12u);
  const auto payload = std::span<const std::byte>(*frame).subspan(limits::kFrameHeaderSize);
  const auto back = decode<pb::EpochAbort>(FrameType::epoch_abort, payload);
  ASSERT_TRUE(back) << back.error().message();
  EXPECT_EQ(back->reason(), abort.reason());
}

TEST(Messages, OneThatDoesNotFitAFrameIsRefusedByTheSender) {
  pb::EpochAbort abort;
  abort.set_reason(std::string(limits::kControlPayloadMax, 'x'));
  EXPECT_FALSE(encode_control_frame(FrameType::epoch_abort, 0, abort));
}

TEST(Messages, MalformedBytesAndForeignTextAreNamed) {
  const auto decodes = [](std::string_view bytes) {
    return decode<pb::EpochAbort>(FrameType::epoch_abort, std::as_bytes(std::span(bytes)));
  };
  const auto broken = decodes("\x0a\xff");
  ASSERT_FALSE(broken);
  EXPECT_EQ(broken.error().code, Code::protocol);
  EXPECT_EQ(broken.error().object, "EpochAbort");
  EXPECT_FALSE(decodes("\x08\x01\x12\x02\xff\xfe")) << "a text that is not UTF-8";
  EXPECT_TRUE(decodes("\x08\x01\x12\x02ok"));
  EXPECT_TRUE(decodes("\x08\x01\x12\x02ok\xa2\x06\x01z")) << "a field of the future is ignored";
}

TEST(Messages, HashesTravelLowHalfFirstLittleEndian) {
  const Hash128 hash{0x0807060504030201, 0x100f0e0d0c0b0a09};
  const std::string bytes = hash_to_bytes(hash);
  for (std::size_t i = 0; i < bytes.size(); ++i) EXPECT_EQ(bytes[i], static_cast<char>(i + 1));
  EXPECT_EQ(*hash_from_bytes(bytes), hash);
  EXPECT_FALSE(hash_from_bytes(bytes.substr(1)));
  EXPECT_FALSE(hash_from_bytes(""));
}

TEST(Messages, AnyErrorCanBeSentAndComesBackInBounds) {
  const Error error{Code::no_space, std::string("\xff\n\x1b[31m"), std::string(5000, 'w'), "free \xc3\xa4 disk"};
  const pb::Error message = to_message(error);
  EXPECT_TRUE(check(message));
  const Error back = from_message(message);
  EXPECT_EQ(back.code, Code::no_space);
  EXPECT_EQ(back.object, "?  [31m");
  EXPECT_EQ(back.what.size(), limits::kTextLengthMax);
  EXPECT_EQ(back.remedy, "free \xc3\xa4 disk");
  pb::Error foreign;
  foreign.set_code(4'000'000'000);
  EXPECT_EQ(from_message(foreign).code, Code::internal);
}

TEST(Messages, TextIsCutAtTheEdgeOfACharacter) {
  std::string text(limits::kTextLengthMax - 1, 'a');
  text += "\xc3\xa4";
  const std::string clean = clean_text(text);
  EXPECT_EQ(clean.size(), limits::kTextLengthMax - 1);
  EXPECT_TRUE(valid_text(clean));
}

TEST(Messages, NamesThatCouldBecomeFilesOrLogLinesAreBounded) {
  EXPECT_TRUE(valid_machine_name("web1.example-x_2"));
  for (const char* name : {"", "-web", "web 1", "web/1", "web\n", "\xc3\xa4", "..", ".x"})
    EXPECT_FALSE(valid_machine_name(name)) << name;
  EXPECT_FALSE(valid_machine_name(std::string(65, 'a')));
  EXPECT_TRUE(valid_disk_name("my disk \xc3\xa4.img"));
  for (const char* name : {"", ".", "..", "a/b", "a\nb", "a\x7f", "\xff",
                           "\xc2\x9b"
                           "31m",
                           "\xed\xa0\x80", "\xc0\xaf"})
    EXPECT_FALSE(valid_disk_name(name)) << name;
}

TEST(Messages, AVersionOfTheFutureIsUnsupportedWithARemedy) {
  EXPECT_TRUE(check_version(kProtocolVersion, "agent"));
  const auto future = check_version(kProtocolVersion + 1, "agent");
  ASSERT_FALSE(future);
  EXPECT_EQ(future.error().code, Code::unsupported);
  EXPECT_NE(future.error().remedy.find("upgrade the server"), std::string::npos);
  EXPECT_EQ(check_version(0, "agent").error().code, Code::protocol);
}

template <typename Message>
void expect_refused(Message message, const char* why) {
  const auto checked = check(message);
  ASSERT_FALSE(checked) << why;
  EXPECT_EQ(checked.error().code, Code::protocol) << why;
}

TEST(Messages, FieldsOutOfTheirRangeAreRefused) {
  pb::EpochCommit commit;
  commit.set_number(1);
  commit.set_cut_time_us(1);
  commit.set_consistency(pb::CRASH);
  commit.set_digest(std::string(16, 'd'));
  ASSERT_TRUE(check(commit));
  auto bad = commit;
  bad.set_number(0), expect_refused(bad, "number 0");
  bad = commit, bad.set_number(UINT64_MAX), expect_refused(bad, "absurd number");
  bad = commit, bad.set_cut_time_us(-1), expect_refused(bad, "before 1970");
  bad = commit, bad.set_cut_time_us(INT64_MAX), expect_refused(bad, "absurd time");
  bad = commit, bad.set_digest("short"), expect_refused(bad, "short digest");
  bad = commit, bad.set_consistency(static_cast<pb::Consistency>(9)), expect_refused(bad, "unknown consistency");
  bad = commit, bad.clear_consistency(), expect_refused(bad, "no consistency");

  pb::EpochBegin begin;
  begin.set_number(1);
  begin.set_kind(pb::DELTA);
  expect_refused(begin, "no disks");
  for (int i = 0; i < 2; ++i) {
    auto* disk = begin.add_disks();
    disk->set_disk(static_cast<std::uint32_t>(i));
    disk->set_size(4096);
  }
  ASSERT_TRUE(check(begin));
  begin.mutable_disks(1)->set_disk(0);
  expect_refused(begin, "a disk twice");
  begin.mutable_disks(1)->set_disk(1);
  begin.mutable_disks(1)->set_size(limits::kDiskSizeMax + 1);
  expect_refused(begin, "too large a disk");
  begin.mutable_disks(1)->set_size(0);
  expect_refused(begin, "an empty disk");

  pb::DigestRequest digests;
  digests.set_epoch(1);
  digests.set_chunks(1024);
  ASSERT_TRUE(check(digests));
  digests.set_chunks(1025);
  expect_refused(digests, "too many chunks");
  digests.set_chunks(2);
  digests.set_first_chunk(UINT64_MAX);
  expect_refused(digests, "beyond any disk");

  pb::Hello hello;
  hello.set_fingerprint(std::string(32, 'f'));
  hello.set_boot_id(std::string(16, 'b'));
  ASSERT_TRUE(check(hello));
  hello.set_durable_digest(std::string(16, 'd'));
  expect_refused(hello, "a digest of nothing");
  hello.set_durable_epoch(1);
  ASSERT_TRUE(check(hello));
  hello.set_clock_us(-5);
  expect_refused(hello, "negative clock");
  hello.set_clock_us(5);
  hello.mutable_open_epoch()->set_number(2);
  expect_refused(hello, "an open epoch without kind");
}

}  // namespace
}  // namespace tidemark::wire
