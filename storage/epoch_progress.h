// How an epoch grows from its records: shared by the index (what it keeps) and the catalog (what a shard knows), so
// that both always tell the same. Pure functions.
#pragma once

#include <span>
#include <string>

#include "base/checksum.h"
#include "base/ids.h"
#include "base/status.h"
#include "storage/commit_info.h"
#include "storage/records.pb.h"

namespace tidemark::storage {

std::string hash_to_bytes(const Hash128& hash);
Hash128 hash_from_bytes(const std::string& bytes);  // zero when they are not 16
std::string machine_to_bytes(const MachineId& machine);
Result<MachineId> machine_from_bytes(const std::string& bytes);

// wire's EpochKind INITIAL: the one kind that may be resumed.
inline constexpr std::uint32_t kInitialEpoch = 1;
// wire's Consistency FUZZY: never a recovery point.
inline constexpr std::uint32_t kFuzzy = 1;

// `resumed`: what was open, when the record begins the same epoch again; its progress stays.
pb::OpenEpochEntry begin_epoch_entry(const pb::EpochBeginRecord& begin, Lsn lsn, const pb::OpenEpochEntry* resumed);
void add_blocks(pb::OpenEpochEntry& open, const RecordInfo& record, std::span<const BlockPlace> blocks);
pb::EpochEntry commit_epoch_entry(const pb::OpenEpochEntry& open, const pb::EpochCommitRecord& commit, Lsn lsn);

// A control record's payload, parsed. Code::corrupt names the record.
template <typename Message>
Result<Message> parse_record(const RecordInfo& record) {
  Message message;
  if (!message.ParseFromString(record.control)) {
    return fail(Code::corrupt, "log record " + std::to_string(record.lsn.value()), "its payload cannot be parsed");
  }
  return message;
}

}  // namespace tidemark::storage
