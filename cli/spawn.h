// Other programs: qemu-img, mount and their like.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"

namespace tidemark::cli {

// Where a program is found in PATH, or where administrators' programs are; empty: nowhere.
std::string find_program(const std::string& name);
// Code::not_found with the Debian package that has it, when it is nowhere.
Status need_program(const std::string& name, const std::string& package);

struct Ran {
  int status = 0;        // of exit; 128 and the signal, when one ended it
  std::string out, err;  // the first 64 KiB of each
};
// Runs it to its end, with nothing on its standard input. `output`: told what it writes to standard output, as it
// comes. `stopped` is asked now and then: true ends the program, and the outcome is Code::cancelled.
Result<Ran> run_program(const std::vector<std::string>& command, const std::function<bool()>& stopped = {},
                        const std::function<void(const std::string&)>& output = {});

// Starts one that goes on when this program has ended, in a session of its own, with `log` as its output; its process
// id.
Result<int> start_program(const std::vector<std::string>& command, const std::string& log);
// Of one that start_program() started.
bool has_ended(int pid);

}  // namespace tidemark::cli
