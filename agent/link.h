// The connection to the server: a thread of its own runs TLS and the session's state machine; the engine's threads call
// in.
//
// Every call may be made from any thread, blocks until it is done, and fails once the link has ended (end() tells why)
// or the stop token asks to stop (Code::cancelled). Calls that concern an epoch take effect in the order in which they
// are made. Memory: at most kQueueBytesMax of blocks wait here, then send_blocks() blocks; the server's credit paces
// the rest.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "agent/consistency.h"
#include "agent/memory_keeper.h"
#include "agent/pace.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/status.h"
#include "base/units.h"
#include "net/tls_context.h"
#include "wire/block.h"
#include "wire/tidemark.pb.h"

namespace tidemark::agent {

struct LinkOptions {
  std::string address;  // host:port
  MachineId machine;
  net::Credentials credentials;
  pb::Hello hello;       // name, fingerprint, boot id, agent version; the session fills in the rest
  Pace* pace = nullptr;  // hears how long blocks were held, and by what; outlives the link
  // On the link's thread:
  // How many MiB of blocks a second may be sent now, 0: any number. Asked once a second. None: no limit.
  std::function<double()> rate_limit_mib_s;
  std::function<void(const std::string& certificate_pem)> on_renewed;
  // The server asks for no blocks for this long, and why; 0: it goes on.
  std::function<void(std::chrono::milliseconds pause, const std::string& reason)> on_throttle;
};

// Why a link ended.
struct LinkEnd {
  Error error;
  std::uint32_t retry_after_ms = 0;
  bool from_server = false;  // the server said so itself, in an Error or a Goodbye
  bool goodbye = false;
  std::string redirect;  // go there instead
};

// What the session knows just now.
struct SessionView {
  std::vector<pb::DiskInfo> disks;
  EpochNumber durable;                     // what the server has, also when it is not what this memory knows
  EpochNumber next_epoch;                  // the lowest number a new epoch may take
  std::optional<pb::OpenEpoch> resumable;  // an initial sync to go on with
  bool diverged = false;                   // a RESCAN (or INITIAL) is due: no DELTA has a base
  bool adopted_unknown = false;            // the server's newest epoch is not one that this memory made
};

class Link {
 public:
  static constexpr std::size_t kQueueBytesMax = 4_MiB;
  // Small enough that the least credit a server may fall back to still admits one frame.
  static constexpr std::size_t kPayloadTarget = limits::kSessionCreditMin;

  // `keeper` outlives the link; the link saves in it what the server says is durable.
  Link(LinkOptions options, MemoryKeeper& keeper, const Clock& clock, std::stop_token stop);
  ~Link();
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  Status connect();                    // until Welcome
  const pb::Welcome& welcome() const;  // after connect()
  // The server knew less than it once acknowledged, or something else. Only RESCAN and INITIAL epochs are possible.
  std::optional<Error> diverged() const;
  SessionView view();
  bool alive() const;
  LinkEnd end() const;  // once it is not alive

  Result<DiskId> open_disk(const std::string& identity, std::uint64_t size, const std::string& name);
  Status begin_epoch(const pb::EpochBegin& begin);
  Status send_blocks(DiskId disk, std::vector<std::byte> payload, const wire::BlocksSummary& summary);
  // Remembers the epoch as pending, then commits it. `disks` of the facts are given; the rest is filled in.
  Result<EpochFacts> commit_epoch(EpochNumber number, WallMicros cut_us, Consistency consistency,
                                  std::vector<KnownDisk> disks);
  Status wait_durable(EpochNumber epoch);
  // Not stopped by the stop token: what is under way is ended in order.
  Status abort_epoch(const std::string& reason);
  Status unchanged(WallMicros as_of_us);
  Status request_digests(const pb::DigestRequest& request);  // does not wait for the reply
  Result<pb::DigestReply> next_digests();                    // replies come in the order of the requests
  // What the server asked for to be sent again, whether it changed or not.
  std::vector<pb::Resend::Range> wanted() const;
  // It came with an epoch that is durable; what was asked for since stays.
  void sent_again(const std::vector<pb::Resend::Range>& ranges);
  Status renew(const std::string& csr_pem);  // on_renewed follows
  void progress(const pb::Progress& progress);
  // Says Goodbye and closes, within a bounded time.
  void goodbye(const std::string& reason);

  std::size_t payload_target() const;
  std::uint64_t bytes_sent() const;  // of blocks payloads

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tidemark::agent
