// Commands about the certificates of those who open exports over TLS.
#pragma once

#include <string>

#include "cli/commands.h"

namespace tidemark::cli {

Outcome list_clients(Context& context);
// Of a client by name, or one certificate by its serial number.
Outcome revoke_client(Context& context, const std::string& client, const std::string& reason);

}  // namespace tidemark::cli
