#include "storage/index.h"

#include <rocksdb/cache.h>
#include <rocksdb/convenience.h>
#include <rocksdb/env.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/rate_limiter.h>
#include <rocksdb/slice_transform.h>
#include <rocksdb/table.h>
#include <rocksdb/write_buffer_manager.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <string_view>
#include <system_error>

#include "base/no_blocking.h"
#include "base/planted.h"
#include "storage/epoch_progress.h"
#include "storage/index_impl.h"
#include "storage/segment_kind.h"

namespace tidemark::storage {

namespace {

constexpr char kRebuild[] = "it is made again from the log";

constexpr std::uint64_t kLayout = 3;  // of keys and values; 2 had the bytes of a volume in one count, 1 none

bool has(rocksdb::CompressionType type) {
  const auto all = rocksdb::GetSupportedCompressions();
  return std::find(all.begin(), all.end(), type) != all.end();
}

// What RocksDB has to say goes where everything goes. Not into a file of its own: one that cannot be written to any
// more, for want of space, is an assertion of Debian's RocksDB, and the end of the process.
class RocksLog final : public rocksdb::Logger {
 public:
  explicit RocksLog(std::string directory) : Logger(rocksdb::WARN_LEVEL), directory_(std::move(directory)) {}
  using Logger::Logv;
  void Logv(const char* format, va_list arguments) override {
    std::array<char, 512> text{};  // what is longer is cut off
    std::vsnprintf(text.data(), text.size(), format, arguments);
    std::string_view line(text.data());
    while (line.ends_with('\n')) line.remove_suffix(1);
    spdlog::info("event=rocksdb path={} text=\"{}\"", directory_, line);
  }

