// Coverage marks: rare paths say that they were walked, so that a test can demand it of its runs. Counted in every
// build; the paths are too rare for it to cost anything. Any thread.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace tidemark {

enum class Mark : std::uint8_t {
  torn_tail,             // recovery drops what was never acknowledged
  released_passed_over,  // recovery goes on behind segments that were given back
  log_rewritten,         // a write failed, and what was in flight went to another segment
  log_stopped,           // ... and failed there as well
  initial_resumed,       // an initial sync goes on in the epoch that it had begun
  aborts_joined,         // a history record tells of ranges that the index had from elsewhere
  aborts_forgotten,      // one tells no more of ranges whose records are gone
  drop_waits,            // a point is to go, and somebody reads it or stands on it
  block_cut,             // of a block that is settled only parts are shown
  moved_twice,           // a rebuild finds a part of a record in two cold segments
  cold_given_up,         // a cold segment that nothing came to refer to
  settler_met_damage,    // what cannot be read is left where it is
  index_rebuilt,         // from the log and the cold segments
  index_damaged,         // it was there, and could not be read
  clone_reads_parent,    // what shows of a clone was written below it
  clone_of_clone_read,   // ... two layers down or more
  no_segment,            // none can be made now
  refused_for_space,     // nothing more is taken from an agent
  checker_found_damage,  // in the index's sense: something refers to it
  count
};

inline std::array<std::atomic<std::uint64_t>, static_cast<std::size_t>(Mark::count)> marks{};

inline void leave_mark(Mark which) { marks[static_cast<std::size_t>(which)].fetch_add(1, std::memory_order_relaxed); }
inline std::uint64_t marked(Mark which) { return marks[static_cast<std::size_t>(which)].load(); }

// In the order of the enumeration.
inline constexpr std::array<std::string_view, static_cast<std::size_t>(Mark::count)> kMarkNames{
    "torn_tail",           "released_passed_over", "log_rewritten",     "log_stopped",         "initial_resumed",
    "aborts_joined",       "aborts_forgotten",     "drop_waits",        "block_cut",           "moved_twice",
    "cold_given_up",       "settler_met_damage",   "index_rebuilt",     "index_damaged",       "clone_reads_parent",
    "clone_of_clone_read", "no_segment",           "refused_for_space", "checker_found_damage"};

}  // namespace tidemark
