// Random histories of one machine: two sessions over a lossy connection, a store that crashes and is restored from old
// copies, an agent that dies. Whatever happens, each of these must hold, or the seed is printed:
//  - an epoch that is in the store is, block for block, one that the agent committed under that number and digest;
//  - what was acknowledged is in the store, or the agent was given an alarm when it connected;
//  - neither end ever accuses the other of breaking the protocol.
#pragma once

#include <set>
#include <string>

#include "tests/unit/wire/session_rig.h"

namespace tidemark::wire::rig {

struct PropertyResult {
  std::string violation;  // empty: none
  std::size_t epochs = 0, sessions = 0, resumed = 0, aborted = 0, alarms = 0, restores = 0, busy = 0;
};

class PropertyRun {
 public:
  explicit PropertyRun(std::uint64_t seed) : random_(seed) {
    encoder_.start(DiskId(0), EpochNumber(1));
    copies_.push_back(store_.durable);
  }

  PropertyResult run(int steps) {
    connect();
    for (int step = 0; step < steps && result_.violation.empty(); ++step) {
      clock_.advance(std::chrono::milliseconds(random_.below(50)));
      store_.room = random_.chance(0.1) ? random_.below(3) : 1 + random_.below(40);
      switch (random_.below(12)) {
        case 0:
        case 1:
        case 2: deliver(to_server_, agent_->out, server_->session, "the server"); break;
        case 3:
        case 4: deliver(to_agent_, server_->out, agent_->session, "the agent"); break;
        case 5:
        case 6:
          for (std::uint64_t n = random_.below(6); n > 0 && !store_.pending.empty(); --n)
            server_->settle_one(random_.chance(0.3));
          break;
        case 7:
        case 8:
        case 9:
        case 10: wish(); break;
        case 11: mishap(); break;
      }
      check();
    }
    return result_;
  }

 private:
  struct Sent {
    std::vector<Bytes> payloads;
    std::vector<EpochContent> after;  // content when each payload was in
  };

  void violated(const std::string& what) {
    if (result_.violation.empty()) result_.violation = what;
  }

  void connect() {
    ++result_.sessions;
    server_ = std::make_unique<Server>(store_, clock_);
    server_->keep_sent = false;
    agent_ = std::make_unique<Agent>(memory_, clock_);
    to_server_ = std::make_unique<Inbox>(pool_);
    to_agent_ = std::make_unique<Inbox>(pool_);
    open_.reset();
    welcomed_ = false;
    noted_ = 0;
    agent_->session.start(Agent::hello());
  }

