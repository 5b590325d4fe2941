// One machine's history in a real store, with what the model knows of it: writes epochs, lets points thin out as the
// server would, and compares.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "storage/ladder.h"
#include "storage/retention.h"
#include "tests/replay/model.h"
#include "tests/replay/store.h"

namespace tidemark::replay {

class History {
 public:
  History(Store& store, ManualClock& clock, unsigned number, std::vector<std::uint64_t> disk_granules);

  Status add_machine();  // once the store is open
  // One epoch whole: the granules by disk and number.
  Status epoch(const std::set<std::pair<std::uint32_t, std::uint64_t>>& granules);
  // As epoch(), but the process dies before the commit is written: none of it may ever be seen.
  Status half_epoch(const std::set<std::pair<std::uint32_t, std::uint64_t>>& granules);
  Status abort_open();  // in the next life
  // Moves the retention clock, and has the store drop what the ladder lets go.
  Status retain();
  void begin_life();  // after the store was opened again

  // nullopt: all is well. Every disk of the point, whole.
  std::optional<std::string> check_point(std::uint64_t epoch);
  // The points there are, are those that the ladder keeps of everything that ever was; those that went are not found.
  std::optional<std::string> check_ladder();
  Result<std::vector<std::uint64_t>> kept();  // epochs in the store, ascending

  const Model& model() const { return model_; }
  std::uint64_t received() const { return received_; }  // bytes of blocks, as they came
  std::uint64_t epochs() const { return last_epoch_; }
  std::uint64_t bytes_compared() const { return compared_; }

 private:
  Status send(std::uint64_t number, const std::set<std::pair<std::uint32_t, std::uint64_t>>& granules);
  std::optional<std::string> check_disk(std::uint32_t disk, std::uint64_t epoch);

  Store& store_;
  ManualClock& clock_;
  const unsigned number_;
  const MachineId machine_;
  const std::vector<std::uint64_t> disk_granules_;
  std::optional<storage::Retention> retention_;
  Model model_;
  std::vector<storage::LadderEpoch> all_;  // that were ever committed
  std::uint64_t last_epoch_ = 0;
  std::uint64_t received_ = 0, compared_ = 0;
};

}  // namespace tidemark::replay
