// Reads recovery points back from the server, as an export does, and proves every byte of every disk: what stands
// there must be what the plan, the steps and the content say.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "bench/load/fleet.h"

namespace tidemark::bench {

struct Verified {
  std::uint64_t points = 0, disks = 0, written_bytes = 0, zero_bytes = 0;  // as the plan has them
};

// The newest point of `written`, and up to `older` ones before it. An error names the first byte that is wrong.
Result<Verified> verify_machine(const std::string& admin_socket, const LoadOptions& options,
                                const Fleet::Written& written, std::size_t older);

// The step that epoch `epoch` of a machine holds; 0 before the first.
std::uint32_t step_of(const std::vector<StepMark>& marks, std::uint64_t epoch);

}  // namespace tidemark::bench
