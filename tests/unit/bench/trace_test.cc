#include "bench/load/trace.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

namespace tidemark::bench {
namespace {

class TraceFile : public ::testing::Test {
 protected:
  TraceFile() { EXPECT_NE(::mkdtemp(directory_.data()), nullptr); }
  ~TraceFile() override { std::filesystem::remove_all(directory_); }
  Result<Trace> load(const std::string& bytes) {
    std::ofstream(directory_ + "/t", std::ios::binary) << bytes;
    return load_vscsi(directory_ + "/t");
  }
  static std::string record(std::uint64_t time_us, std::uint64_t sector, std::uint32_t length,
                            std::uint16_t command = 0x2a) {
    std::string bytes(32, '\0');
    const std::uint16_t version = 0x100;
    std::memcpy(bytes.data() + 4, &length, 4);
    std::memcpy(bytes.data() + 12, &command, 2);
    std::memcpy(bytes.data() + 14, &version, 2);
    std::memcpy(bytes.data() + 16, &sector, 8);
    std::memcpy(bytes.data() + 24, &time_us, 8);
    return bytes;
  }
  std::string directory_ = std::filesystem::temp_directory_path() / "trace-XXXXXX";
};

TEST_F(TraceFile, WritesAreWidenedToGranulesAndPutInOrder) {
  const auto trace = load(record(900, 15, 1024) + record(500, 8, 4096, 0x28) + record(700, 0, 512));
  ASSERT_TRUE(trace) << trace.error().message();
  ASSERT_EQ(trace->writes.size(), 2u);
  EXPECT_EQ(trace->writes[0].time_us, 200u);
  EXPECT_EQ(trace->writes[0].granules, 1u);
  EXPECT_EQ(trace->writes[1].time_us, 400u);
  EXPECT_EQ(trace->writes[1].first_granule, 1u);
  EXPECT_EQ(trace->writes[1].granules, 2u);
  EXPECT_EQ(trace->disk_granules, std::vector<std::uint64_t>{3});
  EXPECT_EQ(trace->duration_us, 401u);
}

TEST_F(TraceFile, WhatIsNoTraceIsRefusedWithTheRecordThatShowsIt) {
  const auto refused = [&](const std::string& bytes) {
    const auto trace = load(bytes);
    return trace ? std::string("taken") : trace.error().what;
  };
  EXPECT_EQ(refused(""), "the trace is empty");
  EXPECT_NE(refused(record(1, 0, 512) + "half a record").find("cut off within record 1"), std::string::npos);
  EXPECT_NE(refused(record(1, 0, 512) + std::string(32, '\xff')).find("record 1 is none"), std::string::npos);
  EXPECT_NE(refused(record(1, 0, 512, 0x28)).find("no writes"), std::string::npos);
  EXPECT_FALSE(load_vscsi(directory_ + "/none"));
}

TEST(SyntheticTrace, StaysOnItsDisksAndFollowsFromTheSeed) {
  const SyntheticShape shape{.disks = 2, .disk_granules = 4096, .bytes = 8 << 20};
  const Trace trace = synthetic_trace(3, shape);
  for (const TraceWrite& write : trace.writes) {
    EXPECT_LT(write.disk, 2u);
    EXPECT_LE(write.first_granule + write.granules, shape.disk_granules);
    EXPECT_LT(write.time_us, trace.duration_us);
  }
  EXPECT_EQ(trace.writes.size(), synthetic_trace(3, shape).writes.size());
}

}  // namespace
}  // namespace tidemark::bench
