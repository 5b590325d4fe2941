// Do nonces repeat? What sealed blocks a store's files hold, remembered over all lives of the store: one that was used
// for two different blocks is never to be seen.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>

#include "base/checksum.h"
#include "storage/file.h"

namespace tidemark::sim {

class NonceWatch {
 public:
  // Looks at the log and the cold segments of a partition that nobody writes to. What is wrong with the nonces, if
  // anything is; segments that cannot be read are passed over.
  std::optional<std::string> look(storage::FileSystem& files, const std::string& directory);
  std::size_t seen() const { return blocks_.size(); }

 private:
  struct Seen {
    Hash128 hash;
    std::string where;
  };
  std::optional<std::string> note(std::span<const std::byte> block, const std::string& where);
  std::map<std::string, Seen> blocks_;  // by nonce
};

}  // namespace tidemark::sim
