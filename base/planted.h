// Planted bugs: faults built in on purpose, one at a time, to prove that the tests would find them (tests/planted).
// Only what the tests compile with TIDEMARK_PLANTED_BUGS (tests/planted, tests/powercut) can switch one on; everywhere
// else the condition is the constant false and costs nothing.
#pragma once

#include <cstdint>

namespace tidemark {

enum class Planted : std::uint8_t {
  none,
  ack_before_durable,        // the log reports a commit durable when its write is queued
  skip_block_checksum,       // the reader believes what it reads
  rot_taken_for_torn,        // recovery drops a rotted last commit although it was acknowledged
  quiet_resume,              // agent goes on although the server knows less than it once acknowledged
  aborted_shows_through,     // the index forgets which ranges were aborted
  fold_forgets_points,       // a fold goes by the newest point alone
  settled_unsynced,          // a cold segment is referred to before it is durable
  released_run_unlinked,     // the chain ends where several neighbours were given back
  freed_before_flush,        // a segment is used again while only memory knows that nothing refers to it
  flush_ignored,             // what was written to a clone is said to be durable as soon as it is in memory
  log_unsynced,              // a commit is written without RWF_DSYNC: it may never leave the disk's cache
  moved_unseen,              // who knows where blocks stand is not told that they are moved
  mark_ahead_of_data,        // the index's mark is durable before what it covers
  fold_takes_open_data,      // a fold lets data of an open epoch hide committed data
  stale_incarnation,         // recovery follows the log by position, not by who wrote it last
  drops_what_is_in_use,      // a point goes although clones stand on it
  prune_ignores_pins,        // the ladder drops pinned points
  verified_unread,           // the checker takes new blocks for sound without a look at them
  live_count_off_by_one,     // what leaves the index is not taken off its segment's count whole
  nonces_begin_anew,         // who seals blocks counts from the same nonce each time a partition is opened
  marks_on_completion_only,  // the agent does not see a write before it is done
  hits_unseen,               // a cut does not look whether what it read was written meanwhile
  hits_alone_read_again,     // ... or reads only those blocks again
  cut_per_disk,              // each disk is cut at a moment of its own
  cleared_before_durable,    // what was sent is forgotten before it is durable
  in_flight_forgotten,       // what was in flight at a cut is not read again after it
  free_space_unsynced,       // what is free in memory is left out, although the disk does not say so yet
};

#ifdef TIDEMARK_PLANTED_BUGS
inline Planted planted_bug = Planted::none;  // set by the test before anything starts
inline bool planted(Planted bug) { return planted_bug == bug; }
#else
constexpr bool planted(Planted) { return false; }
#endif

}  // namespace tidemark
