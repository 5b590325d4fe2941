// The worked examples of docs/protocol.md are what the code makes.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>

#include "base/hex.h"
#include "wire/block.h"
#include "wire/messages.h"

namespace tidemark::wire {
namespace {

std::string document() {
  std::ifstream file(TIDEMARK_SOURCE_DIR "/docs/protocol.md");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  std::erase_if(text, [](char c) { return c == ' ' || c == '\n'; });
  return text;
}

void expect_in(const std::string& text, const std::string& hex, const char* what) {
  EXPECT_NE(text.find(hex), std::string::npos) << what << ": " << hex;
}

TEST(ProtocolExamples, AreWhatTheCodeMakes) {
  const std::string text = document();
  ASSERT_FALSE(text.empty());
  std::array<std::byte, MachineId::kSize> id;
  for (std::size_t i = 0; i < id.size(); ++i) id[i] = static_cast<std::byte>(i);

  BlockEncoder encoder(MachineId(id), 0);
  encoder.start(DiskId(1), EpochNumber(7));
  encoder.add(256, std::vector<std::byte>(limits::kGranuleSize, std::byte{0x5a}));
  const auto& payload = encoder.payload();
  expect_in(text, to_hex(std::span(payload).first(sizeof(BlockHeader))), "block header");

  std::array<std::byte, limits::kFrameHeaderSize> frame;
  encode({FrameType::blocks, static_cast<std::uint32_t>(payload.size()), DiskId(1), 3}, frame);
  expect_in(text, to_hex(frame), "frame header");

  std::array<std::byte, MachineId::kSize + 32> identity;
  std::memcpy(identity.data(), id.data(), id.size());
  std::memcpy(identity.data() + id.size(), payload.data(), 32);
  std::uint64_t seed = xxh3_64(identity);
  expect_in(text, to_hex(std::as_bytes(std::span(&seed, 1))), "seed of the block's hash");

  EpochContent content;
  content.add(encoder.summary());
  const std::string digest = hash_to_bytes(epoch_digest({}, EpochNumber(7), 1'700'000'000'000'000, pb::CRASH, content));
  expect_in(text, to_hex(std::as_bytes(std::span(digest.data(), digest.size()))), "epoch digest");
}

}  // namespace
}  // namespace tidemark::wire
