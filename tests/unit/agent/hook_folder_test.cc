#include "agent/hook_folder.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/agent/temp_dir.h"

namespace tidemark::agent {
namespace {

class HookFolderTest : public testing::Test {
 protected:
  void put(const std::string& name, mode_t mode = 0755) {
    const auto path = dir_.write("pre-cut.d/" + name, "#!/bin/sh\n");
    ::chmod(path.c_str(), mode);
  }
  std::string refusal() {
    const auto found = read_hook_folder(folder_);
    if (found) return "";
    EXPECT_EQ(found.error().code, Code::permission_denied);
    return found.error().message();
  }
  TempDir dir_;
  std::filesystem::path folder_ = dir_ / "pre-cut.d";
};

TEST_F(HookFolderTest, OneThatIsNotThereIsEmpty) {
  const auto found = read_hook_folder(folder_);
  ASSERT_TRUE(found) << found.error().message();
  EXPECT_TRUE(found->hooks.empty());
  EXPECT_TRUE(found->skipped.empty());
}

TEST_F(HookFolderTest, OrdersByNameAndSaysWhatItSkips) {
  for (const char* name : {"20-web", "10-db.sh", "9_last", ".hidden", "10-db.sh~", "#20-web#", "30.bak", "30.dpkg-dist",
                           "30.rpmnew", "40.sh.swp"})
    put(name);
  put("25-off", 0644);
  std::filesystem::create_directory(folder_ / "50-folder");
  std::filesystem::create_symlink("nothing", folder_ / "60-link");
  std::filesystem::create_symlink("20-web", folder_ / "70-link");
  const auto found = read_hook_folder(folder_);
  ASSERT_TRUE(found) << found.error().message();
  std::vector<std::string> names;
  for (const Hook& hook : found->hooks) names.push_back(hook.name);
  EXPECT_EQ(names, (std::vector<std::string>{"10-db.sh", "20-web", "70-link", "9_last"}));
  EXPECT_EQ(found->hooks[2].path, std::filesystem::canonical(folder_ / "20-web"));
  EXPECT_EQ(found->skipped,
            (std::vector<std::string>{
                "#20-web#: a backup or a leftover by its name", ".hidden: hidden",
                "10-db.sh~: a backup or a leftover by its name", "25-off: not executable",
                "30.bak: a backup or a leftover by its name", "30.dpkg-dist: a backup or a leftover by its name",
                "30.rpmnew: a backup or a leftover by its name", "40.sh.swp: a backup or a leftover by its name",
                "50-folder: no file", "60-link: a link to nothing"}));
}

TEST_F(HookFolderTest, NamesWhatOthersMayWriteTo) {
  put("10-db", 0775);
  EXPECT_NE(refusal().find("10-db: is writable by others than root (mode 0775)"), std::string::npos) << refusal();
  put("10-db");
  EXPECT_EQ(refusal(), "");
  ::chmod(folder_.c_str(), 0757);
  EXPECT_NE(refusal().find("pre-cut.d: is writable by others than root"), std::string::npos) << refusal();
  ::chmod(folder_.c_str(), 01777);
  EXPECT_NE(refusal().find("pre-cut.d: is writable"), std::string::npos) << "sticky or not: others could add hooks";
  ::chmod(folder_.c_str(), 0755);
  ::chmod(dir_.path().c_str(), 0770);
  EXPECT_NE(refusal().find(dir_.path().string() + ": is writable by others than root"), std::string::npos) << refusal();
}

TEST_F(HookFolderTest, WhatALinkLeadsToCountsAsWell) {
  const auto elsewhere = dir_.write("elsewhere/hook", "");
  ::chmod(elsewhere.c_str(), 0755);
  std::filesystem::create_directory(folder_);
  std::filesystem::create_symlink(elsewhere, folder_ / "10-db");
  EXPECT_EQ(refusal(), "");
  ::chmod((dir_ / "elsewhere").c_str(), 0777);
  EXPECT_NE(refusal().find("elsewhere: is writable by others than root"), std::string::npos) << refusal();
}

TEST_F(HookFolderTest, NamesWhatBelongsToSomebodyElse) {
  if (::geteuid() != 0) GTEST_SKIP() << "not root";
  put("10-db");
  ASSERT_EQ(::chown((folder_ / "10-db").c_str(), 1234, 0), 0);
  EXPECT_NE(refusal().find("10-db: belongs to user 1234, not to root"), std::string::npos) << refusal();
}

TEST_F(HookFolderTest, HasALimit) {
  for (int i = 0; i < 65; ++i) put(std::to_string(100 + i));
  const auto found = read_hook_folder(folder_);
  ASSERT_FALSE(found);
  EXPECT_NE(found.error().message().find("more than 64 hooks"), std::string::npos);
}

}  // namespace
}  // namespace tidemark::agent
