#include "wire/frame_assembler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/random.h"
#include "wire/messages.h"

namespace tidemark::wire {
namespace {

std::vector<std::byte> frame_of(FrameType type, std::uint64_t number, std::size_t payload_size) {
  std::vector<std::byte> bytes(limits::kFrameHeaderSize + payload_size, static_cast<std::byte>(number));
  encode({type, static_cast<std::uint32_t>(payload_size), DiskId(0), number},
         std::span(bytes).first<limits::kFrameHeaderSize>());
  return bytes;
}

// Feeds as much as is taken; how much that was.
std::size_t feed(FrameAssembler& assembler, std::span<const std::byte> bytes, std::size_t piece_max = SIZE_MAX) {
  std::size_t fed = 0;
  while (fed < bytes.size()) {
    const auto space = assembler.space();
    if (space.empty()) break;
    const std::size_t piece = std::min({space.size(), bytes.size() - fed, piece_max});
    std::memcpy(space.data(), bytes.data() + fed, piece);
    EXPECT_TRUE(assembler.filled(piece));
    fed += piece;
  }
  return fed;
}

TEST(FrameAssembler, FramesComeOutWholeWhateverThePieces) {
  SCOPED_TRACE("seed 7");
  Random random(7);
  HeapPayloadPool pool(limits::kFramePayloadMax);
  FrameAssembler assembler(pool);
  for (std::uint64_t number = 0; number < 300; ++number) {
    const std::size_t sizes[] = {0, 1, FrameAssembler::kInlinePayload, FrameAssembler::kInlinePayload + 1,
                                 random.below(limits::kFramePayloadMax)};
    const std::size_t size = number == 0 ? limits::kFramePayloadMax : sizes[random.below(5)];
    const auto bytes = frame_of(FrameType::blocks, number, size);
    ASSERT_EQ(feed(assembler, bytes, 1 + random.below(40'000)), bytes.size());
    const auto frame = assembler.frame();
    ASSERT_TRUE(frame);
    EXPECT_EQ(frame->header.number, number);
    ASSERT_TRUE(std::equal(frame->payload.begin(), frame->payload.end(), bytes.begin() + limits::kFrameHeaderSize,
                           bytes.end()));
    EXPECT_TRUE(assembler.space().empty()) << "nothing of the next frame before this one is consumed";
    assembler.consume();
    EXPECT_EQ(pool.bytes_used(), 0u);
  }
}

TEST(FrameAssembler, AnIdleOneAndSmallFramesHoldNoBuffer) {
  HeapPayloadPool pool(0);
  FrameAssembler assembler(pool);
  EXPECT_FALSE(assembler.in_frame());
  const auto bytes = frame_of(FrameType::ping, 0, FrameAssembler::kInlinePayload);
  EXPECT_EQ(feed(assembler, std::span(bytes).first(40)), 40u);
  EXPECT_TRUE(assembler.in_frame());
  EXPECT_EQ(feed(assembler, std::span(bytes).subspan(40)), bytes.size() - 40);
  EXPECT_TRUE(assembler.frame());
  EXPECT_FALSE(assembler.in_frame());
}

TEST(FrameAssembler, PausesWhileThePoolIsExhaustedAndGoesOnAfterwards) {
  HeapPayloadPool pool(100'000);
  const auto bytes = frame_of(FrameType::blocks, 0, 60'000);
  FrameAssembler second(pool);
  {
    FrameAssembler first(pool);
    EXPECT_EQ(feed(first, std::span(bytes).first(50'000)), 50'000u);
    EXPECT_EQ(feed(second, bytes), limits::kFrameHeaderSize);
    EXPECT_TRUE(second.waits_for_pool());
    EXPECT_FALSE(second.frame());
  }  // the first session dies in the middle of its frame
  EXPECT_EQ(feed(second, std::span(bytes).subspan(limits::kFrameHeaderSize)), 60'000u);
  EXPECT_FALSE(second.waits_for_pool());
  EXPECT_TRUE(second.frame());
}

TEST(FrameAssembler, AMalformedHeaderEndsIt) {
  HeapPayloadPool pool(0);
  FrameAssembler assembler(pool);
  auto bytes = frame_of(FrameType::ping, 0, 0);
  bytes[9] = std::byte{1};
  std::memcpy(assembler.space().data(), bytes.data(), bytes.size());
  const auto filled = assembler.filled(bytes.size());
  ASSERT_FALSE(filled);
  EXPECT_EQ(filled.error().code, Code::protocol);
  EXPECT_TRUE(assembler.space().empty());
  EXPECT_FALSE(assembler.frame());
}

}  // namespace
}  // namespace tidemark::wire
