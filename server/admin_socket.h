// HTTP on a unix socket, and who is at its other end. httplib speaks TCP only; it is content with any listening socket,
// but would not tell the peer, which the audit log must know: so connections are served here.
#pragma once

#include <httplib.h>

#include <string>

#include "base/status.h"

namespace tidemark::server {

// A listening socket at `path`, mode 0600, in place of a socket that lies there.
Result<int> listen_unix(const std::string& path);
// Of a connected unix socket: a megabyte goes out without a wait for the peer after each 200 KiB. What the system does
// not allow stays as it is.
void enlarge_send_buffer(int descriptor);

class UnixHttpServer final : public httplib::Server {
 public:
  void listen_on(int descriptor) { svr_sock_ = descriptor; }

 private:
  bool process_and_close_socket(int descriptor) override;
};

// Whoever made the request, as the kernel knows it.
struct Peer {
  unsigned uid = 0;
  int pid = 0;
  std::string name() const;  // the user's name, or "uid N"
};
Peer peer_of(const httplib::Request& request);

}  // namespace tidemark::server
