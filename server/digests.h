// The answer to a DigestRequest: SHA-256 of each 64 KiB chunk of a disk as of an epoch. The last chunk is padded with
// zeroes to whole granules. Chunks beyond the disk's end have no digest.
//
// A chunk that the store cannot read for damage gets a digest of 32 zero bytes: no content has it, so the agent sends
// the chunk again, and what was damaged is whole in the next epoch.
//
// Blocking: a worker's thread.
#pragma once

#include "base/ids.h"
#include "base/status.h"
#include "storage/partition.h"
#include "wire/tidemark.pb.h"

namespace tidemark::server {

Result<pb::DigestReply> compute_digests(storage::Partition& partition, const MachineId& machine,
                                        const pb::DigestRequest& request);
// The same over an open reader.
Result<pb::DigestReply> compute_digests(storage::Reader& reader, const pb::DigestRequest& request);

}  // namespace tidemark::server
