// What an export that may be interrupted remembers beside its image: which point it is of, and of each piece that was
// written a digest of its content. Nothing here is believed: a piece counts only when what the image holds has the
// digest that the journal says, so neither needs to be durable, and an image that lost or changed something is fetched
// again.
//
// A text file: one line of JSON, then lines "PIECE XXH3-128-IN-HEX". Held under a lock as long as it is open.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "base/checksum.h"
#include "base/status.h"

namespace tidemark::cli {

class CopyJournal {
 public:
  // What `about` says decides: a journal about something else is begun anew. Code::busy: another export has it open.
  static Result<CopyJournal> open(const std::string& path, const nlohmann::json& about, std::string shown);
  CopyJournal(CopyJournal&& other) noexcept;
  CopyJournal& operator=(CopyJournal&&) = delete;
  ~CopyJournal();

  bool resumed() const { return resumed_; }  // it was there, about the same
  Status restart();                          // forgets all pieces
  std::optional<Hash128> digest(std::uint64_t piece) const;
  Status note(std::uint64_t piece, const Hash128& digest);  // thread-safe, also with digest()
  Status remove();

 private:
  CopyJournal(std::string path, std::string shown, int fd);
  Status append(const std::string& text);

  std::string path_, shown_, head_;
  int fd_;
  bool resumed_ = false;
  mutable std::mutex mutex_;
  std::map<std::uint64_t, Hash128> pieces_;
};

}  // namespace tidemark::cli