  template <typename Session>
  void deliver(std::unique_ptr<Inbox>& inbox, Bytes& pipe, Session& session, const char* who) {
    const Status status = inbox->deliver(pipe, 1 + random_.below(20'000), session);
    if (status) return;
    if (status.error().code == Code::busy) {
      ++result_.busy;
      server_->settle_one_if_any();
      return;
    }
    violated(std::string(who) + " was told what it must refuse: " + status.error().message());
  }

  void wish() {
    AgentSession& session = agent_->session;
    if (!session.ready()) return;
    if (!welcomed_) on_welcome();
    if (session.disks().empty() || (session.disks().size() < 3 && random_.chance(0.02))) {
      // May be refused while an epoch is open: that is the rule.
      (void)session.open_disk(disk_request("vd" + std::to_string(session.disks().size())));
      return;
    }
    if (!session.open_epoch()) return begin();
    const std::uint64_t dice = random_.below(20);
    if (dice == 0) {
      if (session.abort_epoch("changed its mind")) {
        ++result_.aborted;
        open_.reset();
        memory_ = session.memory();
      }
    } else if (dice < 4) {
      commit();
    } else {
      blocks();
    }
    if (random_.chance(0.05)) session.ping();
    if (random_.chance(0.05)) (void)session.unchanged(clock_.wall_us());  // mostly not allowed now
  }

  void on_welcome() {
    welcomed_ = true;
    AgentSession& session = agent_->session;
    if (session.diverged()) {
      ++result_.alarms;
      std::erase_if(acknowledged_, [&](const auto& entry) { return !stored(entry.first, entry.second); });
    }
  }

  bool stored(std::uint64_t number, const Hash128& digest) const {
    const auto found = store_.durable.epochs.find(number);
    return found != store_.durable.epochs.end() && found->second.digest == digest;
  }

  void begin() {
    AgentSession& session = agent_->session;
    const auto& resumable = session.resumable_epoch();
    if (resumable) {
      if (random_.chance(0.2)) {
        if (session.abort_epoch("starts anew")) memory_ = session.memory();
        return;
      }
      const pb::OpenEpoch open = *resumable;
      std::vector<pb::DiskInfo> disks;
      for (const auto& disk : store_.durable.open_disks) disks.push_back(find(session.disks(), disk.disk()));
      if (!session.begin_epoch(begin_request(open.number(), pb::INITIAL, disks))) return;
      ++result_.resumed;
      // What is there must be the beginning of what was sent.
      Sent& sent = initials_[open.number()];
      std::size_t kept = 0;
      while (kept < sent.after.size() && sent.after[kept].blocks <= open.blocks()) ++kept;
      sent.after.resize(kept);
      sent.payloads.resize(kept);
      const EpochContent content = kept == 0 ? EpochContent() : sent.after.back();
      if (content != session.open_content()) violated("an initial sync is resumed with what was never sent in it");
      open_ = sent;
      return;
    }
    pb::EpochKind kind = session.diverged() ? pb::RESCAN : random_.chance(0.1) ? pb::INITIAL : pb::DELTA;
    const std::uint64_t number = session.next_epoch().value() + random_.below(2);
    Status begun = session.begin_epoch(begin_request(number, kind, session.disks()));
    if (!begun && begun.error().code == Code::invalid_argument) {
      kind = pb::INITIAL;  // the machine's first
      begun = session.begin_epoch(begin_request(number, kind, session.disks()));
    }
    if (!begun) return;
    open_.emplace();
    if (kind == pb::INITIAL) initials_[number] = {};
  }

  static pb::DiskInfo find(const std::vector<pb::DiskInfo>& disks, std::uint32_t disk) {
    for (const auto& info : disks)
      if (info.disk() == disk) return info;
    return {};
  }

  void blocks() {
    AgentSession& session = agent_->session;
    const EpochNumber epoch = *session.open_epoch();
    encoder_.start(DiskId(0), epoch);
    for (std::uint64_t n = 1 + random_.below(3); n > 0; --n) {
      Bytes plain((1 + random_.below(3)) * limits::kGranuleSize);
      if (random_.chance(0.7)) std::memset(plain.data(), static_cast<int>(random_.below(256)), plain.size());
      if (random_.chance(0.3)) random_.fill(plain);
      encoder_.add(random_.below(100) * 4, plain);
    }
    if (!session.send_blocks(DiskId(0), encoder_.payload(), encoder_.summary())) return;  // no credit
    open_->payloads.push_back(encoder_.payload());
    open_->after.push_back(session.open_content());
    if (const auto initial = initials_.find(epoch.value()); initial != initials_.end()) initial->second = *open_;
  }

  void commit() {
    AgentSession& session = agent_->session;
    const EpochNumber epoch = *session.open_epoch();
    if (!session.commit_epoch(clock_.wall_us(), pb::CRASH)) return;
    const Hash128 digest = session.memory().unacknowledged.back().digest;
    committed_[{epoch.value(), digest.low, digest.high}] = open_->payloads;
    open_.reset();
  }

  void mishap() {
    const std::uint64_t dice = random_.below(100);
    if (dice >= 30) return;
    note_acknowledged();
    // The agent keeps its memory over a cut; when it dies it keeps what was saved, which is all but what is
    // unacknowledged.
    memory_ = agent_->session.memory();
    if (dice >= 20) memory_.unacknowledged.clear();
    if (dice < 10) {  // the server dies: some of what was on its way makes it
      for (std::uint64_t n = random_.below(store_.pending.size() + 1); n > 0; --n) store_.settle_one();
      store_.pending.clear();
    }
    if (dice < 2) {  // and comes back from an old copy
      store_.durable = copies_[random_.below(copies_.size())];
      ++result_.restores;
    }
    if (dice < 1) memory_.open_epoch.reset();  // an agent that lost the newest part of its state
    if (copies_.size() < 50) copies_.push_back(store_.durable);
    connect();
  }

  void note_acknowledged() {
    const AgentMemory& memory = agent_->session.memory();
    for (; noted_ < agent_->durable.size(); ++noted_) {
      const EpochNumber epoch = agent_->durable[noted_];
      if (epoch == memory.durable_epoch) acknowledged_[epoch.value()] = memory.durable_digest;
    }
  }

  void check() {
    note_acknowledged();
    if (store_.durable.durable_digest != checked_digest_) check_store();
    result_.epochs = store_.durable.epochs.size();
    if (!agent_->session.ready() || agent_->session.diverged()) return;
    if (!welcomed_) on_welcome();
    for (const auto& [number, digest] : acknowledged_)
      if (!stored(number, digest))
        return violated("epoch " + std::to_string(number) + " was acknowledged, is gone, and nobody was told");
  }

  void check_store() {
    checked_digest_ = store_.durable.durable_digest;
    for (const auto& [number, epoch] : store_.durable.epochs) {
      const auto sent = committed_.find({number, epoch.digest.low, epoch.digest.high});
      if (sent == committed_.end()) return violated("epoch " + std::to_string(number) + " was never committed");
      if (sent->second != epoch.payloads) return violated("epoch " + std::to_string(number) + " is not what was sent");
    }
  }

  Random random_;
  ManualClock clock_{kStart};
  HeapPayloadPool pool_{4_MiB};
  Store store_;
  AgentMemory memory_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Agent> agent_;
  std::unique_ptr<Inbox> to_server_, to_agent_;
  BlockEncoder encoder_{machine_id()};
  std::vector<StoreState> copies_;
  std::optional<Sent> open_;
  std::map<std::uint64_t, Sent> initials_;
  std::map<std::tuple<std::uint64_t, std::uint64_t, std::uint64_t>, std::vector<Bytes>> committed_;
  std::map<std::uint64_t, Hash128> acknowledged_;
  std::size_t noted_ = 0;
  Hash128 checked_digest_;
  bool welcomed_ = false;
  PropertyResult result_;
};

}  // namespace tidemark::wire::rig
