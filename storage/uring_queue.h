// The production IoQueue: one private io_uring per shard. Files must be SystemFiles.
//
// Made and used on one thread. Durable writes carry RWF_DSYNC: on a written extent that is one device write with
// forced unit access, two to four times faster than a write and an fsync, which goes through a worker thread.
// The registered eventfd is what the owner waits on; reap() always enters the kernel first, because with deferred
// task work completions are only posted by the thread that asks for them.
#pragma once

#include <cstdint>
#include <memory>

#include "storage/file.h"

namespace tidemark::storage {

// `entries`: places in the submission queue; more may be in flight. Fails when the kernel has no io_uring or forbids
// it.
Result<std::unique_ptr<IoQueue>> make_uring_queue(std::uint32_t entries);

}  // namespace tidemark::storage
