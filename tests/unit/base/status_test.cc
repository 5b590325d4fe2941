#include "base/status.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>

namespace tidemark {
namespace {

Status half(int n, int& out) {
  if (n % 2 != 0) return fail(Code::invalid_argument, std::to_string(n), "odd", "give an even number");
  out = n / 2;
  return {};
}
Result<std::unique_ptr<int>> quarter(int n) {
  int result = 0;
  TIDEMARK_TRY(half(n, result));
  TIDEMARK_TRY(half(result, result));
  return std::make_unique<int>(result);
}
Result<int> eighth(int n) {
  const auto four = TIDEMARK_TRY(quarter(n));
  int result = 0;
  TIDEMARK_TRY(half(*four, result));
  return result;
}

TEST(Status, TryHandsOnTheErrorOrIsTheValue) {
  EXPECT_EQ(eighth(16).value(), 2);
  const auto failed = eighth(12);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error(), (Error{Code::invalid_argument, "3", "odd", "give an even number"}));
}

TEST(Status, AMessageSaysWhichWhatAndWhatToDo) {
  EXPECT_EQ((Error{Code::not_found, "web9", "no such machine", "run tidemark machines"}).message(),
            "web9: no such machine (run tidemark machines)");
  EXPECT_EQ((Error{Code::busy, "", "", ""}).message(), "busy");
}

TEST(Status, ErrnoBecomesACodeToReactTo) {
  EXPECT_EQ(fail_errno(ENOSPC, "/x", "write").error().code, Code::no_space);
  EXPECT_EQ(fail_errno(ENOENT, "/x", "open").error().code, Code::not_found);
  EXPECT_EQ(fail_errno(EIO, "/x", "read 4096 bytes at 0").error().message(),
            "/x: cannot read 4096 bytes at 0: Input/output error");
}

}  // namespace
}  // namespace tidemark
