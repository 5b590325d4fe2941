// Checks a partition against a plain model, over random histories on a simulated disk.
//
// The model stands outside the store: of every epoch that was acknowledged it knows each granule of each disk. After
// every crash (and in between) it asks the store and compares: an acknowledged epoch must be there, byte for byte; one
// that was not acknowledged is there whole or not at all; an aborted one never shows; damage is reported, and what is
// read is right or an error.
//
// A history is drawn from its seed alone: what it does is listed in StoreOp; settling, folding and compaction go on
// behind it all.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace tidemark::sim {

// What is done to a store, and counted.
enum class StoreOp : std::uint8_t {
  machine,      // made, renamed, removed, a disk opened or resized, a pin
  begin,        // of an epoch
  append,       // a block, or a range of zeroes
  bulk,         // a block of an initial sync, one behind the other
  commit,       // of an epoch
  abort,        // of an epoch
  prune,        // a machine by its ladder
  drop,         // some points of a machine
  fold,         // of a region
  settle,       // a block, or a segment that is left as it is
  clone,        // is made
  clone_write,  // a block or a range of zeroes, into a clone
  clone_drop,   // a clone is removed
  scrub,        // of the whole store
  verify,       // an epoch is read whole, and compared
  turn,         // of the loop: what is open is written, some of what is in flight completes
  crash,        // power cuts and kills
  close,        // and opened again
  clock_jump,   //
  eio,          // writes, reads or syncs fail for a while
  enospc,       // the disk is full for a while
  bit_flip,     // in what is stored
  misdirected,  // a write went to the wrong place, now or for a while; or was lost
  index_lost,   //
  count
};

struct StoreRun {
  std::array<std::uint64_t, static_cast<std::size_t>(StoreOp::count)> done{};
  std::uint64_t disk_operations = 0;  // of the simulated disk
  std::uint64_t steps = 0;
  std::uint64_t crashes = 0;  // power cuts and kills
  std::uint64_t epochs_acked = 0;
  std::uint64_t epochs_checked = 0;  // read whole and compared
  std::uint64_t points_dropped = 0;
  std::uint64_t points_pruned = 0;  // of these, because the ladder said so
  std::uint64_t clock_jumps = 0;
  std::uint64_t clones_made = 0;
  std::uint64_t clones_dropped = 0;
  std::uint64_t bases_checked = 0;  // clones read as they began
  std::uint64_t blocks_moved = 0;   // into cold segments
  std::uint64_t segments_kept = 0;  // of the log, left as they are
  std::uint64_t regions_folded = 0;
  std::uint64_t rebuilds = 0;      // of indexes that were lost
  std::uint64_t damages = 0;       // done to the disk
  std::uint64_t damage_found = 0;  // openings refused and reads failed because of it
  std::optional<std::string> failure;

  void count(StoreOp what, std::uint64_t times = 1) { done[static_cast<std::size_t>(what)] += times; }
  std::uint64_t operations() const;  // all that was done
  void add(const StoreRun& other);
  std::string summary() const;
};

// One random history. Stops at the first failure and says what it is.
StoreRun run_store_history(std::uint64_t seed);

// A short fixed history, with the power cut at its `operation`th operation on the disk; nullopt: never. Checked after.
StoreRun run_small_history(std::uint64_t seed, std::optional<std::uint64_t> operation);

// TIDEMARK_SIM_SEEDS (how many) and TIDEMARK_SIM_SEED (the first), or these.
struct Seeds {
  std::uint64_t first = 1;
  std::uint64_t count = 0;
};
Seeds seeds_from_environment(std::uint64_t first, std::uint64_t count);

}  // namespace tidemark::sim
