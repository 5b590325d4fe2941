#include "tests/sim/store_model.h"

#include <fmt/format.h>

#include <cstdlib>
#include <limits>
#include <numeric>
#include <string_view>

#include "tests/sim/store_checker.h"

namespace tidemark::sim {

namespace {

constexpr std::uint64_t kSteps = 220;

constexpr std::array<std::string_view, static_cast<std::size_t>(StoreOp::count)> kOpNames{
    "machine", "begin",  "append",     "bulk",        "commit",     "abort",    "prune",       "drop",
    "fold",    "settle", "clone",      "clone_write", "clone_drop", "scrub",    "verify",      "turn",
    "crash",   "close",  "clock_jump", "eio",         "enospc",     "bit_flip", "misdirected", "index_lost"};

storage::PartitionOptions small_store(Random& random) {
  storage::PartitionOptions options;
  options.segment_size = random.chance(0.5) ? 256_KiB : 512_KiB;
  options.reserve_segments = 1;
  options.commits_in_flight_max = 1 + static_cast<std::uint32_t>(random.below(4));
  options.free_space_min = random.chance(0.3) ? 512_KiB : 0;
  const std::uint64_t flushes[] = {64_KiB, 1_MiB, 1_GiB};
  options.index_flush_bytes = flushes[random.below(3)];
  // Most stores settle whatever is not in the newest segment at once; some never do.
  options.settler.settle_after_us = random.chance(0.75) ? 0 : 1'000'000'000'000;
  options.settler.fold_every_us = 0;
  options.settler.log_garbage_max = random.chance(0.4) ? -1 : static_cast<double>(1 + random.below(8)) / 10;
  options.settler.cold_segment_size = random.chance(0.5) ? 64_KiB : 1_MiB;
  options.settler.victims_max = 1 + static_cast<std::uint32_t>(random.below(4));
  options.settler.garbage_max = static_cast<double>(random.below(5)) / 10;
  options.index = {.cache_bytes = 2_MiB, .write_buffer_bytes = 4_MiB};
  return options;
}

// A fifth of the histories are of encrypted stores; their master key changes between lives.
storage::PartitionOptions encrypted_sometimes(storage::PartitionOptions options, std::uint64_t seed) {
  if (seed % 5 != 1) return options;
  options.encrypt = true;
  options.master_keys = std::make_shared<const storage::MasterKeys>(storage::MasterKeys("sim").with_new_key(0));
  return options;
}

void step(StoreChecker& checker) {
  Random& random = checker.random();
  const std::uint64_t choice = random.below(1000);
  ModelMachine* machine = checker.any_machine();
  if (machine == nullptr || (choice < 8 && checker.machines().size() < 3)) return checker.add_machine();
  if (machine->base ? random.chance(0.02) : choice < 48 && choice >= 45 && machine->acked.size() > 2)
    return checker.remove(*machine);
  if (!machine->base && (machine->disks.empty() || choice < 20)) return checker.open_disk(*machine);
  if (choice < 24) return checker.rename(*machine);
  if (choice < 45) return checker.drop(*machine);
  if (choice < 60 && checker.machines().size() < 8) return checker.clone(checker.number_of(*machine));
  if (choice < 70) return checker.pin(*machine);
  if (choice < 95) return checker.prune(*machine);
  if (choice < 98) return checker.jump_clock();
  if (choice < 500) {
    if (!machine->open) return checker.begin(*machine, random.chance(0.4) ? storage::kInitialEpoch : 2);
    if (machine->open->kind == storage::kInitialEpoch && random.chance(0.2)) return checker.bulk(*machine);
    if (random.chance(0.55)) return checker.blocks(*machine);
    return random.chance(0.75) ? checker.commit(*machine) : checker.abort(*machine);
  }
  if (choice < 780) return checker.pump(random.chance(0.3));
  if (choice < 860) return checker.idle();
  if (choice < 895) return checker.verify(1, checker.lied());
  if (choice < 900) return checker.scrub();
  if (choice < 912) return checker.rig().disk().cut_power_at(checker.rig().disk().operations() + 1 + random.below(40));
  if (choice < 922) {
    checker.run().count(StoreOp::eio);
    if (random.chance(0.3)) return checker.read_errors();
    storage::SimFaults faults;
    (random.chance(0.7) ? faults.write_error : faults.short_write) = 0.1;
    if (random.chance(0.3)) faults.sync_error = 0.2;
    return checker.rig().disk().set_faults(faults);
  }
  if (choice < 932) return checker.rig().disk().set_faults({});
  if (choice < 936) {
    checker.run().count(StoreOp::enospc);
    return checker.rig().disk().set_capacity(1_MiB + random.below(2_MiB));
  }
  if (choice < 946) return checker.rig().disk().set_capacity(1_GiB);
  if (choice < 949) {
    storage::SimFaults faults;
    (random.chance(0.5) ? faults.lost_write : faults.misdirect) = 0.2;
    checker.set_lying(true);
    checker.trace("the disk lies from now on");
    checker.run().count(StoreOp::misdirected);
    return checker.rig().disk().set_faults(faults);
  }
  if (choice < 965 || checker.lied()) {
    checker.end(random.chance(0.5) ? StoreChecker::End::power_cut : StoreChecker::End::kill);
    if (random.chance(0.1)) checker.lose_index();
    return checker.start();
  }
  if (choice < 975) {
    checker.rig().disk().set_capacity(1_GiB);
    checker.end(StoreChecker::End::close);
    return checker.start();
  }
  // Everything is durable and the disk says so: from now on damage cannot pass for a torn tail.
  checker.rig().disk().set_faults({});
  checker.rig().disk().set_capacity(1_GiB);
  checker.rig().disk().cut_power_at(std::numeric_limits<std::uint64_t>::max());
  for (int round = 0; round < 3; ++round) {  // the first may wait for a segment, the last states what the others did
    checker.pump(true);
    checker.idle();
  }
  checker.pump(true);
  checker.settle();
  if (checker.failed() || !checker.rig().running()) return;
  const auto stats = checker.rig().store().stats();
  if (stats.last_lsn != stats.durable_lsn) return;
  checker.end(random.chance(0.5) ? StoreChecker::End::power_cut : StoreChecker::End::kill);
  checker.damage_and_start(stats.last_lsn);
}

}  // namespace

void StoreRun::add(const StoreRun& other) {
  for (std::size_t i = 0; i < done.size(); ++i) done[i] += other.done[i];
  disk_operations += other.disk_operations;
  steps += other.steps;
  crashes += other.crashes;
  epochs_acked += other.epochs_acked;
  epochs_checked += other.epochs_checked;
  points_dropped += other.points_dropped;
  points_pruned += other.points_pruned;
  clock_jumps += other.clock_jumps;
  clones_made += other.clones_made;
  clones_dropped += other.clones_dropped;
  bases_checked += other.bases_checked;
  blocks_moved += other.blocks_moved;
  segments_kept += other.segments_kept;
  regions_folded += other.regions_folded;
  rebuilds += other.rebuilds;
  damages += other.damages;
  damage_found += other.damage_found;
  if (!failure) failure = other.failure;
}

std::uint64_t StoreRun::operations() const { return std::accumulate(done.begin(), done.end(), std::uint64_t{0}); }

std::string StoreRun::summary() const {
  std::string each;
  for (std::size_t i = 0; i < done.size(); ++i) each += fmt::format(" {}={}", kOpNames[i], done[i]);
  return fmt::format(
      "operations={} ({}) steps={} disk_operations={} crashes={} epochs_acked={} epochs_checked={} points_dropped={} "
      "points_pruned={} "
      "clock_jumps={} clones_made={} "
      "clones_dropped={} bases_checked={} blocks_moved={} segments_kept={} "
      "regions_folded={} rebuilds={} damages={} damage_found={}{}",
      operations(), each.substr(1), steps, disk_operations, crashes, epochs_acked, epochs_checked, points_dropped,
      points_pruned, clock_jumps, clones_made, clones_dropped, bases_checked, blocks_moved, segments_kept,
      regions_folded, rebuilds, damages, damage_found, failure ? " FAILURE: " + *failure : "");
}

StoreRun run_store_history(std::uint64_t seed) {
  Random random(seed * 0x9e3779b97f4a7c15);
  const storage::PartitionOptions options = encrypted_sometimes(small_store(random), seed);
  StoreChecker checker(random.next(), options);
  checker.start();
  StoreRun& run = checker.run();
  for (; run.steps < kSteps && !checker.failed() && checker.rig().running(); ++run.steps) {
    step(checker);
    checker.settle();
    if (std::getenv("TIDEMARK_SIM_VERIFY") != nullptr && !checker.failed() && checker.rig().running()) {
      const Random kept = checker.random();  // the same history, looked at after every step
      checker.verify(1000, checker.lied());
      checker.random() = kept;
    }
  }
  if (!checker.failed() && checker.rig().running()) {
    checker.rig().disk().set_faults({});
    checker.rig().disk().set_capacity(1_GiB);
    checker.pump(true);
    checker.settle();
  }
  if (!checker.failed() && checker.rig().running()) checker.verify(1000, checker.lied());
  if (!checker.failed() && checker.rig().running()) {
    checker.end(StoreChecker::End::power_cut);
    checker.start();
    if (!checker.failed() && checker.rig().running()) checker.verify(1000, checker.lied());
  }
  run.disk_operations = checker.rig().operations();
  checker.rig().kill();
  run.blocks_moved = checker.rig().settled().blocks_moved;
  run.segments_kept = checker.rig().settled().segments_kept;
  run.regions_folded = checker.rig().settled().regions_folded;
  run.count(StoreOp::fold, run.regions_folded);
  run.count(StoreOp::settle, run.blocks_moved + run.segments_kept);
  return run;
}

StoreRun run_small_history(std::uint64_t seed, std::optional<std::uint64_t> operation) {
  Random random(seed);
  storage::PartitionOptions options = small_store(random);
  options.segment_size = 256_KiB;
  options.index_flush_bytes = 64_KiB;
  StoreChecker checker(seed, encrypted_sometimes(options, seed));
  StoreRun& run = checker.run();
  const std::uint64_t before = checker.rig().disk().operations();
  if (operation) checker.rig().disk().cut_power_at(before + *operation);
  checker.start();
  const std::uint64_t crashes = run.crashes;
  const auto went_on = [&](auto&& act) {
    if (checker.failed() || !checker.rig().running() || run.crashes != crashes || crashes != 0) return;
    act();
    ++run.steps;
    checker.settle();
  };
  const auto machine = [&]() -> ModelMachine& { return checker.machines().begin()->second; };
  went_on([&] { checker.add_machine(); });
  went_on([&] { checker.open_disk(machine()); });
  for (int epoch = 0; epoch < 4; ++epoch) {
    went_on([&] { checker.begin(machine(), epoch == 0 ? storage::kInitialEpoch : 2); });
    went_on([&] { checker.blocks(machine()); });
    went_on([&] { checker.pump(epoch % 2 == 0); });
    went_on([&] { checker.blocks(machine()); });
    if (epoch == 2) {
      went_on([&] { checker.abort(machine()); });
    } else {
      went_on([&] { checker.commit(machine()); });
    }
    went_on([&] { checker.pump(epoch == 1); });
    went_on([&] { checker.idle(); });
    if (epoch == 3) went_on([&] { checker.drop(machine()); });
    went_on([&] { checker.idle(); });
  }
  went_on([&] { checker.pump(true); });
  if (!checker.failed() && checker.rig().running()) checker.verify(1000, false);
  if (!checker.failed() && checker.rig().running() && run.crashes == 0) {
    checker.end(StoreChecker::End::power_cut);
    checker.start();
    if (!checker.failed()) checker.verify(1000, false);
  }
  run.disk_operations = checker.rig().operations() - before;
  return run;
}

Seeds seeds_from_environment(std::uint64_t first, std::uint64_t count) {
  const auto number = [](const char* name, std::uint64_t otherwise) {
    const char* text = std::getenv(name);
    return text != nullptr && *text != '\0' ? std::strtoull(text, nullptr, 10) : otherwise;
  };
  return {.first = number("TIDEMARK_SIM_SEED", first), .count = number("TIDEMARK_SIM_SEEDS", count)};
}

}  // namespace tidemark::sim
