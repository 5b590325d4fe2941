// Programs that a comparison runs: started, waited for, ended. Whatever is still running goes when its object goes.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"

namespace tidemark::bench {

// Where a program is: next to this one, in ../bench beside it, or in PATH. Empty: nowhere.
std::string find_program(const std::string& name);

class Child {
 public:
  // Its output goes to `log`.
  static Result<Child> start(const std::vector<std::string>& command, const std::string& log);
  ~Child();  // SIGTERM, and SIGKILL after ten seconds
  Child(Child&& other) noexcept;
  Child& operator=(Child&&) = delete;

  pid_t pid() const { return pid_; }
  bool running();
  std::optional<int> wait(std::chrono::seconds timeout);  // exit status; nothing when it goes on

 private:
  explicit Child(pid_t pid) : pid_(pid) {}
  pid_t pid_ = -1;
  std::optional<int> status_;
};

// Runs a program to its end. An error, with the end of what it said, when that was not well.
Result<std::string> run_program(const std::vector<std::string>& command, const std::string& log,
                                std::chrono::seconds timeout);

std::string read_file(const std::string& path);  // "" when it cannot be read

}  // namespace tidemark::bench
