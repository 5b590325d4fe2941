#include "nbd/handshake.h"

#include <gtest/gtest.h>

namespace tidemark::nbd {
namespace {

class HandshakeTest : public testing::Test {
 protected:
  Handshake::Step feed(Handshake& handshake, const std::string& bytes, std::size_t piece = 1) {
    auto step = Handshake::Step::need_input;
    for (std::size_t at = 0; at < bytes.size() && step == Handshake::Step::need_input; at += piece) {
      auto input = std::as_bytes(std::span(bytes)).subspan(at, std::min(piece, bytes.size() - at));
      step = handshake.step(input);
    }
    return step;
  }
  static std::string flags(std::uint32_t value = kFixedNewstyle | kNoZeroes) {
    std::string bytes;
    put_big(bytes, value);
    return bytes;
  }
  static std::string option(Option code, const std::string& data = {}) {
    std::string bytes;
    put_big(bytes, kOptionMagic);
    put_big(bytes, static_cast<std::uint32_t>(code));
    put_big(bytes, static_cast<std::uint32_t>(data.size()));
    return bytes + data;
  }
  static std::string named(const std::string& name) {
    std::string bytes;
    put_big(bytes, static_cast<std::uint32_t>(name.size()));
    return bytes + name;
  }
  static std::string go(const std::string& name) { return named(name) + std::string(2, '\0'); }
  static std::string contexts(const std::string& name, const std::string& context) {
    std::string bytes = named(name);
    put_big(bytes, std::uint32_t{1});
    return bytes + named(context);
  }
  // The kinds of the replies, in order.
  static std::vector<OptionReply> kinds(const std::string& output) {
    std::vector<OptionReply> all;
    for (std::size_t at = 0; at + 20 <= output.size();) {
      const auto* bytes = reinterpret_cast<const std::byte*>(output.data()) + at;
      EXPECT_EQ(get_big<std::uint64_t>(bytes), kOptionReplyMagic);
      all.push_back(static_cast<OptionReply>(get_big<std::uint32_t>(bytes + 12)));
      at += 20 + get_big<std::uint32_t>(bytes + 16);
    }
    return all;
  }
  const ExportInfo info_{.size = 1_MiB, .read_only = false, .name = "a/b@epoch:1", .description = "d"};
};

using Kinds = std::vector<OptionReply>;
using Step = Handshake::Step;

TEST_F(HandshakeTest, GoesToTransmissionByteByByte) {
  Handshake handshake(Handshake::Tls::none);
  EXPECT_EQ(handshake.output().size(), 18U);
  EXPECT_EQ(feed(handshake, flags() + option(Option::structured_reply) +
                                option(Option::set_meta_context, contexts("a/b", kAllocation)) +
                                option(Option::go, go("a/b"))),
            Step::find);
  EXPECT_EQ(kinds(handshake.output()), (Kinds{OptionReply::ack, OptionReply::meta_context, OptionReply::ack}));
  EXPECT_EQ(handshake.name(), "a/b");
  EXPECT_TRUE(handshake.found(info_));
  EXPECT_TRUE(handshake.structured());
  EXPECT_TRUE(handshake.allocation());
  EXPECT_EQ(kinds(handshake.output()), (Kinds{OptionReply::info, OptionReply::info, OptionReply::ack}));
}

TEST_F(HandshakeTest, TellsNothingBeforeTls) {
  Handshake handshake(Handshake::Tls::required);
  handshake.output();
  EXPECT_EQ(feed(handshake, flags() + option(Option::list) + option(Option::go, go("a/b")) + option(Option::starttls)),
            Step::start_tls);
  EXPECT_EQ(kinds(handshake.output()), (Kinds{OptionReply::tls_required, OptionReply::tls_required, OptionReply::ack}));
  Handshake old(Handshake::Tls::required);
  EXPECT_EQ(feed(old, flags() + option(Option::export_name, "a/b")), Step::close);
}

TEST_F(HandshakeTest, ContextsOfAnotherExportDoNotCount) {
  Handshake handshake(Handshake::Tls::none);
  feed(handshake, flags() + option(Option::structured_reply) +
                      option(Option::set_meta_context, contexts("other", kAllocation)) + option(Option::go, go("a/b")));
  EXPECT_TRUE(handshake.found(info_));
  EXPECT_FALSE(handshake.allocation());
}

TEST_F(HandshakeTest, WhatIsWrongIsAnsweredAndTheRestGoesOn) {
  Handshake handshake(Handshake::Tls::none);
  feed(handshake, flags());
  handshake.output();
  std::string too_long;  // says that it has 2 GiB of names
  put_big(too_long, std::uint32_t{1} << 31);
  EXPECT_EQ(feed(handshake, option(static_cast<Option>(77)) + option(Option::go, too_long) +
                                option(Option::set_meta_context, contexts("a", kAllocation)) +
                                option(Option::list, "data") + option(Option::starttls) +
                                option(Option::info, std::string(100'000, 'x')) + option(Option::list)),
            Step::list);
  EXPECT_EQ(kinds(handshake.output()), (Kinds{OptionReply::unsupported, OptionReply::invalid, OptionReply::invalid,
                                              OptionReply::invalid, OptionReply::policy, OptionReply::too_big}));
  handshake.listed({});
  EXPECT_EQ(feed(handshake, option(Option::info, go("a/b"))), Step::find);
  handshake.output();
  EXPECT_FALSE(handshake.found(info_));
  EXPECT_EQ(feed(handshake, option(Option::go, go("a/b"))), Step::find);
  handshake.output();
  handshake.refused({Code::not_found, "a/b", "no", {}});
  EXPECT_EQ(kinds(handshake.output()), Kinds{OptionReply::unknown});
  EXPECT_EQ(feed(handshake, option(Option::abort)), Step::close);
}

TEST_F(HandshakeTest, GarbageEndsIt) {
  Handshake strange(Handshake::Tls::none);
  EXPECT_EQ(feed(strange, flags(8)), Step::close);
  Handshake garbage(Handshake::Tls::none);
  EXPECT_EQ(feed(garbage, flags() + std::string(16, 'x')), Step::close);
  Handshake endless(Handshake::Tls::none);
  std::string many = flags();
  for (unsigned i = 0; i <= Handshake::kOptionsMax; ++i) many += option(Option::structured_reply);
  EXPECT_EQ(feed(endless, many, 4096), Step::close);
}

TEST_F(HandshakeTest, TheOldWayIsAnsweredAsItWas) {
  Handshake handshake(Handshake::Tls::none);
  handshake.output();
  EXPECT_EQ(feed(handshake, flags(kFixedNewstyle) + option(Option::export_name, "a/b")), Step::find);
  EXPECT_TRUE(handshake.found(info_));
  EXPECT_EQ(handshake.output().size(), 8U + 2 + 124);
}

}  // namespace
}  // namespace tidemark::nbd