 private:
  const std::string directory_;
};

rocksdb::Options rocksdb_options(const std::string& directory, const IndexOptions& options) {
  rocksdb::Options db;
  db.create_if_missing = true;
  db.avoid_flush_during_shutdown = true;  // dropped without flush() it is as after a crash, and tests rely on that
  db.max_background_jobs = 2;
  db.max_open_files = 256;
  db.write_buffer_size = std::max<std::size_t>(options.write_buffer_bytes / 2, 1 << 20);
  db.max_write_buffer_number = 3;
  db.level_compaction_dynamic_level_bytes = true;
  db.compression = has(rocksdb::kLZ4Compression) ? rocksdb::kLZ4Compression : rocksdb::kNoCompression;
  db.bottommost_compression = has(rocksdb::kZSTD) ? rocksdb::kZSTD : db.compression;
  db.prefix_extractor.reset(rocksdb::NewFixedPrefixTransform(keys::kRegionPrefix));
  db.memtable_prefix_bloom_size_ratio = 0.05;
  db.bytes_per_sync = 1 << 20;
  db.manifest_preallocation_size = 64 << 10;  // at 4 MiB each start of a partition would write so many zeroes
  db.rate_limiter.reset(rocksdb::NewGenericRateLimiter(128 << 20));
  db.info_log = std::make_shared<RocksLog>(directory);
  const auto cache = rocksdb::NewLRUCache(options.cache_bytes);
  db.write_buffer_manager = std::make_shared<rocksdb::WriteBufferManager>(options.write_buffer_bytes, cache);
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = cache;
  table.cache_index_and_filter_blocks = true;
  table.pin_l0_filter_and_index_blocks_in_cache = true;
  table.block_size = 16 << 10;
  table.filter_policy.reset(rocksdb::NewRibbonFilterPolicy(10));
  table.whole_key_filtering = false;
  table.format_version = 5;
  db.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return db;
}

}  // namespace

template <typename Message>
Result<std::shared_ptr<const Message>> Index::Impl::parse(rocksdb::Slice bytes) const {
  auto message = std::make_shared<Message>();
  if (!message->ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return damaged("an entry of the index cannot be parsed");
  return std::shared_ptr<const Message>(std::move(message));
}

std::string after_prefix(std::string_view key) {
  std::string bound(key);
  while (!bound.empty() && static_cast<std::uint8_t>(bound.back()) == 0xff) bound.pop_back();
  if (!bound.empty()) bound.back() = static_cast<char>(static_cast<std::uint8_t>(bound.back()) + 1);
  return bound;
}

std::unexpected<Error> Index::Impl::error(const rocksdb::Status& status, std::string_view doing) const {
  Code code = Code::internal;
  std::string remedy;
  if (status.IsCorruption()) return damaged("the index cannot " + std::string(doing) + ": " + status.ToString());
  if (status.IsNoSpace()) {
    code = Code::no_space;
    remedy = "free space on its file system";
  } else if (status.IsIOError()) {
    code = Code::io;
  } else if (status.IsBusy() || status.IsTryAgain()) {
    code = Code::busy;
  }
  return fail(code, directory, "the index cannot " + std::string(doing) + ": " + status.ToString(), std::move(remedy));
}

std::unexpected<Error> Index::Impl::damaged(std::string what) const {
  auto found = fail(Code::corrupt, directory, std::move(what), kRebuild);
  const std::lock_guard lock(damage_mutex);
  if (!damage) damage = found.error();
  return found;
}

std::optional<Error> Index::damage() const {
  const std::lock_guard lock(impl_->damage_mutex);
  return impl_->damage;
}

std::optional<IndexedMachine> Index::Impl::find(const MachineId& machine) const {
  const std::shared_lock lock(mutex);
  const auto found = machines.find(machine);
  if (found == machines.end()) return std::nullopt;
  return found->second;
}

Status Index::Impl::load() {
  const rocksdb::ReadOptions plain;
  std::string value;
  rocksdb::Status status = db->Get(plain, slice(keys::mark()), &value);
  if (status.ok()) {
    auto read = keys::decode_mark(value);
    if (!read) return damaged("the index has a damaged mark");
    mark = persisted = *read;
  } else if (!status.IsNotFound()) {
    return error(status, "read its mark");
  }
  const bool fresh = status.IsNotFound();
  status = db->Get(plain, slice(keys::Key(keys::Tag::layout)), &value);
  if (!status.ok() && !status.IsNotFound()) return error(status, "be read");
  if (!fresh && value != keys::encode_count(kLayout))
    return damaged("the index is of another layout than this program's");
  if (fresh) status = db->Put(write_options(), slice(keys::Key(keys::Tag::layout)), keys::encode_count(kLayout));
  if (!status.ok()) return error(status, "be written");
  rocksdb::ReadOptions ordered;
  ordered.total_order_seek = true;
  status = db->Get(plain, slice(keys::Key(keys::Tag::rebuilding)), &value);
  if (status.ok()) return damaged("an earlier rebuild of the index was cut off");
  if (!status.IsNotFound()) return error(status, "be read");
  const std::unique_ptr<rocksdb::Iterator> it(db->NewIterator(ordered));
  const auto begins = [](rocksdb::Slice key, keys::Tag tag) {
    return !key.empty() && static_cast<std::uint8_t>(key[0]) == static_cast<std::uint8_t>(tag);
  };
  for (const auto& [tag, counts] : {std::pair(keys::Tag::live, &live), std::pair(keys::Tag::kept, &kept)}) {
    for (it->Seek(slice(keys::Key(tag))); it->Valid() && begins(it->key(), tag); it->Next()) {
      if (it->key().size() != 9 || it->value().size() != 8) {
        return damaged("the index has a damaged segment count");
      }
      (*counts)[SegmentId(keys::read_big_endian(it->key().ToStringView().substr(1)))] =
          keys::read_big_endian(it->value().ToStringView());
    }
    TIDEMARK_TRY(it->status().ok() ? Status() : Status(error(it->status(), "be read")));
  }
  for (it->Seek(slice(keys::Key(keys::Tag::stored))); it->Valid() && begins(it->key(), keys::Tag::stored); it->Next()) {
    if (it->key().size() != 5 || it->value().size() != 16) {
      return damaged("the index has a damaged volume count");
    }
    const std::string_view bytes = it->value().ToStringView();
    stored[VolumeId(static_cast<std::uint32_t>(keys::read_big_endian(it->key().ToStringView().substr(1))))] = {
        .log = keys::read_big_endian(bytes.substr(0, 8)), .cold = keys::read_big_endian(bytes.substr(8))};
  }
  TIDEMARK_TRY(it->status().ok() ? Status() : Status(error(it->status(), "be read")));
  // In order and once through: of clones that were dropped there may be many.
  const auto of_each = [&](keys::Tag tag, const auto& take) -> Status {
    for (it->Seek(slice(keys::Key(tag))); it->Valid() && begins(it->key(), tag); it->Next()) {
      const auto id = machine_from_bytes(std::string(it->key().ToStringView().substr(1)));
      if (!id) return damaged("the index has a damaged machine");
      TIDEMARK_TRY(take(machines[*id], it->value()));
    }
    return it->status().ok() ? Status() : Status(error(it->status(), "be read"));
  };
  const auto into = [&]<typename Message>(std::shared_ptr<const Message> IndexedMachine::* part) {
    return [this, part](IndexedMachine& machine, rocksdb::Slice bytes) -> Status {
      machine.*part = TIDEMARK_TRY(parse<Message>(bytes));
      return {};
    };
  };
  TIDEMARK_TRY(of_each(keys::Tag::machine, into(&IndexedMachine::record)));
  TIDEMARK_TRY(of_each(keys::Tag::homes, into(&IndexedMachine::homes)));
  TIDEMARK_TRY(of_each(keys::Tag::open_epoch, into(&IndexedMachine::open)));
  TIDEMARK_TRY(of_each(keys::Tag::aborted, into(&IndexedMachine::aborted)));
  for (auto& [id, machine] : machines) {
    if (!machine.record || !machine.homes)
      return damaged("the index does not have a machine's record, or where it stands");
    if (machine.record->removed()) continue;
    const auto prefix = keys::of_machine(keys::Tag::epoch, id);
    it->Seek(slice(prefix));
    if (it->Valid() && it->key().starts_with(slice(prefix))) {
      machine.newest = TIDEMARK_TRY(parse<pb::EpochEntry>(it->value()));
    }
    if (!it->status().ok()) return error(it->status(), "be read");
  }
  return {};
}

Result<std::unique_ptr<Index>> Index::open(const std::string& directory, const IndexOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->directory = directory;
  impl->write_buffer_bytes = options.write_buffer_bytes;
  std::error_code failure;
  std::filesystem::create_directories(directory, failure);
  if (failure) return fail_errno(failure.value(), directory, "make the directory");
  rocksdb::DB* db = nullptr;
  const rocksdb::Status status = rocksdb::DB::Open(rocksdb_options(directory, options), directory, &db);
  // A manifest or a table that is named but not there, or of the wrong kind, is damage as well: all of it is derived.
  if (status.IsInvalidArgument() || status.IsNotFound() || status.IsPathNotFound()) {
    return impl->error(rocksdb::Status::Corruption(status.ToString()), "be opened");
  }
  if (!status.ok()) return impl->error(status, "be opened");
  impl->db.reset(db);
  TIDEMARK_TRY(impl->load());
  return std::unique_ptr<Index>(new Index(std::move(impl)));
}

Index::Index(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Index::~Index() = default;

bool Index::exists(const std::string& directory) {
  std::error_code unknown;  // what cannot be looked at cannot be opened either, and that says why
  return std::filesystem::exists(directory + "/CURRENT", unknown);
}

Status Index::destroy(const std::string& directory) {
  std::error_code failure;
  std::filesystem::remove_all(directory, failure);
  if (failure) return fail_errno(failure.value(), directory, "remove the index");
  return {};
}

LogMark Index::mark() const {
  const std::shared_lock lock(impl_->mutex);
  return impl_->mark;
}

LogMark Index::persisted_mark() const {
  const std::shared_lock lock(impl_->mutex);
  return impl_->persisted;
}

Status Index::Impl::check_space() const {
  constexpr std::uint64_t kBeside = 4 << 20;  // the manifest, and what RocksDB logs
  std::uint64_t in_memory = 0;
  db->GetIntProperty(rocksdb::DB::Properties::kSizeAllMemTables, &in_memory);
  std::error_code failed;
  const auto space = std::filesystem::space(directory, failed);
  if (failed || space.available >= in_memory + kBeside) return {};
  return fail(Code::no_space, directory,
              "the index has " + std::to_string(in_memory >> 20) + " MiB to write, and its file system has " +
                  std::to_string(space.available >> 20) + " MiB left",
              "free space on its file system");
}

bool Index::Impl::has_room() const {
  std::uint64_t in_use = 0;
  db->GetIntProperty(rocksdb::DB::Properties::kCurSizeActiveMemTable, &in_use);
  return in_use < write_buffer_bytes / 4;  // RocksDB writes out at about half; a batch is far below the rest
}

Status Index::flush() {
  TIDEMARK_TRY(impl_->check_space());
  LogMark flushed;
  std::vector<SegmentId> unreferenced;
  {
    const std::shared_lock lock(impl_->mutex);
    flushed = impl_->mark;
    for (const auto& [segment, references] : impl_->live) {
      const bool settled = is_cold(segment) ? !impl_->adding.contains(segment) : segment < flushed.segment;
      if (references == 0 && settled) unreferenced.push_back(segment);
    }
  }
  rocksdb::FlushOptions options;
  options.wait = true;
  options.allow_write_stall = true;
  const rocksdb::Status status = impl_->db->Flush(options);
  if (!status.ok()) return impl_->error(status, "be flushed");
  const std::unique_lock lock(impl_->mutex);
  impl_->persisted = flushed;
  impl_->unreferenced = std::move(unreferenced);
  return {};
}

Status Index::resume() {
  const rocksdb::Status status = impl_->db->Resume();
  if (!status.ok()) return impl_->error(status, "resume after an error");
  return {};
}

std::vector<pb::MachineRecord> Index::machines() const {
  const std::shared_lock lock(impl_->mutex);
  std::vector<pb::MachineRecord> all;
  for (const auto& [id, machine] : impl_->machines) all.push_back(*machine.record);
  return all;
}

std::optional<pb::MachineRecord> Index::machine(const MachineId& machine) const {
  const auto found = impl_->find(machine);
  if (!found) return std::nullopt;
  return *found->record;
}

EpochNumber Index::highest_epoch(const MachineId& machine) const {
  const auto found = impl_->find(machine);
  if (!found) return {};
  std::uint64_t highest = 0;
  if (found->newest) highest = found->newest->number();
  if (found->open) highest = std::max(highest, found->open->number());
  if (found->aborted) highest = std::max(highest, found->aborted->highest_epoch());
  return EpochNumber(highest);
}

std::optional<pb::OpenEpochEntry> Index::open_epoch(const MachineId& machine) const {
  const auto found = impl_->find(machine);
  if (!found || !found->open) return std::nullopt;
  return *found->open;
}

std::optional<pb::EpochEntry> Index::newest_epoch(const MachineId& machine) const {
  const auto found = impl_->find(machine);
  if (!found || !found->newest) return std::nullopt;
  return *found->newest;
}

Result<std::optional<pb::EpochEntry>> Index::epoch(const MachineId& machine, EpochNumber number) const {
  const auto found = impl_->find(machine);
  // What RocksDB has already and memory has not is being applied: not visible yet.
  if (!found || !found->newest || found->newest->number() < number.value()) return std::nullopt;
  if (found->newest->number() == number.value()) return *found->newest;
  about_to_block("look up a point");
  std::string value;
  const rocksdb::Status status = impl_->db->Get(rocksdb::ReadOptions(), slice(keys::epoch(machine, number)), &value);
  if (status.IsNotFound()) return std::nullopt;
  if (!status.ok()) return impl_->error(status, "be read");
  return *TIDEMARK_TRY(impl_->parse<pb::EpochEntry>(value));
}

Result<std::vector<pb::EpochEntry>> Index::epochs(const MachineId& machine, std::size_t limit, bool with_fuzzy,
                                                  EpochNumber through) const {
  std::vector<pb::EpochEntry> all;
  const auto found = impl_->find(machine);
  if (!found || !found->newest) return all;
  about_to_block("list points");
  const auto prefix = keys::of_machine(keys::Tag::epoch, machine);
  const std::string bound = after_prefix(prefix.view());
  const rocksdb::Slice upper(bound);
  rocksdb::ReadOptions options;
  options.total_order_seek = true;
  options.iterate_upper_bound = &upper;
  const std::unique_ptr<rocksdb::Iterator> it(impl_->db->NewIterator(options));
  const EpochNumber first = std::min(through, EpochNumber(found->newest->number()));
  for (it->Seek(slice(keys::epoch(machine, first))); it->Valid(); it->Next()) {
    auto entry = TIDEMARK_TRY(impl_->parse<pb::EpochEntry>(it->value()));
    if (entry->consistency() == kFuzzy && !with_fuzzy) continue;
    all.push_back(*entry);
    if (limit != 0 && all.size() == limit) break;
  }
  if (!it->status().ok()) return impl_->error(it->status(), "be read");
  return all;
}

Result<std::optional<pb::EpochEntry>> Index::first_to_see(const MachineId& machine, EpochNumber epoch) const {
  const auto newest = newest_epoch(machine);
  if (!newest || newest->number() < epoch.value()) return std::nullopt;
  about_to_block("look up a point");
  const auto prefix = keys::of_machine(keys::Tag::epoch, machine);
  rocksdb::ReadOptions options;
  options.total_order_seek = true;
  const std::unique_ptr<rocksdb::Iterator> it(impl_->db->NewIterator(options));
  it->SeekForPrev(slice(keys::epoch(machine, epoch)));  // newer ones stand before it
  if (!it->status().ok()) return impl_->error(it->status(), "be read");
  if (!it->Valid() || !it->key().starts_with(slice(prefix))) return newest;
  return *TIDEMARK_TRY(impl_->parse<pb::EpochEntry>(it->value()));
}

Result<std::uint64_t> Index::live_references(SegmentId segment) const {
  const std::shared_lock lock(impl_->mutex);
  const auto found = impl_->live.find(segment);
  return found == impl_->live.end() ? 0 : found->second;
}

std::vector<SegmentId> Index::unreferenced_segments() const {
  const std::shared_lock lock(impl_->mutex);
  if (planted(Planted::freed_before_flush)) {
    std::vector<SegmentId> now;
    for (const auto& [segment, references] : impl_->live) {
      if (references == 0 && (is_cold(segment) || segment < impl_->mark.segment)) now.push_back(segment);
    }
    return now;
  }
  return impl_->unreferenced;
}

std::vector<std::pair<SegmentId, std::uint64_t>> Index::segments() const {
  const std::shared_lock lock(impl_->mutex);
  return {impl_->live.begin(), impl_->live.end()};
}

std::optional<pb::MachineHomes> Index::homes(const MachineId& machine) const {
  const auto found = impl_->find(machine);
  if (!found) return std::nullopt;
  return *found->homes;
}

std::optional<pb::AbortedRanges> Index::aborted(const MachineId& machine) const {
  const auto found = impl_->find(machine);
  if (!found || !found->aborted) return std::nullopt;
  return *found->aborted;
}

bool Index::knows_segment(SegmentId segment) const {
  const std::shared_lock lock(impl_->mutex);
  return impl_->live.contains(segment);
}

std::optional<SegmentId> Index::segment_behind_but(SegmentId segment, const std::vector<SegmentId>& these) const {
  const std::shared_lock lock(impl_->mutex);
  for (auto it = impl_->live.upper_bound(segment); it != impl_->live.end(); ++it) {
    if (!is_cold(it->first) && std::find(these.begin(), these.end(), it->first) == these.end()) return it->first;
  }
  return std::nullopt;
}

std::optional<SegmentId> Index::oldest_segment_but(const std::vector<SegmentId>& these) const {
  return segment_behind_but(SegmentId(), these);
}

Status Index::forget_segment(SegmentId segment) {
  rocksdb::WriteBatch batch;
  rocksdb::Status status = batch.Delete(slice(keys::live(segment)));
  if (status.ok() && kept_with(segment)) status = batch.Delete(slice(keys::kept(segment)));
  if (status.ok()) status = impl_->db->Write(write_options(), &batch);
  if (!status.ok()) return impl_->error(status, "forget a segment");
  const std::unique_lock lock(impl_->mutex);
  impl_->live.erase(segment);
  impl_->kept.erase(segment);
  std::erase(impl_->unreferenced, segment);
  return {};
}

Status Index::note_kept(SegmentId segment, std::uint64_t references) {
  const auto value = keys::Key(keys::Tag::mark).u64(references);
  const rocksdb::Status status =
      impl_->db->Put(write_options(), slice(keys::kept(segment)), slice(value.view().substr(1)));
  if (!status.ok()) return impl_->error(status, "be written");
  const std::unique_lock lock(impl_->mutex);
  impl_->kept[segment] = references;
  return {};
}

std::optional<std::uint64_t> Index::kept_with(SegmentId segment) const {
  const std::shared_lock lock(impl_->mutex);
  const auto found = impl_->kept.find(segment);
  return found == impl_->kept.end() ? std::nullopt : std::optional(found->second);
}

Index::Usage Index::usage() const {
  const auto property = [&](const std::string& name) {
    std::uint64_t value = 0;
    return impl_->db->GetIntProperty(name, &value) ? value : 0;
  };
  std::map<std::string, std::string> written;
  impl_->db->GetMapProperty(rocksdb::DB::Properties::kCFStats, &written);
  const auto gib = written.find("compaction.Sum.WriteGB");  // flushes are counted there as well
  std::uint64_t segments = 0, cold_segments = 0, stored_bytes = 0;
  {
    const std::shared_lock lock(impl_->mutex);
    for (const auto& [segment, references] : impl_->live) ++(is_cold(segment) ? cold_segments : segments);
    for (const auto& [volume, bytes] : impl_->stored) stored_bytes += bytes.total();
  }
  return {.deltas = property(rocksdb::DB::Properties::kEstimateNumKeys),
          .disk_bytes = property(rocksdb::DB::Properties::kTotalSstFilesSize),
          .memory_bytes = property(rocksdb::DB::Properties::kCurSizeAllMemTables) +
                          property(rocksdb::DB::Properties::kBlockCacheUsage) +
                          property(rocksdb::DB::Properties::kEstimateTableReadersMem),
          .segments = segments,
          .cold_segments = cold_segments,
          .stored_bytes = stored_bytes,
          .written_bytes = gib == written.end()
                               ? 0
                               : static_cast<std::uint64_t>(std::strtod(gib->second.c_str(), nullptr) * 0x1p30)};
}

}  // namespace tidemark::storage
