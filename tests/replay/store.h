// A partition on real files with a clock that the replay moves. Everything happens on the caller's thread.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/clock.h"
#include "storage/partition.h"
#include "storage/retention.h"
#include "tests/replay/counting_files.h"

namespace tidemark::replay {

class Store final : public storage::Partition::Listener {
 public:
  Store(std::string directory, storage::PartitionOptions options, ManualClock& clock);
  ~Store();

  Status create();
  Status open();
  void crash();  // the process dies
  Status close();
  void lose_index();  // while closed
  storage::Partition& partition() { return *partition_; }

  // Tries again, with turns of the loop in between, while the log or the index has no room.
  Status retry(const std::function<Status()>& what);
  void pump();          // until everything is durable
  Status background();  // all that the background has to do now; its error, if it has one

  Written written() const { return files_->written(); }
  std::uint64_t index_written() const;  // of all lives
  struct Stored {
    std::uint64_t log = 0, reserve = 0, cold = 0, index = 0, other = 0;
    std::uint64_t total() const { return log + reserve + cold + index + other; }
  };
  Stored stored() const;  // space that the files take
  std::uint64_t log_segments() const { return partition_->stats().segments; }

  void on_epoch_durable(const MachineId&, EpochNumber, const Hash128&) override { ++epochs_durable_; }
  void on_bytes_durable(const MachineId&, std::uint64_t bytes) override { bytes_durable_ += bytes; }
  void on_room() override {}
  void on_stopped(const Error& why) override { stopped_ = why; }
  std::uint64_t bytes_durable() const { return bytes_durable_; }
  std::uint64_t epochs_durable() const { return epochs_durable_; }

 private:
  void leave();

  const std::string directory_;
  storage::PartitionOptions options_;
  ManualClock& clock_;
  std::unique_ptr<CountingFiles> files_;
  std::unique_ptr<CountingQueue> queue_;
  std::unique_ptr<storage::Partition> partition_;
  std::uint64_t index_written_ = 0;  // of former lives
  std::uint64_t bytes_durable_ = 0, epochs_durable_ = 0;
  std::optional<Error> stopped_;
};

}  // namespace tidemark::replay
