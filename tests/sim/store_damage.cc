// Damage done to a closed store: flipped bits and misdirected writes, and what must come of them.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "storage/log_format.h"
#include "storage/segment_keeper.h"
#include "tests/sim/store_checker.h"

namespace tidemark::sim {

// A bit anywhere in a cold segment: in a block, its table, or where nothing is.
std::optional<StoreChecker::Damage> StoreChecker::damage_cold() {
  const std::string cold = std::string(StoreRig::kDirectory) + "/cold";
  const auto names = rig_.files().list(cold);
  if (!names || names->empty()) return std::nullopt;
  Damage damage{.path = cold + "/" + (*names)[random_.below(names->size())], .offset = 0, .before = {}};
  auto file = rig_.files().open(damage.path, storage::OpenMode::read, true);
  if (!file || !damage.path.ends_with(".segment")) return std::nullopt;
  const std::uint64_t size = (*file)->size().value_or(0);
  if (size == 0) return std::nullopt;
  damage.offset = random_.below(size);
  AlignedBuffer block(limits::kIoAlignment);
  if (!(*file)->read_at(damage.offset / limits::kIoAlignment * limits::kIoAlignment, block.span())) return std::nullopt;
  damage.before.assign(1, block.span()[damage.offset % limits::kIoAlignment]);
  if (!rig_.disk().flip_bit(damage.path, damage.offset, static_cast<unsigned>(random_.below(8)))) return std::nullopt;
  ++run_.damages;
  return damage;
}

std::optional<StoreChecker::Damage> StoreChecker::do_damage() {
  storage::FileSystem& files = rig_.files();
  if (random_.chance(0.3)) {
    if (auto damage = damage_cold()) return damage;
  }
  const std::string log = std::string(StoreRig::kDirectory) + "/log";
  struct Place {
    std::string path;
    std::uint64_t offset, size, lsn;
  };
  std::vector<Place> commits;
  const auto names = files.list(log);
  if (!names) {
    fail("list: " + names.error().message());
    return std::nullopt;
  }
  AlignedBuffer bytes;
  for (const std::string& name : *names) {
    const auto id = storage::parse_segment_name(name);
    if (!id) continue;
    auto file = files.open(log + "/" + name, storage::OpenMode::read, true);
    if (!file) continue;
    bytes = AlignedBuffer((*file)->size().value_or(0));
    const std::size_t size = (*file)->read_at(0, bytes.span()).value_or(0);
    for (std::size_t at = 0; at + limits::kIoAlignment <= size; at += limits::kIoAlignment) {
      storage::CommitHeader header;
      std::memcpy(&header, bytes.data() + at, sizeof header);
      if (header.magic != storage::kCommitMagic || header.segment != id->value() || header.offset != at) continue;
      if (header.record_count == 0 || at + header.size > size) continue;
      commits.push_back({log + "/" + name, at, header.size, header.first_lsn});
    }
  }
  if (commits.empty()) return std::nullopt;
  const auto newest = std::max_element(commits.begin(), commits.end(), [](auto& a, auto& b) { return a.lsn < b.lsn; });
  const Place& place = random_.chance(0.4) ? *newest : commits[random_.below(commits.size())];
  Damage damage{.path = place.path, .offset = 0, .before = {}};
  const double kind = static_cast<double>(random_.below(100)) / 100;
  ++run_.damages;
  if (kind < 0.75) {
    const std::uint64_t within = random_.chance(0.3) ? random_.below(128) : random_.below(place.size);
    damage.offset = place.offset + within;
    const auto bit = static_cast<unsigned>(random_.below(8));
    damage.before.resize(1);
    // Read through its block: the files of the log are read directly.
    auto file = files.open(damage.path, storage::OpenMode::read, true);
    AlignedBuffer block(limits::kIoAlignment);
    if (!file || !(*file)->read_at(damage.offset / limits::kIoAlignment * limits::kIoAlignment, block.span()))
      return std::nullopt;
    damage.before[0] = block.span()[damage.offset % limits::kIoAlignment];
    if (!rig_.disk().flip_bit(damage.path, damage.offset, bit)) return std::nullopt;
    return damage;
  }
  // A write that went to the wrong place: another commit's bytes stand here.
  const Place& other = commits[random_.below(commits.size())];
  auto from = files.open(other.path, storage::OpenMode::read, true);
  auto to = files.open(place.path, storage::OpenMode::read, true);
  const std::uint64_t size = std::min(other.size, place.size);
  AlignedBuffer wrong(size), right(size);
  if (!from || !to || !(*from)->read_at(other.offset, wrong.span()) || !(*to)->read_at(place.offset, right.span())) {
    return std::nullopt;
  }
  damage.offset = place.offset;
  damage.before.assign(right.span().begin(), right.span().end());
  if (!rig_.disk().overwrite(damage.path, damage.offset, wrong.span())) return std::nullopt;
  return damage;
}

bool StoreChecker::scrub_through() {
  run_.count(StoreOp::scrub);
  storage::Checker& checker = rig_.store().checker();
  const auto to_its_end = [&] {
    const auto before = checker.stats().scrubs;
    checker.start_scrub();
    for (int step = 0; step < 10'000 && checker.stats().scrubs == before; ++step) {
      if (!checker.step() && step > 0 && checker.stats().error) return false;
    }
    return checker.stats().scrubs != before;
  };
  // One that runs already may have met what could not be read for a while.
  if (checker.scrub().running && !to_its_end()) return false;
  return to_its_end();
}

void StoreChecker::scrub() {
  if (!scrub_through()) {
    const bool excused = rig_.disk().powered_off() || rig_.stopped() || lied_;
    if (!excused) fail("a scrub did not come to its end");
    return;
  }
  if (lied_ || rig_.disk().powered_off()) return;
  if (const auto damage = rig_.store().checker().damage(); !damage.empty())
    fail("a scrub finds damage where none was done: " + damage.front().extent.what);
}

// Whoever reads meets EIO: those in the background try again, and nothing that is read is wrong.
void StoreChecker::read_errors() {
  const storage::SimFaults before = rig_.disk().faults();
  storage::SimFaults faults = before;
  faults.read_error = random_.chance(0.5) ? 0.02 : 0.3;
  rig_.disk().set_faults(faults);
  idle();
  take_acks();
  unreadable_ = true;
  verify(1, lied_);
  unreadable_ = false;
  rig_.disk().set_faults(before);
}

void StoreChecker::damage_and_start(Lsn last) {
  if (failed() || rig_.running()) return;
  const auto damage = do_damage();
  if (failed()) return;
  if (!damage) return start();
  if (random_.chance(0.2)) lose_index();
  run_.count(damage->before.size() == 1 ? StoreOp::bit_flip : StoreOp::misdirected);
  trace(fmt::format("damaged {} at {}, {} bytes", damage->path, damage->offset, damage->before.size()));
  if (const auto opened = rig_.open(); !opened) {
    if (opened.error().code != Code::corrupt) return fail("open of a damaged store: " + opened.error().message());
    trace("refused: " + opened.error().message());
    ++run_.damage_found;
  } else {
    trace(fmt::format("opened all the same: durable LSN {}, log up to {}", rig_.opened().recovery.durable_lsn.value(),
                      rig_.opened().recovery.tail.last_lsn.value()));
    // It opened: then nothing acknowledged is missing, and what is read is right or an error. A last commit that
    // nothing behind it calls durable passes for a torn one: it is dropped, and the damage with it.
    const bool dropped_it = rig_.opened().recovery.tail.last_lsn < last;
    std::vector<std::uint32_t> dropped;
    for (auto& [number, machine] : machines_) {
      bool drop = false;
      compare_after_start(machine, drop);
      if (failed()) return;
      if (drop) dropped.push_back(number);
    }
    for (const std::uint32_t number : dropped) machines_.erase(number);
    pump(true);
    take_acks();
    // What a reader would meet, the scrub meets before it.
    const bool scrubbed = scrub_through();
    const bool nothing = scrubbed && rig_.store().checker().damage().empty();
    const std::uint64_t found = run_.damage_found;
    verify(3, !dropped_it);
    if (nothing && run_.damage_found != found) fail("a scrub passed over damage that a reader met");
    if (failed() || dropped_it) return;
    rig_.kill();
  }
  // It may have hit what nothing led to any more, and that was put away.
  if (!rig_.running() && rig_.files().exists(damage->path) == false) return start();
  if (!rig_.disk().overwrite(damage->path, damage->offset, damage->before)) return fail("the damage cannot be mended");
  start();
}

}  // namespace tidemark::sim
