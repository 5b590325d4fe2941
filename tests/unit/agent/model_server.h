// A staging server in memory: real TLS on loopback, the real server session, a store of byte strings. Scripted to
// misbehave.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "agent/state_dir.h"
#include "base/checksum.h"
#include "base/clock.h"
#include "base/ids.h"
#include "wire/tidemark.pb.h"

namespace tidemark::agent {

struct ModelEpoch {
  EpochNumber number;
  Hash128 digest;
  pb::EpochKind kind{};
  pb::Consistency consistency{};
  std::uint64_t blocks = 0;
  std::map<std::uint32_t, std::string> disks;  // content, exactly of the disk's size
};

class ModelServer {
 public:
  ModelServer();
  ~ModelServer();
  ModelServer(const ModelServer&) = delete;

  std::string address() const;
  // Gives the machine an identity of this server's authority.
  // `age_days`: how long ago its certificate of 90 days was issued.
  void enroll(const StateDir& dir, const std::string& more_config, int age_days = 0);

  std::vector<ModelEpoch> epochs() const;
  std::optional<std::uint32_t> disk_of(const std::string& identity) const;
  std::string content(const std::string& identity) const;  // as of the newest epoch
  int sessions() const;
  std::uint64_t blocks_bytes() const;       // received in all
  std::uint64_t unchanged() const;          // times it was told so
  std::vector<std::string> states() const;  // of Progress messages

  std::uint64_t digest_requests() const;

  // Called with every epoch that is committed, before it is said to be durable. `keep` false: it never becomes durable,
  // and the connection is cut. Epochs but the newest are not kept from then on.
  struct Verdict {
    bool keep = true;
    bool cut = false;
  };
  void on_commit(std::function<Verdict(const ModelEpoch&, WallMicros cut_us)> call);

  // Scripts. Each concerns what comes next.
  void cut_after(std::uint64_t blocks_bytes);  // the connection, once
  void lose_next_durable();                    // commits, then cuts before saying so
  void refuse(std::optional<Error> error, std::uint32_t retry_after_ms, int times);  // at Hello
  void forget_newest_epoch();  // as a store restored from an old copy
  void throttle_next(std::uint32_t pause_ms);
  void ask_again(std::uint32_t disk, std::uint64_t first_granule, std::uint64_t granules);  // Resend, behind Welcome
  // Called on the server's thread when blocks came.
  void on_blocks(std::function<void(std::uint64_t total)> call);
  void set_credit(std::uint32_t bytes);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tidemark::agent
