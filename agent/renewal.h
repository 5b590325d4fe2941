// Renews the machine's certificate over a session, in the last third of its life or when the server says that it ends
// soon. The key stays.
#pragma once

#include <atomic>
#include <chrono>
#include <string>
#include <utility>

#include "agent/link.h"
#include "agent/state_dir.h"
#include "agent/status_board.h"
#include "base/clock.h"
#include "base/ids.h"

namespace tidemark::agent {

class Renewal {
 public:
  Renewal(const StateDir& dir, const MachineId& machine, std::string name, StatusBoard& board, const Clock& clock)
      : dir_(dir), machine_(machine), name_(std::move(name)), board_(board), clock_(clock) {}

  // At the begin of a session, and later every hour. What fails is logged, and tried again then.
  void begin(Link& link);
  void look(Link& link);
  // The server's answer. Any thread.
  void received(const std::string& pem);
  bool asked() const { return asked_; }  // and not answered

 private:
  void ask_if_due(Link& link);

  const StateDir& dir_;
  const MachineId machine_;
  const std::string name_;
  StatusBoard& board_;
  const Clock& clock_;
  std::chrono::steady_clock::time_point next_{};
  std::atomic<bool> asked_{false};
};

}  // namespace tidemark::agent
