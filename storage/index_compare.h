// Two indexes of one partition: do they show the same? Where a block lies may differ (a record in the log and its copy
// in a cold segment are one), and so may what no point shows.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "storage/index.h"

namespace tidemark::storage {

inline constexpr std::size_t kDifferencesMax = 20;
inline constexpr std::size_t kComparedPoints = 8;  // about

// What `second` shows otherwise than `first`, in words, at most kDifferencesMax. `first` may be behind: what is newer
// than its mark is passed over. Machines and epochs are compared all; what a machine's disks show, at its newest epoch,
// its oldest, and about kComparedPoints between.
Result<std::vector<std::string>> compare_indexes(const Index& first, const Index& second);

}  // namespace tidemark::storage
