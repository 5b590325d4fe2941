// Reads of NBD clients that their shard makes itself: small ones, of which it is known where they stand, with what must
// be read of the disk going through the shard's ring. To hand a read to a worker and take it back costs more than the
// read. Bounded in number, and in each turn of the loop, so that sessions do not wait for those who read. On its
// thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "server/nbd_connection.h"
#include "storage/disk_view.h"

namespace tidemark::server {

class NbdClients;

class NbdReads {
 public:
  static constexpr std::size_t kUnderWayMax = 64;  // of a shard; a buffer of AsyncRead::kPieceMax at most for each
  static constexpr std::uint64_t kTurnBytes = 512_KiB;

  explicit NbdReads(NbdClients& clients);
  ~NbdReads();

  // False: a worker has to. Else `answer` is taken, and comes back by NbdConnection::read_done, maybe at once.
  bool begin(NbdConnection& of, const std::shared_ptr<NbdExport>& disk, NbdConnection::Answer& answer, bool sparse);
  void end_turn() { turn_bytes_ = 0; }
  bool quiet() const { return free_.size() == slots_.size(); }

 private:
  struct Slot;
  void finish(Slot& slot);

  NbdClients& clients_;
  storage::ReadScratch scratch_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<Slot*> free_;
  std::uint64_t turn_bytes_ = 0;
};

}  // namespace tidemark::server
