// What a device of device mapper shows is decided by its table. The table can be exchanged while the device is in use,
// and then everything on it may be different without a write to it.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/crypto.h"
#include "base/status.h"

namespace tidemark::agent {

// SHA-256 of the table that is in use. unsupported: the table cannot be read, or it has a target of which it is not
// known that only writes to the device change what it shows; with what to do. Of any thread; needs root.
Result<Sha256> digest_of_table(dev_t device, const std::string& path);

}  // namespace tidemark::agent
