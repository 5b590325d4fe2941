// Makes an image hold what a disk holds at a point: by pieces, several at a time, each on a thread and a connection of
// its own. What the journal says is there already is read back and compared, not fetched.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/crypto.h"
#include "base/status.h"
#include "cli/client.h"
#include "cli/copy_journal.h"
#include "cli/disk_map.h"
#include "cli/point.h"
#include "cli/progress.h"
#include "cli/raw_image.h"

namespace tidemark::cli {

inline constexpr std::uint64_t kCopyPiece = 4 << 20;
inline constexpr unsigned kCopyThreadsMax = 6;

struct CopyJob {
  std::string machine;
  std::uint64_t epoch = 0;
  Disk disk;
  std::vector<Extent> extents;                 // the disk at the point: what is zero
  std::optional<std::vector<Extent>> changed;  // only these ranges differ from what the image holds
  unsigned threads = 2;
};

// The SHA-256 of the whole disk. The image is not synced. `hold` is renewed meanwhile, when it is given.
Result<Sha256> copy_disk(AdminClient& client, const CopyJob& job, RawImage& image, CopyJournal& journal,
                         PointHold* hold, Progress& progress);

// Reads an image and gives its SHA-256; notes the digests of its pieces but those that a range of `changed` touches.
Result<Sha256> digest_image(AdminClient& client, const RawImage& image, std::uint64_t size,
                            const std::vector<Extent>& changed, CopyJournal& journal, PointHold* hold,
                            Progress& progress);

}  // namespace tidemark::cli
