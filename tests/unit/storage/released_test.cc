#include "storage/released.h"

#include <gtest/gtest.h>

namespace tidemark::storage {
namespace {

SegmentHeader header(std::uint64_t segment, std::uint64_t predecessor, std::uint64_t first_lsn) {
  SegmentHeader header{};
  header.segment = segment;
  header.predecessor = predecessor;
  header.predecessor_end = predecessor * 4096;
  header.predecessor_checksum = predecessor + 1000;
  header.first_lsn = first_lsn;
  header.incarnation = segment;
  return header;
}

TEST(Released, NeighboursAreToldOfByOneHeader) {
  Released released;
  released.begin = SegmentId(2);
  // 2 stays; 3, 5 and 6 went (4 was never of the chain); 7 stays; 8 went.
  released.segments = {header(8, 7, 80), header(5, 3, 50), header(3, 2, 30), header(6, 5, 60)};
  released.join_neighbours();
  ASSERT_EQ(released.segments.size(), 2u);
  const SegmentHeader& run = released.segments[0];
  EXPECT_EQ(run.segment, 6u);
  EXPECT_EQ(run.predecessor, 2u);
  EXPECT_EQ(run.predecessor_end, 2u * 4096);
  EXPECT_EQ(run.predecessor_checksum, 1002u);
  EXPECT_EQ(run.first_lsn, 30u);
  EXPECT_EQ(run.incarnation, 6u);
  EXPECT_EQ(released.segments[1].segment, 8u);
  for (const std::uint64_t gone : {1, 3, 5, 6, 8}) EXPECT_TRUE(released.tells_of(SegmentId(gone))) << gone;
  for (const std::uint64_t there : {2, 7, 9}) EXPECT_FALSE(released.tells_of(SegmentId(there))) << there;
}

TEST(Released, RunsThatMeetBecomeOne) {
  Released released;
  released.begin = SegmentId(1);
  released.segments = {header(3, 2, 30), header(2, 1, 20), header(5, 4, 50), header(6, 5, 60)};
  released.join_neighbours();
  ASSERT_EQ(released.segments.size(), 2u);
  released.segments.push_back(header(4, 3, 40));
  released.join_neighbours();
  ASSERT_EQ(released.segments.size(), 1u);
  EXPECT_EQ(released.segments[0].segment, 6u);
  EXPECT_EQ(released.segments[0].first_lsn, 20u);
  const auto decoded = decode_released(encode_released(released), "released");
  ASSERT_TRUE(decoded);
  EXPECT_EQ(decoded->segments.size(), 1u);
}

}  // namespace
}  // namespace tidemark::storage
