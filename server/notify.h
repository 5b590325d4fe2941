// What systemd wants to know of a service (sd_notify), without its library: one datagram to $NOTIFY_SOCKET.
#pragma once

#include <string>
#include <string_view>

namespace tidemark::server {

// "READY=1", "STOPPING=1", "STATUS=...". Nothing happens when nobody listens.
void notify_supervisor(std::string_view state);
// The same to a socket that is named: a path, or "@name" for an abstract one. False: it could not be sent.
bool notify_socket(const std::string& socket, std::string_view state);

}  // namespace tidemark::server
