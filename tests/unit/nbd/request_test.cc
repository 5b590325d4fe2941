#include "nbd/request.h"

#include <gtest/gtest.h>

#include "nbd/export_name.h"

namespace tidemark::nbd {
namespace {

const ExportInfo kPoint{.size = 1_MiB, .read_only = true, .name = {}, .description = {}};
const ExportInfo kClone{.size = 1_MiB, .read_only = false, .name = {}, .description = {}};

Errno verdict(const Request& request, const ExportInfo& info, bool structured = true, bool allocation = true) {
  const auto refused = check_request(request, info, structured, allocation);
  return refused ? refused->error : Errno::none;
}

Request request(Command command, std::uint64_t offset, std::uint32_t length, std::uint16_t flags = 0) {
  return {.flags = flags, .command = command, .cookie = 9, .offset = offset, .length = length};
}

TEST(NbdRequest, IsReadBackAsItWasWritten) {
  std::string bytes;
  put_big(bytes, kRequestMagic);
  put_big(bytes, kFua);
  put_big(bytes, static_cast<std::uint16_t>(Command::write));
  put_big(bytes, std::uint64_t{0x1122334455667788});
  put_big(bytes, std::uint64_t{4096});
  put_big(bytes, std::uint32_t{512});
  const auto span = std::as_bytes(std::span(bytes)).first<kRequestSize>();
  const auto parsed = parse_request(span);
  ASSERT_TRUE(parsed);
  EXPECT_EQ(parsed->cookie, 0x1122334455667788U);
  EXPECT_EQ(parsed->offset, 4096U);
  EXPECT_EQ(parsed->payload(), 512U);
  EXPECT_TRUE(parsed->has(kFua));
  bytes[0] = 'x';
  EXPECT_FALSE(parse_request(std::as_bytes(std::span(bytes)).first<kRequestSize>()));
}

TEST(NbdRequest, WhatCannotBeIsRefused) {
  EXPECT_EQ(verdict(request(Command::read, 0, 1_MiB), kPoint), Errno::none);
  EXPECT_EQ(verdict(request(Command::read, 1, 1_MiB), kPoint), Errno::invalid);
  EXPECT_EQ(verdict(request(Command::read, ~0ULL, 4096), kPoint), Errno::invalid);
  EXPECT_EQ(verdict(request(Command::write, 0, 512), kPoint), Errno::not_permitted);
  EXPECT_EQ(verdict(request(Command::write, 1_MiB, 1), kClone), Errno::no_space);
  EXPECT_EQ(verdict(request(Command::write, 0, 512, kFua), kClone), Errno::none);
  EXPECT_EQ(verdict(request(Command::write, 0, 512, kNoHole), kClone), Errno::invalid);
  EXPECT_EQ(verdict(request(Command::read, 0, 512, kDf), kPoint, false), Errno::invalid);
  EXPECT_EQ(verdict(request(Command::block_status, 0, 512), kPoint, true, false), Errno::invalid);
  EXPECT_EQ(verdict(request(static_cast<Command>(77), 0, 0), kPoint), Errno::invalid);
  ExportInfo large = kClone;
  large.size = 1_GiB;
  EXPECT_EQ(verdict(request(Command::write, 0, kRequestMax + 1), large), Errno::overflow);
  EXPECT_EQ(verdict(request(Command::trim, 0, 512_MiB), large), Errno::none);
}

TEST(NbdReplies, HaveTheSizesTheyState) {
  const Request read = request(Command::read, 4096, 512);
  EXPECT_EQ(simple_reply(read, Errno::io).size(), 16U);
  EXPECT_EQ(data_chunk(read, 4096, 512, true).size(), 28U);
  EXPECT_EQ(hole_chunk(read, 4096, 512, false).size(), 32U);
  const std::string error = error_chunk(read, Errno::io, std::string(5000, 'x'));
  EXPECT_EQ(get_big<std::uint32_t>(reinterpret_cast<const std::byte*>(error.data()) + 16), error.size() - 20);
  EXPECT_LT(error.size(), 4096U);
  const std::vector<StatusExtent> extents(3);
  EXPECT_EQ(status_chunk(read, extents).size(), 20U + 4 + 3 * 8);
}

TEST(NbdExportName, IsTakenApart) {
  const auto point = parse_export_name("web1/disk0@2026-11-20T10:15:03Z");
  ASSERT_TRUE(point);
  EXPECT_EQ(point->owner, "web1");
  EXPECT_EQ(point->disk, "disk0");
  EXPECT_EQ(point->at, "2026-11-20T10:15:03Z");
  const auto newest = parse_export_name("web1//dev/vda");
  ASSERT_TRUE(newest);
  EXPECT_EQ(newest->disk, "/dev/vda");
  EXPECT_EQ(newest->at, "latest");
  const auto clone = parse_export_name("clone/check/disk0");
  ASSERT_TRUE(clone);
  EXPECT_TRUE(clone->clone);
  EXPECT_EQ(clone->owner, "check");
  for (const char* wrong : {"", "web1", "/disk0", "web1/", "web1/@latest", "web1/disk0@", "clone/check", "clone//x"})
    EXPECT_FALSE(parse_export_name(wrong)) << wrong;
}

}  // namespace
}  // namespace tidemark::nbd
