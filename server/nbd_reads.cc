#include "server/nbd_reads.h"

#include <utility>

#include "server/nbd_clients.h"
#include "server/shard.h"

namespace tidemark::server {

struct NbdReads::Slot {
  storage::AsyncRead read;
  std::uint64_t connection = 0;
  NbdConnection::Time begun;
  std::shared_ptr<NbdExport> disk;  // while it is under way
  NbdConnection::Answer answer;
  std::vector<storage::ByteRange> zeroes;
};

NbdReads::NbdReads(NbdClients& clients) : clients_(clients) {}
NbdReads::~NbdReads() = default;

bool NbdReads::begin(NbdConnection& of, const std::shared_ptr<NbdExport>& disk, NbdConnection::Answer& answer,
                     bool sparse) {
  if (turn_bytes_ >= kTurnBytes) return false;
  if (free_.empty()) {
    if (slots_.size() == kUnderWayMax) return false;
    free_.push_back(slots_.emplace_back(std::make_unique<Slot>()).get());
  }
  Slot& slot = *free_.back();
  slot.zeroes.clear();
  const storage::DiskRead read{
      .offset = answer.request.offset, .to = answer.data->span(), .zeroes = sparse ? &slot.zeroes : nullptr};
  switch (disk->begin(slot.read, read, scratch_, clients_.shard().queue(), [this, &slot] { finish(slot); })) {
    case storage::AsyncRead::Begun::no: return false;
    case storage::AsyncRead::Begun::done:
      answer.status = slot.read.outcome();
      of.read_done(std::move(answer), slot.zeroes);
      break;
    case storage::AsyncRead::Begun::reading:
      free_.pop_back();
      slot.connection = of.id();
      slot.begun = std::chrono::steady_clock::now();
      slot.disk = disk;
      slot.answer = std::move(answer);
      break;
  }
  turn_bytes_ += read.to.size();
  return true;
}

void NbdReads::finish(Slot& slot) {
  NbdConnection::Answer answer = std::move(slot.answer);
  const auto zeroes = std::move(slot.zeroes);
  answer.status = slot.read.outcome();
  slot.disk.reset();
  free_.push_back(&slot);
  if (auto* const to = clients_.find(slot.connection)) {
    to->disk_took(std::chrono::steady_clock::now() - slot.begun);
    to->read_done(std::move(answer), zeroes);
  }
}

}  // namespace tidemark::server
