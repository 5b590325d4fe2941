// The file `integrity` in a partition's directory: an IntegrityRecord (storage/records.proto), replaced whole and
// atomically. docs/index_format.md has its bytes.
//
// It proves nothing that reading the data again would not prove: whoever finds it missing or damaged begins anew.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "storage/file.h"
#include "storage/records.pb.h"

namespace tidemark::storage {

std::vector<std::byte> encode_integrity(const pb::IntegrityRecord& record);
// Any bytes: Code::corrupt or Code::unsupported.
Result<pb::IntegrityRecord> decode_integrity(std::span<const std::byte> bytes, const std::string& path);

Status write_integrity(FileSystem& files, const std::string& directory, const pb::IntegrityRecord& record);
// No file: nothing was checked yet.
Result<pb::IntegrityRecord> read_integrity(FileSystem& files, const std::string& directory);

}  // namespace tidemark::storage
